//! Bounds for what a node may report. The dispatcher applies them to every report, so that one
//! worker can neither fill the log nor the memory of the managers. What is too long is cut off, and
//! not refused: the rest of the report is needed to keep the node and its tasks working.

use std::collections::BTreeSet;

use weft_model::{
    MAX_ATTACHED_PER_NODE, MAX_NETWORKS_PER_SERVICE, NodeReport,
    report::{EnginePlugin, NodeDescription},
    spec::Labels,
    state::TaskStatus,
};

use crate::swarm::liveness::CertificateStatus;

/// Largest message of a node, in bytes: a report of 10,000 tasks with texts of some length.
pub(super) const MAX_NODE_MESSAGE_BYTES: usize = 8 << 20;
/// Longest text in octets: a status message, an error, a version.
const MAX_TEXT: usize = 1_024;
/// Length of a SHA-256, in octets.
const MAX_DIGEST: usize = 32;
/// Longest id of a container, in octets.
const MAX_CONTAINER: usize = 128;
/// Longest name of a container, in octets.
const MAX_NAME: usize = 255;
/// Labels of the node's engine: how many, and how many octets of keys and values together.
const MAX_LABELS: usize = 256;
const MAX_LABEL_BYTES: usize = 32 << 10;
/// Plugins of the node's engine.
const MAX_PLUGINS: usize = 256;
/// Addresses and routes of the node. A router may have the routes of the whole internet; the
/// managers need those that an address pool may overlap.
const MAX_ADDRESSES: usize = 1_024;
const MAX_ROUTES: usize = 4_096;
/// A node holds two keys while one replaces the other.
const MAX_KEYS: usize = 4;

/// Cuts off what is too long. Returns whether something was.
pub(crate) fn limit(report: &mut NodeReport) -> bool {
    let mut cut = cut_list(&mut report.keys, MAX_KEYS);
    if let Some(description) = &mut report.description {
        cut |= limit_description(description);
    }
    cut |= cut_text(&mut report.problem, MAX_TEXT);
    for (_, status) in &mut report.tasks {
        cut |= limit_status(status);
    }
    if let Some(attached) = &mut report.attached {
        // A container that is cut off would count as removed.
        let too_many = attached.containers.len().max(attached.unanswered.len()) > MAX_ATTACHED_PER_NODE;
        let mut identities = attached.containers.iter().map(|container| &container.identity);
        let is_useless = too_many || identities.any(|found| found.container.is_empty() || found.name.is_empty());
        cut |= is_useless;
        if is_useless {
            report.attached = None;
        } else {
            for id in &mut attached.unanswered {
                cut |= cut_text(id, MAX_CONTAINER);
            }
            for container in &mut attached.containers {
                cut |= cut_text(&mut container.identity.container, MAX_CONTAINER);
                cut |= cut_text(&mut container.identity.name, MAX_NAME);
                cut |= cut_list(&mut container.networks, MAX_NETWORKS_PER_SERVICE);
            }
        }
    }
    cut
}

/// As [`limit`].
pub(super) fn limit_certificate(status: &mut CertificateStatus) {
    status.ca_sha256.truncate(MAX_DIGEST);
    cut_text(&mut status.problem, MAX_TEXT);
}

fn limit_description(description: &mut NodeDescription) -> bool {
    let mut cut = false;
    for text in [&mut description.os, &mut description.arch, &mut description.version, &mut description.runtime] {
        cut |= cut_text(text, MAX_TEXT);
    }
    cut |= cut_list(&mut description.addresses, MAX_ADDRESSES);
    cut |= cut_list(&mut description.routes, MAX_ROUTES);
    if let weft_model::wireguard::EncryptionSupport::Unavailable(reason) = &mut description.encryption {
        cut |= cut_text(reason, MAX_TEXT);
    }
    cut | cut_labels(&mut description.engine_labels) | cut_plugins(&mut description.plugins)
}

fn limit_status(status: &mut TaskStatus) -> bool {
    let mut cut = cut_text(&mut status.message, MAX_TEXT);
    cut |= cut_text(&mut status.error, MAX_TEXT);
    if let Some(container) = &mut status.container {
        cut |= cut_text(container, MAX_CONTAINER);
    }
    cut
}

