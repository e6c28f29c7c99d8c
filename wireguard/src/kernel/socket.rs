//! UDP sockets that send and receive many datagrams with one call: `sendmmsg` and `recvmmsg`, where
//! each message is a train of equal datagrams (UDP_SEGMENT and UDP_GRO, udp(7)).
//!
//! A socket serves IPv4 and IPv6. On machines without IPv6 it serves IPv4.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    time::Duration,
};

use nix::libc;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with,
        sockopt::{
            Timeout, set_ipv6_v6only, set_socket_recv_buffer_size_force, set_socket_reuseport,
            set_socket_send_buffer_size_force, set_socket_timeout,
        },
    },
};

/// Room for a burst of trains: one that is received takes about 130 KiB of it.
const BUFFER_LEN: usize = 8 << 20;
/// A full send buffer holds the sender back, but not longer than this: then the packets are
/// dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// The kernel sends at most this many datagrams in a train (UDP_MAX_SEGMENTS; 128 since Linux 6.9).
const MAX_TRAIN: usize = 64;
/// A train has at most the length of one datagram: 65,535 octets, with the headers of IPv6 and UDP.
const MAX_TRAIN_LEN: usize = 65_535 - 48;
/// The longest datagram that can be received.
const MAX_DATAGRAM: usize = 65_535;
/// How many messages one call sends or receives.
const SEND_MESSAGES: usize = 64;
const RECEIVE_MESSAGES: usize = 8;
const SEND_LEN: usize = 256 * 1024;

/// A bound UDP socket. It belongs to the network namespace in which it was made.
#[derive(Debug)]
pub(crate) struct UdpSocket {
    fd: OwnedFd,
    is_v6: bool,
}

/// Opens this number of sockets on one port of all addresses. The kernel gives all datagrams of a
/// sender to the same socket, so that their order is kept.
///
/// # Errors
/// When another socket has the port.
pub(crate) fn open(port: u16, count: usize) -> io::Result<(Vec<UdpSocket>, u16)> {
    // Without SO_REUSEPORT, binding fails if any other socket has the port.
    let exclusive = UdpSocket::open(port, false)?;
    let port = exclusive.port()?;
    drop(exclusive);
    let sockets = (0..count).map(|_| UdpSocket::open(port, true)).collect::<io::Result<_>>()?;
    Ok((sockets, port))
}

impl UdpSocket {
    fn open(port: u16, shares_port: bool) -> io::Result<Self> {
        let new = |family| socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        let (fd, is_v6) = match new(AddressFamily::INET6) {
            Ok(fd) => (fd, true),
            Err(Errno::AFNOSUPPORT) => (new(AddressFamily::INET)?, false),
            Err(errno) => return Err(errno.into()),
        };
        set_socket_reuseport(&fd, shares_port)?;
        if is_v6 {
            set_ipv6_v6only(&fd, false)?;
        }
        set_socket_recv_buffer_size_force(&fd, BUFFER_LEN)?;
        set_socket_send_buffer_size_force(&fd, BUFFER_LEN)?;
        set_socket_timeout(&fd, Timeout::Send, Some(SEND_TIMEOUT))?;
        set_gro(fd.as_fd())?;
        let any = if is_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        bind(&fd, &SocketAddr::new(any, port))?;
        Ok(Self { fd, is_v6 })
    }

