//! What this runtime asks of the kernel beyond files: processes, namespaces, control groups and mounts. Must not know what
//! a plan or an image is.
//!
//! - [`proc`]: naming another process, waiting for its end, signalling it;
//! - [`netns`]: network namespaces that outlive who made them;
//! - [`root`]: a task's root file system, mounted;
//! - [`cgroup`]: joining control groups, and removing them with all that is in them;
//! - [`mounts`]: the list of mounts.

pub(super) mod proc;
pub(super) mod netns;
pub(super) mod root;
pub(super) mod cgroup;
pub(super) mod mounts;
