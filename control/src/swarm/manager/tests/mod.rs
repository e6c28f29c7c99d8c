//! Tests of the leader's pure parts; those of the voters are in [`voters`].

mod voters;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
};

use weft_model::{
    ClusterState, Command, NodeId, NodeReport, TaskId,
    command::{AttachContainer, WantedLink},
    report::{AttachedReport, AttachedReports, NodeDescription},
    spec::{ClusterSpec, NetworkSpec, NodeSpec, Role},
    state::{ContainerIdentity, FEATURE_LEVEL, NodeStatus, RootRotation, TaskState, TaskStatus, Traffic},
    wireguard::{NodeKey, PublicKey},
};

use super::{
    leader::{MAX_BATCH_BYTES, batches},
    observe::{DownLimit, LoggedReports, observe, supported_level},
    steps::{Observed, Steps, update_acks},
    voters::check_promotion,
};
use crate::{
    fixture::{START_MS, TestCluster, description, network_spec, observed, service_spec},
    orchestrate::{Acks, decide},
    pki::{Ca, ca_digest},
    swarm::{
        limit_report,
        liveness::{CertificateStatus, LeaderView, NodeTracker},
    },
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
    (view.since_monotonic_ms, view.listening_since_ms) = (since_monotonic_ms, since_monotonic_ms);
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
    logged.record(&cluster.state, &first, 1_001);
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
    update_acks(&mut acks, &cluster.state, &view_with(0, &[(&n1, acked)]), (cluster.state.now_ms, 0));
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
fn after_a_pause_all_waits_begin_again_and_earlier_acks_count_only_once_the_node_is_heard() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    cluster.service(service_spec("web", 1, &[])).expect("a new service");
    let (state, start_ms) = (&cluster.state, cluster.state.now_ms);
    let mut acks = Acks::since(start_ms);
    let mut view = view_with(1_000, &[(&n1, NodeReport { acked: 1, ..NodeReport::default() })]);
    view.attend(1_000, 15_000);
    update_acks(&mut acks, state, &view, (start_ms, 1_000));
    assert_eq!((acks.since_ms, acks.behind[&n1].since_ms), (start_ms, start_ms));
    assert!(acks.acked.contains_key(&n1));
    // Less than what makes silent nodes suspicious, and longer than a wait for acks can ignore.
    view.attend(4_500, 15_000);
    let now_ms = start_ms + 3_600;
    update_acks(&mut acks, state, &view, (now_ms, 4_600));
    assert_eq!((acks.since_ms, acks.behind[&n1].since_ms), (now_ms - 100, now_ms - 100));
    assert!(!acks.acked.contains_key(&n1), "its message is older than the pause");
    view.nodes.get_mut(&n1).expect("a session").last_message_ms = 4_650;
    update_acks(&mut acks, state, &view, (now_ms + 100, 4_700));
    assert!(acks.acked.contains_key(&n1));
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
    let recorded = |state: &ClusterState, digests: [&[u8]; 2]| {
        let mut view = view_with(1_000, &[(&n1, NodeReport::default()), (&n2, NodeReport::default())]);
        for (node, digest) in [&n1, &n2].into_iter().zip(digests) {
            view.nodes.get_mut(node).expect("a session").certificate.ca_sha256 = digest.to_vec();
        }
        let commands = observe(state, &view, &LoggedReports::default(), 1_001).commands;
        commands.into_iter().find(|command| matches!(command, Command::SetRotated { .. }))
    };
    let digest = ca_digest(&new).expect("a digest");
    let silent = |state: &ClusterState, down: bool| {
        let mut state = state.clone();
        for node in state.nodes.values_mut() {
            node.rotated = true;
            node.status = if down && node.id == n2 { NodeStatus::Down } else { NodeStatus::Ready };
        }
        let mut view = view_with(1_000, &[(&n1, NodeReport::default())]);
        view.nodes.get_mut(&n1).expect("a session").certificate.ca_sha256 = digest.clone();
        observe(&state, &view, &LoggedReports::default(), 1_001).commands
    };
    let set_rotated = |nodes| Some(Command::SetRotated { nodes, ca_cert_pem: new.clone() });
    let state = &mut cluster.state;
    assert_eq!(recorded(state, [&digest, &digest]), set_rotated(vec![n2.clone()]));
    assert_eq!(recorded(state, [b"old", &digest]), None, "n1 has got a certificate of the old CA again");
    assert_eq!(recorded(state, [&digest, b"old"]), None);

    let completes = |commands: &[Command]| commands.iter().any(|c| matches!(c, Command::SetRotated { .. }));
    assert!(!completes(&silent(state, false)), "n2 has not told this leader which CA it uses");
    assert!(completes(&silent(state, true)), "a node that is down is not waited for");

    // The only node that was not recorded is removed.
    state.nodes.remove(&n2);
    assert_eq!(recorded(state, [b"old", b""]), None, "n1 must renew its certificate again");
    assert_eq!(recorded(state, [&digest, b""]), set_rotated(Vec::new()), "the rotation is complete");
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

/// The commands of a leader that observes the node at this time, after `logged`.
fn observed_at(cluster: &TestCluster, report: &NodeReport, logged: &mut LoggedReports, at_ms: u64) -> Vec<Command> {
    let view = view_with(at_ms, &[(&cluster.first_node(), report.clone())]);
    let observations = observe(&cluster.state, &view, logged, at_ms);
    logged.record(&cluster.state, &observations.commands, at_ms);
    observations.commands
}

#[test]
fn what_a_node_changes_at_will_is_written_at_once_then_after_an_interval_with_its_last_value() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let report = |version: &str, addr: [u8; 4], key: u8| NodeReport {
        description: Some(NodeDescription { version: version.to_owned(), ..description(&[]) }),
        addr: Some(addr.into()),
        keys: vec![NodeKey { public_key: PublicKey([key; 32]), port: 51820 }],
        ..NodeReport::default()
    };
    let mut logged = LoggedReports::default();
    let first = observed_at(&cluster, &report("1", [192, 0, 2, 101], 1), &mut logged, 10_000);
    assert_eq!(first.len(), 3, "{first:?}");
    first.into_iter().for_each(|command| drop(cluster.ok(command)));
    for at_ms in [10_001, 11_000, 11_999] {
        let changed = report(&at_ms.to_string(), [192, 0, 2, 102], 2);
        assert_eq!(observed_at(&cluster, &changed, &mut logged, at_ms), [], "{at_ms}");
    }
    let last = report("last", [192, 0, 2, 103], 3);
    let view = view_with(11_999, &[(&n1, last.clone())]);
    assert_eq!(observe(&cluster.state, &view, &logged, 11_999).wake_at_ms, Some(12_000));
    let later = observed_at(&cluster, &last, &mut logged, 12_000);
    assert_eq!(later.len(), 3, "{later:?}");
    later.into_iter().for_each(|command| drop(cluster.ok(command)));
    assert_eq!(cluster.state.nodes[&n1].description, last.description);
    assert_eq!(Some(cluster.state.nodes[&n1].addr), last.addr);
}

