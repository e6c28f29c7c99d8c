//! What the leader may conclude about hosts, and where tasks run.

use std::collections::BTreeMap;

use weft_model::{ClusterState, NodeId, state::Node};

use super::{
    super::{manager::Manager, network::Network, world::Host},
    Checks, STALE_MS,
};

/// The leader waits for no node that has acked nothing for this long: 15 s, and the time of a step.
pub(super) const GATES_MS: u64 = 20_000;
/// How often this is checked.
const GATES_EVERY_MS: u64 = 250;

impl Checks {
    /// A leader that sets a node to down can hear from a quorum, and does not hear from the node.
    #[expect(clippy::too_many_arguments, reason = "the facts of one event")]
    pub(super) fn check_down(
        &mut self,
        now_ms: u64,
        (number, leader): (usize, &Host),
        node: &NodeId,
        timeout_ms: Option<u64>,
        voters: &[u64],
        hosts: &[Host],
        net: &Network,
    ) {
        let id = leader.raft_id();
        let reaches = |(from, host): (usize, &Host)| {
            let votes = host.raft_id().is_some_and(|id| voters.contains(&id));
            let is_heard = host.raft_id() == id || !net.is_blocked(from, number);
            votes && is_heard && host.has_answered(now_ms)
        };
        if hosts.iter().enumerate().filter(|host| reaches(*host)).count() * 2 <= voters.len() {
            self.fail(format!("{} sets {node} to down while it hears from no quorum", leader.node.id));
        }
        let calm_since_ms = hosts.iter().find(|host| host.node.id == *node).map(|host| host.calm_since_ms);
        if let Some((since_ms, timeout_ms)) = calm_since_ms.zip(timeout_ms)
            && since_ms + timeout_ms + STALE_MS < now_ms
        {
            self.fail(format!("{} sets {node} to down, which sends heartbeats", leader.node.id));
        }
    }

    /// A majority of the voters that remain has answered.
    pub(super) fn check_removed(&mut self, now_ms: u64, remaining: &[u64], hosts: &[Host]) {
        let answers = |id: &&u64| {
            let mut hosts = hosts.iter().filter(|host| host.raft_id() == Some(**id));
            hosts.any(|host| host.has_answered(now_ms))
        };
        if remaining.iter().filter(answers).count() * 2 <= remaining.len() {
            self.fail(format!("voters are removed, and no majority of {remaining:?}, which remain, runs"));
        }
    }

    /// Whether the cluster may rely on what is in effect on the node.
    pub(super) fn is_reliable(&self, state: &ClusterState, host: &Host) -> bool {
        let missed = self.missed.get(&host.node.id).copied().unwrap_or(0);
        let gates = state.nodes.get(&host.node.id).is_some_and(Node::gates_changes);
        gates && host.node.acked.generation >= missed
    }

    /// What must hold between any two events.
    pub(in crate::swarm::tests::sim) fn check_hosts(&mut self, now_ms: u64, hosts: &[Host]) {
        let is_aged = |at_ms: &u64| at_ms + GATES_MS <= now_ms;
        while usize::try_from(self.aged).is_ok_and(|aged| self.committed_ms.get(aged).is_some_and(is_aged)) {
            self.aged += 1;
        }
        let mut places = BTreeMap::new();
        let changed = hosts.iter().any(|host| !host.node.is_idle());
        for host in hosts {
            for (task, _) in host.node.machine.processes.iter().filter(|(_, process)| changed && process.is_alive()) {
                if let Some(other) = places.insert(task, &host.node.id) {
                    let text = format!("task {task} runs on {other} and on {}", host.node.id);
                    return self.fail(text);
                }
            }
            if now_ms.is_multiple_of(GATES_EVERY_MS)
                && let Some(manager) = &host.manager
            {
                self.check_gates(now_ms, host, manager, hosts);
            }
        }
    }

    /// The leader waits for no node that has acked nothing for a long time.
    fn check_gates(&mut self, now_ms: u64, host: &Host, manager: &Manager, hosts: &[Host]) {
        let is_aged = |at_ms: u64| at_ms + GATES_MS <= now_ms;
        if !manager.leads_since_ms().is_some_and(|since_ms| is_aged(since_ms.max(host.calm_since_ms))) {
            return;
        }
        for node in manager.connected() {
            let own = hosts.iter().find(|host| host.node.id == *node);
            let is_late = own.is_some_and(|own| is_aged(own.calm_since_ms) && own.node.acked.generation < self.aged);
            if is_late && manager.state().nodes.get(node).is_some_and(Node::gates_changes) {
                return self.fail(format!("the cluster waits for {node}, which has acked nothing for {GATES_MS} ms"));
            }
        }
    }
}
