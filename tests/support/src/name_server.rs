//! Replies of the tests' own name servers, and one that a test starts itself.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};

/// The TTL of every answer, in seconds.
const TTL_S: u32 = 60;
/// How long a [`NameServer`] waits for a question before it looks whether it must end.
const PERIOD: Duration = Duration::from_millis(100);

/// A name server in a thread of this process. It is asked by UDP, and ends when it is dropped.
#[derive(Debug)]
pub struct NameServer {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Answers at `socket` with the addresses of `names`, and with NXDOMAIN for all other names.
    pub fn start(socket: UdpSocket, names: &[(&str, Ipv4Addr)]) -> Result<Self> {
        socket.set_read_timeout(Some(PERIOD)).context("cannot set the timeout of a name server")?;
        let names: Vec<_> = names.iter().map(|(name, addr)| ((*name).to_owned(), *addr)).collect();
        let ended = Arc::new(AtomicBool::new(false));
        let must_end = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let mut packet = [0; 4096];
            while !must_end.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut packet) else { continue };
                if let Some(reply) = reply(&packet[..length], |query| addresses(&names, query)) {
                    // The resolver that asked may have ended.
                    let _sent: io::Result<usize> = socket.send_to(&reply, from);
                }
            }
        });
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // A panic of the thread has already been printed, and the test misses its answers.
        let _joined = self.thread.take().map(JoinHandle::join);
    }
}

fn addresses(names: &[(String, Ipv4Addr)], query: &Query) -> Option<Vec<RData>> {
    let (_, addr) = names.iter().find(|(name, _)| *name == plain_name(query))?;
    let is_asked = query.query_type() == RecordType::A;
    Some(is_asked.then_some(RData::A(A(*addr))).into_iter().collect())
}

/// The name of a question in lower case, without the dot at its end.
pub(crate) fn plain_name(query: &Query) -> String {
    let mut name = query.name().to_lowercase();
    name.set_fqdn(false);
    name.to_string()
}

/// The reply to a request. `records` returns `None` if the name does not exist. `None` if the
/// request cannot be read.
pub(crate) fn reply(packet: &[u8], records: impl Fn(&Query) -> Option<Vec<RData>>) -> Option<Vec<u8>> {
    let request = Message::from_vec(packet).ok()?;
    let query = request.queries.first()?.clone();
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = request.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    match records(&query) {
        Some(data) => {
            for data in data {
                reply.add_answer(Record::from_rdata(query.name().clone(), TTL_S, data));
            }
        }
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    if let Some(edns) = &request.edns {
        let mut own = Edns::new();
        own.set_max_payload(edns.max_payload().clamp(512, 1232));
        reply.set_edns(own);
    }
    reply.add_query(query);
    reply.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::dns;

    #[test]
    fn answers_with_its_names_until_it_is_dropped() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let address = socket.local_addr().expect("an address");
        let server = NameServer::start(socket, &[("a.test", Ipv4Addr::new(192, 0, 2, 7))]).expect("a server");
        let check = |name: &str, record, code: ResponseCode, records: &[&str]| {
            let answer = dns::lookup(address, name, record).expect("an answer");
            assert_eq!((answer.code, answer.records), (code, records.iter().map(|r| (*r).to_owned()).collect()));
        };
        check("a.test", RecordType::A, ResponseCode::NoError, &["192.0.2.7"]);
        check("A.Test", RecordType::AAAA, ResponseCode::NoError, &[]);
        check("b.test", RecordType::A, ResponseCode::NXDomain, &[]);
        drop(server);
        UdpSocket::bind(address).expect("the address is free again");
    }
}
