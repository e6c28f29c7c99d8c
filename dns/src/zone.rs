//! The names of each network: a function of the node's plan. Pure, but for the cell that the newest zone is read from.

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

/// The newest zone. Cheap to clone; readers never wait.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<ArcSwap<Zone>>);

impl Names {
    /// Replaces the zone as a whole: every question is answered from one plan.
    pub fn publish(&self, zone: Zone) {
        self.0.store(Arc::new(zone));
    }

    pub fn current(&self) -> Arc<Zone> {
        self.0.load_full()
    }
}

/// All names of all networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    networks: BTreeMap<NetworkId, NetworkNames>,
}

/// The names of one network. Names are in lower case, without a final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetworkNames {
    name: String,
    /// Whether its names have AAAA records.
    pub(crate) ipv6: bool,
    subnets: Subnets,
    forward: HashMap<String, Entry>,
    reverse: HashMap<IpAddr, String>,
}

/// What a name stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    rank: Rank,
    /// None: the name is known all the same.
    pub(crate) addresses: Vec<DualAddr>,
}

/// Who may claim a name first: a claim of a higher rank replaces the lower ones, one of the same rank adds to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    #[default]
    Alias,
    Task,
    Service,
}

impl Zone {
    pub fn from_plan(plan: &NodePlan) -> Self {
        let mut networks: BTreeMap<_, _> =
            plan.networks.iter().map(|network| (network.id.clone(), NetworkNames::new(network))).collect();
        let nameless = |id: &NetworkId| plan.networks.iter().any(|network| network.id == *id && network.ingress);
        for service in plan.services.iter().filter(|service| !nameless(&service.network)) {
            if let Some(network) = networks.get_mut(&service.network) {
                network.add_service(service);
            }
        }
        Self { networks }
    }

    /// What `name` means to someone on the networks `view`: the first of them that knows it decides. A name may be
    /// followed by its network's.
    pub(crate) fn find(&self, view: &[NetworkId], name: &str) -> Option<(&NetworkNames, &Entry)> {
        let plain = self.seen(view).find_map(|network| Some((network, network.forward.get(name)?)));
        plain.or_else(|| {
            self.seen(view).find_map(|network| {
                let name = name.strip_suffix(network.name.as_str())?.strip_suffix('.')?;
                Some((network, network.forward.get(name)?))
            })
        })
    }

    /// The name of `address`, where a network of the view has it; `None` where it is of no network in the view.
    pub(crate) fn reverse(&self, view: &[NetworkId], address: IpAddr) -> Option<Option<&str>> {
        let owner = |network: &&NetworkNames| network.contains(address);
        let mut owners = self.seen(view).filter(owner).peekable();
        owners.peek()?;
        Some(owners.find_map(|network| network.reverse.get(&address)).map(String::as_str))
    }

    fn seen<'z, 'v>(&'z self, view: &'v [NetworkId]) -> impl Iterator<Item = &'z NetworkNames> + use<'z, 'v> {
        view.iter().filter_map(|id| self.networks.get(id))
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
            self.claim_names(service);
        }
        // Whoever still has a flow to it may ask who that is.
        if let Some(vip) = service.vip {
            self.name_address(vip, service.name.as_str());
        }
        for BackendPlan { addr, task_name, .. } in &service.backends {
            self.name_address(*addr, task_name);
        }
    }

    fn claim_names(&mut self, service: &ServicePlan) {
        let eligible = || service.backends.iter().filter(|backend| !backend.draining);
        let tasks: Vec<DualAddr> = eligible().map(|backend| backend.addr).collect();
        let balanced = service.vip.map_or_else(|| tasks.clone(), |vip| vec![vip]);
        let name = service.name.as_str();
        self.claim(Rank::Service, name, &balanced);
        self.claim(Rank::Service, &format!("tasks.{name}"), &tasks);
        for alias in &service.aliases {
            self.claim(Rank::Alias, alias, &balanced);
            self.claim(Rank::Alias, &format!("tasks.{alias}"), &tasks);
        }
        for backend in eligible() {
            self.claim(Rank::Task, &backend.task_name, &[backend.addr]);
        }
    }

    fn claim(&mut self, rank: Rank, name: &str, addresses: &[DualAddr]) {
        let entry = self.forward.entry(name.to_ascii_lowercase()).or_insert_with(|| Entry { rank, addresses: vec![] });
        if rank > entry.rank {
            *entry = Entry { rank, addresses: vec![] };
        }
        if rank == entry.rank {
            let new =
                addresses.iter().filter(|address| !entry.addresses.contains(address)).copied().collect::<Vec<_>>();
            entry.addresses.extend(new);
        }
    }

    fn name_address(&mut self, address: DualAddr, name: &str) {
        let name = format!("{name}.{}", self.name);
        self.reverse.insert(address.v4.into(), name.clone());
        self.reverse.insert(address.v6.into(), name);
    }
}
