//! Computes the plan of one node from the cluster state: a pure function.
//!
//! The leader ([`crate::swarm`]) calls [`plan()`] for each node and streams the result to the
//! node's agent. A node gets no other information about the cluster.
//!
//! Callers rely on these properties: equal cluster states give equal plans, and the plan of a node
//! does not depend on the time. If a change of the cluster state does not concern the node, only
//! the generation of its plan changes.

pub(crate) mod template;
mod encryption;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    ClusterState, DependencyId, DualAddr, Mac, MeshServiceId, NetworkId, NodeId, ServiceId, Shared, TaskId,
    plan::{
        AttachedLink, AttachedName, AttachedPlan, AttachmentPlan, BackendPlan, DependencyPlan, EndpointPlan, Expanded,
        ManagerPlan, NetworkPlan, NodePlan, PeerPlan, PortPlan, ServicePlan, TaskGoal, TaskPlan,
    },
    spec::{ContainerSpec, FileData, Labels, Protocol, RegistryAuth, Role},
    state::{Dependency, Node, NodeStatus, Service, Task, TaskState, Traffic},
};

/// The plan of `node`. `None` if the node is not a member of the cluster.
pub fn plan(state: &ClusterState, node: &NodeId) -> Option<NodePlan> {
    let cluster = state.cluster.as_ref()?;
    let node = state.nodes.get(node)?;
    let live = live_tasks(state);
    let services = services(state, node, &live);
    let role = role(node);
    Some(NodePlan {
        generation: state.index,
        cluster: cluster.id.clone(),
        node: node.id.clone(),
        hostname: node.hostname.clone(),
        role,
        addr: node.tunnel_addr,
        tunnel_port: cluster.tunnel_port,
        managers: managers(state),
        heartbeat_ms: cluster.spec.heartbeat_ms,
        peers: peers(state, node),
        encryption: encryption::encryption(state, node),
        networks: networks(state),
        ports: ports(state, &services),
        services,
        endpoints: endpoints(state),
        tasks: tasks(state, node),
        epoch: state.epoch,
        feature_level: state.feature_level,
        raft_id: if role == Role::Manager { node.raft_id } else { 0 },
        roots_pem: cluster.roots_pem(),
        containers: Vec::new(),
        attached: attached(state, node),
        attached_names: attached_names(state),
        dependencies: dependencies(state, node),
    })
}

/// A demoted manager stays a manager until the Raft membership no longer contains it.
fn role(node: &Node) -> Role {
    if node.in_raft_config { Role::Manager } else { node.spec.role }
}

/// The tasks that have addresses, grouped by service.
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

/// All other nodes. When a machine leaves and joins again, its former node remains in the cluster
/// state with the same address. That former node is not a peer.
fn peers(state: &ClusterState, node: &Node) -> Vec<PeerPlan> {
    let others =
        state.nodes.values().filter(|n| n.id != node.id && n.addr != node.addr && n.tunnel_addr != node.tunnel_addr);
    others.map(|n| PeerPlan { node: n.id.clone(), addr: n.tunnel_addr }).collect()
}

fn networks(state: &ClusterState) -> Vec<NetworkPlan> {
    let networks = state.networks.values();
    networks
        .map(|n| NetworkPlan {
            id: n.id.clone(),
            name: n.spec.name.clone(),
            vni: n.vni,
            subnets: n.subnets.clone(),
            ipv6: n.spec.ipv6,
            internal: n.spec.internal,
            ingress: n.spec.ingress,
            encrypted: n.spec.encrypted,
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
                backends: backends(state, service, tasks, &endpoint.network, node),
            });
        }
    }
    services.sort_by_key(|s| s.mesh);
    services
}

/// The backends of a service on one network that `node` may send to.
fn backends(
    state: &ClusterState,
    service: &Service,
    tasks: &[&Task],
    network: &NetworkId,
    node: &Node,
) -> Vec<BackendPlan> {
    let mut backends = Vec::new();
    for task in tasks {
        let Some(own_node) = &task.node else { continue };
        let is_visible = match task.traffic {
            Traffic::None => false,
            Traffic::Local => *own_node == node.id,
            Traffic::Active | Traffic::Draining | Traffic::Drained => true,
        };
        let attachments = task.attachments.iter().filter(|a| is_visible && a.network == *network);
        backends.extend(attachments.map(|a| BackendPlan {
            id: a.backend,
            task: task.id.clone(),
            task_name: task.name.clone(),
            hostname: hostname(state.nodes.get(own_node), service, task),
            node: own_node.clone(),
            addr: a.addr,
            draining: task.traffic >= Traffic::Draining,
        }));
    }
    backends.sort_by_key(|b| b.id);
    backends
}

