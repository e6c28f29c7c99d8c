//! Tests of the leader's pure parts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use weft_model::{
    ClusterState, Command, NodeId, NodeReport,
    spec::{Availability, ClusterSpec, NodeSpec, Role},
    state::{FEATURE_LEVEL, NodeStatus, RootRotation, TaskState, Traffic},
    wireguard::{NodeKey, PublicKey},
};

use super::{
    leader::batches,
    observe::{DownLimit, LoggedReports, observe, supported_level},
    steps::update_acks,
    voters::{
        Members, VoterChange, check_demotion, check_promotion, flag_updates, keeps_quorum, may_be_member, next_change,
    },
};
use crate::{
    fixture::{START_MS, TestCluster, description, observed, service_spec},
    orchestrate::{Acks, decide},
    pki::{Ca, ca_digest},
    raft::{Voter, Voters},
    swarm::liveness::{CertificateStatus, LeaderView, NodeTracker},
};

/// The heartbeat timeout of the default spec: 3 missed heartbeats of 5 s.
const HEARTBEAT_TIMEOUT_MS: u64 = 15_000;

/// Later than the time at which any node of a [`TestCluster`] joins.
const TERM_START_MS: u64 = START_MS + 3_600_000;

/// The view of a leader that got one message from each of `nodes`, at the time
/// `since_monotonic_ms`.
fn view_with(since_monotonic_ms: u64, nodes: &[(&NodeId, NodeReport)]) -> LeaderView {
    let tracker = NodeTracker::default();
    tracker.start_term(1, TERM_START_MS);
    for (node, report) in nodes {
        tracker
            .begin_session(node, report.clone(), FEATURE_LEVEL, CertificateStatus::default())
            .expect("a tracker that leads");
    }
    let mut view = tracker.view().expect("a tracker that leads");
    view.since_monotonic_ms = since_monotonic_ms;
    for entry in view.nodes.values_mut() {
        entry.last_message_ms = since_monotonic_ms;
    }
    view
}

fn status_changes(commands: &[Command]) -> Vec<(NodeId, NodeStatus)> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::SetNodeStatus { id, status, .. } => Some((id.clone(), *status)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_beginning_and_the_end_of_a_certificate_problem_are_written() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let observed = |cluster: &TestCluster, problem: &str| {
        let mut view = view_with(0, &[(&n1, NodeReport::default())]);
        view.nodes.get_mut(&n1).expect("n1").certificate.problem = problem.to_owned();
        observe(&cluster.state, &view, &LoggedReports::default(), 1).commands
    };
    let ready = |message: &str| Command::SetNodeStatus {
        id: n1.clone(),
        status: NodeStatus::Ready,
        message: message.to_owned(),
    };
    assert_eq!(observed(&cluster, ""), []);
    assert_eq!(observed(&cluster, "refused"), [ready("refused")]);
    cluster.ok(ready("refused"));
    assert_eq!(observed(&cluster, "refused again"), []);
    assert_eq!(observed(&cluster, ""), [ready("")]);
}

#[test]
fn a_node_without_messages_is_down_after_one_heartbeat_timeout() {
    let cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let view = view_with(1_000, &[]);
    let early = observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + HEARTBEAT_TIMEOUT_MS - 1);
    assert_eq!(early.commands, []);
    assert_eq!(early.wake_at_ms, Some(1_000 + HEARTBEAT_TIMEOUT_MS));
    let late = observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + HEARTBEAT_TIMEOUT_MS);
    assert_eq!(late.silent, [n1]);
}

