//! Reads one node's part out of the table: a pure function, and the only thing that nodes are told. Two equal tables give
//! equal plans; a plan changes only where the node has something to do.

pub(crate) mod template;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    ClusterState, MeshServiceId, NetworkId, NodeId, ServiceId, TaskId,
    plan::{
        AttachmentPlan, BackendPlan, EndpointPlan, ManagerPlan, NetworkPlan, NodePlan, PeerPlan, PortPlan, ServicePlan,
        TaskGoal, TaskPlan,
    },
    spec::{Labels, Protocol, Role},
    state::{Node, Service, Task, TaskState, Traffic},
};

/// What `node` must make true, or `None` where it is no member.
pub fn plan(state: &ClusterState, node: &NodeId) -> Option<NodePlan> {
    let cluster = state.cluster.as_ref()?;
    let node = state.nodes.get(node)?;
    let live = live_tasks(state);
    let services = services(state, node, &live);
    Some(NodePlan {
        generation: state.index,
        cluster: cluster.id.clone(),
        node: node.id.clone(),
        hostname: node.hostname.clone(),
        role: role(node),
        addr: node.addr,
        managers: managers(state),
        heartbeat_ms: cluster.spec.heartbeat_ms,
        peers: peers(state, node),
        networks: networks(state),
        ports: ports(state, &services),
        services,
        endpoints: endpoints(state),
        tasks: tasks(state, node),
    })
}

/// A demoted manager keeps its part until the others have taken its seat away.
fn role(node: &Node) -> Role {
    if node.in_raft_config { Role::Manager } else { node.spec.role }
}

/// The tasks of each service that hold addresses.
fn live_tasks(state: &ClusterState) -> BTreeMap<&ServiceId, Vec<&Task>> {
    let mut live = BTreeMap::<_, Vec<_>>::new();
    for task in state.tasks.values().filter(|t| t.holds_addresses()) {
        live.entry(&task.service).or_default().push(task);
    }
    live
}

fn managers(state: &ClusterState) -> Vec<ManagerPlan> {
    let managers = state.nodes.values().filter(|n| n.is_manager());
    managers.map(|n| ManagerPlan { node: n.id.clone(), rpc_addr: n.rpc_addr }).collect()
}

/// A node that joined anew leaves its former self behind, at the same address: that one is no peer.
fn peers(state: &ClusterState, node: &Node) -> Vec<PeerPlan> {
    let others = state.nodes.values().filter(|n| n.id != node.id && n.addr != node.addr);
    others.map(|n| PeerPlan { node: n.id.clone(), addr: n.addr }).collect()
}

fn networks(state: &ClusterState) -> Vec<NetworkPlan> {
    let networks = state.networks.values();
    networks
        .map(|n| NetworkPlan {
            id: n.id.clone(),
            name: n.spec.name.clone(),
            vni: n.vni,
            subnets: n.subnets,
            ipv6: n.spec.ipv6,
            internal: n.spec.internal,
            ingress: n.ingress,
        })
        .collect()
}

fn services(state: &ClusterState, node: &Node, live: &BTreeMap<&ServiceId, Vec<&Task>>) -> Vec<ServicePlan> {
    let mut services = Vec::new();
    for service in state.services.values() {
        let tasks = live.get(&service.id).map_or(&[][..], Vec::as_slice);
        let attachments = &service.spec.task.networks;
        for endpoint in &service.endpoints {
            let aliases = attachments.iter().find(|a| a.network == endpoint.network).map(|a| a.aliases.clone());
            services.push(ServicePlan {
                mesh: endpoint.mesh,
                service: service.id.clone(),
                name: service.spec.name.clone(),
                aliases: aliases.unwrap_or_default(),
                network: endpoint.network.clone(),
                vip: endpoint.vip,
                removing: service.removing,
                backends: backends(tasks, &endpoint.network, node),
            });
        }
    }
    services.sort_by_key(|s| s.mesh);
    services
}

fn backends(tasks: &[&Task], network: &NetworkId, node: &Node) -> Vec<BackendPlan> {
    let mut backends = Vec::new();
    for task in tasks {
        let Some(home) = &task.node else { continue };
        let known = match task.traffic {
            Traffic::None => false,
            Traffic::Local => *home == node.id,
            Traffic::Active | Traffic::Draining | Traffic::Drained => true,
        };
        let attachments = task.attachments.iter().filter(|a| known && a.network == *network);
        backends.extend(attachments.map(|a| BackendPlan {
            id: a.backend,
            task: task.id.clone(),
            task_name: task.name.clone(),
            node: home.clone(),
            addr: a.addr,
            draining: task.traffic >= Traffic::Draining,
        }));
    }
    backends.sort_by_key(|b| b.id);
    backends
}

