//! What was seen of a cluster: a trace of what happened, and what must never happen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::watch;
use weft_model::{ClusterState, NodeId, plan::PlanVersion};

use crate::{fixture::simulated, swarm::Swarm};

/// The number of nodes, and of managers. The managers are the first ones.
pub(super) const NODES: usize = 5;
pub(super) const MANAGERS: usize = 3;

/// How many states are remembered for the comparison. Managers that are further apart are compared
/// at later indexes.
const STATES: usize = 2_000;

/// When the agent of a node reports a plan as put into effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Acks {
    AtOnce,
    After(Duration),
    Never,
}

/// What all nodes of a simulation, and the simulation itself, share.
#[derive(Debug)]
pub(super) struct Observed {
    inner: Mutex<Inner>,
    pub(super) acks: [watch::Sender<Acks>; NODES],
}

#[derive(Debug, Default)]
struct Inner {
    /// The daemons that run.
    swarms: [Option<Swarm>; NODES],
    trace: Vec<String>,
    violations: Vec<String>,
    /// The state that the first manager had at an index.
    states: BTreeMap<u64, Arc<ClusterState>>,
    /// Who has led in a term.
    leaders: BTreeMap<u64, usize>,
    /// The newest plan of each running process.
    plans: [Option<PlanVersion>; NODES],
    /// All plans that the agent of a node has got.
    published: BTreeMap<NodeId, BTreeSet<PlanVersion>>,
    /// The version up to which a leader knows that the plan of a node is in effect. The plan itself
    /// may be older, and unchanged since.
    acked: BTreeMap<NodeId, PlanVersion>,
    /// The labels of nodes whose changes were confirmed.
    labels: BTreeMap<NodeId, BTreeSet<String>>,
    ended: bool,
}

impl Observed {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), acks: std::array::from_fn(|_| watch::Sender::new(Acks::AtOnce)) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panicked")
    }

    pub(super) fn swarm(&self, at: usize) -> Option<Swarm> {
        self.lock().swarms[at].clone()
    }

    /// The daemon of a node runs, or does not run any more.
    pub(super) fn set_swarm(&self, at: usize, swarm: Option<Swarm>) {
        let former = {
            let mut inner = self.lock();
            inner.plans[at] = None;
            std::mem::replace(&mut inner.swarms[at], swarm)
        };
        // Its tasks may write to this while they end.
        drop(former);
    }

    /// Adds a line to the trace.
    pub(super) fn trace(&self, at: Duration, line: impl AsRef<str>) {
        self.lock().trace.push(format!("{:>6} ms: {}", at.as_millis(), line.as_ref()));
    }

    /// The same at the time of the machine that runs.
    pub(super) fn event(&self, line: impl AsRef<str>) {
        self.trace(simulated::current().expect("a simulated machine").now(), line);
    }

    pub(super) fn violation(&self, text: String) {
        self.event(&text);
        self.lock().violations.push(text);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().trace.clone()
    }

    /// Tells the clients to end.
    pub(super) fn end(&self) {
        self.lock().ended = true;
    }

    pub(super) fn has_ended(&self) -> bool {
        self.lock().ended
    }

    /// A manager has this state.
    pub(super) fn state(&self, at: usize, state: &Arc<ClusterState>) {
        let differs = {
            let mut inner = self.lock();
            let first = inner.states.entry(state.index).or_insert_with(|| state.clone()).clone();
            if inner.states.len() > STATES {
                inner.states.pop_first();
            }
            !Arc::ptr_eq(&first, state) && first != *state
        };
        self.event(format!("n{} has state {}", at + 1, state.index));
        if differs {
            self.violation(format!("n{} has another state at index {} than another manager", at + 1, state.index));
        }
    }

    /// A manager leads in this term.
    pub(super) fn leads(&self, at: usize, term: u64) {
        let other = *self.lock().leaders.entry(term).or_insert(at);
        self.event(format!("n{} leads in term {term}", at + 1));
        if other != at {
            self.violation(format!("n{} and n{} lead in term {term}", at + 1, other + 1));
        }
    }

    /// The agent of a node has got this plan.
    pub(super) fn plan(&self, at: usize, node: &NodeId, plan: PlanVersion) {
        let (former, acked) = {
            let mut inner = self.lock();
            let acked = inner.acked.get(node).copied().unwrap_or_default();
            let published = inner.published.entry(node.clone()).or_default();
            let in_effect = published.range(..=acked).next_back().copied();
            published.insert(plan);
            (inner.plans[at].replace(plan), in_effect)
        };
        self.event(format!("n{} has plan {}.{}", at + 1, plan.epoch, plan.generation));
        if let Some(newer) = [former, acked].into_iter().flatten().find(|newer| *newer > plan) {
            self.violation(format!("n{} goes back from {newer:?} to {plan:?}", at + 1));
        }
    }

    /// A leader knows that this plan of a node is in effect.
    pub(super) fn acked(&self, node: &NodeId, plan: PlanVersion) {
        let mut inner = self.lock();
        let acked = inner.acked.entry(node.clone()).or_insert(plan);
        *acked = plan.max(*acked);
    }

    /// A manager has confirmed the change that adds this label.
    pub(super) fn label(&self, node: &NodeId, label: String) {
        self.event(format!("label {label} is confirmed"));
        self.lock().labels.entry(node.clone()).or_default().insert(label);
    }

    pub(super) fn count_labels(&self) -> usize {
        self.lock().labels.values().map(BTreeSet::len).sum()
    }

    /// A confirmed label that this state does not have.
    pub(super) fn lost_label(&self, state: &ClusterState) -> Option<String> {
        let inner = self.lock();
        let has = |node: &NodeId, label: &String| {
            state.nodes.get(node).is_some_and(|node| node.spec.labels.contains_key(label))
        };
        inner.labels.iter().find_map(|(node, labels)| labels.iter().find(|label| !has(node, label)).cloned())
    }
}