#[test]
fn a_node_that_has_just_joined_has_one_heartbeat_timeout_to_open_its_session() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let view = view_with(1_000, &[(&n1, NodeReport::default())]);
    let leads_for_ms = 10 * HEARTBEAT_TIMEOUT_MS;
    cluster.now_ms = TERM_START_MS + leads_for_ms;
    let n2 = cluster.node("n2", &[]);
    let joined_ms = 1_000 + cluster.state.nodes[&n2].meta.created_ms - TERM_START_MS;
    let down = |at_ms: u64| observe(&cluster.state, &view, &LoggedReports::default(), at_ms).silent.contains(&n2);
    assert!(!down(joined_ms));
    assert!(!down(joined_ms + HEARTBEAT_TIMEOUT_MS - 1));
    assert!(down(joined_ms + HEARTBEAT_TIMEOUT_MS));
}

#[test]
fn a_node_is_ready_once_its_report_has_a_description() {
    let mut cluster = TestCluster::new();
    let join = cluster.joining("n2", Role::Worker);
    let n2 = join.id.clone();
    cluster.ok(Command::JoinNode(Box::new(join)));
    let undescribed = view_with(0, &[(&n2, NodeReport::default())]);
    assert_eq!(status_changes(&observe(&cluster.state, &undescribed, &LoggedReports::default(), 1).commands), []);
    let described = NodeReport { description: Some(description(&[])), ..NodeReport::default() };
    let now = observe(&cluster.state, &view_with(0, &[(&n2, described)]), &LoggedReports::default(), 1);
    assert_eq!(status_changes(&now.commands), [(n2, NodeStatus::Ready)]);
}

#[test]
fn a_node_is_ready_while_it_sends_messages_and_down_when_it_stops() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    cluster.status(&n1, NodeStatus::Down);
    let view = view_with(1_000, &[(&n1, NodeReport::default())]);
    let now = observe(&cluster.state, &view, &LoggedReports::default(), 1_001);
    assert_eq!(status_changes(&now.commands), [(n1.clone(), NodeStatus::Ready)]);
    cluster.status(&n1, NodeStatus::Ready);
    assert_eq!(observe(&cluster.state, &view, &LoggedReports::default(), 1_001).commands, [], "a status is set once");
    let later = observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + HEARTBEAT_TIMEOUT_MS);
    assert_eq!(later.silent, [n1]);
}

#[test]
fn a_down_node_without_messages_sets_no_wake_up_time() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    cluster.status(&n1, NodeStatus::Down);
    let observed = observe(&cluster.state, &view_with(1_000, &[]), &LoggedReports::default(), 1_001);
    assert_eq!(observed.commands, []);
    assert_eq!(observed.wake_at_ms, None);
}

#[test]
fn new_and_lost_keys_are_logged_with_the_ack_of_the_node() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let key = NodeKey { public_key: PublicKey([7; 32]), port: 51820 };
    let report = |acked, keys: &[NodeKey]| NodeReport { acked, keys: keys.to_vec(), ..NodeReport::default() };
    let observed = |cluster: &TestCluster, report| {
        observe(&cluster.state, &view_with(1_000, &[(&n1, report)]), &LoggedReports::default(), 1_001).commands
    };
    let first = observed(&cluster, report(0, &[key]));
    assert_eq!(first, [Command::ReportKeys { node: n1.clone(), keys: vec![key], acked: 0 }]);
    cluster.ok(first[0].clone());
    let recorded = cluster.state.index;
    assert_eq!(observed(&cluster, report(0, &[key])), []);
    assert_eq!(observed(&cluster, report(recorded - 1, &[])), [], "the node has no plan with the key yet");
    let without_key = Command::ReportKeys { node: n1.clone(), keys: Vec::new(), acked: recorded };
    assert_eq!(observed(&cluster, report(recorded, &[])), [without_key]);
}

