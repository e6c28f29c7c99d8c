//! The cluster itself, its join tokens and its nodes.

use ipnetwork::Ipv4Network;
use weft_model::{
    Applied, Command, Entry, NodeId, Rejection, ServiceId, TaskId, UnlockKey,
    command::{InitCluster, JoinNode},
    spec::{Availability, ClusterSpec, NodeSpec, Role},
    state::{ManagerLock, NodeStatus, RootRotation, TaskState},
};

use super::{check_refused, refusal};
use crate::{
    fixture::{START_MS, TestCluster, network_spec, parse, service_spec},
    state::apply,
};

#[test]
fn init_creates_a_voting_manager_and_the_ingress_network() {
    let cluster = TestCluster::new();
    let node = &cluster.state.nodes[&cluster.first_node()];
    assert!(node.voter && node.is_manager());
    assert_eq!(node.raft_id, 1);
    let ingress = cluster.ingress();
    assert!(ingress.spec.ingress);
    assert_eq!(ingress.subnets.v4[0].range.to_string(), "10.255.0.0/16");
    assert_eq!(ingress.subnets.v4[0].gateway.to_string(), "10.255.0.1");
}

#[test]
fn a_cluster_is_initialised_once_and_before_any_other_command() {
    let mut cluster = TestCluster::empty();
    let init = cluster.init();
    check_refused(
        &mut cluster,
        Command::RotateToken { role: Role::Worker, secret: String::new() },
        "no cluster yet: run `weft swarm init` or `weft swarm join`",
    );
    cluster.ok(Command::InitCluster(Box::new(init.clone())));
    check_refused(&mut cluster, Command::InitCluster(Box::new(init)), "this cluster is already initialised");
}

#[test]
fn refuses_settings_that_cannot_work() {
    let check = |change: fn(&mut ClusterSpec), expected: &str| {
        let mut cluster = TestCluster::new();
        let before = cluster.settings().clone();
        let mut spec = before.spec;
        change(&mut spec);
        check_refused(&mut cluster, Command::UpdateCluster { version: before.meta.version, spec }, expected);
    };
    let heartbeat = "the heartbeat period and the number of missed heartbeats must be greater than 0";
    check(|s| s.heartbeat_ms = 0, heartbeat);
    check(|s| s.heartbeat_misses = 0, heartbeat);
    check(|s| s.pools = vec![parse("10.1.0.0/8")], "address pool 10.1.0.0/8 has host bits set: use 10.0.0.0/8");
    check(|s| s.pool_prefix = 7, "address pool 10.0.0.0/8 cannot be cut into /7: use a mask length of 8 to 29");
    check(|s| s.pool_prefix = 30, "address pool 10.0.0.0/8 cannot be cut into /30: use a mask length of 8 to 29");
}

#[test]
fn refuses_a_tunnel_port_that_others_use() {
    for port in [1023, 49_152, 61_000] {
        let mut cluster = TestCluster::empty();
        let init = InitCluster { tunnel_port: port, ..cluster.init() };
        let refused = refusal(cluster.apply(Command::InitCluster(Box::new(init))));
        let text = "choose one from 1024 to 49151 (--data-path-port)";
        assert_eq!(refused, format!("the tunnels cannot use UDP port {port}: {text}"));
    }
}

#[test]
fn refuses_pools_that_overlap_or_are_too_many() {
    let check = |pools: Vec<Ipv4Network>, expected: &str| {
        let mut cluster = TestCluster::new();
        let version = cluster.settings().meta.version;
        let spec = ClusterSpec { pools, ..ClusterSpec::default() };
        check_refused(&mut cluster, Command::UpdateCluster { version, spec }, expected);
    };
    check(
        vec![parse("10.1.0.0/16"), parse("10.0.0.0/15")],
        "address pools 10.1.0.0/16 and 10.0.0.0/15 overlap: give only one of them",
    );
    check(vec![], "the cluster needs 1 to 64 address pools, and 0 are given");
}

