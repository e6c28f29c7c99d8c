//! How a node comes into a cluster: by forming one, or with a token. Each leaves nothing behind where it fails.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, transport::Channel};
use weft_model::{
    Command, NetworkId, NodeId,
    command::{InitCluster, JoinNode},
    id::ClusterId,
    spec::{Availability, Role},
};

use super::{
    InitOptions, JoinOptions, ProposeError, SwarmConfig, SwarmError,
    home::{ManagerKeys, MembershipStore, Record},
    node::{Node, NodeChannels, internal},
    voting::ManagerRuntime,
};
use crate::{
    pki::{self, Ca, Identity, JoinToken, Kek, KeyRequest, SignedFor},
    raft::{ProposalId, Voter},
    rpc::{
        Bound, Dialer, one_off,
        pb::{GetCaRequest, JoinRequest, authority_client::AuthorityClient},
    },
};

/// The first manager's raft id: apply counts from here.
const FIRST_RAFT_ID: u64 = 1;
/// One manager's answer to a joining node, the log's write included.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// How long managers without a leader are asked again.
const RETRY_FOR: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_millis(200);
/// A manager's answer to the first question.
const CA_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node has to begin with as a member.
pub(super) struct Joined {
    pub record: Record,
    pub identity: Identity,
    pub bound: Bound,
}

/// Forms a cluster of this one node; its first entry is in the log when this returns.
pub(super) async fn init(
    config: &SwarmConfig,
    store: &MembershipStore,
    channels: &NodeChannels,
    options: InitOptions,
) -> Result<(std::sync::Arc<Node>, Bound, ManagerRuntime), SwarmError> {
    let addr = choose_advertise_addr(options.advertise_addr, options.listen_addr)?;
    let bound = bind(options.listen_addr)?;
    store.wipe()?;
    let cluster = ClusterId::from_random(rand::random());
    let id = NodeId::from_random(rand::random());
    let ca = Ca::create().map_err(internal)?;
    let kek = Kek::generate().map_err(internal)?;
    let request = KeyRequest::generate().map_err(internal)?;
    let life = Duration::from_millis(options.spec.cert_expiry_ms);
    let subject = SignedFor { cluster: &cluster, node: &id, role: Role::Manager, life };
    let cert_pem = ca.sign(request.csr_pem(), subject).map_err(internal)?;
    let identity = request.finish(&cert_pem, ca.cert_pem()).map_err(internal)?;
    let rpc_addr = SocketAddr::new(addr, bound.addr().port());
    let record = Record {
        cluster: cluster.clone(),
        node: id.clone(),
        addr,
        listen_addr: bound.addr(),
        remotes: vec![rpc_addr],
        ca_pem: ca.cert_pem().to_owned(),
    };
    let keys = ManagerKeys { raft_id: FIRST_RAFT_ID, kek: kek.clone() };
    store.write_identity(&identity)?;
    store.write_manager_keys(&keys)?;
    let command = InitCluster {
        id: cluster.clone(),
        spec: options.spec,
        ca_cert_pem: ca.cert_pem().to_owned(),
        ca_key_sealed: ca.sealed_key(&cluster, &kek).map_err(internal)?,
        worker_secret: pki::random_secret(),
        manager_secret: pki::random_secret(),
        ingress: NetworkId::from_random(rand::random()),
        node: JoinNode {
            id: id.clone(),
            hostname: config.hostname.clone(),
            role: Role::Manager,
            addr,
            rpc_addr,
            availability: options.availability,
        },
    };
    let node = Node::new(config.clone(), store.clone(), record, identity, channels.clone())?;
    let runtime = ManagerRuntime::start(&node, keys).await?;
    let formed = write_first_entry(&runtime, Voter { node: id, rpc_addr }, command).await;
    if let Err(error) = formed.and_then(|()| store.write_record(node.record())) {
        runtime.stop().await;
        return Err(error);
    }
    Ok((node, bound, runtime))
}

async fn write_first_entry(runtime: &ManagerRuntime, voter: Voter, command: InitCluster) -> Result<(), SwarmError> {
    let manager = runtime.manager();
    let failed = |reason: String| SwarmError::Internal { what: "form the swarm", reason };
    let voters = std::collections::BTreeMap::from([(FIRST_RAFT_ID, voter)]);
    manager.inner().raft.initialize(voters).await.map_err(|e| failed(e.to_string()))?;
    let (index, outcome) = manager.submit(ProposalId::random(), Command::InitCluster(Box::new(command))).await?;
    outcome.map_err(ProposeError::from)?;
    let applied = manager.wait_for_index(index, Instant::now() + JOIN_TIMEOUT).await;
    if applied { Ok(()) } else { Err(SwarmError::Timeout) }
}

