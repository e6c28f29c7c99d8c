//! What the leader knows of the nodes and keeps in memory only: when each was last heard, what it acked, what it
//! reported. Empty while this manager does not lead; a new leader starts with an empty one.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use weft_model::{NodeId, NodeReport};

use super::clock::steady_ms;

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Desk {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    book: Mutex<Option<Book>>,
    /// Counts changes of anything but the time of a heartbeat.
    changes: watch::Sender<u64>,
    /// The term in which this manager leads.
    term: watch::Sender<Option<u64>>,
}

/// The leader's memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    /// Steady clock: nobody is missing before one full period after this.
    pub since_ms: u64,
    /// The same moment on the table's clock.
    pub since_table_ms: u64,
    pub nodes: BTreeMap<NodeId, Heard>,
    sessions: u64,
}

/// What was heard of a node.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    /// Steady clock.
    pub at_ms: u64,
    pub acked: u64,
    pub report: Arc<NodeReport>,
    session: Session,
}

/// One connection of a node: a newer one makes the older ones mute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Session(u64);

impl Desk {
    /// Begins to lead, at this moment of the table's clock.
    pub(super) fn open(&self, term: u64, since_table_ms: u64) {
        *self.book() = Some(Book { since_ms: steady_ms(), since_table_ms, ..Book::default() });
        self.inner.term.send_replace(Some(term));
        self.ring();
    }

    /// Ends to lead.
    pub(super) fn close(&self) {
        *self.book() = None;
        self.inner.term.send_replace(None);
        self.ring();
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
    pub(super) fn read(&self) -> Option<Book> {
        self.book().clone()
    }

    /// Everybody gets one full period anew: this manager could not listen for a while.
    pub(super) fn excuse_everybody(&self) {
        if let Some(book) = self.book().as_mut() {
            book.since_ms = steady_ms();
        }
    }

    /// Begins a session with its node's whole report. `None` while this manager does not lead.
    pub(super) fn begin(&self, node: &NodeId, report: NodeReport) -> Option<Session> {
        let session = {
            let mut guard = self.book();
            let book = guard.as_mut()?;
            book.sessions += 1;
            let session = Session(book.sessions);
            let heard = Heard { at_ms: steady_ms(), acked: report.acked, report: Arc::new(report), session };
            book.nodes.insert(node.clone(), heard);
            session
        };
        self.ring();
        Some(session)
    }

    /// A sign of life, with what is new. False where the session is over.
    pub(super) fn hear(&self, node: &NodeId, session: Session, acked: u64, report: Option<NodeReport>) -> bool {
        let news = {
            let mut guard = self.book();
            let Some(heard) = guard.as_mut().and_then(|book| book.nodes.get_mut(node)) else {
                return false;
            };
            if heard.session != session {
                return false;
            }
            heard.at_ms = steady_ms();
            let news = heard.acked != acked || report.is_some();
            heard.acked = acked;
            if let Some(report) = report {
                heard.report = Arc::new(report);
            }
            news
        };
        if news {
            self.ring();
        }
        true
    }

    /// Forgets a node that leaves, so that nothing that it said counts any more. False while this manager does not lead.
    pub(super) fn forget(&self, node: &NodeId) -> bool {
        self.book().as_mut().map(|book| book.nodes.remove(node)).is_some()
    }

    fn book(&self) -> MutexGuard<'_, Option<Book>> {
        self.inner.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
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
        let desk = Desk::default();
        assert!(desk.begin(&node(), report(0)).is_none());
        desk.open(3, 0);
        assert_eq!(*desk.term().borrow(), Some(3));
        let session = desk.begin(&node(), report(0)).expect("it leads");
        desk.close();
        assert!(!desk.hear(&node(), session, 1, None));
    }

    #[test]
    fn the_newest_session_is_the_only_one() {
        let desk = Desk::default();
        desk.open(1, 0);
        let old = desk.begin(&node(), report(1)).expect("it leads");
        let new = desk.begin(&node(), report(2)).expect("it leads");
        assert!(!desk.hear(&node(), old, 9, None));
        assert!(desk.hear(&node(), new, 3, None));
        assert_eq!(desk.read().expect("it leads").nodes[&node()].acked, 3);
    }

    #[test]
    fn a_mere_heartbeat_wakes_nobody() {
        let desk = Desk::default();
        desk.open(1, 0);
        let session = desk.begin(&node(), report(1)).expect("it leads");
        let mut changes = desk.changes();
        changes.mark_unchanged();
        assert!(desk.hear(&node(), session, 1, None));
        assert!(!changes.has_changed().expect("the desk lives"));
        assert!(desk.hear(&node(), session, 2, None));
        assert!(changes.has_changed().expect("the desk lives"));
    }
}
