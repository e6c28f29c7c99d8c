//! The only code of this crate that makes system calls.
//!
//! - `pins`: the file system that keeps maps and links alive;
//! - `maps`: typed maps, and the order in which they change;
//! - `links`: programs on links and on the cgroup;
//! - `sockets`: closing connections to what is gone.

mod cgroup;
mod links;
mod maps;
mod pins;
mod sockets;

use std::path::{Path, PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};

pub(crate) use links::Links;
pub(crate) use maps::Maps;
pub use pins::BPFFS;
pub(crate) use pins::Pins;
pub use sockets::close_connections;

/// The compiled programs. `cargo xtask ebpf` makes them from `ebpf/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/weft.bpf.o"));

/// Why the data plane is not as it shall be. Causes are sources, and no part of the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{path} is on no BPF file system, and mounting one at /sys/fs/bpf failed (mount it: mount -t bpf bpf /sys/fs/bpf)"
    )]
    NoBpffs { path: PathBuf, source: std::io::Error },
    #[error("no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup")]
    NoCgroup2,
    #[error(
        "loading the eBPF object (it takes Linux 6.1 or newer with BPF_SYSCALL, and root or CAP_BPF and CAP_NET_ADMIN)"
    )]
    Load(#[source] Box<EbpfError>),
    #[error("the eBPF object has no {kind} named {name}")]
    Missing { kind: &'static str, name: &'static str },
    #[error("eBPF program {name}")]
    Program { name: &'static str, source: Box<ProgramError> },
    #[error("eBPF map {name}")]
    Map { name: &'static str, source: Box<MapError> },
    #[error("pinning at {path}")]
    Pin { path: PathBuf, source: PinError },
    #[error("{what} {path}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("attachment of {program} cannot be pinned")]
    NotPinnable { program: &'static str, source: LinkError },
    #[error("attaching {program} to link {ifindex}")]
    Attach { program: &'static str, ifindex: u32, source: Box<ProgramError> },
}

/// What this machine lacks before the programs can be loaded at all. Mounts the BPF file system where it is missing.
pub fn lacking() -> Vec<Error> {
    [pins::provide_bpffs().err(), cgroup::root().err()].into_iter().flatten().collect()
}

/// Loads the programs, over the maps that an earlier daemon left if they have the same layout. Attaches nothing.
pub(crate) fn load(pins: &Pins) -> Result<(Ebpf, Maps, Links), Error> {
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(pins.maps())
        .load(OBJECT)
        .map_err(|source| Error::Load(Box::new(source)))?;
    let links = Links::open(&mut ebpf, pins.links())?;
    let maps = Maps::open(&mut ebpf)?;
    Ok((ebpf, maps, links))
}

/// Detaches every program that was attached from `pin_dir`, and removes all pins. Goes on past errors and returns the
/// first.
pub(crate) fn unload(pin_dir: &Path) -> Result<(), Error> {
    let detached = links::detach_all(&pins::links_dir(pin_dir));
    let removed = pins::remove(pin_dir);
    detached.and(removed)
}