#[test]
fn a_report_is_logged_once_and_no_task_state_goes_back() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let service = cluster.service(service_spec("web", 1, &[])).expect("a new service");
    let task = cluster.task(&service, 1);
    cluster.ok(Command::AssignTask { id: task.clone(), node: n1.clone(), reuse: BTreeMap::new() });
    let report = |state| NodeReport {
        tasks: vec![(task.clone(), observed(state, 5))],
        description: Some(description(&[])),
        ..NodeReport::default()
    };
    let view = view_with(1_000, &[(&n1, report(TaskState::Starting))]);
    let mut logged = LoggedReports::default();
    let first = observe(&cluster.state, &view, &logged, 1_001).commands;
    assert!(first.iter().any(|c| matches!(c, Command::ReportTasks { .. })), "{first:?}");
    logged.record(&cluster.state, &first);
    assert_eq!(observe(&cluster.state, &view, &logged, 1_001).commands, [], "it is in the log, but not applied yet");
    for command in first {
        cluster.ok(command);
    }
    assert_eq!(
        observe(&cluster.state, &view, &LoggedReports::default(), 1_001).commands,
        [],
        "the cluster state has it"
    );
    let back = view_with(1_000, &[(&n1, report(TaskState::Preparing))]);
    assert_eq!(
        observe(&cluster.state, &back, &LoggedReports::default(), 1_001).commands,
        [],
        "an earlier task state is ignored"
    );
    let next = view_with(1_000, &[(&n1, report(TaskState::Running))]);
    assert_eq!(observe(&cluster.state, &next, &logged, 1_001).commands.len(), 1);
    let n2 = cluster.node("n2", &[]);
    let other = view_with(1_000, &[(&n2, report(TaskState::Running)), (&n1, report(TaskState::Starting))]);
    let commands = observe(&cluster.state, &other, &LoggedReports::default(), 1_001).commands;
    assert!(!commands.iter().any(|c| matches!(c, Command::ReportTasks { .. })), "the task is not of n2: {commands:?}");
}

/// A cluster state with managers `n1`, `n2`, … whose raft ids are 1, 2, ….
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

    fn demote(&mut self, raft_id: usize) {
        let node = self.cluster.state.nodes.get_mut(&self.nodes[raft_id - 1]).expect("the node");
        node.spec.role = Role::Worker;
    }

    fn voter(&self, raft_id: u64) -> Voter {
        let node = &self.cluster.state.nodes[&self.nodes[raft_id as usize - 1]];
        Voter { node: node.id.clone(), rpc_addr: node.rpc_addr }
    }

    /// A log's membership: `all` are its members, and `votes` are the voters among them.
    fn voters(&self, votes: &[u64], all: &[u64]) -> Voters {
        let nodes: BTreeMap<u64, Voter> = all.iter().map(|&id| (id, self.voter(id))).collect();
        Voters::new(vec![votes.iter().copied().collect::<BTreeSet<u64>>()], nodes)
    }

    /// The next change if all managers except `silent` answer.
    fn next_change_without(
        &self,
        silent: &[usize],
        voters: &Voters,
        replicated: &[(u64, u64)],
        me: u64,
        wait_for_all: bool,
    ) -> Option<VoterChange> {
        let replicated = replicated.iter().copied().collect();
        let answering = self.answering(silent);
        let members = Members { voters, replicated: &replicated, last: 1_000, me, answering: &answering, wait_for_all };
        next_change(self.state(), members)
    }

    fn next_change(&self, voters: &Voters, replicated: &[(u64, u64)], me: u64) -> Option<VoterChange> {
        self.next_change_without(&[], voters, replicated, me, true)
    }

    fn answering(&self, silent: &[usize]) -> BTreeSet<NodeId> {
        let answer = self.nodes.iter().enumerate().filter(|(at, _)| !silent.contains(&(at + 1)));
        answer.map(|(_, node)| node.clone()).collect()
    }

    fn demotion(&self, raft_id: usize) -> Command {
        let node = &self.cluster.state.nodes[&self.nodes[raft_id - 1]];
        let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
        Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec }
    }
}

fn promote(raft_ids: impl Into<BTreeSet<u64>>) -> Option<VoterChange> {
    Some(VoterChange::Promote { raft_ids: raft_ids.into() })
}

