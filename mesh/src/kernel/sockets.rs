//! Closes connections to tasks that do not exist any more, so that programs get an error at once
//! instead of a timeout.
//!
//! The agent calls [`close_connections`] in the namespaces of the tasks that may have such
//! connections. It uses sock_diag(7), which lists the connections of a network namespace and
//! destroys those that it is given.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_ALIGNTO, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, Parseable,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use crate::error::Error;

/// The socket states (net/tcp_states.h) that are listed: all in which a socket has a peer. A
/// connected UDP socket is in the state ESTABLISHED. TIME_WAIT is left out, because no program has
/// the socket any more.
const STATES: StateFlags =
    StateFlags::all().difference(StateFlags::TIME_WAIT.union(StateFlags::CLOSE).union(StateFlags::LISTEN));

/// Closes every connection of this thread's network namespace to one of the addresses `gone`. The
/// programs get `ECONNABORTED`. Returns the number of closed connections.
///
/// # Errors
///
/// [`Error::Sockets`] if the netlink socket fails. A kernel without `CONFIG_INET_DIAG_DESTROY`
/// closes nothing, which is not an error.
pub fn close_connections(gone: &BTreeSet<IpAddr>) -> Result<usize, Error> {
    let open = || -> io::Result<Socket> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        Ok(socket)
    };
    let socket = open().map_err(|source| Error::Sockets { verb: "list", source })?;
    let mut closed = 0;
    for (family, protocol) in
        [(AF_INET, IPPROTO_TCP), (AF_INET6, IPPROTO_TCP), (AF_INET, IPPROTO_UDP), (AF_INET6, IPPROTO_UDP)]
    {
        let connections = list_connections(&socket, family, protocol);
        for id in connections.map_err(|source| Error::Sockets { verb: "list", source })? {
            if gone.contains(&id.destination_address.to_canonical()) {
                let destroyed = destroy(&socket, family, protocol, id);
                closed += usize::from(destroyed.map_err(|source| Error::Sockets { verb: "close", source })?);
            }
        }
    }
    Ok(closed)
}

fn list_connections(socket: &Socket, family: u8, protocol: u8) -> io::Result<Vec<SocketId>> {
    let any = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let request = request(family, protocol, any);
    socket.send(&encode(NLM_F_DUMP, request), 0)?;
    let mut connections = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for message in messages(&datagram) {
            match message.message_type() {
                NLMSG_DONE | NLMSG_ERROR => return Ok(connections),
                _ => {
                    let header = InetResponseHeader::parse(message.payload()).ok();
                    connections.extend(header.map(|header| header.socket_id));
                }
            }
        }
    }
}

/// Destroys a socket. Returns `false` if the kernel did not, for example because the socket was
/// closed meanwhile.
fn destroy(socket: &Socket, family: u8, protocol: u8, id: SocketId) -> io::Result<bool> {
    let request = SockDiagDestroy::new(request(family, protocol, id));
    socket.send(&encode(NLM_F_ACK, request), 0)?;
    Ok(is_ack(&socket.recv_from_full()?.0))
}

fn request(family: u8, protocol: u8, socket_id: SocketId) -> SockDiagMessage {
    let extensions = ExtensionFlags::empty();
    SockDiagMessage::InetRequest(InetRequest { family, protocol, extensions, states: STATES, socket_id })
}

/// Encodes a request. Its sequence number stays 0, because the socket has only one request at a
/// time.
fn encode<T>(flags: u16, request: T) -> Vec<u8>
where
    T: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<T>>,
{
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}

/// The messages of a datagram. A truncated message ends the list.
fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let aligned = (message.length() as usize).next_multiple_of(usize::from(NLMSG_ALIGNTO));
        rest = rest.get(aligned..).unwrap_or_default();
        Some(message)
    })
}

