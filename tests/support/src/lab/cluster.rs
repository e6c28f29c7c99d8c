//! Forms a cluster of a lab's nodes as an operator does, and waits until its nodes are ready.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Lab;
use crate::{api, contract, wait};

/// A lab must detect a lost node sooner than a cluster on real machines does. Each node sends a
/// heartbeat every second, and is down after 5 s without one.
const INIT_FLAGS: [&str; 4] = ["--dispatcher-heartbeat", "1s", "--down-after", "5"];
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Worker,
    Manager,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

impl Lab {
    /// Initializes the cluster on n1. Returns the output of the command.
    pub fn init(&self) -> Result<String> {
        self.weft_ok("n1", &as_strs(&Self::init_arguments()))
    }

    /// The arguments of the command that initializes the cluster on n1.
    pub fn init_arguments() -> Vec<String> {
        let addr = contract::v4("n1").to_string();
        let mut arguments = vec!["swarm", "init", "--advertise-addr", &addr];
        arguments.extend(INIT_FLAGS);
        arguments.into_iter().map(str::to_owned).collect()
    }

    pub fn join_token(&self, via: &str, role: Role) -> Result<String> {
        Ok(self.weft_ok(via, &["swarm", "join-token", "--quiet", role.as_str()])?.trim().to_owned())
    }

    /// Lets a node join the cluster of n1. Returns the output of the command.
    pub fn join(&self, node: &str, token: &str) -> Result<String> {
        self.weft_ok(node, &as_strs(&Self::join_arguments(node, token)))
    }

    /// The arguments of the command by which a node joins the cluster of n1.
    pub fn join_arguments(node: &str, token: &str) -> Vec<String> {
        let (addr, manager) = (contract::v4(node).to_string(), format!("{}:2377", contract::v4("n1")));
        ["swarm", "join", "--token", token, "--advertise-addr", &addr, &manager].map(str::to_owned).to_vec()
    }

    /// Forms a cluster of all nodes: the first `managers` nodes are managers, the others are
    /// workers. Returns when every node is ready.
    pub(super) fn form_cluster(&self, managers: usize) -> Result<()> {
        self.init()?;
        let worker = self.join_token("n1", Role::Worker)?;
        let manager = self.join_token("n1", Role::Manager)?;
        for (index, node) in self.nodes().enumerate().skip(1) {
            self.join(&node, if index < managers { &manager } else { &worker })?;
        }
        self.wait_ready("n1", self.nodes().count())
    }

    /// Waits until `count` nodes are ready, as the manager `via` reports.
    pub fn wait_ready(&self, via: &str, count: usize) -> Result<()> {
        let mut last = String::new();
        let ready = wait::poll(TIMEOUT, || {
            let statuses = self.node_statuses(via).ok()?;
            last = format!("{statuses:?}");
            (statuses.iter().filter(|(_, status)| status == "ready").count() == count).then_some(())
        });
        ready.with_context(|| format!("{count} nodes are not ready within {TIMEOUT:?}: {last}"))
    }

    /// Waits until `count` managers are reachable, as the manager `via` reports.
    pub fn wait_managers(&self, via: &str, count: usize) -> Result<()> {
        let mut last = 0;
        let reachable = wait::poll(TIMEOUT, || {
            let nodes = api::get(&contract::socket(via), "/nodes").ok()?;
            let managers = nodes.as_array().into_iter().flatten();
            last = managers.filter(|node| node["ManagerStatus"]["Reachability"] == "reachable").count();
            (last == count).then_some(())
        });
        reachable.with_context(|| format!("{last} managers instead of {count} are reachable after {TIMEOUT:?}"))
    }

    /// The host name and the status of every node.
    pub fn node_statuses(&self, via: &str) -> Result<Vec<(String, String)>> {
        api::node_statuses(&contract::socket(via))
    }

    /// The host name of the leader, as the manager `via` reports.
    pub fn leader(&self, via: &str) -> Result<String> {
        let nodes = api::get(&contract::socket(via), "/nodes")?;
        let leader = nodes.as_array().into_iter().flatten().find(|node| node["ManagerStatus"]["Leader"] == true);
        let name = leader.and_then(|node| node["Description"]["Hostname"].as_str());
        name.map(str::to_owned).context("the cluster has no leader")
    }
}

fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}
