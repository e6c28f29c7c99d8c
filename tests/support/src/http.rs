//! A client of `weft/whoami` for tests that count answers. Each request uses a new connection,
//! every failure is an error, and the client never retries. Call it inside of a namespace
//! ([`crate::netns::within`]). All time limits are for a normal machine ([`scaled`]).

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{self, AddressFamily, SocketFlags, SocketType, sockopt};

use crate::speed::scaled;

/// The time limit for connecting, and for the wait between two parts of an answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that takes longer has lost its SYN: the kernel sends it again after a second (RFC
/// 6298, section 2).
pub const MAX_CONNECT_TIME: Duration = Duration::from_millis(900);
/// The largest answer in bytes: larger than any that the tests ask for.
const MAX_REPLY: u64 = 16 << 20;
/// The port, for TCP and UDP, on which whoami sends back what it receives.
pub const ECHO_PORT: u16 = 7;

/// The answer of `weft/whoami`: about itself, and about the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    /// The name of the task: `whoami.2.<task id>`.
    pub name: String,
    pub node: String,
    /// The client's address as the task sees it.
    pub peer: Option<SocketAddr>,
    pub host: String,
}

/// Sends `GET path` on a new connection.
///
/// # Errors
/// When the connection fails, the answer does not come within 5 s, or the status is not 200.
pub fn get(addr: SocketAddr, path: &str) -> io::Result<Reply> {
    get_with_timeout(addr, path, TIMEOUT)
}

/// Like [`get`], with another time limit for the answer.
pub fn get_with_timeout(addr: SocketAddr, path: &str, timeout: Duration) -> io::Result<Reply> {
    get_timed(addr, path, timeout).map(|(reply, _)| reply)
}

/// Like [`get_with_timeout`]. Also returns how long connecting took, which shows whether the first
/// SYN was lost: the kernel sends it again after a second.
pub fn get_timed(addr: SocketAddr, path: &str, timeout: Duration) -> io::Result<(Reply, Duration)> {
    let start = Instant::now();
    let stream = TcpStream::connect_timeout(&addr, scaled(TIMEOUT))?;
    let connected = start.elapsed();
    Ok((request(stream, addr, path, timeout)?, connected))
}

/// Sends `GET /` on a new connection from this address and port. Returns how long connecting took.
pub fn get_from(local: SocketAddr, addr: SocketAddr) -> io::Result<Duration> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Linux limits the time for connecting by this too (socket(7)).
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(scaled(TIMEOUT)))?;
    net::bind(&socket, &local)?;
    let start = Instant::now();
    net::connect(&socket, &addr)?;
    let connected = start.elapsed();
    request(TcpStream::from(socket), addr, "/", TIMEOUT)?;
    Ok(connected)
}

fn request(mut stream: TcpStream, addr: SocketAddr, path: &str, timeout: Duration) -> io::Result<Reply> {
    stream.set_read_timeout(Some(scaled(timeout)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.take(MAX_REPLY).read_to_string(&mut text)?;
    let reply = parse(&text).ok_or_else(|| invalid(format!("not an answer of whoami: {text:?}")))?;
    if reply.status == 200 { Ok(reply) } else { Err(invalid(format!("status {}: {}", reply.status, reply.body))) }
}

/// Sends `count` requests, one after the other. Returns the names of the tasks that answered, each
/// with its number of answers.
pub fn answers_by_task(addr: SocketAddr, count: usize) -> io::Result<BTreeMap<String, usize>> {
    let mut by_task = BTreeMap::new();
    for reply in (0..count).map(|_| get(addr, "/")) {
        *by_task.entry(reply?.name).or_default() += 1;
    }
    Ok(by_task)
}

/// Sends one datagram from a new socket, and returns the answer.
pub fn udp(addr: SocketAddr, payload: &[u8], timeout: Duration) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((if addr.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    // On a connected socket, `recv` returns an ICMP error as an error.
    socket.connect(addr)?;
    socket.set_read_timeout(Some(scaled(timeout)))?;
    socket.send(payload)?;
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

/// Sends a payload over a new TCP connection, and reads the answer at the same time. Returns the
/// answer after both directions are closed.
pub fn tcp_echo(addr: SocketAddr, payload: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&addr, scaled(TIMEOUT))?;
    stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
    stream.set_write_timeout(Some(scaled(TIMEOUT)))?;
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let sent = scope.spawn(move || {
            writer.write_all(payload)?;
            writer.shutdown(Shutdown::Write)
        });
        let mut answer = Vec::new();
        let read = Read::by_ref(&mut stream).take(MAX_REPLY).read_to_end(&mut answer);
        sent.join().map_err(|_| io::Error::other("the writer panicked"))??;
        read.map(|_| answer)
    })
}

/// Connects, and returns how long that took.
pub fn connect(addr: SocketAddr, timeout: Duration) -> io::Result<Duration> {
    let start = Instant::now();
    TcpStream::connect_timeout(&addr, scaled(timeout)).map(|_| start.elapsed())
}

fn parse(text: &str) -> Option<Reply> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let field = |key: &str| {
        let value = body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    };
    Some(Reply {
        status,
        name: field("name").unwrap_or_default(),
        node: field("node").unwrap_or_default(),
        peer: field("peer").and_then(|peer| peer.parse().ok()),
        host: field("host").unwrap_or_default(),
        body: body.to_owned(),
    })
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read_line_by_line() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nname: whoami.2.abc\nnode: n1\npeer: [2001:db8::100]:51324\nhost: n1:8080\n";
        let reply = parse(text).expect("a reply");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.name, "whoami.2.abc");
        assert_eq!(reply.node, "n1");
        assert_eq!(reply.peer, Some("[2001:db8::100]:51324".parse().expect("an address")));
        assert_eq!(reply.host, "n1:8080");
    }

    #[test]
    fn text_that_is_not_http_is_no_reply() {
        for text in ["", "hello", "HTTP/1.1\r\n\r\n"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
