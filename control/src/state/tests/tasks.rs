//! Tasks: their states, their addresses, and when an address is used again.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Command, Mac, NodeId, ServiceId, TaskId,
    spec::{NetworkSpec, SubnetSpec},
    state::{Restarts, Slot, Task, TaskState, Traffic},
};

use super::{check_refused, refusal};
use crate::{
    fixture::{TestCluster, network_spec, observed, parse, service_spec, subnet_spec},
    state::QUARANTINE_MS,
};

/// A cluster with the service `web` on one network, the service, and the only node.
fn web() -> (TestCluster, ServiceId, NodeId) {
    let mut cluster = TestCluster::new();
    let network = cluster.add_network(subnet_spec("app", "10.1.0.0/24"));
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    (cluster, service, node)
}

fn create(service: &ServiceId, id: &TaskId, slot: Slot, desired: TaskState) -> Command {
    let (id, service) = (id.clone(), service.clone());
    Command::CreateTask { id, service, slot, desired, not_before_ms: 0, restarts: Restarts::default() }
}

/// The IPv4 address of a task.
fn v4(cluster: &TestCluster, task: &TaskId) -> String {
    cluster.state.tasks[task].attachments[0].addr.first().to_string()
}

#[test]
fn a_new_task_is_pending_and_named_after_its_slot() {
    let (mut cluster, service, _) = web();
    let id = cluster.task(&service, 2);
    let task = &cluster.state.tasks[&id];
    assert_eq!(task.name, format!("web.2.{id}"));
    assert_eq!((task.status.state, task.traffic), (TaskState::Pending, Traffic::None));
    assert!(task.node.is_none() && task.attachments.is_empty());
}

