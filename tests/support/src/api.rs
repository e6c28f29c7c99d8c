//! Reads a node's API socket. Tests use it where the command line prints only a table for users.

use std::{
    io::{Read, Write},
    net::IpAddr,
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::speed::scaled;

const TIMEOUT: Duration = Duration::from_secs(20);
/// The characters that a value in a query must encode: all but the unreserved ones (RFC 3986,
/// section 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A task, as `GET /tasks` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub id: String,
    pub service: String,
    /// The number of its replica. 0 for a task of a global service.
    pub slot: u64,
    pub node_id: String,
    /// The name of its node. Empty when the task has no node yet.
    pub node: String,
    pub state: String,
    pub desired: String,
    pub error: String,
    /// Names of networks with the task's addresses there, in the order of the task's networks.
    pub addrs: Vec<(String, IpAddr)>,
    pub container: String,
    /// The id of its first process.
    pub pid: Option<u32>,
}

impl Task {
    /// The name that `weft/whoami` prints when it runs as this task.
    pub fn name(&self) -> String {
        match self.slot {
            0 => format!("{}.{}.{}", self.service, self.node_id, self.id),
            slot => format!("{}.{slot}.{}", self.service, self.id),
        }
    }

    pub fn is_running(&self) -> bool {
        self.state == "running" && self.desired == "running"
    }

    /// Its IPv4 address on a network.
    ///
    /// # Panics
    /// When it has none.
    #[track_caller]
    pub fn v4(&self, network: &str) -> IpAddr {
        self.addr(network, IpAddr::is_ipv4)
    }

    /// Its IPv6 address on a network.
    ///
    /// # Panics
    /// When it has none.
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

/// Sends `GET path` and returns the JSON of the answer. The text of `/_ping` is returned as a JSON
/// string.
///
/// # Errors
/// When no daemon listens on the socket, or the status is not 200.
pub fn get(socket: &Path, path: &str) -> Result<Value> {
    find(socket, path)?.with_context(|| format!("GET {path}: 404 Not Found"))
}

/// Like [`get`]. `None` if the status is 404.
fn find(socket: &Path, path: &str) -> Result<Option<Value>> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("no daemon listens on {}", socket.display()))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    // With HTTP/1.0 the server sends no chunks, and closes the connection after the answer.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: weft\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("cannot read the whole answer")?;
    let answer = String::from_utf8(answer).context("the answer is not UTF-8")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(Some(serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))),
        Some("404") => Ok(None),
        _ => bail!("GET {path}: {}: {}", head.lines().next().unwrap_or_default(), body.trim()),
    }
}

/// The tasks of a service in the order of their slots, including those that have ended. None if
/// there is no such service.
pub fn tasks(socket: &Path, service: &str) -> Result<Vec<Task>> {
    let filters = format!("{{\"service\":{{\"{service}\":true}}}}");
    let path = format!("/tasks?filters={}", utf8_percent_encode(&filters, QUERY));
    let Some(tasks) = find(socket, &path)? else { return Ok(Vec::new()) };
    let nodes = get(socket, "/nodes")?;
    let hostname = |id: &str| {
        let node = nodes.as_array().into_iter().flatten().find(|node| node["ID"] == id);
        node.map_or_else(|| id.to_owned(), |node| text(&node["Description"]["Hostname"]))
    };
    let tasks = tasks.as_array().context("the answer is not a list of tasks")?;
    let mut tasks: Vec<Task> = tasks.iter().map(|task| parse(task, service, &hostname)).collect();
    tasks.sort_by(|a, b| (a.slot, &a.id).cmp(&(b.slot, &b.id)));
    Ok(tasks)
}

/// The host name and the status of every node.
pub fn node_statuses(socket: &Path) -> Result<Vec<(String, String)>> {
    let nodes = get(socket, "/nodes")?;
    let nodes = nodes.as_array().context("the answer is not a list of nodes")?;
    ensure!(!nodes.is_empty(), "the list of nodes is empty");
    Ok(nodes.iter().map(|node| (text(&node["Description"]["Hostname"]), text(&node["Status"]["State"]))).collect())
}

fn parse(task: &Value, service: &str, hostname: &impl Fn(&str) -> String) -> Task {
    let attachments = task["NetworksAttachments"].as_array().cloned().unwrap_or_default();
    let addrs = attachments.iter().flat_map(|attachment| {
        let network = text(&attachment["Network"]["Spec"]["Name"]);
        let addrs = attachment["Addresses"].as_array().cloned().unwrap_or_default();
        addrs.into_iter().filter_map(move |addr| {
            let addr = addr.as_str()?.split('/').next()?.parse().ok()?;
            Some((network.clone(), addr))
        })
    });
    let node_id = text(&task["NodeID"]);
    Task {
        id: text(&task["ID"]),
        service: service.to_owned(),
        slot: task["Slot"].as_u64().unwrap_or_default(),
        node: if node_id.is_empty() { String::new() } else { hostname(&node_id) },
        node_id,
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
