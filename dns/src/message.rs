//! Decoding of questions and encoding of answers (RFC 1035, RFC 6891). Pure.
//!
//! `server` calls [`decode`] for each request and [`Question::reply`] for each answer.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR},
    },
};

use crate::resolve::Answer;

/// The TTL of weft's answers. It is short, because a plan can change at any moment.
const TTL_SECONDS: u32 = 1;
/// Octets of a header (RFC 1035, section 4.1.1). Anything shorter is no message.
const HEADER_OCTETS: usize = 12;
/// The largest UDP message that every resolver accepts (RFC 1035, section 4.2.1).
const PLAIN_UDP_OCTETS: u16 = 512;
/// The largest UDP message that this server sends and accepts. The client is on the same machine,
/// so messages are not fragmented.
pub(crate) const MAX_UDP_OCTETS: u16 = 4096;
/// The smallest answer record: a compressed name, its type, class, TTL and length, and an IPv4
/// address.
const MIN_RECORD_OCTETS: usize = 16;
/// The largest usual answer record: the same with an IPv6 address.
const RECORD_OCTETS: usize = 28;

/// A question that can be answered.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    request: Message,
    pub(crate) name: Name,
    pub(crate) record_type: RecordType,
}

/// A decoded request.
#[derive(Debug, Clone)]
pub(crate) enum Incoming {
    Question(Box<Question>),
    /// A request that cannot be answered, with the error reply for the client.
    Rejected(Vec<u8>),
    /// Not a request. It gets no reply: otherwise two servers could reply to each other endlessly.
    Ignored,
}

/// How the request came, which limits the length of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

pub(crate) fn decode(octets: &[u8]) -> Incoming {
    let Some(header) = octets.get(..HEADER_OCTETS) else { return Incoming::Ignored };
    if header[2] & 0x80 != 0 {
        return Incoming::Ignored;
    }
    let Ok(request) = Message::from_vec(octets) else {
        let id = u16::from_be_bytes([header[0], header[1]]);
        return reject(&Message::new(id, MessageType::Query, OpCode::Query), ResponseCode::FormErr);
    };
    if request.metadata.op_code != OpCode::Query {
        return reject(&request, ResponseCode::NotImp);
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return reject(&request, ResponseCode::BADVERS);
    }
    let [query] = request.queries.as_slice() else { return reject(&request, ResponseCode::FormErr) };
    if query.query_class() != DNSClass::IN {
        return reject(&request, ResponseCode::Refused);
    }
    let (name, record_type) = (query.name().clone(), query.query_type());
    Incoming::Question(Box::new(Question { request, name, record_type }))
}

fn reject(request: &Message, code: ResponseCode) -> Incoming {
    encode(reply(request, code), request, Transport::Udp).map_or(Incoming::Ignored, Incoming::Rejected)
}

impl Question {
    /// Encodes the reply with `answer`. `None` if the reply cannot be encoded, which does not
    /// happen for a question that could be decoded.
    pub(crate) fn reply(&self, answer: Answer, transport: Transport) -> Option<Vec<u8>> {
        let code = match answer {
            Answer::NxDomain => ResponseCode::NXDomain,
            Answer::Forward => ResponseCode::ServFail,
            Answer::Addresses(_) | Answer::Name(_) | Answer::NoData => ResponseCode::NoError,
        };
        let mut reply = reply(&self.request, code);
        reply.answers = match answer {
            Answer::Addresses(addresses) => {
                addresses.into_iter().map(|address| self.record(address_data(address))).collect()
            }
            Answer::Name(name) => vec![self.record(RData::PTR(PTR(name)))],
            // Without an SOA record, so that no resolver caches the answer (RFC 2308, section 5).
            Answer::NoData | Answer::NxDomain | Answer::Forward => vec![],
        };
        encode(reply, &self.request, transport)
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.name.clone(), TTL_SECONDS, data)
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    // For the task this server is a recursive resolver, and never the authority.
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&request.queries);
    reply.edns = request.edns.as_ref().map(|requested| {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_OCTETS).set_dnssec_ok(requested.flags().dnssec_ok);
        edns
    });
    reply
}

/// Encodes a reply. If it is too long, it leaves answers out and sets the truncation flag.
fn encode(mut reply: Message, request: &Message, transport: Transport) -> Option<Vec<u8>> {
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP_OCTETS, MAX_UDP_OCTETS),
        (Transport::Udp, None) => PLAIN_UDP_OCTETS,
    };
    let limit = usize::from(limit);
    // First leave out answers that cannot fit: encoding more than 65,535 answers would fail.
    reply.metadata.truncation = reply.answers.len() > limit / MIN_RECORD_OCTETS;
    reply.answers.truncate(limit / MIN_RECORD_OCTETS);
    loop {
        let octets = reply.to_vec().ok()?;
        let excess = octets.len().saturating_sub(limit);
        if excess == 0 {
            return Some(octets);
        }
        let surplus = excess.div_ceil(RECORD_OCTETS).min(reply.answers.len()).max(1);
        let remaining = reply.answers.len().checked_sub(surplus)?;
        reply.metadata.truncation = true;
        reply.answers.truncate(remaining);
    }
}
