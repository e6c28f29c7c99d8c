//! A DNS client for the tests and the demo: sends a question to a name server as a resolver library
//! does. Call it inside of a namespace.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use hickory_proto::{
    op::{Edns, Message, Query},
    rr::{Name, RData},
};

use crate::speed::scaled;

pub use hickory_proto::{op::ResponseCode, rr::RecordType};

/// The address of the resolver in every task.
pub const IN_TASK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 11)), 53);

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug, Clone)]
pub struct Question<'a> {
    pub name: &'a str,
    pub record: RecordType,
    pub transport: Transport,
    /// The UDP payload size to announce by EDNS, in bytes. `None` sends no EDNS record.
    pub edns: Option<u16>,
}

impl<'a> Question<'a> {
    pub fn new(name: &'a str, record: RecordType) -> Self {
        Self { name, record, transport: Transport::Udp, edns: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: ResponseCode,
    /// The data of each answer record in the format of zone files, sorted.
    pub records: Vec<String>,
    pub truncated: bool,
    /// The UDP payload size in the answer's EDNS record, in bytes.
    pub edns: Option<u16>,
}

impl Answer {
    /// The addresses among the records.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.records.iter().filter_map(|record| record.parse().ok()).collect()
    }
}

/// Asks one question over UDP, without EDNS.
pub fn lookup(server: SocketAddr, name: &str, record: RecordType) -> Result<Answer> {
    query(server, &Question::new(name, record))
}

/// Sends a question, and returns the answer. An answer with an error code is not an error.
pub fn query(server: SocketAddr, question: &Question<'_>) -> Result<Answer> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_utf8(question.name).with_context(|| format!("not a DNS name: {}", question.name))?;
    name.set_fqdn(true);
    message.add_query(Query::query(name, question.record));
    if let Some(payload) = question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    let request = message.to_vec()?;
    let bytes = match question.transport {
        Transport::Udp => exchange_udp(server, &request),
        Transport::Tcp => exchange_tcp(server, &request),
    }
    .with_context(|| format!("no answer from {server} for {}", question.name))?;
    let answer = Message::from_vec(&bytes)?;
    ensure!(answer.metadata.id == message.metadata.id, "the answer has the id of another question");
    let mut records: Vec<String> = answer.answers.iter().map(|record| data(&record.data)).collect();
    records.sort();
    Ok(Answer {
        code: answer.metadata.response_code,
        records,
        truncated: answer.metadata.truncation,
        edns: answer.edns.as_ref().map(Edns::max_payload),
    })
}

fn data(data: &RData) -> String {
    match data {
        RData::TXT(text) => text.txt_data.iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect(),
        other => other.to_string(),
    }
}

fn exchange_udp(server: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(scaled(TIMEOUT)))?;
    socket.send(request)?;
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn exchange_tcp(server: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, scaled(TIMEOUT))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    write_frame(&mut stream, request)?;
    read_frame(&mut stream)
}

/// Writes a message over TCP, with its length before it (RFC 1035, section 4.2.2).
pub(crate) fn write_frame(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).context("the message is longer than 65535 bytes")?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())?;
    Ok(())
}

/// Reads what [`write_frame`] writes.
pub(crate) fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}
