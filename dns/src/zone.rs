//! The names of each network, computed from the node's plan. Pure, except for [`ZoneHandle`].
//!
//! The agent builds a [`Zone`] from each plan and publishes it; [`crate::resolve`] reads it.
//!
//! The names on each network of a service, from the highest precedence to the lowest:
//!
//! | Name | Addresses |
//! |---|---|
//! | `SERVICE`, `tasks.SERVICE` | the VIP, or without a VIP the tasks; the tasks |
//! | `TASK`: the task's, and so its container's, name | the task |
//! | `ID`: the first 12 characters of the task's id | the task |
//! | `ALIAS`, `tasks.ALIAS` | like those of the service; several services can share an alias |
//! | `HOSTNAME` of a task | the tasks with this host name |
//!
//! A container that is no task has its name, the first 12 characters of its id, and its aliases,
//! with the precedence of those of tasks.
//!
//! Each name can be followed by a dot and the name of the network. `_PORT._tcp.NAME` and
//! `_PORT._udp.NAME` are the published ports of the tasks, for each of these names.
//!
//! Invariant: names are in lower case, without a final dot.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use arc_swap::ArcSwap;
use weft_model::{
    DualAddr, NetworkId, NodePlan, ServiceId,
    net::Subnets,
    plan::{AttachedName, BackendPlan, NetworkPlan, ServicePlan},
    spec::Protocol,
};

/// Characters of a task's short id, which is also its default host name.
const SHORT_ID_LEN: usize = 12;

/// The current zone. Cheap to clone; readers never wait.
#[derive(Debug, Clone, Default)]
pub struct ZoneHandle(Arc<ArcSwap<Zone>>);

impl ZoneHandle {
    /// Replaces the zone as a whole, so each question is answered from one plan.
    pub fn publish(&self, zone: Zone) {
        self.0.store(Arc::new(zone));
    }

    pub fn current(&self) -> Arc<Zone> {
        self.0.load_full()
    }
}

/// The names of all networks. See [`resolve`](crate::resolve::resolve) for an example.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    networks: BTreeMap<NetworkId, NetworkNames>,
}

/// A name on one network, and all its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedName {
    pub name: String,
    /// Whether the name ends with the name of the network. A name that does not is found first, on
    /// all networks of a task.
    pub qualified: bool,
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
}

/// The names of one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkNames {
    name: String,
    /// Whether its names have AAAA records.
    pub(crate) ipv6: bool,
    subnets: Subnets,
    forward: HashMap<String, Entry>,
    reverse: HashMap<IpAddr, String>,
}

/// The ports at which the tasks of a service listen and which it publishes.
pub(crate) type Ports = Arc<[(u16, Protocol)]>;

/// The addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    precedence: Precedence,
    /// With the ports of the service that has the address. May be empty: then the name exists, but
    /// has no address.
    pub(crate) addresses: Vec<(DualAddr, Ports)>,
    /// The ports of all services with this name.
    pub(crate) ports: Vec<(u16, Protocol)>,
}

/// The kinds of names, from the lowest to the highest precedence. If a name is added twice, the
/// higher precedence replaces the lower one, and the addresses of equal precedence are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Precedence {
    Hostname,
    Alias,
    ShortId,
    Task,
    Service,
}

impl Zone {
    /// Computes the names of all services and tasks of the plan. The ingress network has no names.
    pub fn from_plan(plan: &NodePlan) -> Self {
        let mut networks: BTreeMap<_, _> =
            plan.networks.iter().map(|network| (network.id.clone(), NetworkNames::new(network))).collect();
        let is_ingress = |id: &NetworkId| plan.networks.iter().any(|network| network.id == *id && network.ingress);
        let ports = published_ports(plan);
        for service in plan.services.iter().filter(|service| !is_ingress(&service.network)) {
            if let Some(network) = networks.get_mut(&service.network) {
                network.add_service(service, &ports.get(&service.service).cloned().unwrap_or_default());
            }
        }
        for container in plan.attached_names.iter().filter(|container| !is_ingress(&container.network)) {
            if let Some(network) = networks.get_mut(&container.network) {
                network.add_container(container);
            }
        }
        Self { networks }
    }

    /// Finds `name` on the first of `networks` that has it. The name of the network may follow the
    /// name of the service or task, separated by a dot.
    pub(crate) fn find(&self, networks: &[NetworkId], name: &str) -> Option<(&NetworkNames, &Entry)> {
        let unqualified = self.networks(networks).find_map(|network| Some((network, network.forward.get(name)?)));
        unqualified.or_else(|| {
            self.networks(networks).find_map(|network| {
                let name = name.strip_suffix(network.name.as_str())?.strip_suffix('.')?;
                Some((network, network.forward.get(name)?))
            })
        })
    }

    /// The names of a network with the addresses that [`resolve`](crate::resolve::resolve) finds
    /// for questions of type A and AAAA. A name can be listed twice, with and without the name of
    /// the network.
    ///
    /// Names that no question can have are left out, and those below `arpa`, which are not looked
    /// up by their text.
    pub fn list(&self, network: &NetworkId) -> impl Iterator<Item = ListedName> {
        let network = self.networks.get(network);
        network
            .into_iter()
            .flat_map(|network| {
                network.forward.iter().flat_map(move |(name, entry)| {
                    let qualified = format!("{name}.{}", network.name);
                    [(name.clone(), false), (qualified, true)]
                        .map(|(name, qualified)| network.listed(name, qualified, entry))
                })
            })
            .filter(|listed| {
                listed.name.bytes().all(|octet| octet.is_ascii_graphic()) && !listed.name.ends_with(".arpa")
            })
    }

