//! What all tasks of one membership share: values, and the channels to the callers of the swarm
//! module.
//!
//! The membership module creates a [`Context`] when a membership begins and hands it to the
//! dispatcher, the link and its own tasks. A context starts no task and writes no file. While a
//! membership runs, only this module publishes [`Membership`].

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_model::{
    NodeId, NodePlan, NodeReport,
    id::ClusterId,
    plan::{ManagerPlan, PlanVersion},
    spec::Role,
};

use super::{
    clock::now_ms,
    error::SwarmError,
    liveness::CertificateStatus,
    manager::Manager,
    types::{Membership, SwarmConfig},
};
use crate::pki::{Credentials, Identity};

/// The channels between the swarm module and its callers. They outlive a membership: a caller that
/// subscribed before a node leaves also sees the next membership. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct NodeChannels {
    pub membership: watch::Sender<Membership>,
    /// The newest plan of this node. `None` while it is not a member, and after it was removed.
    pub plans: watch::Sender<Option<Arc<NodePlan>>>,
    /// The agent writes its latest report here.
    pub reports: watch::Sender<NodeReport>,
    /// The running manager, also before the cluster state has reached it.
    pub manager: watch::Sender<Option<Manager>>,
    /// While it is true, this node's log accepts no append once it has an entry.
    #[cfg(test)]
    pub hold_appends: watch::Sender<bool>,
}

impl Default for NodeChannels {
    fn default() -> Self {
        Self {
            membership: watch::Sender::new(Membership::None),
            plans: watch::Sender::new(None),
            reports: watch::Sender::new(NodeReport::default()),
            manager: watch::Sender::new(None),
            #[cfg(test)]
            hold_appends: watch::Sender::new(false),
        }
    }
}

/// Identifies this node and its cluster. It is stored on the disk. The CAs change during a
/// membership; the rest does not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub cluster: ClusterId,
    pub node: NodeId,
    /// The advertised address.
    pub addr: IpAddr,
    /// The link that had this address when it was seen last. `None`: the machine has never had it,
    /// for example because the address is that of a router in front of it.
    #[serde(default)]
    pub link: Option<String>,
    pub listen_addr: SocketAddr,
    /// Managers to ask until this node has a plan. The plan lists the current managers.
    pub remotes: Vec<SocketAddr>,
    /// The trusted CAs in PEM. The record of a running membership has those from its start; the
    /// current ones are in [`Context::credentials`].
    pub ca_pem: String,
    /// The epoch and the generation of the plan that named these CAs. A plan that is not newer does
    /// not change them.
    #[serde(default)]
    pub ca_plan: (u64, u64),
}

impl Record {
    /// The record of this node with another address. It listens there too, if it listened at its
    /// address only.
    pub(super) fn at(&self, addr: IpAddr) -> Self {
        let listened = self.listen_addr.ip() == self.addr;
        let ip = if listened { addr } else { self.listen_addr.ip() };
        Self { addr, listen_addr: SocketAddr::new(ip, self.listen_addr.port()), ..self.clone() }
    }
}

/// A problem that prevents a member from working. If there are several, [`Membership::Error`] shows
/// the first one in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HealthIssue {
    /// The cluster state no longer contains this node.
    Removed,
    /// This manager's log cannot be opened or written.
    Log,
    /// This node's certificate has expired and cannot be renewed.
    Certificate,
    /// Another CA than those that this node trusts has signed the certificates of the managers.
    Authority,
    /// The cluster was formed again without this manager.
    Superseded,
    /// The managers have an earlier plan than this node.
    Outdated,
}

/// The role that a plan gives to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PlannedRole {
    epoch: u64,
    role: Role,
    raft_id: u64,
}

impl PlannedRole {
    pub(super) fn of(plan: &NodePlan) -> Self {
        Self { epoch: plan.epoch, role: plan.role, raft_id: plan.raft_id }
    }
}

