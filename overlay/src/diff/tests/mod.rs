//! Tests with a model of the kernel that applies the operations. They show that every actual state
//! becomes the desired one.

mod wireguard;

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;
use weft_model::{
    DEFAULT_TUNNEL_PORT, DualAddr, Mac, NetworkId, NodePlan, TaskId, Vni,
    net::{Subnet, Subnets},
    plan::{AttachedLink, AttachedPlan, AttachmentPlan, Expanded, TaskGoal, TaskPlan},
    spec::{ContainerSpec, Labels, Resources},
};

use super::*;
use crate::{
    actual::{ActualPeer, ActualRoute, ActualWireGuard},
    desired::{NodeSettings, Underlay, desired},
    sandbox::Sandbox,
};

fn subnets(net: u8) -> Subnets {
    Subnets::dual(
        format!("10.0.{net}.0/24").parse().expect("a subnet"),
        format!("fd00:{net}::/64").parse().expect("a subnet"),
    )
}

fn attachment(net: u8, host: u8) -> AttachmentPlan {
    let addr = DualAddr {
        v4: Some([10, 0, net, host].into()),
        v6: [0xfd00, u16::from(net), 0, 0, 0, 0, 0, host.into()].into(),
    };
    AttachmentPlan {
        network: NetworkId::from_random(net.into()),
        vni: Vni::new(4096 + u32::from(net)).expect("a VNI"),
        mtu: None,
        subnets: subnets(net),
        addr,
        mac: Mac::of_task(addr),
    }
}

fn task(number: u8, nets: &[u8]) -> TaskPlan {
    TaskPlan {
        id: TaskId::from_random(u128::from(number)),
        service: weft_model::ServiceId::from_random(1),
        service_name: "web".parse().expect("a name"),
        name: format!("web.{number}"),
        container: ContainerSpec { stop_grace_ms: 0, ..ContainerSpec::new("weft/whoami") }.into(),
        resources: Resources::default(),
        labels: Labels::new(),
        attachments: nets.iter().map(|net| attachment(*net, number)).collect(),
        desired: TaskGoal::Run,
        expanded: Expanded::default(),
        container_at: None,
        registry_auth: None,
        node_network: None,
        has_run: false,
    }
}

fn plan(tasks: Vec<TaskPlan>) -> NodePlan {
    NodePlan { tasks, ..NodePlan::empty(weft_model::NodeId::from_random(1), [192, 0, 2, 1].into()) }
}

fn desired_for(tasks: Vec<TaskPlan>) -> Desired {
    let sandboxes = tasks.iter().map(|task| (task.id.clone(), format!("/sandbox/{}", task.id).into())).collect();
    let underlay = Underlay { v4: Some(1500), v6: None };
    desired(&plan(tasks), &sandboxes, &[], underlay, &NodeSettings::default())
}

/// The part of the kernel that the operations change.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    actual: Actual,
    next_index: u32,
}

impl Model {
    fn new(tasks: &[TaskPlan]) -> Self {
        let netns = ActualNetns {
            links: [("lo".to_owned(), ActualLink { index: 1, loopback: true, mtu: 65_536, ..ActualLink::default() })]
                .into(),
            ..ActualNetns::default()
        };
        let tasks = tasks.iter().map(|task| (task.id.clone(), netns.clone())).collect();
        Self { actual: Actual { node: netns, wireguard: BTreeMap::new(), tasks }, next_index: 2 }
    }

    fn reconciled(tasks: &[TaskPlan]) -> Self {
        let mut model = Self::new(tasks);
        model.reconcile(&desired_for(tasks.to_vec()));
        model
    }

    /// Compares and applies until nothing is left to do, as `crate::reconcile` does.
    fn reconcile(&mut self, desired: &Desired) {
        for _ in 0..3 {
            let ops = diff(desired, &self.actual);
            for op in &ops.wireguard {
                self.apply_wireguard(op);
            }
            for op in &ops.node {
                apply(op, &mut self.actual.node, None, &mut self.next_index);
            }
            for (task, ops) in &ops.tasks {
                let sandbox = self.actual.tasks.get_mut(task).expect("a sandbox");
                for op in &ops.host {
                    apply(op, &mut self.actual.node, Some(sandbox), &mut self.next_index);
                }
                for op in &ops.sandbox {
                    apply(op, sandbox, None, &mut self.next_index);
                }
            }
        }
        assert_eq!(diff(desired, &self.actual), Ops::default(), "nothing must be left to do");
    }
}

