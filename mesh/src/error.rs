//! The error type of this crate: what failed, on which object, and what the operator can do.
//!
//! `kernel` makes these errors and the agent logs them. The text of an error never contains its
//! cause: the cause is the `source`, so a caller that prints the whole chain prints it once.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use weft_model::error_chain;

/// Why the data plane could not be read, programmed or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} is not on a BPF file system (run `mount -t bpf bpf /sys/fs/bpf`)", path.display())]
    NoBpffs { path: PathBuf, source: io::Error },
    #[error("no cgroup2 hierarchy is mounted (run `mount -t cgroup2 cgroup2 /sys/fs/cgroup`)")]
    NoCgroup2,
    #[error(
        "cannot load the eBPF object (weft needs Linux 6.1 or later with CONFIG_BPF_SYSCALL, and root or CAP_BPF and CAP_NET_ADMIN)"
    )]
    Load(#[source] Box<EbpfError>),
    #[error("the eBPF object has no {kind} named {name} (rebuild it with `cargo xtask ebpf`)")]
    Missing { kind: &'static str, name: &'static str },
    #[error("cannot use eBPF program {name}")]
    Program { name: &'static str, source: Box<ProgramError> },
    #[error("cannot use eBPF map {name}")]
    Map { name: &'static str, source: Box<MapError> },
    #[error("cannot attach {program} to link {ifindex}")]
    Attach { program: &'static str, ifindex: u32, source: Box<ProgramError> },
    #[error("cannot attach names_out to lo in {}", netns.display())]
    AttachNames { netns: PathBuf, source: Box<ProgramError> },
    #[error("cannot pin the attachment of {program}")]
    NotPinnable { program: &'static str, source: LinkError },
    #[error("cannot pin {}", path.display())]
    Pin { path: PathBuf, source: PinError },
    #[error("cannot {verb} {}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {verb} connections by sock_diag")]
    Sockets { verb: &'static str, source: io::Error },
    #[error("cannot remove all programs and maps of weft: {}", .0.iter().map(|error| error_chain(error)).collect::<Vec<_>>().join("; "))]
    Teardown(Vec<Error>),
}
