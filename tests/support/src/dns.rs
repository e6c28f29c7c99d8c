//! Questions to a name server, as a resolver library would ask them. Call inside a namespace.

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

pub use hickory_proto::{op::ResponseCode, rr::RecordType};

/// Where every task finds its resolver.
pub const IN_TASK: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 11)), 53);

const PATIENCE: Duration = Duration::from_secs(5);

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
    /// The UDP payload size that EDNS offers; none: no EDNS.
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
    /// The data of each answer record, as zone files write it, sorted.
    pub records: Vec<String>,
    pub truncated: bool,
    /// The payload size of the answer's EDNS record.
    pub edns: Option<u16>,
}

impl Answer {
    /// The addresses among the records.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.records.iter().filter_map(|record| record.parse().ok()).collect()
    }
}

/// Asks for the addresses of a name: the short form.
pub fn lookup(server: SocketAddr, name: &str, record: RecordType) -> Result<Answer> {
    ask(server, &Question::new(name, record))
}

pub fn ask(server: SocketAddr, question: &Question<'_>) -> Result<Answer> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_utf8(question.name).with_context(|| format!("no name: {}", question.name))?;
    name.set_fqdn(true);
    message.add_query(Query::query(name, question.record));
    if let Some(payload) = question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    let asked = message.to_vec()?;
    let bytes = match question.transport {
        Transport::Udp => over_udp(server, &asked),
        Transport::Tcp => over_tcp(server, &asked),
    }
    .with_context(|| format!("{server} does not answer for {}", question.name))?;
    let answer = Message::from_vec(&bytes)?;
    ensure!(answer.metadata.id == message.metadata.id, "an answer to another question");
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

fn over_udp(server: SocketAddr, asked: &[u8]) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(asked)?;
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn over_tcp(server: SocketAddr, asked: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write_frame(&mut stream, asked)?;
    read_frame(&mut stream)
}

/// A message over TCP is preceded by its length (RFC 1035, section 4.2.2).
pub(crate) fn write_frame(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).context("too long a message")?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())?;
    Ok(())
}

pub(crate) fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}
