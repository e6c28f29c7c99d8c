//! Which node the scheduler chooses, and why it refuses the others.

use std::collections::BTreeMap;

use weft_model::{
    Command, NodeId, ServiceId,
    report::NodeDescription,
    spec::{Availability, Constraint, NetworkSpec, NodeAttribute, NodeNetwork, Platform, ServiceSpec},
    state::{KeyStage, NodeStatus, TaskState},
    wireguard::{EncryptionSupport, NodeKey, PublicKey},
};

use super::{Load, place};
use crate::fixture::{TestCluster, description, network_spec, parse, service_spec};

/// Nodes n1 to n3, with `zone` labels a, a and b, and `disk=ssd` on n2.
fn cluster() -> TestCluster {
    let mut cluster = TestCluster::new();
    cluster.node("n2", &[]);
    cluster.node("n3", &[]);
    for (hostname, labels) in
        [("n1", &[("zone", "a")][..]), ("n2", &[("zone", "a"), ("disk", "ssd")]), ("n3", &[("zone", "b")])]
    {
        cluster.update_node(hostname, |spec| {
            spec.labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        });
    }
    cluster
}

fn node(cluster: &TestCluster, hostname: &str) -> NodeId {
    cluster.node_named(hostname).id.clone()
}

/// Creates a task in a slot of the service, places it, and returns the host name of its node.
fn choose(cluster: &mut TestCluster, service: &ServiceId, slot: u64) -> Result<String, String> {
    let id = cluster.task(service, slot);
    let placed = place(&cluster.state, &Load::of(&cluster.state), &cluster.state.tasks[&id]);
    placed.map(|node| {
        let hostname = cluster.state.nodes[&node].hostname.to_string();
        cluster.ok(Command::AssignTask { id, node, reuse: BTreeMap::new() });
        hostname
    })
}

/// Checks which nodes the tasks of this service get, one after the other.
fn check(cluster: &mut TestCluster, spec: ServiceSpec, expected: &[&str]) {
    let service = cluster.add_service(spec);
    let hosts: Vec<_> =
        (1..).take(expected.len()).map(|slot| choose(cluster, &service, slot).expect("a suitable node")).collect();
    assert_eq!(hosts, expected);
}

fn check_refused(cluster: &mut TestCluster, spec: ServiceSpec, expected: &str) {
    let service = cluster.add_service(spec);
    assert_eq!(choose(cluster, &service, 1), Err(expected.to_owned()));
}

fn constrained(name: &str, attribute: NodeAttribute, equal: bool, value: &str) -> ServiceSpec {
    let mut spec = service_spec(name, 1, &[]);
    spec.task.placement.constraints.push(Constraint { attribute, equal, value: value.to_owned() });
    spec
}

#[test]
fn tasks_are_spread_over_nodes() {
    let mut cluster = cluster();
    check(&mut cluster, service_spec("a", 1, &[]), &["n1", "n2", "n3", "n1"]);
    // n1 has the most tasks, but none of this service.
    check(&mut cluster, service_spec("b", 1, &[]), &["n2", "n3", "n1"]);
}

