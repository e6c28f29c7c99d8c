//! `ops = diff(desired, actual)`: what has to be written, deleted, attached and detached. Pure.
//!
//! `reconcile` calls [`diff`] and applies the result. The result covers the union of both sides, so
//! start-up, change, repair and garbage collection are one code path.

use std::collections::{BTreeMap, BTreeSet};

use weft_ebpf_common::{
    Addr, Backend, Config, Endpoint, Forward, NetAddr, Nets, Node, PortKey, PortTarget, Route, Service, SlotKey,
    names::{Name, NameKey, NameScope},
};

use crate::{
    actual::{Actual, Pinned},
    attachment::Attachment,
    desired::Desired,
    tables::Prefix,
};

/// One step on one map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<K, V> {
    /// Inserts an entry or overwrites its value.
    Put(K, V),
    Delete(K),
}

/// All steps: one list for each map, and the attachments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ops {
    /// The new configuration, if it changes.
    pub config: Option<Config>,
    pub own: Vec<Op<NetAddr, u32>>,
    pub ports: Vec<Op<PortKey, PortTarget>>,
    pub vips: Vec<Op<NetAddr, u32>>,
    pub services: Vec<Op<u32, Service>>,
    pub slots: Vec<Op<SlotKey, u64>>,
    pub backends: Vec<Op<u64, Backend>>,
    pub endpoints: Vec<Op<u32, Endpoint>>,
    pub forward: Vec<Op<NetAddr, Forward>>,
    pub nodes: Vec<Op<NetAddr, Node>>,
    pub routes: Vec<Op<Prefix, Route>>,
    pub netns: Vec<Op<u64, Nets>>,
    pub resolvers: Vec<Op<u64, Addr>>,
    pub names: Vec<Op<NameKey, Name>>,
    pub name_scopes: Vec<Op<u32, NameScope>>,
    pub counted_services: Vec<Op<u32, ()>>,
    /// Attachments that are missing or have another program.
    pub attach: Vec<Attachment>,
    /// Attachments that are not desired any more.
    pub detach: Vec<Attachment>,
}

impl Ops {
    /// The number of map entries that change.
    pub fn map_entries(&self) -> usize {
        usize::from(self.config.is_some())
            + self.own.len()
            + self.ports.len()
            + self.vips.len()
            + self.services.len()
            + self.slots.len()
            + self.backends.len()
            + self.endpoints.len()
            + self.forward.len()
            + self.nodes.len()
            + self.routes.len()
            + self.netns.len()
            + self.resolvers.len()
            + self.names.len()
            + self.name_scopes.len()
            + self.counted_services.len()
    }
}

/// Computes the steps that turn `actual` into `desired`.
///
/// ```
/// use weft_mesh::{LocalFacts, actual::Actual, desired::desired, diff::diff};
/// use weft_model::{NodeId, NodePlan};
///
/// let plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
/// let desired = desired(&plan, &LocalFacts::default());
///
/// // An empty kernel gets the configuration and the attachments.
/// let ops = diff(&desired, &Actual::default());
/// assert_eq!(ops.config, Some(desired.tables.config));
/// assert_eq!(ops.attach.len(), desired.attachments.len());
///
/// // If the kernel has the desired entries, no entry changes.
/// let actual = Actual { tables: desired.tables.clone(), ..Actual::default() };
/// assert_eq!(diff(&desired, &actual).map_entries(), 0);
/// ```
pub fn diff(desired: &Desired, actual: &Actual) -> Ops {
    let is_current = |attachment: &Attachment| actual.attachments.get(attachment) == Some(&Pinned::Current);
    let attach = desired.attachments.iter().filter(|attachment| !is_current(attachment)).copied().collect();
    let pinned = actual.attachments.keys();
    let detach = pinned.filter(|attachment| !desired.attachments.contains(attachment)).copied().collect();
    let (desired, actual) = (&desired.tables, &actual.tables);
    Ops {
        config: (desired.config != actual.config).then_some(desired.config),
        own: diff_map(&desired.own, &actual.own),
        ports: diff_map(&desired.ports, &actual.ports),
        vips: diff_map(&desired.vips, &actual.vips),
        services: diff_map(&desired.services, &actual.services),
        slots: diff_map(&desired.slots, &actual.slots),
        backends: diff_map(&desired.backends, &actual.backends),
        endpoints: diff_map(&desired.endpoints, &actual.endpoints),
        forward: diff_map(&desired.forward, &actual.forward),
        nodes: diff_map(&desired.nodes, &actual.nodes),
        routes: diff_map(&desired.routes, &actual.routes),
        netns: diff_map(&desired.netns, &actual.netns),
        resolvers: diff_map(&desired.resolvers, &actual.resolvers),
        names: diff_map(&desired.names, &actual.names),
        name_scopes: diff_map(&desired.name_scopes, &actual.name_scopes),
        counted_services: diff_set(&desired.counted_services, &actual.counted_services),
        attach,
        detach,
    }
}

