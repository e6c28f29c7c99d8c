//! Task logs as they travel from the node that holds them to the manager that received the request.
//!
//! Owns the types and the trait between the control plane, which asks, and a runtime, which answers.
//! It must not know where a runtime keeps its files.

use bytes::Bytes;
use futures_core::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::{NodeId, TaskId};

/// Where this node's task logs come from: its runtime.
pub trait LogSource: Send + Sync {
    /// The records of one task of this node, oldest first; without `follow` the stream ends with the last record.
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError>;
}

/// Which records to return.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Go on with new records until the task ends.
    pub follow: bool,
    /// Only that many of the newest; all where absent.
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
    /// Without its line feed.
    pub line: Bytes,
}

/// Why there are no logs to read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("no such task: {0}")]
    NoSuchTask(TaskId),
    #[error("task {0} has no node yet: nothing was written")]
    NotAssigned(TaskId),
    #[error("node {node}, which holds the logs of task {task}, cannot be asked: {reason}")]
    NodeUnreachable { node: NodeId, task: TaskId, reason: String },
    #[error("the logs of task {task} cannot be read: {reason}")]
    Unreadable { task: TaskId, reason: String },
}
