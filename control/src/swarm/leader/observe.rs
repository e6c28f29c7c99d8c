//! What the nodes' heartbeats and reports change in the table: a pure function of the table, the leader's memory and the
//! time.

use std::collections::BTreeMap;

use weft_model::{
    ClusterState, Command, NodeId, NodeReport, TaskId,
    report::NodeDescription,
    state::{NodeStatus, TaskStatus},
};

use crate::swarm::desk::LeaderView;

/// What the leader has logged of the nodes' reports, so that nothing is logged twice, even where apply makes something
/// else of it.
#[derive(Debug, Default)]
pub(super) struct LoggedReports {
    tasks: BTreeMap<TaskId, TaskStatus>,
    descriptions: BTreeMap<NodeId, NodeDescription>,
}

/// What to log, and when (steady clock) to look again though nothing else happened.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Observations {
    pub commands: Vec<Command>,
    pub wake_at_ms: Option<u64>,
}

/// Reads `view` at `monotonic_ms`.
pub(super) fn observe(
    state: &ClusterState,
    view: &LeaderView,
    logged: &LoggedReports,
    monotonic_ms: u64,
) -> Observations {
    let mut observed = Observations::default();
    let Some(cluster) = &state.cluster else {
        return observed;
    };
    let patience_ms = cluster.spec.heartbeat_ms.saturating_mul(cluster.spec.heartbeat_misses.into());
    for node in state.nodes.values() {
        let liveness = view.nodes.get(&node.id);
        let from_ms =
            liveness.map_or(view.since_monotonic_ms, |liveness| liveness.last_message_ms.max(view.since_monotonic_ms));
        let missing_at_ms = from_ms.saturating_add(patience_ms);
        if missing_at_ms <= monotonic_ms {
            if node.status != NodeStatus::Down {
                observed.commands.push(Command::SetNodeStatus {
                    id: node.id.clone(),
                    status: NodeStatus::Down,
                    message: format!("heartbeat failure: no message for {patience_ms} ms"),
                });
            }
            continue;
        }
        if let Some(liveness) = liveness {
            observed.commands.extend(report_commands(state, &node.id, &liveness.report, logged));
            // Tasks are placed by what a node says of itself: before it has, none can be.
            let described = node.description.is_some() || liveness.report.description.is_some();
            if node.status != NodeStatus::Ready && described {
                let ready = NodeStatus::Ready;
                observed.commands.push(Command::SetNodeStatus {
                    id: node.id.clone(),
                    status: ready,
                    message: String::new(),
                });
            }
        }
        if liveness.is_some() || node.status != NodeStatus::Down {
            let wake = observed.wake_at_ms.get_or_insert(missing_at_ms);
            *wake = (*wake).min(missing_at_ms);
        }
    }
    observed
}

/// What a node's report says beyond what the table and the log hold.
fn report_commands(state: &ClusterState, node: &NodeId, report: &NodeReport, logged: &LoggedReports) -> Vec<Command> {
    let mut commands = Vec::new();
    let known = state.nodes.get(node).and_then(|node| node.description.as_ref());
    let said = report.description.as_ref();
    if let Some(description) = said.filter(|_| said != known && said != logged.descriptions.get(node)) {
        commands.push(Command::DescribeNode { node: node.clone(), description: Box::new(description.clone()) });
    }
    let tasks: Vec<_> = report
        .tasks
        .iter()
        .filter(|(id, status)| is_new(state, node, id, status) && logged.tasks.get(id) != Some(status))
        .cloned()
        .collect();
    if !tasks.is_empty() {
        commands.push(Command::ReportTasks { node: node.clone(), tasks });
    }
    commands
}

/// Whether this observation is of a task of that node, differs from the table, and does not go back.
fn is_new(state: &ClusterState, node: &NodeId, id: &TaskId, status: &TaskStatus) -> bool {
    state.tasks.get(id).is_some_and(|task| {
        task.node.as_ref() == Some(node)
            && task.status != *status
            && !task.status.state.is_terminal()
            && status.state >= task.status.state
    })
}

impl LoggedReports {
    /// Remembers what was logged, and forgets what the table no longer holds.
    pub(super) fn record(&mut self, state: &ClusterState, commands: &[Command]) {
        self.tasks.retain(|id, _| state.tasks.contains_key(id));
        self.descriptions.retain(|id, _| state.nodes.contains_key(id));
        for command in commands {
            match command {
                Command::ReportTasks { tasks, .. } => self.tasks.extend(tasks.iter().cloned()),
                Command::DescribeNode { node, description } => {
                    self.descriptions.insert(node.clone(), NodeDescription::clone(description));
                }
                _ => {}
            }
        }
    }
}
