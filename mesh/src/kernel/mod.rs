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

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};
use weft_model::NodePlan;

use crate::{
    Counters, LocalFacts,
    desired::desired,
    diff::{Changes, diff},
    tables::ip,
};
use links::Links;
use maps::Maps;
pub use pins::BPFFS;
use pins::Pins;
pub use sockets::close_connections;

/// The compiled programs. `cargo xtask ebpf` makes them from `ebpf/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/weft.bpf.o"));

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{path} is on no BPF file system, and mounting one at /sys/fs/bpf failed: {source}; mount it: mount -t bpf bpf /sys/fs/bpf"
    )]
    NoBpffs { path: PathBuf, source: std::io::Error },
    #[error("no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup")]
    NoCgroup2,
    #[error(
        "loading the eBPF object: {0}; it takes Linux 6.1 or newer with BPF_SYSCALL, and root or CAP_BPF and CAP_NET_ADMIN"
    )]
    Load(#[source] Box<EbpfError>),
    #[error("the eBPF object has no {kind} named {name}")]
    Missing { kind: &'static str, name: &'static str },
    #[error("eBPF program {name}: {source}")]
    Program { name: &'static str, source: Box<ProgramError> },
    #[error("eBPF map {name}: {source}")]
    Map { name: &'static str, source: Box<MapError> },
    #[error("pinning at {path}: {source}")]
    Pin { path: PathBuf, source: PinError },
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("attachment of {program} cannot be pinned: {source}")]
    NotPinnable { program: &'static str, source: LinkError },
    #[error("attaching {program} to link {ifindex}: {source}")]
    Attach { program: &'static str, ifindex: u32, source: Box<ProgramError> },
}

/// What this machine lacks before the programs can be loaded at all. Mounts the BPF file system where it is missing.
pub fn lacking() -> Vec<Error> {
    [pins::provide_bpffs().err(), cgroup::root().err()].into_iter().flatten().collect()
}

/// What a reconcile did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Map entries written or taken away.
    pub changed: usize,
    /// Links that a program was attached to now.
    pub attached: usize,
    /// Attachments taken away.
    pub detached: usize,
    /// Links that the facts name and the kernel does not have (any more).
    pub vanished: Vec<u32>,
    /// Addresses of tasks that are in no plan any more, by VNI. Connections to them, in the namespaces of tasks of that
    /// network, are for [`close_connections`].
    pub gone: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl Report {
    /// The kernel held all of it already.
    pub fn is_unchanged(&self) -> bool {
        self.changed == 0 && self.attached == 0 && self.detached == 0
    }
}

/// The kernel half, loaded.
pub struct Mesh {
    ebpf: Ebpf,
    maps: Maps,
    links: Links,
    pins: Pins,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Loads the programs, over the maps that an earlier daemon of this node left under `pin_dir` (a directory on a BPF
    /// file system, e.g. `/sys/fs/bpf/weft/<node>`) if they have the same layout. Attaches nothing yet: what is attached
    /// goes on serving until the first [`Self::reconcile`] puts the new programs in its place.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        let pins = Pins::open(pin_dir)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(pins.maps())
            .load(OBJECT)
            .map_err(|source| Error::Load(Box::new(source)))?;
        let links = Links::open(&mut ebpf, pins.links())?;
        let maps = Maps::open(&mut ebpf)?;
        Ok(Self { ebpf, maps, links, pins })
    }

    /// Makes the kernel hold what plan and facts say: additions first, so that nothing ever points at what is not there,
    /// then attachments, then removals.
    pub fn reconcile(&mut self, plan: &NodePlan, facts: &LocalFacts) -> Result<Report, Error> {
        let tables = desired(plan, facts);
        let changes = diff(&tables, &self.maps.read()?);
        self.maps.add(&changes)?;
        let mut report = self.links.reconcile(&mut self.ebpf, facts)?;
        self.maps.remove(&changes)?;
        self.pins.sweep()?;
        report.changed = changes.len();
        report.gone = gone(plan, &changes);
        Ok(report)
    }

    pub fn counters(&self) -> Result<Counters, Error> {
        self.maps.counters()
    }

    /// Takes the node out of the data plane: detaches every program that was attached from `pin_dir` and removes all
    /// pins. Goes on past errors and returns the first.
    pub fn unpin_all(pin_dir: &Path) -> Result<(), Error> {
        let detached = links::detach_all(&pins::links_dir(pin_dir));
        let removed = pins::remove(pin_dir);
        detached.and(removed)
    }
}

/// Addresses that leave the tables because the plan knows no task there any more, and not because a link is missing.
fn gone(plan: &NodePlan, changes: &Changes) -> BTreeMap<u32, BTreeSet<IpAddr>> {
    let vnis: BTreeMap<_, _> = plan.networks.iter().map(|network| (&network.id, network.vni.get())).collect();
    let planned: BTreeSet<(u32, IpAddr)> = plan
        .endpoints
        .iter()
        .filter_map(|endpoint| Some((*vnis.get(&endpoint.network)?, endpoint.addr)))
        .flat_map(|(vni, addr)| [(vni, addr.v4.into()), (vni, addr.v6.into())])
        .collect();
    let mut gone = BTreeMap::<_, BTreeSet<_>>::new();
    for key in &changes.forward.del {
        if !planned.contains(&(key.net, ip(key.addr))) {
            gone.entry(key.net).or_default().insert(ip(key.addr));
        }
    }
    gone
}