/// Whether the datagram is an acknowledgement: an error message with the code 0.
fn is_ack(datagram: &[u8]) -> bool {
    let message = NetlinkMessage::<SockDiagMessage>::deserialize(datagram);
    matches!(message.map(|message| message.payload), Ok(NetlinkPayload::Error(ErrorMessage { code: None, .. })))
}

#[cfg(test)]
mod tests {
    use netlink_packet_sock_diag::{SOCK_DESTROY, SOCK_DIAG_BY_FAMILY};

    use super::*;

    /// `struct nlmsghdr` (linux/netlink.h).
    const HEADER: usize = 16;
    /// `struct inet_diag_msg` (linux/inet_diag.h), and its `struct inet_diag_sockid`.
    const INET_DIAG_MSG: usize = 72;
    const SOCKET_ID: std::ops::Range<usize> = 4..52;

    fn datagram(messages: &[(u16, &[u8])]) -> Vec<u8> {
        let mut octets = Vec::new();
        for (kind, body) in messages {
            octets.extend(((HEADER + body.len()) as u32).to_ne_bytes());
            octets.extend(kind.to_ne_bytes());
            octets.extend([0; 10]);
            octets.extend(*body);
            octets.resize(octets.len().next_multiple_of(4), 0);
        }
        octets
    }

    /// The kernel's message about a connection to `remote`: `struct inet_diag_msg` with unusual
    /// values in all fields of the socket's id.
    fn connection(family: u8, remote: IpAddr) -> [u8; INET_DIAG_MSG] {
        let mut octets = [0; INET_DIAG_MSG];
        octets[0] = family;
        let id = &mut octets[SOCKET_ID];
        id[..4].copy_from_slice(&[0x1f, 0x90, 0xc0, 0x01]);
        match remote {
            IpAddr::V4(v4) => id[20..24].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[20..36].copy_from_slice(&v6.octets()),
        }
        id[36..].copy_from_slice(&[7, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        octets
    }

    #[test]
    fn splits_a_datagram_into_messages() {
        let octets = datagram(&[(20, &[1, 2, 3]), (3, &[0; 4])]);
        let split: Vec<_> =
            messages(&octets).map(|message| (message.message_type(), message.payload().to_vec())).collect();
        assert_eq!(split, [(20, vec![1, 2, 3]), (3, vec![0; 4])]);
        for broken in [&octets[..10], &octets[..18], &[][..], &[0; 64]] {
            assert_eq!(messages(broken).count(), 0);
        }
    }

    #[test]
    fn reads_the_remote_address_and_sends_the_id_back_unchanged() {
        for (family, remote) in [(AF_INET, "10.0.1.2"), (AF_INET6, "fd00:1::2"), (AF_INET6, "::ffff:10.0.1.2")] {
            let remote: IpAddr = remote.parse().expect("an address");
            let answer = connection(family, remote);
            let datagram = datagram(&[(SOCK_DIAG_BY_FAMILY, &answer)]);
            let message = messages(&datagram).next().expect("a message");
            let id = InetResponseHeader::parse(message.payload()).expect("a connection").socket_id;
            assert_eq!(id.destination_address, remote);

            let destroy = encode(NLM_F_ACK, SockDiagDestroy::new(request(family, IPPROTO_TCP, id)));
            let message = messages(&destroy).next().expect("a message");
            assert_eq!((message.message_type(), message.flags()), (SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK));
            let (head, id) = message.payload().split_at(8);
            assert_eq!(head[..4], [family, IPPROTO_TCP, 0, 0]);
            assert_eq!(id, &answer[SOCKET_ID]);
        }
    }

    #[test]
    fn only_an_error_of_zero_is_an_acknowledgement() {
        assert!(is_ack(&datagram(&[(NLMSG_ERROR, &[0; 20])])));
        assert!(!is_ack(&datagram(&[(NLMSG_ERROR, &(-95_i32).to_ne_bytes())])));
        assert!(!is_ack(&[]));
    }
}
