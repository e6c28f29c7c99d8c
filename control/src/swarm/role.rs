//! The reconciler of a node's role: its certificate and its log follow what its plan says. One task, level-triggered.
//!
//! Promotion: a certificate for the new role, then the key-encryption key, then the log, which the leader fills.
//! Demotion: once the plan says so the others have taken the vote away; a worker's certificate, then the log goes.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tonic::{Status, transport::Channel};
use weft_model::{NodePlan, spec::Role};

use super::{
    Manager, SwarmError,
    clock::now_ms,
    home::ManagerKeys,
    join::root_cause,
    node::{HealthIssue, Node, internal},
    voting::ManagerRuntime,
};
use crate::{
    pki::{Kek, KeyRequest, PeerIdentity},
    rpc::{
        Dialer, one_off,
        pb::{RenewRequest, WelcomeRequest, authority_client::AuthorityClient, quorum_client::QuorumClient},
    },
};

/// One manager's answer may take that long.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Until the next try of whatever failed.
const RETRY: Duration = Duration::from_millis(500);
/// A certificate is looked at that often: sleeping for weeks would not notice a clock that was set.
const RECHECK: Duration = Duration::from_secs(3600);

/// Keeps the role until the node stops, then closes the log.
pub(super) async fn run(node: Arc<Node>, runtime: Option<ManagerRuntime>) {
    let mut reconciler = RoleReconciler { spread: rand::random(), node, runtime };
    reconciler.publish_manager();
    let stop = reconciler.node.stop().clone();
    let mut plans = reconciler.node.channels().plans.subscribe();
    while !stop.is_cancelled() {
        let wait = match reconciler.step().await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "cannot take the role that the plan says: trying again");
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = role_change(&mut plans, reconciler.certified_role()) => {}
            () = tokio::time::sleep(wait) => {}
            reason = log_failure(reconciler.runtime.as_ref()) => {
                reconciler.handle_failed_log(reason).await;
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
    }
    reconciler.stop_manager().await;
}

