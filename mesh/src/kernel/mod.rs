//! Programs, maps, pins and sockets: the only code of this crate that makes system calls.
//!
//! `reconcile` and `mesh` call it. It reads the actual state, applies operations, and translates
//! errors into [`Error`]. It never decides what to do.
//!
//! - `pins`: the directories that keep maps and attachments alive;
//! - `cgroup`: the root of the cgroup2 hierarchy;
//! - `maps`: the maps, and the order in which their entries change;
//! - `programs`: the programs, and their attachments to links and to the cgroup;
//! - `names`: the attachments in the network namespaces of tasks;
//! - `sockets`: closes connections to tasks that do not exist any more.

mod pins;
mod cgroup;
mod maps;
mod programs;
mod names;
mod sockets;

use std::{collections::BTreeMap, path::Path};

use aya::{Ebpf, EbpfLoader};
use maps::Maps;
pub use pins::BPFFS;
use pins::Pins;
pub(crate) use programs::Attached;
use programs::Programs;
pub use sockets::close_connections;

use crate::{actual::Pinned, attachment::Attachment, counters::Drops, diff::Ops, error::Error, tables::Tables};

/// The compiled programs. `cargo xtask ebpf` compiles them from `ebpf/`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../ebpf/weft.bpf.o"));

/// The loaded eBPF object.
pub(crate) struct Kernel {
    ebpf: Ebpf,
    pins: Pins,
    maps: Maps,
    programs: Programs,
}

impl Kernel {
    /// Loads the programs. Reuses the maps that are pinned under `pin_dir` if they have the same
    /// layout. Attaches nothing.
    pub(crate) fn open(pin_dir: &Path) -> Result<Self, Error> {
        let pins = Pins::open(pin_dir)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(pins.maps())
            .load(OBJECT)
            .map_err(|source| Error::Load(Box::new(source)))?;
        let programs = Programs::open(&mut ebpf, pins.attachments())?;
        let maps = Maps::open(&mut ebpf)?;
        Ok(Self { ebpf, pins, maps, programs })
    }

    /// Reads the entries of all maps.
    pub(crate) fn tables(&self) -> Result<Tables, Error> {
        self.maps.read()
    }

    /// Reads the attachments that have a pin.
    pub(crate) fn attachments(&self) -> Result<BTreeMap<Attachment, Pinned>, Error> {
        self.programs.read()
    }

    /// Inserts the new entries and overwrites the changed ones.
    pub(crate) fn put_entries(&mut self, ops: &Ops) -> Result<(), Error> {
        self.maps.put(ops)
    }

    /// Deletes the entries that are not desired any more.
    pub(crate) fn delete_entries(&mut self, ops: &Ops) -> Result<(), Error> {
        self.maps.delete(ops)
    }

    /// `netns` is the file of the namespace for [`Attachment::Names`].
    pub(crate) fn attach(&mut self, attachment: Attachment, netns: Option<&Path>) -> Result<Attached, Error> {
        self.programs.attach(&mut self.ebpf, attachment, netns)
    }

    pub(crate) fn detach(&self, attachment: Attachment) -> Result<(), Error> {
        self.programs.detach(attachment)
    }

    /// Removes the maps of other layouts: no attached program uses them any more.
    pub(crate) fn remove_old_layouts(&self) -> Result<(), Error> {
        self.pins.remove_old_layouts()
    }

    /// Reads how many packets the programs have dropped since the maps were created.
    pub(crate) fn drops(&self) -> Result<Drops, Error> {
        self.maps.drops()
    }

    /// Reads how many questions about names the programs have answered since the maps were created.
    pub(crate) fn name_answers(&self) -> Result<u64, Error> {
        self.maps.name_answers()
    }
}

/// The mounts that the machine lacks. Mounts the BPF file system if it is not mounted.
pub(crate) fn missing_mounts() -> Vec<Error> {
    [pins::mount_bpffs().err(), cgroup::root().err()].into_iter().flatten().collect()
}

/// Detaches every program that is pinned under `pin_dir`, and removes all pins. Continues after an
/// error, and returns all errors.
pub(crate) fn teardown(pin_dir: &Path) -> Vec<Error> {
    let mut errors = programs::detach_all(&pins::attachments_dir(pin_dir));
    errors.extend(pins::remove(pin_dir).err());
    errors
}
