//! Counters.

/// Value of the per-CPU map `SERVICE_STATS`, by service id.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// New flows that this CPU has balanced. It is also the round-robin counter.
    pub flows: u64,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why a packet was not let through. The index into the per-CPU array `DROPS`.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $name),+
        }

        impl DropReason {
            /// Every reason, in the order of the array.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// As users see it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text),+
                }
            }
        }
    };
}

drop_reasons! {
    /// A header that ends too early or contradicts itself.
    Malformed = "malformed",
    /// A fragment whose first fragment was not seen.
    FragmentUnknown = "fragment-unknown",
    /// A frame from a veth that no task is known on.
    NoEndpoint = "no-endpoint",
    /// A task used an address that is not its own.
    Spoofed = "spoofed",
    /// Neither IP nor ARP, or a protocol that cannot be translated.
    Protocol = "protocol",
    /// Multicast, broadcast or link-local traffic of a task.
    NotRouted = "not-routed",
    /// A task dialled a port that belongs to the nodes themselves.
    NodePort = "node-port",
    /// A network without a way out, or one whose tasks cannot reach each other.
    Isolated = "isolated",
    /// No task has the destination address.
    NoTask = "no-task",
    /// The service has no backend that takes new flows.
    NoBackend = "no-backend",
    /// The flow's backend is gone.
    BackendDead = "backend-dead",
    /// A packet of a connection that is not known, or no longer.
    NoFlow = "no-flow",
    /// No free port to translate to.
    PortsExhausted = "ports-exhausted",
    /// The node has no route to the destination.
    NoRoute = "no-route",
    /// Larger than what the tunnel carries; the sender was told.
    TooBig = "too-big",
    /// A tunnel packet from an address that is no node of the cluster.
    UntrustedNode = "untrusted-node",
    /// A tunnel packet with a reserved or unknown network.
    UnknownNetwork = "unknown-network",
    /// A kernel helper refused.
    Helper = "helper",
}
