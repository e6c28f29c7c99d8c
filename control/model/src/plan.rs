//! What one node must put into effect. The control plane computes the plan from the cluster state
//! (`plan` in weft-control) and streams it to the node's agent.
//!
//! The agent gives each layer of the node (overlay, mesh, DNS, runtime) its part of the plan. No
//! layer reads the cluster state. All lists are ordered by id, unless stated otherwise, so that
//! plans can be compared for equality.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    BackendId, DependencyId, DualAddr, Mac, MeshServiceId, NetworkId, NetworkName, NodeId, NodeName, ServiceId,
    ServiceName, Shared, TaskId, Vni,
    id::ClusterId,
    net::Subnets,
    spec::{ContainerSpec, FileData, Labels, NodeNetwork, Protocol, RegistryAuth, Resources, Role},
    state::ContainerIdentity,
    wireguard::EncryptionPlan,
};

/// The plan of one node.
///
/// ```
/// use std::net::IpAddr;
///
/// use weft_model::{NodeId, NodePlan, plan::PeerPlan};
///
/// let (node, peer) = (NodeId::from_random(1), NodeId::from_random(2));
/// let (addr, peer_addr) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
///
/// // An empty plan, to which one other node is added.
/// let plan = NodePlan {
///     generation: 7,
///     peers: vec![PeerPlan { node: peer, addr: peer_addr }],
///     ..NodePlan::empty(node, addr)
/// };
/// assert!(plan.services.is_empty());
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// The log index of the cluster state that the plan was computed from. The agent acknowledges
    /// it when the plan is in effect in the kernel.
    pub generation: u64,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub hostname: NodeName,
    /// The role that the node's certificate must have. If the certificate has another role, the
    /// node renews it. After a demotion the role stays `Manager` until the node has left the Raft
    /// membership.
    pub role: Role,
    /// The address of this node, at which its tunnels end.
    pub addr: IpAddr,
    /// The UDP port of the tunnels between all nodes.
    pub tunnel_port: u16,
    pub managers: Vec<ManagerPlan>,
    /// The time between two heartbeats.
    pub heartbeat_ms: u64,
    /// All other nodes of the cluster, including those that are down, except former memberships of
    /// this machine, which have the same address. Only peers may send tunnel packets to this node.
    pub peers: Vec<PeerPlan>,
    /// `None`: the cluster has no encrypted network, or this node cannot encrypt. The node then has
    /// no keys and no WireGuard devices.
    pub encryption: Option<EncryptionPlan>,
    /// All networks, because a published port of this node can send to a service on any network.
    pub networks: Vec<NetworkPlan>,
    /// All services, one entry for each network of a service, ordered by [`ServicePlan::mesh`].
    pub services: Vec<ServicePlan>,
    /// All published ports, ordered by port and protocol.
    pub ports: Vec<PortPlan>,
    /// All addresses of live tasks and of attached containers in the cluster, including those of
    /// this node. The data plane sends packets for one of these addresses to the node of its entry.
    pub endpoints: Vec<EndpointPlan>,
    /// The tasks of this node.
    pub tasks: Vec<TaskPlan>,
    /// [`crate::ClusterState::epoch`].
    #[serde(default)]
    pub epoch: u64,
    /// [`crate::ClusterState::feature_level`]: what the node may send to managers.
    #[serde(default)]
    pub feature_level: u32,
    /// The Raft id of a manager. If it is greater than the one that the node uses, the node has
    /// been demoted and promoted again: it removes its log and starts with the new id. 0 in the
    /// plans of workers, and at feature level 0.
    #[serde(default)]
    pub raft_id: u64,
    /// The certificates of the CAs that the node trusts, in PEM. The last one must have signed the
    /// node's certificate; otherwise the node renews it. Empty if the leader's release sends none.
    #[serde(default)]
    pub roots_pem: String,
    /// In a message and on the disk, the containers of the tasks, each of them once. Empty in
    /// memory.
    #[serde(default)]
    pub containers: Vec<Shared<ContainerSpec>>,
    /// The containers of this node that are no tasks, on networks of the cluster.
    #[serde(default)]
    pub attached: Vec<AttachedPlan>,
    /// The names of all such containers of the cluster, ordered by network and address.
    #[serde(default)]
    pub attached_names: Vec<AttachedName>,
    /// The secrets and configs of the tasks that are not prepared yet: a node keeps no secret that
    /// it needs no more.
    #[serde(default)]
    pub dependencies: Vec<DependencyPlan>,
}

/// A secret or a config that tasks of this node need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencyPlan {
    pub id: DependencyId,
    /// `None` in a plan from the disk, which has no secrets. The tasks wait until the leader has
    /// sent the plan again.
    pub data: Option<Shared<FileData>>,
}

