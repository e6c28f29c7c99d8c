//! Services: names, ports, addresses, versions and removal.

use weft_model::{
    Command, MAX_NETWORKS_PER_SERVICE, Rejection, ServiceId,
    command::InitCluster,
    spec::{EndpointMode, NodeNetwork, PortSpec, Protocol, Role, ServiceMode, ServiceSpec},
    state::{TaskState, UpdateState, UpdateStatus},
};

use super::{check_refused, refusal};
use crate::fixture::{TestCluster, network_spec, parse, service_spec, subnet_spec, tcp};

fn with_ports(name: &str, ports: &[PortSpec]) -> ServiceSpec {
    let mut spec = service_spec(name, 1, &[]);
    spec.endpoint.ports = ports.to_vec();
    spec
}

fn published(cluster: &TestCluster, service: &ServiceId) -> Vec<u16> {
    cluster.state.services[service].ports.iter().map(|p| p.published).collect()
}

#[test]
fn names_are_unique_regardless_of_case_and_free_after_removal() {
    let mut cluster = TestCluster::new();
    let web = cluster.add_service(service_spec("web", 1, &[]));
    assert_eq!(
        refusal(cluster.service(service_spec("Web", 1, &[]))),
        format!("service name Web is in use by {web}: choose another or remove that one")
    );
    cluster.ok(Command::RemoveService { id: web.clone() });
    cluster.add_service(service_spec("web", 1, &[]));
    check_refused(&mut cluster, Command::RemoveService { id: web.clone() }, &format!("no such service: {web}"));
    assert_eq!(refusal(cluster.update(&web, |_| {})), format!("no such service: {web}"));
}

#[test]
fn a_port_belongs_to_one_service() {
    let mut cluster = TestCluster::new();
    let web = cluster.add_service(with_ports("web", &[tcp(Some(8080), 80)]));
    let other = with_ports("other", &[tcp(Some(8080), 90)]);
    assert_eq!(
        refusal(cluster.service(other.clone())),
        "port 8080/tcp is already published by service web: choose another port or remove that service"
    );
    cluster.add_service(with_ports("udp", &[PortSpec { protocol: Protocol::Udp, ..tcp(Some(8080), 80) }]));
    cluster.ok(Command::RemoveService { id: web });
    cluster.add_service(other);
}

#[test]
fn refuses_a_port_that_is_both_published_and_a_control_port() {
    let mut cluster = TestCluster::new();
    let mut join = cluster.joining("n2", Role::Worker);
    join.rpc_addr.set_port(12377);
    cluster.ok(Command::JoinNode(Box::new(join)));
    assert_eq!(
        refusal(cluster.service(with_ports("web", &[tcp(Some(12377), 80)]))),
        "port 12377/tcp is reserved for the cluster itself: choose another port"
    );
    cluster.add_service(with_ports("web", &[tcp(Some(12378), 80)]));
    let mut join = cluster.joining("n3", Role::Worker);
    join.rpc_addr.set_port(12378);
    check_refused(
        &mut cluster,
        Command::JoinNode(Box::new(join)),
        "service web publishes port 12378/tcp, which this node wants to listen on: join with another --listen-addr port",
    );
}

#[test]
fn refuses_ports_that_cannot_be_published() {
    let check = |ports: &[PortSpec], expected: &str| {
        assert_eq!(refusal(TestCluster::new().service(with_ports("web", ports))), expected);
    };
    let udp = |port| PortSpec { protocol: Protocol::Udp, ..tcp(Some(port), 80) };
    check(&[tcp(Some(2377), 80)], "port 2377/tcp is reserved for the cluster itself: choose another port");
    for port in [4789, 51820, 51821] {
        check(&[udp(port)], &format!("port {port}/udp is reserved for the cluster itself: choose another port"));
    }
    check(&[tcp(Some(80), 0)], "port 0 cannot be published: use 1 to 65535");
    check(&[tcp(Some(0), 80)], "port 0 cannot be published: use 1 to 65535");
    check(&[tcp(None, 0)], "port 0 cannot be published: use 1 to 65535");
    check(&[tcp(Some(80), 80), tcp(Some(80), 81)], "port 80/tcp is published twice: publish it once");
    TestCluster::new().add_service(with_ports("web", &[udp(2377), tcp(Some(4789), 80)]));
    let mut other = TestCluster::empty();
    let init = InitCluster { tunnel_port: 7789, ..other.init() };
    other.ok(Command::InitCluster(Box::new(init)));
    other.add_service(with_ports("web", &[udp(4789)]));
    assert_eq!(
        refusal(other.service(with_ports("api", &[udp(7789)]))),
        "port 7789/udp is reserved for the cluster itself: choose another port"
    );
}

