//! The cases of `bench mesh`, and how the client reaches a case of any benchmark.

use std::{net::SocketAddr, path::PathBuf};

use clap::ValueEnum;

/// A case of a benchmark. Cases are sorted in the order of the table.
pub(super) trait Label: Copy + Ord {
    /// The limit, with which the others are compared.
    const RAW: Self;

    /// The name on the command line and in JSON.
    fn name(self) -> String;

    /// One line for the readers of the table.
    fn description(self) -> &'static str;
}

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
    pub(super) fn is_weft(self) -> bool {
        matches!(self, Self::WeftSymmetric | Self::WeftLocal)
    }
}

impl Label for Case {
    const RAW: Self = Self::Raw;

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn description(self) -> &'static str {
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
pub(super) struct Target<C> {
    pub(super) case: C,
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