fn demote(raft_ids: impl Into<BTreeSet<u64>>) -> Option<VoterChange> {
    Some(VoterChange::Demote { raft_ids: raft_ids.into() })
}

#[test]
fn a_new_manager_is_a_learner_until_it_has_caught_up() {
    let quorum = Quorum::new(2);
    let alone = quorum.voters(&[1], &[1]);
    let add = VoterChange::AddLearners { learners: [(2, quorum.voter(2))].into() };
    assert_eq!(quorum.next_change(&alone, &[(1, 1_000)], 1), Some(add));
    let learning = quorum.voters(&[1], &[1, 2]);
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000)], 1), None, "its progress is not known yet");
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000), (2, 500)], 1), None, "it lacks too many entries");
    let caught_up = [(1, 1_000), (2, 990)];
    assert_eq!(quorum.next_change(&learning, &caught_up, 1), promote([2]));
    assert_eq!(quorum.next_change_without(&[2], &learning, &caught_up, 1, false), None, "it does not answer");
    let voting = quorum.voters(&[1, 2], &[1, 2]);
    assert_eq!(quorum.next_change(&voting, &caught_up, 1), None, "nothing is left to change");
}

#[test]
fn several_promotions_are_one_change() {
    let quorum = Quorum::new(3);
    let learners = [(2, quorum.voter(2)), (3, quorum.voter(3))].into();
    let alone = quorum.voters(&[1], &[1]);
    assert_eq!(quorum.next_change(&alone, &[(1, 1_000)], 1), Some(VoterChange::AddLearners { learners }));
    let learning = quorum.voters(&[1], &[1, 2, 3]);
    let one_ready = [(1, 1_000), (2, 990), (3, 10)];
    assert_eq!(quorum.next_change(&learning, &one_ready, 1), None, "it waits for the other one");
    assert_eq!(quorum.next_change_without(&[], &learning, &one_ready, 1, false), promote([2]), "until the limit");
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000), (2, 990), (3, 990)], 1), promote([2, 3]));
}

#[test]
fn a_demoted_leader_is_removed_last_and_only_if_another_manager_votes() {
    let mut quorum = Quorum::new(4);
    quorum.demote(1);
    quorum.demote(2);
    quorum.demote(4);
    let all = quorum.voters(&[1, 2, 3, 4], &[1, 2, 3, 4]);
    assert_eq!(quorum.next_change(&all, &[], 1), demote([2, 4]), "the leader is demoted last");
    assert_eq!(quorum.next_change(&quorum.voters(&[1, 3], &[1, 3]), &[], 1), demote([1]));
    let learning = quorum.voters(&[1], &[1, 3]);
    assert_eq!(quorum.next_change(&learning, &[(1, 1_000), (3, 1)], 1), None, "the new manager has to catch up first");
}

/// The demotions were accepted, and then managers failed.
#[test]
fn a_voter_is_not_removed_while_the_others_that_answer_are_no_majority() {
    let mut quorum = Quorum::new(3);
    quorum.demote(2);
    let all = quorum.voters(&[1, 2, 3], &[1, 2, 3]);
    assert_eq!(quorum.next_change_without(&[3], &all, &[], 1, true), None);
    assert_eq!(quorum.next_change(&all, &[], 1), demote([2]));
    assert_eq!(quorum.next_change_without(&[2], &all, &[], 1, true), demote([2]), "the silent one can be removed");
    let answering = quorum.answering(&[3]);
    assert!(keeps_quorum(&all, &[3].into(), 1, &answering));
    assert!(!keeps_quorum(&all, &[2].into(), 1, &answering));
    assert!(!keeps_quorum(&all, &[1, 2, 3].into(), 1, &answering), "no voter is no quorum");
}

