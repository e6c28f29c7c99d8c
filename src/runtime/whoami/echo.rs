//! The echo servers of whoami (RFC 862), over TCP and UDP. The parent module starts each of them
//! once, and they run until the process ends. UDP answers are sent from the address that the
//! request was sent to.

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

/// Upper limit for the payload of a UDP datagram, in bytes.
const MAX_DATAGRAM: usize = 65_535;

/// Accepts connections and echoes what they send. Never returns.
pub(super) async fn serve_tcp(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let _ = stream.set_nodelay(true);
                tokio::task::spawn_local(async move {
                    let (mut reader, mut writer) = stream.split();
                    // An error is ignored: it means that the peer has reset the connection. The
                    // stream is dropped after success and after an error, which closes it.
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
            Err(error) => super::pause_after_accept_error(&error).await,
        }
    }
}

/// A UDP socket for IPv6 and IPv4 that receives the destination address of each datagram. The
/// answer must have that address as its source, or the client does not accept it; on a machine with
/// several addresses, the kernel would choose another one.
#[derive(Debug)]
pub(super) struct UdpEcho {
    socket: UdpSocket,
    /// The socket is an IPv6 socket; IPv4 peers have mapped addresses (RFC 4291, section 2.5.5.2).
    is_ipv6: bool,
}

impl UdpEcho {
    /// A socket for IPv6 and IPv4, or for IPv4 only if the kernel has no IPv6.
    pub(super) fn bind(port: u16) -> io::Result<Self> {
        let (socket, is_ipv6) = match std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)) {
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
        Ok(Self { socket: UdpSocket::from_std(socket)?, is_ipv6 })
    }

    /// Echoes datagrams. Never returns.
    pub(super) async fn serve(self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            // An error is ignored: it concerns one datagram, for example an ICMP error for an
            // earlier answer, and does not affect the next datagram.
            let _ =
                self.socket.async_io(Interest::READABLE, || echo_one(&self.socket, self.is_ipv6, &mut buffer)).await;
        }
    }
}

/// Receives one datagram and sends it back.
fn echo_one(socket: &UdpSocket, is_ipv6: bool, buffer: &mut [u8]) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let (len, peer, destination) = {
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
        let destination = message
            .cmsgs()?
            .find(|c| matches!(c, ControlMessageOwned::Ipv6PacketInfo(_) | ControlMessageOwned::Ipv4PacketInfo(_)));
        (message.bytes, message.address.as_ref().and_then(socket_addr), destination)
    };
    let Some(peer) = peer else { return Ok(()) };
    let payload = [IoSlice::new(&buffer[..len])];
    // UDP may lose datagrams, so an answer that cannot be sent is dropped.
    let _ = match destination {
        Some(ControlMessageOwned::Ipv6PacketInfo(mut info)) => {
            // The routes choose the interface of the answer, except for a link-local address, which
            // is valid on its own interface only.
            if !Ipv6Addr::from(info.ipi6_addr.s6_addr).is_unicast_link_local() {
                info.ipi6_ifindex = 0;
            }
            send(fd, &payload, &[ControlMessage::Ipv6PacketInfo(&info)], peer, is_ipv6)
        }
        Some(ControlMessageOwned::Ipv4PacketInfo(mut info)) => {
            info.ipi_ifindex = 0;
            info.ipi_spec_dst = info.ipi_addr;
            send(fd, &payload, &[ControlMessage::Ipv4PacketInfo(&info)], peer, is_ipv6)
        }
        _ => send(fd, &payload, &[], peer, is_ipv6),
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
    is_ipv6: bool,
) -> io::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT;
    match peer {
        SocketAddr::V6(peer) if is_ipv6 => sendmsg(fd, payload, control, flags, Some(&SockaddrIn6::from(peer)))?,
        SocketAddr::V4(peer) => sendmsg(fd, payload, control, flags, Some(&SockaddrIn::from(peer)))?,
        SocketAddr::V6(_) => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    Ok(())
}
