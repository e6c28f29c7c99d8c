//! The programs for links and for sockets, and their attachments. `kernel` calls it. It does not
//! decide where a program must be attached: `desired` does.
//!
//! Each attachment has a pin, so it survives the daemon. The next daemon replaces the program of an
//! attachment without interrupting traffic.
//!
//! Linux before 6.6 has no tcx. There, a program for links is a filter of the clsact qdisc, which
//! survives the daemon without a pin. The pin then holds the program and only records where it is
//! attached. On all kernels, two programs are such filters:
//!
//! - The one for names: see `names`.
//! - The one for the links of tasks. An attachment by tcx waits for an RCU grace period and holds
//!   the RTNL lock meanwhile (`tcx_link_attach` in kernel/bpf/tcx.c), and so does the removal of a
//!   link that has one. That takes some 14 ms, one task of the machine after the other. A filter
//!   takes less than 2 ms. What tcx gives, a place before the programs of others, is of no use on
//!   a link that only weft has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, ProgramInfo, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
    util::KernelVersion,
};

use tracing::{debug, warn};
use weft_model::error_chain;

use super::{cgroup, names, pins};
use crate::{
    actual::Pinned,
    attachment::{Attachment, Hook, NAMES_PROGRAM, SOCKET_PROGRAMS},
    error::Error,
};

/// The first kernel with tcx.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);
/// The priority and handle of weft's filter on a clsact hook. They are always the same, so that a
/// new filter replaces the old one. Priority 1 is the first.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7765);

/// The result of [`Programs::attach`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attached {
    /// This daemon's program is attached now, and was not before.
    Changed,
    /// Weft's filter with this daemon's program existed, and was replaced (clsact only).
    Unchanged,
    /// There is no link with this index.
    NoLink(u32),
}

pub(crate) struct Programs {
    /// The directory of the pins.
    dir: PathBuf,
    has_tcx: bool,
    /// The kernel's ids of the programs for links.
    ids: BTreeMap<Hook, u32>,
    /// The programs for sockets that this daemon has attached.
    attached_sockets: BTreeSet<&'static str>,
    /// The kernel's id of the program for names.
    names_id: u32,
    /// Whether the kernel has refused to attach the program for names.
    has_failed_names: bool,
}

