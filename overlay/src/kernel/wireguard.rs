//! The WireGuard part of links: keys, ports and peers.
//!
//! `reconcile` calls it, one call at a time. The kernel's WireGuard is configured by
//! `wireguard-control`. Where the kernel has none, the daemon itself holds the devices
//! (`weft-wireguard`): they end with the daemon, and the next one opens them again.
//!
//! Every method blocks, and acts on the network namespace of the calling thread.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io,
    net::{IpAddr, SocketAddr},
    num::NonZero,
    thread,
    time::Duration,
};

use ipnetwork::IpNetwork;
use nix::errno::Errno;
use weft_model::{
    error_chain,
    wireguard::{EncryptionSupport, PublicKey},
};
use weft_wireguard::{Device, DeviceConfig, PeerConfig};
use wireguard_control::{AllowedIp, Backend, DeviceUpdate, InterfaceName, Key, PeerConfigBuilder};

use super::netlink::Netlink;
use crate::{
    actual::{ActualLink, ActualLinkKind, ActualPeer, ActualWireGuard},
    desired::DesiredPeer,
    diff::WireGuardOp,
    error::Error,
    name,
    wireguard::EncryptionMode,
};

/// The device through which programs make TUN links (Documentation/networking/tuntap.rst).
const TUN: &str = "/dev/net/tun";

/// How often an empty packet is sent to each peer, in seconds. It keeps a session with every key of
/// every peer, so that no packet waits for a handshake when a key becomes active. It tells peers a
/// changed address of this node, and keeps translated addresses alive (`wg(8)` recommends 25).
const KEEPALIVE_S: u16 = 25;

/// Finds out which implementation of WireGuard this node can use.
pub(crate) async fn probe(netlink: &Netlink, mode: EncryptionMode) -> EncryptionSupport {
    let kernel = match mode {
        EncryptionMode::UserSpace => Err("the daemon was started with --encryption userspace".to_owned()),
        EncryptionMode::Auto | EncryptionMode::Kernel => probe_kernel(netlink).await,
    };
    let no_kernel = match kernel {
        Ok(()) => return EncryptionSupport::Kernel,
        Err(reason) => reason,
    };
    if mode == EncryptionMode::Kernel {
        let reason = format!("{no_kernel}: load the module wireguard, or start the daemon without --encryption kernel");
        return EncryptionSupport::Unavailable(reason);
    }
    match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => EncryptionSupport::UserSpace,
        Err(error) => EncryptionSupport::Unavailable(format!(
            "{no_kernel}, and {TUN} cannot be opened ({error}): load the module wireguard or tun"
        )),
    }
}

async fn probe_kernel(netlink: &Netlink) -> Result<(), String> {
    let probed = match netlink.create_wireguard(name::PROBE).await {
        Ok(()) => netlink.delete_link(name::PROBE).await,
        Err(error) => Err(error),
    };
    probed.map_err(|error| match error.errno() {
        Some(Errno::EOPNOTSUPP) => "the kernel has no WireGuard (CONFIG_WIREGUARD)".to_owned(),
        _ => format!("the kernel's WireGuard cannot be used ({})", error_chain(&error)),
    })
}

/// The WireGuard links of this daemon.
#[derive(Debug, Default)]
pub(crate) struct WireGuard {
    links: BTreeMap<String, Link>,
}

#[derive(Debug)]
struct Link {
    /// `None` if the kernel has the device.
    device: Option<Device>,
    /// As they were set last.
    peers: BTreeMap<PublicKey, DesiredPeer>,
}

impl WireGuard {
    /// Reads the WireGuard links of weft. `links` are all links of the namespace.
    pub(crate) fn read(
        &self,
        support: &EncryptionSupport,
        links: &BTreeMap<String, ActualLink>,
    ) -> Result<BTreeMap<String, ActualWireGuard>, Error> {
        let mut found = BTreeMap::new();
        for (name, link) in links.iter().filter(|(name, _)| name::is_wireguard(name)) {
            let known = self.links.get(name);
            if let Some((Link { peers, .. }, device)) = known.and_then(|link| Some((link, link.device.as_ref()?))) {
                if !device.has_failed() {
                    let (public_key, port) = (PublicKey(device.public_key()), device.port());
                    let peers = peers.iter().map(|(key, peer)| (*key, set_peer(peer))).collect();
                    found.insert(name.clone(), ActualWireGuard { public_key, port, peers });
                }
            } else if *support == EncryptionSupport::Kernel && link.kind == ActualLinkKind::WireGuard {
                found.extend(read_kernel(name, known)?.map(|link| (name.clone(), link)));
            }
        }
        Ok(found)
    }

    /// Forgets a link, and ends its device if this daemon holds it. The caller deletes the link.
    pub(crate) fn forget(&mut self, name: &str) {
        self.links.remove(name);
    }

