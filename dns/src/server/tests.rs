//! Over real sockets on the loopback of this machine: nothing leaves it.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::TXT},
};
use tokio::time::Instant;

use super::*;
use crate::{
    sample::{BACK, FRONT, addr, plan, service, view},
    zone::Zone,
};

/// Nothing on this machine takes longer; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where nobody listens: the port is the discard service's.
const DEAD: &str = "127.0.0.1:9";

/// A server for one task on `front`, and where it listens.
struct Bench {
    server: Server,
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

fn bench(upstreams: Vec<SocketAddr>) -> Bench {
    let many: Vec<u8> = (1..=200).collect();
    let names = Names::default();
    names.publish(Zone::from_plan(&plan(vec![
        service(FRONT, "web", &[], Some(201), &many, false),
        service(BACK, "db", &[], Some(201), &[1], false),
    ])));
    let server = Server::new(names, upstreams);
    let sockets = sockets();
    let (udp, tcp) = (sockets.udp.local_addr().expect("an address"), sockets.tcp.local_addr().expect("an address"));
    server.start(task(), view(&[FRONT]), sockets).expect("a server");
    Bench { server, udp, tcp }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
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

async fn exchange_udp(server: SocketAddr, request: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    socket.send_to(request, server).await.expect("sent");
    let mut reply = vec![0; 65_536];
    let (len, from) = timeout(PATIENCE, socket.recv_from(&mut reply)).await.expect("a reply in time").expect("a reply");
    assert_eq!(from, server);
    reply.truncate(len);
    reply
}

async fn exchange_tcp(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    let len = u16::try_from(request.len()).expect("a short request");
    stream.write_all(&[&len.to_be_bytes(), request].concat()).await.expect("sent");
    timeout(PATIENCE, read_request(stream)).await.expect("a reply in time").expect("a reply")
}

/// Asks by UDP, and checks what every reply has to have.
async fn ask(bench: &Bench, request: &Message) -> Message {
    let reply = exchange_udp(bench.udp, &octets(request)).await;
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

/// An upstream that answers everything with one text record, of TTL 77, and NXDOMAIN for names that begin with `no`.
/// By UDP it truncates the answer for `long`.
async fn upstream() -> SocketAddr {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let address = udp.local_addr().expect("an address");
    let tcp = TcpListener::bind(address).await.expect("a listener");
    tokio::spawn(async move {
        let mut request = vec![0; 4096];
        while let Ok((len, client)) = udp.recv_from(&mut request).await {
            let _ = udp.send_to(&upstream_reply(&request[..len], Transport::Udp), client).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let Ok(request) = read_request(&mut stream).await else { continue };
            let reply = upstream_reply(&request, Transport::Tcp);
            let len = u16::try_from(reply.len()).expect("a short reply").to_be_bytes();
            let _ = stream.write_all(&[len.as_slice(), &reply].concat()).await;
        }
    });
    address
}

fn upstream_reply(request: &[u8], transport: Transport) -> Vec<u8> {
    let mut message = Message::from_vec(request).expect("a request").into_response();
    let name = message.queries[0].name().clone();
    let text = name.to_ascii();
    message.metadata.recursion_available = true;
    if text.starts_with("no") {
        message.metadata.response_code = ResponseCode::NXDomain;
    } else if text.starts_with("bad") {
        message.metadata.response_code = ResponseCode::ServFail;
    } else if text.starts_with("long") && transport == Transport::Udp {
        message.metadata.truncation = true;
    } else {
        message.add_answer(Record::from_rdata(name, 77, RData::TXT(TXT::new(vec!["outside".to_owned()]))));
    }
    octets(&message)
}

#[tokio::test]
async fn names_resolve_by_udp_and_tcp() {
    let bench = bench(vec![]);
    let reply = ask(&bench, &query("WeB.", RecordType::A)).await;
    assert_eq!(addresses(&reply), [IpAddr::V4(addr(FRONT, 201).v4)]);
    assert_eq!(reply.answers[0].name.to_ascii(), "WeB.", "as it was asked");
    assert!(reply.answers[0].ttl <= 5);
    let reply = ask(&bench, &query("web.", RecordType::AAAA)).await;
    assert_eq!(addresses(&reply), [IpAddr::V6(addr(FRONT, 201).v6)]);

    let mut stream = TcpStream::connect(bench.tcp).await.expect("a connection");
    for kind in [RecordType::A, RecordType::AAAA, RecordType::A] {
        let reply = exchange_tcp(&mut stream, &octets(&query("web.", kind))).await;
        assert_eq!(addresses(&Message::from_vec(&reply).expect("a reply")).len(), 1, "several on one connection");
    }
}

#[tokio::test]
async fn reverse_names_resolve() {
    let bench = bench(vec![]);
    let reply = ask(&bench, &query("201.1.0.10.in-addr.arpa.", RecordType::PTR)).await;
    let [Record { data: RData::PTR(name), .. }] = reply.answers.as_slice() else { panic!("{reply:?}") };
    assert_eq!(name.0.to_ascii(), "web.front.");
    let reply = ask(&bench, &query("250.1.0.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_known_name_without_the_type_is_no_error() {
    let reply = ask(&bench(vec![]), &query("web.", RecordType::MX)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty() && reply.authorities.is_empty(), "and nothing by which to keep it");
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_and_whole_by_tcp() {
    let bench = bench(vec![]);
    for (request, limit, want) in [
        (query("tasks.web.", RecordType::A), 512, 30),
        (with_edns(query("tasks.web.", RecordType::A), 1232), 1232, 74),
        (with_edns(query("tasks.web.", RecordType::AAAA), 1232), 1232, 42),
        (with_edns(query("tasks.web.", RecordType::A), 100), 512, 29),
    ] {
        let octets = exchange_udp(bench.udp, &octets(&request)).await;
        let reply = Message::from_vec(&octets).expect("a reply");
        assert!(octets.len() <= limit, "{} octets of {limit}", octets.len());
        assert!(reply.metadata.truncation);
        assert_eq!(reply.answers.len(), want);
        assert_eq!(reply.edns.is_some(), request.edns.is_some());
    }
    let reply = ask(&bench, &with_edns(query("tasks.web.", RecordType::A), 4096)).await;
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 200);

    let mut stream = TcpStream::connect(bench.tcp).await.expect("a connection");
    let reply = exchange_tcp(&mut stream, &octets(&query("tasks.web.", RecordType::AAAA))).await;
    let reply = Message::from_vec(&reply).expect("a reply");
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
}

#[tokio::test]
async fn what_is_no_question_is_refused_or_ignored() {
    let bench = bench(vec![]);
    let code = async |request: &[u8]| {
        let reply = exchange_udp(bench.udp, request).await;
        Message::from_vec(&reply).expect("a reply").metadata.response_code
    };
    let mut update = query("web.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&octets(&update)).await, ResponseCode::NotImp);
    let mut two = query("web.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&octets(&two)).await, ResponseCode::FormErr);
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&octets(&chaos)).await, ResponseCode::Refused);
    let mut future = with_edns(query("web.", RecordType::A), 1232);
    future.edns.as_mut().expect("EDNS").set_version(1);
    assert_eq!(u16::from(code(&octets(&future)).await), u16::from(ResponseCode::BADVERS));
    let mut broken = octets(&query("web.", RecordType::A));
    broken.truncate(15);
    assert_eq!(code(&broken).await, ResponseCode::FormErr);

    // What needs no reply gets none: the next reply is that of the next question.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let mut reply = query("web.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    for noise in [octets(&reply), b"short".to_vec(), vec![]] {
        socket.send_to(&noise, bench.udp).await.expect("sent");
    }
    let question = query("web.", RecordType::A);
    socket.send_to(&octets(&question), bench.udp).await.expect("sent");
    let mut reply = vec![0; 512];
    let len = timeout(PATIENCE, socket.recv(&mut reply)).await.expect("in time").expect("a reply");
    assert_eq!(Message::from_vec(&reply[..len]).expect("a reply").metadata.id, question.metadata.id);
}

#[tokio::test]
async fn the_outside_is_asked_outside() {
    let bench = bench(vec![upstream().await]);
    let reply = ask(&bench, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].ttl, 77, "as upstream said");
    let reply = ask(&bench, &with_edns(query("Example.Test.", RecordType::TXT), 1232)).await;
    assert_eq!(reply.answers[0].name.to_ascii(), "Example.Test.");
    for unknown in ["nobody.", "no.example.test."] {
        let reply = ask(&bench, &query(unknown, RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{unknown}");
    }
    let reply = ask(&bench, &query("db.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1, "a name of a network that the task is not on is one from outside");
}

#[tokio::test]
async fn a_long_answer_from_outside_comes_by_tcp() {
    let bench = bench(vec![upstream().await]);
    let question = query("long.example.test.", RecordType::TXT);
    assert!(ask(&bench, &question).await.metadata.truncation);
    let mut stream = TcpStream::connect(bench.tcp).await.expect("a connection");
    let reply = Message::from_vec(&exchange_tcp(&mut stream, &octets(&question)).await).expect("a reply");
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (1, false));
    assert_eq!(reply.metadata.id, question.metadata.id);
}

#[tokio::test]
async fn without_upstream_the_outside_fails() {
    let reply = ask(&bench(vec![]), &query("example.test.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_dead_upstream_hands_over_to_the_next() {
    let dead = DEAD.parse().expect("an address");
    let bench = bench(vec![dead, upstream().await]);
    let asked = Instant::now();
    let reply = ask(&bench, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1);
    assert!(asked.elapsed() < Duration::from_millis(800), "refusal is known at once: {:?}", asked.elapsed());

    let reply = ask(&bench, &query("bad.example.test.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "what everybody refuses fails");
}

#[tokio::test]
async fn a_silent_upstream_costs_no_more_than_the_deadline() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let bench = bench(vec![silent.local_addr().expect("an address")]);
    let asked = Instant::now();
    let waiting: Vec<_> = (0..2 * MAX_FORWARDED)
        .map(|number| {
            let (udp, request) = (bench.udp, query(&format!("x{number}.example.test."), RecordType::A));
            tokio::spawn(async move { exchange_udp(udp, &octets(&request)).await })
        })
        .collect();
    // What is known is answered meanwhile.
    assert_eq!(addresses(&ask(&bench, &query("web.", RecordType::A)).await).len(), 1);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    for reply in waiting {
        let reply = Message::from_vec(&reply.await.expect("a reply")).expect("a reply");
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let bench = bench(vec![upstream.local_addr().expect("an address")]);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let mut question = query("example.test.", RecordType::TXT);
    for id in 1..=5 {
        question.metadata.id = id;
        client.send_to(&octets(&question), bench.udp).await.expect("sent");
    }
    let mut asked = vec![0; 512];
    let (len, resolver) = upstream.recv_from(&mut asked).await.expect("a question");
    // By the time a later question is answered, the earlier ones have been read.
    ask(&bench, &query("web.", RecordType::A)).await;
    upstream.send_to(&upstream_reply(&asked[..len], Transport::Udp), resolver).await.expect("sent");
    let mut answered = Vec::new();
    while answered.len() < 5 {
        let mut reply = vec![0; 512];
        let len = timeout(PATIENCE, client.recv(&mut reply)).await.expect("in time").expect("a reply");
        let reply = Message::from_vec(&reply[..len]).expect("a reply");
        assert_eq!(reply.answers.len(), 1);
        answered.push(reply.metadata.id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3, 4, 5], "each under its own id");
    let mut again = [0; 1];
    assert!(upstream.try_recv(&mut again).is_err(), "asked once only");
}

#[tokio::test]
async fn a_forged_reply_is_not_taken() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let bench = bench(vec![upstream.local_addr().expect("an address")]);
    let (udp, request) = (bench.udp, octets(&query("example.test.", RecordType::TXT)));
    let client = tokio::spawn(async move { exchange_udp(udp, &request).await });
    let mut asked = vec![0; 512];
    let (len, resolver) = upstream.recv_from(&mut asked).await.expect("a question");
    let good = upstream_reply(&asked[..len], Transport::Udp);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut other_question = good.clone();
    other_question[13] ^= 1;
    for forged in [other_id, other_question, asked[..len].to_vec(), vec![1]] {
        upstream.send_to(&forged, resolver).await.expect("sent");
    }
    upstream.send_to(&good, resolver).await.expect("sent");
    let reply = Message::from_vec(&client.await.expect("a reply")).expect("a reply");
    assert_eq!(reply.answers[0].name.to_ascii(), "example.test.");
}

#[tokio::test]
async fn a_stopped_task_is_not_answered_and_its_port_is_free() {
    let bench = bench(vec![]);
    assert_eq!(bench.server.serving(), [task()]);
    bench.server.stop(&task());
    assert!(bench.server.serving().is_empty());
    let free = async {
        while std::net::UdpSocket::bind(bench.udp).is_err() || std::net::TcpListener::bind(bench.tcp).is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, free).await.expect("the ports are free again");
    bench.server.stop(&task());
}

#[tokio::test]
async fn a_new_zone_is_seen_at_once() {
    let names = Names::default();
    let server = Server::new(names.clone(), vec![]);
    let sockets = sockets();
    let udp = sockets.udp.local_addr().expect("an address");
    server.start(task(), view(&[FRONT]), sockets).expect("a server");
    for host in [10, 20] {
        names.publish(Zone::from_plan(&plan(vec![service(FRONT, "web", &[], Some(host), &[], false)])));
        let reply =
            Message::from_vec(&exchange_udp(udp, &octets(&query("web.", RecordType::A))).await).expect("a reply");
        assert_eq!(addresses(&reply), [IpAddr::V4(addr(FRONT, host).v4)]);
    }
}
