//! Decides which commands follow from the nodes' heartbeats and reports. The leader's loop calls
//! [`observe`], a pure function of the cluster state, the leader's view and the time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
};

use weft_model::{
    ClusterState, Command, NetworkId, NodeId, NodeReport, TaskId,
    command::AttachContainer,
    report::NodeDescription,
    state::{FEATURE_LEVEL, Node, NodeStatus, TaskStatus},
};

use crate::{
    pki,
    state::{gone, is_news, moved},
    swarm::liveness::{LeaderView, Liveness},
};

/// The shortest time between two log entries about one topic of one node, in milliseconds. A node
/// may change what it reports in every message, and would fill the log with it. Changes during this
/// time are written together at its end.
const TOPIC_INTERVAL_MS: u64 = 2_000;
/// How many tasks one command reports. A status has less than 3 KiB (`dispatch/bounds.rs`), so that
/// the command is not longer than a batch of commands may be.
const TASKS_PER_COMMAND: usize = 256;

/// What a node can change at will. The other facts are limited by themselves: a task has few
/// states, and a node begins few sessions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Description,
    Address,
    Keys,
    /// How the engine calls a container, and that it has stopped.
    Container(TaskId),
    Message,
    /// Anything of a task's status except the state.
    TaskDetails,
}

impl Topic {
    /// The node and the topic of a command of [`observe`]. `None` if it needs no limit.
    fn of(state: &ClusterState, command: &Command) -> Option<(NodeId, Self)> {
        let is_ready = |node: &NodeId| state.nodes.get(node).is_some_and(|node| node.status == NodeStatus::Ready);
        match command {
            Command::DescribeNode { node, .. } => Some((node.clone(), Self::Description)),
            Command::JoinNode(moved) => Some((moved.id.clone(), Self::Address)),
            Command::ReportKeys { node, .. } => Some((node.clone(), Self::Keys)),
            // It has stopped before, which is limited. Its name must resolve at once.
            Command::AttachContainer(attach) if attach.running == Some(true) && attach.identity.is_none() => None,
            Command::AttachContainer(attach) => Some((attach.node.clone(), Self::Container(attach.id.clone()))),
            Command::SetNodeStatus { id, status: NodeStatus::Ready, .. } if is_ready(id) => {
                Some((id.clone(), Self::Message))
            }
            Command::ReportTasks { node, tasks }
                if !tasks.iter().any(|(id, status)| has_advanced(state, id, status)) =>
            {
                Some((node.clone(), Self::TaskDetails))
            }
            _ => None,
        }
    }
}

/// The parts of the nodes' reports that this leader has already written to the log. A report stays
/// in the leader's view until the node sends the next one, and `apply` may store less than the
/// report contains. Without this record, the leader would write the same report at every step.
#[derive(Debug, Default)]
pub(super) struct LoggedReports {
    tasks: BTreeMap<TaskId, TaskStatus>,
    descriptions: BTreeMap<NodeId, NodeDescription>,
    /// When the leader has written a topic last, on the monotonic clock.
    topics_ms: BTreeMap<(NodeId, Topic), u64>,
}

/// The commands to write to the log, and when to observe again.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Observations {
    pub commands: Vec<Command>,
    /// When the heartbeat timeout of the next node ends, on the monotonic clock.
    pub wake_at_ms: Option<u64>,
    /// The nodes whose heartbeat timeout has ended and that are not down yet.
    pub silent: Vec<NodeId>,
}

/// Limits how many nodes go down at once. If many are silent, the fault may be this manager's own,
/// and to replace all their tasks at once would overload the other nodes.
#[derive(Debug, Default)]
pub(super) struct DownLimit {
    /// When nodes went down, on the monotonic clock, oldest first.
    recent_ms: VecDeque<u64>,
}

impl DownLimit {
    /// How many of `nodes` nodes may go down within one heartbeat timeout.
    fn at_once(nodes: usize) -> usize {
        (nodes / 4).max(3)
    }

    /// Chooses which of the silent nodes go down now, and when the next one may.
    pub(super) fn take(
        &mut self,
        silent: Vec<NodeId>,
        nodes: usize,
        timeout_ms: u64,
        monotonic_ms: u64,
    ) -> (Vec<NodeId>, Option<u64>) {
        self.recent_ms.retain(|at_ms| at_ms.saturating_add(timeout_ms) > monotonic_ms);
        let room = Self::at_once(nodes).saturating_sub(self.recent_ms.len());
        let wait = silent.len() > room;
        let chosen: Vec<NodeId> = silent.into_iter().take(room).collect();
        self.recent_ms.extend(chosen.iter().map(|_| monotonic_ms));
        let next_ms = self.recent_ms.front().filter(|_| wait).map(|oldest| oldest.saturating_add(timeout_ms));
        (chosen, next_ms)
    }
}

