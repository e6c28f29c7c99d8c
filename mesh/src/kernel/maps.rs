//! The maps with the types of their keys and values, and the order in which their entries change.
//! `kernel` calls it. It does not decide which entries must exist: `diff` does.
//!
//! Invariant: an entry never refers to an entry that does not exist. So entries are inserted before
//! those that refer to them, and deleted in the opposite order, after all insertions.
//!
//! There is one exception. If a map is full, [`Entries::put`] deletes its stale entries first and
//! tries again. Existing flows of those entries may miss for a moment.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
};
use rustix::io::Errno;
use weft_ebpf_common::{
    Addr, Backend, Config, DropReason, Endpoint, Forward, NetAddr, Nets, Node, Plain, PortKey, PortTarget, Route,
    Service, ServiceStats, SlotKey,
    names::{Name, NameKey, NameScope},
};

use crate::{
    counters::Drops,
    diff::{Op, Ops},
    error::Error,
    tables::{Prefix, Tables},
};

/// A key or value in the form in which aya passes it to the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: `Plain` guarantees that `T` consists of integers without padding, and `Raw` is
// transparent.
#[expect(unsafe_code, reason = "a marker trait of aya, which follows from `Plain`")]
unsafe impl<T: Plain> Pod for Raw<T> {}

/// The steps on one map.
trait Entries<K, V> {
    /// The error of an insertion into a full map (kernel/bpf/hashtab.c, kernel/bpf/lpm_trie.c).
    const FULL: Errno = Errno::TOOBIG;

    fn name(&self) -> &'static str;
    fn insert(&mut self, key: &K, value: &V) -> Result<(), MapError>;
    fn remove(&mut self, key: &K) -> Result<(), MapError>;

    /// Inserts and overwrites entries. If the map is full, it deletes the stale entries first.
    fn put(&mut self, ops: &[Op<K, V>]) -> Result<(), Error> {
        let mut has_deleted = false;
        for op in ops {
            let Op::Put(key, value) = op else { continue };
            match self.insert(key, value) {
                Err(error) if !has_deleted && errno(&error) == Some(Self::FULL) => {
                    has_deleted = true;
                    self.delete(ops)?;
                    self.insert(key, value).map_err(map_error(self.name()))?;
                }
                inserted => inserted.map_err(map_error(self.name()))?,
            }
        }
        Ok(())
    }

