//! What the programs count: new flows of a service, and dropped packets by reason.

/// Value of the per-CPU map `SERVICE_STATS`, by service id.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// New flows of the service on this CPU, also those for which no backend was found. This
    /// counter drives round-robin.
    pub flows: u64,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why a packet was dropped. The index into the per-CPU array `DROPS`.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $name),+
        }

        impl DropReason {
            /// All reasons, in the order of the array.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The name of the reason as users see it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text),+
                }
            }

            /// Whether the packet was dropped because it was not encrypted, or would not have been.
            pub const fn protects_encryption(self) -> bool {
                matches!(self, Self::NoKey | Self::UnencryptedRoute | Self::Unencrypted | Self::KeyAddress)
            }
        }
    };
}

drop_reasons! {
    /// A header is incomplete or inconsistent.
    Malformed = "malformed",
    /// A fragment of a datagram whose first fragment was not seen.
    FragmentUnknown = "fragment-unknown",
    /// A frame from a veth that is not the link of a known task.
    NoEndpoint = "no-endpoint",
    /// A task used an address that is not its own, or a VLAN tag.
    Spoofed = "spoofed",
    /// Neither IP nor ARP, or a protocol that weft cannot translate.
    Protocol = "protocol",
    /// Link-local or loopback traffic of a task, or a request of neighbour discovery that has no
    /// answer. Such packets are not routed.
    NotRouted = "not-routed",
    /// A task sent to a multicast group, to 255.255.255.255 or to the broadcast address of its
    /// network. Networks carry neither.
    Multicast = "multicast",
    /// A task sent to a port that belongs to the nodes themselves.
    NodePort = "node-port",
    /// The network is internal, or its tasks must not reach each other.
    Isolated = "isolated",
    /// No task has the destination address.
    NoTask = "no-task",
    /// The service has no backend that takes new flows.
    NoBackend = "no-backend",
    /// The backend of the flow no longer exists.
    BackendDead = "backend-dead",
    /// The packet belongs to a connection that has no flow, or no longer has one.
    NoFlow = "no-flow",
    /// No port is free to translate to.
    PortsExhausted = "ports-exhausted",
    /// The node has no route to the destination.
    NoRoute = "no-route",
    /// The packet is larger than the MTU of the tunnel, or of the uplink that it leaves by. The
    /// sender gets an ICMP error.
    TooBig = "too-big",
    /// A tunnel packet from an address that is not a node of the cluster.
    UntrustedNode = "untrusted-node",
    /// A tunnel packet with a VNI that is not a network's.
    UnknownNetwork = "unknown-network",
    /// A packet of an encrypted network to another node, while this node or the other one has no
    /// active WireGuard key.
    NoKey = "no-key",
    /// A packet of an encrypted network that would leave this node by a link other than weft's
    /// WireGuard links.
    UnencryptedRoute = "unencrypted-route",
    /// A tunnel packet of an encrypted network that did not come out of a WireGuard link of weft.
    Unencrypted = "unencrypted",
    /// A packet with the address of a WireGuard key, on another link than weft's WireGuard links.
    KeyAddress = "key-address",
    /// A kernel helper returned an error.
    Helper = "helper",
}