/// Returns when the plan wants another role than `certified`.
async fn role_change(plans: &mut watch::Receiver<Option<Arc<NodePlan>>>, certified: Role) {
    let other = |plan: &Option<Arc<NodePlan>>| plan.as_ref().is_some_and(|plan| plan.role != certified);
    if plans.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn log_failure(runtime: Option<&ManagerRuntime>) -> String {
    match runtime {
        Some(runtime) => runtime.wait_for_failure().await,
        None => std::future::pending().await,
    }
}

struct RoleReconciler {
    node: Arc<Node>,
    runtime: Option<ManagerRuntime>,
    /// Where in the renewal window this node renews, 0 to 1.
    spread: f64,
}

impl RoleReconciler {
    fn certified_role(&self) -> Role {
        self.node.credentials().identity().peer.role
    }

    /// Brings certificate and log in line with the plan; returns when to look again.
    async fn step(&mut self) -> Result<Duration, SwarmError> {
        let planned = self.node.channels().plans.borrow().as_ref().map(|plan| plan.role);
        let wanted = planned.unwrap_or(self.certified_role());
        let due = self.node.credentials().identity().renew_in(now_ms(), self.spread);
        if wanted != self.certified_role() || due.is_zero() {
            self.renew(wanted).await?;
        }
        match (self.certified_role(), &self.runtime) {
            (Role::Manager, None) => self.start_manager().await?,
            (Role::Worker, Some(_)) => {
                self.stop_manager().await;
                self.node.store().remove_manager_files()?;
                tracing::info!("this node is a worker now");
            }
            // Left over where the daemon died in the middle of that.
            (Role::Worker, None) => self.node.store().remove_manager_files()?,
            (Role::Manager, Some(_)) => {}
        }
        let due = self.node.credentials().identity().renew_in(now_ms(), self.spread);
        Ok(due.clamp(RETRY, RECHECK))
    }

    /// Gets the next certificate from whichever manager answers, and shows it from now on.
    async fn renew(&self, wanted: Role) -> Result<(), SwarmError> {
        let node = &self.node;
        let request = KeyRequest::generate().map_err(internal)?;
        let csr_pem = request.csr_pem().to_owned();
        let cert_pem = self
            .ask_managers("renew the certificate", |channel| {
                let request = RenewRequest { csr_pem: csr_pem.clone() };
                async move {
                    let cert_pem = AuthorityClient::new(channel).renew(request).await?.into_inner().cert_pem;
                    let signed = PeerIdentity::from_pem(&cert_pem).map_err(|e| Status::internal(e.to_string()))?;
                    // A manager that lags behind knows the old role only; another one may know the new.
                    if signed.role == wanted { Ok(cert_pem) } else { Err(Status::unavailable("it lags behind")) }
                }
            })
            .await?;
        let identity = request.finish(&cert_pem, &node.record().ca_pem).map_err(internal)?;
        node.store().write_identity(&identity)?;
        node.credentials().replace(Arc::new(identity)).map_err(internal)?;
        node.publish_membership();
        tracing::info!(role = ?wanted, "new node certificate");
        Ok(())
    }

    /// Opens the log, with what a manager needs for it.
    async fn start_manager(&mut self) -> Result<(), SwarmError> {
        let keys = match self.node.store().manager_keys()? {
            Some(keys) => keys,
            None => self.fetch_manager_keys().await?,
        };
        let opened = ManagerRuntime::start(&self.node, keys).await;
        let trouble = opened.as_ref().err().map(ToString::to_string);
        self.node.set_issue(HealthIssue::Log, trouble);
        self.runtime = Some(opened?);
        self.publish_manager();
        Ok(())
    }

    async fn fetch_manager_keys(&self) -> Result<ManagerKeys, SwarmError> {
        let welcome = self
            .ask_managers("begin as a manager", |channel| async move {
                QuorumClient::new(channel).welcome(WelcomeRequest {}).await.map(tonic::Response::into_inner)
            })
            .await?;
        let keys = ManagerKeys { raft_id: welcome.raft_id, kek: Kek::from_bytes(&welcome.kek).map_err(internal)? };
        self.node.store().write_manager_keys(&keys)?;
        Ok(keys)
    }

    /// Asks one manager after the other until one answers.
    async fn ask_managers<T, F>(&self, what: &'static str, call: impl Fn(Channel) -> F) -> Result<T, SwarmError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut reason = "no manager is known".to_owned();
        for addr in self.node.manager_addrs() {
            let dialer = Dialer::manager(addr, self.node.credentials().client());
            let answer = timeout(CALL_TIMEOUT, async {
                let channel = one_off(&dialer).await.map_err(|e| root_cause(&e))?;
                call(channel).await.map_err(|status| status.message().to_owned())
            });
            match self.node.stop().run_until_cancelled(answer).await {
                Some(Ok(Ok(answer))) => return Ok(answer),
                Some(Ok(Err(error))) => reason = format!("{addr}: {error}"),
                Some(Err(_)) => reason = format!("{addr} does not answer"),
                None => return Err(SwarmError::Internal { what, reason: "the node stops".to_owned() }),
            }
        }
        Err(SwarmError::Internal { what, reason })
    }

    /// Lets callers have the running manager.
    fn publish_manager(&self) {
        let manager: Option<Manager> = self.runtime.as_ref().map(|runtime| runtime.manager().clone());
        self.node.channels().manager.send_replace(manager);
    }

    async fn stop_manager(&mut self) {
        self.node.channels().manager.send_replace(None);
        if let Some(runtime) = self.runtime.take() {
            runtime.stop().await;
        }
    }

    /// The log has stopped by itself: says why, and lets the next step open it again.
    async fn handle_failed_log(&mut self, reason: String) {
        tracing::error!(reason, "this manager's log has stopped");
        self.node.set_issue(HealthIssue::Log, Some(reason));
        self.stop_manager().await;
    }
}