/// Evaluates `view` at the time `monotonic_ms`.
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
    for node in state.nodes.values() {
        let liveness = view.nodes.get(&node.id);
        let timeout_ms = cluster.heartbeat_timeout_ms(liveness.map_or(0, |liveness| liveness.acked));
        let last_message_ms = liveness.map_or_else(
            || view.joined_monotonic_ms(node.meta.created_ms),
            |liveness| liveness.last_message_ms.max(view.since_monotonic_ms),
        );
        let down_at_ms = last_message_ms.saturating_add(timeout_ms);
        if down_at_ms <= monotonic_ms {
            if node.status != NodeStatus::Down {
                observed.silent.push(node.id.clone());
            }
            continue;
        }
        if let Some(liveness) = liveness {
            observed.commands.extend(report_commands(state, &node.id, liveness, logged));
            // The scheduler needs the node's description, so a node is not ready without one.
            let described = node.description.is_some() || liveness.report.description.is_some();
            let message = &liveness.certificate.problem;
            // The reason of a problem may be another one at each attempt, so only its beginning and
            // its end are written.
            let changed = node.status != NodeStatus::Ready || node.message.is_empty() != message.is_empty();
            if described && changed {
                observed.commands.push(Command::SetNodeStatus {
                    id: node.id.clone(),
                    status: NodeStatus::Ready,
                    message: message.clone(),
                });
            }
        }
        if liveness.is_some() || node.status != NodeStatus::Down {
            let wake = observed.wake_at_ms.get_or_insert(down_at_ms);
            *wake = (*wake).min(down_at_ms);
        }
    }
    let Observations { commands, wake_at_ms, .. } = &mut observed;
    commands.retain(|command| {
        let due_ms = logged.due_ms(state, command).filter(|due_ms| *due_ms > monotonic_ms);
        *wake_at_ms = [*wake_at_ms, due_ms].into_iter().flatten().min();
        due_ms.is_none()
    });
    commands.extend(rotated(state, view));
    observed
}

/// The command that records which nodes have begun to trust the new CA and to use a certificate of
/// it, while the CA is being replaced. When all have, it completes the rotation. `None` while a
/// recorded node reports another certificate: the rotation must not be completed before that node
/// has renewed it again. So a new leader waits for the reports of all nodes that are not down.
fn rotated(state: &ClusterState, view: &LeaderView) -> Option<Command> {
    let rotation = state.cluster.as_ref()?.root_rotation.as_ref()?;
    let digest = pki::ca_digest(&rotation.ca_cert_pem).ok()?;
    let uses_it = |node: &Node| view.nodes.get(&node.id).map(|liveness| liveness.certificate.ca_sha256 == digest);
    let goes_back = state.nodes.values().any(|node| node.rotated && uses_it(node) == Some(false));
    let news = state.nodes.values().filter(|node| !node.rotated && uses_it(node) == Some(true));
    let nodes: Vec<_> = news.map(|node| node.id.clone()).collect();
    // The last node that was not recorded may have been removed.
    let completes = state.nodes.values().all(|node| node.rotated || uses_it(node) == Some(true));
    let all_report = state.nodes.values().all(|node| node.status == NodeStatus::Down || uses_it(node).is_some());
    let writes = if completes { all_report } else { !nodes.is_empty() };
    let ca_cert_pem = rotation.ca_cert_pem.clone();
    (writes && !goes_back).then_some(Command::SetRotated { nodes, ca_cert_pem })
}

/// The feature level that all managers support, or that this release supports if it is lower.
/// `None` while a manager has no session, because the release of that manager is unknown.
pub(super) fn supported_level(state: &ClusterState, view: &LeaderView) -> Option<u32> {
    let managers = state.nodes.values().filter(|node| node.is_manager() || node.in_raft_config);
    let levels = managers.map(|node| view.nodes.get(&node.id).map(|liveness| liveness.feature_level));
    levels.chain([Some(FEATURE_LEVEL)]).min().flatten()
}

/// The command that sets a silent node to down.
pub(super) fn set_down(id: NodeId, timeout_ms: u64) -> Command {
    let message = format!("heartbeat failure: no message for {timeout_ms} ms");
    Command::SetNodeStatus { id, status: NodeStatus::Down, message }
}

/// The commands for what is new in a node's report.
fn report_commands(state: &ClusterState, node: &NodeId, liveness: &Liveness, logged: &LoggedReports) -> Vec<Command> {
    let report = &liveness.report;
    let mut commands = Vec::new();
    let known = state.nodes.get(node).and_then(|node| node.description.as_ref());
    let reported = report.description.as_ref();
    if let Some(description) = reported.filter(|_| reported != known && reported != logged.descriptions.get(node)) {
        commands.push(Command::DescribeNode { node: node.clone(), description: Box::new(description.clone()) });
    }
    if let Some(moved) = report.addr.and_then(|addr| moved_node(state, node, addr)) {
        commands.push(moved);
    }
    let new = report.tasks.iter();
    let new = new.filter(|(id, status)| is_new(state, node, id, status) && logged.tasks.get(id) != Some(status));
    let (advanced, details): (Vec<_>, Vec<_>) = new.cloned().partition(|(id, status)| has_advanced(state, id, status));
    for tasks in advanced.chunks(TASKS_PER_COMMAND).chain(details.chunks(TASKS_PER_COMMAND)) {
        commands.push(Command::ReportTasks { node: node.clone(), tasks: tasks.to_vec() });
    }
    // A node sends its report again if its keys have changed. So the last report has the keys that
    // the node held when it sent its last ack.
    let acked = liveness.acked;
    if state.nodes.get(node).is_some_and(|node| is_news(&node.keys, &report.keys, acked)) {
        commands.push(Command::ReportKeys { node: node.clone(), keys: report.keys.clone(), acked });
    }
    commands.extend(attached_commands(state, node, report));
    commands
}

