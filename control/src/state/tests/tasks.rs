//! Tasks: their states, their addresses, and when those return.

use std::collections::BTreeSet;

use weft_model::{
    Command, Mac, NodeId, ServiceId, TaskId,
    spec::SubnetSpec,
    state::{Slot, Task, TaskState, Traffic},
};

use super::{check_refused, text};
use crate::{
    fixture::{TestCluster, network_spec, observed, service_spec, subnet_spec},
    state::QUARANTINE_MS,
};

/// A service on one network, and the node.
fn web() -> (TestCluster, ServiceId, NodeId) {
    let mut cluster = TestCluster::new();
    let network = cluster.network(subnet_spec("app", "10.1.0.0/24")).unwrap();
    let service = cluster.service(service_spec("web", 1, &[&network])).unwrap();
    let node = cluster.first_node();
    (cluster, service, node)
}

fn create(service: &ServiceId, id: &TaskId, slot: Slot, desired: TaskState) -> Command {
    let (id, service) = (id.clone(), service.clone());
    Command::CreateTask { id, service, slot, desired, not_before_ms: 0, attempts: 0 }
}

fn v4(cluster: &TestCluster, task: &TaskId) -> String {
    cluster.state.tasks[task].attachments[0].addr.v4.to_string()
}

#[test]
fn a_task_is_born_waiting_and_named_after_its_slot() {
    let (mut cluster, service, _) = web();
    let id = cluster.task(&service, 2);
    let task = &cluster.state.tasks[&id];
    assert_eq!(task.name, format!("web.2.{id}"));
    assert_eq!((task.status.state, task.traffic), (TaskState::Pending, Traffic::None));
    assert!(task.node.is_none() && task.attachments.is_empty());
}

#[test]
fn a_task_needs_a_service_and_a_slot_of_its_kind() {
    let (mut cluster, service, node) = web();
    let id = TaskId::from_random(cluster.random());
    let nobody = ServiceId::from_random(cluster.random());
    let run = TaskState::Running;
    check_refused(&mut cluster, create(&nobody, &id, Slot::Replica(1), run), &format!("no such service: {nobody}"));
    for slot in [Slot::Replica(0), Slot::Node(node)] {
        let refused = text(cluster.apply(create(&service, &id, slot, run)));
        assert!(refused.starts_with("service web has no slot"), "{refused}");
    }
    check_refused(
        &mut cluster,
        create(&service, &id, Slot::Replica(1), TaskState::Shutdown),
        "a task cannot begin with desired state shutdown",
    );
    cluster.ok(create(&service, &id, Slot::Replica(1), run));
    check_refused(
        &mut cluster,
        create(&service, &id, Slot::Replica(1), run),
        &format!("task {id} is in use by {id}: remove that first"),
    );
}

#[test]
fn addresses_come_with_the_node_in_order() {
    let (mut cluster, service, node) = web();
    let vip = cluster.state.services[&service].endpoints[0].vip.unwrap();
    assert_eq!(vip.v4.to_string(), "10.1.0.2");
    let (a, b) = (cluster.running_task(&service, 1, &node), cluster.running_task(&service, 2, &node));
    assert_eq!((v4(&cluster, &a).as_str(), v4(&cluster, &b).as_str()), ("10.1.0.3", "10.1.0.4"));
    let attachment = &cluster.state.tasks[&a].attachments[0];
    assert_eq!(attachment.mac, Mac::of_task(attachment.addr.v4));
    let refused = text(cluster.apply(Command::AssignTask { id: a.clone(), node: node.clone() }));
    assert_eq!(refused, format!("task {a} cannot be assigned to node {node}: it has its place"));
}

