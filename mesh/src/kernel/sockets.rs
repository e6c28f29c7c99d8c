//! Closing sockets whose other end is gone for good, so that programs learn it at once and not at their next packet:
//! sock_diag(7) lists the connections of a network namespace, and destroys those that are named.

use std::{collections::BTreeSet, io, net::IpAddr};

use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};
use weft_ebpf_common::Addr;

use crate::tables::addr;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// linux/netlink.h, linux/sock_diag.h.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;

/// Every TCP state (net/tcp_states.h) in which a peer matters: not TIME_WAIT (6), CLOSE (7) and LISTEN (10). A connected
/// UDP socket counts as established.
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);

/// `struct inet_diag_sockid`, as the kernel gives it and takes it back: ports, addresses, interface, cookie.
type SocketId = [u8; 48];
const REQUEST: usize = 8 + size_of::<SocketId>();

/// Closes every connection of this thread's network namespace to one of these addresses, with `ECONNABORTED`. Returns
/// how many there were.
///
/// # Errors
///
/// Those of the netlink socket. A kernel without `INET_DIAG_DESTROY` closes none.
pub fn close_connections(gone: &BTreeSet<IpAddr>) -> io::Result<usize> {
    let gone: BTreeSet<Addr> = gone.iter().map(|ip| addr(*ip)).collect();
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let mut closed = 0;
    for (family, protocol) in [(AF_INET, TCP), (AF_INET6, TCP), (AF_INET, UDP), (AF_INET6, UDP)] {
        for id in connections(&socket, family, protocol, &gone)? {
            socket.send(&message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, family, protocol, &id), 0)?;
            closed += usize::from(acked(&socket.recv_from_full()?.0));
        }
    }
    Ok(closed)
}

/// The connections of one family and protocol to these addresses.
fn connections(socket: &Socket, family: u8, protocol: u8, gone: &BTreeSet<Addr>) -> io::Result<Vec<SocketId>> {
    socket.send(&message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, family, protocol, &[0; 48]), 0)?;
    let mut found = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        for (kind, body) in messages(&answer) {
            match kind {
                NLMSG_DONE | NLMSG_ERROR => return Ok(found),
                _ => found.extend(socket_id(body).filter(|id| gone.contains(&remote(family, id)))),
            }
        }
    }
}

/// A request about sockets: `struct inet_diag_req_v2` behind the netlink header.
fn message(kind: u16, flags: u16, family: u8, protocol: u8, id: &SocketId) -> Vec<u8> {
    let length = (HEADER + REQUEST) as u32;
    let mut bytes = Vec::with_capacity(HEADER + REQUEST);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence and port: one request at a time on a socket of its own.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol, 0, 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// Kind and body of every message in a datagram; a truncated one ends the list.
fn messages(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    while let Some((length, kind)) = header(bytes)
        && let Some(body) = bytes.get(HEADER..length)
    {
        messages.push((kind, body));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((usize::try_from(length).ok()?, kind))
}

/// Of a `struct inet_diag_msg`, where four bytes stand before it.
fn socket_id(body: &[u8]) -> Option<SocketId> {
    body.get(4..4 + size_of::<SocketId>())?.try_into().ok()
}

/// The other end's address: behind two ports and the socket's own address, four words each.
fn remote(family: u8, id: &SocketId) -> Addr {
    let word = |i: usize| u32::from_ne_bytes([id[20 + 4 * i], id[21 + 4 * i], id[22 + 4 * i], id[23 + 4 * i]]);
    if family == AF_INET { Addr::from_v4_be(word(0)) } else { Addr { words_be: [word(0), word(1), word(2), word(3)] } }
}

/// An error of zero is an acknowledgement.
fn acked(answer: &[u8]) -> bool {
    messages(answer).first().is_some_and(|(kind, body)| *kind == NLMSG_ERROR && body.starts_with(&[0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(messages: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (kind, body) in messages {
            bytes.extend(((HEADER + body.len()) as u32).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(*body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn messages_are_taken_apart() {
        let bytes = datagram(&[(20, &[1, 2, 3]), (3, &[0; 4])]);
        assert_eq!(messages(&bytes), [(20, &[1, 2, 3][..]), (3, &[0; 4][..])]);
        for broken in [&bytes[..10], &bytes[..18], &[][..]] {
            assert!(messages(broken).is_empty());
        }
        assert!(messages(&[0; 64]).is_empty());
    }

    #[test]
    fn the_other_end_is_found_in_both_families() {
        let mut id = [0; 48];
        id[20..24].copy_from_slice(&[10, 0, 1, 2]);
        assert_eq!(remote(AF_INET, &id), addr(IpAddr::from([10, 0, 1, 2])));
        let v6: IpAddr = "fd00:1::2".parse().expect("an address");
        id[20..36].copy_from_slice(&addr(v6).octets());
        assert_eq!(remote(AF_INET6, &id), addr(v6));
    }

    #[test]
    fn only_an_error_of_zero_is_an_acknowledgement() {
        assert!(acked(&datagram(&[(NLMSG_ERROR, &[0; 20])])));
        assert!(!acked(&datagram(&[(NLMSG_ERROR, &(-95_i32).to_ne_bytes())])));
        assert!(!acked(&[]));
    }
}
