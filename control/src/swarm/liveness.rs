//! What the leader knows about the nodes, kept in memory only: the time of each node's last
//! message, the plan generation that it acked, and its latest report.
//!
//! The dispatcher writes here for each message of a node. The leader loop reads a copy, the
//! [`LeaderView`]. The tracker is empty while this manager does not lead, and a new leader starts
//! with an empty one: nodes open a session with it and send everything again. Times are on the
//! monotonic clock, so that a step of the wall clock makes no node look dead.
//!
//! [`LeaderView`] is pure: it takes the time as a value. [`NodeTracker`] shares one between tasks,
//! reads the clock, and notifies the leader loop.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use weft_model::{NodeId, NodeReport};

use super::clock::monotonic_ms;
use crate::orchestrate::ACK_WAIT_MS;

/// The sessions and reports of all nodes, while this manager leads. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeTracker {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// `None` while this manager does not lead.
    view: Mutex<Option<LeaderView>>,
    /// Incremented at each change, except if only the time of a node's last message changes.
    changes: watch::Sender<u64>,
    /// The term in which this manager leads.
    term: watch::Sender<Option<u64>>,
}

/// What the leader knows at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaderView {
    /// On the monotonic clock. No node is set to down until one full heartbeat timeout
    /// (`heartbeat_ms` times `heartbeat_misses` of the cluster's spec) has passed since this time.
    pub since_monotonic_ms: u64,
    /// Since when this manager reads the messages of the nodes without a pause, on the monotonic
    /// clock. What it had heard before may be out of date.
    pub listening_since_ms: u64,
    /// When this manager began to lead, on the cluster's clock.
    pub since_cluster_ms: u64,
    pub nodes: BTreeMap<NodeId, Liveness>,
    /// When each node has begun its last sessions, on the monotonic clock.
    attempts: BTreeMap<NodeId, VecDeque<u64>>,
    /// The nodes that have a newer plan than this leader can send.
    newer_plans: BTreeSet<NodeId>,
    last_session: u64,
    /// When [`LeaderView::attend`] was called last, on the monotonic clock.
    attended_ms: u64,
}

impl LeaderView {
    /// The view of a manager that begins to lead now.
    pub(super) fn since(monotonic_ms: u64, cluster_ms: u64) -> Self {
        Self {
            since_monotonic_ms: monotonic_ms,
            listening_since_ms: monotonic_ms,
            since_cluster_ms: cluster_ms,
            attended_ms: monotonic_ms,
            ..Self::default()
        }
    }

    /// See [`NodeTracker::attend`].
    pub(super) fn attend(&mut self, now_ms: u64, timeout_ms: u64) {
        let last_ms = std::mem::replace(&mut self.attended_ms, now_ms);
        let paused_ms = now_ms.saturating_sub(last_ms);
        if paused_ms > pause_limit_ms(timeout_ms).min(ACK_WAIT_MS / PAUSE_SHARE) {
            self.listening_since_ms = now_ms;
        }
        if paused_ms > pause_limit_ms(timeout_ms) {
            tracing::warn!(paused_ms, "this process was paused: all nodes get their full heartbeat timeout again");
            self.since_monotonic_ms = now_ms;
        }
    }

    /// See [`NodeTracker::may_begin_session`].
    pub(super) fn may_begin_session(&mut self, node: &NodeId, now_ms: u64, timeout_ms: u64) -> bool {
        let attempts = self.attempts.entry(node.clone()).or_default();
        admit(attempts, now_ms, ATTEMPTS_WITHIN_MS.min(timeout_ms / 2))
    }

    /// See [`NodeTracker::begin_session`].
    pub(super) fn begin_session(
        &mut self,
        node: &NodeId,
        now_ms: u64,
        report: NodeReport,
        feature_level: u32,
        certificate: CertificateStatus,
    ) -> SessionId {
        self.last_session += 1;
        let session = SessionId(self.last_session);
        let liveness = Liveness {
            last_message_ms: now_ms,
            acked: report.acked,
            report: Arc::new(report),
            feature_level,
            certificate,
            session,
        };
        self.nodes.insert(node.clone(), liveness);
        session
    }

    /// Records a message. Returns whether more than its time is news, or `None` if the session has
    /// ended.
    pub(super) fn record_message(
        &mut self,
        node: &NodeId,
        session: SessionId,
        now_ms: u64,
        acked: u64,
        report: Option<NodeReport>,
        certificate: CertificateStatus,
    ) -> Option<bool> {
        let liveness = self.nodes.get_mut(node).filter(|liveness| liveness.session == session)?;
        liveness.last_message_ms = now_ms;
        let changed = liveness.acked != acked || report.is_some() || liveness.certificate != certificate;
        liveness.acked = acked;
        liveness.certificate = certificate;
        if let Some(report) = report {
            liveness.report = Arc::new(report);
        }
        Some(changed)
    }

