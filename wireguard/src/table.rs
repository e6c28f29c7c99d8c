//! The peers of a device. The workers read a snapshot of it, without a lock; `Device::set_peers`
//! makes the next one. Sessions are shared between snapshots: a peer that stays keeps its session.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use crate::{config::PeerConfig, peer::Peer, routes::Routes};

/// A snapshot.
pub(crate) struct PeerTable {
    configs: Vec<PeerConfig>,
    by_key: HashMap<[u8; 32], Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    routes: Routes<Arc<Peer>>,
}

impl PeerTable {
    pub(crate) fn empty() -> Self {
        Self { configs: Vec::new(), by_key: HashMap::new(), by_index: HashMap::new(), routes: Routes::new([]) }
    }

    /// The next snapshot. `make` makes a peer that this one does not have, with an index that it
    /// chooses; its argument tells which indexes are used. If a key is in `configs` more than once,
    /// the last one counts.
    pub(crate) fn with_peers(
        &self,
        configs: &[PeerConfig],
        mut make: impl FnMut(&PeerConfig, &dyn Fn(u32) -> bool) -> Peer,
    ) -> Self {
        let before: HashMap<[u8; 32], &PeerConfig> =
            self.configs.iter().map(|config| (config.public_key, config)).collect();
        let last: HashMap<[u8; 32], usize> =
            configs.iter().enumerate().map(|(at, config)| (config.public_key, at)).collect();
        let configs: Vec<PeerConfig> = configs
            .iter()
            .enumerate()
            .filter(|(at, config)| last[&config.public_key] == *at)
            .map(|(_, config)| config.clone())
            .collect();
        let mut next = Self::empty();
        for config in &configs {
            let peer = match (self.by_key.get(&config.public_key), before.get(&config.public_key)) {
                (Some(peer), Some(before)) => {
                    peer.reconfigure(before, config);
                    Arc::clone(peer)
                }
                _ => {
                    let is_used = |index: u32| self.by_index.contains_key(&index) || next.by_index.contains_key(&index);
                    Arc::new(make(config, &is_used))
                }
            };
            next.by_index.insert(peer.index, Arc::clone(&peer));
            next.by_key.insert(config.public_key, peer);
        }
        let by_key = &next.by_key;
        next.routes = Routes::new(configs.iter().flat_map(|config| {
            let peer = &by_key[&config.public_key];
            config.allowed_ips.iter().map(|network| (*network, Arc::clone(peer)))
        }));
        next.configs = configs;
        next
    }

    /// In the order in which the caller gave them.
    pub(crate) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.configs.iter().filter_map(|config| self.by_key.get(&config.public_key))
    }

    pub(crate) fn by_key(&self, key: &[u8; 32]) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }

    /// The peer of a receiver index, whose lower 8 bits are the number of the session.
    pub(crate) fn by_receiver(&self, receiver: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&(receiver >> 8))
    }

    pub(crate) fn route(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.routes.get(address)
    }
}
