//! The error type of this crate: what failed, on which object, and what the operator can do.
//!
//! `kernel` makes these errors and the agent logs them. The text of an error never contains its
//! cause: the cause is the `source`, so a caller that prints the whole chain prints it once.

use std::{fmt, io, path::PathBuf};

use nix::errno::Errno;
use weft_model::error_chain;

/// Why links could not be read, configured or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a netlink socket in {namespace}")]
    Open { namespace: String, source: io::Error },
    #[error("cannot {verb} {object}{}", NetlinkHint(verb, source))]
    Netlink { verb: &'static str, object: String, source: io::Error },
    #[error("cannot {verb} {object}: the netlink socket is closed")]
    Closed { verb: &'static str, object: String },
    #[error("cannot set sysctl {key} to {value}{}", SysctlHint(key, source))]
    Sysctl { key: String, value: String, source: io::Error },
    #[error("cannot follow the changes of the node's links and addresses")]
    Watch(#[source] io::Error),
    #[error("cannot open the network namespace {}", path.display())]
    OpenNetns { path: PathBuf, source: io::Error },
    #[error("cannot enter the network namespace {} (weft needs root, with CAP_SYS_ADMIN)", path.display())]
    EnterNetns { path: PathBuf, source: io::Error },
    #[error("cannot start a thread for the network namespace {}", path.display())]
    NetnsThread { path: PathBuf, source: io::Error },
    #[error("cannot read the cookie of a network namespace (weft needs Linux 5.14 or later)")]
    Cookie(#[source] io::Error),
    #[error("the daemon is stopping")]
    Stopped,
    #[error("this node cannot encrypt: {0}")]
    NoWireGuard(String),
    #[error("cannot {verb} the WireGuard link {link}{}", WireGuardHint(source))]
    KernelWireGuard { verb: &'static str, link: String, source: io::Error },
    #[error("cannot open the WireGuard link {link}")]
    UserSpaceWireGuard { link: String, source: weft_wireguard::Error },
    #[error(
        "another program keeps changing weft's links (left to do: {0}): it can be systemd-networkd, a firewall or a tuning service; exclude weft-tun, weft-wg*, wv* and lo from it"
    )]
    Unsettled(String),
    #[error("cannot remove all links and sysctls of weft: {}", join(.0.iter().map(|error| error_chain(error))))]
    Teardown(Vec<Error>),
}

impl Error {
    /// Whether the network namespace of a task is gone: it goes with the last process of a
    /// container, a moment before the runtime says so.
    pub fn is_of_ended_task(&self) -> bool {
        matches!(self, Self::OpenNetns { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    pub(crate) fn netlink(verb: &'static str, object: impl fmt::Display, error: &rtnetlink::Error) -> Self {
        let object = object.to_string();
        match error {
            rtnetlink::Error::NetlinkError(message) => {
                Self::Netlink { verb, object, source: io::Error::from_raw_os_error(-message.raw_code()) }
            }
            rtnetlink::Error::RequestFailed => Self::Closed { verb, object },
            other => Self::Netlink { verb, object, source: io::Error::other(other.to_string()) },
        }
    }

    pub(crate) fn unsettled(left: impl IntoIterator<Item = impl fmt::Display>) -> Self {
        Self::Unsettled(join(left))
    }

    /// The errno that netlink returned, if it returned one.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

fn join(items: impl IntoIterator<Item = impl fmt::Display>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join("; ")
}

struct NetlinkHint<'a>(&'a &'static str, &'a io::Error);

impl fmt::Display for NetlinkHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.1.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => " (run weft as root, with CAP_NET_ADMIN, and do not disable IPv6)",
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => {
                " (the kernel does not support it: weft needs CONFIG_VXLAN, CONFIG_VETH and IPv6, without the boot option ipv6.disable=1)"
            }
            Some(Errno::EADDRINUSE) => {
                " (the UDP port of the tunnel is in use by another VXLAN device or program: find it with `ss -ulnp` and `ip -d link`; `weft swarm init --data-path-port` chooses another port for the cluster)"
            }
            Some(Errno::EEXIST) if *self.0 == "create" => {
                " (a link with that name exists and does not belong to weft: remove it)"
            }
            Some(Errno::ENOBUFS | Errno::ENOMEM) => " (the kernel is out of memory)",
            _ => "",
        };
        f.write_str(text)
    }
}

struct WireGuardHint<'a>(&'a io::Error);

impl fmt::Display for WireGuardHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => f.write_str(" (another program uses its UDP port: find it with `ss -ulnp`)"),
            _ => Ok(()),
        }
    }
}

struct SysctlHint<'a>(&'a str, &'a io::Error);

impl fmt::Display for SysctlHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                f.write_str(" (run weft as root, with a writable /proc/sys)")
            }
            io::ErrorKind::NotFound if self.0.starts_with("net/ipv6") => {
                f.write_str(" (weft needs IPv6: boot the kernel without ipv6.disable=1)")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn check(error: &Error, text: &str) {
        assert_eq!(error.to_string(), text);
        assert_eq!(error.source().map(ToString::to_string), Some(io::Error::from(Errno::EPERM).to_string()));
    }

    #[test]
    fn the_text_does_not_contain_the_cause() {
        let source = || io::Error::from(Errno::EPERM);
        let hint = "run weft as root, with CAP_NET_ADMIN, and do not disable IPv6";
        let netlink = Error::Netlink { verb: "create", object: "the link wv".to_owned(), source: source() };
        check(&netlink, &format!("cannot create the link wv ({hint})"));
        let netns = Error::OpenNetns { path: "/run/x".into(), source: source() };
        check(&netns, "cannot open the network namespace /run/x");
        let (key, value) = ("net/ipv4/x".to_owned(), "1".to_owned());
        let sysctl = Error::Sysctl { key, value, source: source() };
        check(&sysctl, "cannot set sysctl net/ipv4/x to 1 (run weft as root, with a writable /proc/sys)");
    }

    #[test]
    fn a_failed_teardown_reports_every_error_with_its_cause() {
        let open = |path: &str| Error::OpenNetns { path: path.into(), source: Errno::ENOENT.into() };
        let text = Error::Teardown(vec![open("/run/a"), open("/run/b")]).to_string();
        for path in ["/run/a", "/run/b"] {
            let cause = io::Error::from(Errno::ENOENT);
            assert!(text.contains(&format!("cannot open the network namespace {path}: {cause}")), "{text}");
        }
    }
}
