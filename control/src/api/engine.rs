//! Forwards requests that are not about the cluster to the container engine of this node.
//!
//! The router calls [`forward`] for each path that weft does not handle, such as containers,
//! images, volumes and exec. It forwards the request unchanged and supports hijacked connections.
//! Only the API version in the path changes: it is lowered to the version of the engine. Handlers
//! also get the engine's [`info`] and [`networks`] here, and show them together with those of weft.
//! This module must never answer a request about the cluster.

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
use weft_model::NETWORK_LABEL;

use super::{
    Api,
    error::ApiError,
    features,
    version::{ApiVersion, ClientVersion},
};

/// How long weft waits for the engine to answer `_ping` and weft's own requests. Requests of
/// clients have no time limit, because an image pull may take minutes.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long weft waits for what a registry says, before a service of an old client is created.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// The characters that are percent-encoded in the value of a query: all except the unreserved
/// characters of RFC 3986, section 2.3.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A connection to the engine. It carries one request, and the hijacked stream that may follow it.
struct Engine {
    sender: http1::SendRequest<Body>,
    version: Option<ApiVersion>,
}

impl Engine {
    async fn connect(socket: &Path) -> Result<Self, ApiError> {
        with_timeout(socket, ENGINE_TIMEOUT, Self::connect_without_timeout(socket)).await
    }

    async fn connect_without_timeout(socket: &Path) -> Result<Self, ApiError> {
        let no_answer = |error: &dyn std::fmt::Display| {
            ApiError::Unavailable(format!("the container engine at {} does not answer: {error}", socket.display()))
        };
        let stream = UnixStream::connect(socket).await.map_err(|error| no_answer(&error))?;
        let (mut sender, connection) =
            http1::handshake::<_, Body>(TokioIo::new(stream)).await.map_err(|error| no_answer(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to the container engine failed");
            }
        });
        let ping = get("/_ping").map_err(|error| no_answer(&error))?;
        let pong = sender.send_request(ping).await.map_err(|error| no_answer(&error))?;
        let version = pong.headers().get("api-version").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        // The next request can be sent only after this answer has been read.
        pong.into_body().collect().await.map_err(|error| no_answer(&error))?;
        sender.ready().await.map_err(|error| no_answer(&error))?;
        Ok(Self { sender, version })
    }

    async fn send(&mut self, request: Request) -> Result<hyper::Response<Incoming>, ApiError> {
        self.sender
            .send_request(request)
            .await
            .map_err(|error| ApiError::Unavailable(format!("the connection to the container engine failed: {error}")))
    }
}

/// Runs `work`. After `limit`, returns an error that says that the engine at `socket` did not
/// answer.
async fn with_timeout<T>(
    socket: &Path,
    limit: Duration,
    work: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(ApiError::Unavailable(format!(
            "the container engine at {} did not answer within {limit:?}: check whether it hangs",
            socket.display()
        )))
    })
}

fn get(path: &str) -> Result<Request, axum::http::Error> {
    Request::get(path).header(header::HOST, "engine").body(Body::empty())
}

/// Forwards a request to the engine.
pub(super) async fn forward(State(api): State<Api>, mut request: Request) -> Result<Response, ApiError> {
    let Some(socket) = &api.node.engine else {
        let (method, path, node) = (request.method(), request.uri().path(), &api.node.hostname);
        let subject = format!("{method} {path} on node {node}, which has no container engine");
        return Err(features::CONTAINERS.refusal_of(&subject));
    };
    let mut engine = Engine::connect(socket).await?;
    let client_version = request.extensions().get::<ClientVersion>().and_then(|version| version.0);
    *request.uri_mut() = versioned(request.uri(), client_version, engine.version)?;
    request.headers_mut().insert(header::HOST, HeaderValue::from_static("engine"));
    let from_client = upgrade::on(&mut request);
    let mut response = engine.send(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let from_engine = upgrade::on(&mut response);
        tokio::spawn(async move {
            let (client, engine) = match tokio::try_join!(from_client, from_engine) {
                Ok(both) => both,
                Err(error) => return tracing::debug!(%error, "cannot hijack a connection"),
            };
            let copied = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(engine)).await;
            if let Err(error) = copied {
                tracing::debug!(%error, "hijacked connection failed");
            }
        });
    }
    Ok(response.map(Body::new))
}

