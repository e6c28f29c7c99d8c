//! What the caller asks of a device, and what the device reports. Plain data.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use ipnetwork::IpNetwork;

/// A device to open.
#[derive(Clone)]
pub struct DeviceConfig {
    /// The name of the link: at most 15 octets.
    pub name: String,
    /// The private key (X25519).
    pub private_key: [u8; 32],
    /// The UDP port. With 0 the kernel chooses one: see [`crate::Device::port`].
    pub port: u16,
    /// The MTU of the link, in octets.
    pub mtu: u32,
    /// The number of threads that encrypt and decrypt. One for each core is best.
    pub workers: usize,
}

impl fmt::Debug for DeviceConfig {
    /// Leaves out the private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, private_key: _, port, mtu, workers } = self;
        f.debug_struct("DeviceConfig")
            .field("name", name)
            .field("port", port)
            .field("mtu", mtu)
            .field("workers", workers)
            .finish_non_exhaustive()
    }
}

/// A peer that the device must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    pub public_key: [u8; 32],
    /// Where the peer is. Without it, the device waits until the peer sends. The endpoint then
    /// follows the last authenticated packet.
    pub endpoint: Option<SocketAddr>,
    /// Packets to these addresses are sent to the peer, and the peer may send from them. If two
    /// peers have the same network, the later one gets it.
    pub allowed_ips: Vec<IpNetwork>,
    /// How often an empty packet is sent to the peer, so that NAT on the path does not forget it.
    pub keepalive: Option<Duration>,
}

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    pub public_key: [u8; 32],
    pub endpoint: Option<SocketAddr>,
    /// When the session that is in use was made. `None` without a session.
    pub last_handshake: Option<SystemTime>,
    /// Octets of packets that the peer sent, without WireGuard's own headers.
    pub rx_bytes: u64,
    /// Octets of packets that were sent to the peer, without WireGuard's own headers.
    pub tx_bytes: u64,
}