#[test]
fn a_new_route_does_not_prevent_the_change_of_other_settings() {
    let mut cluster = TestCluster::new();
    cluster.node("n2", &["10.0.0.0/8"]);
    let before = cluster.settings().clone();
    let spec = ClusterSpec { task_history_limit: 1, ..before.spec };
    cluster.ok(Command::UpdateCluster { version: before.meta.version, spec });
}

#[test]
fn refuses_a_pool_inside_a_route() {
    let mut cluster = TestCluster::new();
    cluster.node("n2", &["172.16.0.0/12"]);
    let version = cluster.settings().meta.version;
    let spec = ClusterSpec { pools: vec![parse("172.20.0.0/16")], ..ClusterSpec::default() };
    check_refused(
        &mut cluster,
        Command::UpdateCluster { version, spec },
        "subnet 172.20.0.0/16 overlaps with route 172.16.0.0/12 on node n2: choose another subnet",
    );
}

#[test]
fn refuses_an_update_of_an_older_version() {
    let mut cluster = TestCluster::new();
    let before = cluster.settings().clone();
    let version = before.meta.version;
    cluster.ok(Command::RotateToken { role: Role::Worker, secret: "another".to_owned() });
    let current = cluster.state.index;
    check_refused(
        &mut cluster,
        Command::UpdateCluster { version, spec: before.spec },
        &format!(
            "update out of sequence: cluster {} is at version {current}, the request was for {version}; read it again and retry",
            before.id
        ),
    );
    assert_eq!(cluster.settings().worker_secret, "another");
}

#[test]
fn a_node_that_joins_again_with_its_id_keeps_its_raft_id() {
    let mut cluster = TestCluster::new();
    let join = cluster.joining("n2", Role::Manager);
    cluster.ok(Command::JoinNode(Box::new(join.clone())));
    let raft_id = cluster.state.nodes[&join.id].raft_id;
    let moved = JoinNode { addr: parse("192.0.2.77"), ..join.clone() };
    assert_eq!(cluster.ok(Command::JoinNode(Box::new(moved))), Applied::Node(join.id.clone()));
    let node = &cluster.state.nodes[&join.id];
    assert_eq!((node.raft_id, node.addr.to_string().as_str()), (raft_id, "192.0.2.77"));
}

#[test]
fn raft_ids_are_never_reused() {
    let mut cluster = TestCluster::new();
    let n2 = cluster.node("n2", &[]);
    assert_eq!(cluster.state.nodes[&n2].raft_id, 0, "a worker has none");
    let role = |cluster: &mut TestCluster, role| {
        let node = cluster.state.nodes[&n2].clone();
        let spec = NodeSpec { role, ..node.spec };
        cluster.ok(Command::UpdateNode { id: n2.clone(), version: node.meta.version, spec });
        cluster.state.nodes[&n2].raft_id
    };
    assert_eq!(role(&mut cluster, Role::Manager), 2);
    assert_eq!(role(&mut cluster, Role::Manager), 2, "only a promotion gives an id");
    assert_eq!(role(&mut cluster, Role::Worker), 2, "the Raft membership still contains the node");
    assert_eq!(role(&mut cluster, Role::Manager), 2, "the node has kept its log");
    role(&mut cluster, Role::Worker);
    cluster.ok(Command::ClearRaftConfig { id: n2.clone() });
    assert_eq!(cluster.state.nodes[&n2].raft_id, 0, "the id has ended");
    assert_eq!(role(&mut cluster, Role::Manager), 3);
    let join = cluster.joining("n3", Role::Manager);
    cluster.ok(Command::JoinNode(Box::new(join.clone())));
    assert_eq!(cluster.state.nodes[&join.id].raft_id, 4);
}

#[test]
fn a_manager_whose_log_is_lost_gets_another_raft_id_once() {
    let mut cluster = TestCluster::new();
    let n1 = cluster.first_node();
    let replace = Command::ReplaceRaftId { node: n1.clone(), raft_id: 1 };
    cluster.ok(replace.clone());
    let node = &cluster.state.nodes[&n1];
    assert_eq!((node.raft_id, node.voter, node.in_raft_config), (2, false, true));
    cluster.ok(replace);
    assert_eq!(cluster.state.nodes[&n1].raft_id, 2, "the call was sent twice");
    let n2 = cluster.node("n2", &[]);
    cluster.ok(Command::ReplaceRaftId { node: n2.clone(), raft_id: 0 });
    assert_eq!(cluster.state.nodes[&n2].raft_id, 0, "a worker has none");
}

