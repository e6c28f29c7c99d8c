//! After the faults: what must be in order again.

use weft_model::{
    ClusterState,
    spec::ServiceMode,
    state::{Node, TaskState, Traffic, UpdateState},
};

use super::{super::users, Host, World};

/// After the last fault, everything must be in order within this time.
const SETTLE_MS: u64 = 180_000;
/// And then nothing must change any more for this long.
const QUIET_MS: u64 = 5_000;

impl World {
    /// After the last fault: the users repair their specs, and then the cluster must meet them.
    pub(super) fn settle(&mut self) {
        let end_ms = self.now_ms + SETTLE_MS;
        let (mut repair_ms, mut quiet) = (0, (0, self.now_ms));
        loop {
            if self.checks.violation.is_some() {
                return;
            }
            let (problem, index) = (self.problem(), self.checks.state().index);
            if problem.is_some() || index != quiet.0 {
                quiet = (index, self.now_ms);
            }
            if self.now_ms >= quiet.1 + QUIET_MS {
                return self.check_end();
            }
            if self.now_ms >= end_ms {
                let problem = problem.unwrap_or_else(|| "the cluster state does not stop changing".to_owned());
                return self.checks.fail(format!("{SETTLE_MS} ms after the faults: {problem}"));
            }
            self.end_faults(self.now_ms);
            if self.now_ms >= repair_ms {
                repair_ms = self.now_ms + 500;
                let state = self.leader().and_then(|host| self.hosts[host].manager.as_ref().map(|m| m.state().clone()));
                if let Some(command) = state.and_then(|state| users::repair(&state)) {
                    self.ask(command);
                }
            }
            self.run_until(self.now_ms + 500);
        }
    }

    /// What is not in order.
    fn problem(&self) -> Option<String> {
        let state = self.checks.state();
        if self.leader().is_none() {
            return Some("there is no leader".to_owned());
        }
        if let Some(host) = self.hosts.iter().position(|host| host.lost_log.is_some()) {
            return Some(format!("the manager on host {host} has no log"));
        }
        let unaware = |host: &&Host| host.node.removed == state.nodes.contains_key(&host.node.id);
        if let Some(host) = self.hosts.iter().find(unaware) {
            return Some(format!("{} was removed, and does not know it", host.node.id));
        }
        if let Some(node) = state.nodes.values().find(|node| !node.has_converged()) {
            return Some(format!("{} is {:?}, {:?}", node.hostname, node.status, node.lag));
        }
        if let Some(node) = state.nodes.values().find(|node| node.is_manager() != node.voter) {
            return Some(format!("{} is a manager: {}, and votes: {}", node.hostname, node.is_manager(), node.voter));
        }
        if users::repair(state).is_some() {
            return Some("a change of the users is not made yet".to_owned());
        }
        for service in state.services.values() {
            if service.removing {
                return Some(format!("{} is being removed", service.spec.name));
            }
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => usize::try_from(replicas).expect("a small number"),
                ServiceMode::Global => state.nodes.len(),
            };
            let live: Vec<_> = state.tasks_of(&service.id).filter(|t| !t.status.state.is_terminal()).collect();
            let active = live.iter().filter(|task| {
                task.traffic == Traffic::Active
                    && task.desired == TaskState::Running
                    && task.status.state == TaskState::Running
                    && task.spec == service.spec.task
            });
            let (active, updating) = (active.count(), service.update.as_ref().map(|update| update.state));
            if active != wanted || live.len() != wanted || updating.is_some_and(|u| u == UpdateState::Updating) {
                let states: Vec<_> = live.iter().map(|t| (&t.name, t.status.state, t.desired, t.traffic)).collect();
                return Some(format!("{} has {active} of {wanted} tasks: {states:?}, {updating:?}", service.spec.name));
            }
        }
        if !state.allocated.quarantine.is_empty() {
            return Some(format!("{} addresses are in quarantine", state.allocated.quarantine.len()));
        }
        None
    }

    /// Every confirmed change is in the log, all managers have the same log, and each node runs its
    /// tasks and no others.
    fn check_end(&mut self) {
        if let Some((id, index)) = self.users.confirmed.iter().find(|(id, _)| !self.checks.contains(**id)) {
            let text = format!("the change {id:x}, which was confirmed at {index}, is lost");
            return self.checks.fail(text);
        }
        let state: ClusterState = (**self.checks.state()).clone();
        for host in 0..self.hosts.len() {
            let own = &self.hosts[host];
            let is_manager = state.nodes.get(&own.node.id).is_some_and(Node::is_manager);
            // A node that was removed before it knew of its demotion runs a manager that no voter
            // accepts.
            let removed = own.node.removed;
            if !removed && own.manager.is_some() != is_manager {
                return self.checks.fail(format!("host {host} runs a manager: {}", !is_manager));
            }
            if !removed && own.manager.as_ref().is_some_and(|manager| **manager.state() != state) {
                return self.checks.fail(format!("host {host} has another state than the leader"));
            }
            let live = |id| state.tasks.get(id).is_some_and(|task| !task.status.state.is_terminal());
            let mut alive = own.node.machine.processes.iter().filter(|(_, process)| process.is_alive());
            if let Some((task, _)) = alive.find(|(id, _)| !live(*id)) {
                let text = format!("host {host} runs task {task}, which has ended");
                return self.checks.fail(text);
            }
        }
    }
}
