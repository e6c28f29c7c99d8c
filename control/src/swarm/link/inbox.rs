//! Decides whether this node takes a plan that a manager sends. Pure; the session module calls it.

use weft_model::NodePlan;

use super::acks::AckTracker;

/// What to do about a manager of an earlier epoch.
pub(super) const FORMER_CLUSTER: &str = "the cluster was formed again without this manager: switch it off. If it was restored \
                              while its clock was wrong, set the clock and run \"weft swarm init \
                              --force-new-cluster\" on it";
/// What to do about a manager that has forgotten changes.
const SET_BACK: &str = "the disk of this manager was set back, for example by a snapshot of its machine. Run \"weft swarm \
                        init --force-new-cluster\" on it";

/// What happens to a plan from a manager.
#[derive(Debug, PartialEq)]
pub(in crate::swarm) enum Received {
    /// It replaces the node's plan.
    Publish(Box<NodePlan>),
    /// It differs from the node's plan in its generation only: the agent has nothing to do and is
    /// not notified.
    Unchanged,
    /// It is older than the node's plan. The text says why, and what to do.
    Outdated(String),
}

/// Compares a plan with `current`, the plan that the agent has, and records in `acks` what the node
/// may ack from now on.
///
/// A plan that is older than the current one, or than the generation up to which that one is
/// unchanged, ends the session. Its leader does not know what this node has acked to a later one,
/// for example that a backend takes no new flows. A plan of the same version is taken: another
/// release may compute another plan from the same state.
pub(in crate::swarm) fn receive(acks: &mut AckTracker, current: Option<&NodePlan>, mut plan: NodePlan) -> Received {
    let version = plan.version();
    if let Some(current) = current {
        let known = acks.known().max(current.version());
        if plan.node == current.node && version < known {
            let reason = if version.epoch < known.epoch { FORMER_CLUSTER } else { SET_BACK };
            return Received::Outdated(format!(
                "this node has generation {} of its plan in epoch {}, and the manager sends generation {} of epoch {}: \
                 {reason}",
                known.generation, known.epoch, version.generation, version.epoch,
            ));
        }
        plan.generation = current.generation;
        if plan == *current {
            acks.unchanged(version.generation);
            return Received::Unchanged;
        }
        plan.generation = version.generation;
    }
    acks.deliver(version);
    Received::Publish(Box::new(plan))
}
