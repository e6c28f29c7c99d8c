//! TUN devices with several queues and offloads (Documentation/networking/tuntap.rst).
//!
//! The kernel hands over superpackets, and takes them, if the device says that it can segment them:
//! see [`VnetHeader`]. Linux 6.17 added superpackets of UDP tunnels.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::libc;
use rustix::{
    fs::{Mode, OFlags, open},
    io::{Errno, read, writev},
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

use crate::{
    error::Error,
    packet::{
        coalesce::Offloads,
        vnet::{GSO_TCPV4, GSO_UDP_TUNNEL_IPV6, NEEDS_CSUM, PLAIN_LEN, TUNNEL_LEN, VnetHeader},
    },
};

/// include/uapi/linux/if_tun.h; newer than the libc crate.
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x80;
const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;

const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
const UDP_TUNNEL: libc::c_uint = TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM;

/// What is asked of the device, the best first: the offloads, and the length of the vnet header.
/// The kernel refuses a set that has an offload it does not know.
const SETS: [(libc::c_uint, usize); 4] =
    [(TCP | UDP | UDP_TUNNEL, TUNNEL_LEN), (TCP | UDP, PLAIN_LEN), (TCP, PLAIN_LEN), (0, PLAIN_LEN)];

/// What may have to be added to the offset of the outer UDP header of a superpacket. Linux 6.17 and
/// 6.18 refuse offsets that have no room for an Ethernet header, which a TUN device has not
/// (virtio_net_hdr_tnl_to_skb, include/linux/virtio_net.h). The offset itself has no effect: the
/// kernel finds the UDP header by the IP header.
const OFFSETS: [u16; 2] = [0, 14];

/// One queue of a device. The device disappears with its last queue.
#[derive(Debug)]
pub(crate) struct Queue {
    fd: OwnedFd,
    vnet_len: usize,
}

/// Creates a device with this number of queues, in the network namespace of the calling thread. The
/// link is down.
pub(crate) fn create(name: &str, mtu: u32, queues: usize) -> Result<(Vec<Queue>, Offloads), Error> {
    let cannot_create = |source| Error::CreateTun { name: name.to_owned(), source };
    let attach = |extra: libc::c_int| {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| Error::OpenTun(errno.into()))?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE | extra;
        attach_queue(fd.as_fd(), name, flags).map_err(cannot_create)?;
        Ok::<OwnedFd, Error>(fd)
    };
    // The first must not attach to a device that exists.
    let first = attach(libc::IFF_TUN_EXCL)?;
    // The byte order of the vnet header.
    set_int(first.as_fd(), libc::TUNSETVNETLE, 1).map_err(cannot_create)?;
    let (vnet_len, flags) = negotiate(first.as_fd()).map_err(cannot_create)?;
    let first = Queue { fd: first, vnet_len };
    let udp_tunnel =
        if flags & UDP_TUNNEL == 0 { None } else { OFFSETS.into_iter().find(|at| first.takes_tunnels(*at)) };
    let offloads = Offloads { tcp: flags & TCP != 0, udp_tunnel };
    set_mtu(name, mtu).map_err(|source| Error::Mtu { name: name.to_owned(), mtu, source })?;
    let mut all = vec![first];
    for _ in 1..queues {
        all.push(Queue { fd: attach(0)?, vnet_len });
    }
    Ok((all, offloads))
}

/// Asks for the best set of offloads that the kernel has.
fn negotiate(fd: BorrowedFd<'_>) -> io::Result<(usize, libc::c_uint)> {
    let mut refused = io::Error::from(io::ErrorKind::Unsupported);
    for (flags, vnet_len) in SETS {
        let len = libc::c_int::try_from(vnet_len).map_err(io::Error::other)?;
        set_int(fd, libc::TUNSETVNETHDRSZ, len)?;
        match set_offload(fd, flags) {
            Ok(()) => return Ok((vnet_len, flags)),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

impl Queue {
    /// Whether the device takes superpackets of UDP tunnels, with `added` to the offset of the
    /// outer UDP header. The link must be down: then the kernel refuses a header that it does not
    /// understand with EINVAL, and any other packet with EIO.
    fn takes_tunnels(&self, added: u16) -> bool {
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4 | GSO_UDP_TUNNEL_IPV6,
            header_len: 110,
            gso_size: 10,
            csum_start: 90,
            csum_offset: 16,
            outer_transport: 40 + added,
            inner_network: 70,
        };
        // Only the headers are looked at, and of these only the version.
        let mut packet = [0; 200];
        packet[0] = 0x60;
        let bytes = VnetBytes::from(&header);
        let result = writev(&self.fd, &[IoSlice::new(&bytes.0[..self.vnet_len]), IoSlice::new(&packet)]);
        // Another program may have set the link up meanwhile: then the packet is dropped later.
        matches!(result, Ok(_) | Err(Errno::IO))
    }

    /// Reads a packet into `buffer`. Returns its vnet header, and where in `buffer` it is. `None`
    /// when there is no packet.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<(VnetHeader, std::ops::Range<usize>)>> {
        let len = match read(&self.fd, &mut *buffer) {
            Ok(len) => len,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let header = buffer.get(..self.vnet_len).and_then(VnetHeader::decode);
        Ok(header.filter(|_| len > self.vnet_len).map(|header| (header, self.vnet_len..len)))
    }

    /// Writes a packet, which is given in slices. The first one is left for the vnet header.
    pub(crate) fn write<'a>(&self, header: &'a VnetBytes, slices: &mut [IoSlice<'a>]) -> io::Result<()> {
        if let Some(first) = slices.first_mut() {
            *first = IoSlice::new(&header.0[..self.vnet_len]);
        }
        writev(&self.fd, slices)?;
        Ok(())
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An encoded vnet header, in its longer form.
#[derive(Debug)]
pub(crate) struct VnetBytes([u8; TUNNEL_LEN]);

impl From<&VnetHeader> for VnetBytes {
    fn from(header: &VnetHeader) -> Self {
        Self(header.encode())
    }
}

/// The structure that the requests for a link take, with its name.
fn request(name: &str) -> io::Result<libc::ifreq> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut ifr_name: [libc::c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    // The last octet stays zero.
    if name.len() >= ifr_name.len() {
        return Err(invalid());
    }
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).map_err(|_| invalid())?;
    }
    Ok(libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_slave: [0; libc::IFNAMSIZ] } })
}

#[expect(unsafe_code, reason = "no crate wraps TUNSETIFF")]
fn attach_queue(fd: BorrowedFd<'_>, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = request(name)?;
    let bits = u16::try_from(flags).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = bits.cast_signed();
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

#[expect(unsafe_code, reason = "no crate wraps the requests of TUN devices")]
fn set_int(fd: BorrowedFd<'_>, call: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one `int` through the pointer, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), call, &raw const value) })
}

#[expect(unsafe_code, reason = "no crate wraps TUNSETOFFLOAD")]
fn set_offload(fd: BorrowedFd<'_>, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument of this request is a number, not a pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

#[expect(unsafe_code, reason = "no crate wraps SIOCSIFMTU")]
fn set_mtu(name: &str, mtu: u32) -> io::Result<()> {
    // Any socket reaches the links of its namespace.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