    /// The time, on the monotonic clock, from which the heartbeat timeout of a node without a
    /// session runs: the later of the start of this view and the time at which the node joined
    /// (`created_ms` on the cluster's clock). A node that has just joined needs time to open its
    /// session.
    pub(super) fn joined_monotonic_ms(&self, created_ms: u64) -> u64 {
        let after_ms = created_ms.saturating_sub(self.since_cluster_ms);
        self.since_monotonic_ms.saturating_add(after_ms)
    }
}

/// What the leader knows of one node.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    /// When the last message arrived, on the monotonic clock.
    pub last_message_ms: u64,
    /// The greatest plan generation of this epoch that the node has acked: its kernel holds the
    /// plan, and so does its disk unless the disk failed.
    pub acked: u64,
    pub report: Arc<NodeReport>,
    /// The feature level that the node's release supports.
    pub feature_level: u32,
    pub certificate: CertificateStatus,
    session: SessionId,
}

/// What a node says of its certificate in each message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CertificateStatus {
    /// The SHA-256 of the certificate (DER) of the CA that the node trusts and that has signed the
    /// node's certificate. Empty if a newer CA should have signed it.
    pub ca_sha256: Vec<u8>,
    /// Why the node cannot renew its certificate. Empty if it can, or need not yet.
    pub problem: String,
}

/// One session of a node. Messages of a session are ignored once the node has a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionId(u64);

/// A pause that takes more than this share of a wait makes the wait begin again.
const PAUSE_SHARE: u64 = 4;

/// After a longer pause, a leader with this heartbeat timeout does not know which nodes are silent.
pub(super) fn pause_limit_ms(timeout_ms: u64) -> u64 {
    timeout_ms / PAUSE_SHARE
}

/// How many sessions a node may begin within a time, in milliseconds.
const MAX_ATTEMPTS: usize = 3;
const ATTEMPTS_WITHIN_MS: u64 = 8_000;

/// Admits an attempt at `now_ms`, unless there were [`MAX_ATTEMPTS`] within the time before it.
/// Only admitted attempts count.
fn admit(attempts: &mut VecDeque<u64>, now_ms: u64, within_ms: u64) -> bool {
    attempts.retain(|at| now_ms.saturating_sub(*at) < within_ms);
    if attempts.len() >= MAX_ATTEMPTS {
        return false;
    }
    attempts.push_back(now_ms);
    true
}

impl NodeTracker {
    /// This manager leads from now on. `since_cluster_ms` is the time on the cluster's clock.
    pub(super) fn start_term(&self, term: u64, since_cluster_ms: u64) {
        *self.lock() = Some(LeaderView::since(monotonic_ms(), since_cluster_ms));
        self.inner.term.send_replace(Some(term));
        self.notify();
    }

    /// This manager no longer leads: forgets everything.
    pub(super) fn end_term(&self) {
        *self.lock() = None;
        self.inner.term.send_replace(None);
        self.notify();
    }

    /// The term in which this manager leads. `None` while it does not lead.
    pub(super) fn term(&self) -> watch::Receiver<Option<u64>> {
        self.inner.term.subscribe()
    }

    /// Notifies its receivers of every change, except if only the time of a node's last message
    /// changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// A copy of everything. `None` while this manager does not lead.
    pub(super) fn view(&self) -> Option<LeaderView> {
        self.lock().clone()
    }

    /// The feature level that the release of a node supports. `None` if it is unknown here.
    pub(super) fn feature_level(&self, node: &NodeId) -> Option<u32> {
        Some(self.lock().as_ref()?.nodes.get(node)?.feature_level)
    }

    /// Notices that this process was paused (by a signal, a suspended machine, a disk that does not
    /// answer), and then gives every node one full heartbeat timeout from now: what arrived
    /// meanwhile is not read yet. Waits for acknowledgements are shorter, so a shorter pause makes
    /// them begin again (`listening_since_ms`). Must be called more often than [`pause_limit_ms`]
    /// while this manager leads, and before each decision about silent nodes.
    pub(super) fn attend(&self, timeout_ms: u64) {
        if let Some(view) = self.lock().as_mut() {
            view.attend(monotonic_ms(), timeout_ms);
        }
    }

    /// Whether a node may begin a session now: [`MAX_ATTEMPTS`] in [`ATTEMPTS_WITHIN_MS`], as in
    /// Swarm, or in half of the time after which a silent node is down (`timeout_ms`), if that is
    /// shorter. Counts the attempt. Always `true` while this manager does not lead: it redirects
    /// the node.
    pub(super) fn may_begin_session(&self, node: &NodeId, timeout_ms: u64) -> bool {
        self.lock().as_mut().is_none_or(|view| view.may_begin_session(node, monotonic_ms(), timeout_ms))
    }

    /// Records that the node has a newer plan than this leader can send. Returns whether that is
    /// news in this term.
    pub(super) fn record_newer_plan(&self, node: &NodeId) -> bool {
        self.lock().as_mut().is_some_and(|view| view.newer_plans.insert(node.clone()))
    }

