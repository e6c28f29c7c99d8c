//! What an entry of the log may change: addresses, ports, VNIs, and the states of tasks.

use std::collections::BTreeSet;

use weft_model::{
    ClusterState, DualAddr,
    plan::AttachmentPlan,
    state::{Attachment, Task, Traffic},
};

use super::{super::world::Host, Checks, STALE_MS};
use crate::orchestrate::ACK_WAIT_MS;

/// Whether the addresses have one in common.
fn share(one: DualAddr, other: DualAddr) -> bool {
    one.v6 == other.v6 || one.v4.is_some() && one.v4 == other.v4
}

impl Checks {
    pub(super) fn check_change<'a>(&mut self, before: &'a ClusterState, after: &ClusterState, hosts: &[Host]) {
        let changed = |task: &&Task| before.tasks.get(&task.id).is_none_or(|old| !std::ptr::eq(old, *task));
        let changed: Vec<&Task> = after.tasks.values().filter(changed).collect();
        let attachments =
            |state: &'a ClusterState, task: &Task| state.tasks.get(&task.id).map(|task| &task.attachments);
        let same = before.tasks.keys().count() == after.tasks.keys().count()
            && changed.iter().all(|task| attachments(before, task) == Some(&task.attachments))
            && before.services == after.services
            && before.networks == after.networks
            && before.allocated.quarantine == after.allocated.quarantine;
        if !same {
            self.check_allocations(after);
            self.record_freed(before, after);
        }
        for task in changed {
            let old = before.tasks.get(&task.id);
            if let Some(old) = old {
                self.check_step(old, task, after, hosts);
            }
            if old.is_none_or(|old| old.attachments.is_empty()) {
                for attachment in &task.attachments {
                    let owner = self.backends.entry(attachment.backend).or_insert_with(|| task.id.clone());
                    if *owner != task.id {
                        return self.fail(format!("the backend id of {} was used before", task.name));
                    }
                    self.check_address_is_unknown(task, attachment, after, hosts);
                    self.check_address_is_fresh(task, attachment, after);
                }
            }
        }
    }

    /// One holder for each address, port and VNI.
    fn check_allocations(&mut self, state: &ClusterState) {
        let vips = state.services.values().flat_map(|s| &s.endpoints).filter_map(|e| Some((&e.network, e.vip?)));
        let tasks = state.tasks.values().flat_map(|t| &t.attachments).map(|a| (&a.network, a.addr));
        let waiting = state.allocated.quarantine.iter().map(|f| (&f.network, f.addr));
        let mut seen = BTreeSet::new();
        for (network, addr) in vips.chain(tasks).chain(waiting) {
            for ip in addr.ips() {
                if !seen.insert((network, ip)) {
                    return self.fail(format!("{ip} was allocated twice"));
                }
            }
        }
        let mut ports = BTreeSet::new();
        for service in state.services.values().filter(|service| !service.removing) {
            for port in &service.ports {
                if !ports.insert((port.published, port.spec.protocol)) {
                    return self.fail(format!("port {} was allocated twice", port.published));
                }
            }
        }
        let vnis: BTreeSet<_> = state.networks.values().map(|network| network.vni).collect();
        if vnis.len() != state.networks.len() {
            self.fail("a VNI was allocated twice".to_owned());
        }
    }

    /// No process on any node uses the address, also on nodes that are down. A removed node may not
    /// know yet that it was removed, and a user has declared it dead. No node on which the
    /// cluster relies knows it as the address of another task or of a service.
    fn check_address_is_unknown(&mut self, task: &Task, got: &Attachment, state: &ClusterState, hosts: &[Host]) {
        let mut found = None;
        for host in hosts {
            let Some(kernel) = host.node.kernel.as_ref().filter(|_| state.nodes.contains_key(&host.node.id)) else {
                continue;
            };
            for other in kernel.tasks.iter().filter(|other| other.id != task.id) {
                let alive = host.node.machine.processes.get(&other.id).is_some_and(|process| process.is_alive());
                let uses = |a: &AttachmentPlan| a.network == got.network && share(a.addr, got.addr);
                if alive && other.attachments.iter().any(uses) {
                    found = Some(format!("{} got an address that {} uses on {}", task.name, other.name, host.node.id));
                }
            }
            if self.is_reliable(state, host) {
                let same = |network, addr| got.network == network && share(got.addr, addr);
                let mut endpoints = kernel.endpoints.iter().filter(|endpoint| endpoint.task != task.id);
                let known = endpoints.any(|e| same(e.network.clone(), e.addr))
                    || kernel.services.iter().any(|s| s.vip.is_some_and(|vip| same(s.network.clone(), vip)));
                if known {
                    found = Some(format!("{} still knows an address that {} got", host.node.id, task.name));
                }
            }
        }
        if let Some(found) = found {
            self.fail(found);
        }
    }

    /// Remembers which addresses tasks no longer have.
    fn record_freed(&mut self, before: &ClusterState, after: &ClusterState) {
        for task in before.tasks.values().filter(|task| !task.attachments.is_empty()) {
            if after.tasks.get(&task.id).is_none_or(|now| now.attachments.is_empty()) {
                for attachment in &task.attachments {
                    for ip in attachment.addr.ips() {
                        let owner = (after.now_ms, task.service.clone(), task.slot.clone());
                        self.freed.insert((attachment.network.clone(), ip), owner);
                    }
                }
            }
        }
    }

    /// No client takes the task for another one that had its address a moment ago. The next task of
    /// the same slot may have it.
    fn check_address_is_fresh(&mut self, task: &Task, got: &Attachment, state: &ClusterState) {
        for ip in got.addr.ips() {
            let Some((freed_ms, service, slot)) = self.freed.get(&(got.network.clone(), ip)) else { continue };
            let same_slot = (service, slot) == (&task.service, &task.slot);
            if !same_slot && state.now_ms < freed_ms + STALE_MS {
                let text = format!("{} got {ip}, which another task had {} ms ago", task.name, state.now_ms - freed_ms);
                return self.fail(text);
            }
        }
    }

    /// The states of a task never decrease, and it never moves to another node. All nodes get it as
    /// a backend only after its own node delivers to it. Its node stops it only after no node sends
    /// new flows to it. Both waits end after [`ACK_WAIT_MS`].
    fn check_step(&mut self, old: &Task, new: &Task, state: &ClusterState, hosts: &[Host]) {
        if new.status.state < old.status.state || new.desired < old.desired || new.traffic < old.traffic {
            return self.fail(format!("a state of {} decreased", new.name));
        }
        if old.node.is_some() && old.node != new.node {
            return self.fail(format!("{} moved to another node", new.name));
        }
        if state.now_ms >= old.traffic_since_ms + ACK_WAIT_MS {
            return;
        }
        let sends = |host: &Host| {
            let mut plans = host.node.kernel.iter().flat_map(|plan| &plan.services).flat_map(|s| &s.backends);
            plans.any(|backend| backend.task == new.id && !backend.draining)
        };
        if old.traffic < Traffic::Active && new.traffic == Traffic::Active {
            let own = hosts.iter().find(|host| Some(&host.node.id) == new.node.as_ref());
            if own.is_some_and(|own| own.node.kernel.is_some() && self.is_reliable(state, own) && !sends(own)) {
                return self.fail(format!("all nodes send to {} before its own node delivers to it", new.name));
            }
        }
        if !old.must_stop() && new.must_stop() {
            let sender = hosts.iter().find(|host| self.is_reliable(state, host) && sends(host));
            if let Some(host) = sender {
                let text = format!("{} must stop while {} sends new flows to it", new.name, host.node.id);
                self.fail(text);
            }
        }
    }
}
