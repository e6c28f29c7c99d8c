//! Joins a cluster with a token. `lifecycle` calls this module.
//!
//! The token contains the digest of the cluster's certificate authority and a secret. The node
//! first fetches the authority's certificate over an unverified connection, compares it with the
//! digest, and sends the secret over a second connection that this certificate verifies.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, transport::Channel};
use weft_model::{
    spec::Availability,
    state::{FEATURE_LEVEL, ManagerLock},
};

use super::{address, ask::read_lock, store::MembershipStore};
use crate::{
    pki::{self, Identity, InvalidToken, JoinToken, KeyRequest, PkiError},
    rpc::{
        Bound, Dialer, connect_now,
        pb::{GetCaRequest, JoinRequest, authority_client::AuthorityClient},
    },
    swarm::{
        context::Record,
        error::{SwarmError, root_cause},
        types::{JoinOptions, SwarmConfig},
    },
};

/// How long one manager has to answer a join. That includes the leader's write to the log.
const JOIN_TIMEOUT: Duration = Duration::from_secs(12);
/// How long the node retries while managers answer but have no leader.
const RETRY_FOR: Duration = Duration::from_secs(6);
const RETRY: Duration = Duration::from_millis(200);
/// How long a manager has to accept a connection, and to send the authority's certificate.
const CA_TIMEOUT: Duration = Duration::from_secs(3);

/// A joined cluster: everything that the supervisor needs to start.
pub(super) struct Joined {
    pub record: Record,
    pub identity: Identity,
    pub bound: Bound,
}

/// Joins a cluster. The node is a member and all files are written when this resolves; it has no
/// plan yet.
///
/// # Errors
/// The token, an address or the data directory cannot be used, no manager answers, or a manager
/// refuses. In that case files may remain, but no record.
pub(super) async fn join(
    config: &SwarmConfig,
    store: &MembershipStore,
    options: JoinOptions,
) -> Result<Joined, SwarmError> {
    let token: JoinToken =
        options.token.parse().map_err(|e: InvalidToken| SwarmError::InvalidToken { reason: e.to_string() })?;
    if options.remotes.is_empty() {
        return Err(SwarmError::NoRemote);
    }
    let listen_addr = options.listen_addr;
    let addr = address::given(options.advertise_addr, listen_addr)?;
    let bound = Bound::bind(listen_addr).map_err(|source| SwarmError::Listen { addr: listen_addr, source })?;
    store.wipe()?;
    // The node's id is a hash of its key. All attempts use the same key. So if the answer to a join
    // is lost, the next attempt joins as the same node.
    let request = KeyRequest::generate()?;
    let attempt = Attempt {
        config,
        token,
        request,
        addr,
        listen_addr: bound.addr(),
        tunnel_addr: options.tunnel_addr.map(address::check).transpose()?,
        availability: options.availability,
    };
    let deadline = Instant::now() + RETRY_FOR;
    loop {
        let mut failures = Vec::new();
        let mut retry = false;
        for &remote in &options.remotes {
            match attempt.ask(remote).await {
                Ok((mut record, identity, lock)) => {
                    record.remotes.extend(options.remotes.iter().copied());
                    // Before there are files: no key of a locked manager is on the disk in the
                    // clear.
                    store.set_lock(&lock)?;
                    store.write_identity(&identity)?;
                    store.write_record(&record)?;
                    return Ok(Joined { record, identity, bound });
                }
                Err(AskError::Fatal(error)) => return Err(error),
                Err(AskError::Unreachable(reason)) => failures.push(format!("{remote}: {reason}")),
                Err(AskError::RetryLater(reason)) => {
                    retry = true;
                    failures.push(format!("{remote}: {reason}"));
                }
            }
        }
        if !retry || Instant::now() >= deadline {
            return Err(SwarmError::Unreachable { attempts: failures.join("; ") });
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Why one manager did not accept the node.
enum AskError {
    /// It cannot be reached. Another manager may answer.
    Unreachable(String),
    /// It answers, and may accept the node a little later.
    RetryLater(String),
    /// No manager will accept the node.
    Fatal(SwarmError),
}

impl From<SwarmError> for AskError {
    fn from(error: SwarmError) -> Self {
        Self::Fatal(error)
    }
}

impl From<PkiError> for AskError {
    fn from(error: PkiError) -> Self {
        Self::Fatal(error.into())
    }
}

/// The values that this node sends to each manager.
struct Attempt<'a> {
    config: &'a SwarmConfig,
    token: JoinToken,
    request: KeyRequest,
    /// The address to advertise. `None`: the local address of the connection to the manager.
    addr: Option<IpAddr>,
    listen_addr: SocketAddr,
    /// The address at which tunnels end. `None`: the address to advertise.
    tunnel_addr: Option<IpAddr>,
    availability: Availability,
}

impl Attempt<'_> {
    /// Asks one manager for membership.
    async fn ask(&self, remote: SocketAddr) -> Result<(Record, Identity, ManagerLock), AskError> {
        let ca_pem = fetch_ca(remote).await?;
        if !self.token.names(&ca_pem) {
            return Err(SwarmError::WrongCa { remote }.into());
        }
        let dialer = Dialer::manager(remote, pki::pinned_client(&ca_pem)?);
        let channel = connect(&dialer).await?;
        let addr = match self.addr.or_else(|| dialer.local_addr()) {
            Some(addr) => address::check(addr)?,
            None => {
                return Err(SwarmError::NoAdvertiseAddr {
                    found: "the connection to the manager has no local address".to_owned(),
                }
                .into());
            }
        };
        let message = JoinRequest {
            secret: self.token.secret().to_owned(),
            csr_pem: self.request.csr_pem().to_owned(),
            hostname: self.config.hostname.to_string(),
            addr: addr.to_string(),
            tunnel_addr: self.tunnel_addr.unwrap_or(addr).to_string(),
            rpc_addr: SocketAddr::new(addr, self.listen_addr.port()).to_string(),
            availability: match self.availability {
                Availability::Active => 0,
                Availability::Pause => 1,
                Availability::Drain => 2,
            },
            feature_level: FEATURE_LEVEL,
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
        let identity = self.request.finish(&answer.cert_pem, &ca_pem)?;
        let remotes = answer.managers.iter().filter_map(|addr| addr.parse().ok()).collect();
        let (cluster, node) = (identity.peer.cluster.clone(), identity.peer.node.clone());
        let listen_addr = self.listen_addr;
        let record = Record { cluster, node, addr, link: None, listen_addr, remotes, ca_pem, ca_plan: (0, 0) };
        Ok((record, identity, read_lock(answer.lock)))
    }
}

async fn fetch_ca(remote: SocketAddr) -> Result<String, AskError> {
    let dialer = Dialer::manager(remote, pki::unverified_client()?);
    let channel = connect(&dialer).await?;
    let answer = timeout(CA_TIMEOUT, AuthorityClient::new(channel).get_ca(GetCaRequest {})).await;
    let answer = answer.map_err(|_| AskError::Unreachable("it does not answer".to_owned()))?;
    let answer = answer.map_err(|status| AskError::Unreachable(status.message().to_owned()))?;
    Ok(answer.into_inner().ca_pem)
}

async fn connect(dialer: &Dialer) -> Result<Channel, AskError> {
    let connected = timeout_at(Instant::now() + CA_TIMEOUT, connect_now(dialer)).await;
    let connected = connected.map_err(|_| AskError::Unreachable("it does not answer".to_owned()))?;
    connected.map_err(|error| AskError::Unreachable(root_cause(&error)))
}
