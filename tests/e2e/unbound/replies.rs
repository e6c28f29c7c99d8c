//! Asks a question, and reduces the reply to what is compared: not the id, the TTLs, the order of
//! records, and the server's own payload size. The flag AA is not compared, because unbound sets it
//! for its local data, and weft never does: for a task it is a recursive resolver.
//!
//! Of a reply with FORMERR, NOTIMP or REFUSED only the code is compared. unbound copies the rest of
//! the request into it, even if it cannot be read, and weft does not.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, ResponseCode};

use super::questions::{ID, Question};

/// A reply that takes longer is an error.
const TIMEOUT: Duration = Duration::from_secs(8);
/// A request that gets no reply is followed by another one. This is the time that a late reply has
/// after the reply to that.
const SILENCE: Duration = Duration::from_millis(60);
/// A question that both servers answer at once: for the name `whoami`, type A, with another id.
const SENTINEL: [u8; 24] =
    [0x7a, 0x11, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 6, b'w', b'h', b'o', b'a', b'm', b'i', 0, 0, 1, 0, 1];
const SENTINEL_ID: [u8; 2] = [0x7a, 0x11];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No reply, or the connection was closed.
    Silence,
    Reply(Reply),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    /// The names of the flags that are set.
    pub(super) flags: BTreeSet<&'static str>,
    pub(super) questions: usize,
    pub(super) answers: BTreeSet<String>,
    /// The types of the records in the authority section.
    pub(super) authorities: BTreeSet<String>,
    /// Whether the reply has an OPT record, and the flag DO in it.
    pub(super) edns: Option<bool>,
}

impl Outcome {
    pub(super) fn code(&self) -> Option<ResponseCode> {
        match self {
            Self::Silence => None,
            Self::Reply(reply) => Some(reply.code),
        }
    }
}

pub(super) fn ask(server: SocketAddr, question: &Question) -> Result<Outcome> {
    let octets = if question.tcp { ask_tcp(server, &question.octets)? } else { ask_udp(server, &question.octets)? };
    octets.map_or(Ok(Outcome::Silence), |octets| reduce(&octets).map(Outcome::Reply))
}

fn ask_udp(server: SocketAddr, request: &[u8]) -> Result<Option<Vec<u8>>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(request)?;
    socket.send(&SENTINEL)?;
    let mut octets = vec![0; 65_536];
    let mut reply = None;
    let mut sentinel = false;
    while reply.is_none() || !sentinel {
        let length = match socket.recv(&mut octets) {
            Ok(length) => length,
            Err(error) if sentinel && error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("no reply to a plain question"),
        };
        if octets.starts_with(&SENTINEL_ID) {
            sentinel = true;
            // The reply to a question that an upstream resolver answers comes later.
            let is_question = request.len() >= 12 && request[2] & 0xf8 == 0;
            socket.set_read_timeout(Some(if is_question { TIMEOUT.min(10 * SILENCE) } else { SILENCE }))?;
        } else {
            reply = Some(octets[..length].to_vec());
        }
    }
    Ok(reply)
}

fn ask_tcp(server: SocketAddr, request: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Both at once: pipelining (RFC 7766, section 6.2.1.1).
    let mut frames = Vec::new();
    for message in [request, &SENTINEL] {
        frames.extend(u16::try_from(message.len())?.to_be_bytes());
        frames.extend(message);
    }
    stream.write_all(&frames)?;
    let mut reply = None;
    for _ in 0..2 {
        match read_frame(&mut stream) {
            Ok(frame) if frame.starts_with(&SENTINEL_ID) => {}
            Ok(frame) => reply = Some(frame),
            Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                break;
            }
            Err(error) => return Err(error).context("the connection stays open without a reply"),
        }
    }
    Ok(reply)
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn reduce(octets: &[u8]) -> Result<Reply> {
    ensure!(octets.len() >= 12 && octets[..2] == ID.to_be_bytes() && octets[2] & 0x80 != 0, "no reply: {octets:x?}");
    let code = ResponseCode::from(0, octets[3] & 15);
    if matches!(code, ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::Refused) {
        return Ok(Reply { code, ..Reply::default() });
    }
    let message = Message::from_vec(octets).with_context(|| format!("a reply that cannot be read: {octets:x?}"))?;
    let metadata = message.metadata;
    let flags = [
        ("tc", metadata.truncation),
        ("rd", metadata.recursion_desired),
        ("ra", metadata.recursion_available),
        ("ad", metadata.authentic_data),
        ("cd", metadata.checking_disabled),
    ];
    Ok(Reply {
        code: metadata.response_code,
        flags: flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect(),
        questions: message.queries.len(),
        answers: message
            .answers
            .iter()
            .map(|record| format!("{} {} {}", record.name.to_lowercase(), record.record_type(), record.data))
            .collect(),
        authorities: message.authorities.iter().map(|record| record.record_type().to_string()).collect(),
        edns: message.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
    })
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Reply(Reply { code, flags, questions, answers, authorities, edns }) = self else {
            return write!(f, "no reply");
        };
        write!(f, "{code} {flags:?} {questions} questions, {answers:?}, authorities {authorities:?}, edns {edns:?}")
    }
}
