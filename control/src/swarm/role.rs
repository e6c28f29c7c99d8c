//! The keeper of a node's role: its certificate and its log follow what its plan says. One task, level-triggered.
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
    home::Seat,
    join::because,
    node::{Node, Trouble, internal},
    voting::Voting,
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
const LOOK_AGAIN: Duration = Duration::from_secs(3600);

/// Keeps the role until the node stops, then closes the log.
pub(super) async fn run(node: Arc<Node>, voting: Option<Voting>) {
    let mut keeper = Keeper { spread: rand::random(), node, voting };
    keeper.offer();
    let stop = keeper.node.stop().clone();
    let mut plans = keeper.node.outlets().plans.subscribe();
    while !stop.is_cancelled() {
        let wait = match keeper.step().await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(%error, "cannot take the role that the plan says: trying again");
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = role_change(&mut plans, keeper.certified()) => {}
            () = tokio::time::sleep(wait) => {}
            reason = failed(keeper.voting.as_ref()) => {
                keeper.close_failed(reason).await;
                let _ = stop.run_until_cancelled(tokio::time::sleep(RETRY)).await;
            }
        }
    }
    keeper.close().await;
}

/// Returns when the plan wants another role than `certified`.
async fn role_change(plans: &mut watch::Receiver<Option<Arc<NodePlan>>>, certified: Role) {
    let other = |plan: &Option<Arc<NodePlan>>| plan.as_ref().is_some_and(|plan| plan.role != certified);
    if plans.wait_for(other).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn failed(voting: Option<&Voting>) -> String {
    match voting {
        Some(voting) => voting.failed().await,
        None => std::future::pending().await,
    }
}

struct Keeper {
    node: Arc<Node>,
    voting: Option<Voting>,
    /// Where in the renewal window this node renews, 0 to 1.
    spread: f64,
}

impl Keeper {
    fn certified(&self) -> Role {
        self.node.credentials().identity().peer.role
    }

    /// Brings certificate and log in line with the plan; returns when to look again.
    async fn step(&mut self) -> Result<Duration, SwarmError> {
        let planned = self.node.outlets().plans.borrow().as_ref().map(|plan| plan.role);
        let wanted = planned.unwrap_or(self.certified());
        let due = self.node.credentials().identity().renew_in(now_ms(), self.spread);
        if wanted != self.certified() || due.is_zero() {
            self.renew(wanted).await?;
        }
        match (self.certified(), &self.voting) {
            (Role::Manager, None) => self.take_seat().await?,
            (Role::Worker, Some(_)) => {
                self.close().await;
                self.node.home().forget_seat()?;
                tracing::info!("this node is a worker now");
            }
            // Left over where the daemon died in the middle of that.
            (Role::Worker, None) => self.node.home().forget_seat()?,
            (Role::Manager, Some(_)) => {}
        }
        let due = self.node.credentials().identity().renew_in(now_ms(), self.spread);
        Ok(due.clamp(RETRY, LOOK_AGAIN))
    }

    /// Gets the next certificate from whichever manager answers, and shows it from now on.
    async fn renew(&self, wanted: Role) -> Result<(), SwarmError> {
        let node = &self.node;
        let request = KeyRequest::generate().map_err(internal)?;
        let csr_pem = request.csr_pem().to_owned();
        let cert_pem = self
            .ask("renew the certificate", |channel| {
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
        node.home().write_identity(&identity)?;
        node.credentials().replace(Arc::new(identity)).map_err(internal)?;
        node.show();
        tracing::info!(role = ?wanted, "new node certificate");
        Ok(())
    }

    /// Opens the log, with what a manager needs for it.
    async fn take_seat(&mut self) -> Result<(), SwarmError> {
        let seat = match self.node.home().seat()? {
            Some(seat) => seat,
            None => self.welcome().await?,
        };
        let opened = Voting::start(&self.node, seat).await;
        let trouble = opened.as_ref().err().map(ToString::to_string);
        self.node.trouble(Trouble::Log, trouble);
        self.voting = Some(opened?);
        self.offer();
        Ok(())
    }

    async fn welcome(&self) -> Result<Seat, SwarmError> {
        let welcome = self
            .ask("begin as a manager", |channel| async move {
                QuorumClient::new(channel).welcome(WelcomeRequest {}).await.map(tonic::Response::into_inner)
            })
            .await?;
        let seat = Seat { raft_id: welcome.raft_id, kek: Kek::from_bytes(&welcome.kek).map_err(internal)? };
        self.node.home().write_seat(&seat)?;
        Ok(seat)
    }

    /// Asks one manager after the other until one answers.
    async fn ask<T, F>(&self, what: &'static str, call: impl Fn(Channel) -> F) -> Result<T, SwarmError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut reason = "no manager is known".to_owned();
        for addr in self.node.manager_addrs() {
            let dialer = Dialer::manager(addr, self.node.credentials().client());
            let answer = timeout(CALL_TIMEOUT, async {
                let channel = one_off(&dialer).await.map_err(|e| because(&e))?;
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
    fn offer(&self) {
        let manager: Option<Manager> = self.voting.as_ref().map(|voting| voting.manager().clone());
        self.node.outlets().manager.send_replace(manager);
    }

    async fn close(&mut self) {
        self.node.outlets().manager.send_replace(None);
        if let Some(voting) = self.voting.take() {
            voting.stop().await;
        }
    }

    /// The log has stopped by itself: says why, and lets the next step open it again.
    async fn close_failed(&mut self, reason: String) {
        tracing::error!(reason, "this manager's log has stopped");
        self.node.trouble(Trouble::Log, Some(reason));
        self.close().await;
    }
}
