//! Tests of encrypted networks: the WireGuard links, their peers and their routes.

use weft_model::{
    plan::NetworkPlan,
    wireguard::{EncryptedPeer, EncryptionPlan, NodeKey, PublicKey, key_address},
};

use super::*;
use crate::wireguard::{OwnKey, PrivateKey};

fn public_key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

/// A key of this node. The ports of the keys alternate.
fn own_key(number: u8) -> OwnKey {
    let port = 51820 + u16::from(number % 2);
    OwnKey { private_key: PrivateKey([number; 32]), public_key: public_key(number), port }
}

/// A plan with the peers of these numbers. A peer's number is the last byte of its address and its
/// key.
fn encrypted_plan(peers: &[u8]) -> NodePlan {
    let peer = |number: &u8| EncryptedPeer {
        node: weft_model::NodeId::from_random(u128::from(*number)),
        addr: [192, 0, 2, *number].into(),
        keys: vec![NodeKey { public_key: public_key(*number), port: 51820 }],
        active: Some(public_key(*number)),
    };
    let peers = peers.iter().map(peer).collect();
    let encryption = EncryptionPlan { epoch: 1, own: vec![public_key(1)], active: Some(public_key(1)), peers };
    NodePlan { encryption: Some(encryption), ..plan(vec![task(5, &[1])]) }
}

fn desired_with_keys(plan: &NodePlan, keys: &[u8]) -> Desired {
    let keys: Vec<OwnKey> = keys.iter().map(|number| own_key(*number)).collect();
    let sandboxes = plan.tasks.iter().map(|task| (task.id.clone(), "/sandbox".into())).collect();
    let underlay = Underlay { v4: Some(1500), v6: None };
    desired(plan, &sandboxes, &keys, underlay, &NodeSettings::default())
}

fn encrypted_model(peers: &[u8], keys: &[u8]) -> Model {
    let mut model = Model::new(&[task(5, &[1])]);
    model.reconcile(&desired_with_keys(&encrypted_plan(peers), keys));
    model
}

#[test]
fn every_key_has_a_link_with_all_peers_and_a_route_for_its_own_address() {
    let plan = encrypted_plan(&[12, 13]);
    let model = encrypted_model(&[12, 13], &[1, 2]);
    for (number, name) in [(1, "weft-wg1"), (2, "weft-wg0")] {
        let (link, wireguard) = (&model.actual.node.links[name], &model.actual.wireguard[name]);
        let address = key_address(&plan.cluster, &public_key(number));
        assert_eq!(link.addresses, [IpNetwork::from(IpAddr::V6(address))].into());
        assert_eq!((link.mtu, link.up), (1440, true));
        assert_eq!(wireguard.peers.keys().copied().collect::<Vec<_>>(), [public_key(12), public_key(13)]);
        let route = model.actual.node.key_routes.iter().find(|route| route.link == Some(link.index));
        assert_eq!(route.and_then(|route| route.source), Some(address.into()));
    }
    assert_eq!(model.actual.node.key_routes.len(), 3, "and the destination is unreachable without a link");
}

#[test]
fn a_node_without_a_part_in_an_encrypted_network_has_nothing_of_it() {
    let mut model = encrypted_model(&[12], &[1]);
    model.reconcile(&desired_with_keys(&plan(vec![]), &[1]));
    assert!(model.actual.wireguard.is_empty() && model.actual.node.key_routes.is_empty());
    assert!(!model.actual.node.links.keys().any(|name| name::is_wireguard(name)));
}

#[test]
fn a_node_whose_key_has_no_link_yet_sends_to_keys_nowhere() {
    let model = encrypted_model(&[12], &[]);
    let [route] = &model.actual.node.key_routes[..] else { panic!("{:?}", model.actual.node.key_routes) };
    assert_eq!((route.source, route.link), (None, None));
}

/// The steps on the WireGuard links for new peers and own keys.
fn wireguard_ops(model: &Model, plan: &NodePlan, keys: &[u8]) -> Vec<String> {
    diff(&desired_with_keys(plan, keys), &model.actual).wireguard.iter().map(ToString::to_string).collect()
}

