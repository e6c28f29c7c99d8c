//! Typed maps, and the order in which they change.
//!
//! Additions come before removals, so that nothing ever points at what is not there. A map that is too full for that
//! gives up what is obsolete in it first: for a moment some old entries point nowhere, and the plan comes true.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
};
use rustix::io::Errno;
use weft_ebpf_common::{
    Backend, Config, DropReason, Endpoint, Forward, NetAddr, Nets, Plain, PortKey, PortTarget, Route, Service, SlotKey,
    Traffic,
};

use super::Error;
use crate::{
    counters::Drops,
    diff::{Change, Changes},
    tables::{Prefix, Tables},
};

/// A key or value on its way across the map boundary.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: `Plain` promises that `T` is integers without padding, and `Raw` is transparent.
#[expect(unsafe_code, reason = "aya's marker, implied by the contract crate's own")]
unsafe impl<T: Plain> Pod for Raw<T> {}

/// One map's changes.
trait Entries<K, V> {
    /// What the kernel says of a map without room for another entry (kernel/bpf/hashtab.c, kernel/bpf/lpm_trie.c).
    const FULL: Errno = Errno::TOOBIG;

    fn name(&self) -> &'static str;
    fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;

    fn put(&mut self, change: &Change<K, V>) -> Result<(), Error> {
        let mut made_room = false;
        for (key, value) in &change.put {
            match self.insert(key, value) {
                Err(error) if !made_room && errno(&error) == Some(Self::FULL) => {
                    made_room = true;
                    self.del(change)?;
                    self.insert(key, value).map_err(failed(self.name()))?;
                }
                inserted => inserted.map_err(failed(self.name()))?,
            }
        }
        Ok(())
    }

    /// An entry that is not there needs no removing.
    fn del(&mut self, change: &Change<K, V>) -> Result<(), Error> {
        for key in &change.del {
            match self.remove(key) {
                Err(MapError::KeyNotFound) => {}
                Err(error) if errno(&error) == Some(Errno::NOENT) => {}
                removed => removed.map_err(failed(self.name()))?,
            }
        }
        Ok(())
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(error) => Errno::from_io_error(&error.io_error),
        _ => None,
    }
}

struct Table<K: Plain, V: Plain> {
    name: &'static str,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
}

struct CountTable<K: Plain> {
    name: &'static str,
    cpus: usize,
    map: PerCpuHashMap<MapData, Raw<K>, Raw<Traffic>>,
}

struct RouteTable {
    name: &'static str,
    map: LpmTrie<MapData, Raw<NetAddr>, Raw<Route>>,
}

/// Every map that user space reads or writes.
pub(crate) struct Maps {
    config: Array<MapData, Raw<Config>>,
    own: Table<NetAddr, u32>,
    ports: Table<PortKey, PortTarget>,
    vips: Table<NetAddr, u32>,
    services: Table<u32, Service>,
    slots: Table<SlotKey, u64>,
    backends: Table<u64, Backend>,
    endpoints: Table<u32, Endpoint>,
    forward: Table<NetAddr, Forward>,
    nodes: Table<NetAddr, u32>,
    routes: RouteTable,
    netns: Table<u64, Nets>,
    service_stats: CountTable<u32>,
    backend_stats: CountTable<u64>,
    drops: PerCpuArray<MapData, u64>,
}

const CONFIG: &str = "CONFIG";
const ROUTES: &str = "ROUTES";
const DROPS: &str = "DROPS";