/// Orders the plans of one node, which has another id in each membership: a plan of a greater epoch
/// is newer, and in one epoch a plan of a greater generation.
///
/// One version stands for one cluster state. In one epoch the managers have one log, and a plan is
/// computed only from entries that a quorum has: a later leader has the same entries at the same
/// indexes, in whatever term they were written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlanVersion {
    /// [`NodePlan::epoch`]. Compared first.
    pub epoch: u64,
    /// [`NodePlan::generation`].
    pub generation: u64,
}

impl NodePlan {
    pub fn version(&self) -> PlanVersion {
        PlanVersion { epoch: self.epoch, generation: self.generation }
    }

    /// The plan of a worker in a cluster without other nodes, networks and services. Tests use it
    /// as a base.
    pub fn empty(node: NodeId, addr: IpAddr) -> Self {
        Self {
            generation: 1,
            cluster: ClusterId::from_random(1),
            node,
            hostname: "n1".parse().expect("a valid node name"),
            role: Role::Worker,
            addr,
            tunnel_port: crate::DEFAULT_TUNNEL_PORT,
            managers: Vec::new(),
            heartbeat_ms: 5_000,
            peers: Vec::new(),
            encryption: None,
            networks: Vec::new(),
            services: Vec::new(),
            ports: Vec::new(),
            endpoints: Vec::new(),
            tasks: Vec::new(),
            epoch: 0,
            feature_level: 0,
            raft_id: 0,
            roots_pem: String::new(),
            containers: Vec::new(),
            attached: Vec::new(),
            attached_names: Vec::new(),
            dependencies: Vec::new(),
        }
    }

    /// The plan as it is stored on the disk: without the data of secrets and configs.
    pub fn without_data(&self) -> Self {
        let mut plan = self.clone();
        plan.dependencies.iter_mut().for_each(|dependency| dependency.data = None);
        plan.tasks.iter_mut().for_each(|task| task.expanded.files.values_mut().for_each(|data| *data = None));
        plan
    }

    /// Everything of this node that has links: its tasks, and the containers that are no tasks. A
    /// task on a network of the node has none: its namespace may be that of the node itself, in
    /// which nothing may be changed.
    pub fn local(&self) -> impl Iterator<Item = LocalPlan<'_>> {
        let linked = self.tasks.iter().filter(|task| task.node_network.is_none());
        let tasks = linked.map(|task| LocalPlan {
            id: &task.id,
            links: (0..).zip(&task.attachments).collect(),
            task: Some(task),
        });
        let attached = self.attached.iter().map(|container| LocalPlan {
            id: &container.id,
            links: container.links.iter().map(|link| (link.index, &link.attachment)).collect(),
            task: None,
        });
        tasks.chain(attached)
    }
}

/// A task of this node, or a container that is no task, with its links.
#[derive(Debug, Clone)]
pub struct LocalPlan<'a> {
    pub id: &'a TaskId,
    /// With the number of each link, in ascending order.
    pub links: Vec<(u32, &'a AttachmentPlan)>,
    /// `None` for a container that is no task.
    pub task: Option<&'a TaskPlan>,
}

/// A manager, and where its RPC server listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerPlan {
    pub node: NodeId,
    pub rpc_addr: SocketAddr,
}

/// Another node, and the address at which its tunnels end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerPlan {
    pub node: NodeId,
    pub addr: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    pub id: NetworkId,
    pub name: NetworkName,
    pub vni: Vni,
    pub subnets: Subnets,
    /// DNS names on this network have AAAA records.
    pub ipv6: bool,
    /// Tasks on this network cannot connect to addresses outside of the cluster.
    pub internal: bool,
    /// The built-in network: it has no DNS names, and its tasks cannot reach each other.
    pub ingress: bool,
    /// Packets of this network cross the underlay only inside of WireGuard: those between its
    /// tasks, and those between an ingress node and a backend on this network.
    pub encrypted: bool,
}

/// A service on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    pub mesh: MeshServiceId,
    pub service: ServiceId,
    pub name: ServiceName,
    pub aliases: Vec<String>,
    pub network: NetworkId,
    /// `None`: the name resolves to the addresses of the tasks.
    pub vip: Option<DualAddr>,
    /// A user has removed the service. Existing flows continue, but its name and aliases no longer
    /// resolve, because a new service may use them.
    pub removing: bool,
    /// The backends that this node may send to, ordered by id. A task of another node is not in
    /// this list until that node can deliver packets to it.
    pub backends: Vec<BackendPlan>,
}

/// A task of a service on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendPlan {
    pub id: BackendId,
    pub task: TaskId,
    /// The name of the task. It resolves to the address of the task.
    pub task_name: String,
    /// The host name that the user chose for the task, with its templates expanded. It resolves to
    /// the address of the task. `None`: the host name is a prefix of the task's id.
    pub hostname: Option<String>,
    pub node: NodeId,
    pub addr: DualAddr,
    /// The backend keeps its existing flows and gets no new flows. No name resolves to it.
    pub draining: bool,
}

