//! The attachments of [`NAMES_PROGRAM`](crate::attachment::NAMES_PROGRAM): to `lo` in the network
//! namespace of each task.
//!
//! `programs` calls it. It does not decide which tasks have the program: `desired` does.
//!
//! The program is a filter of the clsact qdisc on all kernels, also on those with tcx: only a
//! filter has a class, by which the program knows the task. A filter survives the daemon without a
//! pin, and ends with its namespace. The pin holds the program and records the attachment.
//!
//! Invariant: only a new thread enters a namespace, and it ends with its work.

use std::{fs::File, io, mem, os::fd::AsFd, path::Path, thread};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, qdisc_add_clsact},
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const LOOPBACK: &str = "lo";

/// Attaches the program, and replaces the program that is attached with the same priority and
/// handle.
pub(super) fn attach(program: &mut SchedClassifier, netns: &File, filter: NlOptions) -> Result<(), ProgramError> {
    in_netns(netns, || {
        let NlOptions { priority, handle, classid } = filter;
        let replaced = SchedClassifierLink::attached(LOOPBACK, TcAttachType::Egress, priority, handle, classid)
            .map_err(ProgramError::IOError)
            .and_then(|link| program.attach_to_link(link));
        let id = match replaced {
            Ok(id) => id,
            Err(_) => {
                // This call fails if the qdisc already exists, which is fine. If the kernel cannot
                // create the qdisc, the next call returns the reason.
                let _ = qdisc_add_clsact(LOOPBACK);
                program.attach_with_options(LOOPBACK, TcAttachType::Egress, TcAttachOptions::Netlink(filter))?
            }
        };
        // Never drop this value: aya would detach the program.
        mem::forget(program.take_link(id)?);
        Ok(())
    })
    .map_err(ProgramError::IOError)?
}

/// The file of a namespace. `None` if the namespace does not exist any more.
pub(super) fn open(netns: &Path) -> io::Result<Option<File>> {
    match File::open(netns) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn in_netns<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let enter_and_work = || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter_and_work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
