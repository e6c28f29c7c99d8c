//! Sends packets that no ordinary socket sends, such as a forged VXLAN frame, receives every UDP
//! datagram for a host, and captures all frames of a host. The tests and the demo call it. It needs
//! root.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    num::NonZero,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketAddrAny, SocketType, bind, ipproto, recv, sendto, socket,
        sockopt,
    },
};

use crate::speed::scaled;

/// The UDP port of VXLAN (RFC 7348, section 5).
pub const VXLAN_PORT: u16 = 4789;

/// The payload of a VXLAN datagram that carries a UDP datagram over IPv4 (RFC 7348, section 5; RFC
/// 791; RFC 768).
pub fn vxlan_udp(vni: u32, destination_mac: [u8; 6], from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let [_, v1, v2, v3] = vni.to_be_bytes();
    let mut frame = vec![0x08, 0, 0, 0, v1, v2, v3, 0];
    frame.extend(destination_mac);
    frame.extend([0x02, 0, 0, 0, 0, 0x63]);
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4_udp(from, to, payload));
    frame
}

fn ipv4_udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).expect("a payload of less than 64 KiB");
    let mut header = vec![0x45, 0];
    header.extend((20 + udp_length).to_be_bytes());
    // Identification 0, no fragments, 64 hops, UDP, and the checksum as 0 for now.
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    let checksum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);

    let mut packet = header;
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    // Over IPv4 a UDP checksum of 0 means that there is none.
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// Sends a UDP datagram through a raw socket, so that no hook on UDP sockets sees it.
///
/// # Errors
/// When the addresses are of two families, or this process is not root.
pub fn send_raw_udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
    // The kernel refuses a port here: the port is in the packet.
    let destination = SocketAddrAny::from(SocketAddr::new(to.ip(), 0));
    let (family, protocol, packet) = match (from, to) {
        // For this protocol the packet begins with the IP header (raw(7)).
        (SocketAddr::V4(from), SocketAddr::V4(to)) => (AddressFamily::INET, ipproto::RAW, ipv4_udp(from, to, payload)),
        (SocketAddr::V6(from), SocketAddr::V6(to)) => (AddressFamily::INET6, ipproto::UDP, udp6(from, to, payload)),
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{from} and {to} are of different families"),
            ));
        }
    };
    let socket = socket(family, SocketType::RAW, Some(protocol))?;
    sendto(&socket, &packet, SendFlags::empty(), &destination)?;
    Ok(())
}

/// A UDP datagram with the checksum that IPv6 requires (RFC 8200, section 8.1).
fn udp6(from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a payload of less than 64 KiB");
    let mut datagram = Vec::new();
    datagram.extend(from.port().to_be_bytes());
    datagram.extend(to.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    let mut pseudo = Vec::new();
    pseudo.extend(from.ip().octets());
    pseudo.extend(to.ip().octets());
    pseudo.extend(u32::from(length).to_be_bytes());
    pseudo.extend([0, 0, 0, 17]);
    pseudo.extend(&datagram);
    // A payload of odd length is summed with a zero byte after it.
    pseudo.resize(pseudo.len().next_multiple_of(2), 0);
    datagram[6..8].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    datagram
}

/// The Internet checksum (RFC 1071) of a whole number of 16-bit words.
fn checksum(words: &[u8]) -> u16 {
    let sum = words.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("a sum that is folded twice has 16 bits")
}

/// The largest datagram that the tests send, with its headers, in bytes.
const LARGEST: usize = 2048;

/// Receives every UDP datagram for an address of the host in whose namespace it was created, also
/// those for sockets of the kernel: a raw socket gets a copy of each datagram (raw(7)).
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    addr: IpAddr,
}

impl Sniffer {
    pub fn new(addr: IpAddr) -> io::Result<Self> {
        let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = socket(family, SocketType::RAW, Some(ipproto::UDP))?;
        bind(&socket, &SocketAddrAny::from(SocketAddr::new(addr, 0)))?;
        Ok(Self { socket, addr })
    }