#[test]
fn unspecified_ports_are_chosen_and_kept_by_updates() {
    let mut cluster = TestCluster::new();
    let a = cluster.add_service(with_ports("a", &[tcp(None, 80), tcp(Some(30000), 81)]));
    assert_eq!(published(&cluster, &a), [30001, 30000]);
    let b = cluster.add_service(with_ports("b", &[tcp(None, 80)]));
    assert_eq!(published(&cluster, &b), [30002]);
    cluster.update_service(&a, |spec| spec.endpoint.ports = vec![tcp(None, 90), tcp(None, 80)]);
    assert_eq!(published(&cluster, &a), [30000, 30001]);
}

#[test]
fn reports_that_no_dynamic_port_is_free() {
    let mut cluster = TestCluster::new();
    let all: Vec<_> = (30000..=32767).map(|port| tcp(Some(port), 80)).collect();
    cluster.add_service(with_ports("all", &all));
    let refused = refusal(cluster.service(with_ports("late", &[tcp(None, 80)])));
    assert_eq!(
        refused,
        "no free port left in 30000-32767: choose another port with --publish published=PORT,target=PORT"
    );
}

#[test]
fn a_dnsrr_service_has_no_vip_and_cannot_publish_ports() {
    let mut cluster = TestCluster::new();
    let network = cluster.add_network(network_spec("app"));
    let mut spec = service_spec("web", 1, &[&network]);
    spec.endpoint.mode = EndpointMode::Dnsrr;
    let id = cluster.add_service(spec.clone());
    assert_eq!(cluster.state.services[&id].endpoints[0].vip, None);
    spec.name = parse("other");
    spec.endpoint.ports.push(tcp(Some(80), 80));
    assert_eq!(
        refusal(cluster.service(spec)),
        "a service with endpoint mode dnsrr cannot publish ports: use endpoint mode vip, or publish none"
    );
}

#[test]
fn a_service_that_names_no_network_is_on_ingress_without_a_vip() {
    let mut cluster = TestCluster::new();
    let id = cluster.add_service(service_spec("web", 1, &[]));
    let endpoints = &cluster.state.services[&id].endpoints;
    assert_eq!(endpoints.len(), 1);
    assert!(cluster.state.networks[&endpoints[0].network].spec.ingress);
    assert_eq!(endpoints[0].vip, None);
}

#[test]
fn refuses_networks_that_one_service_cannot_be_on() {
    let mut cluster = TestCluster::new();
    let a = cluster.add_network(subnet_spec("a", "10.1.0.0/16"));
    let b = cluster.add_network(subnet_spec("b", "10.1.2.0/24"));
    let ingress = cluster.ingress().id.clone();
    let check = |cluster: &mut TestCluster, networks: &[_], expected: &str| {
        assert_eq!(refusal(cluster.service(service_spec("web", 1, networks))), expected);
    };
    check(&mut cluster, &[&a, &b], "networks a and b have overlapping subnets: one service cannot be on both");
    check(&mut cluster, &[&a, &a], "network a is listed twice: list it once");
    check(
        &mut cluster,
        &[&ingress],
        "network ingress cannot be chosen: services without a network option are attached to it",
    );
    cluster.ok(Command::RemoveNetwork { id: b.clone() });
    check(&mut cluster, &[&a, &b], &format!("no such network: {b}"));
}

#[test]
fn refuses_a_service_on_a_full_network() {
    let mut cluster = TestCluster::new();
    // The network has two addresses: the gateway and one VIP.
    let tiny = cluster.add_network(subnet_spec("tiny", "10.1.0.0/30"));
    cluster.add_service(service_spec("one", 1, &[&tiny]));
    assert_eq!(
        refusal(cluster.service(service_spec("two", 1, &[&tiny]))),
        "no address left in network tiny (10.1.0.0/30): remove services or use a larger subnet"
    );
}

#[test]
fn an_update_keeps_the_vips_of_networks_that_stay() {
    let mut cluster = TestCluster::new();
    let (a, b) = (cluster.add_network(network_spec("a")), cluster.add_network(network_spec("b")));
    let id = cluster.add_service(service_spec("web", 1, &[&a]));
    let before = cluster.state.services[&id].endpoints.clone();
    let both = service_spec("web", 1, &[&b, &a]);
    cluster.update_service(&id, |spec| *spec = both);
    let service = cluster.state.services[&id].clone();
    assert_eq!(service.endpoints.len(), 2);
    assert_eq!(service.endpoints[1], before[0]);
    assert_eq!(service.task_version, cluster.state.index);
    cluster.update_service(&id, |spec| spec.endpoint.mode = EndpointMode::Dnsrr);
    let dnsrr = &cluster.state.services[&id];
    assert!(dnsrr.endpoints.iter().all(|e| e.vip.is_none()));
    assert_eq!(dnsrr.endpoints[1].mesh, before[0].mesh);
    assert_eq!(cluster.state.allocated.quarantine.len(), 2);
    assert_eq!(dnsrr.task_version, service.task_version, "the endpoint mode is not part of the task spec");
}

