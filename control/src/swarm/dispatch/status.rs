//! Error statuses that several services return, or that the link recognizes.

use tonic::Status;
use weft_model::NodeId;

/// The caller is not in the cluster state. A node whose session ends with this status stops its
/// tasks, so a session returns it only on a leader, whose cluster state is complete.
pub(super) fn removed(node: &NodeId) -> Status {
    Status::permission_denied(format!("node {node} was removed from the swarm"))
}

/// The caller has a plan of epoch `node_epoch`, and the cluster of this leader is of an earlier
/// one. The link recognizes the code, which no other answer to a session has.
pub(super) fn former_cluster(node_epoch: u64, epoch: u64) -> Status {
    Status::out_of_range(format!(
        "this node has a plan of epoch {node_epoch}, and the manager is of an earlier cluster, of epoch {epoch}"
    ))
}
