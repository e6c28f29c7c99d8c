//! The echo side of whoami (RFC 862): TCP, and UDP that answers from the address it was asked at.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd,
};

use nix::{
    libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
        setsockopt, sockopt,
    },
};
use tokio::{
    io::Interest,
    net::{TcpListener, UdpSocket},
};

/// The largest UDP payload.
const MAX_DATAGRAM: usize = 65_535;

/// Accepts and echoes for ever.
pub(super) async fn tcp(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(async move {
                    let (mut reader, mut writer) = stream.split();
                    // Dropping the stream afterwards closes what is left; a peer that reset it does not want to know.
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
            Err(error) => super::out_of_connections(&error).await,
        }
    }
}

/// A UDP socket for both families that knows at which of its addresses each datagram arrived: with several addresses the
/// kernel would pick another source for the answer.
#[derive(Debug)]
pub(super) struct Udp {
    socket: UdpSocket,
    v6: bool,
}

impl Udp {
    pub(super) fn bind(port: u16) -> io::Result<Self> {
        let (socket, v6) = match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
            Ok(socket) => {
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                (socket, true)
            }
            Err(_) => {
                let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                (socket, false)
            }
        };
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UdpSocket::from_std(socket)?, v6 })
    }

    /// Echoes for ever.
    pub(super) async fn run(self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            // What fails is about one datagram (an ICMP error about an earlier answer, say), and never the next one's problem.
            let _ = self.socket.async_io(Interest::READABLE, || echo_one(&self.socket, self.v6, &mut buffer)).await;
        }
    }
}

fn echo_one(socket: &UdpSocket, v6: bool, buffer: &mut [u8]) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let (len, peer, at) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let at = message
            .cmsgs()?
            .find(|c| matches!(c, ControlMessageOwned::Ipv6PacketInfo(_) | ControlMessageOwned::Ipv4PacketInfo(_)));
        (message.bytes, message.address.as_ref().and_then(socket_addr), at)
    };
    let Some(peer) = peer else { return Ok(()) };
    let payload = [IoSlice::new(&buffer[..len])];
    // Datagrams may be lost: one that cannot be sent now is.
    let _ = match at {
        Some(ControlMessageOwned::Ipv6PacketInfo(mut at)) => {
            // Routing chooses the way back, unless the address means something on one link only.
            if !Ipv6Addr::from(at.ipi6_addr.s6_addr).is_unicast_link_local() {
                at.ipi6_ifindex = 0;
            }
            send(fd, &payload, &[ControlMessage::Ipv6PacketInfo(&at)], peer, v6)
        }
        Some(ControlMessageOwned::Ipv4PacketInfo(mut at)) => {
            at.ipi_ifindex = 0;
            at.ipi_spec_dst = at.ipi_addr;
            send(fd, &payload, &[ControlMessage::Ipv4PacketInfo(&at)], peer, v6)
        }
        _ => send(fd, &payload, &[], peer, v6),
    };
    Ok(())
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v6) = address.as_sockaddr_in6() {
        Some(SocketAddrV6::from(*v6).into())
    } else {
        address.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into())
    }
}

fn send(
    fd: i32,
    payload: &[IoSlice<'_>],
    control: &[ControlMessage<'_>],
    peer: SocketAddr,
    v6: bool,
) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT;
    match peer {
        SocketAddr::V6(peer) if v6 => sendmsg(fd, payload, control, flags, Some(&SockaddrIn6::from(peer)))?,
        SocketAddr::V4(peer) => sendmsg(fd, payload, control, flags, Some(&SockaddrIn::from(peer)))?,
        SocketAddr::V6(_) => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    Ok(())
}
