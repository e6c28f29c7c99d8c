//! What the leader knows of the nodes and keeps in memory only: the time of its last message, what it acked, what it
//! reported. Empty while this manager does not lead; a new leader starts with an empty one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use weft_model::{NodeId, NodeReport};

use super::clock::monotonic_ms;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeTracker {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    view: Mutex<Option<LeaderView>>,
    /// Counts changes of anything but the time of a heartbeat.
    changes: watch::Sender<u64>,
    /// The term in which this manager leads.
    term: watch::Sender<Option<u64>>,
}

/// The leader's memory.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaderView {
    /// Steady clock: nobody is missing before one full period after this.
    pub since_monotonic_ms: u64,
    /// The same moment on the table's clock.
    pub since_cluster_ms: u64,
    pub nodes: BTreeMap<NodeId, Liveness>,
    last_session: u64,
}

/// What the leader knows of one node.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    /// Steady clock.
    pub last_message_ms: u64,
    pub acked: u64,
    pub report: Arc<NodeReport>,
    session: SessionId,
}

/// One connection of a node: a newer one makes the older ones mute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SessionId(u64);

impl NodeTracker {
    /// Begins to lead, at this moment of the table's clock.
    pub(super) fn start_term(&self, term: u64, since_cluster_ms: u64) {
        *self.lock() =
            Some(LeaderView { since_monotonic_ms: monotonic_ms(), since_cluster_ms, ..LeaderView::default() });
        self.inner.term.send_replace(Some(term));
        self.notify();
    }

    /// Ends to lead.
    pub(super) fn end_term(&self) {
        *self.lock() = None;
        self.inner.term.send_replace(None);
        self.notify();
    }

    /// The term in which this manager leads, and every change of it.
    pub(super) fn term(&self) -> watch::Receiver<Option<u64>> {
        self.inner.term.subscribe()
    }

    /// Rings when anything but a heartbeat's time changed.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// `None` while this manager does not lead.
    pub(super) fn view(&self) -> Option<LeaderView> {
        self.lock().clone()
    }

    /// Everybody gets one full period anew: this manager could not listen for a while.
    pub(super) fn restart_deadlines(&self) {
        if let Some(view) = self.lock().as_mut() {
            view.since_monotonic_ms = monotonic_ms();
        }
    }

    /// Begins a session with its node's whole report. `None` while this manager does not lead.
    pub(super) fn begin_session(&self, node: &NodeId, report: NodeReport) -> Option<SessionId> {
        let session = {
            let mut guard = self.lock();
            let view = guard.as_mut()?;
            view.last_session += 1;
            let session = SessionId(view.last_session);
            let liveness =
                Liveness { last_message_ms: monotonic_ms(), acked: report.acked, report: Arc::new(report), session };
            view.nodes.insert(node.clone(), liveness);
            session
        };
        self.notify();
        Some(session)
    }

    /// A sign of life, with what is new. False where the session is over.
    pub(super) fn record_message(
        &self,
        node: &NodeId,
        session: SessionId,
        acked: u64,
        report: Option<NodeReport>,
    ) -> bool {
        let news = {
            let mut guard = self.lock();
            let Some(liveness) = guard.as_mut().and_then(|view| view.nodes.get_mut(node)) else {
                return false;
            };
            if liveness.session != session {
                return false;
            }
            liveness.last_message_ms = monotonic_ms();
            let news = liveness.acked != acked || report.is_some();
            liveness.acked = acked;
            if let Some(report) = report {
                liveness.report = Arc::new(report);
            }
            news
        };
        if news {
            self.notify();
        }
        true
    }

    /// Forgets a node that leaves, so that nothing that it said counts any more. False while this manager does not lead.
    pub(super) fn forget_node(&self, node: &NodeId) -> bool {
        self.lock().as_mut().map(|view| view.nodes.remove(node)).is_some()
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

    fn report(acked: u64) -> NodeReport {
        NodeReport { acked, ..NodeReport::default() }
    }

    #[test]
    fn only_a_leader_listens() {
        let tracker = NodeTracker::default();
        assert!(tracker.begin_session(&node(), report(0)).is_none());
        tracker.start_term(3, 0);
        assert_eq!(*tracker.term().borrow(), Some(3));
        let session = tracker.begin_session(&node(), report(0)).expect("it leads");
        tracker.end_term();
        assert!(!tracker.record_message(&node(), session, 1, None));
    }

    #[test]
    fn the_newest_session_is_the_only_one() {
        let tracker = NodeTracker::default();
        tracker.start_term(1, 0);
        let old = tracker.begin_session(&node(), report(1)).expect("it leads");
        let new = tracker.begin_session(&node(), report(2)).expect("it leads");
        assert!(!tracker.record_message(&node(), old, 9, None));
        assert!(tracker.record_message(&node(), new, 3, None));
        assert_eq!(tracker.view().expect("it leads").nodes[&node()].acked, 3);
    }

    #[test]
    fn a_mere_heartbeat_wakes_nobody() {
        let tracker = NodeTracker::default();
        tracker.start_term(1, 0);
        let session = tracker.begin_session(&node(), report(1)).expect("it leads");
        let mut changes = tracker.changes();
        changes.mark_unchanged();
        assert!(tracker.record_message(&node(), session, 1, None));
        assert!(!changes.has_changed().expect("the tracker lives"));
        assert!(tracker.record_message(&node(), session, 2, None));
        assert!(changes.has_changed().expect("the tracker lives"));
    }
}
