//! Where the task side of a task's links is. The agent tells it to [`crate::Overlay::reconcile`].

use std::path::{Path, PathBuf};

/// The network namespace of a task, and who puts the task sides of its links there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sandbox {
    /// The namespace at this path has the task sides. weft makes them if they are missing.
    Netns(PathBuf),
    /// A container engine is about to move the task sides into a namespace, and to give them their
    /// names, addresses and routes. Until then they are in the node's namespace.
    HandOver {
        /// The namespace, if it exists already.
        netns: Option<PathBuf>,
        /// The engine has been told of the task sides, and may have moved them. Before, they must
        /// be in the node's namespace: the links of an earlier start of the container can remain
        /// for a moment.
        told: bool,
    },
}

impl Sandbox {
    /// The path of the namespace, if it exists.
    pub fn netns(&self) -> Option<&Path> {
        match self {
            Self::Netns(path) => Some(path),
            Self::HandOver { netns, .. } => netns.as_deref(),
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Sandbox {
    fn from(path: P) -> Self {
        Self::Netns(path.into())
    }
}