#[test]
fn constraints_restrict_the_nodes() {
    let mut cluster = cluster();
    let n3 = node(&cluster, "n3").to_string();
    let label = |key: &str| NodeAttribute::Label(key.to_owned());
    check(&mut cluster, constrained("a", label("disk"), true, "ssd"), &["n2", "n2"]);
    check(&mut cluster, constrained("b", label("zone"), false, "a"), &["n3", "n3"]);
    check(&mut cluster, constrained("c", NodeAttribute::Hostname, true, "n1"), &["n1"]);
    check(&mut cluster, constrained("d", NodeAttribute::Id, true, &n3), &["n3"]);
    check(&mut cluster, constrained("e", NodeAttribute::Role, true, "manager"), &["n1", "n1"]);
    check(&mut cluster, constrained("f", NodeAttribute::PlatformOs, true, "linux"), &["n2"]);
    check(&mut cluster, constrained("case1", label("disk"), true, "SSD"), &["n2"]);
    check(&mut cluster, constrained("case2", label("zone"), false, "A"), &["n3"]);
    check(&mut cluster, constrained("case3", NodeAttribute::Role, true, "Manager"), &["n1"]);
    cluster.update_node("n3", |spec| drop(spec.labels.insert("os".into(), "Ubuntu 14.04".into())));
    check(&mut cluster, constrained("blank", label("os"), true, "ubuntu 14.04"), &["n3"]);
    let addr = |cluster: &TestCluster, hostname| cluster.node_named(hostname).addr.to_string();
    let n2 = addr(&cluster, "n2");
    check(&mut cluster, constrained("ip1", NodeAttribute::Ip, true, &n2), &["n2"]);
    check(&mut cluster, constrained("ip2", NodeAttribute::Ip, true, &format!("{n2}/32")), &["n2"]);
    let mut but_n1 = constrained("ip3", NodeAttribute::Ip, false, &addr(&cluster, "n1"));
    but_n1
        .task
        .placement
        .constraints
        .extend(constrained("x", NodeAttribute::Hostname, false, "N2").task.placement.constraints.clone());
    check(&mut cluster, but_n1, &["n3"]);
    check_refused(
        &mut cluster,
        constrained("ip4", NodeAttribute::Ip, true, "203.0.113.0/24"),
        "no suitable node (scheduling constraints not satisfied on 3 nodes)",
    );
    let unsuitable = "no suitable node (scheduling constraints not satisfied on 3 nodes)";
    check_refused(&mut cluster, constrained("g", NodeAttribute::PlatformArch, true, "s390x"), unsuitable);
    check_refused(
        &mut cluster,
        constrained("h", NodeAttribute::EngineLabel("gpu".to_owned()), true, "yes"),
        unsuitable,
    );
}

#[test]
fn preferences_spread_tasks_over_values_before_nodes() {
    let mut cluster = cluster();
    let mut spec = service_spec("a", 1, &[]);
    spec.task.placement.spread.push(NodeAttribute::Label("zone".to_owned()));
    // n3 is the only node in zone b, so it gets every second task.
    check(&mut cluster, spec, &["n1", "n3", "n2", "n3", "n1", "n3"]);
}

#[test]
fn nodes_without_the_preferred_label_are_one_branch() {
    let mut cluster = cluster();
    let mut spec = service_spec("a", 1, &[]);
    spec.task.placement.spread.push(NodeAttribute::Label("disk".to_owned()));
    check(&mut cluster, spec, &["n1", "n2", "n3", "n2"]);
}

#[test]
fn refuses_nodes_without_free_resources() {
    let mut cluster = cluster();
    let mut spec = service_spec("a", 1, &[]);
    spec.task.resources.reserve_memory_bytes = 5 << 30;
    check(&mut cluster, spec.clone(), &["n1", "n2", "n3"]);
    spec.name = parse("b");
    check_refused(&mut cluster, spec, "no suitable node (insufficient resources on 3 nodes)");
    let mut spec = service_spec("c", 1, &[]);
    spec.task.resources.reserve_nano_cpus = 4_000_000_001;
    check_refused(&mut cluster, spec, "no suitable node (insufficient resources on 3 nodes)");
}

#[test]
fn the_number_of_replicas_per_node_is_limited() {
    let mut cluster = cluster();
    let mut spec = service_spec("a", 1, &[]);
    spec.task.placement.max_replicas_per_node = 1;
    let service = cluster.add_service(spec);
    for slot in 1..=3 {
        choose(&mut cluster, &service, slot).expect("a suitable node");
    }
    let full = "no suitable node (max replicas per node limit reached on 3 nodes)";
    assert_eq!(choose(&mut cluster, &service, 4), Err(full.to_owned()));
    // The new task of a slot may be on the same node as the task that it replaces.
    assert_eq!(choose(&mut cluster, &service, 3), Ok("n3".to_owned()));
}