/// The host name that the user chose for a task of `node`.
fn hostname(node: Option<&Node>, service: &Service, task: &Task) -> Option<String> {
    let text = task.spec.container.hostname.as_deref().filter(|text| !text.is_empty())?;
    Some(template::expand(text, &template::Values::of(node?, service, task)))
}

/// A service that is being removed keeps its ports for its existing flows, unless another service
/// has the port now.
fn ports(state: &ClusterState, plans: &[ServicePlan]) -> Vec<PortPlan> {
    let active: BTreeSet<MeshServiceId> =
        plans.iter().filter(|s| s.backends.iter().any(|b| !b.draining)).map(|s| s.mesh).collect();
    let mut ports = BTreeMap::<(u16, Protocol), PortPlan>::new();
    // A later entry for the same port replaces an earlier one.
    let (removing, remaining): (Vec<_>, Vec<_>) = state.services.values().partition(|s| s.removing);
    for service in removing.into_iter().chain(remaining) {
        let Some(mesh) = published_mesh(service, &active) else { continue };
        for port in &service.ports {
            let (published, protocol) = (port.published, port.spec.protocol);
            ports.insert((published, protocol), PortPlan { port: published, protocol, mesh, target: port.spec.target });
        }
    }
    ports.into_values().collect()
}

/// The mesh id to which the published ports of a service send: the mesh id on its first network,
/// which is eth0 of its tasks. While an update moves the service to other networks, it is the mesh
/// id on a network with active backends.
fn published_mesh(service: &Service, active: &BTreeSet<MeshServiceId>) -> Option<MeshServiceId> {
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
    for container in state.attached.values() {
        endpoints.extend(container.links.iter().map(|link| EndpointPlan {
            network: link.network.clone(),
            task: container.id.clone(),
            node: container.node.clone(),
            addr: link.addr,
            mac: link.mac,
        }));
    }
    endpoints
}

/// The containers of the node that are no tasks.
fn attached(state: &ClusterState, node: &Node) -> Vec<AttachedPlan> {
    let of_node = state.attached.values().filter(|container| container.node == node.id);
    of_node
        .map(|container| {
            let links = container.links.iter().filter_map(|link| {
                let attachment = attachment(state, &link.network, link.addr, link.mac)?;
                Some(AttachedLink { index: link.index, attachment, present: link.reserved_ms.is_none() })
            });
            let mut links: Vec<_> = links.collect();
            links.sort_by_key(|link| link.index);
            AttachedPlan { id: container.id.clone(), identity: container.identity.clone(), links }
        })
        .collect()
}

/// The names of the containers that run, on nodes that are up. Others do not answer.
fn attached_names(state: &ClusterState) -> Vec<AttachedName> {
    let is_up = |node: &NodeId| state.nodes.get(node).is_some_and(|node| node.status != NodeStatus::Down);
    let mut names: Vec<_> = state
        .attached
        .values()
        .filter(|container| container.running && is_up(&container.node))
        .filter_map(|container| Some((container, container.identity.as_ref()?)))
        .flat_map(|(container, identity)| {
            container.links.iter().map(|link| AttachedName {
                network: link.network.clone(),
                addr: link.addr,
                identity: identity.clone(),
                aliases: link.aliases.clone(),
            })
        })
        .collect();
    names.sort_by(|a, b| (&a.network, a.addr).cmp(&(&b.network, b.addr)));
    names
}

fn attachment(state: &ClusterState, network: &NetworkId, addr: DualAddr, mac: Mac) -> Option<AttachmentPlan> {
    let found = state.networks.get(network)?;
    Some(AttachmentPlan {
        network: network.clone(),
        vni: found.vni,
        mtu: found.spec.mtu,
        subnets: found.subnets.clone(),
        addr,
        mac,
    })
}

/// The tasks of the node. Ended tasks stay in the plan while they are in the task history, so that
/// the node keeps their logs.
fn tasks(state: &ClusterState, node: &Node) -> Vec<TaskPlan> {
    // To look for templates in large variables takes long: it is done once for each spec.
    let mut with_templates = BTreeMap::new();
    let placed = state.tasks_on(&node.id).filter(|t| t.status.state >= TaskState::Assigned);
    let plans = placed.filter_map(|t| {
        let container = &t.spec.container;
        let variables = with_templates.entry(container.as_ptr()).or_insert_with(|| variables_with_templates(container));
        Some(task(state, node, state.services.get(&t.service)?, t, variables))
    });
    plans.collect()
}