    /// Returns the destination ports of the datagrams with this payload, in the order of their
    /// arrival, up to and including the first to port `last`.
    ///
    /// # Errors
    /// `TimedOut` when no such datagram to `last` arrives within the timeout, which is for a normal
    /// machine.
    pub fn ports_until(&self, last: u16, payload: &[u8], timeout: Duration) -> io::Result<Vec<u16>> {
        let (start, timeout) = (Instant::now(), scaled(timeout));
        let mut ports = Vec::new();
        let mut packet = [0; LARGEST];
        while !ports.contains(&last) {
            let left = timeout.saturating_sub(start.elapsed());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left))? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no datagram to port {last}, only to {ports:?}"),
                ));
            }
            let (length, _) = recv(&self.socket, &mut packet, RecvFlags::empty())?;
            ports.extend(self.port_of(&packet[..length], payload));
        }
        Ok(ports)
    }

    /// The destination port of a datagram with this payload. Raw sockets of IPv4 return the IP
    /// header as well (RFC 791; RFC 768).
    fn port_of(&self, packet: &[u8], payload: &[u8]) -> Option<u16> {
        let header = if self.addr.is_ipv4() { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
        let datagram = packet.get(header..)?;
        if datagram.get(8..)? != payload {
            return None;
        }
        Some(u16::from_be_bytes([*datagram.get(2)?, *datagram.get(3)?]))
    }
}

/// `ETH_P_ALL` (linux/if_ether.h): frames of every protocol.
const ALL_PROTOCOLS: u16 = 3;
/// How much a capture holds before it is read, in bytes with the kernel's own overhead.
const CAPTURED_BYTES: usize = 64 << 20;
/// The largest frame that a capture reads, in bytes. GRO makes frames of up to 64 KiB.
const LARGEST_FRAME: usize = 1 << 17;

/// Captures every frame on every link of the host in whose namespace it was created (packet(7)).
#[derive(Debug)]
pub struct Capture(OwnedFd);

/// A captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame(Vec<u8>);

impl Capture {
    pub fn new() -> io::Result<Self> {
        let protocol = NonZero::new(u32::from(ALL_PROTOCOLS.to_be())).map(Protocol::from_raw);
        let socket = socket(AddressFamily::PACKET, SocketType::RAW, protocol)?;
        // The frames wait in the socket until the caller reads them.
        sockopt::set_socket_recv_buffer_size_force(&socket, CAPTURED_BYTES)?;
        Ok(Self(socket))
    }

    /// Returns the frames up to and including the first that contains `last`.
    ///
    /// # Errors
    /// `TimedOut` when no such frame comes in time.
    pub fn frames_until(&self, last: &[u8], timeout: Duration) -> io::Result<Vec<Frame>> {
        let (start, timeout) = (Instant::now(), scaled(timeout));
        let mut frames = Vec::new();
        let mut buffer = vec![0; LARGEST_FRAME];
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&left))? == 0 {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no such frame among {}", frames.len())));
            }
            let (length, _) = recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let frame = Frame(buffer[..length].to_vec());
            let is_last = frame.contains(last);
            frames.push(frame);
            if is_last {
                return Ok(frames);
            }
        }
    }
}

impl Frame {
    pub fn contains(&self, bytes: &[u8]) -> bool {
        self.0.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Whether the frame has a UDP datagram to this port over IPv4 without options, or over IPv6
    /// without extension headers.
    pub fn is_udp_to(&self, port: u16) -> bool {
        let (protocol, header) = match self.0.get(12..14) {
            Some([0x08, 0x00]) => (23, 20),
            Some([0x86, 0xdd]) => (20, 40),
            _ => return false,
        };
        let port_at = 14 + header + 2;
        self.0.get(protocol) == Some(&17) && self.0.get(port_at..port_at + 2) == Some(&port.to_be_bytes())
    }
}

/// The address of the same /24 with this last octet.
pub fn with_last_octet(addr: Ipv4Addr, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = addr.octets();
    Ipv4Addr::new(a, b, c, last)
}
