//! Sessions begin, follow a peer that moves, survive a restart, and end.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use boringtun::{
    noise::{Tunn, TunnResult},
    x25519::{PublicKey, StaticSecret},
};
use weft_lab::try_eventually;
use weft_wireguard::{Device, PeerConfig};

use super::network::{DEADLINE, Host, LINK, connect, only_peer};

/// After 15 s without an answer a peer makes a new session (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT,
/// WireGuard whitepaper, section 6.5).
const UNANSWERED: Duration = Duration::from_secs(25);

/// A peer that no host has.
fn stranger(key: u8, allowed: &str) -> Result<PeerConfig> {
    let public_key = PublicKey::from(&StaticSecret::from([key; 32])).to_bytes();
    Ok(PeerConfig { public_key, endpoint: None, allowed_ips: vec![allowed.parse()?], keepalive: None })
}

#[test]
fn the_endpoint_follows_a_peer_that_moves() -> Result<()> {
    let (a, b) = Host::pair("roam")?;
    let (_first, second) = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    a.ip("addr delete 192.0.2.1/24 dev eth0")?;
    a.ip("addr add 192.0.2.77/24 dev eth0")?;
    a.wait_ping(b.inner(), DEADLINE)?;
    let expected = Some(SocketAddr::new("192.0.2.77".parse()?, 51_820));
    ensure!(only_peer(&second)?.endpoint == expected, "{:?}", only_peer(&second)?);
    b.ping(a.inner(), &[])
}

#[test]
fn a_peer_without_an_endpoint_is_found_when_it_sends() -> Result<()> {
    let (a, b) = Host::pair("passive")?;
    let (first, second) = (a.open(1)?, b.open(2)?);
    second.set_peers(&[PeerConfig { endpoint: None, ..a.as_peer(&first, a.underlay_v4()) }]);
    let before = b.ping(a.inner(), &[]);
    ensure!(before.is_err(), "a packet was sent to an unknown endpoint");
    first.set_peers(&[b.as_peer(&second, b.underlay_v4())]);
    a.wait_ping(b.inner(), DEADLINE)?;
    b.ping(a.inner(), &[])
}

#[test]
fn a_keepalive_makes_a_session_without_traffic() -> Result<()> {
    let (a, b) = Host::pair("keepalive")?;
    let (first, second) = (a.open(1)?, b.open(2)?);
    second.set_peers(&[PeerConfig { endpoint: None, ..a.as_peer(&first, a.underlay_v4()) }]);
    let peer = b.as_peer(&second, b.underlay_v4());
    first.set_peers(&[PeerConfig { keepalive: Some(Duration::from_secs(1)), ..peer }]);
    try_eventually(DEADLINE, "a session", || {
        let status = only_peer(&second).map_err(|error| error.to_string())?;
        status.last_handshake.map(drop).ok_or_else(|| format!("{status:?}"))
    })
}

/// The session of a peer stays when other peers come and go, and when its own configuration
/// changes.
#[test]
fn a_peer_that_stays_keeps_its_session() -> Result<()> {
    let (a, b) = Host::pair("replace")?;
    let (first, second) = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    let peer = b.as_peer(&second, b.underlay_v4());
    let received = || -> Result<u64> {
        let statuses = first.status();
        let status = statuses.iter().find(|status| status.public_key == peer.public_key);
        Ok(status.context("the peer is missing")?.rx_bytes)
    };
    let before = received()?;
    first.set_peers(&[stranger(9, "fd00::9/128")?, peer.clone()]);
    ensure!(first.status().len() == 2 && received()? >= before, "the session has ended");
    a.ping(b.inner(), &[])?;
    let more = vec!["fd00::2/128".parse()?, "10.0.0.0/8".parse()?];
    first.set_peers(&[PeerConfig { allowed_ips: more, keepalive: Some(Duration::from_secs(25)), ..peer.clone() }]);
    ensure!(first.status().len() == 1 && received()? > before, "the session has ended");
    a.ping(b.inner(), &[])?;
    // A peer that was removed has no session, also when it comes back.
    first.set_peers(&[]);
    ensure!(a.ping(b.inner(), &[]).is_err(), "a removed peer has answered");
    first.set_peers(std::slice::from_ref(&peer));
    ensure!(received()? == 0);
    a.wait_ping(b.inner(), DEADLINE)
}

