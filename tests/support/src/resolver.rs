//! The world outside: a small name server in the client's namespace, which the nodes use as their upstream. It knows one
//! name, and that nothing else exists.
//!
//! It is a process of its own, because a lab outlives the command that made it: programs that make labs call
//! [`run_if_asked`] first thing, and are started again as resolvers.

use std::{
    env,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, AAAA, TXT},
    },
};

use crate::{contract, dns};

/// The argument that makes a program a resolver.
const ROLE: &str = "lab-resolver";
const TTL_S: u32 = 60;
/// A TCP client that says nothing for this long is dropped.
const IDLE: Duration = Duration::from_secs(10);

/// The command that starts this very program as a resolver.
pub(crate) fn command() -> Result<(OsString, &'static str)> {
    Ok((env::current_exe().context("cannot find this program's file")?.into(), ROLE))
}

/// Serves, and never returns, where this process was started as a resolver.
pub fn run_if_asked() -> Result<()> {
    if env::args_os().nth(1).is_some_and(|arg| arg == ROLE) {
        serve(SocketAddr::from((Ipv4Addr::UNSPECIFIED, contract::upstream().port())))?;
    }
    Ok(())
}

fn serve(listen: SocketAddr) -> Result<()> {
    let udp = UdpSocket::bind(listen).context("cannot listen for names")?;
    let tcp = TcpListener::bind(listen).context("cannot listen for names")?;
    thread::spawn(move || {
        // One client at a time is enough for a lab.
        for mut stream in tcp.incoming().flatten() {
            let served = stream.set_read_timeout(Some(IDLE)).map_err(anyhow::Error::from).and_then(|()| {
                loop {
                    if let Some(reply) = answer(&dns::read_frame(&mut stream)?) {
                        dns::write_frame(&mut stream, &reply)?;
                    }
                }
            });
            let _ended: Result<()> = served;
        }
    });
    let mut packet = [0; 4096];
    loop {
        let (length, from) = udp.recv_from(&mut packet)?;
        if let Some(reply) = answer(&packet[..length]) {
            // A client that is gone is no reason to end.
            let _sent = udp.send_to(&reply, from);
        }
    }
}

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    let asked = Message::from_vec(packet).ok()?;
    let query = asked.queries.first()?.clone();
    let mut reply = Message::response(asked.metadata.id, OpCode::Query);
    reply.metadata.recursion_desired = asked.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    match records(&query) {
        Some(data) => {
            for data in data {
                reply.add_answer(Record::from_rdata(query.name().clone(), TTL_S, data));
            }
        }
        None => reply.metadata.response_code = ResponseCode::NXDomain,
    }
    if let Some(edns) = &asked.edns {
        let mut own = Edns::new();
        own.set_max_payload(edns.max_payload().clamp(512, 1232));
        reply.set_edns(own);
    }
    reply.add_query(query);
    reply.to_vec().ok()
}

/// `None`: there is no such name. Empty: it has no record of that type.
fn records(query: &Query) -> Option<Vec<RData>> {
    let mut name = query.name().to_lowercase();
    name.set_fqdn(false);
    if name.to_string() != contract::OUTSIDE_NAME {
        return None;
    }
    Some(match query.query_type() {
        RecordType::A => vec![RData::A(A(contract::OUTSIDE_V4))],
        RecordType::AAAA => vec![RData::AAAA(AAAA(contract::OUTSIDE_V6))],
        RecordType::TXT => vec![RData::TXT(TXT::new(vec![contract::OUTSIDE_TEXT.to_owned()]))],
        _ => Vec::new(),
    })
}

/// The addresses of the one name that exists outside.
pub fn outside_addrs() -> [IpAddr; 2] {
    [contract::OUTSIDE_V4.into(), contract::OUTSIDE_V6.into()]
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Name;

    use super::*;

    fn check(name: &str, record: RecordType, code: ResponseCode, expected: usize) {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_utf8(name).expect("a name"), record));
        let reply = answer(&message.to_vec().expect("encodes")).expect("an answer");
        let reply = Message::from_vec(&reply).expect("decodes");
        assert_eq!(reply.metadata.id, message.metadata.id);
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, expected), "{name} {record}");
    }

    #[test]
    fn one_name_exists_and_nothing_else() {
        check("example.test.", RecordType::A, ResponseCode::NoError, 1);
        check("EXAMPLE.test.", RecordType::AAAA, ResponseCode::NoError, 1);
        check("example.test.", RecordType::TXT, ResponseCode::NoError, 1);
        check("example.test.", RecordType::MX, ResponseCode::NoError, 0);
        check("www.example.test.", RecordType::A, ResponseCode::NXDomain, 0);
        check("whoami.", RecordType::A, ResponseCode::NXDomain, 0);
    }
}