    /// Begins a session with the whole report of its node, whose release supports `feature_level`,
    /// and ends the node's earlier sessions.
    /// `None` while this manager does not lead.
    pub(super) fn begin_session(
        &self,
        node: &NodeId,
        report: NodeReport,
        feature_level: u32,
        certificate: CertificateStatus,
    ) -> Option<SessionId> {
        let begin =
            |view: &mut LeaderView| view.begin_session(node, monotonic_ms(), report, feature_level, certificate);
        let session = self.lock().as_mut().map(begin)?;
        self.notify();
        Some(session)
    }

    /// Records a heartbeat, with a report if the node sent one. Returns `false` if the session has
    /// ended: the node has a newer session or has left, or this manager does not lead.
    pub(super) fn record_message(
        &self,
        node: &NodeId,
        session: SessionId,
        acked: u64,
        report: Option<NodeReport>,
        certificate: CertificateStatus,
    ) -> bool {
        let record =
            |view: &mut LeaderView| view.record_message(node, session, monotonic_ms(), acked, report, certificate);
        let Some(changed) = self.lock().as_mut().and_then(record) else { return false };
        if changed {
            self.notify();
        }
        true
    }

    /// Forgets a node that leaves the cluster, so that the leader no longer writes its last report
    /// to the log. Returns whether the node had a session, or `None` while this manager does not
    /// lead.
    pub(super) fn forget_node(&self, node: &NodeId) -> Option<bool> {
        self.lock().as_mut().map(|view| view.nodes.remove(node).is_some())
    }

    fn lock(&self) -> MutexGuard<'_, Option<LeaderView>> {
        self.inner.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        self.inner.changes.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::from_random(1)
    }

    fn certificate() -> CertificateStatus {
        CertificateStatus::default()
    }

    fn report(acked: u64) -> NodeReport {
        NodeReport { acked, ..NodeReport::default() }
    }

    #[test]
    fn accepts_sessions_and_messages_only_while_it_leads() {
        let tracker = NodeTracker::default();
        assert!(tracker.begin_session(&node(), report(0), 0, certificate()).is_none());
        tracker.start_term(3, 0);
        assert_eq!(*tracker.term().borrow(), Some(3));
        let session = tracker.begin_session(&node(), report(0), 0, certificate()).expect("a session with the leader");
        tracker.end_term();
        assert!(!tracker.record_message(&node(), session, 1, None, certificate()));
    }

    #[test]
    fn ignores_messages_of_all_sessions_except_the_newest() {
        let tracker = NodeTracker::default();
        tracker.start_term(1, 0);
        let old = tracker.begin_session(&node(), report(1), 0, certificate()).expect("a session with the leader");
        let new = tracker.begin_session(&node(), report(2), 0, certificate()).expect("a session with the leader");
        assert!(!tracker.record_message(&node(), old, 9, None, certificate()));
        assert!(tracker.record_message(&node(), new, 3, None, certificate()));
        assert_eq!(tracker.view().expect("the leader's view").nodes[&node()].acked, 3);
    }

    #[test]
    fn a_node_begins_three_sessions_in_eight_seconds_and_refused_ones_do_not_count() {
        let mut attempts = VecDeque::new();
        let mut admitted = |now_ms| admit(&mut attempts, now_ms, ATTEMPTS_WITHIN_MS);
        assert_eq!([0, 100, 200, 300, 7_999].map(&mut admitted), [true, true, true, false, false]);
        assert_eq!([8_000, 8_001, 8_100].map(&mut admitted), [true, false, true]);
    }

    #[test]
    fn a_heartbeat_without_changes_does_not_notify() {
        let tracker = NodeTracker::default();
        tracker.start_term(1, 0);
        let session = tracker.begin_session(&node(), report(1), 0, certificate()).expect("a session with the leader");
        let mut changes = tracker.changes();
        changes.mark_unchanged();
        assert!(tracker.record_message(&node(), session, 1, None, certificate()));
        assert!(!changes.has_changed().expect("the tracker exists"));
        assert!(tracker.record_message(&node(), session, 2, None, certificate()));
        assert!(changes.has_changed().expect("the tracker exists"));
    }

    #[test]
    fn a_pause_of_the_process_gives_all_nodes_their_full_timeout() {
        let mut view = LeaderView::since(10_000, 0);
        view.attend(10_250, 1_000);
        assert_eq!(view.since_monotonic_ms, 10_000, "a quarter of the timeout is no pause");
        view.attend(10_501, 1_000);
        assert_eq!(view.since_monotonic_ms, 10_501, "a pause is relative to the timeout");
        view.attend(15_000, 60_000);
        assert_eq!(view.since_monotonic_ms, 10_501);
        assert_eq!(view.listening_since_ms, 15_000, "waits for acknowledgements are shorter than this pause");
        view.attend(16_000, 60_000);
        assert_eq!(view.listening_since_ms, 15_000);
    }
}