    /// Finds the name of `address`. `None` if the address belongs to none of `networks`, and
    /// `Some(None)` if it belongs to one of them but has no name.
    pub(crate) fn reverse(&self, networks: &[NetworkId], address: IpAddr) -> Option<Option<&str>> {
        let has_address = |network: &&NetworkNames| network.contains(address);
        let mut candidates = self.networks(networks).filter(has_address).peekable();
        candidates.peek()?;
        Some(candidates.find_map(|network| network.reverse.get(&address)).map(String::as_str))
    }

    fn networks<'z, 'n>(&'z self, ids: &'n [NetworkId]) -> impl Iterator<Item = &'z NetworkNames> + use<'z, 'n> {
        ids.iter().filter_map(|id| self.networks.get(id))
    }
}

/// The ports of the plan, by service. The plan has them for one network of the service, but its
/// tasks listen on all of them.
fn published_ports(plan: &NodePlan) -> HashMap<ServiceId, Ports> {
    let services: HashMap<_, _> = plan.services.iter().map(|service| (service.mesh, &service.service)).collect();
    let mut ports = HashMap::<ServiceId, Vec<_>>::new();
    for port in &plan.ports {
        if let Some(&service) = services.get(&port.mesh) {
            ports.entry(service.clone()).or_default().push((port.target, port.protocol));
        }
    }
    ports.into_iter().map(|(service, ports)| (service, ports.into())).collect()
}

impl NetworkNames {
    fn new(network: &NetworkPlan) -> Self {
        Self {
            name: network.name.as_str().to_ascii_lowercase(),
            ipv6: network.ipv6,
            subnets: network.subnets.clone(),
            forward: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    fn listed(&self, name: String, qualified: bool, entry: &Entry) -> ListedName {
        let addresses = || entry.addresses.iter().map(|(address, _)| address);
        ListedName {
            name,
            qualified,
            v4: addresses().filter_map(|address| address.v4).collect(),
            v6: addresses().filter(|_| self.ipv6).map(|address| address.v6).collect(),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.subnets.containing(address).is_some()
    }

    /// The name of an address, with the name of the network.
    pub(crate) fn name_of(&self, address: DualAddr) -> Option<&str> {
        self.reverse.get(&address.first()).map(String::as_str)
    }

    fn add_service(&mut self, service: &ServicePlan, ports: &Ports) {
        if !service.removing {
            self.add_forward_names(service, ports);
        }
        // The reverse names of a service that is being removed stay, because its flows continue and
        // programs may look up the addresses of their peers.
        if let Some(vip) = service.vip {
            self.add_reverse_name(vip, service.name.as_str());
        }
        for BackendPlan { addr, task_name, .. } in &service.backends {
            self.add_reverse_name(*addr, task_name);
        }
    }

    fn add_container(&mut self, container: &AttachedName) {
        let (addresses, ports) = ([container.addr], Ports::default());
        let identity = &container.identity;
        self.add_forward_name(Precedence::Task, &identity.name, &addresses, &ports);
        let short_id = identity.container.get(..SHORT_ID_LEN).unwrap_or(&identity.container);
        self.add_forward_name(Precedence::ShortId, short_id, &addresses, &ports);
        for alias in &container.aliases {
            self.add_forward_name(Precedence::Alias, alias, &addresses, &ports);
        }
        self.add_reverse_name(container.addr, &identity.name);
    }

    fn add_forward_names(&mut self, service: &ServicePlan, ports: &Ports) {
        let active = || service.backends.iter().filter(|backend| !backend.draining);
        let tasks: Vec<DualAddr> = active().map(|backend| backend.addr).collect();
        let vip_or_tasks = service.vip.map_or_else(|| tasks.clone(), |vip| vec![vip]);
        let mut add = |precedence, name: &str, addresses: &[DualAddr]| {
            self.add_forward_name(precedence, name, addresses, ports);
        };
        add(Precedence::Service, service.name.as_str(), &vip_or_tasks);
        add(Precedence::Service, &format!("tasks.{}", service.name), &tasks);
        for alias in &service.aliases {
            add(Precedence::Alias, alias, &vip_or_tasks);
            add(Precedence::Alias, &format!("tasks.{alias}"), &tasks);
        }
        for backend in active() {
            add(Precedence::Task, &backend.task_name, &[backend.addr]);
            add(Precedence::ShortId, &backend.task.as_str()[..SHORT_ID_LEN], &[backend.addr]);
            if let Some(hostname) = &backend.hostname {
                add(Precedence::Hostname, hostname, &[backend.addr]);
            }
        }
    }

    fn add_forward_name(&mut self, precedence: Precedence, name: &str, addresses: &[DualAddr], ports: &Ports) {
        let new_entry = || Entry { precedence, addresses: vec![], ports: vec![] };
        let entry = self.forward.entry(name.to_ascii_lowercase()).or_insert_with(new_entry);
        if precedence > entry.precedence {
            *entry = new_entry();
        }
        if precedence == entry.precedence {
            for address in addresses {
                if !entry.addresses.iter().any(|(known, _)| known == address) {
                    entry.addresses.push((*address, Arc::clone(ports)));
                }
            }
            for port in &**ports {
                if !entry.ports.contains(port) {
                    entry.ports.push(*port);
                }
            }
        }
    }

    fn add_reverse_name(&mut self, address: DualAddr, name: &str) {
        let name = format!("{name}.{}", self.name);
        for ip in address.ips() {
            self.reverse.insert(ip, name.clone());
        }
    }
}
