//! The upstream resolver of the nodes: a small name server in the client's namespace. It resolves
//! one name, and answers NXDOMAIN for every other.
//!
//! The resolver is a separate process, because a lab stays up when the command that created it has
//! ended. The lab starts the current program a second time for it. Therefore every program that
//! creates labs must call [`run_if_requested`] before it does anything else.

use std::{
    env,
    ffi::OsString,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::Query,
    rr::{
        RData, RecordType,
        rdata::{A, AAAA, TXT},
    },
};

use crate::{contract, dns, name_server};

/// The argument that turns a program into the resolver.
const ARGUMENT: &str = "lab-resolver";
/// The resolver closes a TCP connection without a question for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The program and the argument that start the resolver.
pub(crate) fn command() -> Result<(OsString, &'static str)> {
    Ok((env::current_exe().context("cannot find the file of this program")?.into(), ARGUMENT))
}

/// Runs the resolver, and does not return, if this process was started as one.
pub fn run_if_requested() -> Result<()> {
    if env::args_os().nth(1).is_some_and(|arg| arg == ARGUMENT) {
        serve(SocketAddr::from((Ipv4Addr::UNSPECIFIED, contract::upstream().port())))?;
    }
    Ok(())
}

fn serve(listen: SocketAddr) -> Result<()> {
    let udp = UdpSocket::bind(listen).with_context(|| format!("cannot listen on UDP {listen}"))?;
    let tcp = TcpListener::bind(listen).with_context(|| format!("cannot listen on TCP {listen}"))?;
    thread::spawn(move || {
        // A lab has few TCP clients: one after the other is enough.
        for mut stream in tcp.incoming().flatten() {
            let served = stream.set_read_timeout(Some(IDLE_TIMEOUT)).map_err(anyhow::Error::from).and_then(|()| {
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
            // The client may have ended: the resolver continues with the next question.
            let _sent = udp.send_to(&reply, from);
        }
    }
}

fn answer(packet: &[u8]) -> Option<Vec<u8>> {
    name_server::reply(packet, records)
}

/// `None` when the name does not exist. Empty when it has no record of that type.
fn records(query: &Query) -> Option<Vec<RData>> {
    if name_server::plain_name(query) != contract::EXTERNAL_NAME {
        return None;
    }
    Some(match query.query_type() {
        RecordType::A => vec![RData::A(A(contract::EXTERNAL_V4))],
        RecordType::AAAA => vec![RData::AAAA(AAAA(contract::EXTERNAL_V6))],
        RecordType::TXT => vec![RData::TXT(TXT::new(vec![contract::EXTERNAL_TEXT.to_owned()]))],
        _ => Vec::new(),
    })
}

/// The addresses of the name that the resolver resolves.
pub fn external_addrs() -> [IpAddr; 2] {
    [contract::EXTERNAL_V4.into(), contract::EXTERNAL_V6.into()]
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::Name,
    };

    use super::*;

    fn check(name: &str, record: RecordType, code: ResponseCode, expected: usize) {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_utf8(name).expect("a name"), record));
        let reply = answer(&message.to_vec().expect("an encoded message")).expect("an answer");
        let reply = Message::from_vec(&reply).expect("a decoded message");
        assert_eq!(reply.metadata.id, message.metadata.id);
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, expected), "{name} {record}");
    }

    #[test]
    fn only_the_external_name_exists() {
        check("example.test.", RecordType::A, ResponseCode::NoError, 1);
        check("EXAMPLE.test.", RecordType::AAAA, ResponseCode::NoError, 1);
        check("example.test.", RecordType::TXT, ResponseCode::NoError, 1);
        check("example.test.", RecordType::MX, ResponseCode::NoError, 0);
        check("www.example.test.", RecordType::A, ResponseCode::NXDomain, 0);
        check("whoami.", RecordType::A, ResponseCode::NXDomain, 0);
    }
}
