//! Steps before a node leaves: a manager gives up its vote, and the node notifies the leader.
//! `lifecycle` calls this module and stops the tasks afterwards.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout, timeout_at};
use weft_model::{
    Command, Rejection,
    spec::{NodeSpec, Role},
};

use super::{ask::ask_managers, supervisor::Supervisor};
use crate::{
    rpc::pb::{LeaveRequest, dispatcher_client::DispatcherClient},
    swarm::{
        context::Context,
        error::{ProposeError, SwarmError},
        manager::Manager,
    },
};

/// How long the other managers have to remove this manager's vote.
const STEP_DOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the node tries to notify a leader. Long enough for an election.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one manager has for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);

/// # Errors
/// [`SwarmError::ManagerNeedsForce`], with the consequence of leaving, on a manager without
/// `force`.
pub(super) fn check_allowed(context: &Context, force: bool) -> Result<(), SwarmError> {
    if force || context.certified_role() == Role::Worker {
        return Ok(());
    }
    let managers = context.manager().map_or(1, |manager| manager.other_managers().len() + 1);
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

/// Gives up this manager's vote, ends the link, and notifies the leader. Resolves within 13 s. That
/// the leader is not notified is only logged: a worker can also leave if no other node answers.
///
/// # Errors
/// [`SwarmError::LeaveRefused`] if the other managers cannot do without this manager's vote, or
/// cannot remove it. The node then stays a member.
pub(super) async fn announce(supervisor: &Supervisor) -> Result<(), SwarmError> {
    let context = supervisor.context();
    if let Some(manager) = context.manager() {
        if manager.other_managers().is_empty() {
            return Ok(());
        }
        step_down(context, &manager).await?;
    }
    // If this node sent another message after the leader was notified, the leader would set it to
    // ready again.
    supervisor.end_link();
    let notified = timeout(NOTIFY_TIMEOUT, async {
        while !notify_leader(context).await {
            tokio::time::sleep(RETRY).await;
        }
    });
    if notified.await.is_err() {
        tracing::warn!("cannot notify the leader: it sets this node to down after the heartbeat timeout");
    }
    Ok(())
}

/// Asks one manager after the other until the leader has set this node to down.
async fn notify_leader(context: &Context) -> bool {
    let own_addr = SocketAddr::new(*context.addr.borrow(), context.record.listen_addr.port());
    let others = context.manager_addrs().into_iter().filter(|addr| *addr != own_addr);
    let tls = context.credentials.client();
    let left = ask_managers(&tls, others, CALL_TIMEOUT, |channel| async move {
        DispatcherClient::new(channel).leave(LeaveRequest {}).await
    });
    left.await.is_ok()
}

/// Demotes this node and waits until its manager has stopped, so that the other managers no longer
/// count its vote.
async fn step_down(context: &Context, manager: &Manager) -> Result<(), SwarmError> {
    let refused = |reason: String| Err(SwarmError::LeaveRefused { reason });
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
            // The others are members of the log only until they have been removed.
            Ok(Err(ProposeError::Rejected(Rejection::LastManager { .. }))) => return Ok(()),
            Ok(Err(ProposeError::Unavailable { reason })) => {
                // Its log has stopped, or it was removed: it has no vote to give up.
                tracing::warn!(reason, "leaving without giving up the vote");
                return Ok(());
            }
            Ok(Err(ProposeError::Rejected(rejection))) => return refused(rejection.to_string()),
            Ok(Err(ProposeError::NoQuorum { .. })) | Err(_) => return refused(no_leader(context, manager)),
        }
    }
    // The role reconciler stops the manager once the others have removed its vote.
    let mut running = context.channels.manager.subscribe();
    match timeout_at(deadline, running.wait_for(Option::is_none)).await {
        Ok(_) => Ok(()),
        Err(_) => refused("the other managers have not removed its vote yet: try again".to_owned()),
    }
}

/// Why no leader removes this manager's vote, and what to do.
fn no_leader(context: &Context, manager: &Manager) -> String {
    let others = manager.other_managers().into_iter();
    let missing: Vec<_> =
        others.filter(|(node, _)| !manager.manager_reachable(node)).map(|(_, addr)| addr.to_string()).collect();
    if missing.is_empty() {
        return "the swarm has no leader: try again".to_owned();
    }
    format!(
        "the swarm has no leader that could remove its vote, because these managers do not answer: {}; start them \
         first. If they are lost for ever, this node can only be reset: stop its daemon and remove {}",
        missing.join(", "),
        context.config.data_dir.join("swarm").display()
    )
}
