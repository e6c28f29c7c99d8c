//! Reads the kernel's state, compares it with the plan, and applies the difference in an order that
//! is safe for traffic.
//!
//! `mesh` calls [`reconcile`]. This module does not decide what is desired or different: `desired`
//! and `diff` do.
//!
//! Invariant: entries are written before programs are attached, and entries are deleted last. So an
//! entry never refers to one that does not exist, and if a step fails, the next reconcile still
//! finds the entries to delete.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
};

use weft_ebpf_common::NetAddr;
use weft_model::NodePlan;

use crate::{
    attachment::Attachment,
    desired::desired,
    diff::{Op, Ops, diff},
    error::Error,
    facts::LocalFacts,
    kernel::{Attached, Kernel},
    tables::ip,
};

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
pub(crate) fn reconcile(kernel: &mut Kernel, plan: &NodePlan, facts: &LocalFacts) -> Result<Report, Error> {
    let desired = desired(plan, facts);
    let actual = kernel.read()?;
    let ops = diff(&desired, &actual);
    let mut report = Report { changed: ops.map_entries(), gone: gone(plan, &ops), ..Report::default() };
    kernel.put_entries(&ops)?;
    let mut detach = ops.detach.clone();
    let namespaces: BTreeMap<u64, &Path> =
        facts.endpoints.iter().map(|endpoint| (endpoint.netns_cookie, endpoint.netns.as_path())).collect();
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