#[test]
fn a_demotion_is_refused_if_the_remaining_managers_that_answer_are_no_majority() {
    let quorum = Quorum::new(3);
    let check = |raft_id: usize, silent: &[usize]| {
        let answering = quorum.answering(silent);
        check_demotion(quorum.state(), &quorum.demotion(raft_id), |node| answering.contains(node))
    };
    for raft_id in 1..=3 {
        assert_eq!(check(raft_id, &[]), Ok(()));
        assert_eq!(check(raft_id, &[raft_id]), Ok(()), "the silent manager itself can be demoted");
    }
    let refused = check(2, &[3]).expect_err("n1 alone would be no majority").to_string();
    for part in ["without n2", "1 of the 2 managers", "2 are needed", "n3 (192.0.2.3:2377)", "start these first"] {
        assert!(refused.contains(part), "{refused}");
    }
    let node = &quorum.cluster.state.nodes[&quorum.nodes[1]];
    let drain = NodeSpec { availability: Availability::Drain, ..node.spec.clone() };
    let other = Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec: drain };
    assert_eq!(check_demotion(quorum.state(), &other, |_| false), Ok(()), "this is no demotion");
}

#[test]
fn a_learner_that_is_no_longer_a_manager_is_removed() {
    let mut quorum = Quorum::new(2);
    quorum.demote(2);
    let learning = quorum.voters(&[1], &[1, 2]);
    let remove = VoterChange::RemoveLearners { raft_ids: [2].into() };
    assert_eq!(quorum.next_change(&learning, &[(2, 1_000)], 1), Some(remove));
}

#[test]
fn the_id_of_a_lost_log_is_removed_before_the_new_one_votes() {
    let mut quorum = Quorum::new(3);
    let all = quorum.voters(&[1, 2, 3], &[1, 2, 3]);
    let node = quorum.nodes[1].clone();
    quorum.cluster.ok(Command::ReplaceRaftId { node: node.clone(), raft_id: 2 });
    let voter = Voter { rpc_addr: quorum.voter(2).rpc_addr, node };
    let add = VoterChange::AddLearners { learners: [(4, voter)].into() };
    assert_eq!(quorum.next_change_without(&[2], &all, &[], 1, true), Some(add));
    let caught_up = [(1, 1_000), (3, 1_000), (4, 1_000)];
    let member = |id: u64| (id, quorum.voter(if id == 4 { 2 } else { id }));
    let voters = |votes: &[u64], ids: &[u64]| {
        let votes = votes.iter().copied().collect::<BTreeSet<u64>>();
        Voters::new(vec![votes], ids.iter().map(|id| member(*id)).collect::<BTreeMap<_, _>>())
    };
    assert_eq!(quorum.next_change(&voters(&[1, 2, 3], &[1, 2, 3, 4]), &caught_up, 1), demote([2]));
    assert_eq!(quorum.next_change(&voters(&[1, 3], &[1, 3, 4]), &caught_up, 1), promote([4]));
}

#[test]
fn a_new_address_of_a_manager_is_a_change_of_the_membership() {
    let mut quorum = Quorum::new(2);
    let all = quorum.voters(&[1, 2], &[1, 2]);
    let moved = "192.0.2.77:2377".parse().expect("an address");
    let node = quorum.nodes[1].clone();
    quorum.cluster.state.nodes.get_mut(&node).expect("the node").rpc_addr = moved;
    let members = BTreeMap::from([(2, Voter { node, rpc_addr: moved })]);
    assert_eq!(quorum.next_change(&all, &[], 1), Some(VoterChange::Readdress { members }));
}

