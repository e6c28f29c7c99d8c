//! Desired and actual tables → changes. Pure: the union of both key sets decides, so start-up, change, repair and
//! garbage collection are one path.

use std::collections::{BTreeMap, BTreeSet};

use weft_ebpf_common::{
    Backend, Config, Endpoint, Forward, NetAddr, Nets, PortKey, PortTarget, Route, Service, SlotKey,
};

use crate::tables::{Prefix, Tables};

/// What must happen to one map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change<K, V> {
    /// Entries to write, new or over another value.
    pub(crate) put: Vec<(K, V)>,
    /// Entries to take away.
    pub(crate) del: Vec<K>,
}

impl<K: Ord + Copy, V: PartialEq + Copy> Change<K, V> {
    fn between(desired: &BTreeMap<K, V>, actual: &BTreeMap<K, V>) -> Self {
        Self {
            put: desired.iter().filter(|(key, value)| actual.get(key) != Some(value)).map(|(k, v)| (*k, *v)).collect(),
            del: actual.keys().filter(|key| !desired.contains_key(key)).copied().collect(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.put.len() + self.del.len()
    }
}

impl<K: Ord + Copy> Change<K, ()> {
    fn between_sets(desired: &BTreeSet<K>, actual: &BTreeSet<K>) -> Self {
        Self {
            put: desired.difference(actual).map(|key| (*key, ())).collect(),
            del: actual.difference(desired).copied().collect(),
        }
    }
}

/// What must happen to all maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) config: Option<Config>,
    pub(crate) own: Change<NetAddr, u32>,
    pub(crate) ports: Change<PortKey, PortTarget>,
    pub(crate) vips: Change<NetAddr, u32>,
    pub(crate) services: Change<u32, Service>,
    pub(crate) slots: Change<SlotKey, u64>,
    pub(crate) backends: Change<u64, Backend>,
    pub(crate) endpoints: Change<u32, Endpoint>,
    pub(crate) forward: Change<NetAddr, Forward>,
    pub(crate) nodes: Change<NetAddr, u32>,
    pub(crate) routes: Change<Prefix, Route>,
    pub(crate) netns: Change<u64, Nets>,
    pub(crate) counted_services: Change<u32, ()>,
    pub(crate) counted_backends: Change<u64, ()>,
}

impl Changes {
    /// Number of map entries that change.
    pub(crate) fn len(&self) -> usize {
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
            + self.counted_services.len()
            + self.counted_backends.len()
    }
}

/// What turns `actual` into `desired`.
pub(crate) fn diff(desired: &Tables, actual: &Tables) -> Changes {
    Changes {
        config: (desired.config != actual.config).then_some(desired.config),
        own: Change::between(&desired.own, &actual.own),
        ports: Change::between(&desired.ports, &actual.ports),
        vips: Change::between(&desired.vips, &actual.vips),
        services: Change::between(&desired.services, &actual.services),
        slots: Change::between(&desired.slots, &actual.slots),
        backends: Change::between(&desired.backends, &actual.backends),
        endpoints: Change::between(&desired.endpoints, &actual.endpoints),
        forward: Change::between(&desired.forward, &actual.forward),
        nodes: Change::between(&desired.nodes, &actual.nodes),
        routes: Change::between(&desired.routes, &actual.routes),
        netns: Change::between(&desired.netns, &actual.netns),
        counted_services: Change::between_sets(&desired.counted_services, &actual.counted_services),
        counted_backends: Change::between_sets(&desired.counted_backends, &actual.counted_backends),
    }
}

#[cfg(test)]
mod tests {
    use weft_ebpf_common::{Addr, HOST_NET};

    use super::*;

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

    #[test]
    fn equal_tables_need_no_change() {
        let same = tables(&[(1, 1), (2, 1)], &[3]);
        assert_eq!(diff(&same, &same).len(), 0);
    }

    #[test]
    fn the_union_of_both_key_sets_decides() {
        let changes = diff(&tables(&[(1, 1), (2, 2)], &[5, 6]), &tables(&[(2, 9), (3, 1)], &[6, 7]));
        assert_eq!(changes.own, Change { put: vec![(key(1), 1), (key(2), 2)], del: vec![key(3)] });
        assert_eq!(changes.counted_services, Change { put: vec![(5, ())], del: vec![7] });
        assert_eq!(changes.len(), 5);
    }

    #[test]
    fn an_empty_kernel_gets_everything_and_an_empty_plan_takes_it_away() {
        let full = tables(&[(1, 1)], &[2]);
        let empty = Tables::default();
        assert_eq!(diff(&full, &empty).own.put.len(), 1);
        assert_eq!(diff(&empty, &full).own.del.len(), 1);
    }

    #[test]
    fn configuration_is_written_only_when_it_differs() {
        let mut desired = Tables::default();
        assert_eq!(diff(&desired, &Tables::default()).config, None);
        desired.config.tunnel_ifindex = 4;
        assert_eq!(diff(&desired, &Tables::default()).config, Some(desired.config));
    }
}