impl Programs {
    /// Loads every program.
    pub(super) fn open(ebpf: &mut Ebpf, dir: &Path) -> Result<Self, Error> {
        let mut ids = BTreeMap::new();
        for hook in Hook::ALL {
            ids.insert(hook, load(ebpf, hook.program())?);
        }
        let names_id = load(ebpf, NAMES_PROGRAM)?;
        for name in SOCKET_PROGRAMS {
            socket_program(ebpf, name)?.load().map_err(program_error(name))?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            has_tcx: has_tcx(),
            ids,
            attached_sockets: BTreeSet::new(),
            names_id,
            has_failed_names: false,
        })
    }

    /// Reads the attachments that have a pin.
    pub(super) fn read(&self) -> Result<BTreeMap<Attachment, Pinned>, Error> {
        let state = |attachment| if self.is_current(attachment) { Pinned::Current } else { Pinned::Stale };
        Ok(pinned(&self.dir)?.into_iter().map(|attachment| (attachment, state(attachment))).collect())
    }

    /// Whether this daemon's program is attached at an attachment that has a pin.
    fn is_current(&self, attachment: Attachment) -> bool {
        match attachment {
            Attachment::Link { hook: hook @ Hook::TaskOut, .. } => self.is_pinned(attachment, self.ids.get(&hook)),
            // aya cannot read which program a clsact filter has, and others may remove the qdisc
            // of an uplink. So the filter is replaced in each pass.
            Attachment::Link { hook, ifindex } => {
                uses_tcx(hook, self.has_tcx)
                    && link_name(ifindex).is_some_and(|name| self.is_attached_by_tcx(hook, &name).unwrap_or(false))
            }
            Attachment::Cgroup(program) => self.attached_sockets.contains(program),
            Attachment::Names { .. } => self.is_pinned(attachment, Some(&self.names_id)),
        }
    }

    /// Whether the pin of a filter holds the program with this id. The pin is made after the
    /// filter.
    fn is_pinned(&self, attachment: Attachment, program: Option<&u32>) -> bool {
        ProgramInfo::from_pin(self.dir.join(attachment.pin())).is_ok_and(|pinned| Some(&pinned.id()) == program)
    }

    fn is_attached_by_tcx(&self, hook: Hook, link: &str) -> Result<bool, ProgramError> {
        let (_, programs) = SchedClassifier::query_tcx(link, TcAttachType::Ingress)?;
        Ok(programs.iter().any(|program| Some(&program.id()) == self.ids.get(&hook)))
    }

    /// Attaches this daemon's program, and replaces the program that is attached there.
    /// `netns` is the file of the namespace for [`Attachment::Names`].
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        attachment: Attachment,
        netns: Option<&Path>,
    ) -> Result<Attached, Error> {
        match attachment {
            Attachment::Link { hook, ifindex } => {
                let Some(name) = link_name(ifindex) else { return Ok(Attached::NoLink(ifindex)) };
                if uses_tcx(hook, self.has_tcx) {
                    self.attach_tcx(ebpf, hook, ifindex, &name)
                } else {
                    self.attach_clsact(ebpf, hook, ifindex, &name)
                }
            }
            Attachment::Cgroup(program) => self.attach_socket_program(ebpf, program),
            Attachment::Names { class, .. } => {
                let attached = netns.map_or(Ok(Attached::Unchanged), |netns| {
                    self.attach_names_program(ebpf, netns, class, &self.dir.join(attachment.pin()))
                });
                Ok(attached.unwrap_or_else(|error| self.log_failed_names(&error)))
            }
        }
    }

    /// Without the program, the task's resolver answers its names. So a failure does not prevent
    /// that the plan is applied.
    fn log_failed_names(&mut self, error: &Error) -> Attached {
        let error = error_chain(error);
        if self.has_failed_names {
            debug!(error, "cannot answer names in the kernel");
        } else {
            warn!(error, "cannot answer names in the kernel: the daemon answers them, and only while it runs");
        }
        self.has_failed_names = true;
        Attached::Unchanged
    }

    /// Detaches a program and removes its pin.
    pub(super) fn detach(&self, attachment: Attachment) -> Result<(), Error> {
        detach(&self.dir, attachment, self.has_tcx)
    }

    fn attach_tcx(&self, ebpf: &mut Ebpf, hook: Hook, ifindex: u32, name: &str) -> Result<Attached, Error> {
        let program = link_program(ebpf, hook)?;
        let error = attach_error(hook, ifindex);
        let path = self.dir.join(Attachment::Link { hook, ifindex }.pin());
        if path.exists() {
            // The update fails if the pinned attachment belongs to a link that was deleted. Then a
            // new attachment replaces it.
            if let Ok(pinned) = PinnedLink::from_pin(&path)
                && let Ok(link) = FdLink::from(pinned).try_into()
                && let Ok(id) = program.attach_to_link(link)
            {
                drop(program.take_link(id).map_err(error)?);
                if self.is_attached_by_tcx(hook, name).map_err(error)? {
                    return Ok(Attached::Changed);
                }
            }
            unpin(&path)?;
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(name, TcAttachType::Ingress, order).map_err(error)?;
        let link: FdLink = program
            .take_link(id)
            .map_err(error)?
            .try_into()
            .map_err(|source| Error::NotPinnable { program: hook.program(), source })?;
        link.pin(&path).map_err(|source| Error::Pin { path, source })?;
        Ok(Attached::Changed)
    }

    /// Replaces weft's filter on the link, or adds one.
    fn attach_clsact(&self, ebpf: &mut Ebpf, hook: Hook, ifindex: u32, name: &str) -> Result<Attached, Error> {
        let program = link_program(ebpf, hook)?;
        let error = attach_error(hook, ifindex);
        let attachment = Attachment::Link { hook, ifindex };
        let path = self.dir.join(attachment.pin());
        let replaced = if path.exists() {
            clsact_link(name).ok().and_then(|link| program.attach_to_link(link).ok())
        } else {
            None
        };
        let is_replaced = replaced.is_some();
        let id = if let Some(id) = replaced {
            id
        } else {
            // This call fails if the qdisc already exists, which is fine. If the kernel cannot
            // create the qdisc, the next call returns the reason.
            let _ = qdisc_add_clsact(name);
            let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
            program.attach_with_options(name, TcAttachType::Ingress, options).map_err(error)?
        };
        // Never drop this value: aya would detach the program.
        std::mem::forget(program.take_link(id).map_err(error)?);
        if is_replaced && self.is_pinned(attachment, self.ids.get(&hook)) {
            return Ok(Attached::Unchanged);
        }
        // This also ends an attachment by tcx that an earlier release pinned here.
        unpin(&path)?;
        program.pin(&path).map_err(|source| Error::Pin { path, source })?;
        Ok(Attached::Changed)
    }

    fn attach_names_program(&self, ebpf: &mut Ebpf, netns: &Path, class: u16, pin: &Path) -> Result<Attached, Error> {
        let io_error = |source| Error::Io { verb: "open", path: netns.to_owned(), source };
        let Some(namespace) = names::open(netns).map_err(io_error)? else { return Ok(Attached::Unchanged) };
        let program = classifier(ebpf, NAMES_PROGRAM)?;
        let filter = NlOptions { priority: PRIORITY, handle: HANDLE, classid: Some(TcHandle::new(0, class)) };
        names::attach(program, &namespace, filter)
            .map_err(|source| Error::AttachNames { netns: netns.to_owned(), source: Box::new(source) })?;
        unpin(pin)?;
        program.pin(pin).map_err(|source| Error::Pin { path: pin.to_owned(), source })?;
        Ok(Attached::Changed)
    }

    /// Attaches a program for sockets, and then detaches the program of an earlier daemon. For a
    /// moment both are attached. This is safe: after the first program has translated an address,
    /// the address is not a VIP any more, so the second program does not translate it again.
    fn attach_socket_program(&mut self, ebpf: &mut Ebpf, name: &'static str) -> Result<Attached, Error> {
        let root = cgroup::root()?;
        let cgroup = File::open(&root).map_err(|source| Error::Io { verb: "open", path: root, source })?;
        let program = socket_program(ebpf, name)?;
        let error = program_error(name);
        let id = program.attach(&cgroup, CgroupAttachMode::Single).map_err(error)?;
        let link = program.take_link(id).map_err(error)?;
        let link = FdLink::try_from(link).map_err(|source| Error::NotPinnable { program: name, source })?;
        let path = self.dir.join(Attachment::Cgroup(name).pin());
        let new_path = self.dir.join(format!("{name}-new"));
        unpin(&new_path)?;
        link.pin(&new_path).map_err(|source| Error::Pin { path: new_path.clone(), source })?;
        fs::rename(&new_path, &path).map_err(|source| Error::Io { verb: "rename", path: new_path, source })?;
        self.attached_sockets.insert(name);
        Ok(Attached::Changed)
    }
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= TCX)
}

