//! Questions that upstream resolvers answer.

use std::{
    cell::Cell,
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_proto::{
    op::ResponseCode,
    rr::{
        RData, Record,
        rdata::{CNAME, SOA, TXT},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpSocket,
    time::Instant,
};

use super::*;
use crate::outside::OpenSockets;

/// An address without a listener: the port of the discard service.
const CLOSED: &str = "127.0.0.1:9";

/// Starts an upstream resolver, which replies as [`upstream_reply`] says.
async fn upstream() -> SocketAddr {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let address = udp.local_addr().expect("an address");
    let tcp = TcpListener::bind(address).await.expect("a listener");
    tokio::spawn(async move {
        let mut request = vec![0; 4096];
        while let Ok((len, client)) = udp.recv_from(&mut request).await {
            let _ = udp.send_to(&upstream_reply(&request[..len], Protocol::Udp), client).await;
        }
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            tokio::spawn(serve_upstream(stream));
        }
    });
    address
}

async fn serve_upstream(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    while let Ok(request) = read_request(&mut stream).await {
        let reply = upstream_reply(&request, Protocol::Tcp);
        let len = u16::try_from(reply.len()).expect("a short reply").to_be_bytes();
        if stream.write_all(&[len.as_slice(), &reply].concat()).await.is_err() {
            return;
        }
    }
}

/// The reply is one text record with the TTL 77 and the number of questions so far. It is NXDOMAIN
/// with an SOA record for names that begin with `no`, SERVFAIL for `bad`, REFUSED for `refused`, no
/// data for `empty`, and for `alias` the text record of another name. By UDP it is truncated for
/// `long`.
fn upstream_reply(request: &[u8], protocol: Protocol) -> Vec<u8> {
    let mut message = Message::from_vec(request).expect("a request").into_response();
    let name = message.queries[0].name().clone();
    let text = name.to_ascii().to_ascii_lowercase();
    message.metadata.recursion_available = true;
    let mut target = name.clone();
    let soa = || {
        let zone = Name::from_ascii("test.").expect("a name");
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 3600, 600, 86_400, 300);
        Record::from_rdata(zone, 300, RData::SOA(soa))
    };
    match text.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default() {
        "no" => message.metadata.response_code = ResponseCode::NXDomain,
        "bad" => message.metadata.response_code = ResponseCode::ServFail,
        "refused" => message.metadata.response_code = ResponseCode::Refused,
        "empty" => {}
        "long" if protocol == Protocol::Udp => message.metadata.truncation = true,
        "alias" => {
            target = Name::from_ascii("target.example.test.").expect("a name");
            message.add_answer(Record::from_rdata(name.clone(), 99, RData::CNAME(CNAME(target.clone()))));
        }
        _ => {}
    }
    if message.metadata.response_code == ResponseCode::NoError
        && !text.starts_with("empty")
        && !message.metadata.truncation
    {
        let asked = ASKED.with(|asked| asked.replace(asked.get() + 1));
        message.add_answer(Record::from_rdata(target, 77, RData::TXT(TXT::new(vec![asked.to_string()]))));
    } else if message.metadata.response_code == ResponseCode::NXDomain || text.starts_with("empty") {
        message.add_authority(soa());
    }
    octets(&message)
}

thread_local! {
    /// Questions that the upstream resolvers of this test have answered with a record.
    static ASKED: Cell<u32> = const { Cell::new(0) };
}