#[test]
fn an_endpoint_is_removed_when_the_last_task_on_its_network_ends() {
    let mut cluster = TestCluster::new();
    let (a, b) = (cluster.add_network(network_spec("a")), cluster.add_network(network_spec("b")));
    let id = cluster.add_service(service_spec("web", 1, &[&a]));
    let node = cluster.first_node();
    let task = cluster.running_task(&id, 1, &node);
    cluster.update_service(&id, |spec| spec.task.networks[0].network = b.clone());
    let networks = |cluster: &TestCluster| -> Vec<_> {
        cluster.state.services[&id].endpoints.iter().map(|e| e.network.clone()).collect()
    };
    assert_eq!(networks(&cluster), [b.clone(), a.clone()]);
    check_refused(
        &mut cluster,
        Command::RemoveNetwork { id: a.clone() },
        "network a is in use by service web: remove that first",
    );
    cluster.observe(&task, TaskState::Failed);
    assert_eq!(networks(&cluster), [b]);
}

#[test]
fn refuses_to_change_the_name_or_the_mode_of_a_service() {
    let mut cluster = TestCluster::new();
    let id = cluster.add_service(service_spec("web", 1, &[]));
    assert_eq!(
        refusal(cluster.update(&id, |spec| spec.name = parse("other"))),
        "renaming services is not supported: create another and remove this one"
    );
    assert_eq!(
        refusal(cluster.update(&id, |spec| spec.mode = ServiceMode::Global)),
        "service mode change is not allowed: create another service"
    );
    let service = cluster.state.services[&id].clone();
    let update = Command::UpdateService { id, version: service.meta.version + 7, spec: Box::new(service.spec) };
    assert!(matches!(cluster.apply(update), Err(Rejection::OutOfSequence { .. })));
}

#[test]
fn refuses_specs_that_cannot_work() {
    let check = |change: fn(&mut ServiceSpec), expected: &str| {
        let mut spec = service_spec("web", 1, &[]);
        change(&mut spec);
        assert_eq!(refusal(TestCluster::new().service(spec)), expected);
    };
    check(
        |s| s.mode = ServiceMode::Replicated { replicas: 1_000_000 },
        "1000000 replicas are too many: use at most 60000",
    );
    check(
        |s| (s.task.restart.window_ms, s.task.restart.max_attempts) = (1, 1_001),
        "1001 restarts within a window are too many to count: use at most 1000, or no window",
    );
    check(|s| s.update.max_failure_permille = 1001, "the maximum failure ratio must be between 0 and 1");
    check(
        |s| s.task.container.hostname = Some("h-{{.Task.Age}}".to_owned()),
        "template {{.Task.Age}} is not known: use {{.Node.ID}}, {{.Node.Hostname}}, {{.Service.ID}}, \
         {{.Service.Name}}, {{.Task.ID}}, {{.Task.Name}}, {{.Task.Slot}}",
    );
}

#[test]
fn a_rollback_by_a_user_swaps_the_specs_and_an_automatic_one_forgets_the_failed_spec() {
    let mut cluster = TestCluster::new();
    let id = cluster.add_service(service_spec("web", 1, &[]));
    let roll_back = |cluster: &TestCluster, automatic: bool| Command::RollbackService {
        id: id.clone(),
        version: cluster.state.services[&id].meta.version,
        message: "asked".to_owned(),
        automatic,
    };
    let command = roll_back(&cluster, false);
    check_refused(&mut cluster, command, &format!("service {id} does not have a previous spec to roll back to"));
    cluster.update_service(&id, |spec| spec.task.force_update = 1);
    assert_eq!(cluster.state.services[&id].update, None);
    let command = roll_back(&cluster, false);
    cluster.ok(command);
    let service = &cluster.state.services[&id];
    assert_eq!(service.spec.task.force_update, 0);
    assert_eq!(service.previous.as_ref().expect("the previous spec").task.force_update, 1);
    let update = service.update.as_ref().expect("an update status");
    assert_eq!((update.state, update.message.as_str()), (UpdateState::RollbackStarted, "asked"));
    let command = roll_back(&cluster, true);
    cluster.ok(command);
    assert_eq!(cluster.state.services[&id].spec.task.force_update, 1);
    let command = roll_back(&cluster, false);
    check_refused(&mut cluster, command, &format!("service {id} does not have a previous spec to roll back to"));
}

