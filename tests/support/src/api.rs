//! A node's API socket, read directly where a table for people would have to be taken apart.

use std::{
    io::{Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);
/// The characters that a value in a query must encode: all but the unreserved ones (RFC 3986,
/// section 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A task as `GET /tasks` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub id: String,
    pub service: String,
    pub slot: u64,
    /// The name of its node; empty where it has none yet.
    pub node: String,
    pub state: String,
    pub desired: String,
    pub error: String,
    /// In the order of its networks, each with the name of the network.
    pub addrs: Vec<(String, IpAddr)>,
    pub container: String,
    /// Of its first process.
    pub pid: Option<u32>,
}

impl Task {
    /// What `weft/whoami` calls itself in it.
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.service, self.slot, self.id)
    }

    pub fn is_running(&self) -> bool {
        self.state == "running" && self.desired == "running"
    }

    /// Its IPv4 address on a network. Panics where it has none.
    #[track_caller]
    pub fn v4(&self, network: &str) -> IpAddr {
        self.addr(network, IpAddr::is_ipv4)
    }

    #[track_caller]
    pub fn v6(&self, network: &str) -> IpAddr {
        self.addr(network, IpAddr::is_ipv6)
    }

    #[track_caller]
    fn addr(&self, network: &str, family: impl Fn(&IpAddr) -> bool) -> IpAddr {
        let found = self.addrs.iter().find(|(name, addr)| name == network && family(addr));
        found.unwrap_or_else(|| panic!("task {} has no such address on {network}: {:?}", self.id, self.addrs)).1
    }
}

/// `GET path`, which must answer 200 and JSON (`_ping` excepted: its text becomes a JSON string).
pub fn get(socket: &Path, path: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("nobody serves {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer comes unchunked and ends with the connection.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: weft\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("no whole answer")?;
    let answer = String::from_utf8(answer).context("an answer that is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer that is no HTTP")?;
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("GET {path}: {}: {}", head.lines().next().unwrap_or_default(), body.trim());
    }
    Ok(serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
}

/// The tasks of a service, ended ones too, in the order of their slots. `nodes` gives names to node ids.
pub fn tasks(socket: &Path, service: &str) -> Result<Vec<Task>> {
    let filters = format!("{{\"service\":{{\"{service}\":true}}}}");
    let tasks = get(socket, &format!("/tasks?filters={}", utf8_percent_encode(&filters, QUERY)))?;
    let nodes = get(socket, "/nodes")?;
    let hostname = |id: &str| {
        let node = nodes.as_array().into_iter().flatten().find(|node| node["ID"] == id);
        node.map_or_else(|| id.to_owned(), |node| text(&node["Description"]["Hostname"]))
    };
    let tasks = tasks.as_array().context("no list of tasks")?;
    let mut tasks: Vec<Task> = tasks.iter().map(|task| read(task, service, &hostname)).collect();
    tasks.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
    Ok(tasks)
}

fn read(task: &Value, service: &str, hostname: &impl Fn(&str) -> String) -> Task {
    let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
    let addrs = attachments.iter().flat_map(|attachment| {
        let network = text(&attachment["Network"]["Spec"]["Name"]);
        let addrs = attachment["Addresses"].as_array().cloned().unwrap_or_default();
        addrs.into_iter().filter_map(move |addr| {
            let addr = addr.as_str()?.split('/').next()?.parse().ok()?;
            Some((network.clone(), addr))
        })
    });
    let node = text(&task["NodeID"]);
    Task {
        id: text(&task["ID"]),
        service: service.to_owned(),
        slot: task["Slot"].as_u64().unwrap_or_default(),
        node: if node.is_empty() { node } else { hostname(&node) },
        state: text(&task["Status"]["State"]),
        desired: text(&task["DesiredState"]),
        error: text(&task["Status"]["Err"]),
        addrs: addrs.collect(),
        container: text(&task["Status"]["ContainerStatus"]["ContainerID"]),
        pid: task["Status"]["ContainerStatus"]["PID"]
            .as_u64()
            .and_then(|pid| pid.try_into().ok())
            .filter(|pid| *pid != 0),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(utf8_percent_encode(r#"{"a-b":true}"#, QUERY).to_string(), "%7B%22a-b%22%3Atrue%7D");
    }
}
