//! The leader's pure parts, by table.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_model::{
    ClusterState, Command, NodeId, NodeReport,
    spec::Role,
    state::{NodeStatus, TaskState, Traffic},
};

use super::{
    acks,
    observe::{LoggedReports, observe},
    voters::{VoterChange, flag_updates, next_change},
};
use crate::{
    fixture::{TestCluster, description, observed, service_spec},
    orchestrate::decide,
    raft::{Voter, Voters},
    swarm::desk::{LeaderView, NodeTracker},
};

/// The default spec's patience: 3 missed heartbeats of 5 s.
const PATIENCE_MS: u64 = 15_000;

/// A leader's memory in which these nodes were heard just after `since_monotonic_ms`, with empty reports.
fn heard(since_monotonic_ms: u64, nodes: &[(&NodeId, NodeReport)]) -> LeaderView {
    let tracker = NodeTracker::default();
    tracker.start_term(1, 0);
    for (node, report) in nodes {
        tracker.begin_session(node, report.clone()).expect("it leads");
    }
    let mut view = tracker.view().expect("it leads");
    view.since_monotonic_ms = since_monotonic_ms;
    for entry in view.nodes.values_mut() {
        entry.last_message_ms = since_monotonic_ms;
    }
    view
}

fn status(commands: &[Command]) -> Vec<(NodeId, NodeStatus)> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::SetNodeStatus { id, status, .. } => Some((id.clone(), *status)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_node_that_was_never_heard_gets_one_full_period() {
    let cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let view = heard(1_000, &[]);
    let early = observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + PATIENCE_MS - 1);
    assert_eq!(early.commands, []);
    assert_eq!(early.wake_at_ms, Some(1_000 + PATIENCE_MS));
    let late = observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + PATIENCE_MS);
    assert_eq!(status(&late.commands), [(n1, NodeStatus::Down)]);
}

#[test]
fn a_node_is_ready_once_it_has_said_what_it_is() {
    let mut cluster = TestCluster::new();
    let join = cluster.joining("n2", Role::Worker);
    let n2 = join.id.clone();
    cluster.ok(Command::JoinNode(Box::new(join)));
    let silent = heard(0, &[(&n2, NodeReport::default())]);
    assert_eq!(status(&observe(&cluster.state, &silent, &LoggedReports::default(), 1).commands), []);
    let said = NodeReport { description: Some(description(&[])), ..NodeReport::default() };
    let now = observe(&cluster.state, &heard(0, &[(&n2, said)]), &LoggedReports::default(), 1);
    assert_eq!(status(&now.commands), [(n2, NodeStatus::Ready)]);
}

#[test]
fn a_node_that_is_heard_is_ready_and_down_when_it_falls_silent() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    cluster.status(&n1, NodeStatus::Down);
    let view = heard(1_000, &[(&n1, NodeReport::default())]);
    let now = observe(&cluster.state, &view, &LoggedReports::default(), 1_001);
    assert_eq!(status(&now.commands), [(n1.clone(), NodeStatus::Ready)]);
    cluster.status(&n1, NodeStatus::Ready);
    assert_eq!(observe(&cluster.state, &view, &LoggedReports::default(), 1_001).commands, [], "once is enough");
    let later = observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + PATIENCE_MS);
    assert_eq!(status(&later.commands), [(n1, NodeStatus::Down)]);
}

#[test]
fn a_node_that_is_down_and_silent_wakes_nobody() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    cluster.status(&n1, NodeStatus::Down);
    let observed = observe(&cluster.state, &heard(1_000, &[]), &LoggedReports::default(), 1_001);
    assert_eq!(observed.commands, []);
    assert_eq!(observed.wake_at_ms, None);
}

