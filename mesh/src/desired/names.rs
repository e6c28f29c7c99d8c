//! The names that the kernel answers, and the tasks that it answers.
//!
//! [`super::desired`] calls it. Pure.
//!
//! Invariant: the kernel never gives an answer that the resolver would not give. What does not fit
//! the maps is left to the resolver: a name with too many addresses has an entry that says so,
//! names that are too long have no entry on any network, and a task on a network whose names do not
//! fit, or on more networks than fit, is not answered at all.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    net::{Ipv4Addr, Ipv6Addr},
};

use weft_ebpf_common::{
    MAX_NETS_PER_TASK,
    names::{NAME_ADDRS, NAME_ENTRIES, Name, NameKey, NameScope, key, name_flags},
};
use weft_model::{NetworkId, NodePlan, plan::AttachmentPlan};

use crate::facts::{LocalFacts, ResolvedName};

/// The entries, and the class of the filter in each task's namespace, by the cookie of the
/// namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NameTables {
    pub(super) names: BTreeMap<NameKey, Name>,
    pub(super) scopes: BTreeMap<u32, NameScope>,
    pub(super) tasks: BTreeMap<u64, u16>,
}

impl NameTables {
    pub(super) fn new(plan: &NodePlan, facts: &LocalFacts) -> Self {
        let vnis: BTreeMap<&NetworkId, u32> = plan
            .networks
            .iter()
            .filter(|network| !network.ingress)
            .map(|network| (&network.id, network.vni.get()))
            .collect();
        let mut tables = Self::default();
        let complete = tables.add_names(&vnis, &facts.names);
        tables.add_tasks(plan, facts, &vnis, &complete);
        tables
    }

    /// Adds the names of the networks that fit, and returns the VNIs of these networks.
    fn add_names(&mut self, vnis: &BTreeMap<&NetworkId, u32>, names: &[ResolvedName]) -> BTreeSet<u32> {
        let mut by_network = BTreeMap::<u32, Vec<&ResolvedName>>::new();
        for name in names {
            if let Some(&vni) = vnis.get(&name.network) {
                by_network.entry(vni).or_default().push(name);
            }
        }
        let mut free = NAME_ENTRIES as usize;
        let mut complete: BTreeSet<u32> = vnis.values().copied().collect();
        for (vni, names) in by_network {
            let Some(rest) = free.checked_sub(names.len()) else {
                complete.remove(&vni);
                continue;
            };
            free = rest;
            names.into_iter().for_each(|name| self.add_name(vni, name));
        }
        complete
    }

    fn add_name(&mut self, vni: u32, name: &ResolvedName) {
        let Some(key) = key(vni, &name.name) else { return };
        let value = value(&key, name);
        match self.names.entry(key) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(value);
            }
            // The same name of a network and of a service: the service comes first.
            btree_map::Entry::Occupied(mut occupied) if !name.qualified => {
                occupied.insert(value);
            }
            btree_map::Entry::Occupied(_) => {}
        }
    }

    fn add_tasks(
        &mut self,
        plan: &NodePlan,
        facts: &LocalFacts,
        vnis: &BTreeMap<&NetworkId, u32>,
        complete: &BTreeSet<u32>,
    ) {
        // The first link of each namespace.
        let mut links = BTreeMap::new();
        for endpoint in &facts.endpoints {
            let Some(netns) = &endpoint.netns else { continue };
            let link = links.entry(netns.cookie).or_insert((endpoint.ifindex, &endpoint.task));
            *link = (*link).min((endpoint.ifindex, &endpoint.task));
        }
        let tasks: BTreeMap<_, _> = plan.local().map(|local| (local.id, local.links)).collect();
        let mut by_link: Vec<_> = links.into_iter().map(|(cookie, (ifindex, task))| (ifindex, task, cookie)).collect();
        by_link.sort_unstable();
        for (ifindex, task, cookie) in by_link {
            let Some(links) = tasks.get(task) else { continue };
            let Some(vnis) = networks(links, vnis, complete) else { continue };
            // A class has 16 bits. The index of a link is used again only after 2^31 links, so two
            // tasks have the same class only if one was started 65,536 links after the other, or a
            // multiple of it. The resolver then answers the second one.
            let class = (ifindex & 0xffff) as u16;
            let is_free = class != 0 && !self.scopes.contains_key(&class.into());
            if is_free {
                self.scopes.insert(class.into(), NameScope { scope: class.into(), vnis });
                self.tasks.insert(cookie, class);
            }
        }
    }
}

