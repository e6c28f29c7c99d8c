//! Rewrites the query of `GET /containers/json`.
//!
//! The engine knows networks of the cluster by other ids, and the published ports of tasks not at
//! all. So it is asked for the docker network of a network of the cluster, and the filters by port
//! are applied to what weft shows.

use std::ops::RangeInclusive;

use axum::http::Uri;
use serde_json::{Map, Value};

use crate::api::{
    docker_networks::DockerNetworks,
    error::ApiError,
    query::{add_filter, change_filters, filter_values, pairs, with_pairs},
};

/// The query of a list of containers.
#[derive(Debug)]
pub(super) struct ListQuery {
    /// The request for the engine.
    pub(super) forwarded: Uri,
    /// What remains to be done with its answer.
    pub(super) selection: Option<Selection>,
}

/// The filters `publish` and `expose`, of which a container must match one, and the limit of the
/// list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    publish: Vec<PortRange>,
    expose: Vec<PortRange>,
    limit: Option<usize>,
}

#[derive(Debug, PartialEq, Eq)]
struct PortRange {
    ports: RangeInclusive<u64>,
    protocol: String,
}

impl ListQuery {
    pub(super) fn read(uri: &Uri, networks: &DockerNetworks) -> Result<Self, ApiError> {
        let mut selection = None;
        let mut forwarded = change_filters(uri, |filters| {
            for text in filter_values(filters, "network") {
                if let Some(network) = networks.named(&text) {
                    add_filter(filters, "network", &network.docker_id);
                }
            }
            selection = take_ports(filters);
        })?;
        if let Some(selection) = &mut selection {
            forwarded = take_limit(&forwarded, &mut selection.limit)?;
        }
        Ok(Self { forwarded, selection })
    }
}

/// Takes the filters by port. Leaves both if one of them cannot be read: the engine refuses that.
fn take_ports(filters: &mut Map<String, Value>) -> Option<Selection> {
    let read = |filter: &str| filter_values(filters, filter).iter().map(|text| PortRange::read(text)).collect();
    let (publish, expose): (Option<Vec<_>>, Option<Vec<_>>) = (read("publish"), read("expose"));
    let (publish, expose) = (publish?, expose?);
    if publish.is_empty() && expose.is_empty() {
        return None;
    }
    filters.retain(|filter, _| filter != "publish" && filter != "expose");
    Some(Selection { publish, expose, limit: None })
}

/// Takes the limit, which counts the containers that match. A list with a limit has containers that
/// have ended.
fn take_limit(uri: &Uri, limit: &mut Option<usize>) -> Result<Uri, ApiError> {
    let mut pairs = pairs(uri);
    if let Some(at) = pairs.iter().position(|(key, _)| key == "limit")
        && let Ok(given) = pairs[at].1.parse::<i64>()
    {
        pairs.remove(at);
        if given > 0 {
            pairs.retain(|(key, _)| key != "all");
            pairs.push(("all".to_owned(), "1".to_owned()));
            *limit = usize::try_from(given).ok();
        }
    }
    with_pairs(uri, &pairs)
}

impl Selection {
    /// Removes the containers that do not match.
    pub(super) fn apply(&self, containers: &mut Vec<Value>) {
        containers
            .retain(|container| container["Ports"].as_array().into_iter().flatten().any(|port| self.accepts(port)));
        if let Some(limit) = self.limit {
            containers.truncate(limit);
        }
    }

    fn accepts(&self, port: &Value) -> bool {
        let has = |ranges: &[PortRange], key: &str| {
            ranges.iter().any(|range| {
                port[key].as_u64().is_some_and(|number| range.ports.contains(&number))
                    && port["Type"] == *range.protocol
            })
        };
        has(&self.publish, "PublicPort") || has(&self.expose, "PrivatePort")
    }
}

impl PortRange {
    /// Reads `80`, `80/udp` or `8000-8010/tcp`.
    fn read(text: &str) -> Option<Self> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let port = |text: &str| text.parse::<u16>().ok().map(u64::from);
        let (first, last) = (port(first)?, port(last)?);
        (first <= last).then(|| Self { ports: first..=last, protocol: protocol.to_lowercase() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use weft_model::NetworkId;

    use super::*;

    fn networks() -> DockerNetworks {
        let app = NetworkId::from_random(1);
        DockerNetworks::read(&json!([{"Name": "app", "Id": "d1", "Labels": {"weft.network": app.as_str()}}]), None)
    }

    fn read(pairs: &[(&str, &str)]) -> (Vec<(String, String)>, Option<Selection>) {
        let owned: Vec<_> = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let uri = with_pairs(&Uri::from_static("/containers/json"), &owned).expect("a query");
        let query = ListQuery::read(&uri, &networks()).expect("a query");
        (super::pairs(&query.forwarded), query.selection)
    }

    #[test]
    fn the_engine_is_asked_for_the_docker_network() {
        let id = NetworkId::from_random(1);
        let by_id = json!({"network": {id.as_str(): true}, "status": ["running"]}).to_string();
        for (given, forwarded) in [
            (r#"{"network":["app"]}"#, r#"{"network":["app","d1"]}"#.to_owned()),
            (by_id.as_str(), json!({"network": {id.as_str(): true, "d1": true}, "status": ["running"]}).to_string()),
            (r#"{"network":["bridge"],"name":["x"]}"#, r#"{"network":["bridge"],"name":["x"]}"#.to_owned()),
        ] {
            let (pairs, selection) = read(&[("all", "1"), ("filters", given)]);
            let want = [("all".to_owned(), "1".to_owned()), ("filters".to_owned(), forwarded)];
            assert_eq!((pairs.as_slice(), selection), (&want[..], None), "{given}");
        }
    }

    #[test]
    fn filters_by_port_are_applied_to_what_is_shown() {
        let filters = r#"{"name":["web"],"publish":["8000-8080"]}"#;
        let (pairs, selection) = read(&[("limit", "1"), ("filters", filters)]);
        let want = [("filters", r#"{"name":["web"]}"#), ("all", "1")];
        assert_eq!(pairs, want.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let port =
            |public: u16, kind: &str| json!({"Ports": [{"PrivatePort": 80, "PublicPort": public, "Type": kind}]});
        let mut containers = vec![port(8080, "udp"), json!({"Ports": []}), port(8080, "tcp"), port(8001, "tcp")];
        selection.expect("a filter by port").apply(&mut containers);
        assert_eq!(containers, [port(8080, "tcp")]);

        let (_, selection) = read(&[("filters", r#"{"expose":{"80/udp":true}}"#)]);
        let mut containers = vec![port(8080, "udp"), port(8080, "tcp")];
        selection.expect("a filter by port").apply(&mut containers);
        assert_eq!(containers, [port(8080, "udp")]);
    }

    #[test]
    fn the_engine_refuses_what_it_cannot_read() {
        for filters in [r#"{"publish":["x"]}"#, r#"{"publish":["80"],"expose":["9-8"]}"#, "[", ""] {
            let (pairs, selection) = read(&[("filters", filters), ("limit", "1")]);
            assert_eq!((pairs[0].1.as_str(), pairs[1].1.as_str(), selection), (filters, "1", None));
        }
    }
}
