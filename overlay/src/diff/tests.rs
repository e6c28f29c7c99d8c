//! A model of the kernel applies the operations, so that every test can say: whatever was found, it ends as desired.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use weft_model::{
    DualAddr, Mac, NetworkId, NodePlan, TaskId, Vni,
    net::Subnets,
    plan::{AttachmentPlan, TaskGoal, TaskPlan},
    spec::{ContainerSpec, Labels, Resources},
};

use super::*;
use crate::{
    desired::{self, NodeSettings, Underlay},
    found::FoundRoute,
};

fn subnets(net: u8) -> Subnets {
    Subnets {
        v4: format!("10.0.{net}.0/24").parse().expect("a subnet"),
        v4_gateway: [10, 0, net, 1].into(),
        v6: format!("fd00:{net}::/64").parse().expect("a subnet"),
        v6_gateway: [0xfd00, u16::from(net), 0, 0, 0, 0, 0, 1].into(),
    }
}

fn attachment(net: u8, host: u8) -> AttachmentPlan {
    let addr =
        DualAddr { v4: [10, 0, net, host].into(), v6: [0xfd00, u16::from(net), 0, 0, 0, 0, 0, host.into()].into() };
    AttachmentPlan {
        network: NetworkId::from_random(net.into()),
        vni: Vni::new(4096 + u32::from(net)).expect("a VNI"),
        subnets: subnets(net),
        addr,
        mac: Mac::of_task(addr.v4),
    }
}

fn task(number: u8, nets: &[u8]) -> TaskPlan {
    TaskPlan {
        id: TaskId::from_random(u128::from(number)),
        service: weft_model::ServiceId::from_random(1),
        service_name: "web".parse().expect("a name"),
        name: format!("web.{number}"),
        container: ContainerSpec { stop_grace_ms: 0, ..ContainerSpec::new("weft/whoami") },
        resources: Resources::default(),
        labels: Labels::new(),
        attachments: nets.iter().map(|net| attachment(*net, number)).collect(),
        desired: TaskGoal::Run,
    }
}

fn plan(tasks: Vec<TaskPlan>) -> NodePlan {
    NodePlan { tasks, ..NodePlan::empty(weft_model::NodeId::from_random(1), [192, 0, 2, 1].into()) }
}

fn wanted(tasks: Vec<TaskPlan>) -> Desired {
    let sandboxes = tasks.iter().map(|task| (task.id.clone(), format!("/sandbox/{}", task.id).into())).collect();
    let underlay = Underlay { v4: Some(1500), v6: None };
    desired::desired(&plan(tasks), &sandboxes, underlay, &NodeSettings::default())
}

/// As much of the kernel as the operations touch.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    node: Found,
    inside: BTreeMap<TaskId, Found>,
    next_index: u32,
}

impl Model {
    fn new(tasks: &[TaskPlan]) -> Self {
        let space = Found {
            links: [("lo".to_owned(), FoundLink { index: 1, loopback: true, mtu: 65_536, ..FoundLink::default() })]
                .into(),
            ..Found::default()
        };
        let inside = tasks.iter().map(|task| (task.id.clone(), space.clone())).collect();
        Self { node: space, inside, next_index: 2 }
    }

    fn settled(tasks: &[TaskPlan]) -> Self {
        let mut model = Self::new(tasks);
        model.settle(&wanted(tasks.to_vec()));
        model
    }

    /// Reconciles until nothing is left to do, as the shell does.
    fn settle(&mut self, desired: &Desired) {
        for _ in 0..3 {
            let ops = diff(desired, &self.node, &self.inside);
            for op in &ops.node {
                apply(op, &mut self.node, None, &mut self.next_index);
            }
            for (task, ops) in &ops.tasks {
                let inside = self.inside.get_mut(task).expect("a sandbox");
                for op in &ops.host {
                    apply(op, &mut self.node, Some(inside), &mut self.next_index);
                }
                for op in &ops.inside {
                    apply(op, inside, None, &mut self.next_index);
                }
            }
        }
        assert_eq!(diff(desired, &self.node, &self.inside), Ops::default(), "must settle");
    }
}