impl Maps {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: take(ebpf, CONFIG)?.try_into().map_err(failed(CONFIG))?,
            own: Table::open(ebpf, "OWN")?,
            ports: Table::open(ebpf, "PORTS")?,
            vips: Table::open(ebpf, "VIPS")?,
            services: Table::open(ebpf, "SERVICES")?,
            slots: Table::open(ebpf, "SLOTS")?,
            backends: Table::open(ebpf, "BACKENDS")?,
            endpoints: Table::open(ebpf, "ENDPOINTS")?,
            forward: Table::open(ebpf, "FORWARD")?,
            nodes: Table::open(ebpf, "NODES")?,
            routes: RouteTable { name: ROUTES, map: take(ebpf, ROUTES)?.try_into().map_err(failed(ROUTES))? },
            netns: Table::open(ebpf, "NETNS")?,
            service_stats: CountTable::open(ebpf, "SERVICE_STATS")?,
            backend_stats: CountTable::open(ebpf, "BACKEND_STATS")?,
            drops: take(ebpf, DROPS)?.try_into().map_err(failed(DROPS))?,
        })
    }

    /// What the maps hold now.
    pub(crate) fn read(&self) -> Result<Tables, Error> {
        Ok(Tables {
            config: self.config.get(&0, 0).map_err(failed(CONFIG))?.0,
            own: self.own.read()?,
            ports: self.ports.read()?,
            vips: self.vips.read()?,
            services: self.services.read()?,
            slots: self.slots.read()?,
            backends: self.backends.read()?,
            endpoints: self.endpoints.read()?,
            forward: self.forward.read()?,
            nodes: self.nodes.read()?,
            routes: self.routes.read()?,
            netns: self.netns.read()?,
            counted_services: self.service_stats.keys()?,
            counted_backends: self.backend_stats.keys()?,
        })
    }

    /// Everything that is new or different; what is pointed at before what points there. A service's slots are written
    /// before its count grows, and its count shrinks before [`Self::remove`] takes slots away.
    pub(crate) fn add(&mut self, changes: &Changes) -> Result<(), Error> {
        if let Some(config) = changes.config {
            self.config.set(0, Raw(config), 0).map_err(failed(CONFIG))?;
        }
        self.nodes.put(&changes.nodes)?;
        self.routes.put(&changes.routes)?;
        self.endpoints.put(&changes.endpoints)?;
        self.forward.put(&changes.forward)?;
        self.backend_stats.put(&changes.counted_backends)?;
        self.service_stats.put(&changes.counted_services)?;
        self.backends.put(&changes.backends)?;
        self.slots.put(&changes.slots)?;
        self.services.put(&changes.services)?;
        self.vips.put(&changes.vips)?;
        self.netns.put(&changes.netns)?;
        self.ports.put(&changes.ports)?;
        self.own.put(&changes.own)
    }

    /// Everything that is gone, in the opposite order.
    pub(crate) fn remove(&mut self, changes: &Changes) -> Result<(), Error> {
        self.own.del(&changes.own)?;
        self.ports.del(&changes.ports)?;
        self.netns.del(&changes.netns)?;
        self.vips.del(&changes.vips)?;
        self.services.del(&changes.services)?;
        self.slots.del(&changes.slots)?;
        self.backends.del(&changes.backends)?;
        self.service_stats.del(&changes.counted_services)?;
        self.backend_stats.del(&changes.counted_backends)?;
        self.forward.del(&changes.forward)?;
        self.endpoints.del(&changes.endpoints)?;
        self.routes.del(&changes.routes)?;
        self.nodes.del(&changes.nodes)
    }

    /// How many packets the programs did not let through, by reason, since the maps were made.
    pub(crate) fn drops(&self) -> Result<Drops, Error> {
        let count = |reason: DropReason| {
            let per_cpu = self.drops.get(&(reason as u32), 0).map_err(failed(DROPS))?;
            Ok((reason, per_cpu.iter().sum()))
        };
        DropReason::ALL.iter().copied().map(count).collect()
    }
}

impl<K: Plain + Ord, V: Plain> Table<K, V> {
    fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        Ok(Self { name, map: take(ebpf, name)?.try_into().map_err(failed(name))? })
    }

    fn read(&self) -> Result<BTreeMap<K, V>, Error> {
        self.map.iter().map(|entry| entry.map(|(Raw(k), Raw(v))| (k, v)).map_err(failed(self.name))).collect()
    }
}

impl<K: Plain, V: Plain> Entries<K, V> for Table<K, V> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.map.insert(Raw(*key), Raw(*value), 0)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        self.map.remove(&Raw(*key))
    }
}