#[test]
fn the_ip_range_bounds_addresses() {
    let mut cluster = TestCluster::new();
    let mut spec = network_spec("app");
    spec.v4 = Some(SubnetSpec {
        subnet: "10.1.0.0/24".parse().unwrap(),
        gateway: Some("10.1.0.129".parse().unwrap()),
        ip_range: Some("10.1.0.128/30".parse().unwrap()),
    });
    let network = cluster.network(spec).unwrap();
    let service = cluster.service(service_spec("web", 1, &[&network])).unwrap();
    let node = cluster.first_node();
    assert_eq!(cluster.state.services[&service].endpoints[0].vip.unwrap().v4.to_string(), "10.1.0.128");
    let mut addresses = BTreeSet::new();
    for slot in 1..=2 {
        let id = cluster.running_task(&service, slot, &node);
        addresses.insert(v4(&cluster, &id));
    }
    assert_eq!(addresses.into_iter().collect::<Vec<_>>(), ["10.1.0.130", "10.1.0.131"]);
    let id = cluster.task(&service, 3);
    check_refused(
        &mut cluster,
        Command::AssignTask { id, node },
        "no address left in network app (10.1.0.0/24): remove services or use a larger subnet",
    );
}

#[test]
fn a_freed_address_waits_for_acks_and_time() {
    let mut cluster = TestCluster::new();
    let network = cluster.network(subnet_spec("tiny", "10.1.0.0/29")).unwrap();
    let service = cluster.service(service_spec("web", 1, &[&network])).unwrap();
    let node = cluster.first_node();
    let tasks: Vec<_> = (1..=4).map(|slot| cluster.running_task(&service, slot, &node)).collect();
    let (first, second) = (v4(&cluster, &tasks[0]), v4(&cluster, &tasks[1]));
    let backends = cluster.state.allocated.next_backend;
    cluster.observe(&tasks[1], TaskState::Failed);
    cluster.observe(&tasks[0], TaskState::Complete);
    assert!(cluster.state.tasks[&tasks[0]].attachments.is_empty());
    let freed_index = cluster.state.index;
    let next = cluster.task(&service, 1);
    let assign = Command::AssignTask { id: next.clone(), node: node.clone() };
    let release = |cluster: &mut TestCluster, acked_index| cluster.ok(Command::ReleaseAddresses { acked_index });

    release(&mut cluster, freed_index);
    assert!(cluster.apply(assign.clone()).is_err(), "released before its time");
    cluster.now_ms += QUARANTINE_MS;
    assert!(cluster.apply(assign.clone()).is_err(), "released before it was acked");
    release(&mut cluster, freed_index - 1);
    assert_eq!(cluster.state.allocated.quarantine.len(), 1);
    release(&mut cluster, freed_index);
    assert!(cluster.state.allocated.quarantine.is_empty());
    cluster.ok(assign);
    assert_eq!(v4(&cluster, &next), first, "the search goes on where it was");
    let after = cluster.running_task(&service, 2, &node);
    assert_eq!(v4(&cluster, &after), second);
    assert_eq!(cluster.state.tasks[&next].attachments[0].backend.0, backends, "backend ids do not come back");
}

#[test]
fn states_only_go_forward() {
    let (mut cluster, service, node) = web();
    let id = cluster.running_task(&service, 1, &node);
    cluster.observe(&id, TaskState::Starting);
    assert_eq!(cluster.state.tasks[&id].status.state, TaskState::Running);
    for state in [TaskState::Orphaned, TaskState::Remove, TaskState::Pending] {
        cluster.observe(&id, state);
        assert_eq!(cluster.state.tasks[&id].status.state, TaskState::Running);
    }
    cluster.observe(&id, TaskState::Failed);
    cluster.observe(&id, TaskState::Rejected);
    assert_eq!(cluster.state.tasks[&id].status.state, TaskState::Failed);
    cluster.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Remove });
    cluster.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Shutdown });
    assert_eq!(cluster.state.tasks[&id].desired, TaskState::Remove);
}

