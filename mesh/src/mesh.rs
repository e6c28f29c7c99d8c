//! [`Mesh`], the handle that the agent holds. The counterpart of `weft_overlay::Overlay`.
//!
//! It owns the loaded programs, and logs dropped packets and answered names. It decides nothing:
//! `reconcile` does the work.

use std::{fmt, path::Path, time::Instant};

use tracing::{debug, warn};
use weft_model::NodePlan;

use crate::{
    counters::{Drops, NewDrops, dropped},
    error::Error,
    facts::LocalFacts,
    kernel::{self, Kernel},
    reconcile::{self, KnownTables, Report},
};

/// The loaded programs and their maps.
pub struct Mesh {
    kernel: Kernel,
    tables: KnownTables,
    /// The counters as they were read last.
    drops: Drops,
    name_answers: u64,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("drops", &self.drops).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Loads the programs. It reuses the maps that an earlier daemon of this node left under
    /// `pin_dir`, if they have the same layout. `pin_dir` is a directory on a BPF file system, for
    /// example `/sys/fs/bpf/weft/<node>`.
    ///
    /// Attaches nothing: the programs of the earlier daemon stay attached until the first
    /// [`Self::reconcile`] replaces them.
    ///
    /// # Errors
    ///
    /// The directory, the programs or the maps cannot be used.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        let kernel = Kernel::open(pin_dir)?;
        let (drops, name_answers) = (kernel.drops()?, kernel.name_answers()?);
        Ok(Self { kernel, tables: KnownTables::default(), drops, name_answers })
    }

    /// Checks what the machine must have before the programs can be loaded, and returns everything
    /// that is missing. Mounts the BPF file system if it is not mounted.
    pub fn check() -> Vec<Error> {
        kernel::missing_mounts()
    }

    /// Makes the kernel hold what `plan` and `facts` say. Idempotent: it compares all entries and
    /// attachments with all that the kernel holds. The entries are read from the kernel every 10 s,
    /// and in between compared with those of the last call.
    ///
    /// # Errors
    ///
    /// The error of the first step that the kernel refuses. The next call continues from the state
    /// that the kernel has then.
    pub fn reconcile(&mut self, plan: &NodePlan, facts: &LocalFacts) -> Result<Report, Error> {
        // Log before the reconcile: if this fails, no entry is deleted, so the next report still
        // lists the addresses that are gone.
        self.log_counters()?;
        reconcile::reconcile(&mut self.kernel, &mut self.tables, plan, facts, Instant::now())
    }

    /// Removes the node from the data plane: detaches every program that was attached from
    /// `pin_dir` and removes all pins. No handle is needed, because another daemon may have
    /// attached them.
    ///
    /// # Errors
    ///
    /// [`Error::Teardown`] with every operation that failed. All other operations were done.
    pub fn teardown(pin_dir: &Path) -> Result<(), Error> {
        let errors = kernel::teardown(pin_dir);
        if errors.is_empty() { Ok(()) } else { Err(Error::Teardown(errors)) }
    }

    /// The questions about names that the kernel has answered since its maps were created.
    ///
    /// # Errors
    ///
    /// The counter cannot be read.
    pub fn name_answers(&self) -> Result<u64, Error> {
        self.kernel.name_answers()
    }

    fn log_counters(&mut self) -> Result<(), Error> {
        let now = self.kernel.drops()?;
        let NewDrops { unencrypted, others } = dropped(&self.drops, &now);
        if !unencrypted.is_empty() {
            warn!(packets = ?unencrypted, "packets without the encryption of their network dropped");
        }
        if !others.is_empty() {
            debug!(packets = ?others, "packets dropped since the last reconcile");
        }
        self.drops = now;
        let name_answers = self.kernel.name_answers()?;
        if name_answers != self.name_answers {
            let answers = name_answers.saturating_sub(self.name_answers);
            debug!(answers, "names answered in the kernel since the last reconcile");
        }
        self.name_answers = name_answers;
        Ok(())
    }
}
