//! The network namespaces of the tasks of a pass. [`super::reconcile`] makes them from the
//! runtime's tasks, and all layers look up tasks in them.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use weft_model::{NodePlan, TaskId};
use weft_overlay::Sandbox;

use crate::runtime::{ObservedTask, TaskNetns, identity};

/// The tasks of the plan whose links can be made now.
#[derive(Debug, Clone, Default)]
pub(super) struct Sandboxes {
    pub(super) places: BTreeMap<TaskId, Sandbox>,
    resolvers: BTreeMap<TaskId, Ipv4Addr>,
}

impl Sandboxes {
    pub(super) fn new(plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>) -> Self {
        let mut sandboxes = Self::default();
        // A task on a network of the node has no links of weft. Its namespace may be that of the
        // node itself, in which nothing may be changed.
        for task in plan.tasks.iter().filter(|task| task.node_network.is_none()) {
            let Some(observed) = observed.get(&task.id) else { continue };
            let place = match &observed.netns {
                TaskNetns::Missing => continue,
                TaskNetns::Starting { netns, connected } => {
                    Sandbox::HandOver { netns: netns.clone(), told: *connected }
                }
                TaskNetns::At(netns) => Sandbox::Netns(netns.clone()),
            };
            sandboxes.places.insert(task.id.clone(), place);
            sandboxes.resolvers.insert(task.id.clone(), observed.resolver);
        }
        sandboxes
    }

    /// The path of the task's network namespace, if it exists.
    pub(super) fn netns(&self, task: &TaskId) -> Option<&Path> {
        self.places.get(task)?.netns()
    }

    /// Where the task's resolver listens.
    pub(super) fn resolver(&self, task: &TaskId) -> Ipv4Addr {
        self.resolvers.get(task).copied().unwrap_or(identity::RESOLVER)
    }
}
