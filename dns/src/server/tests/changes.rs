//! Answers while plans change: an answer is never older than the newest published plan.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use hickory_proto::op::ResponseCode;

use super::*;

const CHANGES: u64 = 1000;
const CLIENTS: usize = 8;

/// The plan number `number`: `web` is at an address that tells the number, and exists only in even
/// plans.
fn numbered(number: u64) -> Zone {
    let host = host(number);
    let web = number.is_multiple_of(2).then(|| service(FRONT, "web", &[], Some(host), &[], false));
    Zone::from_plan(&plan(web.into_iter().chain([service(FRONT, "tick", &[], Some(host), &[], false)]).collect()))
}

/// The last octet of the address in a plan: it repeats after 200 plans, and the test is much faster
/// than that between two questions.
fn host(number: u64) -> u8 {
    u8::try_from(number % 200).expect("less than 200") + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_of_the_published_plan_or_a_later_one() {
    let zone = ZoneHandle::default();
    zone.publish(numbered(0));
    let upstream = nonexistent_names().await;
    let server = start_server_with(zone.clone(), Outside::new(&plain(&[upstream])).expect("an upstream resolver"));
    // What a client may rely on: the number of the newest plan that was acknowledged.
    let acknowledged = Arc::new(AtomicU64::new(0));
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (acknowledged, done, udp) = (Arc::clone(&acknowledged), Arc::clone(&done), server.udp);
            tokio::spawn(async move {
                let mut checked = 0_u64;
                while !done.load(Ordering::SeqCst) {
                    // `web` exists in every second plan, `tick` in all.
                    let name = if client.is_multiple_of(2) { "tick." } else { "web." };
                    let oldest = acknowledged.load(Ordering::SeqCst);
                    let reply = exchange_udp(udp, &octets(&query(name, RecordType::A))).await;
                    let newest = acknowledged.load(Ordering::SeqCst) + 1;
                    let reply = Message::from_vec(&reply).expect("a reply");
                    let possible = |number: u64| match addresses(&reply).as_slice() {
                        [] => {
                            name == "web."
                                && !number.is_multiple_of(2)
                                && reply.metadata.response_code == ResponseCode::NXDomain
                        }
                        [address] => *address == addr(FRONT, host(number)).first(),
                        _ => false,
                    };
                    assert!((oldest..=newest).any(possible), "{name} in plans {oldest} to {newest}: {reply:?}");
                    checked += 1;
                }
                checked
            })
        })
        .collect();
    for number in 1..=CHANGES {
        zone.publish(numbered(number));
        acknowledged.store(number, Ordering::SeqCst);
        // One question of this task itself, so that the clients have time to ask.
        let reply = ask(&server, &query("tick.", RecordType::A)).await;
        assert_eq!(addresses(&reply), [addr(FRONT, host(number)).first()], "plan {number}");
    }
    done.store(true, Ordering::SeqCst);
    let mut checked = 0;
    for client in clients {
        checked += client.await.expect("every answer is of a possible plan");
    }
    assert!(checked > CHANGES, "only {checked} answers were checked");
}

#[tokio::test]
async fn a_name_that_appears_while_it_is_asked_for_outside_is_found() {
    let zone = ZoneHandle::default();
    let upstream = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let outside = Outside::new(&plain(&[upstream.local_addr().expect("an address")])).expect("an upstream resolver");
    let server = start_server_with(zone.clone(), outside);
    let udp = server.udp;
    let client = tokio::spawn(async move { exchange_udp(udp, &octets(&query("web.", RecordType::A))).await });
    let mut request = vec![0; 512];
    let (len, from) = upstream.recv_from(&mut request).await.expect("a question");
    zone.publish(numbered(0));
    upstream.send_to(&nxdomain(&request[..len]), from).await.expect("sent");
    let reply = Message::from_vec(&client.await.expect("a reply")).expect("a reply");
    assert_eq!(addresses(&reply), [addr(FRONT, host(0)).first()]);
}

/// Starts an upstream resolver for which no name exists.
async fn nonexistent_names() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a socket");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut request = vec![0; 512];
        while let Ok((len, client)) = socket.recv_from(&mut request).await {
            let _ = socket.send_to(&nxdomain(&request[..len]), client).await;
        }
    });
    address
}

fn nxdomain(request: &[u8]) -> Vec<u8> {
    let mut reply = Message::from_vec(request).expect("a request").into_response();
    reply.metadata.response_code = ResponseCode::NXDomain;
    octets(&reply)
}