/// A published port: a port of every address of this node, balanced over the backends of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPlan {
    pub port: u16,
    pub protocol: Protocol,
    /// The mesh id of the service on the network of the tasks' eth0. While an update moves the
    /// service to another network, this is the mesh id on a network where the service has backends.
    pub mesh: MeshServiceId,
    /// The port of the tasks.
    pub target: u16,
}

/// The addresses of a live task or an attached container on one network, and its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPlan {
    pub network: NetworkId,
    pub task: TaskId,
    pub node: NodeId,
    pub addr: DualAddr,
    pub mac: Mac,
}

/// A task of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPlan {
    pub id: TaskId,
    pub service: ServiceId,
    pub service_name: ServiceName,
    /// The name of the container: `<service>.<slot>.<task id>`, or `<service>.<node id>.<task id>`
    /// for a global service.
    pub name: String,
    /// The container of the task's spec. The tasks of one spec share it, so its templates are not
    /// expanded: see [`Self::hostname`] and [`Self::env`].
    pub container: Shared<ContainerSpec>,
    pub resources: Resources,
    /// Labels that the cluster adds to the container (`com.docker.swarm.…`). The labels of the spec
    /// are in `container`.
    pub labels: Labels,
    /// In the order of the spec. The first network is eth0 and has the default route. Empty if
    /// there is a `node_network`.
    pub attachments: Vec<AttachmentPlan>,
    pub desired: TaskGoal,
    #[serde(default)]
    pub expanded: Expanded,
    /// In a message and on the disk, the position of the container in [`NodePlan::containers`];
    /// `container` is empty then. `None` in memory.
    #[serde(default)]
    pub container_at: Option<u32>,
    /// With which the image is pulled. `None` also as soon as the task is prepared, so that the
    /// node does not keep a secret that it needs no more.
    #[serde(default)]
    pub registry_auth: Option<RegistryAuth>,
    /// The network of this node that the task is on. The task then has no links of weft and no
    /// resolver.
    #[serde(default)]
    pub node_network: Option<NodeNetwork>,
    /// The task has run. If the node does not have it any more, it has ended. A leader of an
    /// earlier release does not say so; its plans show it by the backends of the task.
    #[serde(default)]
    pub has_run: bool,
}

/// The parts of a task's container that have templates, with these expanded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expanded {
    /// `None`: the host name of the container has no template.
    pub hostname: Option<String>,
    /// By the positions of the variables in [`ContainerSpec::env`].
    pub env: BTreeMap<u32, String>,
    /// The secrets and configs with templates, as this task gets them. As in
    /// [`NodePlan::dependencies`], only until the task is prepared, and without their data in a
    /// plan from the disk.
    #[serde(default)]
    pub files: BTreeMap<DependencyId, Option<Shared<FileData>>>,
}

impl TaskPlan {
    /// The host name that the user chose for this task.
    pub fn hostname(&self) -> Option<&str> {
        self.expanded.hostname.as_deref().or(self.container.hostname.as_deref())
    }

    /// The variables that the user chose for this task, each as `KEY=value`.
    pub fn env(&self) -> impl Iterator<Item = &str> {
        let expanded = |(at, variable)| self.expanded.env.get(&at).unwrap_or(variable).as_str();
        (0u32..).zip(&self.container.env).map(expanded)
    }
}

/// A task on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentPlan {
    pub network: NetworkId,
    pub vni: Vni,
    /// The largest MTU of the link that the user wants, in octets. `None`: what fits through the
    /// tunnel.
    pub mtu: Option<u32>,
    pub subnets: Subnets,
    pub addr: DualAddr,
    pub mac: Mac,
}

/// A container of this node that a user has created, on networks of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedPlan {
    /// On this node it is used like the id of a task.
    pub id: TaskId,
    /// `None` while the engine creates the container.
    pub identity: Option<ContainerIdentity>,
    pub links: Vec<AttachedLink>,
}

/// A container that is no task, on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedLink {
    /// Which link of the container it is. A link keeps its number when others go.
    pub index: u32,
    pub attachment: AttachmentPlan,
    /// The engine has connected the container to the network, as the cluster state says.
    pub present: bool,
}

/// The names of a container that is no task, on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedName {
    pub network: NetworkId,
    pub addr: DualAddr,
    pub identity: ContainerIdentity,
    pub aliases: Vec<String>,
}

/// What the agent must do with a task.
///
/// If a task is no longer in the plan, the agent stops it at once and deletes it. A task that has
/// ended stays in the plan with `Stop` while it is in the task history, so that its logs can be
/// read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskGoal {
    /// Prepare the task, but do not start it.
    Ready,
    Run,
    Stop,
}