/// Joins with a token; the node is a member when this returns, and knows nothing of the table yet.
pub(super) async fn join(
    config: &SwarmConfig,
    store: &MembershipStore,
    options: JoinOptions,
) -> Result<Joined, SwarmError> {
    let token: JoinToken =
        options.token.parse().map_err(|e: pki::InvalidToken| SwarmError::InvalidToken { reason: e.to_string() })?;
    if options.remotes.is_empty() {
        return Err(SwarmError::NoRemote);
    }
    let addr = match options.advertise_addr.or(explicit_ip(options.listen_addr)) {
        Some(addr) => Some(check_advertise_addr(addr)?),
        None => None,
    };
    let bound = bind(options.listen_addr)?;
    store.wipe()?;
    // One key for all tries: the managers know by it that it is the same node which asks again.
    let request = KeyRequest::generate().map_err(internal)?;
    let deadline = Instant::now() + RETRY_FOR;
    loop {
        let mut attempts = Vec::new();
        let mut later = false;
        for &remote in &options.remotes {
            match ask(config, remote, &token, &request, addr, bound.addr(), options.availability).await {
                Ok((mut record, identity)) => {
                    record.remotes.extend(options.remotes.iter().copied());
                    store.write_identity(&identity)?;
                    store.write_record(&record)?;
                    return Ok(Joined { record, identity, bound });
                }
                Err(AskError::Fatal(error)) => return Err(error),
                Err(AskError::Unreachable(reason)) => attempts.push(format!("{remote}: {reason}")),
                Err(AskError::RetryLater(reason)) => {
                    later = true;
                    attempts.push(format!("{remote}: {reason}"));
                }
            }
        }
        if !later || Instant::now() >= deadline {
            return Err(SwarmError::Unreachable { attempts: attempts.join("; ") });
        }
        tokio::time::sleep(RETRY).await;
    }
}

enum AskError {
    /// Another manager may answer.
    Unreachable(String),
    /// It answers, and may take the node a little later.
    RetryLater(String),
    Fatal(SwarmError),
}

impl From<SwarmError> for AskError {
    fn from(error: SwarmError) -> Self {
        Self::Fatal(error)
    }
}

/// Asks one manager for membership.
async fn ask(
    config: &SwarmConfig,
    remote: SocketAddr,
    token: &JoinToken,
    request: &KeyRequest,
    addr: Option<IpAddr>,
    listen_addr: SocketAddr,
    availability: Availability,
) -> Result<(Record, Identity), AskError> {
    let ca_pem = fetch_ca(remote).await?;
    if !token.names(&ca_pem) {
        return Err(SwarmError::WrongCa { remote }.into());
    }
    let dialer = Dialer::manager(remote, pki::pinned_client(&ca_pem).map_err(internal)?);
    let channel = connect(&dialer).await?;
    // The address from which the manager is reached is one at which the manager reaches this node.
    let addr = match addr.or_else(|| dialer.local_addr()) {
        Some(addr) => check_advertise_addr(addr)?,
        None => return Err(SwarmError::NoAdvertiseAddr { found: "the connection has none".to_owned() }.into()),
    };
    let message = JoinRequest {
        secret: token.secret().to_owned(),
        csr_pem: request.csr_pem().to_owned(),
        hostname: config.hostname.to_string(),
        addr: addr.to_string(),
        rpc_addr: SocketAddr::new(addr, listen_addr.port()).to_string(),
        availability: match availability {
            Availability::Active => 0,
            Availability::Pause => 1,
            Availability::Drain => 2,
        },
    };
    let answer = timeout(JOIN_TIMEOUT, AuthorityClient::new(channel).join(message)).await;
    let answer = answer.map_err(|_| AskError::Unreachable("it does not answer".to_owned()))?.map_err(|status| {
        let reason = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => SwarmError::InvalidToken { reason }.into(),
            Code::InvalidArgument => SwarmError::Refused { reason }.into(),
            Code::Unavailable => AskError::RetryLater(reason),
            _ => AskError::Unreachable(reason),
        }
    })?;
    let answer = answer.into_inner();
    let identity = request.finish(&answer.cert_pem, &ca_pem).map_err(internal)?;
    let remotes = answer.managers.iter().filter_map(|addr| addr.parse().ok()).collect();
    let (cluster, node) = (identity.peer.cluster.clone(), identity.peer.node.clone());
    Ok((Record { cluster, node, addr, listen_addr, remotes, ca_pem }, identity))
}