#[test]
fn traffic_only_goes_forward_and_says_since_when() {
    let (mut cluster, service, node) = web();
    let id = cluster.running_task(&service, 1, &node);
    cluster.now_ms += 10;
    cluster.ok(Command::SetTraffic { id: id.clone(), traffic: Traffic::Active });
    let (index, now_ms) = (cluster.state.index, cluster.now_ms);
    cluster.now_ms += 10;
    for traffic in [Traffic::Local, Traffic::Active] {
        cluster.ok(Command::SetTraffic { id: id.clone(), traffic });
    }
    let task = &cluster.state.tasks[&id];
    assert_eq!((task.traffic, task.traffic_index, task.traffic_since_ms), (Traffic::Active, index, now_ms));
}

#[test]
fn how_a_task_ended_depends_on_whether_it_was_told_to() {
    let check = |told: bool, reported: TaskState, expected: TaskState| {
        let (mut cluster, service, node) = web();
        let id = cluster.running_task(&service, 1, &node);
        if told {
            cluster.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Shutdown });
        }
        cluster.observe(&id, reported);
        assert_eq!(cluster.state.tasks[&id].status.state, expected, "told: {told}, reported: {reported:?}");
    };
    check(false, TaskState::Complete, TaskState::Complete);
    check(false, TaskState::Failed, TaskState::Failed);
    check(false, TaskState::Shutdown, TaskState::Complete);
    check(false, TaskState::Rejected, TaskState::Rejected);
    check(true, TaskState::Complete, TaskState::Shutdown);
    check(true, TaskState::Failed, TaskState::Shutdown);
    check(true, TaskState::Shutdown, TaskState::Shutdown);
}

#[test]
fn only_its_own_node_reports_a_task() {
    let (mut cluster, service, node) = web();
    let id = cluster.running_task(&service, 1, &node);
    let other = cluster.node("n2", &[]);
    let mut status = observed(TaskState::Failed, cluster.now_ms);
    let unknown = TaskId::from_random(1);
    cluster.ok(Command::ReportTasks { node: other, tasks: vec![(id.clone(), status.clone())] });
    assert_eq!(cluster.state.tasks[&id].status.state, TaskState::Running);
    status.error = "é".repeat(1000);
    cluster.ok(Command::ReportTasks { node, tasks: vec![(unknown, status.clone()), (id.clone(), status)] });
    assert_eq!(cluster.state.tasks[&id].status.state, TaskState::Failed);
    assert_eq!(cluster.state.tasks[&id].status.error.len(), 1024);
}

#[test]
fn an_orphan_frees_its_addresses() {
    let (mut cluster, service, node) = web();
    let id = cluster.running_task(&service, 1, &node);
    cluster.ok(Command::OrphanTask { id: id.clone() });
    let task: &Task = &cluster.state.tasks[&id];
    assert_eq!((task.status.state, task.desired), (TaskState::Orphaned, TaskState::Shutdown));
    assert!(task.attachments.is_empty());
    assert_eq!(cluster.state.allocated.quarantine.len(), 1);
    cluster.ok(Command::OrphanTask { id });
    assert_eq!(cluster.state.allocated.quarantine.len(), 1);
}

#[test]
fn a_live_task_cannot_be_forgotten() {
    let (mut cluster, service, node) = web();
    let id = cluster.running_task(&service, 1, &node);
    let forget = Command::ForgetTask { id: id.clone() };
    check_refused(&mut cluster, forget.clone(), &format!("task {id} is in use by node {node}: remove that first"));
    cluster.observe(&id, TaskState::Complete);
    cluster.ok(forget);
    let waiting = cluster.task(&service, 2);
    cluster.ok(Command::ForgetTask { id: waiting });
}

#[test]
fn a_waiting_task_says_why() {
    let (mut cluster, service, node) = web();
    let id = cluster.task(&service, 1);
    cluster.ok(Command::DelayTask { id: id.clone(), error: "no suitable node".to_owned() });
    assert_eq!(cluster.state.tasks[&id].status.error, "no suitable node");
    cluster.ok(Command::AssignTask { id: id.clone(), node });
    assert_eq!(cluster.state.tasks[&id].status.error, "");
    cluster.ok(Command::DelayTask { id: id.clone(), error: "late".to_owned() });
    assert_eq!(cluster.state.tasks[&id].status.error, "");
}
