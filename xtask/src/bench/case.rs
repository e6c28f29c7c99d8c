//! The cases that are compared, and how the client reaches each.

use std::{net::SocketAddr, path::PathBuf};

use clap::ValueEnum;

/// In the order of the table: the limit, the other programs, weft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(super) enum Case {
    /// One link from client to server: the limit.
    Raw,
    /// Routing, VXLAN and a bridge between two nodes, without translation: the cost of the path.
    Routed,
    /// The same path, with destination and source translated by nftables on the first node.
    Nftables,
    /// The same path, with HAProxy on the first node.
    Haproxy,
    /// weft: the client connects to a node without the task.
    WeftSymmetric,
    /// weft: the client connects to the node with the task.
    WeftLocal,
}

impl Case {
    /// The name on the command line and in JSON.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn is_weft(self) -> bool {
        matches!(self, Self::WeftSymmetric | Self::WeftLocal)
    }

    /// One line for the readers of the table.
    pub(super) fn description(self) -> &'static str {
        match self {
            Self::Raw => "client → server, one veth pair and nothing else: the limit",
            Self::Routed => "client → node 1 → VXLAN → node 2 → bridge → task: kernel routing, no translation",
            Self::Nftables => "as routed, with DNAT and masquerade by nftables on node 1",
            Self::Haproxy => "as routed, with HAProxy in TCP mode on node 1",
            Self::WeftSymmetric => "published port of node 1, the task on node 2, replies through node 1",
            Self::WeftLocal => "published port of node 1, the task on node 1",
        }
    }
}

/// How the client reaches a case.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) case: Case,
    /// The client's network namespace.
    pub(super) client: PathBuf,
    /// The address of the HTTP server of `weft/whoami`.
    pub(super) http: SocketAddr,
    /// The address of the iperf3 server.
    pub(super) stream: SocketAddr,
    pub(super) server: ExpectedServer,
}

/// The server that must answer, so that a case measures what its name says. It is compared with the
/// answer of whoami.
#[derive(Debug, Clone)]
pub(super) enum ExpectedServer {
    Task(String),
    Node(String),
}