#[test]
fn the_states_of_tasks_are_written_at_once_and_their_details_after_an_interval() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let service = cluster.service(service_spec("web", 2, &[])).expect("a new service");
    let tasks = [1, 2].map(|slot| {
        let task = cluster.task(&service, slot);
        cluster.ok(Command::AssignTask { id: task.clone(), node: n1.clone(), reuse: BTreeMap::new() });
        task
    });
    let report = |states: [TaskState; 2], message: &str| NodeReport {
        tasks: tasks
            .iter()
            .zip(states)
            .map(|(id, state)| (id.clone(), TaskStatus { message: message.to_owned(), ..observed(state, 5) }))
            .collect(),
        ..NodeReport::default()
    };
    let mut logged = LoggedReports::default();
    let mut reported = |states, message: &str, at_ms| {
        let commands = observed_at(&cluster, &report(states, message), &mut logged, at_ms);
        commands.iter().for_each(|command| drop(cluster.ok(command.clone())));
        let reported = commands.iter().map(|command| match command {
            Command::ReportTasks { tasks, .. } => tasks.len(),
            other => panic!("{other:?}"),
        });
        reported.sum::<usize>()
    };
    let (preparing, starting, running) = (TaskState::Preparing, TaskState::Starting, TaskState::Running);
    assert_eq!(reported([preparing, preparing], "1", 10_000), 2, "new states");
    assert_eq!(reported([preparing, preparing], "2", 10_001), 2, "the first change of a text");
    assert_eq!(reported([preparing, preparing], "3", 10_002), 0, "another one");
    assert_eq!(reported([starting, preparing], "4", 10_003), 1, "the state of one task");
    assert_eq!(reported([starting, running], "5", 10_004), 1, "and of the other");
    assert_eq!(reported([starting, running], "6", 12_000), 0, "2 s after the first text is not over");
    assert_eq!(reported([starting, running], "7", 12_001), 2, "the last texts of both");
}

#[test]
fn a_report_of_many_tasks_is_written_in_parts() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let service = cluster.service(service_spec("web", 1_000, &[])).expect("a new service");
    let tasks: Vec<_> = (1..=1_000)
        .map(|slot| {
            let task = cluster.task(&service, slot);
            cluster.ok(Command::AssignTask { id: task.clone(), node: n1.clone(), reuse: BTreeMap::new() });
            let text = "x".repeat(100_000);
            let (error, container) = (text.clone(), Some(text.clone()));
            (task, TaskStatus { message: text, error, container, ..observed(TaskState::Failed, 5) })
        })
        .collect();
    let mut report = NodeReport { tasks, ..NodeReport::default() };
    limit_report(&mut report);
    let commands = observed_at(&cluster, &report, &mut LoggedReports::default(), 10_000);
    let size = |command: &Command| crate::codec::encode(&crate::codec::COMMAND, command).expect("encoded").len();
    let sizes: Vec<_> = commands.iter().map(size).collect();
    assert!(sizes.iter().all(|size| *size <= MAX_BATCH_BYTES) && sizes.iter().sum::<usize>() > MAX_BATCH_BYTES);
    let reported = commands.iter().map(|command| match command {
        Command::ReportTasks { tasks, .. } => tasks.len(),
        other => panic!("{other:?}"),
    });
    assert_eq!(reported.sum::<usize>(), 1_000, "{sizes:?}");
}