fn cut_text(text: &mut String, max: usize) -> bool {
    if text.len() <= max {
        return false;
    }
    text.truncate((0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
    true
}

fn cut_list<T>(list: &mut Vec<T>, max: usize) -> bool {
    let cut = list.len() > max;
    list.truncate(max);
    cut
}

/// Keeps the first labels, in the order of their keys.
fn cut_labels(labels: &mut Labels) -> bool {
    let before = labels.len();
    let (mut count, mut bytes) = (0, 0);
    labels.retain(|key, value| {
        count += 1;
        bytes += key.len() + value.len();
        count <= MAX_LABELS && bytes <= MAX_LABEL_BYTES
    });
    labels.len() < before
}

/// Keeps the first plugins, in their order, without those whose name is too long.
fn cut_plugins(plugins: &mut BTreeSet<EnginePlugin>) -> bool {
    let before = plugins.len();
    let mut count = 0;
    plugins.retain(|plugin| {
        count += 1;
        count <= MAX_PLUGINS && plugin.kind.len() + plugin.name.len() <= MAX_NAME
    });
    plugins.len() < before
}

#[cfg(test)]
mod tests {
    use weft_model::{
        NetworkId, NodeId, TaskId,
        report::{AttachedReport, AttachedReports},
        state::{ContainerIdentity, TaskState},
        wireguard::EncryptionSupport,
    };

    use super::*;
    use crate::{
        codec,
        fixture::{description, observed},
    };

    fn attached(name: &str) -> AttachedReport {
        let identity = ContainerIdentity { container: "c0ffee".to_owned(), name: name.to_owned() };
        AttachedReport {
            id: TaskId::from_random(2),
            identity,
            networks: vec![NetworkId::from_random(3)],
            running: true,
        }
    }

    fn reports(name: &str, count: usize) -> Option<AttachedReports> {
        Some(AttachedReports { containers: vec![attached(name); count], unanswered: vec![name.to_owned(); count] })
    }

    #[test]
    fn an_ordinary_report_is_unchanged() {
        let status = observed(TaskState::Failed, 7);
        let report = NodeReport {
            acked: 3,
            epoch: 0,
            addr: None,
            description: Some(description(&["10.0.0.0/8"])),
            keys: Vec::new(),
            problem: String::new(),
            tasks: vec![(TaskId::from_random(1), status)],
            attached: reports("shell", 1),
        };
        let mut limited = report.clone();
        assert!(!limit(&mut limited));
        assert_eq!(limited, report);
    }

    #[test]
    fn a_greedy_report_is_cut_to_a_bounded_size() {
        let long = "ä".repeat(1 << 20);
        let mut machine = description(&[]);
        machine.version.clone_from(&long);
        machine.encryption = EncryptionSupport::Unavailable(long.clone());
        machine.engine_labels = (0..10_000).map(|n| (format!("{n:05}"), "x".repeat(1_000))).collect();
        let plugin = |n: u32| EnginePlugin { kind: "Log".to_owned(), name: format!("{n:05}{}", "x".repeat(200)) };
        machine.plugins = (0..10_000).map(plugin).collect();
        machine.addresses = vec![[192, 0, 2, 1].into(); 100_000];
        machine.routes = vec!["10.0.0.0/8".parse().expect("a network"); 100_000];
        let mut status = observed(TaskState::Running, 7);
        status.error.clone_from(&long);
        status.container = Some(long);
        let key =
            weft_model::wireguard::NodeKey { public_key: weft_model::wireguard::PublicKey([1; 32]), port: 51_820 };
        let mut report = NodeReport {
            acked: 3,
            epoch: 0,
            addr: None,
            description: Some(machine),
            keys: vec![key; 1_000],
            problem: "y".repeat(1 << 20),
            tasks: vec![(TaskId::from_random(1), status)],
            attached: reports(&"x".repeat(1 << 20), 1),
        };
        assert!(limit(&mut report));
        let size = codec::encode(&codec::REPORT, &report).expect("encoded").len();
        assert!(size < 150 << 10, "{size} bytes of {}", NodeId::from_random(1));
        assert!(!limit(&mut report), "a second time changes nothing");
        report.attached = reports("x", MAX_ATTACHED_PER_NODE + 1);
        assert!(limit(&mut report));
        assert_eq!(report.attached, None, "the others do not count as removed");
        report.attached = reports("", 1);
        assert!(limit(&mut report));
        assert_eq!(report.attached, None, "the cluster state has no container without a name");
    }
}
