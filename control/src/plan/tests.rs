//! What a node is told, and when.

use weft_model::{
    Command, NodeId, NodePlan, ServiceId, TaskId,
    plan::TaskGoal,
    spec::EndpointMode,
    state::{TaskState, Traffic},
};

use super::plan;
use crate::fixture::{TestCluster, network_spec, service_spec, tcp};

/// A service with a published port, and a running task of it on `n1`, seen from there and from `n2`.
struct Cluster {
    cluster: TestCluster,
    home: NodeId,
    other: NodeId,
    service: ServiceId,
    task: TaskId,
}

fn cluster() -> Cluster {
    let mut cluster = TestCluster::new();
    let (home, other) = (cluster.first_node(), cluster.node("n2", &[]));
    let network = cluster.network(network_spec("app")).unwrap();
    let mut spec = service_spec("web", 1, &[&network]);
    spec.endpoint.ports.push(tcp(Some(8080), 80));
    spec.task.networks[0].aliases.push("www".to_owned());
    spec.task.container.hostname = Some("{{.Service.Name}}-{{ .Task.Slot }}-{{.Node.Hostname}}".to_owned());
    spec.task.container.env.push("ID={{.Task.ID}}".to_owned());
    let service = cluster.service(spec).unwrap();
    let task = cluster.running_task(&service, 1, &home);
    Cluster { cluster, home, other, service, task }
}

impl Cluster {
    fn at_home(&self) -> NodePlan {
        plan(&self.cluster.state, &self.home).unwrap()
    }

    fn elsewhere(&self) -> NodePlan {
        plan(&self.cluster.state, &self.other).unwrap()
    }

    fn traffic(&mut self, traffic: Traffic) {
        self.cluster.ok(Command::SetTraffic { id: self.task.clone(), traffic });
    }

    fn desire(&mut self, desired: TaskState) {
        self.cluster.ok(Command::SetDesired { id: self.task.clone(), desired });
    }

    fn goal(&self) -> TaskGoal {
        self.at_home().tasks[0].desired
    }
}

/// Whether each of the service's backends drains.
fn backends(plan: &NodePlan) -> Vec<bool> {
    plan.services[0].backends.iter().map(|b| b.draining).collect()
}

#[test]
fn a_task_appears_at_home_first_then_everywhere_then_drains() {
    let mut cluster = cluster();
    let steps = [
        (Traffic::None, vec![], vec![]),
        (Traffic::Local, vec![false], vec![]),
        (Traffic::Active, vec![false], vec![false]),
        (Traffic::Draining, vec![true], vec![true]),
        (Traffic::Drained, vec![true], vec![true]),
    ];
    for (traffic, at_home, elsewhere) in steps {
        cluster.traffic(traffic);
        assert_eq!(backends(&cluster.at_home()), at_home, "{traffic:?}");
        assert_eq!(backends(&cluster.elsewhere()), elsewhere, "{traffic:?}");
        assert_eq!(cluster.elsewhere().endpoints.len(), 1);
    }
    cluster.desire(TaskState::Shutdown);
    cluster.cluster.observe(&cluster.task.clone(), TaskState::Shutdown);
    assert_eq!(backends(&cluster.elsewhere()), Vec::<bool>::new());
    assert!(cluster.elsewhere().endpoints.is_empty());
}

#[test]
fn a_task_runs_on_until_it_has_drained() {
    let mut cluster = cluster();
    cluster.traffic(Traffic::Active);
    assert_eq!(cluster.goal(), TaskGoal::Run);
    cluster.desire(TaskState::Shutdown);
    assert_eq!(cluster.goal(), TaskGoal::Run);
    cluster.traffic(Traffic::Draining);
    assert_eq!(cluster.goal(), TaskGoal::Run);
    cluster.traffic(Traffic::Drained);
    assert_eq!(cluster.goal(), TaskGoal::Stop);
}

#[test]
fn a_task_that_took_no_traffic_stops_at_once() {
    let mut cluster = cluster();
    cluster.desire(TaskState::Remove);
    assert_eq!(cluster.goal(), TaskGoal::Stop);
}

#[test]
fn an_ended_task_stays_until_it_is_forgotten() {
    let mut cluster = cluster();
    let task = cluster.task.clone();
    cluster.cluster.observe(&task, TaskState::Failed);
    assert_eq!(cluster.goal(), TaskGoal::Stop);
    assert!(cluster.at_home().tasks[0].attachments.is_empty());
    cluster.cluster.ok(Command::ForgetTask { id: task });
    assert!(cluster.at_home().tasks.is_empty());
}

