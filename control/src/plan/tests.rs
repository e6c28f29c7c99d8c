//! What the plan of a node contains, and when.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Command, NodeId, NodePlan, ServiceId, TaskId,
    plan::TaskGoal,
    spec::{DependencyKind, DependencySpec, EndpointMode, FileData, NodeNetwork, RegistryAuth},
    state::{FEATURE_LEVEL, TaskState, Traffic},
};

use super::plan;
use crate::{
    codec,
    fixture::{TestCluster, dependency_spec, file_reference, network_spec, service_spec, tcp},
};

/// A cluster of the nodes `n1` and `n2`, and a service with a published port and a running task on
/// `n1`.
struct Cluster {
    cluster: TestCluster,
    /// The node that runs the task.
    own_node: NodeId,
    other_node: NodeId,
    service: ServiceId,
    task: TaskId,
}

fn cluster() -> Cluster {
    let mut cluster = TestCluster::new();
    let (own_node, other_node) = (cluster.first_node(), cluster.node("n2", &[]));
    let network = cluster.add_network(network_spec("app"));
    let mut spec = service_spec("web", 1, &[&network]);
    spec.endpoint.ports.push(tcp(Some(8080), 80));
    spec.task.networks[0].aliases.push("www".to_owned());
    spec.task.container.hostname = Some("{{.Service.Name}}-{{ .Task.Slot }}-{{.Node.Hostname}}".to_owned());
    spec.task.container.env.push("ID={{.Task.ID}}".to_owned());
    let service = cluster.add_service(spec);
    let task = cluster.running_task(&service, 1, &own_node);
    Cluster { cluster, own_node, other_node, service, task }
}

impl Cluster {
    fn own_plan(&self) -> NodePlan {
        plan(&self.cluster.state, &self.own_node).expect("the plan of n1")
    }

    fn other_plan(&self) -> NodePlan {
        plan(&self.cluster.state, &self.other_node).expect("the plan of n2")
    }

    fn set_traffic(&mut self, traffic: Traffic) {
        self.cluster.ok(Command::SetTraffic { id: self.task.clone(), traffic });
    }

    fn set_desired(&mut self, desired: TaskState) {
        self.cluster.ok(Command::SetDesired { id: self.task.clone(), desired });
    }

    fn goal(&self) -> TaskGoal {
        self.own_plan().tasks[0].desired
    }
}

/// For each backend of the first service, whether it drains.
fn backends(plan: &NodePlan) -> Vec<bool> {
    plan.services[0].backends.iter().map(|b| b.draining).collect()
}

#[test]
fn a_backend_appears_on_its_own_node_then_on_all_nodes_then_drains() {
    let mut cluster = cluster();
    let steps = [
        (Traffic::None, vec![], vec![]),
        (Traffic::Local, vec![false], vec![]),
        (Traffic::Active, vec![false], vec![false]),
        (Traffic::Draining, vec![true], vec![true]),
        (Traffic::Drained, vec![true], vec![true]),
    ];
    for (traffic, own, other) in steps {
        cluster.set_traffic(traffic);
        assert_eq!(backends(&cluster.own_plan()), own, "{traffic:?}");
        assert_eq!(backends(&cluster.other_plan()), other, "{traffic:?}");
        assert_eq!(cluster.other_plan().endpoints.len(), 1);
    }
    cluster.set_desired(TaskState::Shutdown);
    cluster.cluster.observe(&cluster.task.clone(), TaskState::Shutdown);
    assert_eq!(backends(&cluster.other_plan()), Vec::<bool>::new());
    assert!(cluster.other_plan().endpoints.is_empty());
}

#[test]
fn a_task_runs_until_it_has_drained() {
    let mut cluster = cluster();
    cluster.set_traffic(Traffic::Active);
    assert_eq!(cluster.goal(), TaskGoal::Run);
    cluster.set_desired(TaskState::Shutdown);
    assert_eq!(cluster.goal(), TaskGoal::Run);
    cluster.set_traffic(Traffic::Draining);
    assert_eq!(cluster.goal(), TaskGoal::Run);
    cluster.set_traffic(Traffic::Drained);
    assert_eq!(cluster.goal(), TaskGoal::Stop);
}

#[test]
fn a_task_that_took_no_traffic_stops_at_once() {
    let mut cluster = cluster();
    cluster.set_desired(TaskState::Remove);
    assert_eq!(cluster.goal(), TaskGoal::Stop);
}

#[test]
fn an_ended_task_stays_in_the_plan_until_it_is_deleted() {
    let mut cluster = cluster();
    let task = cluster.task.clone();
    cluster.cluster.observe(&task, TaskState::Failed);
    assert_eq!(cluster.goal(), TaskGoal::Stop);
    assert!(cluster.own_plan().tasks[0].attachments.is_empty());
    cluster.cluster.ok(Command::ForgetTask { id: task });
    assert!(cluster.own_plan().tasks.is_empty());
}