#[test]
fn nodes_that_are_not_available_get_no_tasks() {
    let mut cluster = cluster();
    cluster.update_node("n1", |spec| spec.availability = Availability::Drain);
    cluster.update_node("n2", |spec| spec.availability = Availability::Pause);
    let n3 = node(&cluster, "n3");
    check(&mut cluster, constrained("a", NodeAttribute::Hostname, false, "nobody"), &["n3"]);
    cluster.status(&n3, NodeStatus::Down);
    check_refused(
        &mut cluster,
        constrained("b", NodeAttribute::Hostname, true, "n1"),
        "no suitable node (3 nodes not available for new tasks)",
    );
    cluster.update_node("n2", |spec| spec.availability = Availability::Active);
    check_refused(
        &mut cluster,
        constrained("c", NodeAttribute::Hostname, true, "n1"),
        "no suitable node (2 nodes not available for new tasks; scheduling constraints not satisfied on 1 node)",
    );
}

#[test]
fn a_node_smaller_than_the_reservation_gets_no_task() {
    let mut cluster = cluster();
    let id = node(&cluster, "n1");
    let mut tiny = description(&[]);
    tiny.memory_bytes = 1;
    cluster.ok(Command::DescribeNode { node: id, description: Box::new(tiny) });
    let mut spec = service_spec("a", 1, &[]);
    spec.task.resources.reserve_memory_bytes = 1 << 20;
    check(&mut cluster, spec, &["n2", "n3"]);
}

#[test]
fn a_node_where_the_service_keeps_failing_comes_last() {
    let mut cluster = cluster();
    let service = cluster.add_service(service_spec("a", 1, &[]));
    let n1 = node(&cluster, "n1");
    for _ in 0..5 {
        assert_eq!(choose(&mut cluster, &service, 1), Ok("n1".to_owned()));
        let task =
            cluster.state.tasks_on(&n1).find(|t| !t.status.state.is_terminal()).expect("the new task").id.clone();
        cluster.observe(&task, TaskState::Rejected);
    }
    assert_eq!(choose(&mut cluster, &service, 1), Ok("n2".to_owned()));
    cluster.now_ms += 300_000;
    assert_eq!(choose(&mut cluster, &service, 2), Ok("n1".to_owned()));
}

#[test]
fn a_task_on_an_encrypted_network_gets_a_node_with_an_active_key() {
    let mut cluster = cluster();
    let network = cluster.add_network(NetworkSpec { encrypted: true, ..network_spec("secret") });
    let machine = |reason: &str| {
        let encryption = EncryptionSupport::Unavailable(reason.to_owned());
        Box::new(NodeDescription { encryption, ..description(&[]) })
    };
    let (n1, n2) = (node(&cluster, "n1"), node(&cluster, "n2"));
    cluster.ok(Command::DescribeNode { node: n1, description: machine("no TUN device") });
    check_refused(
        &mut cluster,
        service_spec("early", 1, &[&network]),
        "no suitable node (no encryption on 1 node: no TUN device; encryption not ready yet on 2 nodes)",
    );
    let key = NodeKey { public_key: PublicKey([2; 32]), port: 51820 };
    cluster.ok(Command::ReportKeys { node: n2.clone(), keys: vec![key], acked: 0 });
    cluster.ok(Command::SetKeyStage { node: n2, key: key.public_key, stage: KeyStage::Active });
    check(&mut cluster, service_spec("secret", 3, &[&network]), &["n2", "n2", "n2"]);
    check(&mut cluster, service_spec("clear", 2, &[]), &["n1", "n3"]);
}

