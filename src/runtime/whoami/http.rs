//! The HTTP server of whoami: the response, and how one connection is served. The accept loop in
//! the parent calls [`serve_connection`] for each connection.

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

/// Upper limit for `?delay=`.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// The names of this task and its node.
#[derive(Debug)]
pub(super) struct Identity {
    name: String,
    node: String,
}

impl Identity {
    /// Reads the names from the environment. A name that is not set is `-`.
    pub(super) fn from_env() -> Self {
        let var = |key| std::env::var(key).unwrap_or_else(|_| "-".to_owned());
        Self { name: var(identity::TASK_NAME_VARIABLE), node: var(identity::NODE_VARIABLE) }
    }

    /// The start of the body, which is the same for all requests of a connection. The value of the
    /// `Host` header and a newline follow it.
    fn body_prefix(&self, peer: SocketAddr) -> Bytes {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        format!("name: {}\nnode: {}\npeer: {peer}\nhost: ", self.name, self.node).into()
    }
}

/// Serves one connection until it ends.
pub(super) async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    identity: Rc<Identity>,
    mut stage: watch::Receiver<Stage>,
) {
    // With Nagle's algorithm, the second response of a connection can wait for the delayed
    // acknowledgement of the client.
    let _ = stream.set_nodelay(true);
    let prefix = identity.body_prefix(peer);
    let is_last = Rc::new(Cell::new(*stage.borrow_and_update() != Stage::Serving));
    let service = {
        let is_last = is_last.clone();
        service_fn(move |request: Request<Incoming>| {
            let (prefix, is_last) = (prefix.clone(), is_last.clone());
            async move {
                if let Some(delay) = delay(request.uri()) {
                    tokio::time::sleep(delay).await;
                }
                Ok::<_, Infallible>(response(&prefix, request.headers(), is_last.get()))
            }
        })
    };
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    loop {
        tokio::select! {
            // An error is ignored: the client has closed the connection, or does not use HTTP.
            _ = connection.as_mut() => return,
            Ok(()) = stage.changed() => {
                is_last.set(true);
                if *stage.borrow_and_update() == Stage::Closing {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// `is_last` asks the client to close the connection.
fn response(prefix: &Bytes, headers: &HeaderMap, is_last: bool) -> Response<Full<Bytes>> {
    let host = headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let mut body = BytesMut::with_capacity(prefix.len() + host.len() + 1);
    body.put_slice(prefix);
    body.put_slice(host);
    body.put_u8(b'\n');
    let mut response = Response::new(Full::new(body.freeze()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if is_last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The delay that a request asks for with `?delay=3s` or `?delay=250ms`. `None` for all other
/// requests.
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
    fn a_delay_is_in_seconds_or_milliseconds_and_limited() {
        let check = |uri: &str, want: Option<Duration>| assert_eq!(delay(&uri.parse().expect("a URI")), want, "{uri}");
        check("/", None);
        check("/?delay=3s", Some(Duration::from_secs(3)));
        check("/any/path?x=1&delay=250ms", Some(Duration::from_millis(250)));
        check("/?delay=3", None);
        check("/?delay=-3s", None);
        check("/?delay=99999999s", Some(MAX_DELAY));
    }

    #[test]
    fn an_ipv4_peer_is_shown_as_an_ipv4_address() {
        let identity = Identity { name: "whoami.2.x".into(), node: "n1".into() };
        let check = |peer: &str, want: &str| {
            assert_eq!(
                identity.body_prefix(peer.parse().expect("an address")),
                format!("name: whoami.2.x\nnode: n1\npeer: {want}\nhost: ")
            );
        };
        check("[::ffff:192.0.2.100]:51324", "192.0.2.100:51324");
        check("[2001:db8::100]:51324", "[2001:db8::100]:51324");
    }
}