#[test]
fn a_held_task_is_prepared_but_not_started() {
    let mut cluster = cluster();
    let id = TaskId::from_random(cluster.cluster.random());
    cluster.cluster.ok(Command::CreateTask {
        id: id.clone(),
        service: cluster.service.clone(),
        slot: weft_model::state::Slot::Replica(2),
        desired: TaskState::Ready,
        not_before_ms: 0,
        restarts: weft_model::state::Restarts::default(),
    });
    assert_eq!(cluster.own_plan().tasks.len(), 1, "it has no node yet");
    cluster.cluster.ok(Command::AssignTask { id: id.clone(), node: cluster.own_node.clone(), reuse: BTreeMap::new() });
    let goal = |cluster: &Cluster| cluster.own_plan().tasks.iter().find(|t| t.id == id).expect("the held task").desired;
    assert_eq!(goal(&cluster), TaskGoal::Ready);
    cluster.cluster.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Running });
    assert_eq!(goal(&cluster), TaskGoal::Run);
}

#[test]
fn a_task_plan_contains_expanded_templates_and_networks() {
    let cluster = cluster();
    let plan = cluster.own_plan();
    let task = &plan.tasks[0];
    assert_eq!(task.hostname(), Some("web-1-n1"));
    assert!(task.env().eq([format!("ID={}", cluster.task)]));
    assert_eq!(task.name, format!("web.1.{}", cluster.task));
    assert_eq!(task.labels["com.docker.swarm.service.name"], "web");
    assert_eq!(task.labels["com.docker.swarm.task.id"], cluster.task.to_string());
    let network = cluster.cluster.state.network_by_name("app").expect("the network");
    assert_eq!((task.attachments[0].vni, &task.attachments[0].subnets), (network.vni, &network.subnets));
    assert!(cluster.other_plan().tasks.is_empty());
}

#[test]
fn a_plan_lists_peers_managers_and_networks() {
    let cluster = cluster();
    let plan = cluster.own_plan();
    assert_eq!(plan.generation, cluster.cluster.state.index);
    assert_eq!(plan.peers.iter().map(|p| &p.node).collect::<Vec<_>>(), [&cluster.other_node]);
    assert_eq!(plan.managers.iter().map(|m| &m.node).collect::<Vec<_>>(), [&cluster.own_node]);
    assert_eq!(plan.networks.len(), 2);
    assert_eq!(plan.services[0].aliases, ["www"]);
    assert!(super::plan(&cluster.cluster.state, &NodeId::from_random(0)).is_none());
}

#[test]
fn tunnels_end_at_the_address_that_the_node_has_chosen() {
    let mut cluster = cluster();
    let mut third = cluster.cluster.joining("n3", weft_model::spec::Role::Worker);
    third.tunnel_addr = [198, 51, 100, 3].into();
    let (id, tunnel_addr) = (third.id.clone(), third.tunnel_addr);
    cluster.cluster.ok(Command::JoinNode(Box::new(third)));
    let own = cluster.own_plan();
    assert_eq!(own.peers.iter().find(|peer| peer.node == id).map(|peer| peer.addr), Some(tunnel_addr));
    let plan = plan(&cluster.cluster.state, &id).expect("the plan of the new node");
    assert_eq!((plan.addr, plan.tunnel_port), (tunnel_addr, weft_model::DEFAULT_TUNNEL_PORT));
}

#[test]
fn the_former_node_of_a_machine_is_not_a_peer() {
    let mut cluster = cluster();
    let mut again = cluster.cluster.joining("n2", weft_model::spec::Role::Worker);
    let former = &cluster.cluster.state.nodes[&cluster.other_node];
    (again.addr, again.tunnel_addr) = (former.addr, former.tunnel_addr);
    let id = again.id.clone();
    cluster.cluster.ok(Command::JoinNode(Box::new(again)));
    let plan = plan(&cluster.cluster.state, &id).expect("the plan of the new node");
    assert_eq!(plan.peers.iter().map(|p| &p.node).collect::<Vec<_>>(), [&cluster.own_node]);
}