    fn port(&self) -> io::Result<u16> {
        let address = SocketAddr::try_from(getsockname(&self.fd)?)?;
        Ok(address.port())
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A train of datagrams to one address.
#[derive(Debug, Clone, Copy)]
struct Train {
    to: SocketAddr,
    start: usize,
    len: usize,
    /// The length of each datagram; the last may be shorter.
    size: usize,
    count: usize,
    /// Whether the last one is shorter, so that no other may follow.
    is_closed: bool,
}

/// Datagrams that are sent together.
pub(crate) struct SendBatch {
    data: Vec<u8>,
    used: usize,
    trains: Vec<Train>,
    raw: RawMessages,
}

impl SendBatch {
    pub(crate) fn new() -> Self {
        Self {
            data: vec![0; SEND_LEN],
            used: 0,
            trains: Vec::with_capacity(SEND_MESSAGES),
            raw: RawMessages::new(SEND_MESSAGES),
        }
    }

    /// Whether a datagram of this length can be pushed. Otherwise the batch must be sent first.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.trains.len() < SEND_MESSAGES && self.data.len() - self.used >= len
    }

    /// Adds a datagram that `write` writes to the beginning of a buffer, returning its length.
    /// `None` adds nothing.
    pub(crate) fn push(&mut self, to: SocketAddr, write: impl FnOnce(&mut [u8]) -> Option<usize>) {
        let start = self.used;
        let Some(len) = write(&mut self.data[start..]) else { return };
        self.used += len;
        if let Some(train) = self.trains.last_mut()
            && train.to == to
            && !train.is_closed
            && len <= train.size
            && train.count < MAX_TRAIN
            && train.len + len <= MAX_TRAIN_LEN
        {
            train.len += len;
            train.count += 1;
            train.is_closed = len < train.size;
            return;
        }
        self.trains.push(Train { to, start, len, size: len, count: 1, is_closed: false });
    }

    /// Sends all datagrams, and forgets them. Those that the network does not take are dropped.
    pub(crate) fn send(&mut self, socket: &UdpSocket) {
        let mut next = 0;
        while next < self.trains.len() {
            let trains = &self.trains[next..];
            match self.raw.send(socket, &self.data, trains) {
                Ok(sent) => next += sent.max(1),
                Err(error) => {
                    let train = trains[0];
                    // The route may have a smaller MTU, or the link no checksum offload.
                    let is_refused = matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO));
                    if train.count > 1 && is_refused {
                        self.send_singly(socket, train);
                    } else {
                        tracing::debug!(%error, to = %train.to, "cannot send datagrams");
                    }
                    next += 1;
                }
            }
        }
        self.trains.clear();
        self.used = 0;
    }

    fn send_singly(&mut self, socket: &UdpSocket, train: Train) {
        for start in (0..train.len).step_by(train.size) {
            let len = train.size.min(train.len - start);
            let single = Train { start: train.start + start, len, count: 1, ..train };
            if let Err(error) = self.raw.send(socket, &self.data, &[single]) {
                tracing::debug!(%error, to = %train.to, "cannot send a datagram");
            }
        }
    }
}

/// Received trains.
pub(crate) struct ReceiveBatch {
    data: Vec<u8>,
    received: usize,
    raw: RawMessages,
}

impl ReceiveBatch {
    pub(crate) fn new() -> Self {
        Self { data: vec![0; RECEIVE_MESSAGES * MAX_DATAGRAM], received: 0, raw: RawMessages::new(RECEIVE_MESSAGES) }
    }

    /// Receives what has arrived, without waiting. Returns whether there may be more.
    pub(crate) fn receive(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        self.received = match self.raw.receive(socket, &mut self.data) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => 0,
            Err(error) => return Err(error),
        };
        Ok(self.received == RECEIVE_MESSAGES)
    }

    /// The sender and the datagrams of each train.
    pub(crate) fn trains(&self) -> impl Iterator<Item = (SocketAddr, std::slice::Chunks<'_, u8>)> {
        self.raw.headers[..self.received].iter().enumerate().filter_map(|(index, header)| {
            let len = usize::try_from(header.msg_len).ok()?;
            let start = index * MAX_DATAGRAM;
            let data = self.data.get(start..start + len)?;
            let size = self.raw.segment_size(index).unwrap_or(len).max(1);
            let is_whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
            let from = self.raw.names[index].address().filter(|_| is_whole)?;
            Some((from, data.chunks(size)))
        })
    }
}

/// The address of a datagram, as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    const LEN: libc::socklen_t = size_of::<Self>() as libc::socklen_t;

    fn empty() -> Self {
        Self::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0))
    }

    fn new(address: SocketAddr, is_v6: bool) -> Self {
        match address {
            SocketAddr::V4(address) if !is_v6 => Self {
                v4: libc::sockaddr_in {
                    sin_family: FAMILY_V4,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V4(address) => {
                Self::from(SocketAddrV6::new(address.ip().to_ipv6_mapped(), address.port(), 0, 0))
            }
            SocketAddr::V6(address) => Self::from(address),
        }
    }

    #[expect(unsafe_code, reason = "reads the field of a C union that its tag names")]
    fn address(&self) -> Option<SocketAddr> {
        // SAFETY: both types begin with the family, and every value of this type was made or
        // written as one of them.
        let family = unsafe { self.v4.sin_family };
        match family {
            FAMILY_V4 => {
                // SAFETY: the family says that this field was written.
                let name = unsafe { self.v4 };
                let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(name.sin_port)))
            }
            FAMILY_V6 => {
                // SAFETY: the family says that this field was written.
                let name = unsafe { self.v6 };
                let (ip, port) = (Ipv6Addr::from(name.sin6_addr.s6_addr), u16::from_be(name.sin6_port));
                Some(match ip.to_ipv4_mapped() {
                    Some(ip) => SocketAddr::new(IpAddr::V4(ip), port),
                    None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id)),
                })
            }
            _ => None,
        }
    }
}