/// The positions of the variables that have templates.
fn variables_with_templates(container: &ContainerSpec) -> Vec<u32> {
    (0u32..).zip(&container.env).filter(|(_, text)| template::is_in(text)).map(|(at, _)| at).collect()
}

fn task(state: &ClusterState, node: &Node, service: &Service, task: &Task, variables: &[u32]) -> TaskPlan {
    let values = template::Values::of(node, service, task);
    let container = &task.spec.container;
    let hostname = container.hostname.as_ref().filter(|text| template::is_in(text));
    let env =
        variables.iter().filter_map(|at| Some((*at, template::expand(container.env.get(*at as usize)?, &values))));
    let expanded = Expanded {
        hostname: hostname.map(|text| template::expand(text, &values)),
        env: env.collect(),
        files: expanded_files(state, task, &values),
    };
    let attachments = task.attachments.iter().filter_map(|a| attachment(state, &a.network, a.addr, a.mac));
    TaskPlan {
        id: task.id.clone(),
        service: service.id.clone(),
        service_name: service.spec.name.clone(),
        name: task.name.clone(),
        container: container.clone(),
        resources: task.spec.resources,
        labels: labels(&node.id, service, &task.id, &task.name),
        attachments: attachments.collect(),
        desired: goal(task),
        expanded,
        container_at: None,
        registry_auth: registry_auth(task),
        node_network: task.spec.node_network,
        has_run: task.traffic != Traffic::None,
    }
}

/// Whether the node still prepares the task. Only until then the plan has what is secret.
fn is_prepared_next(task: &Task) -> bool {
    task.status.state < TaskState::Ready && task.desired <= TaskState::Running
}

/// The credentials are in the plan only until the task has its image.
fn registry_auth(task: &Task) -> Option<RegistryAuth> {
    task.spec.registry_auth.clone().filter(|_| is_prepared_next(task))
}

/// The secrets and configs that a task needs next. One that was removed meanwhile is left out.
fn files_of<'a>(state: &'a ClusterState, task: &'a Task) -> impl Iterator<Item = &'a Dependency> {
    let files = task.spec.container.files().filter(|_| is_prepared_next(task));
    files.filter_map(|(_, file)| state.dependencies.get(&file.id))
}

/// The secrets and configs without templates that the tasks of the node need next.
fn dependencies(state: &ClusterState, node: &Node) -> Vec<DependencyPlan> {
    let placed = state.tasks_on(&node.id).filter(|t| t.status.state >= TaskState::Assigned);
    let needed = placed.flat_map(|task| files_of(state, task)).filter(|found| !found.spec.templated);
    let needed: BTreeMap<_, _> = needed.map(|found| (&found.id, &found.spec.data)).collect();
    needed.into_iter().map(|(id, data)| DependencyPlan { id: id.clone(), data: Some(data.clone()) }).collect()
}

/// The secrets and configs with templates that a task needs next, with these expanded.
fn expanded_files(
    state: &ClusterState,
    task: &Task,
    values: &template::Values<'_>,
) -> BTreeMap<DependencyId, Option<Shared<FileData>>> {
    let expand = |data: &FileData| match std::str::from_utf8(&data.0) {
        Ok(text) => FileData(template::expand(text, values).into_bytes()),
        // Not stored with templates.
        Err(_) => data.clone(),
    };
    let templated = files_of(state, task).filter(|found| found.spec.templated);
    templated.map(|found| (found.id.clone(), Some(expand(&found.spec.data).into()))).collect()
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

/// Labels with Swarm's keys, by which tools find the containers of a service.
fn labels(node: &NodeId, service: &Service, task: &TaskId, task_name: &str) -> Labels {
    let labels = [
        ("com.docker.swarm.task", String::new()),
        ("com.docker.swarm.task.id", task.to_string()),
        ("com.docker.swarm.task.name", task_name.to_owned()),
        ("com.docker.swarm.node.id", node.to_string()),
        ("com.docker.swarm.service.id", service.id.to_string()),
        ("com.docker.swarm.service.name", service.spec.name.to_string()),
    ];
    labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
