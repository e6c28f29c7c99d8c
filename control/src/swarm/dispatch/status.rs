//! Error statuses that several services return.

use tonic::Status;
use weft_model::NodeId;

/// The caller is not in the cluster state. A node whose session ends with this status stops its
/// tasks, so a session returns it only on a leader, whose cluster state is complete.
pub(super) fn removed(node: &NodeId) -> Status {
    Status::permission_denied(format!("node {node} was removed from the swarm"))
}
