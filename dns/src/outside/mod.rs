//! Questions about names that are not in the zone: upstream resolvers answer them.
//!
//! `server` calls [`Outside::lookup`]. hickory-resolver does the work: it caches answers by their
//! TTL, also negative ones, repeats lost questions, chooses among the upstream resolvers, asks by
//! TCP if a reply was truncated, and randomises source port, id and case against forged replies
//! (RFC 5452).
//!
//! This module bounds that work and turns its result into a [`Reply`]. The sockets are opened in
//! the network namespace of the process, which is the node's. Only a resolver with upstream
//! resolvers of one task ([`Outside::for_task`]) opens them in the namespace of that task.
//!
//! Invariant for all resolvers of the node together: at most [`MAX_WAITING`] questions wait, and
//! [`MAX_AT_ONCE`] of them use sockets. The others wait for one of these to end, in the order in
//! which they came.
//!
//! Equal questions that wait at the same time share one reply. This also ends a loop, in which an
//! upstream resolver asks a task and that task asks this server: the second question joins the
//! first one, and both end with the timeout.

mod sockets;
mod tls;

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::ResponseCode,
    rr::{Name, Record, RecordType},
};
use hickory_resolver::{
    Resolver,
    config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, NoRecords},
};
use tokio::{sync::Semaphore, time::timeout};
use tracing::debug;

use self::sockets::Provider;
use crate::{error::Error, reply::Reply, upstream::Upstream};

pub use self::sockets::OpenSockets;

/// The longest time for one question. Resolvers in tasks ask again after five seconds by default
/// (resolv.conf(5)).
const TIMEOUT: Duration = Duration::from_secs(4);
/// How long the upstream resolvers have for one attempt. The second attempt prefers those that have
/// not failed.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Attempts after the first one.
const RETRIES: usize = 1;
/// Upstream resolvers that are used, as many as by the C library (resolv.conf(5)).
const MAX_UPSTREAMS: usize = 3;
/// Upstream resolvers that are asked at the same time, so that one that is down costs no time.
const PARALLEL_UPSTREAMS: usize = 2;
/// Questions that are being asked at the same time. Each of them has at most 3 sockets for each of
/// [`PARALLEL_UPSTREAMS`]: the first datagram and two repetitions.
const MAX_AT_ONCE: usize = 2048;
/// Questions of all tasks that are asked or wait to be asked. Each needs about 10 KiB of memory.
const MAX_WAITING: usize = 8192;
/// Cached replies of the node's upstream resolvers. Most have less than 512 octets.
const CACHE_ENTRIES: u64 = 4096;
/// Cached replies of the upstream resolvers of one task.
const TASK_CACHE_ENTRIES: u64 = 256;
/// The longest time for which a negative reply is cached. A name that an operator adds outside of
/// the cluster resolves in tasks after this time.
const NEGATIVE_MAX_TTL: Duration = Duration::from_secs(30);
/// The TTL of a negative reply to a task, in seconds. It is short, because any name can become a
/// name of the cluster at any moment.
const NEGATIVE_TTL_SECONDS: u32 = 1;

/// The resolver for names outside of the cluster. Cheap to clone; all clones share its cache, its
/// upstream resolvers and its bounds.
#[derive(Debug, Clone)]
pub struct Outside(Arc<Inner>);

struct Inner {
    resolver: ArcSwap<Resolver<Provider>>,
    bounds: Arc<Bounds>,
}

/// What all resolvers of the node share.
struct Bounds {
    at_once: Semaphore,
    waiting: Semaphore,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

impl Outside {
    /// Asks `upstreams`, which must all know the same names: the one that replies first is
    /// believed. Without upstream resolvers, every question fails.
    ///
    /// # Errors
    ///
    /// [`Error::Certificates`] if an upstream resolver uses TLS and this machine has no
    /// certificates of authorities.
    pub fn new(upstreams: &[Upstream]) -> Result<Self, Error> {
        Ok(Self::from_resolver(node_resolver(upstreams, tls::client_config(upstreams)?)?))
    }

    /// Like [`Outside::new`], but trusts `roots` instead of this machine's authorities.
    #[cfg(test)]
    pub(crate) fn trusting(upstreams: &[Upstream], roots: rustls::RootCertStore) -> Result<Self, Error> {
        Ok(Self::from_resolver(node_resolver(upstreams, tls::trusting(roots)?)?))
    }

    fn from_resolver(resolver: Resolver<Provider>) -> Self {
        let bounds = Bounds { at_once: Semaphore::new(MAX_AT_ONCE), waiting: Semaphore::new(MAX_WAITING) };
        Self(Arc::new(Inner { resolver: ArcSwap::from_pointee(resolver), bounds: Arc::new(bounds) }))
    }

    /// A resolver of one task. It asks `servers` through sockets that `sockets` opens, and has a
    /// cache of its own. The bounds are those of `self`, which it does not ask otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Resolver`] or [`Error::Tls`].
    pub fn for_task(&self, servers: &[IpAddr], sockets: Arc<dyn OpenSockets>) -> Result<Self, Error> {
        let upstreams: Vec<_> = servers.iter().copied().map(Upstream::from).collect();
        self.for_task_with(&upstreams, sockets)
    }

