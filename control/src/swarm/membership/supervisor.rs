//! Starts and stops the tasks of a membership: the node RPC's server, the link to the leader, the
//! writer of plans, and the role reconciler, which runs the manager. `lifecycle` starts and stops
//! the supervisor.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weft_model::plan::PlanVersion;

use super::{moved, role, store::MembershipStore};
use crate::{
    rpc::{self, Bound, Limits},
    swarm::{
        context::{Context, PlannedRole},
        dispatch, link,
        manager::ManagerRuntime,
        tasks::TaskGroup,
    },
};

/// Length of the queue of peers with certificates of unknown CAs. Each one tries again and again,
/// so what has no room comes back.
const UNTRUSTED: usize = 16;

/// A running membership. Dropping it without [`Self::shutdown`] leaves its tasks running.
#[derive(Debug)]
pub(in crate::swarm) struct Supervisor {
    context: Arc<Context>,
    tasks: TaskGroup,
    /// Ends the link before the other tasks.
    end_link: CancellationToken,
}

impl Supervisor {
    /// Publishes the membership and starts its tasks. `runtime` is a manager that runs already.
    pub(super) fn start(
        context: Arc<Context>,
        store: MembershipStore,
        bound: Bound,
        runtime: Option<ManagerRuntime>,
    ) -> Self {
        context.publish_membership();
        let (tasks, end_link) = (TaskGroup::default(), CancellationToken::new());
        let stop = tasks.stop_token().clone();
        let (untrusted, reported) = mpsc::channel(UNTRUSTED);
        tasks.spawn(dispatch::report_untrusted(context.clone(), reported));
        let serve = {
            let (context, tasks, stop) = (context.clone(), tasks.clone(), stop.clone());
            move |bound: Bound| {
                let routes = dispatch::routes(context.clone(), tasks.clone());
                let (tls, limits, untrusted) = (context.credentials.server(), Limits::default(), untrusted.clone());
                tasks.spawn_graceful(rpc::serve(bound, tls, routes, limits, untrusted, stop.clone()));
            }
        };
        serve(bound);
        tasks.spawn(moved::run(context.clone(), store.clone(), tasks.clone(), serve));
        let (link, ended) = (link::run(context.clone()), end_link.clone());
        tasks.spawn(async move {
            ended.run_until_cancelled(link).await;
        });
        tasks.spawn(store_plans(context.clone(), store.clone(), tasks.clone()));
        tasks.spawn_graceful(role::run(context.clone(), store, runtime, stop));
        Self { context, tasks, end_link }
    }

    pub(in crate::swarm) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Ends the link, so that the leader gets no more messages of this node.
    pub(super) fn end_link(&self) {
        self.end_link.cancel();
    }

    /// Stops all tasks, and resolves when they have ended and the manager's log is closed.
    pub(super) async fn shutdown(&self) {
        self.tasks.stop().await;
    }
}

/// Stores the newest plan, so that a restarted node has it before it finds a manager. Removes the
/// stored plan when the plan is withdrawn.
async fn store_plans(context: Arc<Context>, store: MembershipStore, tasks: TaskGroup) {
    let mut plans = context.channels.plans.subscribe();
    while plans.changed().await.is_ok() {
        let plan = plans.borrow_and_update().clone();
        let version = plan.as_ref().map_or_else(PlanVersion::default, |plan| plan.version());
        let role = plan.as_deref().map(PlannedRole::of);
        let store = store.clone();
        let stored = tasks.spawn_blocking(move || match &plan {
            Some(plan) => store.write_plan(plan),
            None => store.remove_plan(),
        });
        // A full disk must not block the leader's hand-over of traffic between tasks, so the link
        // also acks a plan that cannot be stored.
        match stored.await.map_err(|e| e.to_string()).and_then(|stored| stored.map_err(|e| e.to_string())) {
            Ok(()) => drop(context.stored_role.send_replace(role)),
            Err(error) => tracing::warn!(error, "cannot store the plan: the node uses it, but loses it at a restart"),
        }
        context.stored_version.send_replace(version);
    }
}