/// What is logged in this thread while `work` runs.
fn logged_by(work: impl FnOnce()) -> String {
    let text = Arc::new(Mutex::new(Vec::new()));
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || LogWriter(writer.clone())).finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(text.lock().expect("no test thread panicked").clone()).expect("a text")
}

struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl io::Write for LogWriter {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no test thread panicked").extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_leader_logs_that_more_nodes_are_silent_than_go_down() {
    let mut cluster = TestCluster::new();
    let logged = |cluster: &TestCluster| {
        let mut steps = Steps::since(TERM_START_MS);
        let view = view_with(1_000, &[]);
        logged_by(|| {
            let observed = steps.observe(&cluster.state, &view, 1_000 + HEARTBEAT_TIMEOUT_MS, true);
            assert!(matches!(observed, Observed::Facts(_)), "{observed:?}");
        })
    };
    for name in ["n2", "n3"] {
        cluster.node(name, &[]);
    }
    assert_eq!(logged(&cluster), "", "three nodes go down at once");
    for name in ["n4", "n5", "n6", "n7", "n8"] {
        cluster.node(name, &[]);
    }
    let line = logged(&cluster);
    assert!(line.contains("ERROR") && line.contains("many nodes are silent at once: some go down later"), "{line}");
    assert!(line.contains("silent=8 down=3"), "{line}");
}

#[test]
fn batches_are_bounded_in_bytes_and_keep_the_order() {
    let delay = |n: usize| Command::DelayTask { id: TaskId::from_random(n as u128), error: "x".repeat(n) };
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

#[test]
fn what_the_engine_says_of_attached_containers_is_written() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    let network = cluster.add_network(NetworkSpec { attachable: true, ..network_spec("app") });
    let id = TaskId::from_random(7);
    let links = vec![WantedLink { network: network.clone(), v4: None, v6: None, aliases: vec![] }];
    let (identity, present) = (None, vec![]);
    let attach =
        AttachContainer { node: node.clone(), id: id.clone(), identity, networks: links, present, running: None };
    cluster.ok(Command::AttachContainer(Box::new(attach)));
    let mut logged = LoggedReports::default();
    let mut observe = |cluster: &mut TestCluster, name: Option<&str>, is_running: bool, at_ms| {
        let identity = |name: &str| ContainerIdentity { container: "c0ffee".to_owned(), name: name.to_owned() };
        let attached = name.map(|name| AttachedReport {
            id: id.clone(),
            identity: identity(name),
            networks: vec![network.clone()],
            running: is_running,
        });
        let containers = attached.into_iter().collect();
        let attached = Some(AttachedReports { containers, unanswered: Vec::new() });
        let report = NodeReport { acked: cluster.state.index, attached, ..NodeReport::default() };
        let commands = observed_at(cluster, &report, &mut logged, at_ms);
        commands.iter().for_each(|command| drop(cluster.ok(command.clone())));
        commands.len()
    };
    let label =
        |cluster: &TestCluster| cluster.state.attached.values().map(|c| c.label().to_owned()).collect::<Vec<_>>();
    let runs = |cluster: &TestCluster| cluster.state.attached[&id].running;
    assert_eq!(observe(&mut cluster, None, false, 10_000), 0, "its engine creates it");
    assert_eq!(observe(&mut cluster, Some("shell"), false, 10_001), 1, "its name");
    assert_eq!((observe(&mut cluster, Some("shell"), false, 10_002), label(&cluster)), (0, vec!["shell".to_owned()]));
    assert_eq!((observe(&mut cluster, Some("shell"), true, 10_003), runs(&cluster)), (1, true), "a start is urgent");
    assert_eq!(observe(&mut cluster, Some("renamed"), true, 10_004), 0, "a name is written once in 2 s");
    assert_eq!(observe(&mut cluster, Some("renamed"), true, 12_001), 1);
    assert_eq!(observe(&mut cluster, Some("renamed"), false, 12_002), 0, "so is a stop");
    assert_eq!((observe(&mut cluster, Some("renamed"), false, 14_001), runs(&cluster)), (1, false));
    assert_eq!((observe(&mut cluster, Some("renamed"), true, 14_002), runs(&cluster)), (1, true));
    assert_eq!((observe(&mut cluster, None, false, 14_003), label(&cluster)), (1, vec![]), "it was removed");
    assert_eq!(cluster.state.allocated.quarantine.len(), 1);
}