/// Managers of the first release are replicas too: at their level all compute what they compute.
#[test]
fn at_feature_level_0_a_node_keeps_the_raft_id_of_its_join() {
    let mut cluster = TestCluster::new();
    cluster.state.feature_level = 0;
    let n2 = cluster.node("n2", &[]);
    for role in [Role::Manager, Role::Worker, Role::Manager] {
        let node = cluster.state.nodes[&n2].clone();
        let spec = NodeSpec { role, ..node.spec };
        cluster.ok(Command::UpdateNode { id: n2.clone(), version: node.meta.version, spec });
        cluster.ok(Command::ClearRaftConfig { id: n2.clone() });
        assert_eq!(cluster.state.nodes[&n2].raft_id, 2);
    }
}

#[test]
fn refuses_to_demote_the_last_manager_and_to_remove_a_manager() {
    let mut cluster = TestCluster::new();
    let id = cluster.first_node();
    let node = cluster.state.nodes[&id].clone();
    let mut spec = node.spec;
    spec.role = Role::Worker;
    check_refused(
        &mut cluster,
        Command::UpdateNode { id: id.clone(), version: node.meta.version, spec },
        &format!("attempting to demote the last manager of the swarm ({id}): promote another node first"),
    );
    check_refused(
        &mut cluster,
        Command::RemoveNode { id: id.clone(), force: true },
        &format!(
            "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before \
             removal (`weft node demote`)"
        ),
    );
}

#[test]
fn a_node_is_removed_when_it_is_down_or_by_force() {
    let mut cluster = TestCluster::new();
    let n2 = cluster.node("n2", &[]);
    let service = cluster.add_service(service_spec("web", 1, &[]));
    let task = cluster.running_task(&service, 1, &n2);
    check_refused(
        &mut cluster,
        Command::RemoveNode { id: n2.clone(), force: false },
        &format!("node {n2} is not down and can't be removed: stop it or let it leave first, or use --force"),
    );
    cluster.status(&n2, NodeStatus::Down);
    cluster.ok(Command::RemoveNode { id: n2.clone(), force: false });
    assert_eq!(cluster.state.tasks[&task].status.state, TaskState::Orphaned);
    check_refused(&mut cluster, Command::RemoveNode { id: n2.clone(), force: true }, &format!("no such node: {n2}"));
}

#[test]
fn accepts_one_node_update_for_each_version() {
    let mut cluster = TestCluster::new();
    let id = cluster.node("n2", &[]);
    let node = cluster.state.nodes[&id].clone();
    let mut spec = node.spec;
    spec.availability = Availability::Drain;
    let update = Command::UpdateNode { id: id.clone(), version: node.meta.version, spec };
    cluster.ok(update.clone());
    assert!(refusal(cluster.apply(update)).starts_with("update out of sequence: node"));
    assert_eq!(cluster.state.nodes[&id].spec.availability, Availability::Drain);
}

#[test]
fn a_batch_is_applied_completely_or_not_at_all() {
    let mut cluster = TestCluster::new();
    let service = ServiceId::from_random(cluster.random());
    let create = Command::CreateService { id: service.clone(), spec: Box::new(service_spec("web", 1, &[])) };
    let unknown = TaskId::from_random(cluster.random());
    let forget = Command::ForgetTask { id: unknown.clone() };
    check_refused(&mut cluster, Command::Batch(vec![create.clone(), forget]), &format!("no such task: {unknown}"));
    check_refused(&mut cluster, Command::Batch(vec![Command::Batch(vec![])]), "a batch cannot contain another batch");
    cluster.ok(Command::Batch(vec![create]));
    assert!(cluster.state.services.contains_key(&service));
}

