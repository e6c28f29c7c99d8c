//! Programs on links and on the cgroup. Attachments are pinned, one file each, so they outlive the daemon; the next
//! daemon puts its own programs in their place without a gap.
//!
//! Before Linux 6.6 there is no tcx: programs hang on the clsact qdisc there, which outlives the daemon by itself. The
//! pinned file is then the program, and serves as the record of where it hangs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact},
    },
    util::KernelVersion,
};
use weft_ebpf_common::LOOPBACK_IFINDEX;

use super::{Error, cgroup, pins};
use crate::{facts::LocalFacts, mesh::Report};

/// First kernel with tcx.
const TCX: KernelVersion = KernelVersion::new(6, 6, 0);
/// Place of weft's filter among those of a clsact hook: the first, and always the same, so that it is replaced.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x7765);

/// A program for links, by the hook it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hook {
    UplinkIn,
    TunnelIn,
    TaskOut,
}

impl Hook {
    const ALL: [Self; 3] = [Self::UplinkIn, Self::TunnelIn, Self::TaskOut];

    const fn program(self) -> &'static str {
        match self {
            Self::UplinkIn => "uplink_in",
            Self::TunnelIn => "tunnel_in",
            Self::TaskOut => "task_out",
        }
    }

    /// Name of the pin of this hook's attachment to a link.
    fn pin(self, ifindex: u32) -> String {
        format!("{}-{ifindex}", self.program())
    }

    /// What a pin's name says.
    fn of_pin(name: &str) -> Option<(Self, u32)> {
        let (program, ifindex) = name.rsplit_once('-')?;
        let hook = Self::ALL.into_iter().find(|hook| hook.program() == program)?;
        Some((hook, ifindex.parse().ok()?))
    }
}

const SOCKET_PROGRAMS: [&str; 8] = [
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeername4",
    "sock_getpeername6",
];

pub(crate) struct Links {
    dir: PathBuf,
    tcx: bool,
    /// Kernel ids of the programs for links.
    programs: BTreeMap<Hook, u32>,
    /// Socket programs of this daemon that are attached.
    sockets: BTreeSet<&'static str>,
}

impl Links {
    /// Loads every program.
    pub(super) fn open(ebpf: &mut Ebpf, dir: &Path) -> Result<Self, Error> {
        let mut programs = BTreeMap::new();
        for hook in Hook::ALL {
            let failed = failed(hook.program());
            let program = classifier(ebpf, hook)?;
            program.load().map_err(failed)?;
            programs.insert(hook, program.info().map_err(failed)?.id());
        }
        for name in SOCKET_PROGRAMS {
            socket_program(ebpf, name)?.load().map_err(failed(name))?;
        }
        let tcx = has_tcx();
        Ok(Self { dir: dir.to_owned(), tcx, programs, sockets: BTreeSet::new() })
    }

    /// Attaches what is missing, and takes away what is not wanted any more.
    pub(crate) fn reconcile(&mut self, ebpf: &mut Ebpf, facts: &LocalFacts) -> Result<Report, Error> {
        let mut report = Report::default();
        let wanted = wanted(facts);
        for &(hook, ifindex) in &wanted {
            let Some(name) = link_name(ifindex) else {
                report.vanished.push(ifindex);
                continue;
            };
            let attached = if self.tcx {
                self.attach_tcx(ebpf, hook, ifindex, &name)?
            } else {
                self.attach_clsact(ebpf, hook, ifindex, &name)?
            };
            report.attached += usize::from(attached);
        }
        report.attached += self.attach_sockets(ebpf)?;
        for (hook, ifindex) in pinned(&self.dir)? {
            if !wanted.contains(&(hook, ifindex)) || report.vanished.contains(&ifindex) {
                detach(&self.dir, hook, ifindex, self.tcx)?;
                report.detached += 1;
            }
        }
        Ok(report)
    }