#[test]
fn refuses_a_task_without_a_service_or_a_matching_slot() {
    let (mut cluster, service, node) = web();
    let id = TaskId::from_random(cluster.random());
    let unknown = ServiceId::from_random(cluster.random());
    let run = TaskState::Running;
    check_refused(&mut cluster, create(&unknown, &id, Slot::Replica(1), run), &format!("no such service: {unknown}"));
    for slot in [Slot::Replica(0), Slot::Node(node)] {
        let refused = refusal(cluster.apply(create(&service, &id, slot, run)));
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
fn addresses_are_allocated_in_order_when_a_task_is_assigned() {
    let (mut cluster, service, node) = web();
    let vip = cluster.state.services[&service].endpoints[0].vip.expect("a VIP");
    assert_eq!(vip.first().to_string(), "10.1.0.2");
    let (a, b) = (cluster.running_task(&service, 1, &node), cluster.running_task(&service, 2, &node));
    assert_eq!((v4(&cluster, &a).as_str(), v4(&cluster, &b).as_str()), ("10.1.0.3", "10.1.0.4"));
    let attachment = &cluster.state.tasks[&a].attachments[0];
    assert_eq!(attachment.mac, Mac::of_task(attachment.addr));
    let refused =
        refusal(cluster.apply(Command::AssignTask { id: a.clone(), node: node.clone(), reuse: BTreeMap::new() }));
    assert_eq!(refused, format!("task {a} cannot be assigned to node {node}: it has a node already, or it must stop"));
}

#[test]
fn auxiliary_addresses_are_given_to_no_task() {
    let mut cluster = TestCluster::new();
    let mut spec = subnet_spec("app", "10.1.0.0/29");
    spec.v4[0].reserved = [("router".to_owned(), parse("10.1.0.2")), ("printer".to_owned(), parse("10.1.0.4"))].into();
    let network = cluster.add_network(spec);
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    assert_eq!(cluster.state.services[&service].endpoints[0].vip.expect("a VIP").first().to_string(), "10.1.0.3");
    let addresses: Vec<_> = (1..=2)
        .map(|slot| {
            let id = cluster.running_task(&service, slot, &node);
            v4(&cluster, &id)
        })
        .collect();
    assert_eq!(addresses, ["10.1.0.5", "10.1.0.6"]);
}

#[test]
fn a_network_takes_addresses_from_its_next_subnet_when_one_is_full() {
    let mut cluster = TestCluster::new();
    let mut spec = subnet_spec("app", "10.1.0.0/29");
    spec.v4.push(SubnetSpec::new(parse("10.7.0.0/29")));
    let network = cluster.add_network(spec);
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    let tasks: Vec<_> = (1..=6).map(|slot| cluster.running_task(&service, slot, &node)).collect();
    let addresses: Vec<_> = tasks.iter().map(|id| v4(&cluster, id)).collect();
    assert_eq!(addresses, ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.7.0.2", "10.7.0.3"]);
    let more: Vec<_> = (7..=9).map(|slot| cluster.running_task(&service, slot, &node)).collect();
    assert_eq!(v4(&cluster, &more[2]), "10.7.0.6");
    let id = cluster.task(&service, 10);
    assert_eq!(
        refusal(cluster.apply(Command::AssignTask { id, node, reuse: BTreeMap::new() })),
        "no address left in network app (10.1.0.0/29, 10.7.0.0/29): remove services or use a larger subnet"
    );
}

#[test]
fn a_network_without_ipv4_gives_ipv6_addresses_only() {
    let mut cluster = TestCluster::new();
    let network = cluster.add_network(NetworkSpec { ipv4: false, ipv6: true, ..network_spec("six") });
    assert!(cluster.state.networks[&network].subnets.v4.is_empty());
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    let vip = cluster.state.services[&service].endpoints[0].vip.expect("a VIP");
    let tasks = [cluster.running_task(&service, 1, &node), cluster.running_task(&service, 2, &node)];
    let [a, b] = tasks.map(|id| cluster.state.tasks[&id].attachments[0].clone());
    assert!([vip, a.addr, b.addr].iter().all(|addr| addr.v4.is_none()));
    assert_ne!(a.addr.v6, b.addr.v6);
    assert_ne!(a.mac, b.mac);
}

#[test]
fn addresses_come_from_the_ip_range() {
    let mut cluster = TestCluster::new();
    let mut spec = network_spec("app");
    spec.v4 = vec![SubnetSpec {
        gateway: Some(parse("10.1.0.129")),
        ip_range: Some(parse("10.1.0.128/30")),
        ..SubnetSpec::new(parse("10.1.0.0/24"))
    }];
    let network = cluster.add_network(spec);
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    assert_eq!(cluster.state.services[&service].endpoints[0].vip.expect("a VIP").first().to_string(), "10.1.0.128");
    let mut addresses = BTreeSet::new();
    for slot in 1..=2 {
        let id = cluster.running_task(&service, slot, &node);
        addresses.insert(v4(&cluster, &id));
    }
    assert_eq!(addresses.into_iter().collect::<Vec<_>>(), ["10.1.0.130", "10.1.0.131"]);
    let id = cluster.task(&service, 3);
    check_refused(
        &mut cluster,
        Command::AssignTask { id, node, reuse: BTreeMap::new() },
        "no address left in network app (10.1.0.0/24): remove services or use a larger subnet",
    );
}

#[test]
fn a_freed_address_is_reused_only_after_acks_and_quarantine() {
    let mut cluster = TestCluster::new();
    let network = cluster.add_network(subnet_spec("tiny", "10.1.0.0/29"));
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    let tasks: Vec<_> = (1..=4).map(|slot| cluster.running_task(&service, slot, &node)).collect();
    let (first, second) = (v4(&cluster, &tasks[0]), v4(&cluster, &tasks[1]));
    let backends = cluster.state.allocated.next_backend;
    cluster.observe(&tasks[1], TaskState::Failed);
    cluster.observe(&tasks[0], TaskState::Complete);
    assert!(cluster.state.tasks[&tasks[0]].attachments.is_empty());
    let freed_index = cluster.state.index;
    let next = cluster.task(&service, 1);
    let assign = Command::AssignTask { id: next.clone(), node: node.clone(), reuse: BTreeMap::new() };
    let release = |cluster: &mut TestCluster, acked_index| {
        let owners = BTreeMap::from([(cluster.first_node(), acked_index)]);
        cluster.ok(Command::ReleaseAddresses { acked_index, owners })
    };

    release(&mut cluster, freed_index);
    assert!(cluster.apply(assign.clone()).is_err(), "released before the quarantine was over");
    cluster.now_ms += QUARANTINE_MS;
    assert!(cluster.apply(assign.clone()).is_err(), "released before it was acked");
    release(&mut cluster, freed_index - 1);
    assert_eq!(cluster.state.allocated.quarantine.len(), 1);
    release(&mut cluster, freed_index);
    assert!(cluster.state.allocated.quarantine.is_empty());
    cluster.ok(assign);
    assert_eq!(v4(&cluster, &next), first, "the search continues after the last address");
    let after = cluster.running_task(&service, 2, &node);
    assert_eq!(v4(&cluster, &after), second);
    assert_eq!(cluster.state.tasks[&next].attachments[0].backend.0, backends, "backend ids are not reused");
}

#[test]
fn a_task_takes_the_quarantined_address_of_its_own_slot_and_of_no_other() {
    let mut cluster = TestCluster::new();
    let network = cluster.add_network(subnet_spec("tiny", "10.1.0.0/29"));
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let node = cluster.first_node();
    let tasks: Vec<_> = (1..=3).map(|slot| cluster.running_task(&service, slot, &node)).collect();
    let freed = cluster.state.tasks[&tasks[0]].attachments[0].addr;
    let used = cluster.state.tasks[&tasks[1]].attachments[0].addr;
    cluster.observe(&tasks[0], TaskState::Failed);
    let mut assigned = |slot, addr| {
        let id = cluster.task(&service, slot);
        let reuse = BTreeMap::from([(network.clone(), addr)]);
        let result = cluster.apply(Command::AssignTask { id: id.clone(), node: node.clone(), reuse });
        result.map(|_| cluster.state.tasks[&id].attachments[0].addr)
    };
    assert_ne!(assigned(2, freed).expect("the network has one more address"), freed, "another slot");
    assigned(1, used).expect_err("an address in use is no address in quarantine, and none is left");
    assert_eq!(assigned(1, freed).expect("its own address"), freed);
    assigned(1, freed).expect_err("the address is in use again");
    assert!(cluster.state.allocated.quarantine.is_empty());
}

#[test]
fn states_never_decrease() {
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
fn traffic_never_decreases_and_records_when_it_changed() {
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
fn the_final_state_depends_on_whether_the_task_must_stop() {
    let check = |must_stop: bool, reported: TaskState, expected: TaskState| {
        let (mut cluster, service, node) = web();
        let id = cluster.running_task(&service, 1, &node);
        if must_stop {
            cluster.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Shutdown });
        }
        cluster.observe(&id, reported);
        assert_eq!(cluster.state.tasks[&id].status.state, expected, "must_stop: {must_stop}, reported: {reported:?}");
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
fn ignores_reports_about_tasks_of_other_nodes() {
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
fn refuses_to_delete_a_live_task() {
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
fn a_waiting_task_shows_why_it_waits() {
    let (mut cluster, service, node) = web();
    let id = cluster.task(&service, 1);
    cluster.ok(Command::DelayTask { id: id.clone(), error: "no suitable node".to_owned() });
    assert_eq!(cluster.state.tasks[&id].status.error, "no suitable node");
    cluster.ok(Command::AssignTask { id: id.clone(), node, reuse: BTreeMap::new() });
    assert_eq!(cluster.state.tasks[&id].status.error, "");
    cluster.ok(Command::DelayTask { id: id.clone(), error: "late".to_owned() });
    assert_eq!(cluster.state.tasks[&id].status.error, "");
}