#[test]
fn index_and_clock_never_decrease() {
    let mut cluster = TestCluster::new();
    let command = Command::RotateToken { role: Role::Worker, secret: "s".to_owned() };
    let index = cluster.state.index;
    apply(&mut cluster.state, index + 1, Entry { now_ms: START_MS - 1, command: command.clone() })
        .expect("an earlier time is accepted");
    assert_eq!((cluster.state.index, cluster.state.now_ms), (index + 1, START_MS));
    apply(&mut cluster.state, index, Entry { now_ms: START_MS + 1, command }).expect("an earlier index is accepted");
    assert_eq!((cluster.state.index, cluster.state.now_ms), (index + 1, START_MS + 1));
}

#[test]
fn an_unused_ingress_network_gets_a_subnet_that_overlaps_no_route() {
    let mut cluster = TestCluster::new();
    cluster.node("n2", &["10.255.0.0/24", "10.254.0.0/15"]);
    let ingress = cluster.ingress();
    assert_eq!(ingress.subnets.v4[0].range.to_string(), "10.253.0.0/16");
    cluster.add_service(service_spec("web", 1, &[]));
    cluster.node("n3", &["10.253.0.0/16"]);
    assert_eq!(cluster.ingress().subnets.v4[0].range.to_string(), "10.253.0.0/16");
}

#[test]
fn names_the_object_that_does_not_exist() {
    let mut cluster = TestCluster::new();
    let node = NodeId::from_random(9);
    let not_found = format!("no such node: {node}");
    let status = Command::SetNodeStatus { id: node.clone(), status: NodeStatus::Ready, message: String::new() };
    check_refused(&mut cluster, status, &not_found);
    check_refused(&mut cluster, Command::SetVoter { id: node.clone(), voter: true }, &not_found);
    check_refused(&mut cluster, Command::ReportTasks { node: node.clone(), tasks: Vec::new() }, &not_found);
    let description = Box::new(crate::fixture::description(&[]));
    check_refused(&mut cluster, Command::DescribeNode { node, description }, &not_found);
    let network = cluster.add_network(network_spec("app"));
    cluster.ok(Command::RemoveNetwork { id: network.clone() });
    check_refused(&mut cluster, Command::RemoveNetwork { id: network.clone() }, &format!("no such network: {network}"));
}

/// Begins to replace the CA by `new`.
fn rotate(cluster: &mut TestCluster, new: &str) -> Result<Applied, Rejection> {
    let (version, spec) = (cluster.settings().meta.version, cluster.settings().spec.clone());
    let rotation = RootRotation {
        ca_cert_pem: new.to_owned(),
        ca_key_sealed: new.as_bytes().to_vec(),
        cross_signed_pem: format!("cross-signed {new}"),
        worker_secret: format!("worker secret of {new}"),
        manager_secret: format!("manager secret of {new}"),
    };
    cluster.apply(Command::RotateRoot { version, spec, rotation: Box::new(rotation) })
}

fn set_rotated(cluster: &mut TestCluster, id: &NodeId, new: &str) {
    cluster.ok(Command::SetRotated { nodes: vec![id.clone()], ca_cert_pem: new.to_owned() });
}

