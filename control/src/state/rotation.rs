//! The progress of a replacement of the CA: which nodes use a certificate of the new one, and its
//! end. `cluster` begins it.
//!
//! The rotation is complete when the leader says so and all nodes use the new CA. Until then the
//! nodes trust both CAs. The removal of the last node that does not use it completes nothing by
//! itself: another node may have gone back to a certificate of the former CA, which only the leader
//! knows.

use weft_model::{Applied, ClusterState, NodeId, Rejection};

use super::{cluster_mut, updated_meta};

/// Nodes that were removed meanwhile are ignored.
pub(super) fn set_rotated(state: &mut ClusterState, ids: &[NodeId], ca_cert_pem: &str) -> Result<Applied, Rejection> {
    let rotation = cluster_mut(state)?.root_rotation.as_ref();
    if rotation.is_some_and(|rotation| rotation.ca_cert_pem == ca_cert_pem) {
        for id in ids {
            if let Some(node) = state.nodes.get_mut(id) {
                node.rotated = true;
            }
        }
        complete(state);
    }
    Ok(Applied::Done)
}

/// Completes the rotation of the CA if all nodes use certificates of the new one.
fn complete(state: &mut ClusterState) {
    if !state.nodes.values().all(|node| node.rotated) {
        return;
    }
    let Some(rotation) = state.cluster.as_mut().and_then(|cluster| cluster.root_rotation.take()) else { return };
    let Some(meta) = state.cluster.as_ref().map(|cluster| cluster.meta) else { return };
    let meta = updated_meta(state, meta);
    if let Some(cluster) = &mut state.cluster {
        cluster.meta = meta;
        cluster.ca_cert_pem = rotation.ca_cert_pem;
        cluster.ca_key_sealed = rotation.ca_key_sealed;
        cluster.worker_secret = rotation.worker_secret;
        cluster.manager_secret = rotation.manager_secret;
    }
    state.nodes.values_mut().for_each(|node| node.rotated = false);
}
