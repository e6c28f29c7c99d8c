//! Tasks: their states, their addresses, and when those return.

use std::collections::BTreeSet;

use weft_model::{
    Command, Mac, NodeId, ServiceId, TaskId,
    spec::SubnetSpec,
    state::{Slot, Task, TaskState, Traffic},
};

use super::{check_refused, text};
use crate::{
    fixture::{Table, network_spec, observed, service_spec, subnet_spec},
    state::QUARANTINE_MS,
};

/// A service on one network, and the node.
fn web() -> (Table, ServiceId, NodeId) {
    let mut table = Table::new();
    let network = table.network(subnet_spec("app", "10.1.0.0/24")).unwrap();
    let service = table.service(service_spec("web", 1, &[&network])).unwrap();
    let node = table.first_node();
    (table, service, node)
}

fn create(service: &ServiceId, id: &TaskId, slot: Slot, desired: TaskState) -> Command {
    let (id, service) = (id.clone(), service.clone());
    Command::CreateTask { id, service, slot, desired, not_before_ms: 0, attempts: 0 }
}

fn v4(table: &Table, task: &TaskId) -> String {
    table.state.tasks[task].attachments[0].addr.v4.to_string()
}

#[test]
fn a_task_is_born_waiting_and_named_after_its_slot() {
    let (mut table, service, _) = web();
    let id = table.task(&service, 2);
    let task = &table.state.tasks[&id];
    assert_eq!(task.name, format!("web.2.{id}"));
    assert_eq!((task.status.state, task.traffic), (TaskState::Pending, Traffic::None));
    assert!(task.node.is_none() && task.attachments.is_empty());
}

#[test]
fn a_task_needs_a_service_and_a_slot_of_its_kind() {
    let (mut table, service, node) = web();
    let id = TaskId::from_random(table.random());
    let nobody = ServiceId::from_random(table.random());
    let run = TaskState::Running;
    check_refused(&mut table, create(&nobody, &id, Slot::Replica(1), run), &format!("no such service: {nobody}"));
    for slot in [Slot::Replica(0), Slot::Node(node)] {
        let refused = text(table.apply(create(&service, &id, slot, run)));
        assert!(refused.starts_with("service web has no slot"), "{refused}");
    }
    check_refused(
        &mut table,
        create(&service, &id, Slot::Replica(1), TaskState::Shutdown),
        "a task cannot begin with desired state shutdown",
    );
    table.ok(create(&service, &id, Slot::Replica(1), run));
    check_refused(
        &mut table,
        create(&service, &id, Slot::Replica(1), run),
        &format!("task {id} is in use by {id}: remove that first"),
    );
}

#[test]
fn addresses_come_with_the_node_in_order() {
    let (mut table, service, node) = web();
    let vip = table.state.services[&service].endpoints[0].vip.unwrap();
    assert_eq!(vip.v4.to_string(), "10.1.0.2");
    let (a, b) = (table.running_task(&service, 1, &node), table.running_task(&service, 2, &node));
    assert_eq!((v4(&table, &a).as_str(), v4(&table, &b).as_str()), ("10.1.0.3", "10.1.0.4"));
    let attachment = &table.state.tasks[&a].attachments[0];
    assert_eq!(attachment.mac, Mac::of_task(attachment.addr.v4));
    let refused = text(table.apply(Command::AssignTask { id: a.clone(), node: node.clone() }));
    assert_eq!(refused, format!("task {a} cannot be assigned to node {node}: it has its place"));
}

#[test]
fn the_ip_range_bounds_addresses() {
    let mut table = Table::new();
    let mut spec = network_spec("app");
    spec.v4 = Some(SubnetSpec {
        subnet: "10.1.0.0/24".parse().unwrap(),
        gateway: Some("10.1.0.129".parse().unwrap()),
        ip_range: Some("10.1.0.128/30".parse().unwrap()),
    });
    let network = table.network(spec).unwrap();
    let service = table.service(service_spec("web", 1, &[&network])).unwrap();
    let node = table.first_node();
    assert_eq!(table.state.services[&service].endpoints[0].vip.unwrap().v4.to_string(), "10.1.0.128");
    let mut addresses = BTreeSet::new();
    for slot in 1..=2 {
        let id = table.running_task(&service, slot, &node);
        addresses.insert(v4(&table, &id));
    }
    assert_eq!(addresses.into_iter().collect::<Vec<_>>(), ["10.1.0.130", "10.1.0.131"]);
    let id = table.task(&service, 3);
    check_refused(
        &mut table,
        Command::AssignTask { id, node },
        "no address left in network app (10.1.0.0/24): remove services or use a larger subnet",
    );
}