#[tokio::test]
async fn upstream_resolvers_answer_unknown_names() {
    let server = start_server(&[upstream().await]);
    let reply = ask(&server, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].ttl, 77, "the TTL of the upstream resolver");
    let reply = ask(&server, &with_edns(query("Example.Test.", RecordType::TXT), 1232)).await;
    assert_eq!(reply.answers[0].name.to_ascii(), "Example.Test.");
    let reply = ask(&server, &query("db.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1, "a name of another network is not in the zone");
}

#[tokio::test]
async fn negative_replies_have_a_short_soa_record() {
    let server = start_server(&[upstream().await]);
    for (name, code) in [
        ("no-such-name.", ResponseCode::NXDomain),
        ("no.example.test.", ResponseCode::NXDomain),
        ("empty.example.test.", ResponseCode::NoError),
    ] {
        let reply = ask(&server, &query(name, RecordType::A)).await;
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name}");
        let [soa] = reply.authorities.as_slice() else { panic!("{reply:?}") };
        assert_eq!((soa.record_type(), soa.ttl), (RecordType::SOA, 1), "any name can become a name of the cluster");
    }
    for failing in ["bad.example.test.", "refused.example.test."] {
        let reply = ask(&server, &query(failing, RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{failing}");
        assert!(reply.authorities.is_empty());
    }
}

#[tokio::test]
async fn an_alias_is_followed() {
    let reply = ask(&start_server(&[upstream().await]), &query("Alias.example.test.", RecordType::TXT)).await;
    let [alias, text] = reply.answers.as_slice() else { panic!("{reply:?}") };
    assert_eq!((alias.record_type(), alias.name.to_ascii().as_str()), (RecordType::CNAME, "Alias.example.test."));
    assert_eq!((text.record_type(), text.name.to_ascii().as_str()), (RecordType::TXT, "target.example.test."));
}

#[tokio::test]
async fn a_second_question_is_answered_from_the_cache() {
    let upstream = upstream().await;
    let server = start_server(&[upstream]);
    let text = async || ask(&server, &query("example.test.", RecordType::TXT)).await.answers[0].data.to_string();
    let first = text().await;
    assert_eq!(text().await, first);
    server.outside.set_upstreams(&plain(&[upstream])).expect("upstream resolvers");
    assert_ne!(text().await, first, "other upstream resolvers can have other answers");
}

#[tokio::test]
async fn changed_upstream_resolvers_are_used_at_once() {
    let server = start_server(&[]);
    let code = async |name| ask(&server, &query(name, RecordType::TXT)).await.metadata.response_code;
    assert_eq!(code("a.test.").await, ResponseCode::ServFail, "without an upstream resolver");
    server.outside.set_upstreams(&plain(&[upstream().await])).expect("upstream resolvers");
    assert_eq!(code("a.test.").await, ResponseCode::NoError);
}

#[tokio::test]
async fn a_truncated_upstream_reply_is_asked_for_by_tcp() {
    let server = start_server(&[upstream().await]);
    let reply = ask(&server, &query("long.example.test.", RecordType::TXT)).await;
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (1, false));
    let mut stream = TcpStream::connect(server.tcp).await.expect("a connection");
    let question = query("long.other.test.", RecordType::TXT);
    let reply = Message::from_vec(&exchange_tcp(&mut stream, &octets(&question)).await).expect("a reply");
    assert_eq!((reply.answers.len(), reply.metadata.id), (1, question.metadata.id));
}

#[tokio::test]
async fn another_upstream_resolver_answers_if_one_is_closed() {
    let closed = CLOSED.parse().expect("an address");
    let server = start_server(&[closed, upstream().await]);
    let start = Instant::now();
    let reply = ask(&server, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(reply.answers.len(), 1);
    assert!(start.elapsed() < Duration::from_millis(800), "a closed port is an error at once: {:?}", start.elapsed());
}

#[tokio::test]
async fn an_upstream_resolver_that_does_not_reply_delays_only_questions_to_the_outside() {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(&[silent.local_addr().expect("an address")]);
    let start = Instant::now();
    let questions = 2 * u16::try_from(MAX_OUTSIDE).expect("a small number");
    let client = client_of(&server).await;
    let reader = Arc::clone(&client);
    let codes = tokio::spawn(async move { receive_codes(&reader, questions).await });
    send_questions(&client, questions).await;
    // Meanwhile the server still answers names of the zone.
    assert_eq!(addresses(&ask(&server, &query("web.", RecordType::A)).await).len(), 1);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    for code in codes.await.expect("replies") {
        assert_eq!(code, ResponseCode::ServFail);
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

#[tokio::test]
async fn many_questions_at_once_wait_for_a_slow_upstream_resolver() {
    const QUESTIONS: u16 = 200;
    let slow = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(&[slow.local_addr().expect("an address")]);
    let client = client_of(&server).await;
    send_questions(&client, QUESTIONS).await;
    // All questions wait before the first one is answered.
    let mut names = HashSet::new();
    let mut waiting = Vec::new();
    while names.len() < usize::from(QUESTIONS) {
        let mut request = vec![0; 512];
        let (len, from) = timeout(DEADLINE, slow.recv_from(&mut request)).await.expect("in time").expect("a question");
        names.insert(Message::from_vec(&request[..len]).expect("a question").queries[0].name().clone());
        waiting.push((request[..len].to_vec(), from));
    }
    for (request, from) in waiting {
        // The socket of a repeated question is closed when the first one is answered.
        let _ = slow.send_to(&upstream_reply(&request, Protocol::Udp), from).await;
    }
    for code in receive_codes(&client, QUESTIONS).await {
        assert_eq!(code, ResponseCode::NoError);
    }
}

async fn client_of(server: &TestServer) -> Arc<UdpSocket> {
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    client.connect(server.udp).await.expect("an address");
    Arc::new(client)
}

/// Sends different questions about names outside of the cluster.
async fn send_questions(client: &UdpSocket, count: u16) {
    for id in 0..count {
        let mut question = query(&format!("x{id}.example.test."), RecordType::TXT);
        question.metadata.id = id;
        client.send(&octets(&question)).await.expect("sent");
        // The server reads, so that its socket's buffer does not overflow.
        tokio::task::yield_now().await;
    }
}

/// Receives so many replies with different ids.
async fn receive_codes(client: &UdpSocket, count: u16) -> Vec<ResponseCode> {
    let mut ids = HashSet::new();
    let mut codes = Vec::new();
    while codes.len() < usize::from(count) {
        let mut reply = vec![0; 512];
        let len = timeout(DEADLINE, client.recv(&mut reply)).await.expect("in time").expect("a reply");
        let reply = Message::from_vec(&reply[..len]).expect("a reply");
        assert!(ids.insert(reply.metadata.id), "a second reply");
        codes.push(reply.metadata.response_code);
    }
    codes
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(&[upstream.local_addr().expect("an address")]);
    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let mut question = query("example.test.", RecordType::TXT);
    for id in 1..=5 {
        question.metadata.id = id;
        client.send_to(&octets(&question), server.udp).await.expect("sent");
    }
    let mut asked = vec![0; 512];
    let (len, resolver) = upstream.recv_from(&mut asked).await.expect("a question");
    // When a later question is answered, the server has read the earlier ones.
    ask(&server, &query("web.", RecordType::A)).await;
    upstream.send_to(&upstream_reply(&asked[..len], Protocol::Udp), resolver).await.expect("sent");
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
    assert!(upstream.try_recv(&mut again).is_err(), "asked only once");
}

#[tokio::test]
async fn a_forged_reply_is_ignored() {
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let server = start_server(&[upstream.local_addr().expect("an address")]);
    let (udp, request) = (server.udp, octets(&query("example.test.", RecordType::TXT)));
    let client = tokio::spawn(async move { exchange_udp(udp, &request).await });
    let mut asked = vec![0; 512];
    let (len, resolver) = upstream.recv_from(&mut asked).await.expect("a question");
    let good = upstream_reply(&asked[..len], Protocol::Udp);
    let mut other_id = good.clone();
    other_id[0] ^= 1;
    let mut other_question = good.clone();
    other_question[13] ^= 1;
    for forged in [other_id, other_question, vec![1]] {
        upstream.send_to(&forged, resolver).await.expect("sent");
    }
    upstream.send_to(&good, resolver).await.expect("sent");
    let reply = Message::from_vec(&client.await.expect("a reply")).expect("a reply");
    assert_eq!(reply.answers[0].name.to_ascii(), "example.test.");
}

#[tokio::test]
async fn an_upstream_resolver_over_tls_must_have_the_certificate() {
    let key = rcgen::generate_simple_self_signed(vec!["dns.example.test".to_owned()]).expect("a certificate");
    let chain = vec![key.cert.der().clone()];
    let private = rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_no_client_auth()
        .with_single_cert(chain.clone(), private)
        .expect("a key");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a listener");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // The client ends the handshake if it does not trust the certificate.
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve_upstream(stream));
            }
        }
    });
    for (name, code) in [("dns.example.test", ResponseCode::NoError), ("other.example.test", ResponseCode::ServFail)] {
        let upstream = format!("tls://{address}#{name}").parse().expect("an upstream resolver");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain[0].clone()).expect("a certificate");
        let outside = Outside::trusting(&[upstream], roots).expect("an upstream resolver");
        let server = start_server_with(ZoneHandle::default(), outside);
        let reply = ask(&server, &query("example.test.", RecordType::TXT)).await;
        assert_eq!(reply.metadata.response_code, code, "{name}");
    }
}

