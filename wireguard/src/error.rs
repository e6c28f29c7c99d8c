//! The error type of this crate: what failed, on which device, and what the operator can do.

use std::io;

/// Why a device could not be opened. The text never contains its cause, which is the `source`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} cannot be the name of a link: it must have 1 to 15 octets, without / and spaces")]
    Name(String),
    #[error("a WireGuard device needs at least one worker")]
    NoWorkers,
    #[error("cannot open /dev/net/tun: the kernel must have TUN, and weft needs root")]
    OpenTun(#[source] io::Error),
    #[error("cannot create the TUN device {name}{}", TunHint(source))]
    CreateTun { name: String, source: io::Error },
    #[error("cannot set the MTU of {name} to {mtu}")]
    Mtu { name: String, mtu: u32, source: io::Error },
    #[error("cannot listen on UDP port {port}{}", PortHint(source))]
    Listen { port: u16, source: io::Error },
    #[error("cannot wait for packets of {name}")]
    Wait { name: String, source: io::Error },
    #[error("cannot start a thread for {name}")]
    Thread { name: String, source: io::Error },
}

struct TunHint<'a>(&'a io::Error);

impl std::fmt::Display for TunHint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.kind() {
            io::ErrorKind::ResourceBusy | io::ErrorKind::InvalidInput | io::ErrorKind::AlreadyExists => {
                f.write_str(" (a link of this name may exist: remove it)")
            }
            io::ErrorKind::PermissionDenied => f.write_str(" (weft needs root, with CAP_NET_ADMIN)"),
            _ => Ok(()),
        }
    }
}

struct PortHint<'a>(&'a io::Error);

impl std::fmt::Display for PortHint<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.kind() {
            io::ErrorKind::AddrInUse => f.write_str(" (another program or WireGuard device uses it)"),
            _ => Ok(()),
        }
    }
}
