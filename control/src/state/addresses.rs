//! Addresses on a network: VIPs and tasks draw from one range, next-free from a cursor. A freed address waits in
//! quarantine until no node can hold it any more.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, BackendId, ClusterState, DualAddr, Mac, NetworkId, Rejection,
    spec::SubnetSpec,
    state::{AddressCursor, Allocations, Attachment, FreedAddress, Network},
};

/// How long a freed address waits at least, in the table's clock: long enough for what was sent to its last owner.
pub const QUARANTINE_MS: u64 = 30_000;

/// Addresses of one network that are not free, in order.
#[derive(Debug)]
struct Used {
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl Used {
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
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }
}

/// What one command draws, kept beside the table until the whole command is known to succeed.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    state: &'a ClusterState,
    pub(super) allocated: Allocations,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &'a ClusterState) -> Self {
        Self { state, allocated: state.allocated.clone() }
    }

    /// The next free address of each family on this network. One command draws at most one for each network.
    pub(super) fn address(&mut self, network: &Network) -> Result<DualAddr, Rejection> {
        let used = Used::of(self.state, &self.allocated, network);
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

    /// A task's place on this network.
    pub(super) fn attachment(&mut self, network: &Network) -> Result<Attachment, Rejection> {
        let addr = self.address(network)?;
        let backend = BackendId(self.allocated.next_backend);
        self.allocated.next_backend += 1;
        Ok(Attachment { network: network.id.clone(), addr, mac: Mac::of_task(addr.v4), backend })
    }

    /// Freed now, used again after quarantine.
    pub(super) fn free(&mut self, network: &NetworkId, addr: DualAddr) {
        self.allocated.quarantine.push(FreedAddress {
            network: network.clone(),
            addr,
            freed_ms: self.state.now_ms,
            freed_index: self.state.index,
        });
    }
}

/// First and last number that addresses of each family are drawn from.
fn ranges(network: &Network) -> ((u128, u128), (u128, u128)) {
    fn chosen<N: Copy, A>(spec: &Option<SubnetSpec<N, A>>) -> Option<N> {
        spec.as_ref().and_then(|s| s.ip_range)
    }
    let v4 = chosen(&network.spec.v4).unwrap_or(network.subnets.v4);
    let v6 = chosen(&network.spec.v6).unwrap_or(network.subnets.v6);
    (
        (u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()),
        (u128::from(v6.network()), u128::from(v6.broadcast())),
    )
}

/// Goes once around the range, from behind the cursor. Each step that fails meets a used address, so it ends after as many
/// steps as there are used ones.
fn next_free<A>((first, last): (u128, u128), cursor: Option<u128>, take: impl Fn(u128) -> Option<A>) -> Option<A> {
    let start = cursor.map_or(first, |c| c.saturating_add(1)).clamp(first, last);
    let start = if cursor.is_some_and(|c| c >= last) { first } else { start };
    (start..=last).chain(first..start).find_map(take)
}

/// Ends the quarantine of addresses whose removal every ready node holds, and whose time is over.
pub(super) fn release(state: &mut ClusterState, acked_index: u64) -> Result<Applied, Rejection> {
    let now_ms = state.now_ms;
    state
        .allocated
        .quarantine
        .retain(|freed| !(freed.freed_index <= acked_index && freed.freed_ms + QUARANTINE_MS <= now_ms));
    Ok(Applied::Done)
}
