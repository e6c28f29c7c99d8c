//! Packets cross the tunnel unchanged.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use weft_lab::scaled;

use super::network::{DEADLINE, Host, LINK, MTU, connect, echo, only_peer};

const OCTETS: usize = 16 << 20;

#[test]
fn streams_cross_an_ipv4_underlay_unchanged() -> Result<()> {
    let (a, b) = Host::pair("v4")?;
    let (first, second) = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    echo(&a, &b, b.inner(), OCTETS)?;
    echo(&b, &a, a.inner(), OCTETS)?;
    for device in [&first, &second] {
        let status = only_peer(device)?;
        let octets = u64::try_from(2 * OCTETS)?;
        ensure!(status.last_handshake.is_some() && status.rx_bytes > octets && status.tx_bytes > octets, "{status:?}");
    }
    Ok(())
}

#[test]
fn streams_cross_an_ipv6_underlay_unchanged() -> Result<()> {
    let (a, b) = Host::pair("v6")?;
    let (_first, second) = connect(&a, &b, Host::underlay_v6)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    echo(&a, &b, b.inner(), OCTETS)?;
    ensure!(only_peer(&second)?.endpoint.map(|endpoint| endpoint.ip()) == Some(a.underlay_v6()));
    Ok(())
}

/// With the outer checksum and without; what is inside is IPv4.
#[test]
fn streams_inside_of_vxlan_stay_unchanged() -> Result<()> {
    let (a, b) = Host::pair("vxlan")?;
    let _devices = connect(&a, &b, Host::underlay_v4)?;
    for (vni, options) in [(1, "udp6zerocsumrx"), (2, "udp6zerocsumtx udp6zerocsumrx")] {
        let address = |host: &Host| IpAddr::V4(Ipv4Addr::new(10, 99, vni, host.number));
        for (host, remote) in [(&a, &b), (&b, &a)] {
            let (local, remote) = (host.inner(), remote.inner());
            host.ip(&format!(
                "link add vx{vni} type vxlan id {vni} local {local} remote {remote} dstport 4789 {options}"
            ))?;
            host.ip(&format!("link set vx{vni} mtu {} up", MTU - 70))?;
            host.ip(&format!("addr add {}/24 dev vx{vni}", address(host)))?;
        }
        a.wait_ping(address(&b), DEADLINE)?;
        echo(&a, &b, address(&b), OCTETS)?;
        for host in [&a, &b] {
            host.ip(&format!("link delete vx{vni}"))?;
        }
    }
    Ok(())
}

#[test]
fn datagrams_of_all_lengths_arrive() -> Result<()> {
    let (a, b) = Host::pair("udp")?;
    let _devices = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    let server = b.within(|| UdpSocket::bind((b.inner(), 0)))??;
    let client = a.within(|| UdpSocket::bind((a.inner(), 0)))??;
    server.set_read_timeout(Some(scaled(DEADLINE)))?;
    let mut buffer = vec![0; 65_535];
    // Up to several fragments.
    for len in (0..200).chain([1371, 1372, 1373, 1400, 3000, 20_000]) {
        let sent = vec![u8::try_from(len % 256)?; len];
        client.send_to(&sent, server.local_addr()?)?;
        let received = server.recv(&mut buffer)?;
        ensure!(buffer[..received] == sent, "a datagram of {len} octets has changed");
    }
    Ok(())
}

#[test]
fn a_packet_as_long_as_the_mtu_passes_and_a_longer_one_does_not() -> Result<()> {
    let (a, b) = Host::pair("mtu")?;
    let _devices = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    // Without the headers of IPv6 and ICMPv6.
    let longest = usize::try_from(MTU)? - 48;
    a.ping(b.inner(), &["-M", "do", "-s", &longest.to_string()])?;
    let longer = a.ping(b.inner(), &["-M", "do", "-s", &(longest + 1).to_string()]);
    ensure!(longer.is_err(), "a packet longer than the MTU has passed");
    Ok(())
}

/// A datagram longer than the MTU of the path is sent in fragments, also if it would be part of a
/// train.
#[test]
fn an_underlay_with_a_smaller_mtu_fragments() -> Result<()> {
    let (a, b) = Host::pair("small")?;
    let _devices = connect(&a, &b, Host::underlay_v4)?;
    for host in [&a, &b] {
        host.ip("link set eth0 mtu 1300")?;
    }
    a.wait_ping(b.inner(), DEADLINE)?;
    echo(&a, &b, b.inner(), 1 << 20)
}

#[test]
fn a_peer_may_send_from_its_own_addresses_only() -> Result<()> {
    let (a, b) = Host::pair("source")?;
    let (_first, second) = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    let server = b.within(|| UdpSocket::bind((b.inner(), 0)))??;
    server.set_read_timeout(Some(scaled(DEADLINE)))?;
    let forged = "fd00::9";
    a.ip(&format!("addr add {forged}/128 dev {LINK} nodad"))?;
    let before = only_peer(&second)?.rx_bytes;
    for (source, text) in [(forged, "forged"), (&a.inner().to_string(), "own")] {
        let client = a.within(|| UdpSocket::bind((source, 0)))??;
        client.send_to(text.as_bytes(), server.local_addr()?)?;
    }
    let mut buffer = [0; 100];
    let len = server.recv(&mut buffer)?;
    ensure!(&buffer[..len] == b"own", "received {:?}", String::from_utf8_lossy(&buffer[..len]));
    // The forged one was decrypted, so it was received before the other one.
    ensure!(only_peer(&second)?.rx_bytes >= before + 2 * 48, "one of the packets was not received");
    server.set_read_timeout(Some(Duration::from_millis(100)))?;
    ensure!(server.recv(&mut buffer).is_err(), "the forged packet was delivered");
    Ok(())
}
