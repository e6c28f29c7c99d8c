//! Making one cluster of a lab's nodes, as an operator would, and waiting until it stands.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Lab, api, contract, wait};

/// The lab notices a lost node sooner than a cluster over real links should: 1 s, and down after 5.
const INIT_FLAGS: [&str; 4] = ["--dispatcher-heartbeat", "1s", "--down-after", "5"];
const JOIN: Duration = Duration::from_secs(30);

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
    /// Forms the cluster on n1. Returns what the command printed.
    pub fn init(&self) -> Result<String> {
        self.weft_ok("n1", &as_strs(&Self::init_arguments()))
    }

    /// What forms the cluster on n1.
    pub fn init_arguments() -> Vec<String> {
        let addr = contract::v4("n1").to_string();
        let mut arguments = vec!["swarm", "init", "--advertise-addr", &addr];
        arguments.extend(INIT_FLAGS);
        arguments.into_iter().map(str::to_owned).collect()
    }

    pub fn join_token(&self, via: &str, role: Role) -> Result<String> {
        Ok(self.weft_ok(via, &["swarm", "join-token", "--quiet", role.as_str()])?.trim().to_owned())
    }

    /// Joins a node to the cluster of n1.
    pub fn join(&self, node: &str, token: &str) -> Result<String> {
        self.weft_ok(node, &as_strs(&Self::join_arguments(node, token)))
    }

    /// What joins a node to the cluster of n1.
    pub fn join_arguments(node: &str, token: &str) -> Vec<String> {
        let (addr, manager) = (contract::v4(node).to_string(), format!("{}:2377", contract::v4("n1")));
        ["swarm", "join", "--token", token, "--advertise-addr", &addr, &manager].map(str::to_owned).to_vec()
    }

    /// All of it: n1 to `managers` as managers, the others as workers, until every node is ready.
    pub(crate) fn form(&self, managers: usize) -> Result<()> {
        self.init()?;
        let worker = self.join_token("n1", Role::Worker)?;
        let manager = self.join_token("n1", Role::Manager)?;
        for (index, node) in self.nodes().enumerate().skip(1) {
            self.join(&node, if index < managers { &manager } else { &worker })?;
        }
        self.wait_ready("n1", self.nodes().count())
    }

    /// Waits until `count` nodes are ready, as a manager sees them.
    pub fn wait_ready(&self, via: &str, count: usize) -> Result<()> {
        let mut seen = String::new();
        let ready = wait::until(JOIN, || {
            let statuses = self.node_statuses(via).ok()?;
            seen = format!("{statuses:?}");
            (statuses.iter().filter(|(_, status)| status == "ready").count() == count).then_some(())
        });
        ready.with_context(|| format!("{count} nodes should be ready within {JOIN:?}, but they are {seen}"))
    }

    /// Waits until `count` managers take part in decisions.
    pub fn wait_managers(&self, via: &str, count: usize) -> Result<()> {
        let mut seen = 0;
        let reachable = wait::until(JOIN, || {
            let nodes = api::get(&contract::socket(via), "/nodes").ok()?;
            let managers = nodes.as_array().into_iter().flatten();
            seen = managers.filter(|node| node["ManagerStatus"]["Reachability"] == "reachable").count();
            (seen == count).then_some(())
        });
        reachable.with_context(|| format!("{count} managers should be reachable within {JOIN:?}, but {seen} are"))
    }

    /// Host name and status of every node.
    pub fn node_statuses(&self, via: &str) -> Result<Vec<(String, String)>> {
        let nodes = api::get(&contract::socket(via), "/nodes")?;
        let nodes = nodes.as_array().context("no list of nodes")?;
        ensure!(!nodes.is_empty(), "no nodes");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(nodes.iter().map(|node| (text(&node["Description"]["Hostname"]), text(&node["Status"]["State"]))).collect())
    }

    /// The manager that leads, as `via` sees it.
    pub fn leader(&self, via: &str) -> Result<String> {
        let nodes = api::get(&contract::socket(via), "/nodes")?;
        let leader = nodes.as_array().into_iter().flatten().find(|node| node["ManagerStatus"]["Leader"] == true);
        leader.and_then(|node| node["Description"]["Hostname"].as_str()).map(str::to_owned).context("nobody leads")
    }
}

fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}