#[test]
fn raft_messages_are_accepted_of_members_and_of_members_to_come() {
    let mut quorum = Quorum::new(3);
    let (n2, n3) = (quorum.nodes[1].clone(), quorum.nodes[2].clone());
    let voters = quorum.voters(&[1, 2], &[1, 2]);
    let stranger = NodeId::from_random(99);
    assert!(may_be_member(quorum.state(), &voters, &n2, 2));
    assert!(!may_be_member(quorum.state(), &voters, &n3, 2), "the id belongs to another node");
    assert!(may_be_member(quorum.state(), &voters, &n3, 3), "the log here may lack the entry that adds it");
    assert!(may_be_member(quorum.state(), &voters, &stranger, 4), "the state here may lack the node");
    assert!(!may_be_member(quorum.state(), &voters, &stranger, 3));
    assert!(may_be_member(&ClusterState::default(), &Voters::new(vec![], ()), &stranger, 3), "nothing is known yet");

    quorum.cluster.ok(quorum.demotion(3));
    quorum.cluster.ok(Command::ClearRaftConfig { id: n3.clone() });
    assert!(!may_be_member(quorum.state(), &voters, &n3, 3), "its id has ended");
    quorum.cluster.ok(Command::ClearRaftConfig { id: n2.clone() });
    quorum.cluster.state.nodes.remove(&n2);
    assert!(!may_be_member(quorum.state(), &quorum.voters(&[1], &[1]), &n2, 2), "it was removed");
}

#[test]
fn a_joint_configuration_of_an_earlier_leader_is_finished_first() {
    let quorum = Quorum::new(3);
    let nodes: BTreeMap<u64, Voter> = (1..=3).map(|id| (id, quorum.voter(id))).collect();
    let joint = Voters::new(vec![[1].into(), [1, 2].into()], nodes);
    assert_eq!(quorum.next_change(&joint, &[(3, 1_000)], 1), Some(VoterChange::FinishJoint));
    assert_eq!(flag_updates(quorum.state(), &joint, false), [], "no flag is updated before");
}

#[test]
fn the_voter_flag_follows_the_log() {
    let quorum = Quorum::new(2);
    assert_eq!(flag_updates(quorum.state(), &quorum.voters(&[1], &[1, 2]), false), [], "the flags are right already");
    let updates = flag_updates(quorum.state(), &quorum.voters(&[1, 2], &[1, 2]), false);
    assert_eq!(updates, [Command::SetVoter { id: quorum.nodes[1].clone(), voter: true }]);
}

#[test]
fn a_demoted_manager_stays_in_the_raft_config_until_no_change_can_need_it() {
    let mut quorum = Quorum::new(2);
    quorum.demote(2);
    let clear_raft_config = Command::ClearRaftConfig { id: quorum.nodes[1].clone() };
    let updates = |all: &[u64], changing| flag_updates(quorum.state(), &quorum.voters(&[1], all), changing);
    assert_eq!(updates(&[1], true), [], "the running change may be the one that adds it");
    assert_eq!(updates(&[1, 2], false), [], "it is still a learner");
    assert_eq!(updates(&[1], false), std::slice::from_ref(&clear_raft_config));
    let joint = Voters::new(vec![[1].into(), [1, 2].into()], BTreeMap::from([1, 2].map(|id| (id, quorum.voter(id)))));
    assert_eq!(flag_updates(quorum.state(), &joint, false), []);
    quorum.cluster.ok(clear_raft_config);
    assert!(!quorum.cluster.state.nodes[&quorum.nodes[1]].in_raft_config);
}

/// The leader reads the view after the state, so an ack may have a later generation than the state.
#[test]
fn draining_is_not_completed_by_an_ack_of_a_plan_that_does_not_contain_it() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let service = cluster.service(service_spec("web", 1, &[])).expect("a new service");
    let task = cluster.task(&service, 1);
    cluster.ok(Command::AssignTask { id: task.clone(), node: n1.clone(), reuse: BTreeMap::new() });
    cluster.ok(Command::ReportTasks { node: n1.clone(), tasks: vec![(task.clone(), observed(TaskState::Running, 5))] });
    for traffic in [Traffic::Local, Traffic::Active] {
        cluster.ok(Command::SetTraffic { id: task.clone(), traffic });
    }
    cluster.ok(Command::RemoveService { id: service });
    let acked = NodeReport { acked: cluster.state.index + 5, ..NodeReport::default() };
    let mut acks = Acks::default();
    update_acks(&mut acks, &cluster.state, &view_with(0, &[(&n1, acked)]), cluster.state.now_ms);
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
fn copies_of_a_view_share_the_reports() {
    let cluster = TestCluster::new();
    let view = view_with(0, &[(&cluster.first_node(), NodeReport::default())]);
    let copy = view.clone();
    let (one, two) = (&view.nodes[&cluster.first_node()].report, &copy.nodes[&cluster.first_node()].report);
    assert!(Arc::ptr_eq(one, two));
}

