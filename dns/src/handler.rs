//! The answers of one task's resolver: to each request the zone's answer, or that of an upstream
//! resolver, as a message.
//!
//! The loops in `server` call it for each request. hickory-server decodes requests and encodes
//! replies.
//!
//! Invariant: at most [`MAX_OUTSIDE`] questions of the task wait for upstream resolvers. All other
//! questions are answered without waiting.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Edns, HeaderCounts, Metadata, OpCode, Query, ResponseCode},
    rr::DNSClass,
    serialize::binary::BinEncoder,
};
use hickory_server::{net::xfer::Protocol, server::Request, zone_handler::MessageResponseBuilder};
use tokio::sync::Semaphore;
use tracing::debug;
use weft_model::NetworkId;

use crate::{outside::Outside, reply::Reply, resolve::resolve, zone::ZoneHandle};

/// Questions of one task about names outside of the cluster that wait at the same time.
pub(crate) const MAX_OUTSIDE: usize = 512;
/// The largest UDP message that every resolver accepts (RFC 1035, section 4.2.1).
const PLAIN_UDP_OCTETS: u16 = 512;
/// The largest UDP message that this server sends and accepts. The client is on the same machine,
/// so messages are not fragmented.
pub(crate) const MAX_UDP_OCTETS: u16 = 4096;
/// Octets of a header (RFC 1035, section 4.1.1). Anything shorter is no message.
pub(crate) const HEADER_OCTETS: usize = 12;
/// Octets of an OPT record without options (RFC 6891, section 6.1.2).
const OPT_OCTETS: u16 = 11;
/// Octets of a record besides its name and data (RFC 1035, section 4.1.3), and of the longest data
/// with a fixed length, which is an IPv6 address.
const RECORD_OCTETS: usize = 10;
const ADDRESS_OCTETS: usize = 16;

/// What the resolver of one task answers from, besides the zone.
#[derive(Debug, Clone)]
pub struct TaskConfig {
    /// The networks of the task. The resolver looks a name up on them in this order.
    pub networks: Vec<NetworkId>,
    /// Answers names that the zone does not have.
    pub outside: Outside,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handler(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    zone: ZoneHandle,
    /// [`TaskConfig::networks`].
    networks: ArcSwap<Vec<NetworkId>>,
    outside: Outside,
    rotation: AtomicUsize,
    waiting: Semaphore,
}

impl Handler {
    pub(crate) fn new(zone: ZoneHandle, config: TaskConfig) -> Self {
        let waiting = Semaphore::new(MAX_OUTSIDE);
        let TaskConfig { networks, outside } = config;
        let networks = ArcSwap::from_pointee(networks);
        Self(Arc::new(Inner { zone, networks, outside, rotation: AtomicUsize::new(0), waiting }))
    }

    /// Replaces [`TaskConfig::networks`].
    pub(crate) fn set_networks(&self, networks: Vec<NetworkId>) {
        self.0.networks.store(Arc::new(networks));
    }

    /// The reply that needs no upstream resolver. `None` if the question is for one.
    pub(crate) fn immediate_reply(&self, request: &Request) -> Option<Reply> {
        if request.metadata.op_code != OpCode::Query {
            return Some(Reply::new(ResponseCode::NotImp));
        }
        if request.version() > 0 {
            return Some(Reply::new(ResponseCode::BADVERS));
        }
        let [query] = request.queries.queries() else { return Some(Reply::new(ResponseCode::FormErr)) };
        if query.query_class() != DNSClass::IN {
            return Some(Reply::new(ResponseCode::Refused));
        }
        self.zone_reply(query.original())
    }

    /// The answer of an upstream resolver to a question without an immediate reply. If too many
    /// questions of this task wait, a reply with SERVFAIL.
    pub(crate) async fn outside_reply(&self, request: &Request) -> Reply {
        let [query] = request.queries.queries() else { return Reply::new(ResponseCode::FormErr) };
        let query = query.original();
        let Ok(_waiting) = self.0.waiting.try_acquire() else { return Reply::new(ResponseCode::ServFail) };
        let reply = self.0.outside.lookup(query.name(), query.query_type()).await;
        // A newer plan may have the name.
        self.zone_reply(query).unwrap_or(reply)
    }

