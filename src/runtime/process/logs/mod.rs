//! A task's log: two files of limited size in the task's directory.
//!
//! The shim writes them ([`writer`]) and the daemon reads them ([`reader`]), even while the shim
//! writes. Each line of a file is a record: Unix nanoseconds, `o` (standard output) or `e`
//! (standard error), and a line of the task's output, as in `1700000000000000000 o listening`. When
//! `log` is full, the shim renames it to `log.1`, which replaces an older `log.1`.
//!
//! Invariant that readers rely on: the shim writes the last record before it writes `exit.json`.

mod record;
mod lines;
mod writer;
mod watch;
mod reader;

pub(super) use self::{
    lines::LineSplitter,
    reader::read,
    record::{Stream, encode},
    writer::Writer,
};
