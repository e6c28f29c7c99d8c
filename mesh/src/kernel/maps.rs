//! Typed maps, and the order in which they change.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues, lpm_trie::Key},
};
use weft_ebpf_common::{
    Backend, Config, DropReason, Endpoint, Forward, NetAddr, Nets, Plain, PortKey, PortTarget, Route, Service, SlotKey,
    Traffic,
};
use weft_model::{BackendId, MeshServiceId};

use super::Error;
use crate::{
    counters::{Counters, DropCount, ServiceCount},
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

struct Table<K: Plain, V: Plain> {
    name: &'static str,
    map: HashMap<MapData, Raw<K>, Raw<V>>,
}

struct CountTable<K: Plain> {
    name: &'static str,
    map: PerCpuHashMap<MapData, Raw<K>, Raw<Traffic>>,
}

struct RouteTable {
    map: LpmTrie<MapData, Raw<NetAddr>, Raw<Route>>,
}

/// Every map that user space reads or writes.
pub(super) struct Maps {
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
            routes: RouteTable { map: take(ebpf, ROUTES)?.try_into().map_err(failed(ROUTES))? },
            netns: Table::open(ebpf, "NETNS")?,
            service_stats: CountTable::open(ebpf, "SERVICE_STATS")?,
            backend_stats: CountTable::open(ebpf, "BACKEND_STATS")?,
            drops: take(ebpf, DROPS)?.try_into().map_err(failed(DROPS))?,
        })
    }

    /// What the maps hold now.
    pub(super) fn read(&self) -> Result<Tables, Error> {
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
    pub(super) fn add(&mut self, changes: &Changes) -> Result<(), Error> {
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
    pub(super) fn remove(&mut self, changes: &Changes) -> Result<(), Error> {
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

    pub(super) fn counters(&self) -> Result<Counters, Error> {
        let backends = self.backend_stats.read()?;
        let mut services: BTreeMap<_, _> = self.service_stats.read()?;
        for (id, count) in &backends {
            let service = match self.backends.map.get(&Raw(*id), 0) {
                Ok(Raw(backend)) => services.get_mut(&backend.service),
                Err(MapError::KeyNotFound) => None,
                Err(error) => return Err(failed(self.backends.name)(error)),
            };
            if let Some(service) = service {
                service.packets += count.packets;
                service.bytes += count.bytes;
            }
        }
        let mut drops = Vec::with_capacity(DropReason::ALL.len());
        for reason in DropReason::ALL {
            let per_cpu = self.drops.get(&(*reason as u32), 0).map_err(failed(DROPS))?;
            drops.push(DropCount { reason: *reason, packets: per_cpu.iter().sum() });
        }
        Ok(Counters {
            services: services.into_iter().map(|(id, count)| (MeshServiceId(id), count)).collect(),
            backends: backends.into_iter().map(|(id, count)| (BackendId(id), count)).collect(),
            drops,
        })
    }
}

impl<K: Plain + Ord, V: Plain> Table<K, V> {
    fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        Ok(Self { name, map: take(ebpf, name)?.try_into().map_err(failed(name))? })
    }

    fn read(&self) -> Result<BTreeMap<K, V>, Error> {
        self.map.iter().map(|entry| entry.map(|(Raw(k), Raw(v))| (k, v)).map_err(failed(self.name))).collect()
    }

    fn put(&mut self, change: &Change<K, V>) -> Result<(), Error> {
        change.put.iter().try_for_each(|(k, v)| self.map.insert(Raw(*k), Raw(*v), 0)).map_err(failed(self.name))
    }

    fn del(&mut self, change: &Change<K, V>) -> Result<(), Error> {
        change.del.iter().try_for_each(|k| gone(self.map.remove(&Raw(*k)))).map_err(failed(self.name))
    }
}

impl<K: Plain + Ord> CountTable<K> {
    fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, Error> {
        Ok(Self { name, map: take(ebpf, name)?.try_into().map_err(failed(name))? })
    }

    fn keys(&self) -> Result<BTreeSet<K>, Error> {
        self.map.keys().map(|key| key.map(|Raw(k)| k).map_err(failed(self.name))).collect()
    }

    fn read(&self) -> Result<BTreeMap<K, ServiceCount>, Error> {
        let sum = |per_cpu: PerCpuValues<Raw<Traffic>>| ServiceCount::sum(per_cpu.iter().map(|Raw(cpu)| cpu));
        self.map.iter().map(|entry| entry.map(|(Raw(k), v)| (k, sum(v))).map_err(failed(self.name))).collect()
    }

    fn put(&mut self, change: &Change<K, ()>) -> Result<(), Error> {
        if change.put.is_empty() {
            return Ok(());
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::Io {
            what: "counting the CPUs in",
            path: "/sys/devices/system/cpu/possible".into(),
            source,
        })?;
        for (key, ()) in &change.put {
            let zero = PerCpuValues::try_from(vec![Raw(Traffic::default()); cpus]).map_err(|source| Error::Io {
                what: "counting the CPUs in",
                path: "/sys/devices/system/cpu/possible".into(),
                source,
            })?;
            self.map.insert(Raw(*key), zero, 0).map_err(failed(self.name))?;
        }
        Ok(())
    }

    fn del(&mut self, change: &Change<K, ()>) -> Result<(), Error> {
        change.del.iter().try_for_each(|k| gone(self.map.remove(&Raw(*k)))).map_err(failed(self.name))
    }
}

impl RouteTable {
    fn read(&self) -> Result<BTreeMap<Prefix, Route>, Error> {
        let prefix = |key: Key<Raw<NetAddr>>| Prefix { bits: key.prefix_len(), addr: key.data().0 };
        self.map.iter().map(|entry| entry.map(|(k, Raw(v))| (prefix(k), v)).map_err(failed(ROUTES))).collect()
    }

    fn put(&mut self, change: &Change<Prefix, Route>) -> Result<(), Error> {
        change.put.iter().try_for_each(|(k, v)| self.map.insert(&key(k), Raw(*v), 0)).map_err(failed(ROUTES))
    }

    fn del(&mut self, change: &Change<Prefix, Route>) -> Result<(), Error> {
        change.del.iter().try_for_each(|k| gone(self.map.remove(&key(k)))).map_err(failed(ROUTES))
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

/// An entry that is not there needs no removing.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
