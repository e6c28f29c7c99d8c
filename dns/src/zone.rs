//! The names of each network, computed from the node's plan. Pure, except for [`ZoneHandle`].
//!
//! The agent builds a [`Zone`] from each plan and publishes it; [`crate::resolve`] reads it.
//!
//! Invariant: names are in lower case, without a final dot.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use arc_swap::ArcSwap;
use weft_model::{
    DualAddr, NetworkId, NodePlan,
    net::Subnets,
    plan::{BackendPlan, NetworkPlan, ServicePlan},
};

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

/// The addresses of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    precedence: Precedence,
    /// May be empty: then the name exists, but has no address.
    pub(crate) addresses: Vec<DualAddr>,
}

/// The kinds of names, from the lowest to the highest precedence. If a name is added twice, the
/// higher precedence replaces the lower one, and the addresses of equal precedence are joined.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Precedence {
    #[default]
    Alias,
    Task,
    Service,
}

impl Zone {
    /// Computes the names of all services and tasks of the plan. The ingress network has no names.
    pub fn from_plan(plan: &NodePlan) -> Self {
        let mut networks: BTreeMap<_, _> =
            plan.networks.iter().map(|network| (network.id.clone(), NetworkNames::new(network))).collect();
        let is_ingress = |id: &NetworkId| plan.networks.iter().any(|network| network.id == *id && network.ingress);
        for service in plan.services.iter().filter(|service| !is_ingress(&service.network)) {
            if let Some(network) = networks.get_mut(&service.network) {
                network.add_service(service);
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

impl NetworkNames {
    fn new(network: &NetworkPlan) -> Self {
        Self {
            name: network.name.as_str().to_ascii_lowercase(),
            ipv6: network.ipv6,
            subnets: network.subnets,
            forward: HashMap::new(),
            reverse: HashMap::new(),
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.subnets.v4.contains(v4),
            IpAddr::V6(v6) => self.subnets.v6.contains(v6),
        }
    }

    fn add_service(&mut self, service: &ServicePlan) {
        if !service.removing {
            self.add_forward_names(service);
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

    fn add_forward_names(&mut self, service: &ServicePlan) {
        let active = || service.backends.iter().filter(|backend| !backend.draining);
        let tasks: Vec<DualAddr> = active().map(|backend| backend.addr).collect();
        let vip_or_tasks = service.vip.map_or_else(|| tasks.clone(), |vip| vec![vip]);
        let name = service.name.as_str();
        self.add_forward_name(Precedence::Service, name, &vip_or_tasks);
        self.add_forward_name(Precedence::Service, &format!("tasks.{name}"), &tasks);
        for alias in &service.aliases {
            self.add_forward_name(Precedence::Alias, alias, &vip_or_tasks);
            self.add_forward_name(Precedence::Alias, &format!("tasks.{alias}"), &tasks);
        }
        for backend in active() {
            self.add_forward_name(Precedence::Task, &backend.task_name, &[backend.addr]);
        }
    }

    fn add_forward_name(&mut self, precedence: Precedence, name: &str, addresses: &[DualAddr]) {
        let new_entry = || Entry { precedence, addresses: vec![] };
        let entry = self.forward.entry(name.to_ascii_lowercase()).or_insert_with(new_entry);
        if precedence > entry.precedence {
            *entry = new_entry();
        }
        if precedence == entry.precedence {
            let new =
                addresses.iter().filter(|address| !entry.addresses.contains(address)).copied().collect::<Vec<_>>();
            entry.addresses.extend(new);
        }
    }

    fn add_reverse_name(&mut self, address: DualAddr, name: &str) {
        let name = format!("{name}.{}", self.name);
        self.reverse.insert(address.v4.into(), name.clone());
        self.reverse.insert(address.v6.into(), name);
    }
}
