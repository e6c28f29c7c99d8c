//! The system calls of the process runtime, except for those on plain files. [`super::task_dirs`],
//! [`super::phase`], [`super::image`] and the shim call it. It must not know plans or images.
//!
//! - [`proc`]: identifying another process, waiting for its end, sending it a signal;
//! - [`mounts`]: the list of mounts;
//! - [`netns`]: network namespaces that exist without a process;
//! - [`root`]: mounting a task's root file system;
//! - [`cgroup`]: joining control groups, and removing them with all processes in them.

pub(super) mod proc;
pub(super) mod mounts;
pub(super) mod netns;
pub(super) mod root;
pub(super) mod cgroup;
