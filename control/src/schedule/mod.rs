//! Chooses a node for a task: a pure function that changes nothing. The orchestrator calls it for
//! each task that waits for a node.
//!
//! A node is suitable if it takes tasks, has the resources that the task reserves, satisfies the
//! constraints of the service, is of a platform of its image, and is below the limit of replicas
//! per node. For a task on an encrypted network, the node must also be able to encrypt, and have a
//! key that the other nodes know. A task on a network of its node needs a node that has this
//! network, and one with secrets or configs a node of a release that knows them. Among the suitable
//! nodes the scheduler prefers, in this order:
//!
//! 1. nodes on which the service has not failed repeatedly;
//! 2. nodes that spread the tasks of the service over the values of the placement preferences;
//! 3. nodes with the fewest tasks of the service;
//! 4. nodes with the fewest tasks;
//! 5. the node with the smallest id.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use weft_model::{
    ClusterState, NodeId, ServiceId,
    spec::{Constraint, NodeAttribute, NodeNetwork, Placement, Platform, Role, TaskSpec},
    state::{Network, Node, Slot, Task, TaskState},
    wireguard::EncryptionSupport,
};

/// If this many tasks of a service have failed on a node, the scheduler prefers other nodes for
/// this service. Only tasks of the current spec count, and only failures within the last
/// [`FAILURE_WINDOW_MS`].
const MANY_FAILURES: u64 = 5;
const FAILURE_WINDOW_MS: u64 = 300_000;

/// How the versions of the releases begin whose nodes run a task on a network of the node without
/// any network, and get no task with secrets or configs.
const FIRST_RELEASE: &str = "0.1.";

/// The runtime of nodes that have a container engine ([`weft_model::report::NodeDescription`]).
const ENGINE_RUNTIME: &str = "docker";

/// The tasks of each node and the resources that they reserve.
#[derive(Debug, Default)]
pub struct Load {
    nodes: BTreeMap<NodeId, NodeLoad>,
}

#[derive(Debug, Default)]
struct NodeLoad {
    tasks: u64,
    nano_cpus: u64,
    memory_bytes: u64,
    /// For each service the slots of the tasks that are on the node and will stay there.
    services: BTreeMap<ServiceId, Vec<Slot>>,
    /// For each service the number of tasks that failed recently.
    failures: BTreeMap<ServiceId, u64>,
}

impl Load {
    /// Counts all tasks that have a node and have not ended, and the tasks that failed recently.
    pub fn of(state: &ClusterState) -> Self {
        let mut load = Self::default();
        for task in state.tasks.values() {
            let Some(node) = task.node.as_ref().filter(|_| task.status.state >= TaskState::Assigned) else { continue };
            if !task.status.state.is_terminal() {
                load.add(node, task);
            } else if has_failed_recently(state, task) {
                let load = load.nodes.entry(node.clone()).or_default();
                *load.failures.entry(task.service.clone()).or_default() += 1;
            }
        }
        load
    }

    /// Counts one more task on this node.
    pub fn add(&mut self, node: &NodeId, task: &Task) {
        let load = self.nodes.entry(node.clone()).or_default();
        load.tasks += 1;
        load.nano_cpus = load.nano_cpus.saturating_add(task.spec.resources.reserve_nano_cpus);
        load.memory_bytes = load.memory_bytes.saturating_add(task.spec.resources.reserve_memory_bytes);
        if task.desired <= TaskState::Running {
            load.services.entry(task.service.clone()).or_default().push(task.slot.clone());
        }
    }

    /// How often the service has failed on this node. Fewer than [`MANY_FAILURES`] failures count
    /// as zero.
    fn failures(&self, node: &NodeId, service: &ServiceId) -> u64 {
        let failures = self.nodes.get(node).and_then(|load| load.failures.get(service)).copied().unwrap_or(0);
        if failures < MANY_FAILURES { 0 } else { failures }
    }

    fn tasks(&self, node: &NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |load| load.tasks)
    }

    /// The number of tasks of a service on a node. Tasks of `slot` are not counted, because the new
    /// task replaces them.
    fn of_service(&self, node: &NodeId, service: &ServiceId, slot: Option<&Slot>) -> u64 {
        let slots = self.nodes.get(node).and_then(|load| load.services.get(service));
        slots.map_or(0, |slots| slots.iter().filter(|s| Some(*s) != slot).count() as u64)
    }

    fn has_room(&self, node: &Node, task: &Task) -> bool {
        let (cpus, memory) = (task.spec.resources.reserve_nano_cpus, task.spec.resources.reserve_memory_bytes);
        if cpus == 0 && memory == 0 {
            return true;
        }
        let (used_cpus, used_memory) = self.nodes.get(&node.id).map_or((0, 0), |l| (l.nano_cpus, l.memory_bytes));
        node.description.as_ref().is_some_and(|machine| {
            used_cpus.saturating_add(cpus) <= machine.nano_cpus
                && used_memory.saturating_add(memory) <= machine.memory_bytes
        })
    }
}