#[test]
fn a_removed_service_keeps_its_port_until_another_service_takes_it() {
    let mut cluster = cluster();
    cluster.set_traffic(Traffic::Active);
    let old = cluster.own_plan().services[0].mesh;
    cluster.cluster.ok(Command::RemoveService { id: cluster.service.clone() });
    let plan = cluster.own_plan();
    assert!(plan.services[0].removing);
    assert_eq!(plan.ports.iter().map(|p| (p.port, p.mesh)).collect::<Vec<_>>(), [(8080, old)]);
    let mut spec = service_spec("next", 1, &[]);
    spec.endpoint.ports.push(tcp(Some(8080), 90));
    cluster.cluster.add_service(spec);
    let ports = cluster.other_plan().ports;
    assert_eq!(ports.iter().map(|p| (p.port, p.target)).collect::<Vec<_>>(), [(8080, 90)]);
    assert_ne!(ports[0].mesh, old);
}

#[test]
fn a_service_without_vip_has_backends() {
    let mut cluster = cluster();
    cluster.set_traffic(Traffic::Active);
    cluster.cluster.update_service(&cluster.service, |spec| {
        spec.endpoint.mode = EndpointMode::Dnsrr;
        spec.endpoint.ports.clear();
    });
    let plan = cluster.other_plan();
    assert_eq!(plan.services[0].vip, None);
    assert_eq!(backends(&plan), [false]);
    assert!(plan.ports.is_empty());
}

/// With a copy of its container for each task, the plan would have 100 MB, and no message of the
/// node RPC can have more than 64 MiB.
#[test]
fn a_plan_has_the_large_container_of_many_tasks_once() {
    const TASKS: u64 = 100;
    const ENV_BYTES: usize = 1 << 20;
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    let mut spec = service_spec("web", TASKS, &[]);
    // A program cannot be started with a variable of more than 128 KiB (execve(2), MAX_ARG_STRLEN).
    spec.task.container.env = (0..16).map(|n| format!("LARGE{n}={}", "x".repeat(ENV_BYTES / 16))).collect();
    spec.task.container.env.push("SLOT={{.Task.Slot}}".to_owned());
    let service = cluster.add_service(spec);
    for slot in 1..=TASKS {
        cluster.running_task(&service, slot, &node);
    }
    let plan = plan(&cluster.state, &node).expect("a plan");
    assert_eq!(plan.tasks.len() as u64, TASKS);
    let bytes = codec::plan::encode(&plan, 1).expect("encoded");
    let for_each_task = bytes.len().checked_sub(ENV_BYTES).expect("the container") as u64 / TASKS;
    println!("{TASKS} tasks, {ENV_BYTES} bytes of variables: {} bytes, {for_each_task} for each task", bytes.len());
    assert!(for_each_task < 1_500, "{for_each_task} bytes for each task");
    let read = codec::plan::decode(&bytes).expect("decoded");
    assert_eq!(read, plan);
    let spec = &cluster.state.services[&service].spec.task.container;
    assert!(plan.tasks.iter().all(|task| task.container.is_same(spec)), "the manager has it once");
    assert!(read.tasks.iter().all(|task| task.container.is_same(&read.tasks[0].container)), "so has the node");
    let slots: BTreeSet<&str> = read.tasks.iter().filter_map(|task| task.env().last()).collect();
    assert_eq!(slots.len() as u64, TASKS, "each task has its own value of the template: {slots:?}");
}

#[test]
fn credentials_are_in_the_plan_of_the_tasks_node_until_it_has_the_image() {
    let mut cluster = cluster();
    let auth = RegistryAuth { username: "ann".to_owned(), password: "pa55word".to_owned(), ..RegistryAuth::default() };
    let service = cluster.service.clone();
    cluster.cluster.update_service(&service, |spec| spec.task.registry_auth = Some(auth.clone()));
    assert_eq!(cluster.own_plan().tasks[0].registry_auth, None, "this task has its image");
    let id = cluster.cluster.task(&service, 2);
    cluster.cluster.ok(Command::AssignTask { id: id.clone(), node: cluster.own_node.clone(), reuse: BTreeMap::new() });
    let of_task = |cluster: &Cluster| {
        let plan = cluster.own_plan();
        plan.tasks.iter().find(|t| t.id == id).expect("the task").registry_auth.clone()
    };
    assert_eq!(of_task(&cluster), Some(auth.clone()));
    cluster.cluster.observe(&id, TaskState::Preparing);
    assert_eq!(of_task(&cluster), Some(auth));
    assert!(!format!("{:?}", cluster.own_plan()).contains("pa55word"), "the debug text of a plan shows a password");
    let other = codec::plan::encode(&cluster.other_plan(), FEATURE_LEVEL).expect("encoded");
    assert!(!String::from_utf8_lossy(&other).contains("pa55word"), "a node that does not pull has the password");
    cluster.cluster.observe(&id, TaskState::Ready);
    assert_eq!(of_task(&cluster), None);
}

