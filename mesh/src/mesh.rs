//! The shell: asks `desired` and `diff`, and has `kernel` do the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::Path,
};

use aya::Ebpf;
use weft_model::NodePlan;

use crate::{
    counters::{Drops, dropped},
    desired::desired,
    diff::{Changes, diff},
    facts::LocalFacts,
    kernel::{self, Error, Links, Maps, Pins},
    tables::ip,
};

/// What a reconcile did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Map entries written or taken away.
    pub changed: usize,
    /// Links that a program was attached to now.
    pub attached: usize,
    /// Attachments taken away.
    pub detached: usize,
    /// Links that the facts name and the kernel does not have (any more).
    pub vanished: Vec<u32>,
    /// Addresses of tasks that are in no plan any more, by VNI. Connections to them, in the namespaces of tasks of that
    /// network, are for [`crate::close_connections`].
    pub gone: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl Report {
    /// The kernel held all of it already.
    pub fn is_unchanged(&self) -> bool {
        self.changed == 0 && self.attached == 0 && self.detached == 0
    }
}

/// The kernel half, loaded.
pub struct Mesh {
    ebpf: Ebpf,
    maps: Maps,
    links: Links,
    pins: Pins,
    /// At the last look.
    drops: Drops,
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Mesh {
    /// Loads the programs, over the maps that an earlier daemon of this node left under `pin_dir` (a directory on a BPF
    /// file system, e.g. `/sys/fs/bpf/weft/<node>`) if they have the same layout. Attaches nothing yet: what is attached
    /// goes on serving until the first [`Self::reconcile`] puts the new programs in its place.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        let pins = Pins::open(pin_dir)?;
        let (ebpf, maps, links) = kernel::load(&pins)?;
        let drops = maps.drops()?;
        Ok(Self { ebpf, maps, links, pins, drops })
    }

    /// Makes the kernel hold what plan and facts say: additions first, so that nothing ever points at what is not there,
    /// then attachments, then removals.
    pub fn reconcile(&mut self, plan: &NodePlan, facts: &LocalFacts) -> Result<Report, Error> {
        let tables = desired(plan, facts);
        let changes = diff(&tables, &self.maps.read()?);
        self.maps.add(&changes)?;
        let mut report = self.links.reconcile(&mut self.ebpf, facts)?;
        self.pins.sweep()?;
        self.tell_drops()?;
        // Last: when something before it failed, the next reconcile still finds what is gone.
        self.maps.remove(&changes)?;
        report.changed = changes.len();
        report.gone = gone(plan, &changes);
        Ok(report)
    }

    fn tell_drops(&mut self) -> Result<(), Error> {
        let now = self.maps.drops()?;
        let packets = dropped(&self.drops, &now);
        if !packets.is_empty() {
            tracing::debug!(?packets, "not let through since the last look");
        }
        self.drops = now;
        Ok(())
    }

    /// Takes the node out of the data plane: detaches every program that was attached from `pin_dir` and removes all
    /// pins. Goes on past errors and returns the first.
    pub fn unpin_all(pin_dir: &Path) -> Result<(), Error> {
        kernel::unload(pin_dir)
    }
}

/// Addresses that leave the tables because the plan knows no task there any more, and not because a link is missing.
fn gone(plan: &NodePlan, changes: &Changes) -> BTreeMap<u32, BTreeSet<IpAddr>> {
    let vnis: BTreeMap<_, _> = plan.networks.iter().map(|network| (&network.id, network.vni.get())).collect();
    let planned: BTreeSet<(u32, IpAddr)> = plan
        .endpoints
        .iter()
        .filter_map(|endpoint| Some((*vnis.get(&endpoint.network)?, endpoint.addr)))
        .flat_map(|(vni, addr)| [(vni, addr.v4.into()), (vni, addr.v6.into())])
        .collect();
    let mut gone = BTreeMap::<_, BTreeSet<_>>::new();
    for key in &changes.forward.del {
        if !planned.contains(&(key.net, ip(key.addr))) {
            gone.entry(key.net).or_default().insert(ip(key.addr));
        }
    }
    gone
}
