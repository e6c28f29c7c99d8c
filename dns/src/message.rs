//! Octets ↔ questions and answers (RFC 1035, RFC 6891). Pure.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR},
    },
};

use crate::resolve::Answer;

/// How long an answer of ours may be kept: plans change at any moment, and nobody may go on with the old one.
const TTL_SECONDS: u32 = 1;
/// Octets of a header: less is no message at all.
const HEADER_OCTETS: usize = 12;
/// What every resolver takes by UDP, without saying more (RFC 1035, section 4.2.1).
const PLAIN_UDP_OCTETS: u16 = 512;
/// The most that we send and take by UDP. Whoever asks is on the same machine: nothing is fragmented.
pub(crate) const MAX_UDP_OCTETS: u16 = 4096;
/// The smallest answer record: a compressed name, its type, class, TTL and length, and an IPv4 address.
const MIN_RECORD_OCTETS: usize = 16;
/// The usual largest one: the same with an IPv6 address.
const RECORD_OCTETS: usize = 28;

/// A question that can be answered.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    request: Message,
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
}

/// What some octets turn out to be.
#[derive(Debug, Clone)]
pub(crate) enum Incoming {
    Question(Box<Question>),
    /// Nothing that can be answered, but whoever sent it shall know: the reply.
    Refused(Vec<u8>),
    /// Not a request: no reply, or two servers would talk for ever.
    Noise,
}

/// How the question came, and thus how long the reply may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

pub(crate) fn decode(octets: &[u8]) -> Incoming {
    let Some(header) = octets.get(..HEADER_OCTETS) else { return Incoming::Noise };
    if header[2] & 0x80 != 0 {
        return Incoming::Noise;
    }
    let Ok(request) = Message::from_vec(octets) else {
        let id = u16::from_be_bytes([header[0], header[1]]);
        return refused(&Message::new(id, MessageType::Query, OpCode::Query), ResponseCode::FormErr);
    };
    if request.metadata.op_code != OpCode::Query {
        return refused(&request, ResponseCode::NotImp);
    }
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refused(&request, ResponseCode::BADVERS);
    }
    let [query] = request.queries.as_slice() else { return refused(&request, ResponseCode::FormErr) };
    if query.query_class() != DNSClass::IN {
        return refused(&request, ResponseCode::Refused);
    }
    let (name, kind) = (query.name().clone(), query.query_type());
    Incoming::Question(Box::new(Question { request, name, kind }))
}

fn refused(request: &Message, code: ResponseCode) -> Incoming {
    encode(reply(request, code), request, Transport::Udp).map_or(Incoming::Noise, Incoming::Refused)
}

impl Question {
    /// The reply that says `answer`. `None` where it cannot be written (a question we could read, we can write).
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
            // Without an SOA record, so that nobody keeps it (RFC 2308, section 5).
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
    // We are a resolver, as far as a task can tell; never the authority.
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&request.queries);
    reply.edns = request.edns.as_ref().map(|asked| {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_OCTETS).set_dnssec_ok(asked.flags().dnssec_ok);
        edns
    });
    reply
}

/// Leaves out answers until the rest fits, and says so.
fn encode(mut reply: Message, request: &Message, transport: Transport) -> Option<Vec<u8>> {
    let limit = match (transport, &request.edns) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(PLAIN_UDP_OCTETS, MAX_UDP_OCTETS),
        (Transport::Udp, None) => PLAIN_UDP_OCTETS,
    };
    let limit = usize::from(limit);
    // More answers than fit into any message cannot even be counted.
    reply.metadata.truncation = reply.answers.len() > limit / MIN_RECORD_OCTETS;
    reply.answers.truncate(limit / MIN_RECORD_OCTETS);
    loop {
        let octets = reply.to_vec().ok()?;
        let excess = octets.len().saturating_sub(limit);
        if excess == 0 {
            return Some(octets);
        }
        let surplus = excess.div_ceil(RECORD_OCTETS).min(reply.answers.len()).max(1);
        let kept = reply.answers.len().checked_sub(surplus)?;
        reply.metadata.truncation = true;
        reply.answers.truncate(kept);
    }
}