    pub(crate) fn for_task_with(&self, upstreams: &[Upstream], sockets: Arc<dyn OpenSockets>) -> Result<Self, Error> {
        let tls = tls::client_config(upstreams)?;
        let resolver = resolver(upstreams, tls, Provider::new(Some(sockets)), TASK_CACHE_ENTRIES)?;
        let bounds = Arc::clone(&self.0.bounds);
        Ok(Self(Arc::new(Inner { resolver: ArcSwap::from_pointee(resolver), bounds })))
    }

    /// Replaces the upstream resolvers, and forgets the answers of the earlier ones. Questions that
    /// are being asked end with the earlier ones.
    ///
    /// # Errors
    ///
    /// Those of [`Outside::new`]. Then the earlier upstream resolvers stay.
    pub fn set_upstreams(&self, upstreams: &[Upstream]) -> Result<(), Error> {
        self.0.resolver.store(Arc::new(node_resolver(upstreams, tls::client_config(upstreams)?)?));
        Ok(())
    }

    /// Asks the upstream resolvers. If none of them has a usable reply, or too many questions wait,
    /// the reply has the code SERVFAIL.
    pub(crate) async fn lookup(&self, name: &Name, record_type: RecordType) -> Reply {
        let Ok(_waiting) = self.0.bounds.waiting.try_acquire() else { return Reply::new(ResponseCode::ServFail) };
        let answer = async {
            let _at_once = self.0.bounds.at_once.acquire().await;
            let resolver = self.0.resolver.load_full();
            resolver.lookup(name.clone(), record_type).await
        };
        match timeout(TIMEOUT, answer).await {
            Ok(Ok(found)) => positive(name, &found),
            Ok(Err(error)) => negative(name, &error),
            Err(_elapsed) => Reply::new(ResponseCode::ServFail),
        }
    }
}

fn node_resolver(upstreams: &[Upstream], tls: rustls::ClientConfig) -> Result<Resolver<Provider>, Error> {
    resolver(upstreams, tls, Provider::default(), CACHE_ENTRIES)
}

fn resolver(
    upstreams: &[Upstream],
    tls: rustls::ClientConfig,
    provider: Provider,
    cache_entries: u64,
) -> Result<Resolver<Provider>, Error> {
    let servers = upstreams.iter().take(MAX_UPSTREAMS).map(name_server).collect();
    let config = ResolverConfig::from_name_servers(servers);
    let mut builder = Resolver::builder_with_config(config, provider).with_tls_config(tls);
    set_options(builder.options_mut());
    builder.options_mut().cache_size = cache_entries;
    builder.build().map_err(Error::Resolver)
}

fn name_server(upstream: &Upstream) -> NameServerConfig {
    let protocols = match &upstream.tls_name {
        Some(server_name) => vec![ProtocolConfig::Tls { server_name: Arc::clone(server_name) }],
        None => vec![ProtocolConfig::Udp, ProtocolConfig::Tcp],
    };
    let connection = |protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = upstream.address.port();
        connection
    };
    // A name that does not exist for one upstream resolver does not exist for the others.
    NameServerConfig::new(upstream.address.ip(), true, protocols.into_iter().map(connection).collect())
}

fn set_options(options: &mut ResolverOpts) {
    options.timeout = ATTEMPT_TIMEOUT;
    options.attempts = RETRIES;
    options.num_concurrent_reqs = PARALLEL_UPSTREAMS;
    options.negative_max_ttl = Some(NEGATIVE_MAX_TTL);
    options.max_active_requests = MAX_AT_ONCE;
    options.case_randomization = true;
    options.preserve_intermediates = true;
    options.edns0 = true;
    // The file of the machine is not for tasks.
    options.use_hosts_file = ResolveHosts::Never;
    // A reply to a published port would go to a task. The kernel chooses from
    // net.ipv4.ip_local_port_range, and no port of that range is published by default.
    options.os_port_selection = true;
}

/// The reply with the records that were found, and those of the aliases that lead to them.
fn positive(name: &Name, found: &Lookup) -> Reply {
    let mut reply = Reply::new(found.message().metadata.response_code);
    reply.answers = found.answers().to_vec();
    for record in reply.answers.iter_mut().filter(|record| record.name == *name) {
        // In the case of the question, and not in the random case that the upstream resolver saw.
        record.name = name.clone();
    }
    reply.authorities =
        found.authorities().iter().filter(|record| record.record_type() == RecordType::SOA).cloned().collect();
    reply
}

fn negative(name: &Name, error: &NetError) -> Reply {
    let NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, soa, .. })) = error else {
        debug!(%name, %error, "upstream resolvers do not answer");
        return Reply::new(ResponseCode::ServFail);
    };
    let mut reply = Reply::new(*response_code);
    reply.authorities = soa.iter().map(|soa| Record::clone(soa).into_record_of_rdata()).collect();
    for record in &mut reply.authorities {
        record.ttl = record.ttl.min(NEGATIVE_TTL_SECONDS);
    }
    reply
}
