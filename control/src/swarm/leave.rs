//! How a node leaves: what speaks against it, and how the others learn of it.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};
use weft_model::{
    Command, Rejection,
    spec::{NodeSpec, Role},
};

use super::{Manager, ProposeError, SwarmError, join::root_cause, node::Node};
use crate::rpc::{
    Dialer, one_off,
    pb::{LeaveRequest, dispatcher_client::DispatcherClient},
};

/// How long the others have to take a manager's vote away.
const STEP_DOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long to look for a leader to tell; in which another can be elected.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// One manager's answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);

/// A manager leaves by force only, and the error says what that does.
pub(super) fn check_allowed(node: &Node, force: bool) -> Result<(), SwarmError> {
    if force || node.credentials().identity().peer.role == Role::Worker {
        return Ok(());
    }
    let managers = node.manager().map_or(1, |manager| manager.other_managers().len() + 1);
    let consequence = match managers {
        0 | 1 => "It is the last manager: leaving erases the swarm's whole state.".to_owned(),
        2 => "Only one manager would be left, and the swarm would not survive its loss. \
              Consider promoting another node first (weft node promote)."
            .to_owned(),
        more => format!(
            "{} of {more} managers would be left. Consider demoting this one first (weft node demote).",
            more - 1
        ),
    };
    Err(SwarmError::ManagerNeedsForce { consequence })
}

/// Tells the others, as far as they can be reached: whoever leaves by force leaves also where nobody answers.
pub(super) async fn announce(node: &Node) {
    if let Some(manager) = node.manager() {
        if manager.other_managers().is_empty() {
            return;
        }
        if let Err(error) = step_down(node, &manager).await {
            tracing::warn!(%error, "leaving while the others still count on this manager");
        }
    }
    // A node that goes on reporting would be taken for one that came back.
    node.end_session();
    let notified = timeout(NOTIFY_TIMEOUT, async {
        while !notify_leader(node).await {
            tokio::time::sleep(RETRY).await;
        }
    });
    if notified.await.is_err() {
        tracing::warn!("no leader could be notified that this node leaves: it will be missed instead");
    }
}

/// Asks one manager after the other until the leader has taken note.
async fn notify_leader(node: &Node) -> bool {
    for addr in node.manager_addrs().into_iter().filter(|addr| *addr != own_addr(node)) {
        let dialer = Dialer::manager(addr, node.credentials().client());
        let notified = timeout(CALL_TIMEOUT, async {
            let channel = one_off(&dialer).await.map_err(|error| root_cause(&error))?;
            let left = DispatcherClient::new(channel).leave(LeaveRequest {}).await;
            left.map_err(|status| status.message().to_owned())
        });
        match notified.await {
            Ok(Ok(_)) => return true,
            Ok(Err(reason)) => tracing::debug!(%addr, reason, "not notified that this node leaves"),
            Err(_) => tracing::debug!(%addr, "does not answer that this node leaves"),
        }
    }
    false
}

fn own_addr(node: &Node) -> std::net::SocketAddr {
    std::net::SocketAddr::new(node.record().addr, node.record().listen_addr.port())
}

/// Gives up this manager's vote, so that the others do not miss it.
async fn step_down(node: &Node, manager: &Manager) -> Result<(), ProposeError> {
    let deadline = Instant::now() + STEP_DOWN_TIMEOUT;
    loop {
        let (version, spec) = {
            let state = manager.state();
            let state = state.borrow();
            let Some(me) = state.nodes.get(manager.node()) else { return Ok(()) };
            (me.meta.version, NodeSpec { role: Role::Worker, ..me.spec.clone() })
        };
        let demote = Command::UpdateNode { id: manager.node().clone(), version, spec };
        match timeout_at(deadline, manager.propose(demote)).await {
            Ok(Ok(_)) => break,
            Ok(Err(ProposeError::Rejected(Rejection::OutOfSequence { .. }))) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(ProposeError::Unavailable { reason: "the others do not answer".to_owned() }),
        }
    }
    // The keeper of the role closes the log once the vote is gone.
    let mut running = node.channels().manager.subscribe();
    match timeout_at(deadline, running.wait_for(Option::is_none)).await {
        Ok(_) => Ok(()),
        Err(_) => Err(ProposeError::Unavailable { reason: "the others did not take its vote away in time".to_owned() }),
    }
}