    /// Configures a link that the kernel has created, or creates it in user space.
    pub(crate) fn create(&mut self, support: &EncryptionSupport, op: &WireGuardOp) -> Result<(), Error> {
        let WireGuardOp::Create { name, private_key, port, mtu, .. } = op else { return Ok(()) };
        // A device in user space whose link another program deleted still has the port.
        self.links.remove(name);
        let device = match support {
            EncryptionSupport::Kernel => {
                let update = DeviceUpdate::new().set_private_key(Key(private_key.0)).set_listen_port(*port);
                apply(name, update)?;
                None
            }
            EncryptionSupport::UserSpace => {
                let workers = thread::available_parallelism().map_or(1, NonZero::get);
                let config =
                    DeviceConfig { name: name.clone(), private_key: private_key.0, port: *port, mtu: *mtu, workers };
                Some(Device::open(config).map_err(|source| Error::UserSpaceWireGuard { link: name.clone(), source })?)
            }
            EncryptionSupport::Unavailable(reason) => return Err(Error::NoWireGuard(reason.clone())),
        };
        self.links.insert(name.clone(), Link { device, peers: BTreeMap::new() });
        Ok(())
    }

    /// Adds, changes and removes peers of a link.
    pub(crate) fn set_peers(&mut self, op: &WireGuardOp) -> Result<(), Error> {
        let WireGuardOp::SetPeers { name, put, remove } = op else { return Ok(()) };
        // A link that an earlier daemon left in the kernel has no entry yet.
        let link = self.links.entry(name.clone()).or_insert_with(|| Link { device: None, peers: BTreeMap::new() });
        let mut peers = link.peers.clone();
        peers.retain(|key, _| !remove.contains(key));
        peers.extend(put);
        if let Some(device) = &link.device {
            let peers: Vec<PeerConfig> = peers.iter().map(|(key, peer)| user_space_peer(*key, peer)).collect();
            device.set_peers(&peers);
        } else {
            let update = remove.iter().fold(DeviceUpdate::new(), |update, key| update.remove_peer_by_key(&Key(key.0)));
            apply(name, put.iter().fold(update, |update, (key, peer)| update.add_peer(kernel_peer(*key, peer))))?;
        }
        link.peers = peers;
        Ok(())
    }
}

fn user_space_peer(key: PublicKey, peer: &DesiredPeer) -> PeerConfig {
    PeerConfig {
        public_key: key.0,
        endpoint: Some(peer.endpoint),
        allowed_ips: vec![IpNetwork::from(IpAddr::V6(peer.address))],
        keepalive: Some(Duration::from_secs(KEEPALIVE_S.into())),
    }
}

fn kernel_peer(key: PublicKey, peer: &DesiredPeer) -> PeerConfigBuilder {
    PeerConfigBuilder::new(&Key(key.0))
        .set_endpoint(peer.endpoint)
        .set_persistent_keepalive_interval(KEEPALIVE_S)
        .replace_allowed_ips()
        .add_allowed_ip(peer.address.into(), 128)
}

/// A peer as this daemon has set it.
fn set_peer(peer: &DesiredPeer) -> ActualPeer {
    let allowed_ips = [IpNetwork::from(IpAddr::V6(peer.address))].into();
    ActualPeer { endpoint: Some(peer.endpoint), allowed_ips }
}

/// Reads a link of the kernel. `None` if it has no key or port yet.
fn read_kernel(name: &str, known: Option<&Link>) -> Result<Option<ActualWireGuard>, Error> {
    let device = match wireguard_control::Device::get(&interface(name)?, Backend::Kernel) {
        Ok(device) => device,
        // Another program has deleted the link since the links were listed.
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(None),
        Err(source) => return Err(Error::KernelWireGuard { verb: "read", link: name.to_owned(), source }),
    };
    let (Some(key), Some(port)) = (device.public_key, device.listen_port) else { return Ok(None) };
    let last_set = |key: &PublicKey| -> Option<SocketAddr> { Some(known?.peers.get(key)?.endpoint) };
    let peers = device.peers.into_iter().map(|peer| {
        let key = PublicKey(peer.config.public_key.0);
        let allowed_ips = peer.config.allowed_ips.iter().filter_map(allowed_ip).collect();
        (key, ActualPeer { endpoint: last_set(&key), allowed_ips })
    });
    Ok(Some(ActualWireGuard { public_key: PublicKey(key.0), port, peers: peers.collect() }))
}

fn allowed_ip(allowed: &AllowedIp) -> Option<IpNetwork> {
    IpNetwork::new(allowed.address, allowed.cidr).ok()
}

fn apply(name: &str, update: DeviceUpdate) -> Result<(), Error> {
    let applied = update.apply(&interface(name)?, Backend::Kernel);
    applied.map_err(|source| Error::KernelWireGuard { verb: "configure", link: name.to_owned(), source })
}

fn interface(name: &str) -> Result<InterfaceName, Error> {
    name.parse().map_err(|error: wireguard_control::InvalidInterfaceName| Error::KernelWireGuard {
        verb: "name",
        link: name.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error.to_string()),
    })
}