impl Model {
    fn apply_wireguard(&mut self, op: &WireGuardOp) {
        let name = op.name();
        match op {
            WireGuardOp::Delete { .. } => {
                remove_link(&mut self.actual.node, None, name);
                self.actual.wireguard.remove(name);
            }
            WireGuardOp::Create { public_key, port, mtu, .. } => {
                self.next_index += 1;
                let link = ActualLink { index: self.next_index, mtu: *mtu, ..ActualLink::default() };
                assert!(self.actual.node.links.insert(name.to_owned(), link).is_none(), "{name} exists");
                let link = ActualWireGuard { public_key: *public_key, port: *port, peers: BTreeMap::new() };
                self.actual.wireguard.insert(name.to_owned(), link);
            }
            WireGuardOp::SetPeers { put, remove, .. } => {
                let link = self.actual.wireguard.get_mut(name).expect("the link");
                link.peers.retain(|key, _| !remove.contains(key));
                for (key, peer) in put {
                    let allowed_ips = [IpNetwork::from(IpAddr::V6(peer.address))].into();
                    link.peers.insert(*key, ActualPeer { endpoint: Some(peer.endpoint), allowed_ips });
                }
            }
        }
    }
}

fn apply(op: &Op, netns: &mut ActualNetns, peers: Option<&mut ActualNetns>, next_index: &mut u32) {
    let mut new_link = |kind| {
        *next_index += 1;
        ActualLink { index: *next_index, kind, ..ActualLink::default() }
    };
    match op {
        Op::DeleteLink { name } => remove_link(netns, peers, name),
        Op::CreateTunnel { name, port, mtu } => {
            let kind = ActualLinkKind::Vxlan(VxlanSettings { collect_metadata: true, learning: false, port: *port });
            let link = ActualLink { mtu: *mtu, ..new_link(kind) };
            assert!(netns.links.insert(name.clone(), link).is_none(), "{name} exists");
        }
        Op::CreateVeth { host, peer, mtu, .. } => {
            let (mut host_side, mut task_side) = (new_link(ActualLinkKind::Other), new_link(ActualLinkKind::Other));
            host_side.kind = ActualLinkKind::Veth { peer: Some(task_side.index) };
            task_side.kind = ActualLinkKind::Veth { peer: Some(host_side.index) };
            (host_side.mtu, task_side.mtu) = (*mtu, *mtu);
            assert!(netns.links.insert(host.clone(), host_side).is_none(), "{host} exists");
            let peers = peers.expect("a sandbox for the peer");
            assert!(peers.links.insert(peer.clone(), task_side).is_none(), "{peer} exists");
        }
        Op::SetSysctl { key, value } => {
            netns.sysctls.insert(key.clone(), value.replace(' ', "\t"));
        }
        Op::SetLink { name, change } => {
            let link = netns.links.get_mut(name).expect("the link to change");
            link.mac = change.mac.or(link.mac);
            link.mtu = change.mtu.unwrap_or(link.mtu);
            link.alias = change.alias.clone().or(link.alias.take());
            link.up |= change.up;
        }
        Op::RemoveAddress { link, address } => {
            let index = netns.links[link].index;
            netns.links.get_mut(link).expect("the link").addresses.remove(address);
            // The kernel removes the routes whose gateway is not reachable any more.
            netns.routes.retain(|route| route.link != Some(index) || route.destination.is_ipv6() != address.is_ipv6());
        }
        Op::AddAddress { link, address } => {
            netns.links.get_mut(link).expect("the link").addresses.insert(*address);
        }
        Op::RemoveRoute(removed) => netns.routes.retain(|route| route != removed),
        Op::AddRoute(route) => {
            let link = &netns.links[&route.link];
            assert!(link.up, "{} is down", route.link);
            let connected = |address: &IpNetwork| address.contains(route.via);
            assert!(link.addresses.iter().any(connected), "the gateway {} cannot be reached", route.via);
            netns.routes.push(gateway_route(route.destination, route.via, link.index));
        }
        // The kernel may have removed the route together with its link.
        Op::RemoveKeyRoute(route) => netns.key_routes.retain(|other| other != route),
        Op::AddKeyRoute(KeyRoute { destination, kind }) => {
            let (source, link) = match kind {
                KeyRouteKind::From { source, link } => (Some((*source).into()), Some(&netns.links[link])),
                KeyRouteKind::Unreachable => (None, None),
            };
            assert!(link.is_none_or(|link| link.up), "the link is down");
            let link = link.map(|link| link.index);
            netns.key_routes.push(ActualKeyRoute { destination: *destination, source, link, metric: 0 });
        }
    }
}

