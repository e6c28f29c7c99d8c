//! Allocates the addresses of a network. VIPs and tasks get addresses from the same ranges.
//!
//! A network may have several subnets of a family. The first one with a free address is used. In a
//! subnet, the search for a free address starts after the address that was allocated last. A freed
//! address stays in quarantine until no node can have it in its maps. The next task of a slot may
//! take an address of an earlier one as soon as the maps are known to be free of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, BackendId, ClusterState, DualAddr, Mac, MeshServiceId, NetworkId, NodeId, Rejection, ServiceId,
    command::WantedLink,
    net::Subnet,
    spec::SubnetSpec,
    state::{Allocations, Attachment, ContainerLink, FreedAddress, Network, NetworkAddresses, Slot, Task},
};

/// The minimum quarantine of a freed address, by the clock of the cluster state, in milliseconds.
/// After this time no DNS reply with the address is valid (their TTL is one second), and no packet
/// to the last owner of the address is still in the network. Every ready node must also have
/// acknowledged that it knows the address no longer. Longer than that would let a few tasks that
/// fail at once use up a small network.
pub const QUARANTINE_MS: u64 = 2_000;
/// The feature level from which on the node and the slot of a freed address are known.
const OWNERS_LEVEL: u32 = 1;
/// The quarantine of an address whose node has not acknowledged its removal. The daemon of a node
/// that is down may be dead while the tasks of the node still run and use their addresses.
const ABANDONED_MS: u64 = 24 * 3_600_000;

/// The allocations of one command. [`Changes::commit`] puts them into the cluster state when the
/// whole command is certain to succeed.
#[derive(Debug)]
pub(super) struct Allocator<'a> {
    state: &'a ClusterState,
    changes: Changes,
}

/// What one command changes in [`Allocations`].
#[derive(Debug)]
pub(super) struct Changes {
    next_mesh_service: u32,
    next_backend: u64,
    allocated: Vec<(NetworkId, DualAddr)>,
    freed: Vec<FreedAddress>,
    /// Addresses that leave the quarantine and stay in use.
    reused: Vec<(NetworkId, DualAddr)>,
}

impl<'a> Allocator<'a> {
    pub(super) fn new(state: &'a ClusterState) -> Self {
        let Allocations { next_mesh_service, next_backend, .. } = state.allocated;
        let changes = Changes { next_mesh_service, next_backend, allocated: vec![], freed: vec![], reused: vec![] };
        Self { state, changes }
    }

    /// The next free addresses of a network. Must be called at most once for each network in one
    /// command, because it does not treat the addresses that it returned before as used.
    pub(super) fn allocate_address(&mut self, network: &Network) -> Result<DualAddr, Rejection> {
        let addr = self.next_address(network)?;
        self.changes.allocated.push((network.id.clone(), addr));
        Ok(addr)
    }

