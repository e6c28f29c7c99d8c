//! What the kernel refuses, and what to do about it.

use std::{fmt, io};

use nix::errno::Errno;
use weft_model::TUNNEL_PORT;

use crate::netns::NetnsError;

/// A refusal of the kernel. Causes are sources, and no part of the text.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("cannot open a netlink socket in {namespace}")]
    Open { namespace: String, source: io::Error },
    #[error("cannot {verb} {object}{}", Hint(verb, source))]
    Netlink { verb: &'static str, object: String, source: io::Error },
    #[error("cannot {verb} {object}: the netlink socket closed")]
    Closed { verb: &'static str, object: String },
    #[error("cannot set {key} to {value}{}", SysctlHint(key, source))]
    Sysctl { key: String, value: String, source: io::Error },
    #[error("cannot follow the node's links and addresses")]
    Watch(#[source] io::Error),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error("the program is stopping")]
    Stopped,
}

impl KernelError {
    pub(crate) fn netlink(verb: &'static str, object: impl fmt::Display, error: &rtnetlink::Error) -> Self {
        let object = object.to_string();
        match error {
            rtnetlink::Error::NetlinkError(refusal) => {
                Self::Netlink { verb, object, source: io::Error::from_raw_os_error(-refusal.raw_code()) }
            }
            rtnetlink::Error::RequestFailed => Self::Closed { verb, object },
            other => Self::Netlink { verb, object, source: io::Error::other(other.to_string()) },
        }
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink { source, .. } => source.raw_os_error().map(Errno::from_raw),
            _ => None,
        }
    }
}

struct Hint<'a>(&'a &'static str, &'a io::Error);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.1.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => " (run as root, with CAP_NET_ADMIN; and IPv6 must not be disabled)",
            Some(Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT) => {
                " (the kernel lacks it: weft needs CONFIG_VXLAN, CONFIG_VETH and IPv6, not switched off by ipv6.disable=1)"
            }
            Some(Errno::EADDRINUSE) => {
                return write!(
                    f,
                    " (UDP port {TUNNEL_PORT} is taken: another VXLAN device or program uses it; `ss -ulnp` and `ip -d link` show it)"
                );
            }
            Some(Errno::EEXIST) if *self.0 == "create" => {
                " (a link of that name is there and is not weft's: remove it)"
            }
            Some(Errno::ENOBUFS | Errno::ENOMEM) => " (the kernel is out of memory)",
            _ => "",
        };
        f.write_str(text)
    }
}

struct SysctlHint<'a>(&'a str, &'a io::Error);

impl fmt::Display for SysctlHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                f.write_str(" (run as root, with /proc/sys writable)")
            }
            io::ErrorKind::NotFound if self.0.starts_with("net/ipv6") => {
                f.write_str(" (weft needs IPv6 in the kernel: boot without ipv6.disable=1)")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    fn check(error: &dyn Error, text: &str) {
        assert_eq!(error.to_string(), text);
        assert_eq!(error.source().map(ToString::to_string), Some(io::Error::from(Errno::EPERM).to_string()));
    }

    #[test]
    fn a_cause_is_a_source_and_no_part_of_the_text() {
        let source = || io::Error::from(Errno::EPERM);
        let hint = "run as root, with CAP_NET_ADMIN; and IPv6 must not be disabled";
        let refused = KernelError::Netlink { verb: "create", object: "the link wv".to_owned(), source: source() };
        check(&refused, &format!("cannot create the link wv ({hint})"));
        let netns = NetnsError::Open { path: "/run/x".into(), source: source() };
        check(&KernelError::from(netns), "cannot open the network namespace /run/x");
        let (key, value) = ("net/ipv4/x".to_owned(), "1".to_owned());
        let sysctl = KernelError::Sysctl { key, value, source: source() };
        check(&sysctl, "cannot set net/ipv4/x to 1 (run as root, with /proc/sys writable)");
    }
}
