//! Publishes what this node reports to the leader: the plan generation that it has applied, the
//! description of the machine, and the states of its tasks.
//!
//! [`super::reconcile`] calls it at the end of each pass. The session with the dispatcher sends the
//! report whenever it changes.
//!
//! Invariant that the leader relies on: the acknowledged generation is one that all layers of this
//! node have applied, for the membership that the plan belongs to.

use tokio::sync::watch;
use weft_model::{
    NodeId, NodePlan, NodeReport, TaskId, plan::PlanVersion, report::AttachedReports, spec::Labels, state::TaskStatus,
};
use weft_overlay::OverlayState;

use super::describe::describe_node;
use crate::runtime::{EngineFacts, RuntimeKind};

pub(super) struct Reporter {
    reports: watch::Sender<NodeReport>,
    runtime: RuntimeKind,
    /// The labels of the daemon's flags.
    labels: Labels,
    /// The node id and the version of the latest plan that all layers applied. The node has another
    /// id in each membership. A plan of an earlier membership is never acknowledged.
    applied: Option<(NodeId, PlanVersion)>,
}

impl Reporter {
    pub(super) fn new(reports: watch::Sender<NodeReport>, runtime: RuntimeKind, labels: Labels) -> Self {
        Self { reports, runtime, labels, applied: None }
    }

    /// Records that all layers have applied `plan`. The next report acknowledges it.
    pub(super) fn set_applied(&mut self, plan: &NodePlan) {
        self.applied = Some((plan.node.clone(), plan.version()));
    }

    /// Publishes a report if it differs from the last one. `links` comes with the labels of the
    /// container engine. Without them it repeats the last description and the last keys.
    /// `problem` is why the plan is not in effect, or empty.
    pub(super) fn publish(
        &self,
        plan: &NodePlan,
        links: Option<(&OverlayState, EngineFacts)>,
        tasks: Vec<(TaskId, TaskStatus)>,
        attached: Option<AttachedReports>,
        problem: String,
    ) {
        let applied = self.applied.as_ref().filter(|(node, _)| *node == plan.node);
        let applied = applied.map_or_else(PlanVersion::default, |(_, version)| *version);
        let (links, engine) = links.unzip();
        let engine = engine.unwrap_or_default();
        let engine = EngineFacts { labels: merged(engine.labels, &self.labels), ..engine };
        let description = links.map(|links| describe_node(self.runtime, &engine, links));
        // A link that cannot be read or configured for a moment is no lost key: the leader would
        // replace it.
        let configured = links.filter(|links| links.encryption_fault.is_none());
        let keys = configured.map(|links| links.key_links.iter().map(|link| link.key).collect());
        self.reports.send_if_modified(|last| {
            let report = NodeReport {
                acked: applied.generation,
                epoch: applied.epoch,
                addr: None,
                problem,
                description: description.or_else(|| last.description.clone()),
                keys: keys.unwrap_or_else(|| last.keys.clone()),
                tasks,
                attached,
            };
            let changed = *last != report;
            *last = report;
            changed
        });
    }

    /// Records that the kernel no longer holds a plan. The next report acknowledges none.
    pub(super) fn clear_applied(&mut self) {
        self.applied = None;
    }

    /// Replaces the report with an empty one, after this node has left its cluster.
    pub(super) fn clear_report(&self) {
        self.reports.send_replace(NodeReport::default());
    }
}

/// The labels of the container engine and those of the daemon's flags, which a user gives for this
/// cluster: they replace labels of the engine that have the same key.
fn merged(mut engine: Labels, flags: &Labels) -> Labels {
    engine.extend(flags.clone());
    engine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_the_daemon_replace_those_of_the_engine() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let engine = labels(&[("disk", "ssd"), ("zone", "a")]);
        let flags = labels(&[("rack", "7"), ("zone", "b")]);
        assert_eq!(merged(engine, &flags), labels(&[("disk", "ssd"), ("rack", "7"), ("zone", "b")]));
    }
}