fn diff_map<K: Ord + Copy, V: PartialEq + Copy>(desired: &BTreeMap<K, V>, actual: &BTreeMap<K, V>) -> Vec<Op<K, V>> {
    let changed = desired.iter().filter(|(key, value)| actual.get(key) != Some(value));
    let stale = actual.keys().filter(|key| !desired.contains_key(key));
    changed.map(|(key, value)| Op::Put(*key, *value)).chain(stale.map(|key| Op::Delete(*key))).collect()
}

fn diff_set<K: Ord + Copy>(desired: &BTreeSet<K>, actual: &BTreeSet<K>) -> Vec<Op<K, ()>> {
    let missing = desired.difference(actual).map(|key| Op::Put(*key, ()));
    missing.chain(actual.difference(desired).map(|key| Op::Delete(*key))).collect()
}

#[cfg(test)]
mod tests {
    use weft_ebpf_common::HOST_NET;

    use super::*;
    use crate::{attachment::Hook, tables::Tables};

    fn key(last: u32) -> NetAddr {
        NetAddr { net: HOST_NET, addr: Addr::from_v4_be(last) }
    }

    fn tables(own: &[(u32, u32)], counted: &[u32]) -> Tables {
        Tables {
            own: own.iter().map(|(k, v)| (key(*k), *v)).collect(),
            counted_services: counted.iter().copied().collect(),
            ..Tables::default()
        }
    }

    fn diff_tables(desired: &Tables, actual: &Tables) -> Ops {
        let desired = Desired { tables: desired.clone(), ..Desired::default() };
        diff(&desired, &Actual { tables: actual.clone(), ..Actual::default() })
    }

    #[test]
    fn equal_tables_need_no_operation() {
        let same = tables(&[(1, 1), (2, 1)], &[3]);
        assert_eq!(diff_tables(&same, &same).map_entries(), 0);
    }

    #[test]
    fn covers_the_keys_of_both_sides() {
        let ops = diff_tables(&tables(&[(1, 1), (2, 2)], &[5, 6]), &tables(&[(2, 9), (3, 1)], &[6, 7]));
        assert_eq!(ops.own, [Op::Put(key(1), 1), Op::Put(key(2), 2), Op::Delete(key(3))]);
        assert_eq!(ops.counted_services, [Op::Put(5, ()), Op::Delete(7)]);
        assert_eq!(ops.map_entries(), 5);
    }

    #[test]
    fn an_empty_kernel_gets_every_entry_and_an_empty_plan_deletes_every_entry() {
        let full = tables(&[(1, 1)], &[2]);
        let empty = Tables::default();
        assert_eq!(diff_tables(&full, &empty).own, [Op::Put(key(1), 1)]);
        assert_eq!(diff_tables(&empty, &full).own, [Op::Delete(key(1))]);
    }

    #[test]
    fn the_configuration_is_written_only_if_it_differs() {
        let mut desired = Tables::default();
        assert_eq!(diff_tables(&desired, &Tables::default()).config, None);
        desired.config.tunnel_ifindex = 4;
        assert_eq!(diff_tables(&desired, &Tables::default()).config, Some(desired.config));
    }

    #[test]
    fn missing_and_stale_attachments_are_attached_and_undesired_ones_detached() {
        let [current, stale, missing, undesired] =
            [1, 2, 3, 4].map(|ifindex| Attachment::Link { hook: Hook::UplinkIn, ifindex });
        let socket = Attachment::Cgroup("sock_connect4");
        let desired = Desired { attachments: [current, stale, missing, socket].into(), ..Desired::default() };
        let attachments = [(current, Pinned::Current), (stale, Pinned::Stale), (undesired, Pinned::Current)].into();
        let ops = diff(&desired, &Actual { attachments, ..Actual::default() });
        assert_eq!(ops.attach, [stale, missing, socket], "links before sockets");
        assert_eq!(ops.detach, [undesired]);
    }
}
