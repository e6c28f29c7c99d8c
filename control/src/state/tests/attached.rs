//! Containers that are no tasks, on attachable networks.

use std::net::{IpAddr, Ipv4Addr};

use weft_model::{
    Command, DualAddr, NetworkId, NodeId, NodeReport, Rejection, TaskId,
    command::{AttachContainer, WantedLink},
    plan::AttachedName,
    report::{AttachedReport, AttachedReports},
    spec::NetworkSpec,
    state::ContainerIdentity,
};

use super::{super::gone, refusal};
use crate::{
    fixture::{TestCluster, network_spec, subnet_spec},
    plan::plan,
};

fn wanted(network: &NetworkId, v4: Option<Ipv4Addr>) -> WantedLink {
    WantedLink { network: network.clone(), v4, v6: None, aliases: vec!["db".to_owned()] }
}

fn identity(name: &str) -> ContainerIdentity {
    ContainerIdentity { container: format!("{name}{}", "0".repeat(64)), name: name.to_owned() }
}

fn attach(node: &NodeId, id: &TaskId, networks: Vec<WantedLink>) -> AttachContainer {
    AttachContainer { node: node.clone(), id: id.clone(), identity: None, networks, present: vec![], running: None }
}

fn command(attach: AttachContainer) -> Command {
    Command::AttachContainer(Box::new(attach))
}

/// A cluster with a node and an attachable network.
fn cluster() -> (TestCluster, NodeId, NetworkId) {
    let mut cluster = TestCluster::new();
    let node = cluster.node("n2", &[]);
    let network = cluster.add_network(NetworkSpec { attachable: true, ..subnet_spec("app", "10.7.0.0/28") });
    (cluster, node, network)
}

fn addr_of(cluster: &TestCluster, id: &TaskId) -> DualAddr {
    cluster.state.attached[id].links[0].addr
}

#[test]
fn a_container_keeps_its_address_until_it_is_detached() {
    let (mut cluster, node, network) = cluster();
    let (first, second) = (TaskId::from_random(1), TaskId::from_random(2));
    cluster.ok(command(attach(&node, &first, vec![wanted(&network, None)])));
    let addr = addr_of(&cluster, &first);
    cluster.ok(command(attach(&node, &first, vec![wanted(&network, None)])));
    assert_eq!(addr_of(&cluster, &first), addr, "a repeated command changes nothing");
    let chosen = Ipv4Addr::new(10, 7, 0, 9);
    cluster.ok(command(attach(&node, &second, vec![wanted(&network, Some(chosen))])));
    assert_eq!(addr_of(&cluster, &second).v4, Some(chosen));
    cluster.ok(Command::SetNodeStatus {
        id: node.clone(),
        status: weft_model::state::NodeStatus::Down,
        message: String::new(),
    });
    assert_eq!(addr_of(&cluster, &first), addr, "a node that is down may still run it");

    let detach = Command::DetachContainer { node: node.clone(), id: second.clone(), networks: vec![network.clone()] };
    cluster.ok(detach.clone());
    cluster.ok(detach);
    let again = attach(&node, &second, vec![wanted(&network, Some(chosen))]);
    let quarantined = Rejection::AddressInQuarantine { addr: IpAddr::V4(chosen), network: "app".to_owned() };
    assert_eq!(cluster.apply(command(again.clone())), Err(quarantined));
    let acked_index = cluster.state.index;
    cluster.now_ms += super::super::QUARANTINE_MS;
    cluster.ok(Command::ReleaseAddresses { acked_index, owners: [(node.clone(), acked_index)].into() });
    cluster.ok(command(again));
    cluster.ok(Command::RemoveNode { id: node, force: true });
    assert!(cluster.state.attached.is_empty());
    cluster.ok(Command::RemoveNetwork { id: network });
}

#[test]
fn a_network_in_use_cannot_be_removed() {
    let (mut cluster, node, network) = cluster();
    let id = TaskId::from_random(1);
    cluster.ok(command(attach(&node, &id, vec![wanted(&network, None)])));
    let named = AttachContainer { identity: Some(identity("shell")), ..attach(&node, &id, vec![]) };
    cluster.ok(command(named));
    let refused = refusal(cluster.apply(Command::RemoveNetwork { id: network }));
    assert_eq!(refused, "network app is in use by container shell on node n2: remove that first");
}

