//! The certificate authority: first certificates for nodes that join with a token, and renewals for
//! members. A renewal is signed for the node's role in the cluster state.
//!
//! A renewal also accepts a certificate that has expired, of a node that the cluster state still
//! contains: after a cluster was switched off for long, all its certificates have expired. To
//! remove a node from the cluster revokes its certificates.

use std::net::{IpAddr, SocketAddr};

use ring::digest::{SHA256, digest};
use tonic::{Code, Request, Response, Status, transport::Channel};
use weft_model::{
    ClusterState, Command, NodeId, NodeName,
    command::JoinNode,
    spec::{Availability, Role},
};

use super::{Services, status::removed};
use crate::{
    pki,
    raft::ProposalId,
    rpc::{
        Caller,
        pb::{
            GetCaReply, GetCaRequest, JoinReply, JoinRequest, Lock, MayLeaveReply, MayLeaveRequest, RenewReply,
            RenewRequest, authority_client::AuthorityClient, authority_server::Authority,
        },
    },
    swarm::{error::ProposeError, manager::SignError},
};

/// The same text for a token that never existed and for one that was rotated, so that a caller
/// cannot learn which tokens existed.
const BAD_TOKEN: &str = "no such token: it is mistyped or was rotated";

#[tonic::async_trait]
impl Authority for Services {
    async fn get_ca(&self, _request: Request<GetCaRequest>) -> Result<Response<GetCaReply>, Status> {
        // The join token contains the digest of this certificate.
        let state = self.context.manager().map(|manager| manager.state().borrow().clone());
        let current =
            state.as_ref().and_then(|state| state.cluster.as_ref()).map(|cluster| cluster.ca_cert_pem.clone());
        let ca_pem = current.unwrap_or_else(|| self.context.credentials.identity().ca_pem.clone());
        Ok(Response::new(GetCaReply { ca_pem }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let manager = self.manager()?;
        let request = request.into_inner();
        // Only a leader with a complete cluster state has a view.
        if manager.tracker().view().is_none() {
            return forward_join(manager.leader_channel(), request).await;
        }
        let state = manager.state().borrow().clone();
        let role = role_of_token(&state, &request.secret)?;
        if role == Role::Manager && request.feature_level < state.feature_level {
            return Err(Status::invalid_argument(
                "this node's version of weft is older than that of the managers, and cannot read their log: install \
                 their version, or join as a worker",
            ));
        }
        // Check the request before the node becomes a member: otherwise the cluster state could
        // contain a node that has no certificate.
        let node = pki::node_id_of_request(&request.csr_pem).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let command = join_command(&state, node.clone(), role, &request)?;
        let outcome = manager.submit(ProposalId::random(), command).await;
        let (_, outcome) = outcome.map_err(|error: ProposeError| Status::unavailable(error.to_string()))?;
        outcome.map_err(|rejection| Status::invalid_argument(rejection.to_string()))?;
        let state = manager.state().borrow().clone();
        let cert_pem = manager.sign(&node, &request.csr_pem).map_err(sign_failed)?;
        let managers = state.nodes.values().filter(|n| n.is_manager() && n.id != node);
        let managers = managers.map(|n| n.rpc_addr.to_string()).collect();
        let lock = lock_for(&state, &node);
        Ok(Response::new(JoinReply { node: node.to_string(), cert_pem, managers, lock }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let (caller, expired) = Caller::known(request.extensions(), &self.context.record.cluster)?;
        let manager = self.manager()?;
        // A manager that lags behind may still know a node that was removed. A manager's own
        // renewal cannot wait for a leader: without it, the managers may be no quorum.
        let is_manager = manager.state().borrow().nodes.get(&caller.node).is_some_and(|node| node.in_raft_config);
        if expired && !is_manager && !manager.catch_up().await {
            return Err(Status::unavailable("the swarm has no leader that confirms that the node is still a member"));
        }
        let cert_pem = manager.sign(&caller.node, &request.get_ref().csr_pem).map_err(sign_failed)?;
        if expired {
            tracing::info!(node = %caller.node, "renewed a certificate that had expired");
        }
        let lock = lock_for(&manager.state().borrow(), &caller.node);
        Ok(Response::new(RenewReply { cert_pem, lock }))
    }

    async fn may_leave(&self, request: Request<MayLeaveRequest>) -> Result<Response<MayLeaveReply>, Status> {
        let manager = self.manager()?;
        let request = request.into_inner();
        let node = request.node.parse().map_err(|error| Status::invalid_argument(format!("{error}")))?;
        if manager.tracker().view().is_none() {
            let leader = manager.leader_channel().ok_or_else(no_leader)?;
            return AuthorityClient::new(leader).may_leave(request).await;
        }
        // Anybody may call this, and it asks all managers: one call at a time.
        let _one_at_a_time = self.absence_check.lock().await;
        manager.confirm_leadership().await.map_err(Status::unavailable)?;
        let refusal = manager.check_absence(&node).await.err().map_or_else(String::new, |reason| reason.to_string());
        Ok(Response::new(MayLeaveReply { refusal }))
    }
}

/// The lock of the managers, for a node that is or becomes one. With it the node encrypts its files
/// before it has the cluster state.
fn lock_for(state: &ClusterState, node: &NodeId) -> Option<Lock> {
    let is_manager = state.nodes.get(node).is_some_and(|node| node.spec.role == Role::Manager);
    let lock = &state.cluster.as_ref()?.lock;
    let key = lock.key.as_ref().filter(|_| is_manager)?;
    Some(Lock { key: key.0.to_vec().into(), version: lock.version })
}

fn sign_failed(error: SignError) -> Status {
    match error {
        SignError::NoState => Status::unavailable(error.to_string()),
        SignError::Removed(node) => removed(&node),
        SignError::Pki(error) => Status::internal(error.to_string()),
    }
}

async fn forward_join(leader: Option<Channel>, request: JoinRequest) -> Result<Response<JoinReply>, Status> {
    AuthorityClient::new(leader.ok_or_else(no_leader)?).join(request).await
}

fn no_leader() -> Status {
    Status::unavailable("the swarm has no leader now: try again")
}

fn role_of_token(state: &ClusterState, secret: &str) -> Result<Role, Status> {
    let cluster =
        state.cluster.as_ref().ok_or_else(|| Status::unavailable("the swarm is not formed yet: try again"))?;
    // Comparing digests takes a time that does not depend on how much of the secret is right.
    let given = digest(&SHA256, secret.as_bytes());
    let is = |expected: &str| digest(&SHA256, expected.as_bytes()).as_ref() == given.as_ref();
    if is(&cluster.manager_secret) {
        Ok(Role::Manager)
    } else if is(&cluster.worker_secret) {
        Ok(Role::Worker)
    } else {
        Err(Status::new(Code::PermissionDenied, BAD_TOKEN))
    }
}

/// Makes the caller a member, if the CA of its token is still that of the cluster. A caller that is
/// a member already stays one.
fn join_command(state: &ClusterState, id: NodeId, role: Role, request: &JoinRequest) -> Result<Command, Status> {
    let invalid = |e: &dyn std::fmt::Display| Status::invalid_argument(e.to_string());
    let hostname: NodeName = request.hostname.parse().map_err(|e| invalid(&e))?;
    let addr: IpAddr = request.addr.parse().map_err(|e| invalid(&e))?;
    let rpc_addr: SocketAddr = request.rpc_addr.parse().map_err(|e| invalid(&e))?;
    let tunnel_addr: IpAddr = request.tunnel_addr.parse().map_err(|e| invalid(&e))?;
    if addr.is_unspecified() || addr.is_multicast() || rpc_addr.port() == 0 {
        return Err(Status::invalid_argument(format!("other nodes cannot reach {addr}, port {}", rpc_addr.port())));
    }
    if tunnel_addr.is_unspecified() || tunnel_addr.is_multicast() {
        return Err(Status::invalid_argument(format!("tunnels of other nodes cannot reach {tunnel_addr}")));
    }
    let availability = match request.availability {
        1 => Availability::Pause,
        2 => Availability::Drain,
        _ => Availability::Active,
    };
    let ca_cert_pem = state.cluster.as_ref().map(|cluster| cluster.ca_cert_pem.clone()).unwrap_or_default();
    let join = JoinNode { id, hostname, role, addr, tunnel_addr, rpc_addr, availability, ca_cert_pem };
    Ok(Command::JoinNode(Box::new(join)))
}

#[cfg(test)]
mod tests {
    use weft_model::command::InitCluster;

    use super::*;
    use crate::fixture::TestCluster;

    #[test]
    fn a_join_names_the_ca_of_its_token_and_addresses_that_others_reach() {
        let mut cluster = TestCluster::empty();
        let init = InitCluster { ca_cert_pem: "current".to_owned(), ..cluster.init() };
        cluster.ok(Command::InitCluster(Box::new(init)));
        let request = JoinRequest {
            hostname: "n2".to_owned(),
            addr: "192.0.2.2".to_owned(),
            rpc_addr: "192.0.2.2:2377".to_owned(),
            tunnel_addr: "192.0.2.2".to_owned(),
            ..JoinRequest::default()
        };
        let join = |request: &JoinRequest| join_command(&cluster.state, NodeId::from_random(2), Role::Worker, request);
        let command = join(&request).expect("a good request");
        assert!(matches!(&command, Command::JoinNode(join) if join.ca_cert_pem == "current"), "{command:?}");
        let text = str::to_owned;
        for request in [
            JoinRequest { hostname: String::new(), ..request.clone() },
            JoinRequest { addr: text("0.0.0.0"), ..request.clone() },
            JoinRequest { rpc_addr: text("192.0.2.2:0"), ..request.clone() },
            JoinRequest { tunnel_addr: text("ff02::1"), ..request.clone() },
        ] {
            let refused = join(&request).expect_err("a bad request");
            assert_eq!(refused.code(), Code::InvalidArgument, "{request:?}");
        }
    }
}