fn remove_link(netns: &mut ActualNetns, peers: Option<&mut ActualNetns>, name: &str) {
    let Some(link) = netns.links.remove(name) else { return };
    netns.routes.retain(|route| route.link != Some(link.index));
    netns.key_routes.retain(|route| route.link != Some(link.index));
    netns.sysctls.retain(|key, _| !key.contains(&format!("/{name}/")));
    if let (ActualLinkKind::Veth { peer: Some(index) }, Some(peers)) = (link.kind, peers)
        && let Some(name) = peers.link_by_index(index).map(|(name, _)| name.to_owned())
    {
        remove_link(peers, None, &name);
    }
}

fn gateway_route(destination: IpNetwork, via: IpAddr, link: u32) -> ActualRoute {
    ActualRoute { destination, via: Some(via), link: Some(link), source: None, metric: 0 }
}

#[test]
fn a_task_on_two_networks_has_two_links_and_its_default_routes_on_the_first() {
    let tasks = [task(5, &[1, 2])];
    let model = Model::reconciled(&tasks);
    assert_eq!(
        model.actual.node.links.keys().filter(|name| name::is_weft_link(name)).count(),
        3,
        "the tunnel and two host sides"
    );
    let sandbox = &model.actual.tasks[&tasks[0].id];
    let addresses = |link: &str| sandbox.links[link].addresses.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(addresses("eth0"), ["10.0.1.5/24".to_owned(), "fd00:1::5/64".to_owned()].into());
    assert_eq!(addresses("eth1"), ["10.0.2.5/24".to_owned(), "fd00:2::5/64".to_owned()].into());
    assert_eq!(sandbox.links["eth1"].mac, Some(attachment(2, 5).mac));
    assert!(sandbox.links.values().all(|link| link.up), "every link is up, lo included");
    let eth0 = sandbox.links["eth0"].index;
    assert_eq!(sandbox.routes.len(), 2);
    assert!(sandbox.routes.iter().all(|route| route.link == Some(eth0)), "the default routes use the first network");
    let all = || model.actual.node.links.iter().chain(&sandbox.links).filter(|(_, link)| !link.loopback);
    assert!(all().all(|(_, link)| link.up));
    assert!(all().all(|(name, link)| link.mtu == 1450 || name == name::TUNNEL));
}

#[test]
fn a_link_leads_to_all_subnets_of_its_network() {
    let mut task = task(5, &[1, 2]);
    for attachment in &mut task.attachments {
        attachment.subnets.v4.push(Subnet::v4("10.77.0.0/24".parse().expect("a subnet")));
    }
    let sandbox = &Model::reconciled(&[task.clone()]).actual.tasks[&task.id];
    let through = |link: &str| {
        let routes = sandbox.routes.iter().filter(|route| route.link == Some(sandbox.links[link].index));
        routes.filter_map(|route| Some(format!("{} via {}", route.destination, route.via?))).collect::<BTreeSet<_>>()
    };
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(through("eth0"), texts(&["0.0.0.0/0 via 10.0.1.1", "10.77.0.0/24 via 10.0.1.1", "::/0 via fd00:1::1"]));
    assert_eq!(through("eth1"), texts(&["10.77.0.0/24 via 10.0.2.1"]));
}

#[test]
fn a_task_without_ipv4_has_ipv6_addresses_and_routes_only() {
    let mut task = task(5, &[1]);
    task.attachments[0].addr.v4 = None;
    task.attachments[0].subnets.v4.clear();
    let sandbox = &Model::reconciled(&[task.clone()]).actual.tasks[&task.id];
    assert!(sandbox.links["eth0"].addresses.iter().all(IpNetwork::is_ipv6));
    assert_eq!(sandbox.routes.len(), 1);
    assert!(sandbox.routes[0].destination.is_ipv6());
}