/// What all tasks of one membership share.
pub(super) struct Context {
    pub config: SwarmConfig,
    pub record: Record,
    pub credentials: Credentials,
    pub channels: NodeChannels,
    /// The version of the newest plan that the supervisor has stored, or has failed to store. The
    /// link does not ack a later one: after a `kill -9` the daemon restarts with the stored plan,
    /// which must not be older than the plan that the leader relies on.
    pub stored_version: watch::Sender<PlanVersion>,
    /// The role of this node in the plan on the disk. `None` while there is none.
    pub stored_role: watch::Sender<Option<PlannedRole>>,
    /// Why this node's certificate cannot be renewed. Empty if it can, or need not yet.
    pub certificate_problem: watch::Sender<String>,
    /// The address at which other nodes reach this one now. That of the record is the one from the
    /// time when the membership began or resumed.
    pub addr: watch::Sender<IpAddr>,
    issues: Mutex<BTreeMap<HealthIssue, String>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Context {
    /// # Errors
    /// [`SwarmError::Internal`] if the identity's key and certificate cannot be used for TLS.
    pub(super) fn new(
        config: SwarmConfig,
        record: Record,
        identity: Identity,
        channels: NodeChannels,
    ) -> Result<Arc<Self>, SwarmError> {
        let credentials = Credentials::new(Arc::new(identity))?;
        let stored = channels.plans.borrow().clone();
        let version = stored.as_ref().map_or_else(PlanVersion::default, |plan| plan.version());
        let stored_version = watch::Sender::new(version);
        let stored_role = watch::Sender::new(stored.as_deref().map(PlannedRole::of));
        let addr = watch::Sender::new(record.addr);
        let (certificate_problem, issues) = Default::default();
        Ok(Arc::new(Self {
            config,
            record,
            credentials,
            channels,
            stored_version,
            stored_role,
            certificate_problem,
            addr,
            issues,
        }))
    }

    /// What the leader must know about this node's certificate.
    pub(super) fn certificate_status(&self) -> CertificateStatus {
        let ca_sha256 = self.credentials.identity().signing_ca_digest.clone().unwrap_or_default();
        CertificateStatus { ca_sha256, problem: self.certificate_problem.borrow().clone() }
    }

    /// The role in this node's current certificate.
    pub(super) fn certified_role(&self) -> Role {
        self.credentials.identity().peer.role
    }

    /// Whether the plan has a later Raft id for this node: then the other managers have removed
    /// this one from the Raft membership.
    pub(super) fn raft_id_ended(&self, raft_id: u64) -> bool {
        self.channels.plans.borrow().as_ref().is_some_and(|plan| plan.raft_id > raft_id)
    }

    /// Whether this node's certificate has expired, by this node's clock.
    pub(super) fn certificate_has_expired(&self) -> bool {
        self.credentials.identity().validity.has_expired(now_ms())
    }

    /// The running manager, also before the cluster state has reached it. `None` on workers.
    pub(super) fn manager(&self) -> Option<Manager> {
        self.channels.manager.borrow().clone()
    }

    /// Records an issue, or clears it if `text` is `None`, and publishes the membership.
    pub(super) fn set_issue(&self, issue: HealthIssue, text: Option<String>) {
        let mut issues = self.issues.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => issues.insert(issue, text),
            None => issues.remove(&issue),
        };
        drop(issues);
        self.publish_membership();
    }

    /// Records why this node's certificate cannot be renewed, for the leader and for the
    /// membership. Empty if it can.
    pub(super) fn set_certificate_problem(&self, problem: String) {
        self.certificate_problem.send_if_modified(|known| {
            let changed = *known != problem;
            *known = problem;
            changed
        });
        self.publish_membership();
    }

    /// Publishes the membership, if it changed.
    pub(super) fn publish_membership(&self) {
        let issue = self.issues.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned();
        let membership = match issue {
            Some(text) => Membership::Error(text),
            None => Membership::Active {
                node: self.record.node.clone(),
                cluster: self.record.cluster.clone(),
                role: self.certified_role(),
                addr: *self.addr.borrow(),
                warning: self.certificate_problem.borrow().clone(),
            },
        };
        self.channels.membership.send_if_modified(|published| {
            let changed = *published != membership;
            *published = membership;
            changed
        });
    }

    /// Addresses of managers: first those in the plan, which are current, then those from the time
    /// when this node joined. That of this node is [`Self::own_rpc_addr`].
    pub(super) fn manager_addrs(&self) -> Vec<SocketAddr> {
        let plan = self.channels.plans.borrow().clone();
        let current = |manager: &ManagerPlan| match manager.rpc_addr {
            _ if manager.node == self.record.node => self.own_rpc_addr(),
            known => self.reachable(known),
        };
        let planned = plan.iter().flat_map(|plan| plan.managers.iter().map(current));
        let mut addrs = Vec::new();
        for addr in planned.chain(self.record.remotes.iter().map(|addr| self.reachable(*addr))) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs
    }

    /// Where this node connects to its own node RPC. It may be unable to reach the address that it
    /// advertises: that may be the address of a router in front of it.
    pub(super) fn own_rpc_addr(&self) -> SocketAddr {
        local_addr(self.record.at(*self.addr.borrow()).listen_addr)
    }

    /// The address at which this node reaches a manager that advertises `addr`.
    pub(super) fn reachable(&self, addr: SocketAddr) -> SocketAddr {
        let is_own = addr.ip() == *self.addr.borrow() && addr.port() == self.record.listen_addr.port();
        if is_own { self.own_rpc_addr() } else { addr }
    }
}

/// An address of a server on this machine that listens at `listen`.
fn local_addr(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_reaches_itself_where_it_listens() {
        for (listen, local) in [
            ("0.0.0.0:2377", "127.0.0.1:2377"),
            ("[::]:99", "[::1]:99"),
            ("192.0.2.1:2377", "192.0.2.1:2377"),
            ("[2001:db8::1]:2377", "[2001:db8::1]:2377"),
        ] {
            let parse = |text: &str| text.parse::<SocketAddr>().expect("an address");
            assert_eq!(local_addr(parse(listen)), parse(local), "{listen}");
        }
    }
}