    /// Deletes entries. An entry that does not exist is not an error.
    fn delete(&mut self, ops: &[Op<K, V>]) -> Result<(), Error> {
        for op in ops {
            let Op::Delete(key) = op else { continue };
            match self.remove(key) {
                Err(MapError::KeyNotFound) => {}
                Err(error) if errno(&error) == Some(Errno::NOENT) => {}
                removed => removed.map_err(map_error(self.name()))?,
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

/// The flows of each service, counted on each CPU.
struct ServiceStatsTable {
    cpus: usize,
    map: PerCpuHashMap<MapData, Raw<u32>, Raw<ServiceStats>>,
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
    nodes: Table<NetAddr, Node>,
    routes: RouteTable,
    netns: Table<u64, Nets>,
    resolvers: Table<u64, Addr>,
    names: Table<NameKey, Name>,
    name_scopes: Table<u32, NameScope>,
    service_stats: ServiceStatsTable,
    drops: PerCpuArray<MapData, u64>,
    name_answers: PerCpuArray<MapData, u64>,
}

const CONFIG: &str = "CONFIG";
const ROUTES: &str = "ROUTES";
const DROPS: &str = "DROPS";
const NAME_ANSWERS: &str = "NAME_ANSWERS";
const SERVICE_STATS: &str = "SERVICE_STATS";

impl Maps {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            config: take(ebpf, CONFIG)?.try_into().map_err(map_error(CONFIG))?,
            own: Table::open(ebpf, "OWN")?,
            ports: Table::open(ebpf, "PORTS")?,
            vips: Table::open(ebpf, "VIPS")?,
            services: Table::open(ebpf, "SERVICES")?,
            slots: Table::open(ebpf, "SLOTS")?,
            backends: Table::open(ebpf, "BACKENDS")?,
            endpoints: Table::open(ebpf, "ENDPOINTS")?,
            forward: Table::open(ebpf, "FORWARD")?,
            nodes: Table::open(ebpf, "NODES")?,
            routes: RouteTable { name: ROUTES, map: take(ebpf, ROUTES)?.try_into().map_err(map_error(ROUTES))? },
            netns: Table::open(ebpf, "NETNS")?,
            resolvers: Table::open(ebpf, "RESOLVERS")?,
            names: Table::open(ebpf, "NAMES")?,
            name_scopes: Table::open(ebpf, "NAME_SCOPES")?,
            service_stats: ServiceStatsTable::open(ebpf)?,
            drops: take(ebpf, DROPS)?.try_into().map_err(map_error(DROPS))?,
            name_answers: take(ebpf, NAME_ANSWERS)?.try_into().map_err(map_error(NAME_ANSWERS))?,
        })
    }

    /// Reads all entries.
    pub(crate) fn read(&self) -> Result<Tables, Error> {
        Ok(Tables {
            config: self.config.get(&0, 0).map_err(map_error(CONFIG))?.0,
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
            resolvers: self.resolvers.read()?,
            names: self.names.read()?,
            name_scopes: self.name_scopes.read()?,
            counted_services: self.service_stats.keys()?,
        })
    }

    /// Inserts and overwrites entries: each entry after those that it refers to. The slots of a
    /// service are written before its number of slots grows, and [`Self::delete`] deletes slots
    /// after the number has become smaller.
    pub(crate) fn put(&mut self, ops: &Ops) -> Result<(), Error> {
        if let Some(config) = ops.config {
            self.config.set(0, Raw(config), 0).map_err(map_error(CONFIG))?;
        }
        self.nodes.put(&ops.nodes)?;
        self.routes.put(&ops.routes)?;
        self.endpoints.put(&ops.endpoints)?;
        self.forward.put(&ops.forward)?;
        self.service_stats.put(&ops.counted_services)?;
        self.backends.put(&ops.backends)?;
        self.slots.put(&ops.slots)?;
        self.services.put(&ops.services)?;
        self.vips.put(&ops.vips)?;
        self.netns.put(&ops.netns)?;
        self.resolvers.put(&ops.resolvers)?;
        self.names.put(&ops.names)?;
        self.name_scopes.put(&ops.name_scopes)?;
        self.ports.put(&ops.ports)?;
        self.own.put(&ops.own)
    }

    /// Deletes entries, in the opposite order.
    pub(crate) fn delete(&mut self, ops: &Ops) -> Result<(), Error> {
        self.own.delete(&ops.own)?;
        self.ports.delete(&ops.ports)?;
        self.name_scopes.delete(&ops.name_scopes)?;
        self.names.delete(&ops.names)?;
        self.resolvers.delete(&ops.resolvers)?;
        self.netns.delete(&ops.netns)?;
        self.vips.delete(&ops.vips)?;
        self.services.delete(&ops.services)?;
        self.slots.delete(&ops.slots)?;
        self.backends.delete(&ops.backends)?;
        self.service_stats.delete(&ops.counted_services)?;
        self.forward.delete(&ops.forward)?;
        self.endpoints.delete(&ops.endpoints)?;
        self.routes.delete(&ops.routes)?;
        self.nodes.delete(&ops.nodes)
    }

    /// Reads how many packets the programs have dropped for each reason since the maps were
    /// created.
    pub(crate) fn drops(&self) -> Result<Drops, Error> {
        let count = |reason: DropReason| {
            let per_cpu = self.drops.get(&(reason as u32), 0).map_err(map_error(DROPS))?;
            Ok((reason, per_cpu.iter().sum()))
        };
        DropReason::ALL.iter().copied().map(count).collect()
    }

    /// Reads how many questions about names the programs have answered since the maps were created.
    pub(crate) fn name_answers(&self) -> Result<u64, Error> {
        Ok(self.name_answers.get(&0, 0).map_err(map_error(NAME_ANSWERS))?.iter().sum())
    }
}

impl<K: Plain + Ord, V: Plain> Table<K, V> {
    fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        Ok(Self { name, map: take(ebpf, name)?.try_into().map_err(map_error(name))? })
    }