#[test]
fn a_chosen_mtu_makes_links_smaller_and_never_larger_than_the_tunnel_carries() {
    for (wanted, expected) in [(1400, 1400), (1450, 1450), (9000, 1450)] {
        let mut task = task(5, &[1, 2]);
        task.attachments[1].mtu = Some(wanted);
        let model = Model::reconciled(&[task.clone()]);
        let sandbox = &model.actual.tasks[&task.id];
        assert_eq!((sandbox.links["eth0"].mtu, sandbox.links["eth1"].mtu), (1450, expected));
        assert_eq!(model.actual.node.links[&name::host_side(&task.id, 1)].mtu, expected, "both ends");
    }
}

#[test]
fn makes_no_operation_if_the_actual_state_is_the_desired_one() {
    let tasks = [task(5, &[1, 2]), task(6, &[1])];
    let model = Model::reconciled(&tasks);
    assert!(diff(&desired_for(tasks.to_vec()), &model.actual).is_empty());
}

/// An engine moves the task sides, and names them as it likes.
#[test]
fn task_sides_are_handed_over_once_and_keep_the_names_that_an_engine_gives_them() {
    let task = task(5, &[1, 2]);
    let (id, plan) = (task.id.clone(), plan(vec![task.clone()]));
    let desired_in = |sandbox: Sandbox| {
        let underlay = Underlay { v4: Some(1500), v6: None };
        desired(&plan, &[(id.clone(), sandbox)].into(), &[], underlay, &NodeSettings::default())
    };
    let mut model = Model::new(std::slice::from_ref(&task));
    let handing_over = desired_in(Sandbox::HandOver { netns: None, told: true });
    let created = diff(&handing_over, &model.actual).tasks[&id].clone();
    let is_creation = |op: &&Op| matches!(op, Op::CreateVeth { sandbox: None, peer, .. } if peer.starts_with("wp"));
    assert_eq!(created.host.iter().filter(is_creation).count(), 2, "{created:?}");
    assert!(created.sandbox.is_empty(), "{created:?}");

    // The engine has moved the task sides: the second one is eth0.
    model.reconcile(&desired_in("/sandbox".into()));
    let sandbox = model.actual.tasks.get_mut(&id).expect("a sandbox");
    let (first, second) = (sandbox.links.remove("eth0"), sandbox.links.remove("eth1"));
    sandbox.links.extend([("eth1".to_owned(), first.expect("a link")), ("eth0".to_owned(), second.expect("a link"))]);
    sandbox.sysctls.clear();
    assert_eq!(diff(&handing_over, &model.actual).tasks, BTreeMap::new(), "the links are not made again");
    let again = diff(&desired_in(Sandbox::HandOver { netns: None, told: false }), &model.actual).tasks[&id].clone();
    assert_eq!(again.host.iter().filter(is_creation).count(), 2, "those of an earlier start are no use: {again:?}");
    let mut settled = desired_in("/sandbox".into());
    let node = model.actual.node.clone();
    settled.tasks.get_mut(&id).expect("the task").follow_names(&node, &model.actual.tasks[&id]);
    let routes = settled.tasks[&id].sandbox.routes.clone().expect("routes");
    assert!(routes.iter().filter(|route| route.destination.prefix() == 0).all(|route| route.link == "eth1"));
    let ops = diff(&settled, &model.actual).tasks[&id].clone();
    assert!(ops.host.is_empty(), "no link is made again: {ops:?}");
    assert!(ops.sandbox.iter().all(|op| matches!(op, Op::SetSysctl { .. })), "{ops:?}");

    // A task side that is missing gets a name that no other one has.
    model.actual.tasks.get_mut(&id).expect("a sandbox").links.remove("eth1");
    let mut settled = desired_in("/sandbox".into());
    settled.tasks.get_mut(&id).expect("the task").follow_names(&node, &model.actual.tasks[&id]);
    let names: Vec<_> = settled.tasks[&id].sandbox.links.keys().map(String::as_str).collect();
    assert_eq!(names, ["eth0", "eth1", "lo"]);
    assert_eq!(settled.tasks[&id].sandbox.links["eth0"].mac, Some(attachment(2, 5).mac), "the second link");
}