impl<K: Plain + Ord> CountTable<K> {
    fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::Io {
            what: "counting the CPUs in",
            path: "/sys/devices/system/cpu/possible".into(),
            source,
        })?;
        Ok(Self { name, cpus, map: take(ebpf, name)?.try_into().map_err(failed(name))? })
    }

    fn keys(&self) -> Result<BTreeSet<K>, Error> {
        self.map.keys().map(|key| key.map(|Raw(k)| k).map_err(failed(self.name))).collect()
    }
}

impl<K: Plain> Entries<K, ()> for CountTable<K> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn insert(&mut self, key: &K, (): &()) -> Result<(), MapError> {
        let zeros = PerCpuValues::try_from(vec![Raw(Traffic::default()); self.cpus])?;
        self.map.insert(Raw(*key), zeros, 0)
    }

    fn remove(&mut self, key: &K) -> Result<(), MapError> {
        self.map.remove(&Raw(*key))
    }
}

impl RouteTable {
    fn read(&self) -> Result<BTreeMap<Prefix, Route>, Error> {
        let prefix = |key: Key<Raw<NetAddr>>| Prefix { bits: key.prefix_len(), addr: key.data().0 };
        self.map.iter().map(|entry| entry.map(|(k, Raw(v))| (prefix(k), v)).map_err(failed(self.name))).collect()
    }
}

impl Entries<Prefix, Route> for RouteTable {
    const FULL: Errno = Errno::NOSPC;

    fn name(&self) -> &'static str {
        self.name
    }

    fn insert(&mut self, prefix: &Prefix, route: &Route) -> Result<(), MapError> {
        self.map.insert(&key(prefix), Raw(*route), 0)
    }

    fn remove(&mut self, prefix: &Prefix) -> Result<(), MapError> {
        self.map.remove(&key(prefix))
    }
}

fn key(prefix: &Prefix) -> Key<Raw<NetAddr>> {
    Key::new(prefix.bits, Raw(prefix.addr))
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or(Error::Missing { kind: "map", name })
}

fn failed(name: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { name, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    /// Has room for three.
    #[derive(Default)]
    struct Small(BTreeMap<u32, u32>);

    impl Small {
        fn refused<T>(errno: Errno) -> Result<T, MapError> {
            Err(SyscallError { call: "bpf", io_error: errno.into() }.into())
        }
    }

    impl Entries<u32, u32> for Small {
        fn name(&self) -> &'static str {
            "SMALL"
        }

        fn insert(&mut self, key: &u32, value: &u32) -> Result<(), MapError> {
            if self.0.len() == 3 && !self.0.contains_key(key) {
                return Self::refused(Self::FULL);
            }
            self.0.insert(*key, *value);
            Ok(())
        }

        fn remove(&mut self, key: &u32) -> Result<(), MapError> {
            self.0.remove(key).map_or_else(|| Self::refused(Errno::NOENT), |_| Ok(()))
        }
    }

    fn check(held: &[u32], put: &[u32], del: &[u32], expected: Option<&[u32]>) {
        let mut map = Small(held.iter().map(|key| (*key, 0)).collect());
        let change = Change { put: put.iter().map(|key| (*key, 1)).collect(), del: del.to_vec() };
        let done = map.put(&change);
        assert_eq!(done.is_ok(), expected.is_some(), "{done:?}");
        if let Some(expected) = expected {
            assert_eq!(map.0.keys().copied().collect::<Vec<_>>(), expected);
            map.del(&change).expect("what is gone needs no removing");
        }
    }

    #[test]
    fn a_full_map_makes_room_before_it_takes_more() {
        check(&[1, 2], &[3], &[1], Some(&[1, 2, 3]));
        check(&[1, 2, 3], &[3, 4, 5], &[1, 2], Some(&[3, 4, 5]));
        check(&[1, 2, 3], &[2], &[], Some(&[1, 2, 3]));
        check(&[1, 2, 3], &[4, 5], &[1], None);
    }
}
