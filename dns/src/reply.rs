//! The content of a reply, without the question and the transport. Pure.
//!
//! `handler` builds it from an [`Answer`] of the zone, and `outside` from a reply of an upstream
//! resolver.

use std::net::IpAddr;

use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record,
        rdata::{A, AAAA, PTR, SRV},
    },
};

use crate::resolve::{Answer, Endpoint};

/// The TTL of weft's answers, in seconds. It is short, because a plan can change at any moment.
const TTL_SECONDS: u32 = 1;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    /// The SOA record that tells for how long a negative reply may be cached (RFC 2308). Empty: it
    /// may not be cached.
    pub(crate) authorities: Vec<Record>,
    /// The addresses of the targets in the answers.
    pub(crate) additionals: Vec<Record>,
}

impl Reply {
    /// A reply without records.
    pub(crate) fn new(code: ResponseCode) -> Self {
        Self { code, answers: vec![], authorities: vec![], additionals: vec![] }
    }

    /// The reply with the zone's answer to a question for `name`. `None` if the zone has no answer.
    pub(crate) fn from_answer(name: &Name, answer: Answer) -> Option<Self> {
        let mut reply = Self::new(ResponseCode::NoError);
        let record = |name: &Name, data| Record::from_rdata(name.clone(), TTL_SECONDS, data);
        match answer {
            Answer::Outside => return None,
            Answer::NxDomain => reply.code = ResponseCode::NXDomain,
            Answer::Refused => reply.code = ResponseCode::Refused,
            // Without an SOA record, so that no resolver caches the answer (RFC 2308, section 5).
            Answer::NoData => {}
            Answer::Addresses(addresses) => {
                reply.answers = addresses.into_iter().map(|address| record(name, address_data(address))).collect();
            }
            Answer::Name(target) => reply.answers.push(record(name, RData::PTR(PTR(target)))),
            Answer::Endpoints(endpoints) => {
                for Endpoint { port, target, addresses } in endpoints {
                    let addresses = addresses.into_iter().map(|address| record(&target, address_data(address)));
                    reply.additionals.extend(addresses);
                    reply.answers.push(record(name, RData::SRV(SRV::new(0, 0, port, target))));
                }
            }
        }
        Some(reply)
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}