/// The networks on which a task's names are looked up. `None` if the kernel cannot look them up as
/// the resolver does.
fn networks(
    links: &[(u32, &AttachmentPlan)],
    vnis: &BTreeMap<&NetworkId, u32>,
    complete: &BTreeSet<u32>,
) -> Option<[u32; MAX_NETS_PER_TASK]> {
    let mut networks = [0; MAX_NETS_PER_TASK];
    // The ingress network has no names, and is not among the VNIs.
    let attached = links.iter().filter_map(|(_, attachment)| vnis.get(&attachment.network));
    for (index, &vni) in attached.enumerate() {
        if !complete.contains(&vni) {
            return None;
        }
        *networks.get_mut(index)? = vni;
    }
    Some(networks)
}

fn value(key: &NameKey, name: &ResolvedName) -> Name {
    let qualified = if name.qualified { 0 } else { name_flags::UNQUALIFIED };
    let empty = Name { check: key.check(), flags: qualified, ..Name::default() };
    if name.v4.len() > NAME_ADDRS || name.v6.len() > NAME_ADDRS {
        return Name { flags: qualified | name_flags::RESOLVER, ..empty };
    }
    let mut value = Name { v4_count: name.v4.len() as u8, v6_count: name.v6.len() as u8, ..empty };
    for (place, address) in value.v4_be.iter_mut().zip(&name.v4) {
        *place = v4_be(*address);
    }
    for (place, address) in value.v6_be.iter_mut().zip(&name.v6) {
        *place = v6_be(*address);
    }
    value
}

