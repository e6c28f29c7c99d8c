//! The namespaces, links, addresses and routes of the peers.

use std::{fs, net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{
    CLIENT, FIRST_NODES, FirstNode, HTTP, OVERLAY_TASK, PUBLISHED, RAW_CLIENT, RAW_SERVER, SECOND, SERVER, SWITCH,
    TASK, netns_name, netns_path,
};
use crate::bench::{
    case::{Case, Label},
    programs::{OWN_NETNS, configure},
    settings::{disable_bridge_netfilter, sysctl, widen_port_range},
};

/// Addresses on the underlay (RFC 5737, TEST-NET-1), which is built like the underlay of a lab.
const UNDERLAY_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const UNDERLAY_SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The overlay network on VXLAN.
const OVERLAY: &str = "10.88.0.0/24";
const TASK_MAC: &str = "02:00:0a:58:00:64";
const VNI: u32 = 4242;
const VXLAN_PORT: u16 = 4789;
/// The underlay's 1500 bytes without VXLAN's 50.
const OVERLAY_MTU: u32 = 1450;

pub(super) fn create() -> Result<()> {
    create_namespaces()?;
    create_raw_pair()?;
    create_underlay()?;
    create_second_node()?;
    FIRST_NODES.iter().try_for_each(create_first_node)
}

fn create_namespaces() -> Result<()> {
    let hosts = [CLIENT, SERVER, SWITCH, SECOND, TASK].into_iter().map(str::to_owned);
    let hosts: Vec<String> = hosts.chain(FIRST_NODES.iter().map(|first| first.case.name())).collect();
    ip(None, &hosts.iter().map(|host| format!("netns add {}", netns_name(host))).collect::<Vec<_>>())?;
    for host in &hosts {
        ip(Some(host), &["link set lo up".to_owned()])?;
        widen_port_range(&netns_path(host))?;
        for scope in ["all", "default"] {
            sysctl(&netns_path(host), &format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        }
    }
    Ok(())
}

fn create_raw_pair() -> Result<()> {
    ip(
        Some(CLIENT),
        &[
            format!("link add raw type veth peer name eth0 netns {}", netns_name(SERVER)),
            "link set raw up".to_owned(),
            format!("address add {RAW_CLIENT}/24 dev raw"),
        ],
    )?;
    ip(Some(SERVER), &["link set eth0 up".to_owned(), format!("address add {RAW_SERVER}/24 dev eth0")])
}

/// A bridge with a port for the client and one for each node.
fn create_underlay() -> Result<()> {
    disable_bridge_netfilter(&netns_path(SWITCH))?;
    ip(Some(SWITCH), &["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned()])?;
    let first = FIRST_NODES.iter().map(|first| (first.case.name(), first.underlay));
    let fixed = [(CLIENT.to_owned(), UNDERLAY_CLIENT), (SECOND.to_owned(), UNDERLAY_SECOND)];
    for (host, addr) in fixed.into_iter().chain(first) {
        ip(
            Some(SWITCH),
            &[
                format!("link add {host} type veth peer name eth0 netns {}", netns_name(&host)),
                format!("link set {host} master br0 up"),
            ],
        )?;
        ip(Some(&host), &["link set eth0 up".to_owned(), format!("address add {addr}/24 dev eth0")])?;
    }
    ip(Some(SWITCH), &["link set br0 up".to_owned()])
}

/// VXLAN without flooding and learning: all addresses are configured, as overlay networks for
/// containers do it.
fn vxlan() -> String {
    format!("link add vx0 mtu {OVERLAY_MTU} type vxlan id {VNI} dstport {VXLAN_PORT} dev eth0 nolearning")
}

fn create_second_node() -> Result<()> {
    disable_bridge_netfilter(&netns_path(SECOND))?;
    ip(
        Some(SECOND),
        &[
            vxlan(),
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            format!("link add {TASK} mtu {OVERLAY_MTU} type veth peer name eth0 netns {}", netns_name(TASK)),
            "link set vx0 master br0 up".to_owned(),
            format!("link set {TASK} master br0 up"),
            "link set br0 up".to_owned(),
        ],
    )?;
    ip(
        Some(TASK),
        &[
            format!("link set eth0 mtu {OVERLAY_MTU} address {TASK_MAC} up"),
            format!("address add {OVERLAY_TASK}/24 dev eth0"),
            // Replies to the client's own address, in the case without translation.
            format!("route add default via {}", FIRST_NODES[0].overlay),
        ],
    )?;
    for FirstNode { underlay, overlay, mac, .. } in FIRST_NODES {
        bridge(
            SECOND,
            &[
                format!("fdb append {mac} dev vx0 dst {underlay} self permanent"),
                format!("fdb replace {mac} dev vx0 master static"),
            ],
        )?;
        ip(Some(TASK), &[format!("neighbour replace {overlay} lladdr {mac} dev eth0 nud permanent")])?;
    }
    Ok(())
}

fn create_first_node(first: &FirstNode) -> Result<()> {
    let FirstNode { case, underlay, overlay, mac, .. } = *first;
    let host = case.name();
    ip(
        Some(&host),
        &[
            vxlan(),
            format!("link set vx0 address {mac} up"),
            format!("address add {overlay}/24 dev vx0"),
            format!("neighbour replace {OVERLAY_TASK} lladdr {TASK_MAC} dev vx0 nud permanent"),
        ],
    )?;
    bridge(&host, &[format!("fdb append {TASK_MAC} dev vx0 dst {UNDERLAY_SECOND} self permanent")])?;
    match case {
        Case::Routed => {
            sysctl(&netns_path(&host), "ipv4/ip_forward", "1")?;
            ip(Some(CLIENT), &[format!("route add {OVERLAY} via {underlay}")])
        }
        Case::Nftables => {
            check_conntrack_limit()?;
            sysctl(&netns_path(&host), "ipv4/ip_forward", "1")?;
            configure(&netns_path(&host), Command::new("nft").args(["-f", "-"]), &nft_ruleset(first))
        }
        // The proxy has a port in use at both ends of each connection. HAProxy's manual recommends
        // to reuse those in TIME_WAIT.
        _ => sysctl(&netns_path(&host), "ipv4/tcp_tw_reuse", "1"),
    }
}

/// conntrack keeps the entry of an ended connection for two minutes. When the number of entries
/// reaches the limit, new connections are dropped.
fn check_conntrack_limit() -> Result<()> {
    const NEEDED: u64 = 1 << 17;
    let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_max");
    // The file does not exist before conntrack is loaded.
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let limit: u64 = text.trim().parse().context("nf_conntrack_max is not a number")?;
    ensure!(
        limit >= NEEDED,
        "net.netfilter.nf_conntrack_max is {limit}, which slows nftables down: raise it to {NEEDED} or more, or select \
         other cases with --case"
    );
    Ok(())
}

/// The two rules of a published port with masquerade.
fn nft_ruleset(first: &FirstNode) -> String {
    let FirstNode { underlay, stream, .. } = first;
    format!(
        "table ip bench {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {underlay} dnat to tcp dport map {{
                    {PUBLISHED} : {OVERLAY_TASK} . {HTTP}, {stream} : {OVERLAY_TASK} . {stream}
                }}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                oifname vx0 masquerade
            }}
        }}\n"
    )
}

/// Runs lines of `ip` on a host, or on this machine.
pub(in crate::bench) fn ip(host: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(host) = host {
        command.args(["-n", &netns_name(host)]);
    }
    // `-n` moves the program into the namespace, so that it can be started in any.
    configure(Path::new(OWN_NETNS), command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
}

fn bridge(host: &str, lines: &[String]) -> Result<()> {
    let mut command = Command::new("bridge");
    configure(&netns_path(host), command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
}