#[test]
fn the_ca_is_replaced_when_every_node_uses_the_new_one() {
    let mut cluster = TestCluster::new();
    let (n1, n2, n3) = (cluster.first_node(), cluster.node("n2", &[]), cluster.node("n3", &[]));
    let old = cluster.settings().ca_cert_pem.clone();
    rotate(&mut cluster, "a").expect("the rotation begins");
    assert_eq!(cluster.settings().roots_pem(), format!("{old}a"));
    assert_eq!(cluster.settings().signing_ca(), ("a", &b"a"[..]));
    set_rotated(&mut cluster, &n1, "a");
    // A newer rotation starts again, and ignores nodes that use the CA before.
    rotate(&mut cluster, "b").expect("the rotation begins");
    set_rotated(&mut cluster, &n1, "a");
    assert!(!cluster.state.nodes[&n1].rotated);
    set_rotated(&mut cluster, &n1, "b");
    set_rotated(&mut cluster, &n2, "b");
    assert!(cluster.settings().root_rotation.is_some(), "n3 does not use the new CA");
    assert_eq!(cluster.settings().ca_cert_pem, old);
    let version = cluster.settings().meta.version;
    cluster.ok(Command::RemoveNode { id: n3, force: true });
    assert!(cluster.settings().root_rotation.is_some(), "the leader has not said that n1 and n2 still use it");
    cluster.ok(Command::SetRotated { nodes: Vec::new(), ca_cert_pem: "a".to_owned() });
    assert!(cluster.settings().root_rotation.is_some(), "it says so of another CA");
    cluster.ok(Command::SetRotated { nodes: Vec::new(), ca_cert_pem: "b".to_owned() });
    let settings = cluster.settings();
    assert_eq!((settings.ca_cert_pem.as_str(), settings.ca_key_sealed.as_slice()), ("b", &b"b"[..]));
    assert!(settings.root_rotation.is_none() && settings.meta.version > version);
    assert_eq!(
        (settings.worker_secret.as_str(), settings.manager_secret.as_str()),
        ("worker secret of b", "manager secret of b")
    );
    assert_eq!(settings.roots_pem(), "b");
    let again = refusal(rotate(&mut cluster, "b"));
    assert!(again.contains("current one"), "{again}");
}

#[test]
fn a_node_that_trusts_a_replaced_ca_does_not_become_a_member() {
    let mut cluster = TestCluster::empty();
    let init = InitCluster { ca_cert_pem: "former".to_owned(), ..cluster.init() };
    cluster.ok(Command::InitCluster(Box::new(init)));
    let n1 = cluster.first_node();
    let join = |cluster: &mut TestCluster, name: &str| {
        let join = JoinNode { ca_cert_pem: "former".to_owned(), ..cluster.joining(name, Role::Worker) };
        cluster.apply(Command::JoinNode(Box::new(join)))
    };
    rotate(&mut cluster, "new").expect("the rotation begins");
    join(&mut cluster, "n2").expect("tokens name the former CA until the end of the rotation");
    set_rotated(&mut cluster, &n1, "new");
    assert!(cluster.settings().root_rotation.is_some(), "it waits for n2");
    let n2 = cluster.node_named("n2").id.clone();
    set_rotated(&mut cluster, &n2, "new");
    assert_eq!(cluster.settings().ca_cert_pem, "new");
    let refused = refusal(join(&mut cluster, "n3"));
    assert!(refused.contains("weft swarm join-token"), "{refused}");
    assert_eq!(cluster.state.nodes.len(), 2);
}

#[test]
fn the_unlock_key_and_the_settings_change_together() {
    let mut cluster = TestCluster::new();
    assert_eq!(cluster.settings().lock, ManagerLock::default());
    let before = cluster.settings().clone();
    let spec = ClusterSpec { task_history_limit: 9, ..before.spec };
    let set = |version, key: Option<UnlockKey>| Command::SetUnlockKey { version, spec: spec.clone(), key };
    let key = UnlockKey([1; 32]);
    cluster.ok(set(before.meta.version, Some(key.clone())));
    let locked = cluster.settings().clone();
    assert_eq!(locked.lock, ManagerLock { key: Some(key), version: cluster.state.index });
    assert_eq!(locked.spec.task_history_limit, 9);
    let refused = refusal(cluster.apply(set(before.meta.version, None)));
    assert!(refused.contains("out of sequence"), "{refused}");
    assert_eq!(cluster.settings().lock, locked.lock);
    cluster.ok(set(locked.meta.version, None));
    assert_eq!(cluster.settings().lock, ManagerLock { key: None, version: cluster.state.index });

    let mut cluster = TestCluster::empty();
    let init = InitCluster { unlock_key: Some(UnlockKey([2; 32])), ..cluster.init() };
    cluster.ok(Command::InitCluster(Box::new(init)));
    assert_eq!(cluster.settings().lock, ManagerLock { key: Some(UnlockKey([2; 32])), version: cluster.state.index });
}