#[test]
fn a_freed_address_waits_for_acks_and_time() {
    let mut table = Table::new();
    let network = table.network(subnet_spec("tiny", "10.1.0.0/29")).unwrap();
    let service = table.service(service_spec("web", 1, &[&network])).unwrap();
    let node = table.first_node();
    let tasks: Vec<_> = (1..=4).map(|slot| table.running_task(&service, slot, &node)).collect();
    let (first, second) = (v4(&table, &tasks[0]), v4(&table, &tasks[1]));
    let backends = table.state.allocated.next_backend;
    table.observe(&tasks[1], TaskState::Failed);
    table.observe(&tasks[0], TaskState::Complete);
    assert!(table.state.tasks[&tasks[0]].attachments.is_empty());
    let freed_index = table.state.index;
    let next = table.task(&service, 1);
    let assign = Command::AssignTask { id: next.clone(), node: node.clone() };
    let release = |table: &mut Table, acked_index| table.ok(Command::ReleaseAddresses { acked_index });

    release(&mut table, freed_index);
    assert!(table.apply(assign.clone()).is_err(), "released before its time");
    table.now_ms += QUARANTINE_MS;
    assert!(table.apply(assign.clone()).is_err(), "released before it was acked");
    release(&mut table, freed_index - 1);
    assert_eq!(table.state.allocated.quarantine.len(), 1);
    release(&mut table, freed_index);
    assert!(table.state.allocated.quarantine.is_empty());
    table.ok(assign);
    assert_eq!(v4(&table, &next), first, "the search goes on where it was");
    let after = table.running_task(&service, 2, &node);
    assert_eq!(v4(&table, &after), second);
    assert_eq!(table.state.tasks[&next].attachments[0].backend.0, backends, "backend ids do not come back");
}

#[test]
fn states_only_go_forward() {
    let (mut table, service, node) = web();
    let id = table.running_task(&service, 1, &node);
    table.observe(&id, TaskState::Starting);
    assert_eq!(table.state.tasks[&id].status.state, TaskState::Running);
    for state in [TaskState::Orphaned, TaskState::Remove, TaskState::Pending] {
        table.observe(&id, state);
        assert_eq!(table.state.tasks[&id].status.state, TaskState::Running);
    }
    table.observe(&id, TaskState::Failed);
    table.observe(&id, TaskState::Rejected);
    assert_eq!(table.state.tasks[&id].status.state, TaskState::Failed);
    table.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Remove });
    table.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Shutdown });
    assert_eq!(table.state.tasks[&id].desired, TaskState::Remove);
}

#[test]
fn traffic_only_goes_forward_and_says_since_when() {
    let (mut table, service, node) = web();
    let id = table.running_task(&service, 1, &node);
    table.now_ms += 10;
    table.ok(Command::SetTraffic { id: id.clone(), traffic: Traffic::Active });
    let (index, now_ms) = (table.state.index, table.now_ms);
    table.now_ms += 10;
    for traffic in [Traffic::Local, Traffic::Active] {
        table.ok(Command::SetTraffic { id: id.clone(), traffic });
    }
    let task = &table.state.tasks[&id];
    assert_eq!((task.traffic, task.traffic_index, task.traffic_since_ms), (Traffic::Active, index, now_ms));
}

#[test]
fn how_a_task_ended_depends_on_whether_it_was_told_to() {
    let check = |told: bool, reported: TaskState, expected: TaskState| {
        let (mut table, service, node) = web();
        let id = table.running_task(&service, 1, &node);
        if told {
            table.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Shutdown });
        }
        table.observe(&id, reported);
        assert_eq!(table.state.tasks[&id].status.state, expected, "told: {told}, reported: {reported:?}");
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
    let (mut table, service, node) = web();
    let id = table.running_task(&service, 1, &node);
    let other = table.node("n2", &[]);
    let mut status = observed(TaskState::Failed, table.now_ms);
    let unknown = TaskId::from_random(1);
    table.ok(Command::ReportTasks { node: other, tasks: vec![(id.clone(), status.clone())] });
    assert_eq!(table.state.tasks[&id].status.state, TaskState::Running);
    status.error = "é".repeat(1000);
    table.ok(Command::ReportTasks { node, tasks: vec![(unknown, status.clone()), (id.clone(), status)] });
    assert_eq!(table.state.tasks[&id].status.state, TaskState::Failed);
    assert_eq!(table.state.tasks[&id].status.error.len(), 1024);
}

#[test]
fn an_orphan_frees_its_addresses() {
    let (mut table, service, node) = web();
    let id = table.running_task(&service, 1, &node);
    table.ok(Command::OrphanTask { id: id.clone() });
    let task: &Task = &table.state.tasks[&id];
    assert_eq!((task.status.state, task.desired), (TaskState::Orphaned, TaskState::Shutdown));
    assert!(task.attachments.is_empty());
    assert_eq!(table.state.allocated.quarantine.len(), 1);
    table.ok(Command::OrphanTask { id });
    assert_eq!(table.state.allocated.quarantine.len(), 1);
}

#[test]
fn a_live_task_cannot_be_forgotten() {
    let (mut table, service, node) = web();
    let id = table.running_task(&service, 1, &node);
    let forget = Command::ForgetTask { id: id.clone() };
    check_refused(&mut table, forget.clone(), &format!("task {id} is in use by node {node}: remove that first"));
    table.observe(&id, TaskState::Complete);
    table.ok(forget);
    let waiting = table.task(&service, 2);
    table.ok(Command::ForgetTask { id: waiting });
}

#[test]
fn a_waiting_task_says_why() {
    let (mut table, service, node) = web();
    let id = table.task(&service, 1);
    table.ok(Command::DelayTask { id: id.clone(), error: "no suitable node".to_owned() });
    assert_eq!(table.state.tasks[&id].status.error, "no suitable node");
    table.ok(Command::AssignTask { id: id.clone(), node });
    assert_eq!(table.state.tasks[&id].status.error, "");
    table.ok(Command::DelayTask { id: id.clone(), error: "late".to_owned() });
    assert_eq!(table.state.tasks[&id].status.error, "");
}
