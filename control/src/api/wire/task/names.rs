//! Converts `DNSConfig` and `Hosts` of a container, which say how the tasks look up names, in both
//! directions.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use bollard_stubs::models::TaskSpecContainerSpecDnsConfig;
use serde_json::Value;
use weft_model::spec::{DnsConfig, HostEntry, InvalidHostEntry, MAX_NAME_SERVERS};

use crate::api::{error::ApiError, wire::values::list};

/// The address of the resolver in every task. It cannot be its own upstream resolver.
const TASK_RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// What Docker takes as the address of the node.
const HOST_GATEWAY: &str = "host-gateway";

pub(super) fn read_dns(config: TaskSpecContainerSpecDnsConfig) -> Result<DnsConfig, ApiError> {
    let servers = config.nameservers.unwrap_or_default();
    if servers.len() > MAX_NAME_SERVERS {
        return Err(ApiError::Invalid(format!(
            "{} name servers (--dns) are given, and tasks use at most {MAX_NAME_SERVERS}: leave the others out",
            servers.len()
        )));
    }
    Ok(DnsConfig {
        name_servers: servers.iter().map(|text| read_server(text)).collect::<Result<_, _>>()?,
        search: parse_all(&config.search.unwrap_or_default())?,
        options: parse_all(&config.options.unwrap_or_default())?,
    })
}

fn parse_all<T: FromStr<Err: Error>>(texts: &[String]) -> Result<Vec<T>, ApiError> {
    texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map_err(invalid)
}

fn invalid(error: impl Error) -> ApiError {
    ApiError::Invalid(error.to_string())
}

fn read_server(text: &str) -> Result<IpAddr, ApiError> {
    match text.trim().parse() {
        Ok(TASK_RESOLVER) => Err(ApiError::Invalid(format!(
            "name server {TASK_RESOLVER} (--dns) is the resolver of the task itself, which would ask itself: give \
             another address"
        ))),
        Ok(address) => Ok(address),
        Err(_) => Err(ApiError::Invalid(format!(
            "{text:?} is not the address of a name server (--dns): give an IPv4 or IPv6 address without a port"
        ))),
    }
}

pub(super) fn write_dns(config: &DnsConfig) -> TaskSpecContainerSpecDnsConfig {
    let texts = |values: Vec<String>| list(&values);
    TaskSpecContainerSpecDnsConfig {
        nameservers: texts(config.name_servers.iter().map(ToString::to_string).collect()),
        search: texts(config.search.iter().map(ToString::to_string).collect()),
        options: texts(config.options.iter().map(ToString::to_string).collect()),
    }
}

pub(super) fn read_hosts(entries: &[String]) -> Result<Vec<HostEntry>, ApiError> {
    entries.iter().map(|entry| read_host(entry)).collect()
}

fn read_host(text: &str) -> Result<HostEntry, ApiError> {
    if text.split_whitespace().next() == Some(HOST_GATEWAY) {
        return Err(ApiError::Invalid(format!(
            "weft does not know {HOST_GATEWAY} in the hosts entry {text:?}: tasks of a service run on any node, so give \
             an address"
        )));
    }
    text.parse().map_err(|error: InvalidHostEntry| invalid(error))
}

pub(super) fn write_hosts(entries: &[HostEntry]) -> Option<Vec<String>> {
    list(&entries.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// An address can be written in several forms, and an entry of a hosts file with any spaces. This
/// changes both to the form that [`write_dns`] and [`write_hosts`] use.
pub(in crate::api::wire) fn normalise(container: &mut Value) -> Result<(), ApiError> {
    change_texts(container.pointer_mut("/DNSConfig/Nameservers"), |text| Ok(read_server(text)?.to_string()))?;
    change_texts(container.pointer_mut("/Hosts"), |text| Ok(read_host(text)?.to_string()))
}

fn change_texts(list: Option<&mut Value>, change: impl Fn(&str) -> Result<String, ApiError>) -> Result<(), ApiError> {
    for item in list.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(text) = item.as_str() {
            *item = Value::String(change(text)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_refused(config: TaskSpecContainerSpecDnsConfig, text: &str) {
        let error = read_dns(config).expect_err("settings that cannot be used").to_string();
        assert!(error.contains(text), "{error}");
    }

    fn servers(addresses: &[&str]) -> TaskSpecContainerSpecDnsConfig {
        let nameservers = addresses.iter().map(|&address| address.to_owned()).collect();
        TaskSpecContainerSpecDnsConfig { nameservers: Some(nameservers), ..Default::default() }
    }

    #[test]
    fn refuses_what_tasks_cannot_use() {
        check_refused(servers(&["dns.test"]), "\"dns.test\" is not the address of a name server (--dns)");
        check_refused(servers(&["192.0.2.1:53"]), "without a port");
        check_refused(servers(&["fe80::1%eth0"]), "is not the address");
        check_refused(servers(&["192.0.2.1", "127.0.0.11"]), "the resolver of the task itself");
        check_refused(servers(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]), "4 name servers");
        let default = TaskSpecContainerSpecDnsConfig::default;
        check_refused(
            TaskSpecContainerSpecDnsConfig { search: Some(vec!["a b".into()]), ..default() },
            "search domain",
        );
        check_refused(TaskSpecContainerSpecDnsConfig { options: Some(vec!["ndots".into()]), ..default() }, "ndots");
        for (entry, text) in
            [("host-gateway db", "does not know host-gateway"), ("db 192.0.2.7", "not an entry of a hosts file")]
        {
            let error = read_hosts(&[entry.to_owned()]).expect_err(entry).to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn texts_get_the_form_that_is_written() {
        let mut container = json!({"DNSConfig": {"Nameservers": [" 2001:DB8::1 "]}, "Hosts": ["192.0.2.7 \t db"]});
        normalise(&mut container).expect("valid texts");
        assert_eq!(container, json!({"DNSConfig": {"Nameservers": ["2001:db8::1"]}, "Hosts": ["192.0.2.7 db"]}));
        for absent in [json!({}), json!({"DNSConfig": null, "Hosts": null}), Value::Null] {
            let mut container = absent.clone();
            normalise(&mut container).expect("nothing to change");
            assert_eq!(container, absent);
        }
    }
}