fn has_failed_recently(state: &ClusterState, task: &Task) -> bool {
    let current = state.services.get(&task.service).is_some_and(|s| s.task_version == task.version);
    let recent = task.state_since_ms.saturating_add(FAILURE_WINDOW_MS) > state.now_ms;
    current && recent && matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
}

/// Why a node is not suitable, in the order of the checks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Unsuitable {
    Unavailable,
    Resources,
    Constraints,
    Platform,
    MaxReplicas,
    /// The node cannot encrypt, with its reason.
    Encryption(String),
    /// The node has no key yet that all other nodes know.
    EncryptionKey,
    /// The release of the node does not know networks of nodes.
    Release(NodeNetwork),
    /// The node has no container engine, and so does not have this network.
    Engine(NodeNetwork),
    /// The release of the node does not know secrets and configs.
    Files,
}

impl Unsuitable {
    fn text(self, nodes: usize) -> String {
        let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        match self {
            Self::Unavailable => format!("{nodes} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
            Self::Platform => format!("unsupported platform on {nodes}"),
            Self::MaxReplicas => format!("max replicas per node limit reached on {nodes}"),
            Self::Encryption(reason) => format!("no encryption on {nodes}: {reason}"),
            Self::EncryptionKey => format!("encryption not ready yet on {nodes}"),
            Self::Release(network) => {
                format!("no network {} on {nodes} of an earlier release of weft", network.as_str())
            }
            Self::Files => format!("no secrets and configs on {nodes} of an earlier release of weft"),
            Self::Engine(network) => format!("no network {} on {nodes} without a container engine", network.as_str()),
        }
    }
}

/// The best node for a task. A task of a global service has its node from the start, and can only
/// get this node.
///
/// # Errors
/// Why no node is suitable, with Swarm's wording. Users see this text in the status of the task.
pub fn place(state: &ClusterState, load: &Load, task: &Task) -> Result<NodeId, String> {
    let mut unsuitable = BTreeMap::<Unsuitable, usize>::new();
    let mut suitable = Vec::new();
    let encrypted = needs_encryption(state, &task.spec);
    let wanted = state.nodes.values().filter(|n| task.node.as_ref().is_none_or(|fixed| *fixed == n.id));
    for node in wanted {
        match check_node(load, node, task, encrypted) {
            None => suitable.push(node),
            Some(why) => *unsuitable.entry(why).or_default() += 1,
        }
    }
    let branch_tasks = count_branch_tasks(state, load, task, &suitable);
    let best = suitable.into_iter().min_by_key(|node| {
        let here = load.of_service(&node.id, &task.service, None);
        (
            load.failures(&node.id, &task.service),
            spread_key(&task.spec.placement, node, &branch_tasks),
            here,
            load.tasks(&node.id),
            &node.id,
        )
    });
    best.map(|node| node.id.clone()).ok_or_else(|| {
        let reasons: Vec<_> = unsuitable.into_iter().map(|(why, nodes)| why.text(nodes)).collect();
        if reasons.is_empty() {
            "no suitable node".to_owned()
        } else {
            format!("no suitable node ({})", reasons.join("; "))
        }
    })
}

/// `None`: the node is suitable for the task.
fn check_node(load: &Load, node: &Node, task: &Task, encrypted: bool) -> Option<Unsuitable> {
    let placement = &task.spec.placement;
    let limit = placement.max_replicas_per_node;
    if !node.takes_tasks() {
        Some(Unsuitable::Unavailable)
    } else if !load.has_room(node, task) {
        Some(Unsuitable::Resources)
    } else if !satisfies(node, &placement.constraints) {
        Some(Unsuitable::Constraints)
    } else if !is_of_platform(node, &placement.platforms) {
        Some(Unsuitable::Platform)
    } else if limit > 0 && load.of_service(&node.id, &task.service, Some(&task.slot)) >= limit {
        Some(Unsuitable::MaxReplicas)
    } else if is_of_first_release(node) && task.spec.container.files().next().is_some() {
        Some(Unsuitable::Files)
    } else if let Some(network) = task.spec.node_network {
        check_node_network(node, network)
    } else if encrypted {
        check_encryption(node)
    } else {
        None
    }
}

/// `None`: the node has this network.
fn check_node_network(node: &Node, network: NodeNetwork) -> Option<Unsuitable> {
    let machine = node.description.as_ref()?;
    if is_of_first_release(node) {
        Some(Unsuitable::Release(network))
    } else if network == NodeNetwork::Bridge && machine.runtime != ENGINE_RUNTIME {
        Some(Unsuitable::Engine(network))
    } else {
        None
    }
}

fn is_of_first_release(node: &Node) -> bool {
    node.description.as_ref().is_some_and(|machine| machine.version.starts_with(FIRST_RELEASE))
}

/// Whether one of the task's networks is encrypted.
pub fn needs_encryption(state: &ClusterState, task: &TaskSpec) -> bool {
    let is_attached = |network: &Network| {
        task.networks.iter().any(|attached| attached.network == network.id)
            || (network.spec.ingress && task.uses_ingress())
    };
    state.networks.values().any(|network| network.spec.encrypted && is_attached(network))
}

/// `None`: the node can run tasks on encrypted networks.
fn check_encryption(node: &Node) -> Option<Unsuitable> {
    match &node.description.as_ref()?.encryption {
        EncryptionSupport::Unavailable(reason) => Some(Unsuitable::Encryption(reason.clone())),
        EncryptionSupport::Kernel | EncryptionSupport::UserSpace => {
            node.keys.active().is_none().then_some(Unsuitable::EncryptionKey)
        }
    }
}

/// Whether a node satisfies all of these constraints. As in Swarm, values are compared without
/// case, and a node without a value satisfies only constraints with `!=`.
pub fn satisfies(node: &Node, constraints: &[Constraint]) -> bool {
    constraints.iter().all(|constraint| has_value(node, constraint) == constraint.equal)
}

fn has_value(node: &Node, constraint: &Constraint) -> bool {
    if constraint.attribute == NodeAttribute::Ip {
        // An address alone is the subnet that has only this address.
        return constraint.value.parse().is_ok_and(|subnet: IpNetwork| subnet.contains(node.addr.to_canonical()));
    }
    attribute(node, &constraint.attribute).is_some_and(|has| has.to_lowercase() == constraint.value.to_lowercase())
}

/// Whether the node is of one of these platforms. An empty list stands for all.
pub fn is_of_platform(node: &Node, platforms: &[Platform]) -> bool {
    let Some(machine) = &node.description else { return platforms.is_empty() };
    let matches = |platform: &Platform| platform.is_of(&machine.os, &machine.arch);
    platforms.is_empty() || platforms.iter().any(matches)
}

/// The value of an attribute of a node. `None` if the node has no such label or has not sent its
/// description.
fn attribute(node: &Node, attribute: &NodeAttribute) -> Option<String> {
    let machine = node.description.as_ref();
    match attribute {
        NodeAttribute::Id => Some(node.id.to_string()),
        NodeAttribute::Hostname => Some(node.hostname.to_string()),
        NodeAttribute::Role => Some(if node.spec.role == Role::Manager { "manager" } else { "worker" }.to_owned()),
        NodeAttribute::PlatformOs => machine.map(|m| m.os.clone()),
        NodeAttribute::PlatformArch => machine.map(|m| m.arch.clone()),
        NodeAttribute::Ip => Some(node.addr.to_string()),
        NodeAttribute::Label(key) => node.spec.labels.get(key).cloned(),
        NodeAttribute::EngineLabel(key) => machine.and_then(|m| m.engine_labels.get(key).cloned()),
    }
}

/// How many tasks of the service each branch of the placement preferences has. A branch is a list
/// of values: of the first preference, of the first two preferences, and so on. The nodes with
/// these values belong to the branch. Nodes without a value form a separate branch.
type BranchTasks = BTreeMap<Vec<Option<String>>, u64>;

fn count_branch_tasks(state: &ClusterState, load: &Load, task: &Task, suitable: &[&Node]) -> BranchTasks {
    let mut counts = BranchTasks::new();
    if suitable.is_empty() || task.spec.placement.spread.is_empty() {
        return counts;
    }
    for node in state.nodes.values() {
        let tasks = load.of_service(&node.id, &task.service, None);
        for branch in branches(&task.spec.placement, node) {
            *counts.entry(branch).or_default() += tasks;
        }
    }
    counts
}

/// The branches that a node belongs to: the branch of the first preference, of the first two, and
/// so on.
fn branches(placement: &Placement, node: &Node) -> impl Iterator<Item = Vec<Option<String>>> {
    let values: Vec<_> = placement.spread.iter().map(|key| attribute(node, key)).collect();
    (1..=values.len()).map(move |depth| values[..depth].to_vec())
}

/// The sort key that spreads tasks over the preferences: for each branch of the node its number of
/// tasks, and the branch itself, so that the next preference compares nodes of the same branch
/// only.
fn spread_key(placement: &Placement, node: &Node, branch_tasks: &BranchTasks) -> Vec<(u64, Vec<Option<String>>)> {
    branches(placement, node).map(|branch| (branch_tasks.get(&branch).copied().unwrap_or(0), branch)).collect()
}
