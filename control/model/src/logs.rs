//! Task logs: the format in which the node that stores them sends them to the manager that received
//! the request.
//!
//! These types and the trait connect the control plane, which requests logs, and the runtime, which
//! reads them. They do not depend on where and how a runtime stores logs.

use bytes::Bytes;
use futures_core::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{NodeId, TaskId};

/// The runtime of a node, as the source of the logs of its tasks.
pub trait LogSource: Send + Sync {
    /// The records of one task of this node, oldest first. Without `follow` the stream ends after
    /// the last record.
    ///
    /// # Errors
    /// The runtime has no logs of the task, or cannot read them.
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError>;
}

/// Which records to return.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Continue with new records until the task ends.
    pub follow: bool,
    /// Only this many of the newest records. `None`: all.
    pub tail: Option<u64>,
    /// Unix milliseconds, inclusive.
    pub since_ms: Option<u64>,
    /// Unix milliseconds, inclusive.
    pub until_ms: Option<u64>,
    pub stdout: bool,
    pub stderr: bool,
}

/// One line that a task wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Unix nanoseconds.
    pub time_ns: u64,
    pub stderr: bool,
    /// The line without its line feed.
    pub line: Bytes,
}

/// Why the logs of a task cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("no such task: {0}")]
    NoSuchTask(TaskId),
    #[error("task {0} is not assigned to a node yet: it has no logs")]
    NotAssigned(TaskId),
    #[error("cannot reach node {node}, which stores the logs of task {task}: {reason}")]
    NodeUnreachable { node: NodeId, task: TaskId, reason: String },
    #[error("cannot read the logs of task {task}: {reason}")]
    Unreadable { task: TaskId, reason: String },
}