#[test]
fn refuses_what_a_node_may_not_have() {
    let (mut cluster, node, network) = cluster();
    let closed = cluster.add_network(network_spec("closed"));
    let overlapping = cluster.add_network(NetworkSpec { attachable: true, ..subnet_spec("same", "10.7.0.0/28") });
    let (id, first) = (TaskId::from_random(1), cluster.first_node());
    cluster.ok(command(attach(&first, &id, vec![wanted(&network, None)])));
    let other = TaskId::from_random(2);
    let taken = addr_of(&cluster, &id).v4;
    let [gateway, outside] = [1, 17].map(|last| Some(Ipv4Addr::new(10, 7, 0, last)));
    for (attach, text) in [
        (attach(&node, &other, vec![wanted(&closed, None)]), "network closed not manually attachable"),
        (attach(&node, &id, vec![wanted(&network, None)]), "belongs to another node"),
        (attach(&node, &other, vec![]), "no such container"),
        (attach(&node, &other, vec![wanted(&network, taken)]), "is in use: choose another (Address already in use)"),
        (attach(&node, &other, vec![wanted(&network, gateway)]), "is in use"),
        (attach(&node, &other, vec![wanted(&network, outside)]), "no subnet of network app contains address 10.7.0.17"),
        (attach(&node, &other, vec![wanted(&network, None), wanted(&overlapping, None)]), "overlapping subnets"),
        (attach(&node, &other, vec![wanted(&network, None), wanted(&network, None)]), "listed twice"),
        (attach(&NodeId::from_random(999), &other, vec![wanted(&network, None)]), "no such node"),
    ] {
        let refused = refusal(cluster.apply(command(attach)));
        assert!(refused.contains(text), "{refused} instead of {text}");
    }
    let of_other = Command::DetachContainer { node, id, networks: vec![network] };
    assert!(refusal(cluster.apply(of_other)).contains("belongs to another node"));
    let both = NetworkSpec { attachable: true, ingress: true, ..network_spec("both") };
    assert!(refusal(cluster.network(both)).contains("ingress"));
}

#[test]
fn a_link_keeps_its_number_when_another_goes() {
    let (mut cluster, node, network) = cluster();
    let other = cluster.add_network(NetworkSpec { attachable: true, ..network_spec("other") });
    let id = TaskId::from_random(1);
    cluster.ok(command(attach(&node, &id, vec![wanted(&network, None), wanted(&other, None)])));
    cluster.ok(Command::DetachContainer { node: node.clone(), id: id.clone(), networks: vec![network.clone()] });
    let planned = |cluster: &TestCluster| plan(&cluster.state, &node).expect("a member").attached.remove(0);
    let indexes = |cluster: &TestCluster| planned(cluster).links.iter().map(|link| link.index).collect::<Vec<_>>();
    assert_eq!(indexes(&cluster), [1]);
    cluster.ok(command(attach(&node, &id, vec![wanted(&network, None)])));
    assert_eq!(indexes(&cluster), [0, 1]);
}

#[test]
fn all_nodes_know_the_addresses_and_names_of_a_container() {
    let (mut cluster, node, network) = cluster();
    let (id, first) = (TaskId::from_random(1), cluster.first_node());
    cluster.ok(command(attach(&node, &id, vec![wanted(&network, None)])));
    let planned = |cluster: &TestCluster| plan(&cluster.state, &first).expect("a member");
    assert_eq!(planned(&cluster).attached_names, [], "its name is not known yet");
    let named = AttachContainer { identity: Some(identity("shell")), ..attach(&node, &id, vec![]) };
    cluster.ok(command(named.clone()));
    assert_eq!(planned(&cluster).attached_names, [], "it does not run");
    cluster.ok(command(AttachContainer { running: Some(true), ..attach(&node, &id, vec![]) }));
    cluster.ok(command(named));
    let plan = planned(&cluster);
    let addr = addr_of(&cluster, &id);
    let name = AttachedName { network, addr, identity: identity("shell"), aliases: vec!["db".to_owned()] };
    assert_eq!((plan.attached_names, plan.attached.len()), (vec![name], 0));
    assert!(plan.endpoints.iter().any(|endpoint| (&endpoint.task, endpoint.addr) == (&id, addr)));
    cluster.ok(command(AttachContainer { running: Some(false), ..attach(&node, &id, vec![]) }));
    assert_eq!((planned(&cluster).attached_names, addr_of(&cluster, &id)), (vec![], addr), "it has ended");
    cluster.ok(command(AttachContainer { running: Some(true), ..attach(&node, &id, vec![]) }));
    assert_eq!(planned(&cluster).attached_names.len(), 1);
    // A node that is down keeps the address, and no name leads to it.
    cluster.status(&node, weft_model::state::NodeStatus::Down);
    let plan = planned(&cluster);
    assert_eq!((plan.attached_names, addr_of(&cluster, &id)), (vec![], addr));
}