fn v4_be(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

fn v6_be(address: Ipv6Addr) -> [u32; 4] {
    weft_ebpf_common::Addr::from_octets(address.octets()).words_be
}

#[cfg(test)]
mod tests {
    use weft_model::{
        DualAddr, Mac, NodeId, ServiceId, TaskId, Vni,
        net::Subnets,
        plan::{Expanded, NetworkPlan, TaskGoal, TaskPlan},
        spec::{ContainerSpec, Labels, Resources},
    };

    use super::*;
    use crate::facts::{LocalEndpoint, LocalNetns};

    const INGRESS: u32 = 4096;
    const FRONT: u32 = 4097;
    const BACK: u32 = 4098;

    fn network(vni: u32) -> NetworkId {
        NetworkId::from_random(vni.into())
    }

    fn subnets() -> Subnets {
        let [v4, v6] = ["10.0.1.0/24", "fd00:1::/64"];
        Subnets::dual(v4.parse().expect("a subnet"), v6.parse().expect("a subnet"))
    }

    fn addr(host: u8) -> DualAddr {
        DualAddr { v4: Some([10, 0, 1, host].into()), v6: [0xfd00, 1, 0, 0, 0, 0, 0, host.into()].into() }
    }

    fn name(vni: u32, name: &str, qualified: bool, hosts: &[u8]) -> ResolvedName {
        ResolvedName {
            network: network(vni),
            name: name.to_owned(),
            qualified,
            v4: hosts.iter().filter_map(|&host| addr(host).v4).collect(),
            v6: vec![],
        }
    }

    /// A task on `networks`, and its links, of which the first one has the index `ifindex`.
    fn task(number: u8, networks: &[u32], ifindex: u32) -> (TaskPlan, Vec<LocalEndpoint>) {
        let id = TaskId::from_random(number.into());
        let attachment = |&vni: &u32| AttachmentPlan {
            network: network(vni),
            vni: Vni::new(vni).expect("a VNI"),
            mtu: None,
            subnets: subnets(),
            addr: addr(number),
            mac: Mac::of_task(addr(number)),
        };
        let links = networks.iter().zip(ifindex..).map(|(&vni, ifindex)| LocalEndpoint {
            task: id.clone(),
            network: network(vni),
            ifindex,
            netns: Some(LocalNetns {
                cookie: 1000 + u64::from(number),
                path: "/run/netns/task".into(),
                resolver: Ipv4Addr::new(127, 0, 0, 11),
            }),
        });
        let links = links.collect();
        let plan = TaskPlan {
            id,
            service: ServiceId::from_random(1),
            service_name: "web".parse().expect("a name"),
            name: format!("web.{number}"),
            container: ContainerSpec::new("image").into(),
            resources: Resources::default(),
            labels: Labels::new(),
            attachments: networks.iter().map(attachment).collect(),
            desired: TaskGoal::Run,
            expanded: Expanded::default(),
            container_at: None,
            registry_auth: None,
            node_network: None,
            has_run: false,
        };
        (plan, links)
    }

    fn tables(tasks: Vec<(TaskPlan, Vec<LocalEndpoint>)>, names: Vec<ResolvedName>) -> NameTables {
        let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
        plan.networks = [INGRESS, FRONT, BACK]
            .map(|vni| NetworkPlan {
                id: network(vni),
                name: format!("net{vni}").parse().expect("a name"),
                vni: Vni::new(vni).expect("a VNI"),
                subnets: subnets(),
                ipv6: false,
                internal: false,
                ingress: vni == INGRESS,
                encrypted: false,
            })
            .into();
        let mut facts = LocalFacts { names, ..LocalFacts::default() };
        for (task, links) in tasks {
            plan.tasks.push(task);
            facts.endpoints.extend(links);
        }
        NameTables::new(&plan, &facts)
    }

    fn entry(tables: &NameTables, vni: u32, name: &str) -> Option<Name> {
        tables.names.get(&key(vni, name)?).copied()
    }

    #[test]
    fn a_task_looks_names_up_on_its_networks_in_their_order() {
        let tables = tables(vec![task(1, &[INGRESS, BACK, FRONT], 0x2_0007)], vec![]);
        assert_eq!(tables.tasks, [(1001, 7)].into());
        assert_eq!(tables.scopes[&7], NameScope { scope: 7, vnis: [BACK, FRONT, 0, 0, 0, 0, 0, 0] });
    }

    #[test]
    fn two_tasks_never_have_the_same_class() {
        let tasks = vec![task(1, &[FRONT], 0x1_0005), task(2, &[BACK], 5), task(3, &[BACK], 0x1_0000)];
        let tables = tables(tasks, vec![]);
        assert_eq!(tables.tasks, [(1002, 5)].into(), "the older link has the class, and zero is no class");
        assert_eq!(tables.scopes[&5].vnis[0], BACK);
    }

    #[test]
    fn a_task_on_too_many_networks_is_left_to_the_resolver() {
        let many = |count| tables(vec![task(1, &vec![FRONT; count], 5)], vec![]).tasks.len();
        assert_eq!((many(MAX_NETS_PER_TASK), many(MAX_NETS_PER_TASK + 1)), (1, 0));
    }

    #[test]
    fn a_name_of_a_service_comes_before_one_with_the_name_of_its_network() {
        let both = [name(FRONT, "web.net", true, &[2]), name(FRONT, "web.net", false, &[3])];
        for names in [both.to_vec(), both.iter().rev().cloned().collect()] {
            let found = entry(&tables(vec![], names), FRONT, "web.net").expect("an entry");
            assert_eq!(
                (found.flags, found.v4_count, found.v4_be[0].to_ne_bytes()),
                (name_flags::UNQUALIFIED, 1, [10, 0, 1, 3])
            );
            assert_eq!(Some(found.check), key(FRONT, "web.net").map(|key| key.check()));
        }
    }

    #[test]
    fn names_that_do_not_fit_are_left_to_the_resolver() {
        let hosts: Vec<u8> = (2..).take(NAME_ADDRS + 1).collect();
        let long = "long.".repeat(20) + "name";
        let names = vec![
            name(FRONT, "fits", false, &hosts[1..]),
            name(FRONT, "many", false, &hosts),
            name(FRONT, &long, false, &[2]),
            name(INGRESS, "ingress", false, &[2]),
        ];
        let tables = tables(vec![], names);
        assert_eq!(entry(&tables, FRONT, "fits").map(|name| usize::from(name.v4_count)), Some(NAME_ADDRS));
        let many = entry(&tables, FRONT, "many").expect("an entry");
        assert_eq!((many.flags, many.v4_count), (name_flags::UNQUALIFIED | name_flags::RESOLVER, 0));
        assert_eq!(tables.names.len(), 2, "{:?}", tables.names);
    }

    #[test]
    fn a_network_whose_names_do_not_fit_is_left_to_the_resolver() {
        let names = |vni, count: u32| (0..count).map(move |number| name(vni, &format!("s{number}"), false, &[2]));
        let tasks = vec![task(1, &[FRONT], 5), task(2, &[BACK], 6), task(3, &[FRONT, BACK], 7)];
        let tables = tables(tasks, names(FRONT, NAME_ENTRIES).chain(names(BACK, 1)).collect());
        assert_eq!(tables.tasks, [(1001, 5)].into());
        assert_eq!(tables.names.len(), NAME_ENTRIES as usize);
    }
}
