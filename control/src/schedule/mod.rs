//! Chooses a node for a task: pure. Owns what makes a node fit and which fitting node is best; it moves nothing.
//!
//! A node fits that takes tasks, has what the task reserves, satisfies the service's constraints and its bound of replicas
//! per node. Among those, tasks are spread: over the values of the placement preferences, then over the nodes that have
//! fewest tasks of the service, then fewest tasks. Nodes where the service fails again and again come last.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use weft_model::{
    ClusterState, NodeId, ServiceId,
    spec::{Constraint, NodeAttribute, Placement, Role},
    state::{Node, Slot, Task, TaskState},
};

/// So many failures of a service on one node, of the present spec and within [`FAILURE_MEMORY_MS`], make it a bad choice.
const MANY_FAILURES: u64 = 5;
const FAILURE_MEMORY_MS: u64 = 300_000;

/// What the nodes carry already.
#[derive(Debug, Default)]
pub struct Load {
    nodes: BTreeMap<NodeId, NodeLoad>,
}

#[derive(Debug, Default)]
struct NodeLoad {
    tasks: u64,
    nano_cpus: u64,
    memory_bytes: u64,
    /// Of each service, the slots whose tasks shall stay here.
    services: BTreeMap<ServiceId, Vec<Slot>>,
    failures: BTreeMap<ServiceId, u64>,
}

impl Load {
    /// Counts every task that has a node and has not ended, and those that failed of late.
    pub fn of(state: &ClusterState) -> Self {
        let mut load = Self::default();
        for task in state.tasks.values() {
            let Some(node) = task.node.as_ref().filter(|_| task.status.state >= TaskState::Assigned) else { continue };
            if !task.status.state.is_terminal() {
                load.add(node, task);
            } else if has_failed_lately(state, task) {
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

    /// How bad a choice this node has proved to be for this service; a few failures are nothing.
    fn failures(&self, node: &NodeId, service: &ServiceId) -> u64 {
        let failures = self.nodes.get(node).and_then(|load| load.failures.get(service)).copied().unwrap_or(0);
        if failures < MANY_FAILURES { 0 } else { failures }
    }

    fn tasks(&self, node: &NodeId) -> u64 {
        self.nodes.get(node).map_or(0, |load| load.tasks)
    }

    /// Tasks of this service on this node; those of `slot` itself leave it when the new task has taken over.
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

fn has_failed_lately(state: &ClusterState, task: &Task) -> bool {
    let present = state.services.get(&task.service).is_some_and(|s| s.task_version == task.version);
    let lately = task.state_since_ms.saturating_add(FAILURE_MEMORY_MS) > state.now_ms;
    present && lately && matches!(task.status.state, TaskState::Failed | TaskState::Rejected)
}

/// Why a node does not fit, in the order in which it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Misfit {
    Unavailable,
    Resources,
    Constraints,
    MaxReplicas,
}

impl Misfit {
    fn text(self, nodes: usize) -> String {
        let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        match self {
            Self::Unavailable => format!("{nodes} not available for new tasks"),
            Self::Resources => format!("insufficient resources on {nodes}"),
            Self::Constraints => format!("scheduling constraints not satisfied on {nodes}"),
            Self::MaxReplicas => format!("max replicas per node limit reached on {nodes}"),
        }
    }
}

/// The best node for this task.
///
/// # Errors
/// Why no node fits, for people.
pub fn place(state: &ClusterState, load: &Load, task: &Task) -> Result<NodeId, String> {
    let mut misfits = BTreeMap::<Misfit, usize>::new();
    let mut fitting = Vec::new();
    let wanted = state.nodes.values().filter(|n| task.node.as_ref().is_none_or(|fixed| *fixed == n.id));
    for node in wanted {
        match misfit(load, node, task) {
            None => fitting.push(node),
            Some(why) => *misfits.entry(why).or_default() += 1,
        }
    }
    let crowds = crowds(state, load, task, &fitting);
    let best = fitting.into_iter().min_by_key(|node| {
        let here = load.of_service(&node.id, &task.service, None);
        (
            load.failures(&node.id, &task.service),
            group_keys(&task.spec.placement, node, &crowds),
            here,
            load.tasks(&node.id),
            &node.id,
        )
    });
    best.map(|node| node.id.clone()).ok_or_else(|| {
        let reasons: Vec<_> = misfits.into_iter().map(|(why, nodes)| why.text(nodes)).collect();
        if reasons.is_empty() {
            "no suitable node".to_owned()
        } else {
            format!("no suitable node ({})", reasons.join("; "))
        }
    })
}

fn misfit(load: &Load, node: &Node, task: &Task) -> Option<Misfit> {
    let placement = &task.spec.placement;
    let bound = placement.max_replicas_per_node;
    if !node.takes_tasks() {
        Some(Misfit::Unavailable)
    } else if !load.has_room(node, task) {
        Some(Misfit::Resources)
    } else if !satisfies(node, &placement.constraints) {
        Some(Misfit::Constraints)
    } else if bound > 0 && load.of_service(&node.id, &task.service, Some(&task.slot)) >= bound {
        Some(Misfit::MaxReplicas)
    } else {
        None
    }
}

/// Whether tasks with these constraints may be on this node.
pub fn satisfies(node: &Node, constraints: &[Constraint]) -> bool {
    constraints.iter().all(|c| (attribute(node, &c.attribute).as_deref() == Some(c.value.as_str())) == c.equal)
}

/// A node's value of this attribute; names of machines, roles and platforms in lower case, whatever the constraint says.
fn attribute(node: &Node, attribute: &NodeAttribute) -> Option<String> {
    let machine = node.description.as_ref();
    match attribute {
        NodeAttribute::Id => Some(node.id.to_string()),
        NodeAttribute::Hostname => Some(node.hostname.to_string()),
        NodeAttribute::Role => Some(if node.spec.role == Role::Manager { "manager" } else { "worker" }.to_owned()),
        NodeAttribute::PlatformOs => machine.map(|m| m.os.clone()),
        NodeAttribute::PlatformArch => machine.map(|m| m.arch.clone()),
        NodeAttribute::Label(key) => node.spec.labels.get(key).cloned(),
        NodeAttribute::EngineLabel(key) => machine.and_then(|m| m.engine_labels.get(key).cloned()),
    }
}

/// For each level of the placement preferences, how many tasks of the service each branch has already. A branch is the
/// values of the preferences down to that level; nodes without a value are a branch of their own.
type Crowds = BTreeMap<Vec<Option<String>>, u64>;

fn crowds(state: &ClusterState, load: &Load, task: &Task, fitting: &[&Node]) -> Crowds {
    let mut crowds = Crowds::new();
    if fitting.is_empty() || task.spec.placement.spread.is_empty() {
        return crowds;
    }
    for node in state.nodes.values() {
        let tasks = load.of_service(&node.id, &task.service, None);
        for branch in branches(&task.spec.placement, node) {
            *crowds.entry(branch).or_default() += tasks;
        }
    }
    crowds
}

fn branches(placement: &Placement, node: &Node) -> impl Iterator<Item = Vec<Option<String>>> {
    let values: Vec<_> = placement.spread.iter().map(|key| attribute(node, key)).collect();
    (1..=values.len()).map(move |depth| values[..depth].to_vec())
}

/// What to spread by first: at each level how full the branch is, and which, so that levels below compare within one.
fn group_keys(placement: &Placement, node: &Node, crowds: &Crowds) -> Vec<(u64, Vec<Option<String>>)> {
    branches(placement, node).map(|branch| (crowds.get(&branch).copied().unwrap_or(0), branch)).collect()
}