    fn next_address(&self, network: &Network) -> Result<DualAddr, Rejection> {
        let none = NetworkAddresses::default();
        let known = self.state.allocated.addresses.get(&network.id).unwrap_or(&none);
        let v4 = ranges(&network.subnets.v4, &network.spec.v4, |range| (range.network(), range.broadcast()));
        let v4 = allocate(v4, &known.used_v4, known.last_v4);
        let v6 = ranges(&network.subnets.v6, &network.spec.v6, |range| (range.network(), range.broadcast()));
        let v6 = allocate(v6, &known.used_v6, known.last_v6);
        let exhausted = |subnets: Vec<IpNetwork>| Rejection::AddressesExhausted {
            network: network.spec.name.to_string(),
            subnets: subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        match (v4, v6) {
            (None, _) if network.spec.ipv4 => {
                Err(exhausted(network.subnets.v4.iter().map(|s| s.range.into()).collect()))
            }
            (v4, Some(v6)) => Ok(DualAddr { v4, v6 }),
            (_, None) => Err(exhausted(network.subnets.v6.iter().map(|s| s.range.into()).collect())),
        }
    }

    /// The addresses and the backend id of a task on a network. The task takes `own` again if it is
    /// in quarantine after another task of its slot.
    pub(super) fn allocate_attachment(
        &mut self,
        network: &Network,
        task: &Task,
        own: Option<DualAddr>,
    ) -> Result<Attachment, Rejection> {
        let addr = match own.filter(|own| self.is_own(network, task, *own)) {
            Some(own) => {
                self.changes.reused.push((network.id.clone(), own));
                own
            }
            None => self.allocate_address(network)?,
        };
        let backend = BackendId(self.changes.next_backend);
        self.changes.next_backend += 1;
        Ok(Attachment { network: network.id.clone(), addr, mac: Mac::of_task(addr), backend })
    }

    /// The next link of a container. Each of its addresses is the one that the container wants, or
    /// the next free one.
    pub(super) fn allocate_link(
        &mut self,
        network: &Network,
        wanted: &WantedLink,
        index: u32,
    ) -> Result<ContainerLink, Rejection> {
        let none = NetworkAddresses::default();
        let known = self.state.allocated.addresses.get(&network.id).unwrap_or(&none);
        for addr in wanted.v4.map(IpAddr::V4).into_iter().chain(wanted.v6.map(IpAddr::V6)) {
            self.check_wanted(network, known, addr)?;
        }
        let addr = match (wanted.v4, wanted.v6) {
            (v4, Some(v6)) if v4.is_some() || !network.spec.ipv4 => DualAddr { v4, v6 },
            (v4, v6) => {
                let next = self.next_address(network)?;
                DualAddr { v4: v4.or(next.v4), v6: v6.unwrap_or(next.v6) }
            }
        };
        self.changes.allocated.push((network.id.clone(), addr));
        let aliases = wanted.aliases.clone();
        let (mac, reserved_ms) = (Mac::of_task(addr), Some(self.state.now_ms));
        Ok(ContainerLink { index, network: network.id.clone(), addr, mac, aliases, reserved_ms })
    }

    /// Refuses an address that is not in a subnet of the network, or not free.
    fn check_wanted(&self, network: &Network, known: &NetworkAddresses, addr: IpAddr) -> Result<(), Rejection> {
        let name = network.spec.name.to_string();
        if network.subnets.containing(addr).is_none() {
            let subnets = network.subnets.iter().map(|(range, _)| range.to_string()).collect::<Vec<_>>().join(", ");
            return Err(Rejection::Invalid(format!(
                "no subnet of network {name} contains address {addr}: choose one in {subnets}"
            )));
        }
        let is_used = match addr {
            IpAddr::V4(v4) => known.used_v4.contains(&v4),
            IpAddr::V6(v6) => known.used_v6.contains(&v6),
        };
        let is_freed = || {
            let quarantine = self.state.allocated.quarantine.iter();
            quarantine.filter(|freed| freed.network == network.id).any(|freed| freed.addr.ips().any(|ip| ip == addr))
        };
        match is_used {
            false => Ok(()),
            true if is_freed() => Err(Rejection::AddressInQuarantine { addr, network: name }),
            true => Err(Rejection::AddressInUse { addr, network: name }),
        }
    }

    fn is_own(&self, network: &Network, task: &Task, own: DualAddr) -> bool {
        self.state.allocated.quarantine.iter().any(|freed| {
            let was_there = (&freed.network, freed.addr) == (&network.id, own);
            was_there
                && freed.slot.as_ref().is_some_and(|(service, slot)| (service, slot) == (&task.service, &task.slot))
        })
    }

    pub(super) fn allocate_mesh_service(&mut self) -> MeshServiceId {
        let mesh = MeshServiceId(self.changes.next_mesh_service);
        self.changes.next_mesh_service += 1;
        mesh
    }

    /// Puts an address into quarantine. `task` is the one that had it. `None` for a VIP.
    pub(super) fn free_address(&mut self, network: &NetworkId, addr: DualAddr, task: Option<&Task>) {
        // A replica of an older release knows no owners, and all must release the same addresses.
        let task = task.filter(|_| self.state.feature_level >= OWNERS_LEVEL);
        let node = task.and_then(|task| task.node.clone());
        let slot = task.map(|task| (task.service.clone(), task.slot.clone()));
        self.free(network, addr, node, slot);
    }

    /// Puts the address of a container of `node` into quarantine.
    pub(super) fn free_link(&mut self, link: &ContainerLink, node: &NodeId) {
        self.free(&link.network, link.addr, Some(node.clone()), None);
    }

    fn free(&mut self, network: &NetworkId, addr: DualAddr, node: Option<NodeId>, slot: Option<(ServiceId, Slot)>) {
        let (freed_ms, freed_index) = (self.state.now_ms, self.state.index);
        self.changes.freed.push(FreedAddress { network: network.clone(), addr, freed_ms, freed_index, node, slot });
    }

    /// Ends the allocations of the command.
    pub(super) fn finish(self) -> Changes {
        self.changes
    }
}

impl Changes {
    pub(super) fn commit(self, state: &mut ClusterState) {
        let allocations = &mut state.allocated;
        allocations.next_mesh_service = self.next_mesh_service;
        allocations.next_backend = self.next_backend;
        for (network, addr) in self.allocated {
            let addresses = allocations.addresses.entry(network).or_default();
            addresses.used_v6.insert(addr.v6);
            addresses.last_v6 = Some(addr.v6);
            if let Some(v4) = addr.v4 {
                addresses.used_v4.insert(v4);
                addresses.last_v4 = Some(v4);
            }
        }
        allocations.quarantine.retain(|freed| {
            !self.reused.iter().any(|(network, addr)| (network, *addr) == (&freed.network, freed.addr))
        });
        allocations.quarantine.extend(self.freed);
    }
}

/// The addresses of a new network before any was allocated: those that never can be.
pub(super) fn of_new_network(network: &Network) -> NetworkAddresses {
    let v4 = network.subnets.v4.iter().flat_map(|s| [s.range.network(), s.range.broadcast(), s.gateway]);
    let v6 = network.subnets.v6.iter().flat_map(|s| [s.range.network(), s.gateway]);
    let reserved_v4 = network.spec.v4.iter().flat_map(|spec| spec.reserved.values());
    let reserved_v6 = network.spec.v6.iter().flat_map(|spec| spec.reserved.values());
    NetworkAddresses {
        used_v4: v4.chain(reserved_v4.copied()).collect(),
        used_v6: v6.chain(reserved_v6.copied()).collect(),
        ..NetworkAddresses::default()
    }
}

/// The first and last address of each range that addresses are allocated from. The specs are empty,
/// or in the order of the subnets.
fn ranges<N: Copy, A>(
    subnets: &[Subnet<N, A>],
    specs: &[SubnetSpec<N, A>],
    ends: impl Fn(N) -> (A, A),
) -> impl Iterator<Item = (A, A)> {
    subnets
        .iter()
        .enumerate()
        .map(move |(index, subnet)| ends(specs.get(index).and_then(|spec| spec.ip_range).unwrap_or(subnet.range)))
}

/// A free address of the first range that has one.
fn allocate<A: Address>(
    ranges: impl Iterator<Item = (A, A)>,
    used: &BTreeSet<A>,
    last_allocated: Option<A>,
) -> Option<A> {
    ranges.into_iter().find_map(|(first, last)| {
        let after = last_allocated.filter(|address| (first..last).contains(address)).and_then(Address::next);
        let ahead = after.and_then(|after| first_free(after, last, used));
        ahead.or_else(|| first_free(first, last, used))
    })
}

/// The first address from `first` to `last` that is not in `used`. The number of used addresses
/// between the first address and the result limits the number of steps.
fn first_free<A: Address>(first: A, last: A, used: &BTreeSet<A>) -> Option<A> {
    let mut free = first;
    for taken in used.range(first..=last) {
        if *taken != free {
            break;
        }
        free = taken.next()?;
    }
    (free <= last).then_some(free)
}

trait Address: Copy + Ord {
    /// The address after this one, if there is one.
    fn next(self) -> Option<Self>;
}

impl Address for Ipv4Addr {
    fn next(self) -> Option<Self> {
        u32::from(self).checked_add(1).map(Self::from)
    }
}

impl Address for Ipv6Addr {
    fn next(self) -> Option<Self> {
        u128::from(self).checked_add(1).map(Self::from)
    }
}

/// When the quarantine of an address ends, by the clock of the cluster state. `None`: not before
/// more nodes have acknowledged its removal. `acked_index` is what every node has acknowledged that
/// the cluster waits for, and `owners` what the nodes have whose tasks had the addresses.
pub fn release_at_ms(
    state: &ClusterState,
    freed: &FreedAddress,
    acked_index: u64,
    owners: &BTreeMap<NodeId, u64>,
) -> Option<u64> {
    if freed.freed_index > acked_index {
        return None;
    }
    let wait_ms = if may_still_run(state, freed, owners) { ABANDONED_MS } else { QUARANTINE_MS };
    Some(freed.freed_ms.saturating_add(wait_ms))
}

/// Whether the next task of the same slot may take the address now: no node has it in its maps, and
/// the former task has ended. DNS replies and packets of the last seconds may still lead to the
/// address. They then reach the same replica of the same service, as after a restart in place.
pub fn slot_may_reuse(
    state: &ClusterState,
    freed: &FreedAddress,
    acked_index: u64,
    owners: &BTreeMap<NodeId, u64>,
) -> bool {
    freed.freed_index <= acked_index && !may_still_run(state, freed, owners)
}

fn may_still_run(state: &ClusterState, freed: &FreedAddress, owners: &BTreeMap<NodeId, u64>) -> bool {
    freed.node.as_ref().is_some_and(|node| {
        let acked = owners.get(node).is_some_and(|acked| *acked >= freed.freed_index);
        state.nodes.contains_key(node) && !acked
    })
}

/// Ends the quarantine of the addresses that may be used again ([`release_at_ms`]).
pub(super) fn release(
    state: &mut ClusterState,
    acked_index: u64,
    owners: &BTreeMap<NodeId, u64>,
) -> Result<Applied, Rejection> {
    let quarantine = std::mem::take(&mut state.allocated.quarantine);
    let (released, kept): (Vec<_>, Vec<_>) = quarantine
        .into_iter()
        .partition(|freed| release_at_ms(state, freed, acked_index, owners).is_some_and(|at_ms| at_ms <= state.now_ms));
    state.allocated.quarantine = kept;
    for freed in released {
        let Some(known) = state.allocated.addresses.get_mut(&freed.network) else { continue };
        known.used_v6.remove(&freed.addr.v6);
        if let Some(v4) = freed.addr.v4 {
            known.used_v4.remove(&v4);
        }
    }
    Ok(Applied::Done)
}