#[test]
fn a_node_must_be_of_a_platform_of_the_image() {
    let mut cluster = cluster();
    for (hostname, os, arch) in [("n1", "linux", "x86_64"), ("n2", "linux", "aarch64"), ("n3", "other", "riscv64")] {
        let (os, arch) = (os.to_owned(), arch.to_owned());
        let description = Box::new(NodeDescription { os, arch, ..description(&[]) });
        cluster.ok(Command::DescribeNode { node: node(&cluster, hostname), description });
    }
    let for_platforms = |name: &str, platforms: &[(&str, &str)]| {
        let mut spec = service_spec(name, 1, &[]);
        let platform = |(os, arch): &(&str, &str)| Platform { os: (*os).to_owned(), arch: (*arch).to_owned() };
        spec.task.placement.platforms = platforms.iter().map(platform).collect();
        spec
    };
    check(&mut cluster, for_platforms("a", &[]), &["n1", "n2", "n3"]);
    check(&mut cluster, for_platforms("b", &[("linux", "amd64")]), &["n1", "n1"]);
    check(&mut cluster, for_platforms("c", &[("linux", "arm64"), ("unknown", "unknown")]), &["n2", "n2"]);
    check(&mut cluster, for_platforms("d", &[("linux", "aarch64"), ("linux", "x86_64")]), &["n1", "n2"]);
    check(&mut cluster, for_platforms("e", &[("", "riscv64")]), &["n3"]);
    check(&mut cluster, for_platforms("f", &[("other", "")]), &["n3"]);
    check(&mut cluster, for_platforms("g", &[("", "")]), &["n3", "n1"]);
    let unsuitable = "no suitable node (unsupported platform on 3 nodes)";
    check_refused(&mut cluster, for_platforms("h", &[("linux", "s390x"), ("windows", "amd64")]), unsuitable);
    let mut spec = for_platforms("i", &[("linux", "arm64")]);
    spec.task.placement.constraints =
        vec![Constraint { attribute: NodeAttribute::Hostname, equal: true, value: "n1".to_owned() }];
    check_refused(
        &mut cluster,
        spec,
        "no suitable node (scheduling constraints not satisfied on 2 nodes; unsupported platform on 1 node)",
    );
}

#[test]
fn a_task_on_a_network_of_its_node_gets_a_node_that_has_this_network() {
    let mut cluster = cluster();
    let machine = |version: &str, runtime: &str| {
        let (version, runtime) = (version.to_owned(), runtime.to_owned());
        Box::new(NodeDescription { version, runtime, ..description(&[]) })
    };
    let (n2, n3) = (node(&cluster, "n2"), node(&cluster, "n3"));
    cluster.ok(Command::DescribeNode { node: n2.clone(), description: machine("0.2.0", "process") });
    let on = |name: &str, replicas: u64, network: NodeNetwork| {
        let mut spec = service_spec(name, replicas, &[]);
        spec.task.node_network = Some(network);
        spec
    };
    // n1 and n3 are of the first release, with the process runtime.
    check(&mut cluster, on("host", 2, NodeNetwork::Host), &["n2", "n2"]);
    check_refused(
        &mut cluster,
        on("early", 1, NodeNetwork::Bridge),
        "no suitable node (no network bridge on 2 nodes of an earlier release of weft; no network bridge on 1 node \
         without a container engine)",
    );
    cluster.ok(Command::DescribeNode { node: n3, description: machine("0.10.3", "docker") });
    check(&mut cluster, on("bridge", 2, NodeNetwork::Bridge), &["n3", "n3"]);
    check(&mut cluster, on("both", 2, NodeNetwork::Host), &["n2", "n3"]);
}

#[test]
fn a_task_with_secrets_gets_a_node_of_a_release_that_knows_them() {
    let mut cluster = cluster();
    let key = cluster.add_secret("key", "x");
    let with_secret = |name: &str, replicas: u64| {
        let mut spec = service_spec(name, replicas, &[]);
        spec.task.container.secrets = vec![key.clone()];
        spec
    };
    check_refused(
        &mut cluster,
        with_secret("early", 1),
        "no suitable node (no secrets and configs on 3 nodes of an earlier release of weft)",
    );
    let (id, description) = (node(&cluster, "n2"), NodeDescription { version: "0.2.0".to_owned(), ..description(&[]) });
    cluster.ok(Command::DescribeNode { node: id, description: Box::new(description) });
    check(&mut cluster, with_secret("web", 2), &["n2", "n2"]);
}
