//! The network namespaces of the tasks of a pass. [`super::reconcile`] makes them from the
//! runtime's tasks, and all layers look up tasks in them.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path};

use weft_model::{NodePlan, TaskId};
use weft_overlay::Sandbox;

use crate::runtime::{ObservedContainer, ObservedTask, TaskNetns, identity};

/// The tasks and containers of the plan whose links can be made now.
#[derive(Debug, Clone, Default)]
pub(super) struct Sandboxes {
    pub(super) places: BTreeMap<TaskId, Sandbox>,
    resolvers: BTreeMap<TaskId, Ipv4Addr>,
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

    /// The path of the task's network namespace, if it exists.
    pub(super) fn netns(&self, task: &TaskId) -> Option<&Path> {
        self.places.get(task)?.netns()
    }

    /// Where the task's resolver listens.
    pub(super) fn resolver(&self, task: &TaskId) -> Ipv4Addr {
        self.resolvers.get(task).copied().unwrap_or(identity::RESOLVER)
    }
}
