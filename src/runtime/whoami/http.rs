//! The HTTP side of whoami: what it answers, and the life of one connection.

use std::{cell::Cell, convert::Infallible, net::SocketAddr, rc::Rc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::Full;
use hyper::{
    HeaderMap, Request, Response, Uri,
    body::Incoming,
    header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::watch};

use super::Stage;
use crate::runtime::identity;

/// The longest `?delay=`.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// Who this is.
#[derive(Debug)]
pub(super) struct Identity {
    name: String,
    node: String,
}

impl Identity {
    pub(super) fn from_env() -> Self {
        let var = |key| std::env::var(key).unwrap_or_else(|_| "-".to_owned());
        Self { name: var(identity::TASK_NAME_VARIABLE), node: var(identity::NODE_VARIABLE) }
    }

    /// The lines that are the same for every request of a connection, up to the value of the last one.
    fn head(&self, peer: SocketAddr) -> Bytes {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        format!("name: {}\nnode: {}\npeer: {peer}\nhost: ", self.name, self.node).into()
    }
}

/// Serves one connection to its end.
pub(super) async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    identity: Rc<Identity>,
    mut stage: watch::Receiver<Stage>,
) {
    // Without it the second response of a connection can wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let head = identity.head(peer);
    let last = Rc::new(Cell::new(*stage.borrow_and_update() != Stage::Serving));
    let service = {
        let last = last.clone();
        service_fn(move |request: Request<Incoming>| {
            let (head, last) = (head.clone(), last.clone());
            async move {
                if let Some(delay) = delay(request.uri()) {
                    tokio::time::sleep(delay).await;
                }
                Ok::<_, Infallible>(response(&head, request.headers(), last.get()))
            }
        })
    };
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            // The peer went away or spoke no HTTP: nobody is left to tell.
            _ = connection.as_mut() => return,
            Ok(()) = stage.changed() => {
                last.set(true);
                if *stage.borrow_and_update() == Stage::Closing {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

fn response(head: &Bytes, headers: &HeaderMap, last: bool) -> Response<Full<Bytes>> {
    let host = headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let mut body = BytesMut::with_capacity(head.len() + host.len() + 1);
    body.put_slice(head);
    body.put_slice(host);
    body.put_u8(b'\n');
    let mut response = Response::new(Full::new(body.freeze()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// `?delay=3s`, `?delay=250ms`; anything else is no delay.
fn delay(uri: &Uri) -> Option<Duration> {
    let value = uri.query()?.split('&').find_map(|pair| pair.strip_prefix("delay="))?;
    let delay = match value.strip_suffix("ms") {
        Some(ms) => Duration::from_millis(ms.parse().ok()?),
        None => Duration::from_secs(value.strip_suffix('s')?.parse().ok()?),
    };
    Some(delay.min(MAX_DELAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_seconds_or_milliseconds_and_bounded() {
        let check = |uri: &str, want: Option<Duration>| assert_eq!(delay(&uri.parse().unwrap()), want, "{uri}");
        check("/", None);
        check("/?delay=3s", Some(Duration::from_secs(3)));
        check("/any/path?x=1&delay=250ms", Some(Duration::from_millis(250)));
        check("/?delay=3", None);
        check("/?delay=-3s", None);
        check("/?delay=99999999s", Some(MAX_DELAY));
    }

    #[test]
    fn peers_are_shown_as_people_write_them() {
        let identity = Identity { name: "whoami.2.x".into(), node: "n1".into() };
        let check = |peer: &str, want: &str| {
            assert_eq!(
                identity.head(peer.parse().unwrap()),
                format!("name: whoami.2.x\nnode: n1\npeer: {want}\nhost: ")
            );
        };
        check("[::ffff:192.0.2.100]:51324", "192.0.2.100:51324");
        check("[2001:db8::100]:51324", "[2001:db8::100]:51324");
    }
}