/// A service that is being removed keeps its ports for the flows that go on, unless another service has taken them.
fn ports(state: &ClusterState, plans: &[ServicePlan]) -> Vec<PortPlan> {
    let active: BTreeSet<MeshServiceId> =
        plans.iter().filter(|s| s.backends.iter().any(|b| !b.draining)).map(|s| s.mesh).collect();
    let mut ports = BTreeMap::<(u16, Protocol), PortPlan>::new();
    let (leaving, staying): (Vec<_>, Vec<_>) = state.services.values().partition(|s| s.removing);
    for service in leaving.into_iter().chain(staying) {
        let Some(mesh) = entrance(service, &active) else { continue };
        for port in &service.ports {
            let (published, protocol) = (port.published, port.spec.protocol);
            ports.insert((published, protocol), PortPlan { port: published, protocol, mesh, target: port.spec.target });
        }
    }
    ports.into_values().collect()
}

/// Where published ports lead: the network of eth0. While an update moves the service to other networks, wherever there
/// are backends.
fn entrance(service: &Service, active: &BTreeSet<MeshServiceId>) -> Option<MeshServiceId> {
    let meshes = || service.endpoints.iter().map(|e| e.mesh);
    meshes().find(|mesh| active.contains(mesh)).or_else(|| meshes().next())
}

fn endpoints(state: &ClusterState) -> Vec<EndpointPlan> {
    let mut endpoints = Vec::new();
    for task in state.tasks.values().filter(|t| t.holds_addresses()) {
        let Some(node) = &task.node else { continue };
        endpoints.extend(task.attachments.iter().map(|a| EndpointPlan {
            network: a.network.clone(),
            task: task.id.clone(),
            node: node.clone(),
            addr: a.addr,
            mac: a.mac,
        }));
    }
    endpoints
}

/// Ended tasks stay as long as they are in the history: what is left of them holds their logs.
fn tasks(state: &ClusterState, node: &Node) -> Vec<TaskPlan> {
    let placed = state.tasks_on(&node.id).filter(|t| t.status.state >= TaskState::Assigned);
    placed.filter_map(|t| Some(task(state, node, state.services.get(&t.service)?, t))).collect()
}

fn task(state: &ClusterState, node: &Node, service: &Service, task: &Task) -> TaskPlan {
    let values = template::Values::of(node, service, task);
    let mut container = task.spec.container.clone();
    container.hostname = container.hostname.map(|text| template::expand(&text, &values));
    for variable in &mut container.env {
        *variable = template::expand(variable, &values);
    }
    let attachments = task.attachments.iter().filter_map(|a| {
        let network = state.networks.get(&a.network)?;
        Some(AttachmentPlan {
            network: a.network.clone(),
            vni: network.vni,
            subnets: network.subnets,
            addr: a.addr,
            mac: a.mac,
        })
    });
    TaskPlan {
        id: task.id.clone(),
        service: service.id.clone(),
        service_name: service.spec.name.clone(),
        name: task.name.clone(),
        container,
        resources: task.spec.resources,
        labels: labels(&node.id, service, &task.id, &task.name),
        attachments: attachments.collect(),
        desired: goal(task),
    }
}

fn goal(task: &Task) -> TaskGoal {
    if task.status.state.is_terminal() || task.must_stop() {
        TaskGoal::Stop
    } else if task.desired < TaskState::Running {
        TaskGoal::Ready
    } else {
        TaskGoal::Run
    }
}

/// Labels that tools look for, under Swarm's keys.
fn labels(node: &NodeId, service: &Service, task: &TaskId, task_name: &str) -> Labels {
    let labels = [
        ("task", String::new()),
        ("task.id", task.to_string()),
        ("task.name", task_name.to_owned()),
        ("node.id", node.to_string()),
        ("service.id", service.id.to_string()),
        ("service.name", service.spec.name.to_string()),
    ];
    labels.into_iter().map(|(key, value)| (format!("com.docker.swarm.{key}"), value)).collect()
}
