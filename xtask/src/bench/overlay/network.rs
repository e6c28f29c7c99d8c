//! The namespaces, links and addresses of `bench overlay`, and its servers.

use std::{net::Ipv4Addr, path::Path, process::Command};

use anyhow::Result;

use super::case::{Case, Tunnel};
use crate::bench::{
    peers::{netns_name, netns_path, network::ip, task_name},
    programs::Server,
    settings::widen_port_range,
};

pub(super) const CLIENT: &str = "client";
pub(super) const SERVER: &str = "server";
pub(super) const HTTP: u16 = 80;
const FIRST_STREAM: u16 = 5201;

/// The MTU of the pair is 1500. WireGuard over IPv4 takes 60 octets, and weft uses the usual value,
/// which leaves room for IPv6 too.
pub(super) const TUNNEL_MTU: u32 = 1420;
/// VXLAN over IPv4 takes 50 octets, over IPv6 70.
const CLEAR_MTU: u32 = 1450;
const ENCRYPTED_MTU: u32 = 1350;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub(super) fn host(self) -> &'static str {
        match self {
            Self::Client => CLIENT,
            Self::Server => SERVER,
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// The last part of its addresses.
    pub(super) fn number(self) -> u8 {
        match self {
            Self::Client => 1,
            Self::Server => 2,
        }
    }
}

/// The number of a case in its addresses, ports and VNI.
fn number(case: Case) -> u8 {
    match case {
        Case::Raw => 0,
        Case::Vxlan => 1,
        Case::Plain(tunnel) => 2 + index(tunnel),
        Case::Encrypted(tunnel) => 6 + index(tunnel),
    }
}

fn index(tunnel: Tunnel) -> u8 {
    match tunnel {
        Tunnel::Boringtun => 0,
        Tunnel::UserSpace => 1,
        Tunnel::Kernel => 2,
        Tunnel::Mixed => 3,
    }
}

pub(super) fn stream_port(case: Case) -> u16 {
    FIRST_STREAM + u16::from(number(case))
}

/// The address of a side, by which the client reaches the server in this case. That of raw is in
/// TEST-NET-2 (RFC 5737).
pub(super) fn address(case: Case, side: Side) -> Ipv4Addr {
    match case {
        Case::Raw => Ipv4Addr::new(198, 51, 100, side.number()),
        _ => Ipv4Addr::new(10, 88, number(case), side.number()),
    }
}

/// The name of a tunnel's link. boringtun-cli has one socket for each name on the machine.
pub(super) fn link(tunnel: Tunnel, side: Side) -> String {
    format!("wb{}{}", index(tunnel), side.number())
}

pub(super) fn port(tunnel: Tunnel) -> u16 {
    51_820 + u16::from(index(tunnel))
}

/// The address inside of the tunnel that VXLAN uses.
fn ula(tunnel: Tunnel, side: Side) -> String {
    format!("fd00:{}::{}", index(tunnel) + 1, side.number())
}

/// What a peer may send from.
pub(super) fn allowed(tunnel: Tunnel, side: Side) -> [String; 2] {
    [format!("{}/32", address(Case::Plain(tunnel), side)), format!("{}/128", ula(tunnel, side))]
}

/// The two namespaces and the pair.
pub(super) fn create_pair() -> Result<()> {
    let hosts = Side::BOTH.map(|side| format!("netns add {}", netns_name(side.host())));
    ip(None, &hosts)?;
    let peer = netns_name(SERVER);
    ip(Some(CLIENT), &[format!("link add eth0 type veth peer name eth0 netns {peer}")])?;
    for side in Side::BOTH {
        widen_port_range(&netns_path(side.host()))?;
        let address = format!("address add {}/24 dev eth0", address(Case::Raw, side));
        ip(Some(side.host()), &["link set lo up".to_owned(), "link set eth0 up".to_owned(), address])?;
    }
    Ok(())
}

/// A VXLAN device on each side, on the pair or inside of a tunnel.
pub(super) fn create_vxlan(case: Case) -> Result<()> {
    let vni = number(case);
    for side in Side::BOTH {
        let (local, remote, mtu) = match case {
            Case::Encrypted(tunnel) => (ula(tunnel, side), ula(tunnel, side.other()), ENCRYPTED_MTU),
            _ => (address(Case::Raw, side).to_string(), address(Case::Raw, side.other()).to_string(), CLEAR_MTU),
        };
        ip(
            Some(side.host()),
            &[
                format!(
                    "link add vx{vni} mtu {mtu} type vxlan id {vni} local {local} remote {remote} dstport 4789 nolearning"
                ),
                format!("link set vx{vni} up"),
                format!("address add {}/24 dev vx{vni}", address(case, side)),
            ],
        )?;
    }
    Ok(())
}

/// Addresses of a tunnel's links, which exist.
pub(super) fn configure_tunnel(tunnel: Tunnel) -> Result<()> {
    for side in Side::BOTH {
        let link = link(tunnel, side);
        ip(
            Some(side.host()),
            &[
                format!("link set {link} mtu {TUNNEL_MTU} up"),
                format!("address add {}/24 dev {link}", address(Case::Plain(tunnel), side)),
                format!("address add {}/64 dev {link} nodad", ula(tunnel, side)),
            ],
        )?;
    }
    Ok(())
}

/// One HTTP server, and an iperf3 server for each case: it accepts one client at a time.
pub(super) fn start_servers(weft: &Path, cases: &[Case]) -> Result<Vec<Server>> {
    let netns = netns_path(SERVER);
    let mut whoami = Command::new(weft);
    whoami.arg("__whoami").env("WEFT_TASK_NAME", task_name(SERVER)).env("WEFT_NODE", SERVER);
    let mut servers = vec![Server::start(&netns, whoami, "")?];
    for case in cases {
        let mut iperf3 = Command::new("iperf3");
        iperf3.args(["--server", "--port", &stream_port(*case).to_string()]);
        servers.push(Server::start(&netns, iperf3, "")?);
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::Label;

    #[test]
    fn no_two_cases_share_an_address_or_a_port() {
        let tunnels = [Tunnel::Boringtun, Tunnel::Mixed, Tunnel::UserSpace, Tunnel::Kernel];
        let cases = tunnels.iter().flat_map(|tunnel| [Case::Plain(*tunnel), Case::Encrypted(*tunnel)]);
        let cases: Vec<Case> = cases.chain([Case::Raw, Case::Vxlan]).collect();
        for (at, case) in cases.iter().enumerate() {
            for other in &cases[at + 1..] {
                assert_ne!(stream_port(*case), stream_port(*other));
                assert_ne!(address(*case, Side::Server), address(*other, Side::Server));
                assert_ne!(case.name(), other.name());
            }
        }
    }
}
