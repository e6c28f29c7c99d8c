//! The hosts of a test: two network namespaces with a veth pair between them, and a WireGuard
//! device on each. Dropping a host removes its namespace, and with it all links.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ipnetwork::IpNetwork;
use weft_lab::{netns, scaled, try_eventually};
use weft_wireguard::{Device, DeviceConfig, PeerConfig, PeerStatus};

pub(crate) const LINK: &str = "wg0";
pub(crate) const MTU: u32 = 1420;
/// The time in which anything must happen that needs no timer of WireGuard.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
const IO_TIMEOUT: Duration = Duration::from_secs(30);

/// A network namespace.
pub(crate) struct Host {
    name: String,
    /// 1 or 2: the last part of all its addresses.
    pub(crate) number: u8,
}

impl Host {
    /// Two hosts whose links `eth0` are connected.
    pub(crate) fn pair(test: &str) -> Result<(Self, Self)> {
        let host = |number| {
            let host = Self { name: format!("wgtest-{test}-{number}"), number };
            // Of a run that was killed.
            drop(run(Command::new("ip").args(["netns", "delete", &host.name])));
            run(Command::new("ip").args(["netns", "add", &host.name]))?;
            Ok::<Self, anyhow::Error>(host)
        };
        let (a, b) = (host(1)?, host(2)?);
        let (first, second) = (&a.name, &b.name);
        run(Command::new("ip")
            .args(["link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second]))?;
        for host in [&a, &b] {
            host.ip("link set lo up")?;
            host.ip(&format!("addr add {}/24 dev eth0", host.underlay_v4()))?;
            host.ip(&format!("addr add {}/64 dev eth0 nodad", host.underlay_v6()))?;
            host.ip("link set eth0 up")?;
        }
        Ok((a, b))
    }

    /// Runs `ip` in the namespace.
    pub(crate) fn ip(&self, arguments: &str) -> Result<()> {
        run(Command::new("ip").args(["-netns", &self.name]).args(arguments.split(' '))).map(drop)
    }

    pub(crate) fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&PathBuf::from("/run/netns").join(&self.name), action)
    }

    pub(crate) fn underlay_v4(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, self.number))
    }

    pub(crate) fn underlay_v6(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, self.number.into()))
    }

    /// Its address inside of the tunnel.
    pub(crate) fn inner(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, self.number.into()))
    }

    /// Opens a device with the private key `[key; 32]` and the inner address of this host.
    pub(crate) fn open(&self, key: u8) -> Result<Device> {
        let config = DeviceConfig { name: LINK.to_owned(), private_key: [key; 32], port: 51_820, mtu: MTU, workers: 2 };
        let device = self.within(|| Device::open(config))??;
        self.ip(&format!("addr add {}/64 dev {LINK} nodad", self.inner()))?;
        self.ip(&format!("link set {LINK} up"))?;
        Ok(device)
    }

    /// What another host must know to have this one as a peer.
    pub(crate) fn as_peer(&self, device: &Device, underlay: IpAddr) -> PeerConfig {
        PeerConfig {
            public_key: device.public_key(),
            endpoint: Some(SocketAddr::new(underlay, device.port())),
            allowed_ips: vec![IpNetwork::from(self.inner())],
            keepalive: None,
        }
    }

    pub(crate) fn ping(&self, to: IpAddr, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new("ping");
        command.args(["-c", "1", "-W", "1"]).args(arguments).arg(to.to_string());
        self.within(|| run(&mut command))?.map(drop)
    }

    /// Pings until there is an answer.
    pub(crate) fn wait_ping(&self, to: IpAddr, deadline: Duration) -> Result<()> {
        try_eventually(deadline, "an answer to a ping", || self.ping(to, &[]).map_err(|error| format!("{error:#}")))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("cannot remove {}: {error:#}", self.name);
        }
    }
}

pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    let text = [&output.stderr[..], &output.stdout[..]].concat();
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&text).trim());
    Ok(output)
}

/// Opens a device on each host, and makes them peers over `underlay`.
pub(crate) fn connect(a: &Host, b: &Host, underlay: fn(&Host) -> IpAddr) -> Result<(Device, Device)> {
    let (first, second) = (a.open(1)?, b.open(2)?);
    first.set_peers(&[b.as_peer(&second, underlay(b))]);
    second.set_peers(&[a.as_peer(&first, underlay(a))]);
    Ok((first, second))
}

/// The only peer of a device.
pub(crate) fn only_peer(device: &Device) -> Result<PeerStatus> {
    let mut peers = device.status();
    ensure!(peers.len() == 1, "{} peers", peers.len());
    peers.pop().context("one peer")
}

/// Sends `octets` octets over TCP from `from` to the address `to` of host `at`, which sends them
/// back. Checks that all arrive unchanged, both ways at the same time.
pub(crate) fn echo(from: &Host, at: &Host, to: IpAddr, octets: usize) -> Result<()> {
    let sent: Vec<u8> = (0..octets).map(|index| u8::try_from((index / 3 + index / 1021) % 256).unwrap_or(0)).collect();
    let listener = at.within(|| TcpListener::bind((to, 0)))??;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let server = scope.spawn(|| -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            limit(&stream)?;
            let mut copy = stream.try_clone()?;
            std::io::copy(&mut stream, &mut copy)?;
            copy.shutdown(std::net::Shutdown::Write)?;
            Ok(())
        });
        let stream = from.within(|| TcpStream::connect_timeout(&address, scaled(DEADLINE)))??;
        limit(&stream)?;
        let (mut reader, mut writer) = (stream.try_clone()?, stream);
        let reader = scope.spawn(move || -> Result<Vec<u8>> {
            let mut received = Vec::with_capacity(octets);
            reader.read_to_end(&mut received)?;
            Ok(received)
        });
        writer.write_all(&sent)?;
        writer.shutdown(std::net::Shutdown::Write)?;
        let received = reader.join().ok().context("the reader panicked")??;
        server.join().ok().context("the server panicked")??;
        ensure!(received.len() == sent.len(), "{} of {} octets came back", received.len(), sent.len());
        ensure!(received == sent, "the octets have changed");
        Ok(())
    })
}

fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(scaled(IO_TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(IO_TIMEOUT)))?;
    Ok(())
}
