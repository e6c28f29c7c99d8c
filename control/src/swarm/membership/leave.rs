//! Steps before a node leaves: a manager gives up its vote, and the node notifies the leader.
//! `lifecycle` calls this module and stops the tasks afterwards.

use std::{net::SocketAddr, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::Code;
use weft_model::{NodePlan, spec::Role};

use super::{ask::ask_managers, supervisor::Supervisor};
use crate::{
    pki,
    rpc::pb::{LeaveRequest, MayLeaveRequest, authority_client::AuthorityClient, dispatcher_client::DispatcherClient},
    swarm::{
        context::{Context, Record},
        error::{ProposeError, SwarmError},
        manager::Manager,
        types::SwarmConfig,
    },
};

/// How long the other managers have to remove this manager's vote.
const STEP_DOWN_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the node tries to notify a leader. Long enough for an election.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one manager has for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one manager has to ask the leader, which asks the other managers.
const ABSENCE_TIMEOUT: Duration = Duration::from_secs(4);
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

/// Gives up this manager's vote, ends the link, and notifies the leader. Resolves within 14 s. That
/// the leader is not notified is only logged: a worker can also leave if no other node answers.
///
/// # Errors
/// [`SwarmError::LeaveRefused`] if the other managers cannot do without this manager's vote, or
/// cannot remove it. The node then stays a member.
pub(super) async fn announce(supervisor: &Supervisor) -> Result<(), SwarmError> {
    let context = supervisor.context();
    match context.manager() {
        Some(manager) if manager.other_managers().is_empty() => return Ok(()),
        Some(manager) => step_down(context, &manager).await?,
        None if context.certified_role() == Role::Manager => step_down_without_log(context, "it does not run").await?,
        None => {}
    }
    // If this node sent another message after the leader was notified, the leader would set it to
    // ready again.
    supervisor.end_link();
    if let Err(reason) | Ok(Err(reason)) = notify_leader(context).await {
        tracing::warn!(reason, "cannot notify the leader: it sets this node to down after the heartbeat timeout");
    }
    Ok(())
}

/// Asks the leader whether the other managers can do without this one, which cannot give up its
/// vote: it is locked, or its membership has stopped. Its vote remains until it is demoted on
/// another manager.
///
/// # Errors
/// [`SwarmError::LeaveRefused`] if they cannot, or no leader answers.
pub(super) async fn check_absence(
    config: &SwarmConfig,
    record: &Record,
    plan: Option<&NodePlan>,
) -> Result<(), SwarmError> {
    if plan.is_some_and(|plan| plan.role == Role::Worker) {
        return Ok(());
    }
    let planned = plan.iter().flat_map(|plan| &plan.managers).filter(|manager| manager.node != record.node);
    let mut others: Vec<SocketAddr> = planned.map(|manager| manager.rpc_addr).collect();
    if plan.is_none() {
        others.clone_from(&record.remotes);
    }
    if others.is_empty() {
        return Ok(());
    }
    let tls = pki::pinned_client(&record.ca_pem)?;
    let answer = ask_managers(&tls, others.iter().copied(), ABSENCE_TIMEOUT, |channel| async move {
        AuthorityClient::new(channel).may_leave(MayLeaveRequest { node: record.node.to_string() }).await
    });
    let reason = match answer.await.map(|answer| answer.into_inner().refusal) {
        Ok(refusal) if refusal.is_empty() => {
            tracing::warn!("leaving without giving up the vote: demote and remove this node on another manager");
            return Ok(());
        }
        Ok(refusal) => refusal,
        Err(reason) => {
            let missing = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!(
                "no leader answers that could tell whether the swarm has a quorum without it ({reason}); start the \
                 managers {missing} first, or unlock this one. {}",
                if_lost_for_ever(config)
            )
        }
    };
    Err(SwarmError::LeaveRefused { reason })
}

/// Asks one manager after the other until the leader has set this node to down, and has made a
/// worker of it. The inner error is the reason why the leader refuses that.
///
/// # Errors
/// The reason why no leader answers.
async fn notify_leader(context: &Context) -> Result<Result<(), String>, String> {
    let tls = context.credentials.client();
    let deadline = Instant::now() + NOTIFY_TIMEOUT;
    loop {
        let answer = ask_managers(&tls, other_managers(context), CALL_TIMEOUT, |channel| async move {
            match DispatcherClient::new(channel).leave(LeaveRequest {}).await {
                Ok(_) => Ok(Ok(())),
                Err(status) if status.code() == Code::Aborted => Ok(Err(status.message().to_owned())),
                Err(status) => Err(status),
            }
        });
        match answer.await {
            Err(_) if Instant::now() + RETRY < deadline => tokio::time::sleep(RETRY).await,
            last => return last,
        }
    }
}

/// The addresses of the managers that the plan names, without this node's own.
fn other_managers(context: &Context) -> Vec<SocketAddr> {
    let own = context.own_rpc_addr();
    context.manager_addrs().into_iter().filter(|addr| *addr != own).collect()
}

/// Demotes this node and waits until its manager has stopped, so that the other managers no longer
/// count its vote.
async fn step_down(context: &Context, manager: &Manager) -> Result<(), SwarmError> {
    let refused = |reason: String| Err(SwarmError::LeaveRefused { reason });
    let deadline = Instant::now() + STEP_DOWN_TIMEOUT;
    match timeout_at(deadline, manager.demote(manager.node())).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => return Ok(()),
        Ok(Err(ProposeError::Unavailable { reason })) => return step_down_without_log(context, &reason).await,
        Ok(Err(ProposeError::Rejected(rejection))) => return refused(rejection.to_string()),
        Ok(Err(ProposeError::NoQuorum { .. })) | Err(_) => return refused(no_leader(context, manager)),
    }
    // The plan says so once the others have removed the vote. Then the role reconciler stops the
    // manager, unless the disk is full.
    let (mut running, mut plans) = (context.channels.manager.subscribe(), context.channels.plans.subscribe());
    let removed = async {
        tokio::select! {
            _ = running.wait_for(Option::is_none) => {}
            _ = plans.wait_for(|plan| plan.as_ref().is_some_and(|plan| plan.role == Role::Worker)) => {}
        }
    };
    match timeout_at(deadline, removed).await {
        Ok(()) => Ok(()),
        Err(_) => refused("the other managers have not removed its vote yet: try again".to_owned()),
    }
}

/// Demotes this node through the leader: its own manager can propose nothing, for the reason `why`.
/// The vote that it does not use still counts: if its log comes back, it may be the one that the
/// others need.
async fn step_down_without_log(context: &Context, why: &str) -> Result<(), SwarmError> {
    let others = other_managers(context);
    if others.is_empty() {
        return Ok(());
    }
    let reason = match notify_leader(context).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(refusal)) => refusal,
        Err(reason) => {
            let missing = others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            format!(
                "no leader answers that could remove its vote ({reason}), and its own log cannot be used ({why}); \
                 start the managers {missing} first. {}",
                if_lost_for_ever(&context.config)
            )
        }
    };
    Err(SwarmError::LeaveRefused { reason })
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
         first. {}",
        missing.join(", "),
        if_lost_for_ever(&context.config)
    )
}

fn if_lost_for_ever(config: &SwarmConfig) -> String {
    format!(
        "If they are lost for ever, a manager that still has its log can go on without them (weft swarm init \
         --force-new-cluster); to reset this node alone, stop its daemon and remove {}",
        config.data_dir.join("swarm").display()
    )
}
