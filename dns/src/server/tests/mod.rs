//! Tests with real sockets on the loopback address. No packet leaves the machine.
//!
//! - `answers`: questions that the server answers from its zone;
//! - `outside`: questions that upstream resolvers answer;
//! - `changes`: answers while plans change;
//! - `octets`: messages of arbitrary octets.

mod answers;
mod outside;
mod changes;
mod octets;

use std::net::{IpAddr, SocketAddr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};

use hickory_server::net::xfer::Protocol;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Duration, timeout},
};

use super::{tcp::read_request, *};
use crate::{
    fixture::{BACK, FRONT, addr, networks, plan, service},
    handler::MAX_OUTSIDE,
    outside::Outside,
    upstream::Upstream,
    zone::Zone,
};

/// A test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(20);
/// A server for one task on the network `front`, and its addresses.
struct TestServer {
    handle: Server,
    outside: Outside,
    udp: SocketAddr,
    tcp: SocketAddr,
}

fn task() -> TaskId {
    TaskId::from_random(1)
}

fn sockets() -> Sockets {
    let any = (Ipv4Addr::LOCALHOST, 0);
    Sockets {
        udp: std::net::UdpSocket::bind(any).expect("a UDP socket"),
        tcp: std::net::TcpListener::bind(any).expect("a TCP socket"),
    }
}

fn start_server(upstreams: &[SocketAddr]) -> TestServer {
    let many: Vec<u8> = (1..=200).collect();
    let zone = ZoneHandle::default();
    zone.publish(Zone::from_plan(&plan(vec![
        service(FRONT, "web", &[], Some(201), &many, false),
        service(BACK, "db", &[], Some(201), &[1], false),
    ])));
    start_server_with(zone, Outside::new(&plain(upstreams)).expect("upstream resolvers"))
}

fn plain(upstreams: &[SocketAddr]) -> Vec<Upstream> {
    upstreams.iter().map(|address| address.to_string().parse().expect("an upstream resolver")).collect()
}

fn start_server_with(zone: ZoneHandle, outside: Outside) -> TestServer {
    let handle = Server::new(zone);
    let sockets = sockets();
    let (udp, tcp) = (sockets.udp.local_addr().expect("an address"), sockets.tcp.local_addr().expect("an address"));
    let config = TaskConfig { networks: networks(&[FRONT]), outside: outside.clone() };
    handle.start(task(), config, sockets).expect("a server");
    TestServer { handle, outside, udp, tcp }
}

fn query(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), record_type));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn octets(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message that can be written")
}

async fn exchange_udp(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    socket.send_to(request, address).await.expect("sent");
    let mut reply = vec![0; 65_536];
    let (len, from) = timeout(DEADLINE, socket.recv_from(&mut reply)).await.expect("a reply in time").expect("a reply");
    assert_eq!(from, address);
    reply.truncate(len);
    reply
}

async fn exchange_tcp(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    let len = u16::try_from(request.len()).expect("a short request");
    stream.write_all(&[&len.to_be_bytes(), request].concat()).await.expect("sent");
    timeout(DEADLINE, read_request(stream)).await.expect("a reply in time").expect("a reply")
}

/// Sends a request by UDP, and checks the fields that are the same in every reply.
async fn ask(server: &TestServer, request: &Message) -> Message {
    let reply = exchange_udp(server.udp, &octets(request)).await;
    let reply = Message::from_vec(&reply).expect("a reply that can be read");
    assert_eq!(reply.metadata.id, request.metadata.id);
    assert_eq!(reply.queries, request.queries);
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert!(!reply.metadata.authoritative && !reply.metadata.authentic_data);
    assert_eq!(reply.edns.is_some(), request.edns.is_some());
    reply
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message.answers.iter().filter_map(|record| record.data.ip_addr()).collect()
}