    /// True where something had to be done.
    fn attach_tcx(&self, ebpf: &mut Ebpf, hook: Hook, ifindex: u32, name: &str) -> Result<bool, Error> {
        let program = classifier(ebpf, hook)?;
        let failed = |source| Error::Attach { program: hook.program(), ifindex, source: Box::new(source) };
        let path = self.dir.join(hook.pin(ifindex));
        let is_attached = || -> Result<bool, ProgramError> {
            let (_, programs) = SchedClassifier::query_tcx(name, TcAttachType::Ingress)?;
            Ok(programs.iter().any(|found| Some(&found.id()) == self.programs.get(&hook)))
        };
        if path.exists() {
            if is_attached().map_err(failed)? {
                return Ok(false);
            }
            // Where the pinned link belongs to a device that is gone, the update fails, and a new link is made.
            if let Ok(pinned) = PinnedLink::from_pin(&path)
                && let Ok(link) = FdLink::from(pinned).try_into()
                && let Ok(id) = program.attach_to_link(link)
            {
                drop(program.take_link(id).map_err(failed)?);
                if is_attached().map_err(failed)? {
                    return Ok(true);
                }
            }
            unpin(&path)?;
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(name, TcAttachType::Ingress, order).map_err(failed)?;
        let link: FdLink = program
            .take_link(id)
            .map_err(failed)?
            .try_into()
            .map_err(|source| Error::NotPinnable { program: hook.program(), source })?;
        link.pin(&path).map_err(|source| Error::Pin { path, source })?;
        Ok(true)
    }

    /// Puts the program in the place that weft's filter has on every link, over whatever is there.
    fn attach_clsact(&self, ebpf: &mut Ebpf, hook: Hook, ifindex: u32, name: &str) -> Result<bool, Error> {
        let program = classifier(ebpf, hook)?;
        let failed = |source| Error::Attach { program: hook.program(), ifindex, source: Box::new(source) };
        let path = self.dir.join(hook.pin(ifindex));
        let known = path.exists();
        let replaced =
            if known { clsact_link(name).ok().and_then(|link| program.attach_to_link(link).ok()) } else { None };
        let (id, fresh) = if let Some(id) = replaced {
            (id, false)
        } else {
            // The qdisc may be there already, ours or another's; if not, attaching says what is wrong.
            let _ = qdisc_add_clsact(name);
            let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
            (program.attach_with_options(name, TcAttachType::Ingress, options).map_err(failed)?, true)
        };
        // Dropping this kind of link would detach it.
        std::mem::forget(program.take_link(id).map_err(failed)?);
        if !known {
            program.pin(&path).map_err(|source| Error::Pin { path, source })?;
        }
        Ok(fresh)
    }

    /// Puts this daemon's socket programs in the place of an earlier one's. For a moment both are attached: what the
    /// first translated means nothing to the second.
    fn attach_sockets(&mut self, ebpf: &mut Ebpf) -> Result<usize, Error> {
        let missing: Vec<_> = SOCKET_PROGRAMS
            .into_iter()
            .filter(|name| !self.sockets.contains(name) || !self.dir.join(name).exists())
            .collect();
        if missing.is_empty() {
            return Ok(0);
        }
        let root = cgroup::root()?;
        let cgroup = File::open(&root).map_err(|source| Error::Io { what: "opening", path: root, source })?;
        for name in &missing {
            let program = socket_program(ebpf, name)?;
            let id = program.attach(&cgroup, CgroupAttachMode::Single).map_err(failed(name))?;
            let link = program.take_link(id).map_err(failed(name))?;
            let link = FdLink::try_from(link).map_err(|source| Error::NotPinnable { program: name, source })?;
            let (path, fresh) = (self.dir.join(name), self.dir.join(format!("{name}-new")));
            unpin(&fresh)?;
            link.pin(&fresh).map_err(|source| Error::Pin { path: fresh.clone(), source })?;
            fs::rename(&fresh, &path).map_err(|source| Error::Io { what: "renaming", path: fresh, source })?;
            self.sockets.insert(name);
        }
        Ok(missing.len())
    }
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|version| version >= TCX)
}

/// Every link that a program belongs on.
fn wanted(facts: &LocalFacts) -> BTreeSet<(Hook, u32)> {
    let uplinks = facts.uplinks.iter().map(|uplink| (Hook::UplinkIn, uplink.ifindex));
    let tasks = facts.endpoints.iter().map(|endpoint| (Hook::TaskOut, endpoint.ifindex));
    uplinks.chain(tasks).chain([(Hook::UplinkIn, LOOPBACK_IFINDEX), (Hook::TunnelIn, facts.tunnel_ifindex)]).collect()
}

/// Every attachment to a link that is on record.
fn pinned(dir: &Path) -> Result<Vec<(Hook, u32)>, Error> {
    let names = pins::entries(dir)?;
    Ok(names.iter().filter_map(|path| Hook::of_pin(path.file_name()?.to_str()?)).collect())
}

/// Detaches everything on record. Goes on past errors and returns the first.
pub(super) fn detach_all(dir: &Path) -> Result<(), Error> {
    let tcx = has_tcx();
    let results: Vec<_> = pinned(dir)?.into_iter().map(|(hook, ifindex)| detach(dir, hook, ifindex, tcx)).collect();
    results.into_iter().collect()
}

fn detach(dir: &Path, hook: Hook, ifindex: u32, tcx: bool) -> Result<(), Error> {
    if !tcx
        && let Some(name) = link_name(ifindex)
        && let Ok(link) = clsact_link(&name)
    {
        // Dropping this kind of link detaches it.
        drop(link);
    }
    unpin(&dir.join(hook.pin(ifindex)))
}

fn clsact_link(name: &str) -> std::io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, TcAttachType::Ingress, PRIORITY, HANDLE, None)
}

fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { what: "removing", path: path.to_owned(), source }),
    }
}

/// The name of a link in this thread's network namespace; `None` where it is gone.
fn link_name(ifindex: u32) -> Option<String> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None).ok()?;
    rustix::net::netdevice::index_to_name(&socket, ifindex).ok()
}

fn classifier(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier, Error> {
    let name = hook.program();
    let program = ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
    program.try_into().map_err(failed(name))
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    let program = ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
    program.try_into().map_err(failed(name))
}

fn failed(name: &'static str) -> impl Fn(ProgramError) -> Error + Copy {
    move |source| Error::Program { name, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_its_attachment() {
        for hook in Hook::ALL {
            assert_eq!(Hook::of_pin(&hook.pin(17)), Some((hook, 17)));
        }
        for name in ["sock_connect4", "sock_connect4-new", "uplink_in", "uplink_in-", "other-3"] {
            assert_eq!(Hook::of_pin(name), None);
        }
    }
}
