//! Forms a cluster again from one copy of its state, after the quorum of its managers was lost.
//!
//! `swarm::membership` calls this module while no log is open, so these changes are no commands.

use weft_model::{
    ClusterState, NodeId, Rejection,
    command::{JoinNode, ObjectKind},
    spec::Role,
    state::FEATURE_LEVEL,
};

use super::{nodes, not_found, updated_meta};

/// Makes `manager`, a node of `state`, the only manager, at the log index `index`. All other
/// objects stay: services, networks, tasks, nodes, tokens and the certificate authority. The other
/// managers become workers once they connect. Returns the manager's new Raft id: messages of
/// managers of the former log are addressed to the old one, and are refused.
///
/// The epoch increases, so that nodes prefer plans of this cluster to plans of the former managers,
/// of which some may still run. It also exceeds the epoch of a cluster that was formed earlier from
/// the same copy of the state, by this clock (`now_ms`, in Unix milliseconds): nodes may have plans
/// of that cluster with a greater index.
///
/// If the CA is being replaced, every node must report again that it uses a certificate of the new
/// one.
///
/// # Errors
/// [`Rejection::NotFound`] if the state does not contain `manager`.
pub fn reform(state: &mut ClusterState, index: u64, manager: &NodeId, now_ms: u64) -> Result<u64, Rejection> {
    if !state.nodes.contains_key(manager) {
        return Err(not_found(ObjectKind::Node, manager));
    }
    state.index = index;
    state.epoch = now_ms.max(state.epoch + 1);
    state.digests.clear();
    // The only manager runs this release.
    state.feature_level = state.feature_level.max(FEATURE_LEVEL);
    let raft_id = nodes::next_raft_id(state);
    let metas: Vec<_> = state.nodes.values().map(|node| updated_meta(state, node.meta)).collect();
    for (node, meta) in state.nodes.values_mut().zip(metas) {
        let leads = node.id == *manager;
        if leads {
            node.raft_id = raft_id;
        }
        let role = if leads { Role::Manager } else { Role::Worker };
        if node.spec.role != role {
            node.spec.role = role;
            node.meta = meta;
        }
        node.voter = leads;
        node.in_raft_config = leads;
        // Since the copy was made, it may have got a certificate of yet another CA.
        node.rotated = false;
    }
    Ok(raft_id)
}

/// As [`reform`], with a manager that is no node of the cluster yet: the machine on which a backup
/// is restored.
///
/// # Errors
/// The [`Rejection`] of a node that cannot join, for example because a service publishes its port.
pub fn restore(state: &mut ClusterState, index: u64, manager: JoinNode, now_ms: u64) -> Result<u64, Rejection> {
    let id = manager.id.clone();
    state.index = index;
    nodes::join(state, manager)?;
    reform(state, index, &id, now_ms)
}

#[cfg(test)]
mod tests {
    use weft_model::{
        Command,
        state::{Node, RootRotation},
    };

    use super::*;
    use crate::fixture::{TestCluster, service_spec};

    #[test]
    fn one_manager_remains_and_everything_else_stays() {
        let mut cluster = TestCluster::new();
        let join = cluster.joining("n2", Role::Manager);
        let survivor = join.id.clone();
        cluster.ok(Command::JoinNode(Box::new(join)));
        cluster.ok(Command::SetVoter { id: survivor.clone(), voter: true });
        let worker = cluster.node("n3", &[]);
        let service = cluster.add_service(service_spec("web", 2, &[]));
        cluster.running_task(&service, 1, &worker);
        let before = cluster.state.clone();
        let mut state = before.clone();
        let raft_id = reform(&mut state, before.index + 1, &survivor, 7_000).expect("the survivor is a node");
        assert_eq!((state.epoch, state.index), (7_000, before.index + 1));
        assert!(before.nodes.values().all(|node| node.raft_id < raft_id), "a fresh Raft id");
        let managers =
            |of: fn(&Node) -> bool| state.nodes.values().filter(|n| of(n)).map(|n| &n.id).collect::<Vec<_>>();
        for of in [Node::is_manager, |n: &Node| n.voter, |n: &Node| n.in_raft_config] {
            assert_eq!(managers(of), [&survivor]);
        }
        assert_eq!(state.nodes.len(), 3);
        assert_eq!(
            (&state.services, &state.networks, &state.tasks, &state.cluster),
            (&before.services, &before.networks, &before.tasks, &before.cluster)
        );
        assert!(reform(&mut state, 9, &NodeId::from_random(99), 0).is_err());
    }

    #[test]
    fn every_node_must_report_again_that_it_uses_the_new_ca() {
        let mut cluster = TestCluster::new();
        let (n1, n2) = (cluster.first_node(), cluster.node("n2", &[]));
        let (version, spec) = {
            let known = cluster.state.cluster.as_ref().expect("a cluster");
            (known.meta.version, known.spec.clone())
        };
        let rotation = Box::new(RootRotation {
            ca_cert_pem: "new".to_owned(),
            ca_key_sealed: b"key".to_vec(),
            cross_signed_pem: String::new(),
            worker_secret: String::new(),
            manager_secret: String::new(),
        });
        cluster.ok(Command::RotateRoot { version, spec, rotation });
        cluster.ok(Command::SetRotated { nodes: vec![n2.clone()], ca_cert_pem: "new".to_owned() });
        assert!(cluster.state.nodes[&n2].rotated);
        let mut state = cluster.state.clone();
        reform(&mut state, cluster.state.index + 1, &n1, 7_000).expect("the manager is a node");
        assert!(state.nodes.values().all(|node| !node.rotated));
        assert_eq!(state.cluster, cluster.state.cluster, "the rotation continues");
    }

    #[test]
    fn a_restored_cluster_has_the_new_machine_as_its_manager() {
        let mut cluster = TestCluster::new();
        cluster.node("n2", &[]);
        let mut join = cluster.joining("n9", Role::Manager);
        join.addr = [192, 0, 2, 99].into();
        let mut state = cluster.state.clone();
        let raft_id = restore(&mut state, cluster.state.index + 1, join.clone(), 1).expect("the node joins");
        let managers: Vec<_> = state.nodes.values().filter(|node| node.is_manager()).collect();
        assert_eq!(managers.iter().map(|n| (&n.id, n.raft_id)).collect::<Vec<_>>(), [(&join.id, raft_id)]);
        assert_eq!(state.nodes.len(), 3);
    }

    #[test]
    fn the_epoch_also_increases_from_the_same_copy_and_with_a_clock_that_was_set_back() {
        let cluster = TestCluster::new();
        let manager = cluster.state.nodes.keys().next().expect("a node").clone();
        let epoch = |epoch, now_ms| {
            let mut state = cluster.state.clone();
            state.epoch = epoch;
            reform(&mut state, 9, &manager, now_ms).expect("the manager is a node");
            state.epoch
        };
        assert!(epoch(0, 1_000) < epoch(0, 1_001), "the same copy, later");
        assert_eq!(epoch(1_000, 10), 1_001);
    }
}