    fn read(&self) -> Result<BTreeMap<K, V>, Error> {
        self.map.iter().map(|entry| entry.map(|(Raw(k), Raw(v))| (k, v)).map_err(map_error(self.name))).collect()
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

impl ServiceStatsTable {
    fn open(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::Io {
            verb: "count the CPUs in",
            path: "/sys/devices/system/cpu/possible".into(),
            source,
        })?;
        Ok(Self { cpus, map: take(ebpf, SERVICE_STATS)?.try_into().map_err(map_error(SERVICE_STATS))? })
    }

    fn keys(&self) -> Result<BTreeSet<u32>, Error> {
        self.map.keys().map(|key| key.map(|Raw(k)| k).map_err(map_error(SERVICE_STATS))).collect()
    }
}

impl Entries<u32, ()> for ServiceStatsTable {
    fn name(&self) -> &'static str {
        SERVICE_STATS
    }

    fn insert(&mut self, key: &u32, (): &()) -> Result<(), MapError> {
        let zeros = PerCpuValues::try_from(vec![Raw(ServiceStats::default()); self.cpus])?;
        self.map.insert(Raw(*key), zeros, 0)
    }

    fn remove(&mut self, key: &u32) -> Result<(), MapError> {
        self.map.remove(&Raw(*key))
    }
}

impl RouteTable {
    fn read(&self) -> Result<BTreeMap<Prefix, Route>, Error> {
        let prefix = |key: Key<Raw<NetAddr>>| Prefix { bits: key.prefix_len(), addr: key.data().0 };
        self.map.iter().map(|entry| entry.map(|(k, Raw(v))| (prefix(k), v)).map_err(map_error(self.name))).collect()
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

fn map_error(name: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map { name, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    /// A map of at most three entries.
    #[derive(Default)]
    struct SmallMap(BTreeMap<u32, u32>);

    impl SmallMap {
        fn error<T>(errno: Errno) -> Result<T, MapError> {
            Err(SyscallError { call: "bpf", io_error: errno.into() }.into())
        }
    }

    impl Entries<u32, u32> for SmallMap {
        fn name(&self) -> &'static str {
            "SMALL"
        }

        fn insert(&mut self, key: &u32, value: &u32) -> Result<(), MapError> {
            if self.0.len() == 3 && !self.0.contains_key(key) {
                return Self::error(Self::FULL);
            }
            self.0.insert(*key, *value);
            Ok(())
        }

        fn remove(&mut self, key: &u32) -> Result<(), MapError> {
            self.0.remove(key).map_or_else(|| Self::error(Errno::NOENT), |_| Ok(()))
        }
    }

    fn check(before: &[u32], put: &[u32], delete: &[u32], expected: Option<&[u32]>) {
        let mut map = SmallMap(before.iter().map(|key| (*key, 0)).collect());
        let puts = put.iter().map(|key| Op::Put(*key, 1));
        let ops: Vec<Op<u32, u32>> = puts.chain(delete.iter().map(|key| Op::Delete(*key))).collect();
        let result = map.put(&ops);
        assert_eq!(result.is_ok(), expected.is_some(), "{result:?}");
        if let Some(expected) = expected {
            assert_eq!(map.0.keys().copied().collect::<Vec<_>>(), expected);
            map.delete(&ops).expect("an entry that does not exist is no error");
        }
    }

    #[test]
    fn deletes_stale_entries_before_inserting_into_a_full_map() {
        check(&[1, 2], &[3], &[1], Some(&[1, 2, 3]));
        check(&[1, 2, 3], &[3, 4, 5], &[1, 2], Some(&[3, 4, 5]));
        check(&[1, 2, 3], &[2], &[], Some(&[1, 2, 3]));
        check(&[1, 2, 3], &[4, 5], &[1], None);
    }
}
