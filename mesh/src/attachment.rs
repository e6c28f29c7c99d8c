//! Where a program is attached, and the name of the pin that keeps it attached. Pure.
//!
//! [`crate::desired`] computes the attachments that must exist; `kernel` reads and makes them.
//! Invariant: the name of a pin identifies its attachment, so a new daemon finds the attachments of
//! an earlier one.

/// A program for network links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Of an uplink with Ethernet.
    UplinkIn,
    /// Of an uplink without Ethernet.
    UplinkInL3,
    /// Of a WireGuard link of weft.
    WireGuardIn,
    TunnelIn,
    TaskOut,
}

impl Hook {
    pub const ALL: [Self; 5] = [Self::UplinkIn, Self::UplinkInL3, Self::WireGuardIn, Self::TunnelIn, Self::TaskOut];

    /// The name of the program in the eBPF object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::UplinkIn => "uplink_in",
            Self::UplinkInL3 => "uplink_in_l3",
            Self::WireGuardIn => "wireguard_in",
            Self::TunnelIn => "tunnel_in",
            Self::TaskOut => "task_out",
        }
    }
}

/// The names of the programs for sockets. All of them are attached to the root of the cgroup2
/// hierarchy.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeername4",
    "sock_getpeername6",
];

/// The program that answers questions about names.
pub const NAMES_PROGRAM: &str = "names_out";

/// A program and where it is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attachment {
    /// To the ingress of the link with this index, in the node's namespace.
    Link { hook: Hook, ifindex: u32 },
    /// To the root of the cgroup2 hierarchy: one of [`SOCKET_PROGRAMS`].
    Cgroup(&'static str),
    /// [`NAMES_PROGRAM`] to the egress of `lo`, in a task's network namespace.
    Names {
        /// `SO_NETNS_COOKIE` of the namespace. The kernel uses each cookie once.
        netns_cookie: u64,
        /// The class of the filter, by which the program knows the task.
        class: u16,
    },
}

impl Attachment {
    /// The file name of this attachment's pin.
    pub fn pin(self) -> String {
        match self {
            Self::Link { hook, ifindex } => format!("{}-{ifindex}", hook.program()),
            Self::Cgroup(program) => program.to_owned(),
            Self::Names { netns_cookie, class } => format!("{NAMES_PROGRAM}-{netns_cookie}-{class}"),
        }
    }

    /// The attachment with the pin `name`. `None` if `name` is not the name of a pin.
    pub fn from_pin(name: &str) -> Option<Self> {
        if let Some(program) = SOCKET_PROGRAMS.into_iter().find(|program| *program == name) {
            return Some(Self::Cgroup(program));
        }
        if let Some(of_task) = name.strip_prefix(NAMES_PROGRAM) {
            let (netns_cookie, class) = of_task.strip_prefix('-')?.split_once('-')?;
            return Some(Self::Names { netns_cookie: netns_cookie.parse().ok()?, class: class.parse().ok()? });
        }
        let (program, ifindex) = name.rsplit_once('-')?;
        let hook = Hook::ALL.into_iter().find(|hook| hook.program() == program)?;
        Some(Self::Link { hook, ifindex: ifindex.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_pin_identifies_its_attachment() {
        let links = Hook::ALL.map(|hook| Attachment::Link { hook, ifindex: 17 });
        let names = Attachment::Names { netns_cookie: u64::MAX, class: 9 };
        for attachment in links.into_iter().chain(SOCKET_PROGRAMS.map(Attachment::Cgroup)).chain([names]) {
            assert_eq!(Attachment::from_pin(&attachment.pin()), Some(attachment));
        }
        for name in [
            "sock_connect4-new",
            "sock_other",
            "uplink_in",
            "uplink_in-",
            "other-3",
            "names_out-1",
            "names_out-1-x",
            "",
        ] {
            assert_eq!(Attachment::from_pin(name), None, "{name}");
        }
    }
}