/// Whether a program for links is attached by tcx, and not by a filter of the clsact qdisc.
fn uses_tcx(hook: Hook, has_tcx: bool) -> bool {
    has_tcx && hook != Hook::TaskOut
}

/// The attachments that have a pin in `dir`.
fn pinned(dir: &Path) -> Result<Vec<Attachment>, Error> {
    let paths = pins::entries(dir)?;
    Ok(paths.iter().filter_map(|path| Attachment::from_pin(path.file_name()?.to_str()?)).collect())
}

/// Detaches every program that has a pin in `dir`. Continues after an error, and returns all
/// errors.
pub(super) fn detach_all(dir: &Path) -> Vec<Error> {
    let has_tcx = has_tcx();
    match pinned(dir) {
        Ok(attachments) => {
            attachments.into_iter().filter_map(|attachment| detach(dir, attachment, has_tcx).err()).collect()
        }
        Err(error) => vec![error],
    }
}

fn detach(dir: &Path, attachment: Attachment, has_tcx: bool) -> Result<(), Error> {
    if let Attachment::Link { hook, ifindex } = attachment
        && !uses_tcx(hook, has_tcx)
        && let Some(name) = link_name(ifindex)
        && let Ok(link) = clsact_link(&name)
    {
        // aya detaches the program when this value is dropped.
        drop(link);
    }
    unpin(&dir.join(attachment.pin()))
}

fn clsact_link(name: &str) -> std::io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, TcAttachType::Ingress, PRIORITY, HANDLE, None)
}

/// Removes a pin. A pin that does not exist is not an error.
fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { verb: "remove", path: path.to_owned(), source }),
    }
}

/// The name of a link in this thread's network namespace. `None` if there is no link with this
/// index.
fn link_name(ifindex: u32) -> Option<String> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(&socket, ifindex).ok()
}

/// Loads a program, and returns the kernel's id of it.
fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, Error> {
    let program = classifier(ebpf, name)?;
    program.load().map_err(program_error(name))?;
    Ok(program.info().map_err(program_error(name))?.id())
}

fn link_program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, Error> {
    classifier(ebpf, hook.program())
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
    program.try_into().map_err(program_error(name))
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
    program.try_into().map_err(program_error(name))
}

fn program_error(name: &'static str) -> impl Fn(ProgramError) -> Error + Copy {
    move |source| Error::Program { name, source: Box::new(source) }
}

fn attach_error(hook: Hook, ifindex: u32) -> impl Fn(ProgramError) -> Error + Copy {
    move |source| Error::Attach { program: hook.program(), ifindex, source: Box::new(source) }
}