#[test]
fn a_report_is_logged_once_and_never_backwards() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let service = cluster.service(service_spec("web", 1, &[])).expect("a service");
    let task = cluster.task(&service, 1);
    cluster.ok(Command::AssignTask { id: task.clone(), node: n1.clone() });
    let report = |state| NodeReport {
        tasks: vec![(task.clone(), observed(state, 5))],
        description: Some(description(&[])),
        ..NodeReport::default()
    };
    let view = heard(1_000, &[(&n1, report(TaskState::Starting))]);
    let mut logged = LoggedReports::default();
    let first = observe(&cluster.state, &view, &logged, 1_001).commands;
    assert!(first.iter().any(|c| matches!(c, Command::ReportTasks { .. })), "{first:?}");
    logged.record(&cluster.state, &first);
    assert_eq!(observe(&cluster.state, &view, &logged, 1_001).commands, [], "logged, though not applied yet");
    for command in first {
        cluster.ok(command);
    }
    assert_eq!(observe(&cluster.state, &view, &LoggedReports::default(), 1_001).commands, [], "the cluster has it");
    let back = heard(1_000, &[(&n1, report(TaskState::Preparing))]);
    assert_eq!(observe(&cluster.state, &back, &LoggedReports::default(), 1_001).commands, [], "never backwards");
    let on = heard(1_000, &[(&n1, report(TaskState::Running))]);
    assert_eq!(observe(&cluster.state, &on, &logged, 1_001).commands.len(), 1);
    let stranger = cluster.node("n2", &[]);
    let other = heard(1_000, &[(&stranger, report(TaskState::Running)), (&n1, report(TaskState::Starting))]);
    let said = observe(&cluster.state, &other, &LoggedReports::default(), 1_001).commands;
    assert!(!said.iter().any(|c| matches!(c, Command::ReportTasks { .. })), "not its task: {said:?}");
}

/// Managers `n1..` by raft id, of which these vote and those listen.
struct Quorum {
    cluster: TestCluster,
    nodes: Vec<NodeId>,
}

impl Quorum {
    fn new(managers: usize) -> Self {
        let mut cluster = TestCluster::new();
        let mut nodes = vec![cluster.first_node()];
        for number in 2..=managers {
            let join = cluster.joining(&format!("n{number}"), Role::Manager);
            nodes.push(join.id.clone());
            cluster.ok(Command::JoinNode(Box::new(join)));
        }
        Self { cluster, nodes }
    }

    fn state(&self) -> &ClusterState {
        &self.cluster.state
    }

    fn demote(&mut self, number: usize) {
        let node = self.cluster.state.nodes.get_mut(&self.nodes[number - 1]).expect("a node");
        node.spec.role = Role::Worker;
    }

    fn voter(&self, raft_id: u64) -> Voter {
        let node = &self.cluster.state.nodes[&self.nodes[raft_id as usize - 1]];
        Voter { node: node.id.clone(), rpc_addr: node.rpc_addr }
    }

    fn voters(&self, votes: &[u64], all: &[u64]) -> Voters {
        let nodes: BTreeMap<u64, Voter> = all.iter().map(|&id| (id, self.voter(id))).collect();
        Voters::new(vec![votes.iter().copied().collect::<BTreeSet<u64>>()], nodes)
    }

    fn step(&self, voters: &Voters, replicated: &[(u64, u64)], me: u64) -> Option<VoterChange> {
        next_change(self.state(), voters, &replicated.iter().copied().collect(), 1_000, me)
    }
}

#[test]
fn a_new_manager_learns_first_and_votes_when_it_has_caught_up() {
    let quorum = Quorum::new(2);
    let alone = quorum.voters(&[1], &[1]);
    let teach = VoterChange::AddLearner { raft_id: 2, voter: quorum.voter(2) };
    assert_eq!(quorum.step(&alone, &[(1, 1_000)], 1), Some(teach));
    let learning = quorum.voters(&[1], &[1, 2]);
    assert_eq!(quorum.step(&learning, &[(1, 1_000)], 1), None, "nothing is known of it yet");
    assert_eq!(quorum.step(&learning, &[(1, 1_000), (2, 500)], 1), None, "too far behind");
    assert_eq!(quorum.step(&learning, &[(1, 1_000), (2, 990)], 1), Some(VoterChange::Promote { raft_id: 2 }));
    assert_eq!(quorum.step(&quorum.voters(&[1, 2], &[1, 2]), &[(1, 1_000), (2, 990)], 1), None, "all is well");
}

#[test]
fn a_demoted_leader_goes_last_and_never_leaves_nobody() {
    let mut quorum = Quorum::new(3);
    quorum.demote(1);
    quorum.demote(2);
    let all = quorum.voters(&[1, 2, 3], &[1, 2, 3]);
    assert_eq!(quorum.step(&all, &[], 1), Some(VoterChange::Demote { raft_id: 2 }), "not itself first");
    assert_eq!(quorum.step(&quorum.voters(&[1, 3], &[1, 3]), &[], 1), Some(VoterChange::Demote { raft_id: 1 }));
    let untaught = quorum.voters(&[1], &[1, 3]);
    assert_eq!(quorum.step(&untaught, &[(1, 1_000), (3, 1)], 1), None, "its heir has to catch up first");
}

