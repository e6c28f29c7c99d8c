//! The cases that are compared, and how the client reaches each.

use std::{net::SocketAddr, path::PathBuf};

use clap::ValueEnum;

/// In the order of the table: the limit, the peers, weft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(super) enum Case {
    /// One hop from client to server: the limit.
    Raw,
    /// Routing, VXLAN and a bridge between two nodes, and no translation: what a packet's way costs by itself.
    Routed,
    /// The same way, with destination and source translated by nftables on the first node.
    Nftables,
    /// The same way, with HAProxy on the first node.
    Haproxy,
    /// weft, asked at a node without the task.
    WeftSymmetric,
    /// weft, asked at the task's own node.
    WeftLocal,
}

impl Case {
    /// As on the command line and in JSON.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    pub(super) fn is_weft(self) -> bool {
        matches!(self, Self::WeftSymmetric | Self::WeftLocal)
    }

    /// One line for those who read the table.
    pub(super) fn what(self) -> &'static str {
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

/// A case that stands and can be asked.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) case: Case,
    /// The client's network namespace.
    pub(super) client: PathBuf,
    /// Where the client finds `weft/whoami`'s HTTP server.
    pub(super) http: SocketAddr,
    /// Where the client finds iperf3's server.
    pub(super) stream: SocketAddr,
    /// Names the task that must answer: the value of a line of whoami's answer.
    pub(super) answers: Answer,
}

/// What whoami must say, so that a case measures what its name says.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    Task(String),
    Node(String),
}