#[test]
fn a_task_on_a_network_of_its_node_is_only_in_the_list_of_tasks() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    let mut spec = service_spec("local", 1, &[]);
    spec.task.node_network = Some(NodeNetwork::Host);
    let service = cluster.add_service(spec);
    let task = cluster.running_task(&service, 1, &node);
    let planned = |cluster: &TestCluster| plan(&cluster.state, &node).expect("the plan of n1");
    let before = planned(&cluster);
    assert_eq!((before.tasks[0].node_network, before.tasks[0].has_run), (Some(NodeNetwork::Host), false));
    cluster.ok(Command::SetTraffic { id: task, traffic: Traffic::Local });
    let after = planned(&cluster);
    assert!(after.tasks[0].has_run && after.tasks[0].attachments.is_empty());
    assert!(after.services.is_empty() && after.endpoints.is_empty() && after.ports.is_empty());
    // A node of an earlier release would run it without a network.
    assert!(codec::plan::at_level(&after, 0).tasks.is_empty());
}

#[test]
fn secrets_are_in_the_plans_of_nodes_that_prepare_tasks_with_them() {
    let mut cluster = TestCluster::new();
    let (node, other) = (cluster.first_node(), cluster.node("n2", &[]));
    let (key, unused) = (cluster.add_secret("key", "hunter2"), cluster.add_secret("unused", "b"));
    let mut spec = service_spec("web", 2, &[]);
    spec.task.container.secrets = vec![key.clone()];
    let service = cluster.add_service(spec);
    let ids = |cluster: &TestCluster, node: &NodeId| -> Vec<_> {
        let plan = plan(&cluster.state, node).expect("a plan");
        plan.dependencies.into_iter().map(|found| (found.id, found.data.map(|data| data.0.clone()))).collect()
    };
    let task = cluster.task(&service, 1);
    assert_eq!(ids(&cluster, &node), [], "the task has no node");
    cluster.ok(Command::AssignTask { id: task.clone(), node: node.clone(), reuse: BTreeMap::new() });
    let expected = [(key.id.clone(), Some(b"hunter2".to_vec()))];
    assert_eq!(ids(&cluster, &node), expected);
    assert_eq!(ids(&cluster, &other), []);
    assert_ne!(unused.id, key.id);
    cluster.observe(&task, TaskState::Preparing);
    assert_eq!(ids(&cluster, &node), expected);
    cluster.observe(&task, TaskState::Ready);
    assert_eq!(ids(&cluster, &node), [], "the task has its files");
    let next = cluster.task(&service, 2);
    cluster.ok(Command::AssignTask { id: next.clone(), node: node.clone(), reuse: BTreeMap::new() });
    assert_eq!(ids(&cluster, &node), expected, "another task needs it");
    cluster.ok(Command::SetDesired { id: next, desired: TaskState::Shutdown });
    assert_eq!(ids(&cluster, &node), [], "and does not start");
}

#[test]
fn a_plan_for_the_disk_has_no_secret_and_no_template_of_one() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    let key = cluster.add_secret("key", "hunter2");
    let templated = DependencySpec {
        templated: true,
        ..dependency_spec(DependencyKind::Config, "conf", "slot={{.Task.Slot}} of {{ .Service.Name }}")
    };
    let conf = cluster.dependency(templated).expect("a config");
    let mut spec = service_spec("web", 1, &[]);
    spec.task.container.secrets = vec![key.clone()];
    spec.task.container.configs =
        vec![weft_model::spec::FileReference { id: conf.clone(), ..file_reference(0, "conf") }];
    let service = cluster.add_service(spec);
    let task = cluster.task(&service, 1);
    cluster.ok(Command::AssignTask { id: task, node: node.clone(), reuse: BTreeMap::new() });
    let sent = plan(&cluster.state, &node).expect("a plan");
    assert_eq!(sent.dependencies.iter().map(|found| &found.id).collect::<Vec<_>>(), [&key.id]);
    let expanded = Some(FileData(b"slot=1 of web".to_vec()).into());
    assert_eq!(sent.tasks[0].expanded.files, [(conf.clone(), expanded)].into());

    let stored = sent.without_data();
    assert_eq!((&stored.dependencies[0].data, &stored.tasks[0].expanded.files[&conf]), (&None, &None));
    let on_disk = codec::plan::encode(&stored, FEATURE_LEVEL).expect("encoded");
    let in_message = codec::plan::encode(&sent, FEATURE_LEVEL).expect("encoded");
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
    for text in ["hunter2", "slot=1 of web"] {
        assert_eq!((has(&in_message, text), has(&on_disk, text)), (true, false), "{text}");
    }
    assert_eq!(codec::plan::decode(&in_message).expect("decoded"), sent);
    assert!(!format!("{sent:?}").contains("104, 117, 110, 116"), "the debug text has no data");
}
