//! The error type of this crate. The text of an error never contains its cause: the cause is the
//! `source`, so a caller that prints the whole chain prints it once.

use std::io;

use weft_model::TaskId;

/// Why the resolver of a task cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the resolver sockets of task {task}")]
    Sockets { task: TaskId, source: io::Error },
}
