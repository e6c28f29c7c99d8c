//! WireGuard keys: what a report adds and removes, and the order of the stages.

use weft_model::{
    Command, NodeId,
    spec::NetworkSpec,
    state::{KeyStage, NodeKeys},
    wireguard::{NodeKey, PublicKey},
};

use super::check_refused;
use crate::{
    fixture::{TestCluster, network_spec},
    state::is_news,
};

fn key(number: u8) -> NodeKey {
    NodeKey { public_key: PublicKey([number; 32]), port: 51820 + u16::from(number % 2) }
}

fn report(cluster: &mut TestCluster, node: &NodeId, keys: &[NodeKey], acked: u64) {
    cluster.ok(Command::ReportKeys { node: node.clone(), keys: keys.to_vec(), acked });
}

fn set_stage(cluster: &mut TestCluster, node: &NodeId, key: NodeKey, stage: KeyStage) {
    cluster.ok(Command::SetKeyStage { node: node.clone(), key: key.public_key, stage });
}

fn keys<'a>(cluster: &'a TestCluster, node: &NodeId) -> &'a NodeKeys {
    &cluster.state.nodes[node].keys
}

/// The keys and their stages, oldest first.
fn stages(cluster: &TestCluster, node: &NodeId) -> Vec<(NodeKey, KeyStage)> {
    keys(cluster, node).keys.iter().map(|record| (record.key, record.stage)).collect()
}

#[test]
fn an_old_report_does_not_bring_a_removed_key_back() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    report(&mut cluster, &node, &[key(1)], 0);
    set_stage(&mut cluster, &node, key(1), KeyStage::Active);
    cluster.ok(Command::RequestKey { node: node.clone() });
    let acked = cluster.state.index;
    report(&mut cluster, &node, &[key(1), key(2)], acked);
    assert_eq!(keys(&cluster, &node).keys[1].epoch, 1);
    set_stage(&mut cluster, &node, key(2), KeyStage::Active);
    assert_eq!(stages(&cluster, &node), [(key(1), KeyStage::Retiring), (key(2), KeyStage::Active)]);
    set_stage(&mut cluster, &node, key(1), KeyStage::Withdrawn);
    cluster.ok(Command::ForgetKey { node: node.clone(), key: key(1).public_key });
    let both = [key(1), key(2)];
    assert!(!is_news(keys(&cluster, &node), &both, acked), "the report is older than the removal");
    report(&mut cluster, &node, &both, acked);
    assert_eq!(stages(&cluster, &node), [(key(2), KeyStage::Active)]);
    assert!(is_news(keys(&cluster, &node), &[key(2), key(3)], cluster.state.index));
}

#[test]
fn a_key_is_lost_only_if_the_node_has_applied_a_plan_with_it() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    report(&mut cluster, &node, &[key(1)], 0);
    let recorded = cluster.state.index;
    assert!(!is_news(keys(&cluster, &node), &[], recorded - 1), "the daemon has just started");
    assert!(is_news(keys(&cluster, &node), &[key(2)], recorded));
    report(&mut cluster, &node, &[key(2)], recorded);
    assert_eq!(stages(&cluster, &node), [(key(2), KeyStage::Announced)]);
}

#[test]
fn a_key_keeps_its_stage_if_its_port_changes() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    report(&mut cluster, &node, &[key(1)], 0);
    set_stage(&mut cluster, &node, key(1), KeyStage::Active);
    let moved = NodeKey { port: 40_000, ..key(1) };
    assert!(is_news(keys(&cluster, &node), &[moved], 0));
    report(&mut cluster, &node, &[moved], 0);
    assert_eq!(stages(&cluster, &node), [(moved, KeyStage::Active)]);
}

#[test]
fn a_stage_never_goes_back_and_a_key_in_use_is_not_removed() {
    let mut cluster = TestCluster::new();
    let (node, public) = (cluster.first_node(), key(1).public_key);
    report(&mut cluster, &node, &[key(1)], 0);
    let unknown = key(2).public_key;
    check_refused(
        &mut cluster,
        Command::ForgetKey { node: node.clone(), key: unknown },
        &format!("node {node} has no WireGuard key {unknown}"),
    );
    check_refused(
        &mut cluster,
        Command::ForgetKey { node: node.clone(), key: public },
        &format!("WireGuard key {public} is in use"),
    );
    set_stage(&mut cluster, &node, key(1), KeyStage::Active);
    check_refused(
        &mut cluster,
        Command::SetKeyStage { node, key: public, stage: KeyStage::Active },
        &format!("WireGuard key {public} is active, it cannot become active"),
    );
}

#[test]
fn the_keys_of_all_nodes_are_removed_with_the_last_encrypted_network() {
    let mut cluster = TestCluster::new();
    let node = cluster.first_node();
    let networks = ["a", "b"].map(|name| cluster.add_network(NetworkSpec { encrypted: true, ..network_spec(name) }));
    report(&mut cluster, &node, &[key(1)], 0);
    let [first, last] = networks;
    cluster.ok(Command::RemoveNetwork { id: first });
    assert_eq!(stages(&cluster, &node).len(), 1);
    cluster.ok(Command::RemoveNetwork { id: last });
    assert_eq!(stages(&cluster, &node), []);
}