#[test]
fn only_peers_that_change_are_set() {
    let model = encrypted_model(&[12, 13], &[1]);
    assert!(wireguard_ops(&model, &encrypted_plan(&[12, 13]), &[1]).is_empty());
    let ops = wireguard_ops(&model, &encrypted_plan(&[13, 14]), &[1]);
    assert_eq!(ops, ["set 1 peers of weft-wg1 and remove 1"]);
    // The node of a peer has another address.
    let mut moved = encrypted_plan(&[12, 13]);
    moved.encryption.as_mut().expect("an encrypted plan").peers[0].addr = [198, 51, 100, 1].into();
    assert_eq!(wireguard_ops(&model, &moved, &[1]), ["set 1 peers of weft-wg1 and remove 0"]);
    // WireGuard follows a peer behind address translation. That alone is no reason to set it again.
    let mut unknown = model.clone();
    let peers = &mut unknown.actual.wireguard.get_mut("weft-wg1").expect("the link").peers;
    peers.get_mut(&public_key(12)).expect("the peer").endpoint = None;
    let ops = wireguard_ops(&unknown, &encrypted_plan(&[12, 13]), &[1]);
    assert_eq!(ops, ["set 1 peers of weft-wg1 and remove 0"], "a new daemon sets every endpoint once");
}

#[test]
fn a_new_key_gets_its_own_link_and_the_old_one_keeps_its_peers() {
    let model = encrypted_model(&[12], &[1]);
    let ops = wireguard_ops(&model, &encrypted_plan(&[12]), &[1, 2]);
    assert_eq!(ops.len(), 2, "{ops:?}");
    assert!(ops.iter().all(|op| op.contains("weft-wg0")), "{ops:?}");
    let ops = wireguard_ops(&encrypted_model(&[12], &[1, 2]), &encrypted_plan(&[12]), &[2]);
    assert_eq!(ops, ["delete WireGuard link weft-wg1"]);
}

#[test]
fn replaces_a_link_that_has_another_key_or_is_no_wireguard_link() {
    let check = |change: &dyn Fn(&mut Model)| {
        let mut model = encrypted_model(&[12], &[1]);
        change(&mut model);
        let ops = wireguard_ops(&model, &encrypted_plan(&[12]), &[1]);
        assert_eq!((ops.len(), ops[0].as_str()), (3, "delete WireGuard link weft-wg1"), "{ops:?}");
        model.reconcile(&desired_with_keys(&encrypted_plan(&[12]), &[1]));
    };
    check(&|model| model.actual.wireguard.get_mut("weft-wg1").expect("the link").public_key = public_key(3));
    check(&|model| model.actual.wireguard.get_mut("weft-wg1").expect("the link").port = 51823);
    check(&|model| drop(model.actual.wireguard.remove("weft-wg1")));
}

#[test]
fn tasks_on_encrypted_networks_have_a_smaller_mtu() {
    let tasks = [task(5, &[1, 2])];
    let mut encrypted = plan(tasks.to_vec());
    encrypted.networks = [1, 2].map(|net| network_plan(net, net == 2)).to_vec();
    let sandboxes = [(tasks[0].id.clone(), "/sandbox".into())].into();
    let underlay = Underlay { v4: Some(1500), v6: None };
    let desired = desired(&encrypted, &sandboxes, &[], underlay, &NodeSettings::default());
    let mtus = |netns: &DesiredNetns| {
        netns.links.values().filter(|link| link.mtu.is_some()).map(|link| link.mtu).collect::<Vec<_>>()
    };
    let task = &desired.tasks[&tasks[0].id];
    assert_eq!((mtus(&task.host), mtus(&task.sandbox)), (vec![Some(1450), Some(1370)], vec![Some(1450), Some(1370)]));
}

fn network_plan(net: u8, encrypted: bool) -> NetworkPlan {
    NetworkPlan {
        id: NetworkId::from_random(net.into()),
        name: format!("net{net}").parse().expect("a name"),
        vni: Vni::new(4096 + u32::from(net)).expect("a VNI"),
        subnets: subnets(net),
        ipv6: false,
        internal: false,
        ingress: false,
        encrypted,
    }
}
