//! The network namespaces of the tasks of a pass. [`super::reconcile`] makes them from the
//! runtime's tasks, and all layers look up tasks in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
};

use weft_model::{NodePlan, TaskId};
use weft_overlay::Sandbox;

use crate::runtime::{ObservedContainer, ObservedTask, TaskNetns, identity};

/// The tasks and containers of the plan whose links can be made now.
#[derive(Debug, Clone, Default)]
pub(super) struct Sandboxes {
    pub(super) places: BTreeMap<TaskId, Sandbox>,
    resolvers: BTreeMap<TaskId, Ipv4Addr>,
    /// The containers whose links are kept, but of which the runtime knows nothing yet.
    unknown: BTreeSet<TaskId>,
}

impl Sandboxes {
    pub(super) fn new(
        plan: &NodePlan,
        observed: &BTreeMap<TaskId, ObservedTask>,
        attached: Option<&BTreeMap<TaskId, ObservedContainer>>,
    ) -> Self {
        let mut sandboxes = Self::default();
        for local in plan.local() {
            let of_task = || observed.get(local.id).map(|task| (&task.netns, task.resolver));
            let of_container = || attached?.get(local.id).map(|found| (&found.netns, identity::CONTAINER_RESOLVER));
            let Some((netns, resolver)) = of_task().or_else(of_container) else { continue };
            let place = match netns {
                TaskNetns::Missing => continue,
                TaskNetns::Starting { netns, connected } => {
                    Sandbox::HandOver { netns: netns.clone(), told: *connected }
                }
                TaskNetns::At(netns) => Sandbox::Netns(netns.clone()),
            };
            sandboxes.places.insert(local.id.clone(), place);
            sandboxes.resolvers.insert(local.id.clone(), resolver);
        }
        sandboxes
    }

    /// Keeps the links of those containers of the plan that are not in `attached`, because the
    /// runtime knows nothing of them yet. Their engine has their task sides.
    pub(super) fn keep_unknown(&mut self, plan: &NodePlan, attached: Option<&BTreeMap<TaskId, ObservedContainer>>) {
        let is_known = |id: &TaskId| attached.is_some_and(|attached| attached.contains_key(id));
        for container in plan.attached.iter().filter(|container| !is_known(&container.id)) {
            self.places.insert(container.id.clone(), Sandbox::HandOver { netns: None, told: true });
            self.unknown.insert(container.id.clone());
        }
    }

    /// Whether the runtime knows where the links of the task or container are.
    pub(super) fn is_known(&self, task: &TaskId) -> bool {
        !self.unknown.contains(task)
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
