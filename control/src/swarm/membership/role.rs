//! Keeps this node's certificate and its manager in line with the role in its plan.
//!
//! One task, started by the supervisor: a loop that compares everything again after each change.
//! - Promotion: when the plan is on the disk, a certificate of the new role, then the manager's
//!   keys, then an empty log, which the leader fills.
//! - A later Raft id in the plan: this node was demoted and promoted again, and has not noticed.
//!   The log of the former id is removed, then as for a promotion.
//! - Demotion: the plan says worker once the other managers have removed this node's vote. When
//!   the plan is on the disk, a certificate of the new role, then the log is closed and removed
//!   together with the keys.
//! - The lock of the managers: a manager encrypts its files with the key that the cluster state
//!   has, and then replaces what was on the disk before: the key of its log and its certificate. A
//!   worker does not encrypt them.
//! - Certificates are renewed before they expire. A node that was switched off longer renews its
//!   expired certificate: a manager signs its own as soon as its log is open, other nodes ask a
//!   manager.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustls::ClientConfig;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};
use weft_model::{NodePlan, spec::Role, state::ManagerLock};

use super::{
    ask::{ask_managers, read_lock},
    store::MembershipStore,
};
use crate::{
    pki::{Identity, Kek, KeyRequest, PeerIdentity},
    raft::Start,
    rpc::pb::{
        RenewRequest, ReplaceRequest, WelcomeRequest, authority_client::AuthorityClient, quorum_client::QuorumClient,
    },
    swarm::{
        clock::now_ms,
        context::{Context, HealthIssue, PlannedRole},
        error::SwarmError,
        manager::{Manager, ManagerConfig, ManagerKeys, ManagerRuntime},
    },
};

/// How long one manager has for its answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause after a failed step, and the shortest wait between two steps.
const RETRY: Duration = Duration::from_millis(500);
/// After this time the leader and `weft info` learn that the certificate cannot be renewed. Shorter
/// failures are usual: managers restart.
const PROBLEM_AFTER: Duration = Duration::from_secs(5);
/// How long a step waits until the plan that promotes this node is written.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest wait between two steps. A wait until the renewal itself could be weeks, and would
/// not notice a change of the wall clock.
const RECHECK: Duration = Duration::from_secs(3600);

/// Opens this node's log and starts its manager. A manager whose certificate has expired signs a
/// new one for itself before it calls another manager or is called. If that fails, it starts
/// anyway: another manager may renew the certificate.
///
/// # Errors
/// As [`ManagerRuntime::start`], and [`SwarmError::LogLost`].
pub(super) async fn start_manager(
    context: &Context,
    store: &MembershipStore,
    keys: ManagerKeys,
    start: Start,
) -> Result<ManagerRuntime, SwarmError> {
    store.prepare_log(&keys)?;
    let config = ManagerConfig {
        node: context.record.node.clone(),
        cluster: context.record.cluster.clone(),
        keys,
        log_path: store.log_path(),
        vault: store.vault().clone(),
        credentials: context.credentials.clone(),
        logs: context.config.logs.clone(),
        start,
    };
    let runtime = ManagerRuntime::start(config).await?;
    if context.certificate_has_expired()
        && let Err(error) = renew_own(context, store, runtime.manager())
    {
        tracing::warn!(%error, "cannot renew this manager's own certificate, asking the other managers");
    }
    Ok(runtime)
}

/// Signs a new certificate for this manager with the authority's key, which it holds itself. If it
/// lags behind, it may not have the key of the CA that signed its current certificate.
fn renew_own(context: &Context, store: &MembershipStore, manager: &Manager) -> Result<(), SwarmError> {
    let failed = |reason: String| SwarmError::Internal { what: "renew the certificate", reason };
    let request = KeyRequest::generate()?;
    let cert_pem = manager.sign(manager.node(), request.csr_pem()).map_err(|e| failed(e.to_string()))?;
    let identity = request.finish(&cert_pem, &context.credentials.identity().ca_pem)?;
    if identity.peer.role != Role::Manager {
        return Err(failed("this node is no manager any more".to_owned()));
    }
    if context.credentials.identity().is_of_signing_ca() && identity.is_of_former_ca() {
        return Err(failed("this manager has not applied the new certificate authority yet".to_owned()));
    }
    use_identity(context, store, identity)
}