fn apply(op: &Op, space: &mut Found, peer: Option<&mut Found>, next_index: &mut u32) {
    let mut fresh = |kind| {
        *next_index += 1;
        FoundLink { index: *next_index, kind, ..FoundLink::default() }
    };
    match op {
        Op::DeleteLink { name } => remove_link(space, peer, name),
        Op::CreateTunnel { name, mtu } => {
            let kind = FoundKind::Vxlan(VxlanSettings { collect_metadata: true, learning: false, port: TUNNEL_PORT });
            let link = FoundLink { mtu: *mtu, ..fresh(kind) };
            assert!(space.links.insert(name.clone(), link).is_none(), "{name} exists");
        }
        Op::CreateVeth { host, inside, mtu, .. } => {
            let (mut here, mut there) = (fresh(FoundKind::Other), fresh(FoundKind::Other));
            here.kind = FoundKind::Veth { peer: Some(there.index) };
            there.kind = FoundKind::Veth { peer: Some(here.index) };
            (here.mtu, there.mtu) = (*mtu, *mtu);
            assert!(space.links.insert(host.clone(), here).is_none(), "{host} exists");
            let peers = peer.expect("a sandbox for the peer");
            assert!(peers.links.insert(inside.clone(), there).is_none(), "{inside} exists");
        }
        Op::SetSysctl { key, value } => {
            space.sysctls.insert(key.clone(), value.replace(' ', "\t"));
        }
        Op::SetLink { name, change } => {
            let link = space.links.get_mut(name).expect("the link to change");
            link.mac = change.mac.or(link.mac);
            link.mtu = change.mtu.unwrap_or(link.mtu);
            link.alias = change.alias.clone().or(link.alias.take());
            link.up |= change.up;
        }
        Op::RemoveAddress { link, address } => {
            let index = space.links[link].index;
            space.links.get_mut(link).expect("the link").addresses.remove(address);
            // The route to a gateway goes with the way to the gateway.
            space.routes.retain(|route| route.link != Some(index) || route.destination.is_ipv6() != address.is_ipv6());
        }
        Op::AddAddress { link, address } => {
            space.links.get_mut(link).expect("the link").addresses.insert(*address);
        }
        Op::RemoveDefaultRoute { via, v6, link, .. } => {
            space.routes.retain(|route| (route.via, route.destination.is_ipv6(), route.link) != (*via, *v6, *link));
        }
        Op::AddDefaultRoute(route) => {
            let link = &space.links[&route.link];
            assert!(link.up, "{} is down", route.link);
            space.routes.push(default_route(route.via, link.index));
        }
    }
}

fn remove_link(space: &mut Found, peers: Option<&mut Found>, name: &str) {
    let Some(link) = space.links.remove(name) else { return };
    space.routes.retain(|route| route.link != Some(link.index));
    space.sysctls.retain(|key, _| !key.contains(&format!("/{name}/")));
    if let (FoundKind::Veth { peer: Some(index) }, Some(peers)) = (link.kind, peers)
        && let Some(name) = peers.link_at(index).map(|(name, _)| name.to_owned())
    {
        remove_link(peers, None, &name);
    }
}

fn default_route(via: IpAddr, link: u32) -> FoundRoute {
    let any = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let destination = any.parse().expect("a network");
    FoundRoute { destination, via: Some(via), link: Some(link), source: None, metric: 0 }
}

#[test]
fn a_task_on_two_networks_gets_both_links_and_one_way_out() {
    let tasks = [task(5, &[1, 2])];
    let model = Model::settled(&tasks);
    assert_eq!(model.node.links.keys().filter(|name| name::is_ours(name)).count(), 3, "the tunnel and two host sides");
    let inside = &model.inside[&tasks[0].id];
    let addresses = |link: &str| inside.links[link].addresses.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(addresses("eth0"), ["10.0.1.5/24".to_owned(), "fd00:1::5/64".to_owned()].into());
    assert_eq!(addresses("eth1"), ["10.0.2.5/24".to_owned(), "fd00:2::5/64".to_owned()].into());
    assert_eq!(inside.links["eth1"].mac, Some(Mac::of_task([10, 0, 2, 5].into())));
    assert!(inside.links.values().all(|link| link.up), "lo too");
    let eth0 = inside.links["eth0"].index;
    assert_eq!(inside.routes.len(), 2);
    assert!(inside.routes.iter().all(|route| route.link == Some(eth0)), "the first network leads outside");
    let all = || model.node.links.iter().chain(&inside.links).filter(|(_, link)| !link.loopback);
    assert!(all().all(|(_, link)| link.up));
    assert!(all().all(|(name, link)| link.mtu == 1450 || name == name::TUNNEL));
}

#[test]
fn what_is_as_desired_is_left_alone() {
    let tasks = [task(5, &[1, 2]), task(6, &[1])];
    let model = Model::settled(&tasks);
    assert!(diff(&wanted(tasks.to_vec()), &model.node, &model.inside).is_empty());
}

#[test]
fn links_of_tasks_that_are_gone_are_removed() {
    let mut model = Model::settled(&[task(5, &[1, 2]), task(6, &[1])]);
    model.settle(&wanted(vec![task(6, &[1])]));
    let left: Vec<_> = model.node.links.keys().filter(|name| name::is_host_side(name)).collect();
    assert_eq!(left, [&name::host_side(&task(6, &[1]).id, 0)]);
}

#[test]
fn foreign_links_are_never_removed() {
    let mut model = Model::settled(&[]);
    let foreign = FoundLink { index: 90, ..FoundLink::default() };
    for name in ["eth0", "docker0", "vethabcdefg-0", "wvabcdefghijk-0"] {
        model.node.links.insert(name.to_owned(), foreign.clone());
    }
    let before = model.clone();
    model.settle(&wanted(vec![]));
    assert_eq!(model, before, "a link that has one of our names but is no veth included");
}