/// Adds the lower of the two API versions to the path.
fn versioned(uri: &Uri, client: Option<ApiVersion>, engine: Option<ApiVersion>) -> Result<Uri, ApiError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let version = match (client, engine) {
        (Some(client), Some(engine)) => Some(client.min(engine)),
        (client, _) => client,
    };
    let path = version.map_or_else(|| path.to_owned(), |version| format!("/v{version}{path}"));
    path.parse().map_err(|error| ApiError::Invalid(format!("invalid path: {error}")))
}

/// The answer of the engine to `GET /info`.
pub(super) async fn info(socket: &Path) -> Result<Value, ApiError> {
    get_json(socket, "/info").await
}

/// The networks of the engine. Networks of scope `swarm` are left out: they belong to a Docker
/// Swarm of which the engine is a member, and not to this cluster. So are those by which the engine
/// connects containers to networks of the cluster, which are listed themselves.
pub(super) async fn networks(socket: &Path, filters: &str) -> Result<Vec<Value>, ApiError> {
    match get_json(socket, &networks_path(filters)).await? {
        Value::Array(networks) => Ok(networks.into_iter().filter(is_of_user).collect()),
        other => Err(ApiError::Unavailable(format!("the container engine answered with {other}"))),
    }
}

fn is_of_user(network: &Value) -> bool {
    network["Scope"] != "swarm" && network["Labels"].get(NETWORK_LABEL).is_none()
}

fn networks_path(filters: &str) -> String {
    match filters {
        "" => "/networks".to_owned(),
        filters => format!("/networks?filters={}", utf8_percent_encode(filters, QUERY_VALUE)),
    }
}

/// What a registry says of an image, as the engine's answer to `GET /distribution/{image}/json`.
/// `auth` is the header with the credentials.
pub(super) async fn distribution(socket: &Path, image: &str, auth: Option<&str>) -> Result<Value, ApiError> {
    let invalid = |error: &dyn std::fmt::Display| ApiError::Invalid(format!("image {image}: {error}"));
    let mut request = get(&format!("/distribution/{image}/json")).map_err(|error| invalid(&error))?;
    if let Some(auth) = auth {
        let value = HeaderValue::from_str(auth).map_err(|error| invalid(&error))?;
        request.headers_mut().insert(super::credentials::HEADER, value);
    }
    with_timeout(socket, REGISTRY_TIMEOUT, send_for_json(socket, request)).await
}

async fn get_json(socket: &Path, path: &str) -> Result<Value, ApiError> {
    let request = get(path).map_err(|error| ApiError::Internal(error.to_string()))?;
    with_timeout(socket, ENGINE_TIMEOUT, send_for_json(socket, request)).await
}

async fn send_for_json(socket: &Path, request: Request) -> Result<Value, ApiError> {
    let mut engine = Engine::connect(socket).await?;
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
    fn the_engine_gets_the_lower_version() {
        let version = |text: &str| text.parse().ok();
        for (client, engine, path) in [
            (version("1.50"), version("1.41"), "/v1.41/containers/json?all=1"),
            (version("1.40"), version("1.41"), "/v1.40/containers/json?all=1"),
            (version("1.40"), None, "/v1.40/containers/json?all=1"),
            (None, version("1.41"), "/containers/json?all=1"),
        ] {
            let uri = versioned(&Uri::from_static("/containers/json?all=1"), client, engine).expect(path);
            assert_eq!(uri.to_string(), path);
        }
    }

    #[tokio::test]
    async fn a_request_to_an_engine_that_hangs_times_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("engine.sock");
        // The listener accepts connections and never answers.
        let _hangs = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let connecting = Engine::connect_without_timeout(&socket);
        let outcome = with_timeout(&socket, Duration::from_millis(50), connecting).await;
        let Err(ApiError::Unavailable(text)) = outcome.map(|_| ()) else { panic!("an answer") };
        assert!(text.contains("did not answer within 50ms"), "{text}");
    }

    #[test]
    fn only_networks_of_the_user_are_listed() {
        for (network, is_listed) in [
            (serde_json::json!({"Scope": "local", "Labels": {}}), true),
            (serde_json::json!({"Scope": "local", "Labels": null}), true),
            (serde_json::json!({"Scope": "swarm"}), false),
            (serde_json::json!({"Scope": "local", "Labels": {"weft.network": "an id"}}), false),
        ] {
            assert_eq!(is_of_user(&network), is_listed, "{network}");
        }
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