    /// `None` if the zone has no answer.
    fn zone_reply(&self, query: &Query) -> Option<Reply> {
        let rotation = self.0.rotation.fetch_add(1, Ordering::Relaxed);
        let zone = self.0.zone.current();
        let networks = self.0.networks.load();
        let answer = resolve(&zone, &networks, query.name(), query.query_type(), rotation);
        Reply::from_answer(query.name(), answer)
    }
}

/// Replaces `octets` by the message with `reply`. Leaves out records that do not fit.
pub(crate) fn encode(request: &Request, mut reply: Reply, octets: &mut Vec<u8>) {
    let mut metadata = Metadata::response_from_request(&request.metadata);
    // For the task this server is a recursive resolver, and never the authority.
    metadata.recursion_available = true;
    metadata.authoritative = false;
    metadata.response_code = reply.code;
    metadata.truncation = truncate(request, metadata, &mut reply);
    let edns = request.edns.as_ref().map(|requested| {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_OCTETS);
        edns.set_dnssec_ok(requested.flags().dnssec_ok);
        edns
    });
    let mut builder = MessageResponseBuilder::from_message_request(request);
    if let Some(edns) = &edns {
        builder.edns(edns);
    }
    let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
    octets.clear();
    let mut encoder = BinEncoder::new(octets);
    encoder.set_max_size(u16::MAX);
    if let Err(error) = response.destructive_emit(&mut encoder) {
        debug!(%error, "cannot encode DNS reply");
        malformed(request.as_slice(), octets);
    }
}

/// Whether the octets begin with the header of a request. Anything else gets no reply: otherwise
/// two servers could reply to each other endlessly.
pub(crate) fn is_request(octets: &[u8]) -> bool {
    octets.len() >= HEADER_OCTETS && octets[2] & 0x80 == 0
}

/// Replaces `octets` by the reply to a request whose header alone could be read: its id and
/// operation code, and the response code FORMERR.
pub(crate) fn malformed(request: &[u8], octets: &mut Vec<u8>) {
    const IS_REPLY: u8 = 0x80;
    const KEPT_FLAGS: u8 = 0x79;
    const FORMERR: u8 = 1;
    octets.clear();
    octets.extend([request[0], request[1], IS_REPLY | request[2] & KEPT_FLAGS, FORMERR]);
    octets.resize(HEADER_OCTETS, 0);
}

/// Leaves out of `reply` what does not fit, first what is not necessary. Returns whether answers
/// are missing. Without this, hickory-server would leave out the OPT record, because it comes last.
fn truncate(request: &Request, metadata: Metadata, reply: &mut Reply) -> bool {
    let limit = match (request.protocol(), &request.edns) {
        (Protocol::Udp, None) => PLAIN_UDP_OCTETS,
        (Protocol::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP_OCTETS, MAX_UDP_OCTETS),
        _ => u16::MAX,
    };
    if fits_without_compression(request, reply, limit.into()) {
        return false;
    }
    let limit = limit - request.edns.as_ref().map_or(0, |_| OPT_OCTETS);
    let mut octets = Vec::new();
    let mut encoder = BinEncoder::new(&mut octets);
    encoder.set_max_size(limit);
    let builder = MessageResponseBuilder::from_message_request(request);
    let response = builder.build(metadata, &reply.answers, &reply.authorities, [], &reply.additionals);
    // An error does not happen for a question that could be decoded.
    let counts = response.destructive_emit(&mut encoder).map_or_else(|_| HeaderCounts::default(), |info| info.counts());
    reply.additionals.truncate(counts.additionals.into());
    reply.authorities.truncate(counts.authorities.into());
    let truncated = usize::from(counts.answers) < reply.answers.len();
    reply.answers.truncate(counts.answers.into());
    truncated
}

/// Whether the message certainly fits. It may also fit if this is false.
fn fits_without_compression(request: &Request, reply: &Reply, limit: usize) -> bool {
    let records = [&reply.answers, &reply.authorities, &reply.additionals].into_iter().flatten();
    let mut octets = HEADER_OCTETS + request.queries.as_bytes().len() + usize::from(OPT_OCTETS);
    for record in records {
        if record.data.ip_addr().is_none() {
            return false;
        }
        octets += record.name.len() + RECORD_OCTETS + ADDRESS_OCTETS;
    }
    octets <= limit
}