#[test]
fn deletes_the_links_of_removed_tasks() {
    let mut model = Model::reconciled(&[task(5, &[1, 2]), task(6, &[1])]);
    model.reconcile(&desired_for(vec![task(6, &[1])]));
    let left: Vec<_> = model.actual.node.links.keys().filter(|name| name::is_host_side(name)).collect();
    assert_eq!(left, [&name::host_side(&task(6, &[1]).id, 0)]);
}

#[test]
fn never_deletes_links_that_do_not_belong_to_weft() {
    let mut model = Model::reconciled(&[]);
    let other = ActualLink { index: 90, ..ActualLink::default() };
    for name in ["eth0", "docker0", "vethabcdefg-0", "wvabcdefghijk-0"] {
        model.actual.node.links.insert(name.to_owned(), other.clone());
    }
    let before = model.clone();
    model.reconcile(&desired_for(vec![]));
    assert_eq!(model, before, "a link that has a name of weft but is not a veth stays too");
}

#[test]
fn makes_no_operation_for_a_task_whose_sandbox_cannot_be_read() {
    let tasks = [task(5, &[1])];
    let mut model = Model::reconciled(&tasks);
    model.actual.tasks.clear();
    assert!(diff(&desired_for(tasks.to_vec()), &model.actual).is_empty());
}

#[test]
fn replaces_a_vxlan_device_with_other_settings() {
    for settings in [
        VxlanSettings { collect_metadata: false, learning: false, port: DEFAULT_TUNNEL_PORT },
        VxlanSettings { collect_metadata: true, learning: true, port: DEFAULT_TUNNEL_PORT },
        VxlanSettings { collect_metadata: true, learning: false, port: 8472 },
    ] {
        let mut model = Model::reconciled(&[]);
        model.actual.node.links.get_mut(name::TUNNEL).expect("the tunnel").kind =
            ActualLinkKind::Vxlan(settings.clone());
        model.reconcile(&desired_for(vec![]));
        assert!(is_tunnel(&model.actual.node.links[name::TUNNEL], DEFAULT_TUNNEL_PORT), "{settings:?}");
    }
}

/// A change that another program made to weft's links.
#[derive(Debug, Clone)]
enum Damage {
    DeleteHostSide(usize),
    DeleteTunnel,
    DeleteTaskSide(usize),
    ChangeMac(usize),
    ChangeMtu(usize),
    SetDown(usize),
    RemoveAddresses(usize),
    AddAddress(usize, u8),
    RemoveRoutes(usize),
    AddRoute(usize, u8),
    ResetSysctls(usize),
    ReplaceSandbox(usize),
}

fn damages() -> impl Strategy<Value = Damage> {
    let which = 0..3usize;
    prop_oneof![
        which.clone().prop_map(Damage::DeleteHostSide),
        Just(Damage::DeleteTunnel),
        which.clone().prop_map(Damage::DeleteTaskSide),
        which.clone().prop_map(Damage::ChangeMac),
        which.clone().prop_map(Damage::ChangeMtu),
        which.clone().prop_map(Damage::SetDown),
        which.clone().prop_map(Damage::RemoveAddresses),
        (which.clone(), 0..4u8).prop_map(|(which, host)| Damage::AddAddress(which, host)),
        which.clone().prop_map(Damage::RemoveRoutes),
        (which.clone(), 0..4u8).prop_map(|(which, host)| Damage::AddRoute(which, host)),
        which.clone().prop_map(Damage::ResetSysctls),
        which.prop_map(Damage::ReplaceSandbox),
    ]
}

/// The links of the tasks: the number of the task and the index of its link.
const LINKS: [(u8, usize); 3] = [(5, 0), (5, 1), (6, 0)];