#[test]
fn a_task_whose_sandbox_cannot_be_read_is_left_as_it_is() {
    let tasks = [task(5, &[1])];
    let mut model = Model::settled(&tasks);
    model.inside.clear();
    assert!(diff(&wanted(tasks.to_vec()), &model.node, &model.inside).is_empty());
}

#[test]
fn a_device_that_is_not_the_tunnel_gives_way() {
    for settings in [
        VxlanSettings { collect_metadata: false, learning: false, port: TUNNEL_PORT },
        VxlanSettings { collect_metadata: true, learning: true, port: TUNNEL_PORT },
        VxlanSettings { collect_metadata: true, learning: false, port: 8472 },
    ] {
        let mut model = Model::settled(&[]);
        model.node.links.get_mut(name::TUNNEL).expect("the tunnel").kind = FoundKind::Vxlan(settings.clone());
        model.settle(&wanted(vec![]));
        assert!(is_tunnel(&model.node.links[name::TUNNEL]), "{settings:?}");
    }
}

/// Something that somebody else did to our links.
#[derive(Debug, Clone)]
enum Damage {
    DeleteHostSide(usize),
    DeleteTunnel,
    DeleteTaskSide(usize),
    ChangeMac(usize),
    ChangeMtu(usize),
    Down(usize),
    DropAddresses(usize),
    AddAddress(usize, u8),
    DropRoutes(usize),
    AddRoute(usize, u8),
    ForgetSettings(usize),
    Renew(usize),
}

fn damages() -> impl Strategy<Value = Damage> {
    let which = 0..3usize;
    prop_oneof![
        which.clone().prop_map(Damage::DeleteHostSide),
        Just(Damage::DeleteTunnel),
        which.clone().prop_map(Damage::DeleteTaskSide),
        which.clone().prop_map(Damage::ChangeMac),
        which.clone().prop_map(Damage::ChangeMtu),
        which.clone().prop_map(Damage::Down),
        which.clone().prop_map(Damage::DropAddresses),
        (which.clone(), 0..4u8).prop_map(|(which, host)| Damage::AddAddress(which, host)),
        which.clone().prop_map(Damage::DropRoutes),
        (which.clone(), 0..4u8).prop_map(|(which, host)| Damage::AddRoute(which, host)),
        which.clone().prop_map(Damage::ForgetSettings),
        which.prop_map(Damage::Renew),
    ]
}

/// The links of the tasks: (task, link inside, host side).
const LINKS: [(u8, usize); 3] = [(5, 0), (5, 1), (6, 0)];

fn damage(model: &mut Model, damage: &Damage) {
    let which = match damage {
        Damage::DeleteTunnel => return remove_link(&mut model.node, None, name::TUNNEL),
        Damage::DeleteHostSide(which)
        | Damage::DeleteTaskSide(which)
        | Damage::ChangeMac(which)
        | Damage::ChangeMtu(which)
        | Damage::Down(which)
        | Damage::DropAddresses(which)
        | Damage::AddAddress(which, _)
        | Damage::DropRoutes(which)
        | Damage::AddRoute(which, _)
        | Damage::ForgetSettings(which)
        | Damage::Renew(which) => *which,
    };
    let (number, index) = LINKS[which];
    let id = task(number, &[]).id;
    let (host, name) = (name::host_side(&id, index), name::task_side(index));
    let inside = model.inside.get_mut(&id).expect("a sandbox");
    match damage {
        Damage::DeleteHostSide(_) => return remove_link(&mut model.node, Some(inside), &host),
        Damage::DeleteTaskSide(_) => return remove_link(inside, Some(&mut model.node), &name),
        Damage::DropRoutes(_) => return inside.routes.clear(),
        Damage::ForgetSettings(_) => {
            inside.sysctls.values_mut().for_each(|value| *value = "9".to_owned());
            return model.node.sysctls.clear();
        }
        // The sandbox is a new one, of the same name: the old one still lives, its link with it.
        Damage::Renew(_) => {
            remove_link(inside, None, &name);
            if let Some(host) = model.node.links.get_mut(&host) {
                host.kind = FoundKind::Veth { peer: Some(1_000) };
            }
        }
        _ => {}
    }
    let (Some(link), Some(host)) = (inside.links.get_mut(&name), model.node.links.get_mut(&host)) else { return };
    match damage {
        Damage::ChangeMac(_) => link.mac = None,
        Damage::ChangeMtu(_) => (link.mtu, host.mtu) = (9_000, 1_300),
        Damage::Down(_) => (link.up, host.up) = (false, false),
        Damage::DropAddresses(_) => link.addresses.clear(),
        Damage::AddAddress(_, last) => {
            link.addresses.insert(format!("10.99.0.{last}/24").parse().expect("an address"));
        }
        Damage::AddRoute(_, last) => inside.routes.push(default_route([10, 99, 0, *last].into(), link.index)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn whatever_was_done_to_the_links_is_repaired(all in prop::collection::vec(damages(), 0..8)) {
        let tasks = [task(5, &[1, 2]), task(6, &[1])];
        let mut model = Model::settled(&tasks);
        for one in &all {
            damage(&mut model, one);
        }
        model.settle(&wanted(tasks.to_vec()));
    }
}
