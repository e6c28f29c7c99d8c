//! Reads the kernel's state, compares it with the plan, and applies the difference in an order that
//! is safe for traffic.
//!
//! `mesh` calls [`reconcile`]. This module does not decide what is desired or different: `desired`
//! and `diff` do.
//!
//! Invariant: entries are written before programs are attached, and entries are deleted last. So an
//! entry never refers to one that does not exist, and if a step fails, the next reconcile still
//! finds the entries to delete.
//!
//! To list the entries of a hash map, the kernel walks all its buckets (`htab_map_get_next_key`,
//! kernel/bpf/hashtab.c), also the empty ones. For all maps this takes some 5 ms, and was half of
//! the daemon's CPU time when each reconcile did it. Only the daemon writes to these maps, so a
//! reconcile starts from what the last one has left there ([`KnownTables`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use weft_ebpf_common::NetAddr;
use weft_model::NodePlan;

use crate::{
    actual::Actual,
    attachment::Attachment,
    desired::desired,
    diff::{Op, Ops, diff},
    error::Error,
    facts::LocalFacts,
    kernel::{Attached, Kernel},
    tables::{Tables, ip},
};

/// How long the contents of the maps are known after they were read. It bounds how long a change by
/// another program can stay.
pub(crate) const READ_INTERVAL: Duration = Duration::from_secs(10);

/// The contents of the maps, as far as the daemon knows them without reading the maps. Unknown
/// until the first reconcile, after one that failed, and after [`READ_INTERVAL`].
#[derive(Debug, Default)]
pub(crate) struct KnownTables(Option<(Tables, Instant)>);

impl KnownTables {
    /// Returns the contents and the time at which they were read. Afterwards they are unknown, so
    /// that an error leaves no wrong ones here.
    fn take(&mut self, now: Instant, read: impl FnOnce() -> Result<Tables, Error>) -> Result<(Tables, Instant), Error> {
        let known = self.0.take().filter(|(_, read_at)| now.saturating_duration_since(*read_at) < READ_INTERVAL);
        known.map_or_else(|| Ok((read()?, now)), Ok)
    }

    fn set(&mut self, tables: Tables, read_at: Instant) {
        self.0 = Some((tables, read_at));
    }
}

/// The result of a reconcile: what it changed, and what it found missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Map entries that were written or deleted.
    pub changed: usize,
    /// Programs that were attached.
    pub attached: usize,
    /// Programs that were detached.
    pub detached: usize,
    /// Indexes of links that are in the facts but do not exist any more.
    pub vanished: Vec<u32>,
    /// Addresses of tasks that are not in the plan any more, by VNI. The caller passes them to
    /// [`crate::close_connections`] in the namespaces of the tasks of that network.
    pub gone: BTreeMap<u32, BTreeSet<IpAddr>>,
}

impl Report {
    /// Whether the kernel already had the desired state.
    pub fn is_unchanged(&self) -> bool {
        self.changed == 0 && self.attached == 0 && self.detached == 0
    }
}

/// Makes the kernel hold what `plan` and `facts` say.
pub(crate) fn reconcile(
    kernel: &mut Kernel,
    known: &mut KnownTables,
    plan: &NodePlan,
    facts: &LocalFacts,
    now: Instant,
) -> Result<Report, Error> {
    let desired = desired(plan, facts);
    let (tables, read_at) = known.take(now, || kernel.tables())?;
    let actual = Actual { tables, attachments: kernel.attachments()? };
    let ops = diff(&desired, &actual);
    let mut report = Report { changed: ops.map_entries(), gone: gone(plan, &ops), ..Report::default() };
    kernel.put_entries(&ops)?;
    let mut detach = ops.detach.clone();
    let namespaces: BTreeMap<u64, &Path> = facts
        .endpoints
        .iter()
        .filter_map(|endpoint| endpoint.netns.as_ref())
        .map(|n| (n.cookie, n.path.as_path()))
        .collect();
    for attachment in &ops.attach {
        let netns = match attachment {
            Attachment::Names { netns_cookie, .. } => namespaces.get(netns_cookie).copied(),
            Attachment::Link { .. } | Attachment::Cgroup(_) => None,
        };
        match kernel.attach(*attachment, netns)? {
            Attached::Changed => report.attached += 1,
            Attached::Unchanged => {}
            Attached::NoLink(ifindex) => {
                report.vanished.push(ifindex);
                detach.extend(actual.attachments.contains_key(attachment).then_some(*attachment));
            }
        }
    }
    for attachment in &detach {
        kernel.detach(*attachment)?;
    }
    report.detached = detach.len();
    kernel.remove_old_layouts()?;
    kernel.delete_entries(&ops)?;
    known.set(desired.tables, read_at);
    Ok(report)
}

/// The addresses whose entries are deleted because no task of the plan has them any more. An
/// address whose entry is deleted only because the task's link is missing is left out.
fn gone(plan: &NodePlan, ops: &Ops) -> BTreeMap<u32, BTreeSet<IpAddr>> {
    let vnis: BTreeMap<_, _> = plan.networks.iter().map(|network| (&network.id, network.vni.get())).collect();
    let planned: BTreeSet<(u32, IpAddr)> = plan
        .endpoints
        .iter()
        .filter_map(|endpoint| Some((*vnis.get(&endpoint.network)?, endpoint.addr)))
        .flat_map(|(vni, addr)| addr.ips().map(move |ip| (vni, ip)))
        .collect();
    let mut gone = BTreeMap::<_, BTreeSet<_>>::new();
    for op in &ops.forward {
        if let Op::Delete(NetAddr { net, addr }) = op
            && !planned.contains(&(*net, ip(*addr)))
        {
            gone.entry(*net).or_default().insert(ip(*addr));
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables(service: u32) -> Tables {
        Tables { counted_services: [service].into(), ..Tables::default() }
    }

    #[test]
    fn maps_are_read_at_first_after_an_error_and_after_the_interval() {
        let (mut known, start) = (KnownTables::default(), Instant::now());
        let (read, read_at) = known.take(start, || Ok(tables(1))).expect("the maps can be read");
        assert_eq!((read, read_at), (tables(1), start));
        // Without `set` the reconcile has failed.
        let later = start + Duration::from_secs(1);
        let (read, read_at) = known.take(later, || Ok(tables(2))).expect("the maps can be read");
        assert_eq!((read, read_at), (tables(2), later));
        // Each reconcile keeps the time of the last read.
        for passed in [Duration::ZERO, READ_INTERVAL / 2, READ_INTERVAL - Duration::from_millis(1)] {
            known.set(tables(3), later);
            let (left, read_at) = known.take(later + passed, || panic!("the contents are known")).expect("known");
            assert_eq!((left, read_at), (tables(3), later));
        }
        known.set(tables(3), later);
        let (read, read_at) = known.take(later + READ_INTERVAL, || Ok(tables(4))).expect("the maps can be read");
        assert_eq!((read, read_at), (tables(4), later + READ_INTERVAL));
    }
}