#[test]
fn refuses_an_update_status_of_an_older_spec() {
    let mut cluster = TestCluster::new();
    let id = cluster.add_service(service_spec("web", 1, &[]));
    let seen = cluster.state.services[&id].meta.version;
    cluster.update_service(&id, |spec| spec.task.force_update = 1);
    let message = "update completed".to_owned();
    let status = UpdateStatus { state: UpdateState::Completed, started_ms: 0, completed_ms: Some(1), message };
    let command = |version| Command::SetUpdateStatus { service: id.clone(), version, status: status.clone() };
    let refused = cluster.apply(command(seen)).expect_err("the version is outdated");
    assert!(matches!(refused, Rejection::OutOfSequence { given, .. } if given == seen), "{refused}");
    assert_eq!(cluster.state.services[&id].update, None);
    let now = cluster.state.services[&id].meta.version;
    cluster.ok(command(now));
    assert_eq!(cluster.state.services[&id].update.as_ref(), Some(&status));
}

#[test]
fn refuses_more_networks_than_the_data_plane_can_store() {
    let mut cluster = TestCluster::new();
    let names: Vec<String> = (0..=MAX_NETWORKS_PER_SERVICE).map(|n| format!("net{n}")).collect();
    let networks: Vec<_> = names.iter().map(|name| cluster.add_network(network_spec(name))).collect();
    let refs: Vec<_> = networks.iter().collect();
    cluster.add_service(service_spec("fits", 1, &refs[..MAX_NETWORKS_PER_SERVICE]));
    let refused = cluster.service(service_spec("many", 1, &refs)).expect_err("too many networks");
    assert_eq!(refused.to_string(), "a service can be on 8 networks at most, and this one lists 9");
}

#[test]
fn a_service_is_deleted_only_after_its_tasks() {
    let mut cluster = TestCluster::new();
    let id = cluster.add_service(service_spec("web", 1, &[]));
    let task = cluster.task(&id, 1);
    let forget = Command::ForgetService { id: id.clone() };
    check_refused(&mut cluster, forget.clone(), &format!("service {id} was not removed"));
    cluster.ok(Command::RemoveService { id: id.clone() });
    check_refused(&mut cluster, forget.clone(), &format!("service {id} is in use by task {task}: remove that first"));
    cluster.ok(Command::ForgetTask { id: task });
    cluster.ok(forget);
}

#[test]
fn a_service_on_a_network_of_the_nodes_gets_nothing_of_the_cluster() {
    for network in NodeNetwork::ALL {
        let mut cluster = TestCluster::new();
        let node = cluster.first_node();
        let ingress = cluster.state.networks.keys().next().expect("the ingress network").clone();
        // It needs no ingress network.
        cluster.ok(Command::RemoveNetwork { id: ingress });
        let allocated = cluster.state.allocated.clone();
        let mut spec = service_spec("local", 1, &[]);
        spec.task.node_network = Some(network);
        let service = cluster.add_service(spec);
        let task = cluster.running_task(&service, 1, &node);
        assert!(cluster.state.services[&service].endpoints.is_empty());
        assert!(cluster.state.tasks[&task].attachments.is_empty());
        assert_eq!(cluster.state.allocated, allocated);
    }
}

#[test]
fn a_service_moves_between_a_network_of_the_nodes_and_one_of_the_cluster() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    let app = cluster.add_network(network_spec("app"));
    let service = cluster.add_service(service_spec("web", 1, &[&app]));
    let old = cluster.running_task(&service, 1, &node);
    cluster.update_service(&service, |spec| {
        spec.task.networks.clear();
        spec.task.node_network = Some(NodeNetwork::Host);
    });
    let networks = |cluster: &TestCluster| -> Vec<_> {
        cluster.state.services[&service].endpoints.iter().map(|endpoint| endpoint.network.clone()).collect()
    };
    assert_eq!(networks(&cluster), std::slice::from_ref(&app), "the old task is still on the network");
    cluster.observe(&old, TaskState::Complete);
    assert!(networks(&cluster).is_empty());
    cluster.update_service(&service, |spec| spec.task.node_network = None);
    assert_eq!(networks(&cluster).len(), 1, "the ingress network");
}

#[test]
fn refuses_what_a_task_on_a_network_of_its_node_cannot_have() {
    let mut cluster = TestCluster::new();
    let app = cluster.add_network(network_spec("app"));
    let mut spec = service_spec("web", 1, &[&app]);
    spec.task.node_network = Some(NodeNetwork::Host);
    assert_eq!(
        refusal(cluster.service(spec.clone())),
        "network host belongs to each node and cannot be combined with networks of the cluster: list it alone"
    );
    spec.task.networks.clear();
    spec.endpoint.ports = vec![tcp(None, 80)];
    assert_eq!(
        refusal(cluster.service(spec.clone())),
        "a service on network host cannot publish ports: leave the ports out, because its tasks listen on ports of \
         their nodes"
    );
    spec.task.node_network = Some(NodeNetwork::Bridge);
    assert_eq!(
        refusal(cluster.service(spec)),
        "a service on network bridge cannot publish ports: leave the ports out, or use a network of the cluster"
    );
}