/// What the engine says of its containers, which are all on `network`.
fn report(acked: u64, network: &NetworkId, containers: &[(&TaskId, &str)], unanswered: &[&str]) -> NodeReport {
    let found = |(id, name): &(&TaskId, &str)| AttachedReport {
        id: TaskId::clone(id),
        identity: identity(name),
        networks: vec![network.clone()],
        running: true,
    };
    let unanswered = unanswered.iter().map(|name| identity(name).container).collect();
    let attached = AttachedReports { containers: containers.iter().map(found).collect(), unanswered };
    NodeReport { acked, attached: Some(attached), ..NodeReport::default() }
}

#[test]
fn a_container_is_gone_when_a_newer_report_lacks_it() {
    let (mut cluster, node, network) = cluster();
    let id = TaskId::from_random(1);
    cluster.ok(command(attach(&node, &id, vec![wanted(&network, None)])));
    let is_gone = |cluster: &TestCluster, report: &NodeReport| match &gone(&cluster.state, &node, report)[..] {
        [] => false,
        gone => {
            assert_eq!(gone, [(id.clone(), vec![network.clone()])]);
            true
        }
    };
    let lacks = |acked| report(acked, &network, &[], &[]);
    let index = cluster.state.index;
    assert!(!is_gone(&cluster, &lacks(index)), "the engine creates it");
    cluster.now_ms += 60_000;
    cluster.state.now_ms = cluster.now_ms;
    assert!(is_gone(&cluster, &lacks(index)), "the engine has not created it");
    assert!(!is_gone(&cluster, &lacks(index - 1)), "the report is from before the reservation");
    assert!(!is_gone(&cluster, &NodeReport { attached: None, ..lacks(index) }), "the engine has no list");
    assert!(!is_gone(&cluster, &NodeReport { epoch: 1, ..lacks(index) }), "the report is of another cluster");
    let present = vec![network.clone()];
    cluster.ok(command(AttachContainer { identity: Some(identity("shell")), present, ..attach(&node, &id, vec![]) }));
    let index = cluster.state.index;
    assert!(!is_gone(&cluster, &report(index, &network, &[(&id, "shell")], &[])));
    assert!(!is_gone(&cluster, &lacks(index - 1)));
    assert!(is_gone(&cluster, &lacks(index)));
}

#[test]
fn a_container_without_an_answer_is_not_gone_and_does_not_hold_the_addresses_of_others() {
    let (mut cluster, node, network) = cluster();
    let [first, second, created] = [1, 2, 3].map(TaskId::from_random);
    for (id, name) in [(&first, Some("first")), (&second, Some("second")), (&created, None)] {
        cluster.ok(command(attach(&node, id, vec![wanted(&network, None)])));
        let (identity, present) = (name.map(identity), name.map(|_| network.clone()).into_iter().collect());
        cluster.ok(command(AttachContainer { identity, present, ..attach(&node, id, vec![]) }));
    }
    cluster.now_ms += 60_000;
    cluster.state.now_ms = cluster.now_ms;
    let index = cluster.state.index;
    let gone = |found: &[(&TaskId, &str)], unanswered: &[&str]| -> Vec<TaskId> {
        let gone = gone(&cluster.state, &node, &report(index, &network, found, unanswered));
        gone.into_iter().map(|(id, _)| id).collect()
    };
    let all = |ids: &[&TaskId]| {
        let mut ids: Vec<TaskId> = ids.iter().copied().cloned().collect();
        ids.sort();
        ids
    };
    assert_eq!(gone(&[], &[]), all(&[&first, &second, &created]));
    assert_eq!(gone(&[], &["first"]), all(&[&second, &created]));
    assert_eq!(gone(&[(&second, "second")], &["first"]), all(&[&created]));
    assert_eq!(gone(&[], &["first", "another"]), all(&[&second]), "the other one may be the one without a name");
    assert_eq!(gone(&[(&created, "third")], &["another"]), all(&[&first, &second]));
}