const FAMILY_V4: libc::sa_family_t = libc::AF_INET as libc::sa_family_t;
const FAMILY_V6: libc::sa_family_t = libc::AF_INET6 as libc::sa_family_t;

impl From<SocketAddrV6> for Name {
    fn from(address: SocketAddrV6) -> Self {
        Self {
            v6: libc::sockaddr_in6 {
                sin6_family: FAMILY_V6,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            },
        }
    }
}

/// Room for one control message: a `cmsghdr` and an `int`, aligned as `CMSG_SPACE` asks.
const CONTROL_LEN: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// The arrays that `sendmmsg` and `recvmmsg` work on. All pointers in them are set before each
/// call, to the elements with the same index and to the data of the caller.
struct RawMessages {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    names: Vec<Name>,
    controls: Vec<Control>,
}

// SAFETY: the pointers are only used during a call that has set them.
#[expect(unsafe_code, reason = "the pointers to own elements make the type !Send")]
unsafe impl Send for RawMessages {}

impl RawMessages {
    fn new(count: usize) -> Self {
        let header = libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_name: ptr::null_mut(),
                msg_namelen: 0,
                msg_iov: ptr::null_mut(),
                msg_iovlen: 1,
                msg_control: ptr::null_mut(),
                msg_controllen: 0,
                msg_flags: 0,
            },
            msg_len: 0,
        };
        Self {
            headers: vec![header; count],
            slices: vec![libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; count],
            names: vec![Name::empty(); count],
            controls: vec![Control([0; CONTROL_LEN]); count],
        }
    }

    /// Points the header with this index to its name and to `len` octets at `data`.
    fn point(&mut self, index: usize, data: *mut libc::c_void, len: usize) {
        self.slices[index] = libc::iovec { iov_base: data, iov_len: len };
        let header = &mut self.headers[index].msg_hdr;
        header.msg_name = (&raw mut self.names[index]).cast();
        header.msg_namelen = Name::LEN;
        header.msg_iov = &raw mut self.slices[index];
        header.msg_control = ptr::null_mut();
        header.msg_controllen = 0;
        header.msg_flags = 0;
    }

    /// Sends trains. Returns how many were sent: the first one that was not may be tried again.
    fn send(&mut self, socket: &UdpSocket, data: &[u8], trains: &[Train]) -> io::Result<usize> {
        let trains = &trains[..trains.len().min(self.headers.len())];
        for (index, train) in trains.iter().enumerate() {
            self.names[index] = Name::new(train.to, socket.is_v6);
            let octets = &data[train.start..train.start + train.len];
            self.point(index, octets.as_ptr().cast_mut().cast(), octets.len());
            if !socket.is_v6 {
                self.headers[index].msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            if train.count > 1 {
                self.set_segment_size(index, train.size);
            }
        }
        self.send_raw(socket, trains.len())
    }

    #[expect(unsafe_code, reason = "no crate wraps sendmmsg with UDP_SEGMENT without allocating")]
    fn send_raw(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        let len = libc::c_uint::try_from(count).map_err(io::Error::other)?;
        // SAFETY: `send` has pointed the first `count` headers to elements of this value and to
        // data that it borrows. The kernel only reads the names and the data.
        let sent = unsafe { libc::sendmmsg(socket.fd.as_raw_fd(), self.headers.as_mut_ptr(), len, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives one train into each part of `data`. Returns how many.
    #[expect(unsafe_code, reason = "no crate wraps recvmmsg with UDP_GRO without allocating")]
    fn receive(&mut self, socket: &UdpSocket, data: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        for part in data.chunks_exact_mut(MAX_DATAGRAM).take(self.headers.len()) {
            self.point(count, part.as_mut_ptr().cast(), part.len());
            let header = &mut self.headers[count].msg_hdr;
            header.msg_control = self.controls[count].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN;
            count += 1;
        }
        let len = libc::c_uint::try_from(count).map_err(io::Error::other)?;
        let headers = self.headers.as_mut_ptr();
        // SAFETY: the first `count` headers point to elements of this value and to disjoint parts
        // of `data`, with their lengths. All outlive the call.
        let received =
            unsafe { libc::recvmmsg(socket.fd.as_raw_fd(), headers, len, libc::MSG_DONTWAIT, ptr::null_mut()) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    #[expect(unsafe_code, reason = "writes a control message as cmsg(3) says")]
    fn set_segment_size(&mut self, index: usize, size: usize) {
        let size = u16::try_from(size).unwrap_or(u16::MAX);
        let header = &mut self.headers[index].msg_hdr;
        header.msg_control = self.controls[index].0.as_mut_ptr().cast();
        // SAFETY: the macros only compute. The control buffer is aligned, and longer than
        // `CMSG_SPACE(2)`, so that header and data of the first message are inside of it.
        unsafe {
            header.msg_controllen = libc::CMSG_SPACE(size_of::<u16>() as libc::c_uint) as _;
            let message = libc::CMSG_FIRSTHDR(header);
            (*message).cmsg_level = libc::SOL_UDP;
            (*message).cmsg_type = libc::UDP_SEGMENT;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<u16>() as libc::c_uint) as _;
            libc::CMSG_DATA(message).cast::<u16>().write_unaligned(size);
        }
    }

    /// The length of the datagrams of a received train. `None` for a single datagram.
    #[expect(unsafe_code, reason = "reads a control message as cmsg(3) says")]
    fn segment_size(&self, index: usize) -> Option<usize> {
        let header = &self.headers[index].msg_hdr;
        // SAFETY: the kernel has written the control messages and their total length into the
        // control buffer of this index, which `header` points to.
        unsafe {
            let message = libc::CMSG_FIRSTHDR(header);
            let is_size =
                !message.is_null() && (*message).cmsg_level == libc::SOL_UDP && (*message).cmsg_type == libc::UDP_GRO;
            let size = is_size.then(|| libc::CMSG_DATA(message).cast::<libc::c_int>().read_unaligned());
            size.and_then(|size| usize::try_from(size).ok())
        }
    }
}

#[expect(unsafe_code, reason = "no crate wraps UDP_GRO")]
fn set_gro(fd: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one `int`, which outlives the call.
    let result = unsafe {
        let len = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, (&raw const on).cast(), len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket on a loopback address, and the address.
    fn bound() -> io::Result<(UdpSocket, SocketAddr)> {
        let (mut sockets, port) = open(0, 1)?;
        let socket = sockets.pop().ok_or(io::ErrorKind::NotFound)?;
        Ok((socket, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)))
    }

    fn receive(socket: &UdpSocket, count: usize) -> io::Result<Vec<(SocketAddr, Vec<u8>)>> {
        let mut received = Vec::new();
        let mut batch = ReceiveBatch::new();
        while received.len() < count {
            let mut fds = [rustix::event::PollFd::new(socket, rustix::event::PollFlags::IN)];
            let timeout = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&timeout))?, 1, "only {} datagrams", received.len());
            batch.receive(socket)?;
            for (from, datagrams) in batch.trains() {
                received.extend(datagrams.map(|datagram| (from, datagram.to_vec())));
            }
        }
        Ok(received)
    }

    #[test]
    fn datagrams_arrive_as_they_were_pushed() -> io::Result<()> {
        let ((a, from), (b, to)) = (bound()?, bound()?);
        let other = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), to.port());
        // Trains that end with a shorter datagram, are full, or go to another address.
        let lengths = [1200, 1200, 300, 1200, 5, 5, 5, 0xffff - 28].into_iter().chain([700; 70]);
        let mut sent = Vec::new();
        let mut batch = SendBatch::new();
        for (number, len) in lengths.enumerate() {
            let datagram = vec![u8::try_from(number).unwrap_or(0); len];
            assert!(batch.has_room(len), "room for datagram {number}");
            batch.push(if number == 4 { other } else { to }, |buffer| {
                buffer[..len].copy_from_slice(&datagram);
                Some(len)
            });
            sent.push(datagram);
        }
        batch.push(to, |_| None);
        batch.send(&a);
        let received = receive(&b, sent.len())?;
        assert_eq!(received[0].0, from);
        let received: Vec<Vec<u8>> = received.into_iter().map(|(_, datagram)| datagram).collect();
        assert!(received == sent, "{:?}", received.iter().map(Vec::len).collect::<Vec<_>>());
        Ok(())
    }

    #[test]
    fn a_port_in_use_is_refused() -> io::Result<()> {
        let (sockets, port) = open(0, 2)?;
        assert_eq!(sockets.len(), 2);
        assert_eq!(open(port, 1).map(|_| ()).map_err(|error| error.kind()), Err(io::ErrorKind::AddrInUse));
        Ok(())
    }
}
