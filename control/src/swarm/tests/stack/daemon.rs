//! What runs on a simulated machine: the daemon, an agent that programs nothing, clients, and
//! observers.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use weft_model::{
    ClusterState, Command, NodeId, NodePlan, NodeReport,
    spec::{NodeSpec, Role},
};

use super::{
    super::{
        fixture::report,
        histories::{Client, Recorder},
    },
    observed::{Acks, MANAGERS, Observed},
};
use crate::{
    fixture::simulated,
    swarm::{Manager, ProposeError, Swarm, SwarmConfig},
};

/// The pause of a client that adds labels.
const LABEL_PAUSE: Duration = Duration::from_millis(410);
/// After how long a daemon that could not start is started again.
const START_AGAIN: Duration = Duration::from_secs(1);
/// How long a client repeats a change that was refused or not answered.
const REPEAT_FOR: Duration = Duration::from_secs(8);
const REPEAT: Duration = Duration::from_millis(150);

/// Starts the daemon of a node, its agent and its observers, and resolves when it runs.
pub(super) async fn start(config: SwarmConfig, at: usize, observed: &Arc<Observed>) -> Swarm {
    let disk = simulated::current().expect("a simulated machine").disk.clone();
    let swarm = loop {
        match Swarm::open(config.clone()).await {
            Ok(swarm) => break swarm,
            Err(error) if disk.is_healthy() => {
                observed.violation(format!("n{} does not start: {error}", at + 1));
                std::future::pending::<()>().await;
            }
            Err(_) => sleep(START_AGAIN).await,
        }
    };
    observed.set_swarm(at, Some(swarm.clone()));
    tokio::spawn(agent(swarm.plans(), swarm.reports(), observed.acks[at].subscribe(), at, observed.clone()));
    tokio::spawn(observe_manager(swarm.clone(), at, observed.clone()));
    swarm
}

/// Starts the clients at a manager. `number` is one that no other clients have.
pub(super) fn start_clients(
    swarm: &Swarm,
    at: usize,
    number: usize,
    observed: &Arc<Observed>,
    recorder: &Arc<Recorder>,
) {
    if at < MANAGERS {
        tokio::spawn(Client::new(number, at, swarm, recorder.clone()).run());
        tokio::spawn(label_client(swarm.clone(), at, number, observed.clone()));
    }
}

/// Reports the plans as the fault of this node says.
async fn agent(
    mut plans: watch::Receiver<Option<Arc<NodePlan>>>,
    reports: watch::Sender<NodeReport>,
    mut acks: watch::Receiver<Acks>,
    at: usize,
    observed: Arc<Observed>,
) {
    loop {
        let plan = plans.borrow_and_update().clone();
        if let Some(plan) = &plan {
            observed.plan(at, &plan.node, plan.version());
        }
        let waits = *acks.borrow_and_update();
        match waits {
            Acks::AtOnce => {}
            Acks::After(time) => sleep(time).await,
            Acks::Never => {
                tokio::select! {
                    biased;
                    changed = acks.changed() => if changed.is_err() { return },
                    changed = plans.changed() => if changed.is_err() { return },
                }
                continue;
            }
        }
        reports.send_replace(plan.map_or_else(NodeReport::default, |plan| report(&plan)));
        tokio::select! {
            biased;
            changed = plans.changed() => if changed.is_err() { return },
            changed = acks.changed() => if changed.is_err() { return },
        }
    }
}

/// Tells what the manager of this node does, while there is one.
async fn observe_manager(swarm: Swarm, at: usize, observed: Arc<Observed>) {
    let mut managers = swarm.lifecycle.channels.manager.subscribe();
    loop {
        let manager = managers.borrow_and_update().clone();
        tokio::select! {
            biased;
            changed = managers.changed() => if changed.is_err() { return },
            () = observe_state(manager, at, &observed) => {}
        }
    }
}

async fn observe_state(manager: Option<Manager>, at: usize, observed: &Observed) {
    let Some(manager) = manager else { return std::future::pending().await };
    let (mut states, mut terms) = (manager.state(), manager.tracker().term());
    loop {
        let state = states.borrow_and_update().clone();
        if state.cluster.is_some() {
            observed.state(at, &state);
        }
        let changed = tokio::select! {
            biased;
            changed = terms.changed() => changed.map(|()| {
                if let Some(term) = *terms.borrow_and_update() {
                    observed.leads(at, term);
                }
            }),
            changed = states.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Adds labels to the manager's own node, one after the other, and tells which were confirmed.
async fn label_client(swarm: Swarm, at: usize, number: usize, observed: Arc<Observed>) {
    let disk = simulated::current().expect("a simulated machine").disk.clone();
    for label in 0.. {
        sleep(LABEL_PAUSE).await;
        if observed.has_ended() {
            return;
        }
        let Some(manager) = swarm.manager() else { continue };
        let label = format!("{at}-{number}-{label}");
        let node = manager.node().clone();
        // A change without an answer may have been made. A machine without power receives none.
        if add_label(&manager, &node, &label).await.is_ok() && disk.is_on() {
            observed.label(&node, label);
        }
    }
}

/// Adds a label to a node, from the state that this manager has. An older state is refused by the
/// leader, because the version of the node is another one.
pub(super) async fn add_label(manager: &Manager, node: &NodeId, label: &str) -> Result<(), ProposeError> {
    let (version, mut spec) = {
        let state = manager.state();
        let state = state.borrow();
        (state.nodes[node].meta.version, state.nodes[node].spec.clone())
    };
    spec.labels.insert(label.to_owned(), String::new());
    manager.propose(Command::UpdateNode { id: node.clone(), version, spec }).await.map(|_| ())
}

/// Makes a change that is computed from the state, and repeats it until it is confirmed or takes
/// too long.
pub(super) async fn change(swarm: Swarm, command: impl Fn(&ClusterState) -> Option<Command> + Send + Sync) {
    let changed = async {
        loop {
            if let Some(manager) = swarm.manager() {
                let command = command(&manager.state().borrow());
                let Some(command) = command else { return };
                if manager.propose(command).await.is_ok() {
                    return;
                }
            }
            sleep(REPEAT).await;
        }
    };
    // The next one may be made without it.
    let _ = timeout(REPEAT_FOR, changed).await;
}

/// Gives a node another role, if it has not.
pub(super) async fn set_role(swarm: Swarm, node: NodeId, role: Role) {
    change(swarm, move |state| {
        let known = state.nodes.get(&node).filter(|known| known.spec.role != role)?;
        let spec = NodeSpec { role, ..known.spec.clone() };
        Some(Command::UpdateNode { id: node.clone(), version: known.meta.version, spec })
    })
    .await;
}