async fn fetch_ca(remote: SocketAddr) -> Result<String, AskError> {
    let dialer = Dialer::manager(remote, pki::unverified_client().map_err(internal)?);
    let channel = connect(&dialer).await?;
    let answer = timeout(CA_TIMEOUT, AuthorityClient::new(channel).get_ca(GetCaRequest {})).await;
    let answer = answer.map_err(|_| AskError::Unreachable("it does not answer".to_owned()))?;
    let answer = answer.map_err(|status| AskError::Unreachable(status.message().to_owned()))?;
    Ok(answer.into_inner().ca_pem)
}

async fn connect(dialer: &Dialer) -> Result<Channel, AskError> {
    let connected = timeout_at(Instant::now() + CA_TIMEOUT, one_off(dialer)).await;
    let connected = connected.map_err(|_| AskError::Unreachable("it does not answer".to_owned()))?;
    connected.map_err(|error| AskError::Unreachable(root_cause(&error)))
}

/// The innermost cause: what a person can act on.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn bind(addr: SocketAddr) -> Result<Bound, SwarmError> {
    Bound::bind(addr).map_err(|source| SwarmError::Listen { addr, source })
}

/// The address that `init` advertises.
fn choose_advertise_addr(asked: Option<IpAddr>, listen_addr: SocketAddr) -> Result<IpAddr, SwarmError> {
    match asked.or(explicit_ip(listen_addr)) {
        Some(addr) => check_advertise_addr(addr),
        None => find_global_addr(),
    }
}

fn explicit_ip(listen_addr: SocketAddr) -> Option<IpAddr> {
    Some(listen_addr.ip()).filter(|ip| !ip.is_unspecified())
}

fn check_advertise_addr(addr: IpAddr) -> Result<IpAddr, SwarmError> {
    if addr.is_unspecified() || addr.is_multicast() {
        Err(SwarmError::UnusableAdvertiseAddr { addr })
    } else {
        Ok(addr)
    }
}

/// This machine's address, where there is no doubt about it: one IPv4 address on links that are up, or else one IPv6.
fn find_global_addr() -> Result<IpAddr, SwarmError> {
    let links = getifaddrs().map_err(|e| SwarmError::NoAdvertiseAddr { found: e.to_string() })?;
    let mut found: Vec<(IpAddr, String)> = Vec::new();
    for link in links {
        if !link.flags.contains(InterfaceFlags::IFF_UP) || link.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            continue;
        }
        let Some(addr) = link.address else { continue };
        let v4 = addr.as_sockaddr_in().map(|a| IpAddr::V4(a.ip())).filter(|ip| !is_link_local(ip));
        let v6 = addr.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())).filter(|ip| !is_link_local(ip));
        if let Some(ip) = v4.or(v6) {
            found.push((ip, link.interface_name));
        }
    }
    choose_global_addr(&found)
}

fn choose_global_addr(found: &[(IpAddr, String)]) -> Result<IpAddr, SwarmError> {
    let of = |v4: bool| found.iter().filter(move |(ip, _)| ip.is_ipv4() == v4).collect::<Vec<_>>();
    let candidates = if of(true).is_empty() { of(false) } else { of(true) };
    match candidates.as_slice() {
        [] => Err(SwarmError::NoAdvertiseAddr { found: "this machine has no global address".to_owned() }),
        [(ip, _)] => Ok(*ip),
        several => {
            let list: Vec<_> = several.iter().map(|(ip, link)| format!("{ip} on {link}")).collect();
            let found = format!("this machine has several: {}", list.join(", "));
            Err(SwarmError::NoAdvertiseAddr { found })
        }
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_chosen_only_where_there_is_no_doubt() {
        let on = |ip: &str, link: &str| (ip.parse::<IpAddr>().expect("an address"), link.to_owned());
        let chosen =
            choose_global_addr(&[on("192.0.2.1", "eth0"), on("2001:db8::1", "eth0")]).expect("one of each family");
        assert_eq!(chosen, "192.0.2.1".parse::<IpAddr>().expect("an address"));
        assert!(choose_global_addr(&[on("2001:db8::1", "eth0")]).expect("only IPv6").is_ipv6());
        let error =
            choose_global_addr(&[on("192.0.2.1", "eth0"), on("198.51.100.1", "eth1")]).expect_err("two").to_string();
        assert!(error.contains("192.0.2.1 on eth0, 198.51.100.1 on eth1"), "{error}");
        assert!(error.contains("--advertise-addr"), "{error}");
        assert!(choose_global_addr(&[]).is_err());
    }

    #[test]
    fn what_is_no_address_of_a_node_is_not_advertised() {
        for bad in ["0.0.0.0", "::", "224.0.0.1"] {
            assert!(check_advertise_addr(bad.parse().expect("an address")).is_err(), "{bad}");
        }
    }
}
