//! Allocates the addresses of a network. VIPs and tasks get addresses from the same range.
//!
//! The search for a free address starts after the address that was allocated last. A freed address
//! stays in quarantine until no node can have it in its maps.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, BackendId, ClusterState, DualAddr, Mac, NetworkId, Rejection,
    spec::SubnetSpec,
    state::{AddressCursor, Allocations, Attachment, FreedAddress, Network},
};

/// The minimum quarantine of a freed address, by the clock of the cluster state. After this time no
/// packet to the last owner of the address is still in the network.
pub const QUARANTINE_MS: u64 = 30_000;

/// The addresses of one network that cannot be allocated, in ascending order.
#[derive(Debug)]
struct UsedAddresses {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl UsedAddresses {
    fn of(state: &ClusterState, allocated: &Allocations, network: &Network) -> Self {
        let id = &network.id;
        let subnets = &network.subnets;
        let vips = state.services.values().flat_map(|s| &s.endpoints).filter(|e| e.network == *id);
        let tasks = state.tasks.values().flat_map(|t| &t.attachments).filter(|a| a.network == *id);
        let freed = allocated.quarantine.iter().filter(|f| f.network == *id);
        let all = vips.filter_map(|e| e.vip).chain(tasks.map(|a| a.addr)).chain(freed.map(|f| f.addr));
        let (mut v4, mut v6): (Vec<_>, Vec<_>) = all.map(|addr| (addr.v4, addr.v6)).unzip();
        v4.extend([subnets.v4.network(), subnets.v4.broadcast(), subnets.v4_gateway]);
        v6.extend([subnets.v6.network(), subnets.v6_gateway]);
        v4.extend(network.spec.v4.iter().flat_map(|spec| spec.reserved.values()));
        v6.extend(network.spec.v6.iter().flat_map(|spec| spec.reserved.values()));
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }
}

/// The allocations of one command. The caller puts them into the cluster state when the whole
/// command is certain to succeed.
#[derive(Debug)]
pub(super) struct Allocator<'a> {
    state: &'a ClusterState,
    pub(super) allocated: Allocations,
}

impl<'a> Allocator<'a> {
    pub(super) fn new(state: &'a ClusterState) -> Self {
        Self { state, allocated: state.allocated.clone() }
    }

    /// The next free IPv4 and IPv6 address of a network. Must be called at most once for each
    /// network in one command, because it does not treat the addresses that it returned before as
    /// used.
    pub(super) fn allocate_address(&mut self, network: &Network) -> Result<DualAddr, Rejection> {
        let used = UsedAddresses::of(self.state, &self.allocated, network);
        let cursor = self.allocated.cursors.get(&network.id);
        let (v4_range, v6_range) = ranges(network);
        let exhausted = |subnet| Rejection::AddressesExhausted { network: network.spec.name.to_string(), subnet };
        let v4 = next_free(v4_range, cursor.map(|c| u128::from(u32::from(c.v4))), |n| {
            u32::try_from(n).ok().map(Ipv4Addr::from).filter(|a| used.v4.binary_search(a).is_err())
        })
        .ok_or_else(|| exhausted(IpNetwork::V4(network.subnets.v4)))?;
        let v6 = next_free(v6_range, cursor.map(|c| u128::from(c.v6)), |n| {
            Some(Ipv6Addr::from(n)).filter(|a| used.v6.binary_search(a).is_err())
        })
        .ok_or_else(|| exhausted(IpNetwork::V6(network.subnets.v6)))?;
        self.allocated.cursors.insert(network.id.clone(), AddressCursor { v4, v6 });
        Ok(DualAddr { v4, v6 })
    }

    /// The addresses and the backend id of a task on a network.
    pub(super) fn allocate_attachment(&mut self, network: &Network) -> Result<Attachment, Rejection> {
        let addr = self.allocate_address(network)?;
        let backend = BackendId(self.allocated.next_backend);
        self.allocated.next_backend += 1;
        Ok(Attachment { network: network.id.clone(), addr, mac: Mac::of_task(addr.v4), backend })
    }

    /// Puts an address into quarantine.
    pub(super) fn free_address(&mut self, network: &NetworkId, addr: DualAddr) {
        self.allocated.quarantine.push(FreedAddress {
            network: network.clone(),
            addr,
            freed_ms: self.state.now_ms,
            freed_index: self.state.index,
        });
    }
}

/// The first and last address of the IPv4 range and of the IPv6 range of a network, as numbers.
fn ranges(network: &Network) -> ((u128, u128), (u128, u128)) {
    fn ip_range<N: Copy, A>(spec: &Option<SubnetSpec<N, A>>) -> Option<N> {
        spec.as_ref().and_then(|s| s.ip_range)
    }
    let v4 = ip_range(&network.spec.v4).unwrap_or(network.subnets.v4);
    let v6 = ip_range(&network.spec.v6).unwrap_or(network.subnets.v6);
    (
        (u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()),
        (u128::from(v6.network()), u128::from(v6.broadcast())),
    )
}

/// The first number of the range for which `take` returns a value. The search starts after the
/// cursor, and continues at the beginning of the range. The number of used addresses limits the
/// number of steps, because `take` fails only for used addresses.
fn next_free<A>((first, last): (u128, u128), cursor: Option<u128>, take: impl Fn(u128) -> Option<A>) -> Option<A> {
    let start = cursor.map_or(first, |c| c.saturating_add(1)).clamp(first, last);
    let start = if cursor.is_some_and(|c| c >= last) { first } else { start };
    (start..=last).chain(first..start).find_map(take)
}

/// Ends the quarantine of addresses whose removal every ready node has acknowledged (`acked_index`)
/// and whose quarantine time is over.
pub(super) fn release(state: &mut ClusterState, acked_index: u64) -> Result<Applied, Rejection> {
    let now_ms = state.now_ms;
    state
        .allocated
        .quarantine
        .retain(|freed| !(freed.freed_index <= acked_index && freed.freed_ms + QUARANTINE_MS <= now_ms));
    Ok(Applied::Done)
}