/// Opens sockets in the namespace of the process, and counts them.
#[derive(Debug, Default)]
struct Counted {
    udp: AtomicUsize,
    tcp: AtomicUsize,
}

impl OpenSockets for Counted {
    fn udp(&self, local: SocketAddr) -> io::Result<std::net::UdpSocket> {
        self.udp.fetch_add(1, Ordering::Relaxed);
        std::net::UdpSocket::bind(local)
    }

    fn tcp(&self, _server: IpAddr) -> io::Result<TcpSocket> {
        self.tcp.fetch_add(1, Ordering::Relaxed);
        TcpSocket::new_v4()
    }
}

#[tokio::test]
async fn the_resolvers_of_a_task_are_asked_by_its_own_sockets() {
    let node = Outside::new(&plain(&[CLOSED.parse().expect("an address")])).expect("upstream resolvers");
    let sockets = Arc::new(Counted::default());
    let outside = node.for_task_with(&plain(&[upstream().await]), sockets.clone()).expect("upstream resolvers");
    let server = start_server_with(ZoneHandle::default(), outside);
    let opened = || (sockets.udp.load(Ordering::Relaxed), sockets.tcp.load(Ordering::Relaxed));
    let reply = ask(&server, &query("example.test.", RecordType::TXT)).await;
    assert_eq!((reply.answers.len(), opened()), (1, (1, 0)));
    ask(&server, &query("example.test.", RecordType::TXT)).await;
    assert_eq!(opened(), (1, 0), "the reply is cached");
    // The reply by UDP is truncated, so the resolver is asked by TCP.
    let reply = ask(&server, &query("long.example.test.", RecordType::TXT)).await;
    assert_eq!((reply.answers.len(), opened()), (1, (2, 1)));
    // The node's own resolvers are still asked by the sockets of the process.
    let server = start_server_with(ZoneHandle::default(), node);
    let reply = ask(&server, &query("other.example.test.", RecordType::TXT)).await;
    assert_eq!((reply.metadata.response_code, opened()), (ResponseCode::ServFail, (2, 1)));
}