#[test]
fn a_peer_with_a_new_key_replaces_the_old_one() -> Result<()> {
    let (a, b) = Host::pair("rekey")?;
    let (first, second) = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    drop(second);
    let second = b.open(22)?;
    second.set_peers(&[a.as_peer(&first, a.underlay_v4())]);
    ensure!(b.ping(a.inner(), &[]).is_err(), "an unknown key has a session");
    ensure!(only_peer(&second)?.last_handshake.is_none());
    first.set_peers(&[b.as_peer(&second, b.underlay_v4())]);
    a.wait_ping(b.inner(), DEADLINE)
}

/// The side that was not restarted notices it by silence, without a packet from the other side.
#[test]
fn a_restarted_peer_heals() -> Result<()> {
    let (a, b) = Host::pair("restart")?;
    let (first, second) = connect(&a, &b, Host::underlay_v4)?;
    a.wait_ping(b.inner(), DEADLINE)?;
    drop(second);
    let second = b.open(2)?;
    second.set_peers(&[PeerConfig { endpoint: None, ..a.as_peer(&first, a.underlay_v4()) }]);
    a.wait_ping(b.inner(), UNANSWERED)?;
    // The side that was restarted needs no timer.
    drop(second);
    let second = b.open(2)?;
    second.set_peers(&[a.as_peer(&first, a.underlay_v4())]);
    let start = Instant::now();
    b.wait_ping(a.inner(), DEADLINE)?;
    ensure!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    Ok(())
}

#[test]
fn a_device_leaves_nothing_behind_and_reports_that_its_link_was_removed() -> Result<()> {
    let (a, _b) = Host::pair("remove")?;
    let device = a.open(1)?;
    let second = a.within(|| {
        Device::open(weft_wireguard::DeviceConfig {
            name: LINK.to_owned(),
            private_key: [3; 32],
            port: 0,
            mtu: 1420,
            workers: 1,
        })
    })?;
    let error = second.err().context("two devices have the same name")?;
    ensure!(error.to_string().contains("a link of this name may exist"), "{error}");
    drop(device);
    ensure!(a.ip(&format!("link show {LINK}")).is_err(), "the link is still there");
    // A process that another test starts at this moment has the socket until it calls exec.
    let device = try_eventually(DEADLINE, "the port is free", || a.open(1).map_err(|error| format!("{error:#}")))?;
    ensure!(!device.has_failed());
    a.ip(&format!("link delete {LINK}"))?;
    try_eventually(DEADLINE, "a report", || device.has_failed().then_some(()).ok_or_else(String::new))
}

/// A flood of handshakes is answered by cookies, and a peer still gets its session: it returns its
/// cookie.
#[test]
fn a_flood_of_handshakes_does_not_keep_a_peer_out() -> Result<()> {
    let (a, b) = Host::pair("flood")?;
    let (first, second) = (a.open(1)?, b.open(2)?);
    let target = SocketAddr::new(a.underlay_v4(), first.port());
    let flood = b.within(|| UdpSocket::bind((b.underlay_v4(), 0)))??;
    flood.set_nonblocking(true)?;
    let public_key = PublicKey::from(first.public_key());
    let mut forger = Tunn::new(StaticSecret::from([99; 32]), public_key, None, None, 7, None);
    let mut send = |count: usize| -> Result<()> {
        for _ in 0..count {
            let mut buffer = [0; 148];
            if let TunnResult::WriteToNetwork(message) = forger.format_handshake_initiation(&mut buffer, true) {
                flood.send_to(message, target)?;
            }
        }
        Ok(())
    };
    send(500)?;
    first.set_peers(&[PeerConfig { endpoint: None, ..b.as_peer(&second, b.underlay_v4()) }]);
    second.set_peers(&[a.as_peer(&first, a.underlay_v4())]);
    // Its first handshake gets a cookie; the next one comes after 5 s (REKEY_TIMEOUT).
    try_eventually(UNANSWERED, "an answer during the flood", || {
        send(100).map_err(|error| error.to_string())?;
        b.ping(a.inner(), &[]).map_err(|error| format!("{error:#}"))
    })?;
    let mut replies = [0usize; 5];
    let mut buffer = [0; 200];
    while let Ok(len) = flood.recv(&mut buffer) {
        let kind = buffer[..len].first().copied().unwrap_or(0);
        *replies.get_mut(usize::from(kind)).context("a message type")? += 1;
    }
    // More do not fit into the buffer of the socket.
    ensure!(replies[3] > 100, "cookies: {replies:?}");
    ensure!(replies[2] == 0, "an unknown key got an answer: {replies:?}");
    Ok(())
}