fn damage(model: &mut Model, damage: &Damage) {
    let which = match damage {
        Damage::DeleteTunnel => return remove_link(&mut model.actual.node, None, name::TUNNEL),
        Damage::DeleteHostSide(which)
        | Damage::DeleteTaskSide(which)
        | Damage::ChangeMac(which)
        | Damage::ChangeMtu(which)
        | Damage::SetDown(which)
        | Damage::RemoveAddresses(which)
        | Damage::AddAddress(which, _)
        | Damage::RemoveRoutes(which)
        | Damage::AddRoute(which, _)
        | Damage::ResetSysctls(which)
        | Damage::ReplaceSandbox(which) => *which,
    };
    let (number, index) = LINKS[which];
    let id = task(number, &[]).id;
    let (host, name) = (name::host_side(&id, index), name::task_side(index));
    let sandbox = model.actual.tasks.get_mut(&id).expect("a sandbox");
    match damage {
        Damage::DeleteHostSide(_) => return remove_link(&mut model.actual.node, Some(sandbox), &host),
        Damage::DeleteTaskSide(_) => return remove_link(sandbox, Some(&mut model.actual.node), &name),
        Damage::RemoveRoutes(_) => return sandbox.routes.clear(),
        Damage::ResetSysctls(_) => {
            sandbox.sysctls.values_mut().for_each(|value| *value = "9".to_owned());
            return model.actual.node.sysctls.clear();
        }
        // The sandbox was replaced by a new one with the same path. The old one and its link still
        // exist.
        Damage::ReplaceSandbox(_) => {
            remove_link(sandbox, None, &name);
            if let Some(host) = model.actual.node.links.get_mut(&host) {
                host.kind = ActualLinkKind::Veth { peer: Some(1_000) };
            }
        }
        _ => {}
    }
    let (Some(link), Some(host)) = (sandbox.links.get_mut(&name), model.actual.node.links.get_mut(&host)) else {
        return;
    };
    match damage {
        Damage::ChangeMac(_) => link.mac = None,
        Damage::ChangeMtu(_) => (link.mtu, host.mtu) = (9_000, 1_300),
        Damage::SetDown(_) => (link.up, host.up) = (false, false),
        Damage::RemoveAddresses(_) => link.addresses.clear(),
        Damage::AddAddress(_, last) => {
            link.addresses.insert(format!("10.99.0.{last}/24").parse().expect("an address"));
        }
        Damage::AddRoute(_, last) => {
            let destination = "0.0.0.0/0".parse().expect("a network");
            sandbox.routes.push(gateway_route(destination, [10, 99, 0, *last].into(), link.index));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn repairs_every_change_of_the_links(all in prop::collection::vec(damages(), 0..8)) {
        let tasks = [task(5, &[1, 2]), task(6, &[1])];
        let mut model = Model::reconciled(&tasks);
        for one in &all {
            damage(&mut model, one);
        }
        model.reconcile(&desired_for(tasks.to_vec()));
    }
}

/// A container that is no task runs with links at `eth0`, of its engine, and `eth1`, which the
/// engine has moved there. It is connected to one more network.
#[test]
fn a_running_container_gets_another_link_and_keeps_the_routes_of_its_engine() {
    let link = |index, net| AttachedLink { index, attachment: attachment(net, 7), present: true };
    let container = |links| AttachedPlan { id: TaskId::from_random(7), identity: None, links };
    let desired_for = |links| {
        let plan = NodePlan { attached: vec![container(links)], ..plan(vec![]) };
        let sandboxes = [(TaskId::from_random(7), "/sandbox".into())].into();
        let underlay = Underlay { v4: Some(1500), v6: None };
        desired(&plan, &sandboxes, &[], underlay, &NodeSettings::default())
    };
    let first = desired_for(vec![link(0, 1)]);
    let task = &first.tasks[&TaskId::from_random(7)];
    assert_eq!((task.sandbox.routes.as_ref(), task.attachments.len()), (None, 1));
    assert!(!task.sandbox.sysctls.contains_key("net/ipv4/ip_unprivileged_port_start"), "a user may have set it");
    let both = desired_for(vec![link(0, 1), link(2, 2)]);
    let task = &both.tasks[&TaskId::from_random(7)];
    assert!(task.sandbox.links.contains_key("weft2"), "no name that its engine may choose: {:?}", task.sandbox.links);
    let hosts: Vec<_> = task.host.links.keys().cloned().collect();
    assert!(
        hosts.iter().any(|name| name.ends_with("-0")) && hosts.iter().any(|name| name.ends_with("-2")),
        "{hosts:?}"
    );
    // When the first network goes, the other link stays as it is.
    let second = desired_for(vec![link(2, 2)]);
    let left = &second.tasks[&TaskId::from_random(7)].host.links;
    assert!(left.iter().all(|(name, link)| both.tasks[&TaskId::from_random(7)].host.links.get(name) == Some(link)));
}