#[test]
fn a_held_task_is_prepared_only() {
    let mut cluster = cluster();
    let id = TaskId::from_random(cluster.cluster.random());
    cluster.cluster.ok(Command::CreateTask {
        id: id.clone(),
        service: cluster.service.clone(),
        slot: weft_model::state::Slot::Replica(2),
        desired: TaskState::Ready,
        not_before_ms: 0,
        attempts: 0,
    });
    assert_eq!(cluster.at_home().tasks.len(), 1, "it has no node yet");
    cluster.cluster.ok(Command::AssignTask { id: id.clone(), node: cluster.home.clone() });
    let goal = |cluster: &Cluster| cluster.at_home().tasks.iter().find(|t| t.id == id).unwrap().desired;
    assert_eq!(goal(&cluster), TaskGoal::Ready);
    cluster.cluster.ok(Command::SetDesired { id: id.clone(), desired: TaskState::Running });
    assert_eq!(goal(&cluster), TaskGoal::Run);
}

#[test]
fn a_task_plan_is_ready_to_run() {
    let cluster = cluster();
    let plan = cluster.at_home();
    let task = &plan.tasks[0];
    assert_eq!(task.container.hostname.as_deref(), Some("web-1-n1"));
    assert_eq!(task.container.env, [format!("ID={}", cluster.task)]);
    assert_eq!(task.name, format!("web.1.{}", cluster.task));
    assert_eq!(task.labels["com.docker.swarm.service.name"], "web");
    assert_eq!(task.labels["com.docker.swarm.task.id"], cluster.task.to_string());
    let network = cluster.cluster.state.network_by_name("app").unwrap();
    assert_eq!((task.attachments[0].vni, task.attachments[0].subnets), (network.vni, network.subnets));
    assert!(cluster.elsewhere().tasks.is_empty());
}

#[test]
fn a_plan_knows_the_cluster() {
    let cluster = cluster();
    let plan = cluster.at_home();
    assert_eq!(plan.generation, cluster.cluster.state.index);
    assert_eq!(plan.peers.iter().map(|p| &p.node).collect::<Vec<_>>(), [&cluster.other]);
    assert_eq!(plan.managers.iter().map(|m| &m.node).collect::<Vec<_>>(), [&cluster.home]);
    assert_eq!(plan.networks.len(), 2);
    assert_eq!(plan.services[0].aliases, ["www"]);
    assert!(super::plan(&cluster.cluster.state, &NodeId::from_random(0)).is_none());
}

#[test]
fn a_former_self_is_no_peer() {
    let mut cluster = cluster();
    let mut again = cluster.cluster.joining("n2", weft_model::spec::Role::Worker);
    again.addr = cluster.cluster.state.nodes[&cluster.other].addr;
    let id = again.id.clone();
    cluster.cluster.ok(Command::JoinNode(Box::new(again)));
    let plan = plan(&cluster.cluster.state, &id).unwrap();
    assert_eq!(plan.peers.iter().map(|p| &p.node).collect::<Vec<_>>(), [&cluster.home]);
}

#[test]
fn a_removed_service_keeps_its_port_until_another_takes_it() {
    let mut cluster = cluster();
    cluster.traffic(Traffic::Active);
    let old = cluster.at_home().services[0].mesh;
    cluster.cluster.ok(Command::RemoveService { id: cluster.service.clone() });
    let plan = cluster.at_home();
    assert!(plan.services[0].removing);
    assert_eq!(plan.ports.iter().map(|p| (p.port, p.mesh)).collect::<Vec<_>>(), [(8080, old)]);
    let mut spec = service_spec("next", 1, &[]);
    spec.endpoint.ports.push(tcp(Some(8080), 90));
    cluster.cluster.service(spec).unwrap();
    let ports = cluster.elsewhere().ports;
    assert_eq!(ports.iter().map(|p| (p.port, p.target)).collect::<Vec<_>>(), [(8080, 90)]);
    assert_ne!(ports[0].mesh, old);
}

#[test]
fn a_service_without_vip_has_backends_all_the_same() {
    let mut cluster = cluster();
    cluster.traffic(Traffic::Active);
    cluster
        .cluster
        .update(&cluster.service, |spec| {
            spec.endpoint.mode = EndpointMode::Dnsrr;
            spec.endpoint.ports.clear();
        })
        .unwrap();
    let plan = cluster.elsewhere();
    assert_eq!(plan.services[0].vip, None);
    assert_eq!(backends(&plan), [false]);
    assert!(plan.ports.is_empty());
}
