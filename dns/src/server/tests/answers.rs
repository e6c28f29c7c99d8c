//! Questions that the server answers from its zone.

use hickory_proto::{
    op::ResponseCode,
    rr::{DNSClass, RData, Record},
};

use super::*;

#[tokio::test]
async fn names_resolve_by_udp_and_tcp() {
    let server = start_server(&[]);
    let reply = ask(&server, &query("WeB.", RecordType::A)).await;
    assert_eq!(addresses(&reply), [addr(FRONT, 201).first()]);
    assert_eq!(reply.answers[0].name.to_ascii(), "WeB.", "as in the question");
    assert!(reply.answers[0].ttl <= 5);
    let reply = ask(&server, &query("web.", RecordType::AAAA)).await;
    assert_eq!(addresses(&reply), [IpAddr::V6(addr(FRONT, 201).v6)]);

    let mut stream = TcpStream::connect(server.tcp).await.expect("a connection");
    for record_type in [RecordType::A, RecordType::AAAA, RecordType::A] {
        let reply = exchange_tcp(&mut stream, &octets(&query("web.", record_type))).await;
        assert_eq!(
            addresses(&Message::from_vec(&reply).expect("a reply")).len(),
            1,
            "several requests on one connection"
        );
    }
}

#[tokio::test]
async fn reverse_names_resolve() {
    let server = start_server(&[]);
    let reply = ask(&server, &query("201.1.0.10.in-addr.arpa.", RecordType::PTR)).await;
    let [Record { data: RData::PTR(name), .. }] = reply.answers.as_slice() else { panic!("{reply:?}") };
    assert_eq!(name.0.to_ascii(), "web.front.");
    let reply = ask(&server, &query("250.1.0.10.in-addr.arpa.", RecordType::PTR)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn a_name_without_a_record_of_the_type_gets_no_error() {
    let reply = ask(&start_server(&[]), &query("web.", RecordType::MX)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(
        reply.answers.is_empty() && reply.authorities.is_empty(),
        "without an SOA record, no resolver caches the reply"
    );
}

#[tokio::test]
async fn a_reply_that_is_too_long_for_udp_is_truncated_and_complete_by_tcp() {
    let server = start_server(&[]);
    // The name of the first record is written in full, and those of the others as a pointer to it.
    for (request, limit, want) in [
        (query("tasks.web.", RecordType::A), 512, 29),
        (with_edns(query("tasks.web.", RecordType::A), 1232), 1232, 74),
        (with_edns(query("tasks.web.", RecordType::AAAA), 1232), 1232, 42),
        (with_edns(query("tasks.web.", RecordType::A), 100), 512, 29),
    ] {
        let octets = exchange_udp(server.udp, &octets(&request)).await;
        let reply = Message::from_vec(&octets).expect("a reply");
        assert!(octets.len() <= limit, "{} octets of {limit}", octets.len());
        assert!(reply.metadata.truncation);
        assert_eq!(reply.answers.len(), want);
        assert_eq!(reply.edns.is_some(), request.edns.is_some(), "also a truncated reply");
    }
    let reply = ask(&server, &with_edns(query("tasks.web.", RecordType::A), 4096)).await;
    assert!(!reply.metadata.truncation);
    assert_eq!(reply.answers.len(), 200);

    let mut stream = TcpStream::connect(server.tcp).await.expect("a connection");
    let reply = exchange_tcp(&mut stream, &octets(&query("tasks.web.", RecordType::AAAA))).await;
    let reply = Message::from_vec(&reply).expect("a reply");
    assert_eq!((reply.answers.len(), reply.metadata.truncation), (200, false));
}

#[tokio::test]
async fn a_request_that_is_no_question_is_rejected_or_ignored() {
    let server = start_server(&[]);
    let code = async |request: &[u8]| {
        let reply = exchange_udp(server.udp, request).await;
        let code = Message::from_vec(&reply).expect("a reply").metadata.response_code;
        let mut stream = TcpStream::connect(server.tcp).await.expect("a connection");
        let by_tcp = Message::from_vec(&exchange_tcp(&mut stream, request).await).expect("a reply");
        assert_eq!(by_tcp.metadata.response_code, code);
        code
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

    // The server sends no reply to a message that is not a request, so the next reply belongs to
    // the next question.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let mut reply = query("web.", RecordType::A);
    reply.metadata.message_type = MessageType::Response;
    for ignored in [octets(&reply), b"short".to_vec(), vec![]] {
        socket.send_to(&ignored, server.udp).await.expect("sent");
    }
    let question = query("web.", RecordType::A);
    socket.send_to(&octets(&question), server.udp).await.expect("sent");
    let mut reply = vec![0; 512];
    let len = timeout(DEADLINE, socket.recv(&mut reply)).await.expect("in time").expect("a reply");
    assert_eq!(Message::from_vec(&reply[..len]).expect("a reply").metadata.id, question.metadata.id);
}

#[tokio::test]
async fn stopping_a_task_closes_its_sockets() {
    let server = start_server(&[]);
    assert_eq!(server.handle.serving(), [task()]);
    server.handle.stop(&task());
    assert!(server.handle.serving().is_empty());
    let free = async {
        while std::net::UdpSocket::bind(server.udp).is_err() || std::net::TcpListener::bind(server.tcp).is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, free).await.expect("the ports are free again");
    server.handle.stop(&task());
}

#[tokio::test]
async fn a_new_zone_is_used_at_once() {
    let zone = ZoneHandle::default();
    let server = start_server_with(zone.clone(), Outside::new(&[]).expect("no upstream resolvers"));
    for host in [10, 20] {
        zone.publish(Zone::from_plan(&plan(vec![service(FRONT, "web", &[], Some(host), &[], false)])));
        let reply = Message::from_vec(&exchange_udp(server.udp, &octets(&query("web.", RecordType::A))).await)
            .expect("a reply");
        assert_eq!(addresses(&reply), [addr(FRONT, host).first()]);
    }
}
