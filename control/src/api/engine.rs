//! Everything that is not the cluster's: containers, images, volumes, exec. It goes to the node's container engine as it
//! came, hijacked connections included, with the API version lowered to what that engine speaks.

use std::{path::Path, time::Duration};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1, upgrade};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::{io::copy_bidirectional, net::UnixStream, time::timeout};

use super::{Api, ApiVersion, error::ApiError, features, serve::Asked};

/// For the engine to say what it is, and to answer what weft asks of its own. A client's requests take what they take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is encoded in the value of a query: all but the unreserved characters of RFC 3986, section 2.3.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One connection to the engine, for one request and whatever it becomes.
struct Engine {
    sender: http1::SendRequest<Body>,
    speaks: Option<ApiVersion>,
}

impl Engine {
    async fn connect(socket: &Path) -> Result<Self, ApiError> {
        timely(socket, PATIENCE, Self::connect_unbounded(socket)).await
    }

    async fn connect_unbounded(socket: &Path) -> Result<Self, ApiError> {
        let silent = |error: &dyn std::fmt::Display| {
            ApiError::Unavailable(format!("the container engine at {} does not answer: {error}", socket.display()))
        };
        let stream = UnixStream::connect(socket).await.map_err(|error| silent(&error))?;
        let (mut sender, connection) =
            http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(|error| silent(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to the container engine ended");
            }
        });
        let ping = get("/_ping").map_err(|error| silent(&error))?;
        let pong = sender.send_request(ping).await.map_err(|error| silent(&error))?;
        let speaks = pong.headers().get("api-version").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        // The connection is free for the next request once the answer is read.
        pong.into_body().collect().await.map_err(|error| silent(&error))?;
        sender.ready().await.map_err(|error| silent(&error))?;
        Ok(Self { sender, speaks })
    }

    async fn send(&mut self, request: Request) -> Result<hyper::Response<Incoming>, ApiError> {
        self.sender
            .send_request(request)
            .await
            .map_err(|error| ApiError::Unavailable(format!("the container engine broke the connection: {error}")))
    }
}

/// What takes the engine longer is not waited for.
async fn timely<T>(
    socket: &Path,
    patience: Duration,
    asked: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    timeout(patience, asked).await.unwrap_or_else(|_| {
        Err(ApiError::Unavailable(format!(
            "the container engine at {} did not answer within {patience:?}: see whether it hangs",
            socket.display()
        )))
    })
}

fn get(path: &str) -> Result<Request, axum::http::Error> {
    Request::get(path).header(header::HOST, "engine").body(Body::empty())
}

/// Passes a request on to the engine.
pub(super) async fn pass_on(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let Some(socket) = &api.node.engine else {
        let (method, path, node) = (request.method(), request.uri().path(), &api.node.hostname);
        let asked = format!("{method} {path} on node {node}, which has no container engine");
        return Err(features::CONTAINERS.refusal_of(&asked));
    };
    let mut engine = Engine::connect(socket).await?;
    let mut request = request;
    let asked = request.extensions().get::<Asked>().and_then(|asked| asked.0);
    *request.uri_mut() = versioned(request.uri(), asked, engine.speaks)?;
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("engine"));
    let from_client = upgrade::on(&mut request);
    let mut response = engine.send(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let from_engine = upgrade::on(&mut response);
        tokio::spawn(async move {
            let (client, engine) = match tokio::try_join!(from_client, from_engine) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "a hijacked connection did not come about"),
            };
            let copied = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(engine)).await;
            if let Err(error) = copied {
                tracing::debug!(%error, "a hijacked connection broke");
            }
        });
    }
    Ok(response.map(Body::new))
}

/// The path with the lower of the client's version and the engine's.
fn versioned(uri: &Uri, asked: Option<ApiVersion>, speaks: Option<ApiVersion>) -> Result<Uri, ApiError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let version = match (asked, speaks) {
        (Some(asked), Some(speaks)) => Some(asked.min(speaks)),
        (asked, _) => asked,
    };
    let path = version.map_or_else(|| path.to_owned(), |version| format!("/v{version}{path}"));
    path.parse().map_err(|error| ApiError::Invalid(format!("invalid path: {error}")))
}

/// The engine's own `info`.
pub(super) async fn info(socket: &Path) -> Result<Value, ApiError> {
    read(socket, "/info").await
}

/// The engine's own networks; those of a Swarm that it may once have been in are not this cluster's.
pub(super) async fn networks(socket: &Path, filters: &str) -> Result<Vec<Value>, ApiError> {
    match read(socket, &networks_path(filters)).await? {
        Value::Array(networks) => Ok(networks.into_iter().filter(|network| network["Scope"] != "swarm").collect()),
        other => Err(ApiError::Unavailable(format!("the container engine answered with {other}"))),
    }
}

fn networks_path(filters: &str) -> String {
    match filters {
        "" => "/networks".to_owned(),
        filters => format!("/networks?filters={}", utf8_percent_encode(filters, QUERY_VALUE)),
    }
}

async fn read(socket: &Path, path: &str) -> Result<Value, ApiError> {
    timely(socket, PATIENCE, read_unbounded(socket, path)).await
}

async fn read_unbounded(socket: &Path, path: &str) -> Result<Value, ApiError> {
    let mut engine = Engine::connect(socket).await?;
    let request = get(path).map_err(|error| ApiError::Internal(error.to_string()))?;
    let response = engine.send(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| ApiError::Unavailable(error.to_string()))?;
    let value: Value =
        serde_json::from_slice(&body.to_bytes()).map_err(|error| ApiError::Unavailable(error.to_string()))?;
    if status.is_success() { Ok(value) } else { Err(ApiError::Unavailable(value.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_version_is_asked_of_the_engine() {
        let version = |text: &str| text.parse().ok();
        for (asked, speaks, path) in [
            (version("1.50"), version("1.41"), "/v1.41/containers/json?all=1"),
            (version("1.40"), version("1.41"), "/v1.40/containers/json?all=1"),
            (version("1.40"), None, "/v1.40/containers/json?all=1"),
            (None, version("1.41"), "/containers/json?all=1"),
        ] {
            let uri = versioned(&Uri::from_static("/containers/json?all=1"), asked, speaks).expect(path);
            assert_eq!(uri.to_string(), path);
        }
    }

    #[tokio::test]
    async fn an_engine_that_hangs_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        // It takes connections, and never answers.
        let _hangs = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let asked = timely(&socket, Duration::from_millis(50), Engine::connect_unbounded(&socket)).await;
        let Err(ApiError::Unavailable(said)) = asked.map(|_| ()) else { panic!("an answer") };
        assert!(said.contains("did not answer within 50ms"), "{said}");
    }

    #[test]
    fn filters_are_percent_encoded_in_the_path() {
        assert_eq!(networks_path(""), "/networks");
        assert_eq!(
            networks_path(r#"{"name":["a-b_c.d"]}"#),
            "/networks?filters=%7B%22name%22%3A%5B%22a-b_c.d%22%5D%7D"
        );
    }
}
