//! Questions that the server forwards to an upstream resolver.

use hickory_proto::{
    op::ResponseCode,
    rr::{RData, Record, rdata::TXT},
};
use tokio::time::Instant;

use super::*;

/// An address without a listener: the port of the discard service.
const CLOSED: &str = "127.0.0.1:9";

/// Starts an upstream resolver. It replies with one text record with the TTL 77, with NXDOMAIN for
/// names that begin with `no`, and with SERVFAIL for names that begin with `bad`. By UDP it
/// truncates the reply for names that begin with `long`.
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
async fn unknown_names_are_forwarded() {
    let server = start_server(vec![upstream().await]);
    let reply = ask(&server, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].ttl, 77, "the TTL of the upstream resolver");
    let reply = ask(&server, &with_edns(query("Example.Test.", RecordType::TXT), 1232)).await;
    assert_eq!(reply.answers[0].name.to_ascii(), "Example.Test.");
    for unknown in ["nobody.", "no.example.test."] {
        let reply = ask(&server, &query(unknown, RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{unknown}");
    }
    let reply = ask(&server, &query("db.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1, "a name of another network is forwarded");
}

#[tokio::test]
async fn a_long_upstream_reply_comes_by_tcp() {
    let server = start_server(vec![upstream().await]);
    let question = query("long.example.test.", RecordType::TXT);
    assert!(ask(&server, &question).await.metadata.truncation);
    let mut stream = TcpStream::connect(server.tcp).await.expect("a connection");
    let reply = Message::from_vec(&exchange_tcp(&mut stream, &octets(&question)).await).expect("a reply");
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (1, false));
    assert_eq!(reply.metadata.id, question.metadata.id);
}

#[tokio::test]
async fn without_an_upstream_resolver_unknown_names_fail() {
    let reply = ask(&start_server(vec![]), &query("example.test.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_next_upstream_resolver_is_asked_if_one_fails() {
    let closed = CLOSED.parse().expect("an address");
    let server = start_server(vec![closed, upstream().await]);
    let start = Instant::now();
    let reply = ask(&server, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1);
    assert!(start.elapsed() < Duration::from_millis(800), "a closed port is an error at once: {:?}", start.elapsed());

    let reply = ask(&server, &query("bad.example.test.", RecordType::A)).await;
    assert_eq!(
        reply.metadata.response_code,
        ResponseCode::ServFail,
        "the reply is SERVFAIL if all upstream resolvers fail"
    );
}

#[tokio::test]
async fn an_upstream_resolver_that_does_not_reply_delays_only_forwarded_questions() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(vec![silent.local_addr().expect("an address")]);
    let start = Instant::now();
    let waiting: Vec<_> = (0..2 * MAX_FORWARDED)
        .map(|number| {
            let (udp, request) = (server.udp, query(&format!("x{number}.example.test."), RecordType::A));
            tokio::spawn(async move { exchange_udp(udp, &octets(&request)).await })
        })
        .collect();
    // Meanwhile the server still answers names of the zone.
    assert_eq!(addresses(&ask(&server, &query("web.", RecordType::A)).await).len(), 1);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for reply in waiting {
        let reply = Message::from_vec(&reply.await.expect("a reply")).expect("a reply");
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test]
async fn equal_questions_are_forwarded_once() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(vec![upstream.local_addr().expect("an address")]);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let mut question = query("example.test.", RecordType::TXT);
    for id in 1..=5 {
        question.metadata.id = id;
        client.send_to(&octets(&question), server.udp).await.expect("sent");
    }
    let mut forwarded = vec![0; 512];
    let (len, resolver) = upstream.recv_from(&mut forwarded).await.expect("a question");
    // When a later question is answered, the server has read the earlier ones.
    ask(&server, &query("web.", RecordType::A)).await;
    upstream.send_to(&upstream_reply(&forwarded[..len], Transport::Udp), resolver).await.expect("sent");
    let mut answered = Vec::new();
    while answered.len() < 5 {
        let mut reply = vec![0; 512];
        let len = timeout(DEADLINE, client.recv(&mut reply)).await.expect("in time").expect("a reply");
        let reply = Message::from_vec(&reply[..len]).expect("a reply");
        assert_eq!(reply.answers.len(), 1);
        answered.push(reply.metadata.id);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2, 3, 4, 5], "each reply has the id of its request");
    let mut again = [0; 1];
    assert!(upstream.try_recv(&mut again).is_err(), "forwarded only once");
}

#[tokio::test]
async fn a_forged_reply_is_ignored() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(vec![upstream.local_addr().expect("an address")]);
    let (udp, request) = (server.udp, octets(&query("example.test.", RecordType::TXT)));
    let client = tokio::spawn(async move { exchange_udp(udp, &request).await });
    let mut forwarded = vec![0; 512];
    let (len, resolver) = upstream.recv_from(&mut forwarded).await.expect("a question");
    let good = upstream_reply(&forwarded[..len], Transport::Udp);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut other_question = good.clone();
    other_question[13] ^= 1;
    for forged in [other_id, other_question, forwarded[..len].to_vec(), vec![1]] {
        upstream.send_to(&forged, resolver).await.expect("sent");
    }
    upstream.send_to(&good, resolver).await.expect("sent");
    let reply = Message::from_vec(&client.await.expect("a reply")).expect("a reply");
    assert_eq!(reply.answers[0].name.to_ascii(), "example.test.");
}