/// Stores a new certificate and uses it from now on.
fn use_identity(context: &Context, store: &MembershipStore, identity: Identity) -> Result<(), SwarmError> {
    store.write_identity(&identity)?;
    let role = identity.peer.role;
    context.credentials.replace(Arc::new(identity))?;
    tracing::info!(?role, "node certificate renewed");
    Ok(())
}

/// Runs until `stop`, then stops the manager. `runtime` is a manager that runs already.
pub(super) async fn run(
    context: Arc<Context>,
    store: MembershipStore,
    runtime: Option<ManagerRuntime>,
    stop: CancellationToken,
) {
    let mut plans = context.channels.plans.subscribe();
    let mut reconciler = RoleReconciler {
        spread: crate::host::random(),
        superseded: None,
        start: Start::Resume,
        failing_since: None,
        ca_plan: context.record.ca_plan,
        context,
        store,
        runtime,
        stop: stop.clone(),
    };
    reconciler.publish_manager();
    while !stop.is_cancelled() {
        let wait = match reconciler.step().await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "cannot reconcile the role with the plan, retrying");
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = plan_change(&mut plans, &reconciler) => {}
            () = tokio::time::sleep(wait) => {}
            () = lock_change(&reconciler) => {}
            epoch = superseded(reconciler.runtime.as_ref()) => reconciler.handle_superseded(epoch).await,
            reason = log_failure(reconciler.runtime.as_ref()) => {
                reconciler.handle_failed_log(reason).await;
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
    }
    reconciler.stop_manager().await;
}