/// The commands for the containers of a node that are no tasks: those that the engine has
/// connected, renamed, started or stopped, and those that are gone. Limited like other facts of a
/// node that it can change at will, except for what frees an address: a container is gone only
/// once.
fn attached_commands(state: &ClusterState, node: &NodeId, report: &NodeReport) -> Vec<Command> {
    let gone = gone(state, node, report);
    let detached: BTreeSet<TaskId> = gone.iter().map(|(id, _)| id.clone()).collect();
    let detach = |(id, networks)| Command::DetachContainer { node: node.clone(), id, networks };
    let mut commands: Vec<_> = gone.into_iter().map(detach).collect();
    for found in report.attached.iter().flat_map(|attached| &attached.containers) {
        let known = state.attached.get(&found.id).filter(|known| known.node == *node && !detached.contains(&known.id));
        let Some(container) = known else { continue };
        let is_reserved = |network: &&NetworkId| {
            container.links.iter().any(|link| link.network == **network && link.reserved_ms.is_some())
        };
        let present: Vec<NetworkId> = found.networks.iter().filter(is_reserved).cloned().collect();
        let renamed = container.identity.as_ref() != Some(&found.identity);
        let running = (container.running != found.running).then_some(found.running);
        let attach = AttachContainer {
            node: node.clone(),
            id: container.id.clone(),
            identity: None,
            networks: Vec::new(),
            present: Vec::new(),
            running: None,
        };
        // A start is not limited, so it is a command of its own.
        if renamed || running == Some(false) || !present.is_empty() {
            let identity = renamed.then(|| found.identity.clone());
            let stopped = running.filter(|running| !running);
            let attach = AttachContainer { identity, present, running: stopped, ..attach.clone() };
            commands.push(Command::AttachContainer(Box::new(attach)));
        }
        if running == Some(true) {
            commands.push(Command::AttachContainer(Box::new(AttachContainer { running, ..attach })));
        }
    }
    commands
}

/// The command for a node that has another address than before. Not if another node that is not
/// down has this address: then the report is wrong, or the other node has not reported its own yet.
fn moved_node(state: &ClusterState, id: &NodeId, addr: IpAddr) -> Option<Command> {
    let node = state.nodes.get(id).filter(|node| node.addr != addr)?;
    let is_taken = state.nodes.values().any(|other| {
        other.id != *id && other.status != NodeStatus::Down && [other.addr, other.tunnel_addr].contains(&addr)
    });
    let is_usable = !addr.is_unspecified() && !addr.is_multicast();
    (is_usable && !is_taken).then(|| Command::JoinNode(Box::new(moved(node, addr))))
}

/// Whether a task status belongs to a task of that node, differs from the cluster state, and does
/// not go back to an earlier task state.
fn is_new(state: &ClusterState, node: &NodeId, id: &TaskId, status: &TaskStatus) -> bool {
    state.tasks.get(id).is_some_and(|task| {
        task.node.as_ref() == Some(node)
            && task.status != *status
            && !task.status.state.is_terminal()
            && status.state >= task.status.state
    })
}

/// Whether a task status has a later task state than the cluster state has.
fn has_advanced(state: &ClusterState, id: &TaskId, status: &TaskStatus) -> bool {
    state.tasks.get(id).is_some_and(|task| status.state > task.status.state)
}

impl LoggedReports {
    /// When a command may be written, on the monotonic clock. `None`: at any time.
    fn due_ms(&self, state: &ClusterState, command: &Command) -> Option<u64> {
        let last_ms = self.topics_ms.get(&Topic::of(state, command)?)?;
        Some(last_ms.saturating_add(TOPIC_INTERVAL_MS))
    }

    /// Remembers what was logged at this time, and forgets tasks and nodes that the cluster state
    /// no longer contains.
    pub(super) fn record(&mut self, state: &ClusterState, commands: &[Command], monotonic_ms: u64) {
        self.tasks.retain(|id, _| state.tasks.contains_key(id));
        self.descriptions.retain(|id, _| state.nodes.contains_key(id));
        self.topics_ms.retain(|(id, topic), _| {
            let exists = |id: &TaskId| state.attached.contains_key(id);
            state.nodes.contains_key(id) && !matches!(topic, Topic::Container(container) if !exists(container))
        });
        for command in commands {
            if let Some(topic) = Topic::of(state, command) {
                self.topics_ms.insert(topic, monotonic_ms);
            }
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
