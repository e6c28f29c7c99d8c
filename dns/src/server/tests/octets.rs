//! Messages of arbitrary octets: the server replies with a message that can be read, or not at all,
//! and then still answers.

use hickory_proto::op::MessageType as Type;
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

/// Octets of a plain question, some of which are replaced.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let question = octets(&with_edns(query("tasks.web.", RecordType::A), 1232));
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8);
    (changes, any::<proptest::sample::Index>()).prop_map(move |(changes, length)| {
        let mut octets = question.clone();
        for (index, octet) in changes {
            let index = index.index(octets.len());
            octets[index] = octet;
        }
        octets.truncate(length.index(octets.len()) + octets.len() / 2);
        octets
    })
}

#[test]
fn any_octets_get_a_readable_reply_or_none() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _entered = runtime.enter();
    let server = start_server(&[]);
    let strategy = prop_oneof![mutated(), proptest::collection::vec(any::<u8>(), 0..600)];
    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.connect(server.udp).expect("an address");
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    TestRunner::new(ProptestConfig::with_cases(2000))
        .run(&strategy, |request| {
            socket.send(&request).expect("sent");
            let last = query("web.", RecordType::A);
            socket.send(&octets(&last)).expect("sent");
            // The replies can come in any order. That to arbitrary octets may also come after the
            // next request: it is checked then.
            let mut reply = vec![0; 65_536];
            loop {
                let len = socket.recv(&mut reply).expect("the server still answers");
                let message =
                    Message::from_vec(&reply[..len]).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(message.metadata.message_type, Type::Response);
                prop_assert!(len <= 4096);
                if message.metadata.id == last.metadata.id && !message.answers.is_empty() {
                    return Ok(());
                }
            }
        })
        .expect("every reply can be read");
    // By TCP, a request that is no message closes the connection.
    let mut closed = runtime.block_on(TcpStream::connect(server.tcp)).expect("a connection");
    let ends = runtime.block_on(async {
        closed.write_all(&[0, 5, 1, 2, 3, 4, 5]).await.expect("sent");
        read_request(&mut closed).await
    });
    assert_eq!(ends.expect_err("no reply").kind(), io::ErrorKind::UnexpectedEof);
}