/// Resolves when the plan has another role or other CAs than this node's certificate, a later Raft
/// id than this manager, or is one of the cluster that was formed again without this manager.
async fn plan_change(plans: &mut watch::Receiver<Option<Arc<NodePlan>>>, reconciler: &RoleReconciler) {
    let (identity, raft_id) = (reconciler.context.credentials.identity(), reconciler.raft_id());
    let other = |plan: &NodePlan| {
        plan.role != identity.peer.role
            || has_new_roots(plan, &identity.ca_pem, reconciler.ca_plan)
            || raft_id.is_some_and(|raft_id| plan.raft_id > raft_id)
            || reconciler.superseded.is_some_and(|epoch| plan.epoch >= epoch)
    };
    if plans.wait_for(|plan| plan.as_deref().is_some_and(other)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether the plan names other CAs than the trusted ones, which are from the plan with the epoch
/// and generation `ca_plan`. After a restart the stored plan may be an older one.
fn has_new_roots(plan: &NodePlan, trusted_pem: &str, ca_plan: (u64, u64)) -> bool {
    !plan.roots_pem.is_empty() && plan.roots_pem != trusted_pem && (plan.epoch, plan.generation) > ca_plan
}

/// Resolves when the managers are locked with another key, or no longer.
async fn lock_change(reconciler: &RoleReconciler) {
    match &reconciler.runtime {
        Some(runtime) => runtime.manager().wait_for_lock(reconciler.store.vault().version()).await,
        None => std::future::pending().await,
    }
}

/// Resolves, with the reason, when the manager's log has stopped because of an error.
async fn log_failure(runtime: Option<&ManagerRuntime>) -> String {
    match runtime {
        Some(runtime) => runtime.wait_for_failure().await,
        None => std::future::pending().await,
    }
}

/// Resolves, with the epoch, when the cluster was formed again without this manager.
async fn superseded(runtime: Option<&ManagerRuntime>) -> u64 {
    match runtime {
        Some(runtime) => runtime.wait_until_superseded().await,
        None => std::future::pending().await,
    }
}

struct RoleReconciler {
    context: Arc<Context>,
    store: MembershipStore,
    runtime: Option<ManagerRuntime>,
    stop: CancellationToken,
    /// The epoch of the cluster that was formed again without this manager. The manager does not
    /// start again until this node has a plan of that cluster.
    superseded: Option<u64>,
    /// How the manager starts next. After one failure of its log, others may follow.
    start: Start,
    /// As `ca_plan` of the record, and current.
    ca_plan: (u64, u64),
    /// Since when no renewal of the certificate succeeds.
    failing_since: Option<Instant>,
    /// When this node renews its certificate: 0 is the beginning of the renewal window, 1 its end.
    spread: f64,
}

impl RoleReconciler {
    /// Brings the certificate and the manager in line with the plan. Returns how long to wait for
    /// the next step, if nothing changes before.
    async fn step(&mut self) -> Result<Duration, SwarmError> {
        self.forget_former_cluster()?;
        self.wait_until_role_is_stored().await;
        let plan = self.context.channels.plans.borrow().clone();
        if let Some(plan) = &plan {
            self.trust_roots(plan)?;
        }
        let changed = plan.as_deref().and_then(|plan| self.changed_role(plan));
        let is_stored = changed.is_none() || changed == *self.context.stored_role.borrow();
        if !is_stored {
            tracing::warn!("the role of this node changes when the plan that says so is stored");
        }
        let wanted = plan.as_ref().filter(|_| is_stored).map_or(self.context.certified_role(), |plan| plan.role);
        let identity = self.context.credentials.identity();
        // Until there is a plan, the node may not know the CA that signs now.
        let of_old_ca = plan.is_some_and(|plan| !plan.roots_pem.is_empty()) && !identity.is_of_signing_ca();
        let is_due = identity.renew_in(now_ms(), self.spread).is_zero() || of_old_ca;
        if wanted != self.context.certified_role() || is_due {
            let expired = self.context.certificate_has_expired();
            let renewed = self.renew(wanted, expired).await;
            let issue = renewed.as_ref().err().filter(|_| expired).map(|error| self.expiry_issue(error));
            self.context.set_issue(HealthIssue::Certificate, issue);
            self.report_renewal(renewed.as_ref().err());
            renewed?;
        } else {
            self.report_renewal(None);
        }
        if self.raft_id().is_some_and(|raft_id| self.context.raft_id_ended(raft_id)) {
            tracing::info!("this node was demoted and promoted again: it starts with an empty log");
            self.stop_manager().await;
        }
        match (self.context.certified_role(), &self.runtime) {
            (Role::Manager, None) if self.superseded.is_some() || !is_stored => {}
            (Role::Manager, None) => self.start_manager().await?,
            (Role::Worker, Some(_)) => {
                self.stop_manager().await;
                self.remove_manager_files()?;
                tracing::info!("this node is a worker now");
            }
            // Files are left if the daemon was killed during a demotion.
            (Role::Worker, None) => self.remove_manager_files()?,
            (Role::Manager, Some(_)) => {}
        }
        // Nothing else may wait for it.
        if let Err(error) = self.follow_lock().await {
            tracing::warn!(%error, "cannot lock the files of this manager with the new key, retrying");
            return Ok(RETRY);
        }
        let identity = self.context.credentials.identity();
        // A manager that lags behind has renewed an expired certificate.
        if identity.is_of_former_ca() || !is_stored {
            return Ok(RETRY);
        }
        Ok(identity.renew_in(now_ms(), self.spread).clamp(RETRY, RECHECK))
    }

    fn remove_manager_files(&self) -> Result<(), SwarmError> {
        self.store.remove_manager_files()?;
        self.store.release_lock()
    }

    /// Encrypts the files of this manager with the unlock key that the cluster state has, then
    /// replaces the secrets that were on the disk before.
    async fn follow_lock(&self) -> Result<(), SwarmError> {
        let Some(manager) = self.runtime.as_ref().map(ManagerRuntime::manager) else { return Ok(()) };
        let Some(lock) = manager.lock() else { return Ok(()) };
        let vault = self.store.vault();
        let known = vault.version();
        self.store.set_lock(&lock)?;
        if known < lock.version {
            tracing::info!(locked = lock.key.is_some(), "this manager has followed a change of the lock");
        }
        if vault.stale().log_key {
            let replaced = manager.replace_log_key(vault).await;
            replaced.map_err(|e| SwarmError::Storage { path: e.path, reason: e.reason })?;
            self.store.log_key_is_fresh()?;
        }
        if vault.stale().identity {
            self.renew(Role::Manager, self.context.certificate_has_expired()).await?;
        }
        Ok(())
    }

    /// Trusts the CAs in the plan from now on. They are stored before a certificate of a new one.
    fn trust_roots(&mut self, plan: &NodePlan) -> Result<(), SwarmError> {
        let identity = self.context.credentials.identity();
        if !has_new_roots(plan, &identity.ca_pem, self.ca_plan) {
            return Ok(());
        }
        let identity = identity.with_roots(&plan.roots_pem)?;
        let ca_plan = (plan.epoch, plan.generation);
        self.store.update_record(|record| {
            record.ca_pem.clone_from(&plan.roots_pem);
            record.ca_plan = ca_plan;
        })?;
        self.ca_plan = ca_plan;
        self.context.credentials.replace(Arc::new(identity))?;
        tracing::info!("the trusted certificate authorities have changed");
        Ok(())
    }

    /// Reports that the certificate was renewed or needs no renewal, or else why it cannot be
    /// renewed.
    fn report_renewal(&mut self, error: Option<&SwarmError>) {
        let Some(error) = error else {
            self.failing_since = None;
            return self.context.set_certificate_problem(String::new());
        };
        if self.failing_since.get_or_insert_with(Instant::now).elapsed() >= PROBLEM_AFTER {
            let expiry = self.expiry();
            let problem = format!("the node has no new certificate, and its own expires at {expiry}: {error}");
            self.context.set_certificate_problem(problem);
        }
    }

    /// When the certificate expires or has expired.
    fn expiry(&self) -> String {
        let expiry_s = self.context.credentials.identity().validity.not_after_s;
        Timestamp::from_second(expiry_s).map_or_else(|_| expiry_s.to_string(), |at| at.to_string())
    }

    /// What `weft info` shows while the certificate has expired.
    fn expiry_issue(&self, error: &SwarmError) -> String {
        let expired = self.expiry();
        format!(
            "this node's certificate expired at {expired}: {error}; the node tries again until a manager renews it. \
             Check that a manager runs and can be reached, and that the clocks of the nodes are right"
        )
    }

    /// Gets a new certificate, stores it and uses it from now on. A manager whose certificate has
    /// expired signs it itself, if it can; otherwise any manager signs it.
    ///
    /// While the CA is being replaced, the node takes no certificate of the former one: the leader
    /// may have counted the node as one that uses the new CA, and then completes the rotation. But
    /// any certificate is better than an expired one, and it is replaced at the next step.
    async fn renew(&self, wanted: Role, expired: bool) -> Result<(), SwarmError> {
        if let Some(runtime) = self.runtime.as_ref().filter(|_| expired && wanted == Role::Manager) {
            match renew_own(&self.context, &self.store, runtime.manager()) {
                Ok(()) => return self.check_not_expired(),
                Err(error) => tracing::debug!(%error, "cannot renew this manager's own certificate"),
            }
        }
        let request = KeyRequest::generate()?;
        let (identity, lock) = match self.ask_for_certificate(&request, wanted, false).await {
            Err(_) if expired => self.ask_for_certificate(&request, wanted, true).await?,
            answer => answer?,
        };
        // A manager that runs has the lock from the cluster state.
        if wanted == Role::Manager && self.runtime.is_none() {
            self.store.set_lock(&lock)?;
        }
        use_identity(&self.context, &self.store, identity)?;
        self.context.publish_membership();
        self.check_not_expired()
    }

    /// Asks the managers until one signs a certificate for this role, with the CA that signs now or
    /// with any trusted one. A manager that lags behind signs for the old role, or with the old CA.
    /// Another manager may be up to date.
    async fn ask_for_certificate(
        &self,
        request: &KeyRequest,
        wanted: Role,
        with_any_ca: bool,
    ) -> Result<(Identity, ManagerLock), SwarmError> {
        let current = self.context.credentials.identity();
        let renewal_client = self.context.credentials.renewal_client();
        self.ask_managers("renew the certificate", &renewal_client, |channel| {
            let current = &current;
            async move {
                let message = RenewRequest { csr_pem: request.csr_pem().to_owned() };
                let reply = AuthorityClient::new(channel).renew(message).await?.into_inner();
                let renewed = request.finish(&reply.cert_pem, &current.ca_pem);
                let renewed = renewed.map_err(|e| Status::internal(e.to_string()))?;
                if renewed.peer != (PeerIdentity { role: wanted, ..current.peer.clone() }) {
                    return Err(Status::unavailable("it has not applied the new role yet"));
                }
                if !with_any_ca && renewed.is_of_former_ca() {
                    return Err(Status::unavailable("it has not applied the new certificate authority yet"));
                }
                Ok((renewed, read_lock(reply.lock)))
            }
        })
        .await
    }

    /// # Errors
    /// If a certificate that was signed just now has expired by this node's clock.
    fn check_not_expired(&self) -> Result<(), SwarmError> {
        if !self.context.certificate_has_expired() {
            return Ok(());
        }
        let reason =
            "the new certificate has expired too: the clock of this node or of the manager is wrong".to_owned();
        Err(SwarmError::Internal { what: "renew the certificate", reason })
    }

    /// The role in the plan, if it makes this node a manager, or one with a later Raft id, or a
    /// worker again. The plan must be on the disk before. With an older one, a restart could make a
    /// worker of a manager that has voted, or begin a second log with the Raft id of the one that
    /// was removed: a manager that lags behind signs the certificate for it.
    fn changed_role(&self, plan: &NodePlan) -> Option<PlannedRole> {
        let changes = match plan.role {
            Role::Manager => self.raft_id().is_none_or(|raft_id| plan.raft_id > raft_id),
            Role::Worker => self.raft_id().is_some(),
        };
        changes.then(|| PlannedRole::of(plan))
    }

    /// Storing a plan takes some milliseconds. Gives up if the disk is slow or fails, because other
    /// work of a step must not wait for it.
    async fn wait_until_role_is_stored(&self) {
        let plans = &self.context.channels.plans;
        let changed = || plans.borrow().as_deref().and_then(|plan| self.changed_role(plan));
        let mut stored = self.context.stored_role.subscribe();
        let is_stored = stored.wait_for(|stored| changed().is_none_or(|changed| Some(changed) == *stored));
        // The step checks it again.
        let _waited = self.stop.run_until_cancelled(timeout(STORE_TIMEOUT, is_stored)).await;
    }

    /// The Raft id of the running manager.
    fn raft_id(&self) -> Option<u64> {
        self.runtime.as_ref().map(|runtime| runtime.manager().keys().raft_id)
    }

    async fn start_manager(&mut self) -> Result<(), SwarmError> {
        let keys = match self.store.manager_keys()?.filter(|keys| !self.context.raft_id_ended(keys.raft_id)) {
            Some(keys) => keys,
            None => self.fetch_manager_keys().await?,
        };
        let raft_id = keys.raft_id;
        let started = start_manager(&self.context, &self.store, keys, self.start).await;
        self.context.set_issue(HealthIssue::Log, started.as_ref().err().map(ToString::to_string));
        if matches!(started, Err(SwarmError::LogLost { .. })) {
            self.replace_raft_id(raft_id).await?;
        }
        self.runtime = Some(started?);
        self.publish_manager();
        Ok(())
    }

    /// Asks for another Raft id, because the log of this one is lost. The id arrives in the plan.
    async fn replace_raft_id(&self, raft_id: u64) -> Result<(), SwarmError> {
        let tls = self.context.credentials.client();
        self.ask_managers("replace this manager, whose log is lost", &tls, |channel| async move {
            QuorumClient::new(channel).replace(ReplaceRequest { raft_id }).await.map(|_| ())
        })
        .await
    }

    /// Fetches this node's raft id and the key-encryption key from any manager, and stores them.
    async fn fetch_manager_keys(&self) -> Result<ManagerKeys, SwarmError> {
        let welcome = self
            .ask_managers("become a manager", &self.context.credentials.client(), |channel| async move {
                let welcome = QuorumClient::new(channel).welcome(WelcomeRequest {}).await?.into_inner();
                // A manager that lags behind answers with the id of the last promotion.
                if self.context.raft_id_ended(welcome.raft_id) {
                    return Err(Status::unavailable("it has not applied the promotion yet"));
                }
                Ok(welcome)
            })
            .await?;
        let keys = ManagerKeys { raft_id: welcome.raft_id, kek: Kek::from_bytes(&welcome.kek)? };
        self.store.write_manager_keys(&keys)?;
        Ok(keys)
    }

    /// Asks managers until one answers or the membership stops. `what` names the request in the
    /// error.
    async fn ask_managers<T, F>(
        &self,
        what: &'static str,
        tls: &Arc<ClientConfig>,
        call: impl Fn(Channel) -> F,
    ) -> Result<T, SwarmError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let answer = ask_managers(tls, self.context.manager_addrs(), CALL_TIMEOUT, call);
        let answer = self.stop.run_until_cancelled(answer).await;
        let answer = answer.unwrap_or_else(|| Err("the daemon or the membership is stopping".to_owned()));
        answer.map_err(|reason| SwarmError::Internal { what, reason })
    }

    /// Publishes the running manager to the callers of the swarm module and to the dispatcher.
    fn publish_manager(&self) {
        let manager: Option<Manager> = self.runtime.as_ref().map(|runtime| runtime.manager().clone());
        self.context.channels.manager.send_replace(manager);
    }

    async fn stop_manager(&mut self) {
        self.context.channels.manager.send_replace(None);
        if let Some(runtime) = self.runtime.take() {
            runtime.stop().await;
        }
    }

    /// Removes the log of the former cluster, once this node has a plan of the new one.
    fn forget_former_cluster(&mut self) -> Result<(), SwarmError> {
        let plan = self.context.channels.plans.borrow().clone();
        let joined = |epoch: u64| plan.as_ref().is_some_and(|plan| plan.epoch >= epoch);
        if self.superseded.is_some_and(joined) {
            self.store.remove_manager_files()?;
            self.superseded = None;
            self.context.set_issue(HealthIssue::Superseded, None);
        }
        Ok(())
    }

    /// Stops the manager after the cluster was formed again without it.
    async fn handle_superseded(&mut self, epoch: u64) {
        tracing::warn!(epoch, "the cluster was formed again without this manager: it becomes a worker");
        self.superseded = Some(epoch);
        let text = "the cluster was formed again from another manager: this node waits to become a worker of it";
        self.context.set_issue(HealthIssue::Superseded, Some(text.to_owned()));
        self.stop_manager().await;
    }

    /// Stops the manager after its log has stopped because of an error. The next step opens the log
    /// again.
    async fn handle_failed_log(&mut self, reason: String) {
        tracing::error!(reason, "the manager's log has stopped");
        self.context.set_issue(HealthIssue::Log, Some(reason));
        self.start = Start::AfterFailure;
        self.stop_manager().await;
    }
}

#[cfg(test)]
mod tests {
    use weft_model::NodeId;

    use super::*;

    #[test]
    fn only_a_newer_plan_changes_the_trusted_authorities() {
        let plan = |epoch, generation, roots: &str| NodePlan {
            generation,
            epoch,
            roots_pem: roots.to_owned(),
            ..NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into())
        };
        for (plan, expected) in [
            (plan(1, 8, "new"), true),
            (plan(2, 3, "new"), true),
            (plan(1, 7, "new"), false),
            (plan(1, 6, "old"), false),
            (plan(0, 9, "old"), false),
            (plan(1, 8, "trusted"), false),
            (plan(1, 8, ""), false),
        ] {
            assert_eq!(has_new_roots(&plan, "trusted", (1, 7)), expected, "{plan:?}");
        }
    }
}