#[test]
fn the_feature_level_is_that_of_the_oldest_manager_and_unknown_while_one_is_silent() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let join = cluster.joining("n2", Role::Manager);
    let n2 = join.id.clone();
    cluster.ok(Command::JoinNode(Box::new(join)));
    let worker = cluster.node("n3", &[]);
    let tracker = NodeTracker::default();
    tracker.start_term(1, TERM_START_MS);
    let session =
        |node: &NodeId, level| tracker.begin_session(node, NodeReport::default(), level, CertificateStatus::default());
    session(&n1, FEATURE_LEVEL).expect("a session");
    session(&worker, 0).expect("a session");
    let level = || supported_level(&cluster.state, &tracker.view().expect("a view"));
    assert_eq!(level(), None, "the second manager has not connected");
    session(&n2, 0).expect("a session");
    assert_eq!(level(), Some(0));
    session(&n2, FEATURE_LEVEL + 1).expect("a session");
    assert_eq!(level(), Some(FEATURE_LEVEL), "the worker's release does not count, nor do unknown levels");
}

#[test]
fn a_worker_whose_release_cannot_read_the_log_is_not_promoted() {
    let mut cluster = TestCluster::new();
    let worker = cluster.node("n2", &[]);
    let tracker = NodeTracker::default();
    tracker.start_term(1, TERM_START_MS);
    let refusal = |cluster: &TestCluster, role| {
        let node = &cluster.state.nodes[&worker];
        let spec = NodeSpec { role, ..node.spec.clone() };
        let command = Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec };
        check_promotion(&cluster.state, &command, |node| tracker.feature_level(node)).err().map(|e| e.to_string())
    };
    let connect = |level| tracker.begin_session(&worker, report(0), level, CertificateStatus::default());
    assert_eq!(refusal(&cluster, Role::Manager), None, "its release is unknown");
    connect(cluster.state.feature_level - 1).expect("a session");
    let refused = refusal(&cluster, Role::Manager).expect("refused");
    assert!(refused.contains("n2 runs weft") && refused.contains("install their version"), "{refused}");
    assert_eq!(refusal(&cluster, Role::Worker), None, "another change of the node");
    connect(cluster.state.feature_level).expect("a session");
    assert_eq!(refusal(&cluster, Role::Manager), None);
}

#[test]
fn a_shorter_heartbeat_timeout_holds_for_a_node_once_it_has_acked_it() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let before = cluster.state.index;
    let mut shorten = |misses| {
        let known = cluster.state.cluster.clone().expect("a cluster");
        let spec = ClusterSpec { heartbeat_misses: misses, ..known.spec };
        cluster.ok(Command::UpdateCluster { version: known.meta.version, spec });
    };
    shorten(2);
    shorten(1);
    let changed = cluster.state.index;
    let is_silent = |acked, after_ms| {
        let view = view_with(1_000, &[(&n1, report(acked))]);
        !observe(&cluster.state, &view, &LoggedReports::default(), 1_000 + after_ms).silent.is_empty()
    };
    assert!(!is_silent(before, HEARTBEAT_TIMEOUT_MS - 1), "it sends heartbeats as its old plan says");
    assert!(is_silent(before, HEARTBEAT_TIMEOUT_MS));
    assert!(!is_silent(changed - 1, HEARTBEAT_TIMEOUT_MS - 1), "it may have the plan of the first change only");
    assert!(is_silent(changed, 5_000));
    assert!(!is_silent(changed, 4_999));
}

