//! What the kernel holds, in weft's own types. The counterpart of [`crate::desired`].
//!
//! `kernel` reads these values from the maps and the pins; [`crate::diff`] compares them. Pure
//! data.

use std::collections::BTreeMap;

use crate::{attachment::Attachment, tables::Tables};

/// The contents of the maps, and the attachments that have a pin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    pub tables: Tables,
    pub attachments: BTreeMap<Attachment, Pinned>,
}

/// The program of a pinned attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinned {
    /// The program that this daemon loaded is attached.
    Current,
    /// Another program is attached, or none, or it cannot be read which one. For example, the
    /// program of an earlier daemon is attached, or the link was deleted.
    Stale,
}