#[test]
fn a_learner_that_is_no_manager_any_more_is_dismissed() {
    let mut quorum = Quorum::new(2);
    quorum.demote(2);
    let learning = quorum.voters(&[1], &[1, 2]);
    assert_eq!(quorum.step(&learning, &[(2, 1_000)], 1), Some(VoterChange::RemoveLearner { raft_id: 2 }));
}

#[test]
fn what_an_earlier_leader_left_half_done_is_finished_first() {
    let quorum = Quorum::new(3);
    let nodes: BTreeMap<u64, Voter> = (1..=3).map(|id| (id, quorum.voter(id))).collect();
    let joint = Voters::new(vec![[1].into(), [1, 2].into()], nodes);
    assert_eq!(quorum.step(&joint, &[(3, 1_000)], 1), Some(VoterChange::FinishJoint));
    assert_eq!(flag_updates(quorum.state(), &joint, false), [], "and nothing is noted before");
}

#[test]
fn the_table_notes_who_votes() {
    let quorum = Quorum::new(2);
    assert_eq!(flag_updates(quorum.state(), &quorum.voters(&[1], &[1, 2]), false), [], "as the cluster says");
    let noted = flag_updates(quorum.state(), &quorum.voters(&[1, 2], &[1, 2]), false);
    assert_eq!(noted, [Command::SetVoter { id: quorum.nodes[1].clone(), voter: true }]);
}

#[test]
fn a_demoted_manager_keeps_its_seat_until_no_change_can_need_it() {
    let mut quorum = Quorum::new(2);
    quorum.demote(2);
    let clear_raft_config = Command::ClearRaftConfig { id: quorum.nodes[1].clone() };
    let noted = |all: &[u64], changing| flag_updates(quorum.state(), &quorum.voters(&[1], all), changing);
    assert_eq!(noted(&[1], true), [], "the change under way may be the one that seats it");
    assert_eq!(noted(&[1, 2], false), [], "it still gets the log");
    assert_eq!(noted(&[1], false), std::slice::from_ref(&clear_raft_config));
    let joint = Voters::new(vec![[1].into(), [1, 2].into()], BTreeMap::from([1, 2].map(|id| (id, quorum.voter(id)))));
    assert_eq!(flag_updates(quorum.state(), &joint, false), []);
    quorum.cluster.ok(clear_raft_config);
    assert!(!quorum.cluster.state.nodes[&quorum.nodes[1]].in_raft_config);
}

/// The view is read after the table, and may be ahead of it.
#[test]
fn a_backend_is_not_drained_by_acks_of_plans_that_do_not_show_it_draining() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let service = cluster.service(service_spec("web", 1, &[])).expect("a service");
    let task = cluster.task(&service, 1);
    cluster.ok(Command::AssignTask { id: task.clone(), node: n1.clone() });
    cluster.ok(Command::ReportTasks { node: n1.clone(), tasks: vec![(task.clone(), observed(TaskState::Running, 5))] });
    for traffic in [Traffic::Local, Traffic::Active] {
        cluster.ok(Command::SetTraffic { id: task.clone(), traffic });
    }
    cluster.ok(Command::RemoveService { id: service });
    let acked = NodeReport { acked: cluster.state.index + 5, ..NodeReport::default() };
    let acks = acks(&cluster.state, &heard(0, &[(&n1, acked)]));
    let decision = decide(&cluster.state, cluster.state.now_ms, &acks, &mut rand::random);
    let commands: Vec<Command> = match decision.commands.as_slice() {
        [Command::Batch(commands)] => commands.clone(),
        commands => commands.to_vec(),
    };
    let steps = commands.iter().filter_map(|c| match c {
        Command::SetTraffic { traffic, .. } => Some(*traffic),
        _ => None,
    });
    assert_eq!(steps.collect::<Vec<_>>(), [Traffic::Draining], "{commands:?}");
}

#[test]
fn a_report_is_shared_not_copied() {
    let cluster = TestCluster::new();
    let view = heard(0, &[(&cluster.first_node(), NodeReport::default())]);
    let copy = view.clone();
    let (one, two) = (&view.nodes[&cluster.first_node()].report, &copy.nodes[&cluster.first_node()].report);
    assert!(Arc::ptr_eq(one, two));
}