fn report(acked: u64) -> NodeReport {
    NodeReport { acked, ..NodeReport::default() }
}

#[test]
fn no_node_is_recorded_to_use_the_new_ca_while_a_recorded_one_uses_another() {
    let mut cluster = TestCluster::new();
    let (n1, n2) = (cluster.first_node(), cluster.node("n2", &[]));
    let new = Ca::create().expect("a CA").cert_pem().to_owned();
    let state = &mut cluster.state;
    state.nodes.get_mut(&n1).expect("a node").rotated = true;
    state.cluster.as_mut().expect("a cluster").root_rotation = Some(RootRotation {
        ca_cert_pem: new.clone(),
        ca_key_sealed: Vec::new(),
        cross_signed_pem: String::new(),
        worker_secret: String::new(),
        manager_secret: String::new(),
    });
    let recorded = |digests: [&[u8]; 2]| {
        let mut view = view_with(1_000, &[(&n1, NodeReport::default()), (&n2, NodeReport::default())]);
        for (node, digest) in [&n1, &n2].into_iter().zip(digests) {
            view.nodes.get_mut(node).expect("a session").certificate.ca_sha256 = digest.to_vec();
        }
        let commands = observe(state, &view, &LoggedReports::default(), 1_001).commands;
        commands.into_iter().find(|command| matches!(command, Command::SetRotated { .. }))
    };
    let digest = ca_digest(&new).expect("a digest");
    let n2_uses_it = Command::SetRotated { nodes: vec![n2.clone()], ca_cert_pem: new.clone() };
    assert_eq!(recorded([&digest, &digest]), Some(n2_uses_it));
    assert_eq!(recorded([b"old", &digest]), None, "n1 has got a certificate of the old CA again");
    assert_eq!(recorded([&digest, b"old"]), None);
}

#[test]
fn few_nodes_go_down_at_once_and_the_others_later() {
    let silent: Vec<NodeId> = (0..10).map(NodeId::from_random).collect();
    let mut limit = DownLimit::default();
    let (down, next_ms) = limit.take(silent[..3].to_vec(), 3, 15_000, 1_000);
    assert_eq!((down.len(), next_ms), (3, None), "a small cluster is not limited");
    let mut limit = DownLimit::default();
    let (down, next_ms) = limit.take(silent.clone(), 20, 15_000, 1_000);
    assert_eq!((down.as_slice(), next_ms), (&silent[..5], Some(16_000)), "a quarter of 20 nodes");
    let (down, next_ms) = limit.take(silent[5..].to_vec(), 20, 15_000, 15_999);
    assert_eq!((down.len(), next_ms), (0, Some(16_000)));
    let (down, next_ms) = limit.take(silent[5..].to_vec(), 20, 15_000, 16_000);
    assert_eq!((down.as_slice(), next_ms), (&silent[5..], None));
}

#[test]
fn batches_are_bounded_in_bytes_and_keep_the_order() {
    let delay = |n: usize| Command::DelayTask { id: weft_model::TaskId::from_random(n as u128), error: "x".repeat(n) };
    let commands: Vec<_> = (1..300).map(delay).collect();
    let split = batches(commands.clone(), 2_000);
    assert_eq!(split.concat(), commands);
    assert!(split.len() > 20 && split.iter().all(|batch| !batch.is_empty()));
    let size = |batch: &Vec<Command>| {
        batch.iter().map(|c| crate::codec::encode(&crate::codec::COMMAND, c).expect("encoded").len()).sum::<usize>()
    };
    assert!(split.iter().all(|batch| size(batch) <= 2_000));
    assert_eq!(batches(vec![delay(5_000), delay(1)], 2_000).len(), 2, "a large command is alone");
    assert!(batches(Vec::new(), 2_000).is_empty());
}
