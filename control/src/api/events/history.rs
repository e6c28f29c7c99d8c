//! The last events of the cluster, as this manager has seen them, for clients that ask for past
//! events.
//!
//! [`record`] is a task of each daemon. It compares each new cluster state with the one before it,
//! and keeps the newest events, as many as moby does (`daemon/events/events.go`). The events are
//! those of this process: a manager knows of nothing that happened before it started, or while it
//! was no manager. If several changes come at once, it sees them as one, as a client does.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bollard_stubs::models::EventMessage;
use tokio::sync::watch;
use weft_model::{ClusterState, id::ClusterId};

use super::diff;
use crate::api::cluster::Member;

/// How many events are kept.
pub(super) const LIMIT: usize = 256;

#[derive(Debug, Default)]
pub(in crate::api) struct History(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<EventMessage>,
    /// The cluster state up to which `events` has all changes. `None` on a node that is no manager.
    seen: Option<Arc<ClusterState>>,
    /// The cluster of the events.
    cluster: Option<ClusterId>,
}

impl Kept {
    /// Forgets what is of another cluster than this state: the node has left that one.
    fn forget_others(&mut self, state: &ClusterState) {
        if self.cluster != cluster_id(state) {
            *self = Self::default();
        }
    }
}

fn cluster_id(state: &ClusterState) -> Option<ClusterId> {
    state.cluster.as_ref().map(|cluster| cluster.id.clone())
}

impl History {
    /// Keeps the events between the state that was seen last and `after`.
    fn add(&self, after: Arc<ClusterState>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.forget_others(&after);
        if let Some(before) = &kept.seen {
            let events = diff::events(before, &after);
            kept.events.extend(events);
            let excess = kept.events.len().saturating_sub(LIMIT);
            kept.events.drain(..excess);
        }
        (kept.cluster, kept.seen) = (cluster_id(&after), Some(after));
    }

    fn end(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).seen = None;
    }

    /// The kept events, and those up to the newest state, which is returned too. The caller
    /// continues from there.
    pub(super) fn past(
        &self,
        state: &mut watch::Receiver<Arc<ClusterState>>,
    ) -> (Vec<EventMessage>, Arc<ClusterState>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It is not older than what was seen: `record` reads a state before it takes the lock.
        let newest = Arc::clone(&state.borrow_and_update());
        kept.forget_others(&newest);
        let mut events: Vec<_> = kept.events.iter().cloned().collect();
        events.extend(kept.seen.iter().flat_map(|seen| diff::events(seen, &newest)));
        (events, newest)
    }
}

/// Records the events of the clusters that this node is a manager of, until the daemon ends.
pub(in crate::api) async fn record(member: Weak<dyn Member>, history: Arc<History>) {
    while let Some(present) = member.upgrade() {
        if !present.wait_until_manager().await {
            return;
        }
        // It can have been demoted since.
        let Some(cluster) = present.cluster() else { continue };
        drop(present);
        let mut state = cluster.state();
        drop(cluster);
        history.add(Arc::clone(&state.borrow_and_update()));
        while state.changed().await.is_ok() {
            let after = Arc::clone(&state.borrow_and_update());
            history.add(after);
        }
        history.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TestCluster, service_spec};

    #[test]
    fn keeps_the_newest_events() {
        let mut cluster = TestCluster::new();
        let history = History::default();
        history.add(Arc::new(cluster.state.clone()));
        let (sender, mut state) = watch::channel(Arc::new(cluster.state.clone()));
        assert_eq!(history.past(&mut state).0, []);
        for number in 0..LIMIT + 4 {
            cluster.add_service(service_spec(&format!("s{number}"), 0, &[]));
            history.add(Arc::new(cluster.state.clone()));
        }
        sender.send_replace(Arc::new(cluster.state.clone()));
        let names = |history: &History, state: &mut watch::Receiver<_>| -> Vec<String> {
            let (events, _) = history.past(state);
            events.into_iter().filter_map(|event| event.actor?.attributes?.remove("name")).collect()
        };
        let kept = names(&history, &mut state);
        assert_eq!((kept.len(), kept[0].as_str(), kept[LIMIT - 1].as_str()), (LIMIT, "s4", "s259"));
        // A change that was not recorded yet is there too, and only once.
        cluster.add_service(service_spec("new", 0, &[]));
        sender.send_replace(Arc::new(cluster.state.clone()));
        for _ in 0..2 {
            assert_eq!(names(&history, &mut state).last().map(String::as_str), Some("new"));
            history.add(Arc::new(cluster.state.clone()));
        }
        // What happens while the node is no manager is not known.
        history.end();
        cluster.add_service(service_spec("unseen", 0, &[]));
        sender.send_replace(Arc::new(cluster.state.clone()));
        history.add(Arc::new(cluster.state.clone()));
        assert_eq!(names(&history, &mut state).last().map(String::as_str), Some("new"));
        // The node joins another cluster.
        let other = ClusterId::from_random(99);
        cluster.state.cluster.as_mut().expect("a cluster").id = other;
        sender.send_replace(Arc::new(cluster.state.clone()));
        assert_eq!(names(&history, &mut state), [""; 0]);
    }
}
