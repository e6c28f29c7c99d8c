//! Forwards requests that are not about the cluster to the container engine of this node.
//!
//! The router calls [`forward`] for each path that weft does not handle, such as containers,
//! images, volumes and exec. It forwards the request unchanged and supports hijacked connections.
//! Only the API version in the path changes: it is lowered to the version of the engine. Handlers
//! also ask the engine here for what they show together with what weft knows ([`get_json`]).
//! This module must never answer a request about the cluster.

use std::{path::Path, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1, upgrade};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{io::copy_bidirectional, net::UnixStream, time::timeout};

use super::{
    Api,
    error::ApiError,
    features,
    version::{API_VERSION, ApiVersion, ClientVersion},
};

/// How long weft waits for the engine to answer `_ping` and weft's own requests. Requests of
/// clients have no time limit, because an image pull may take minutes.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long weft waits for what a registry says, before a service of an old client is created.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest answer that weft reads to its end, in bytes. The list of 10,000 containers has 20 MB.
const MAX_ANSWER: usize = 64 << 20;

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
        if let Some((kind, name)) = named(path) {
            return Err(ApiError::Missing(format!(
                "no such {kind}: {name} (node {node} has no container engine: start its daemon with --runtime docker \
                 to have one)"
            )));
        }
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

/// The kind and the name of the object of an engine that a request is about. A node without an
/// engine does not have it. Clients rely on that answer: `docker inspect` goes on to services,
/// tasks and nodes, and `docker rm --force` succeeds.
fn named(path: &str) -> Option<(&'static str, &str)> {
    const IMAGE_ACTIONS: &[&str] = &["/attestations", "/get", "/history", "/json", "/push", "/tag"];
    let rest =
        |kind: &str, others: &[&str]| path.strip_prefix(kind).filter(|rest| !rest.is_empty() && !others.contains(rest));
    let first = |rest: &str| rest.split('/').next().unwrap_or_default().len();
    if let Some(rest) = rest("/containers/", &["create", "json", "prune"]) {
        return Some(("container", &rest[..first(rest)]));
    }
    if let Some(rest) = rest("/exec/", &[]) {
        return Some(("exec instance", &rest[..first(rest)]));
    }
    if let Some(rest) = rest("/images/", &["create", "get", "json", "load", "prune", "search"]) {
        let name = IMAGE_ACTIONS.iter().find_map(|action| rest.strip_suffix(action));
        return Some(("image", name.unwrap_or(rest)));
    }
    rest("/volumes/", &["create", "prune"]).map(|name| ("volume", name))
}

/// Adds the lower of the two API versions to the path. A client that gives no version gets the
/// newest that holds for weft and the engine.
fn versioned(uri: &Uri, client: Option<ApiVersion>, engine: Option<ApiVersion>) -> Result<Uri, ApiError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let version = match (client, engine) {
        (Some(client), Some(engine)) => Some(client.min(engine)),
        (None, Some(engine)) => (engine > API_VERSION).then_some(API_VERSION),
        (client, None) => client,
    };
    let path = version.map_or_else(|| path.to_owned(), |version| format!("/v{version}{path}"));
    path.parse().map_err(|error| ApiError::Invalid(format!("invalid path: {error}")))
}

/// The version of the API that the engine announces. `None` if it announces none.
pub(super) async fn version(socket: &Path) -> Result<Option<ApiVersion>, ApiError> {
    Ok(Engine::connect(socket).await?.version)
}

/// The answer of the engine to `GET path`, in this version of the API. `None` if the engine does
/// not have what the path names.
pub(super) async fn find_json(
    socket: &Path,
    path: &str,
    version: Option<ApiVersion>,
) -> Result<Option<Value>, ApiError> {
    let request = get(path).map_err(|error| ApiError::Internal(error.to_string()))?;
    with_timeout(socket, ENGINE_TIMEOUT, send_for_json(socket, request, version)).await
}

/// As [`find_json`], for what every engine has.
pub(super) async fn get_json(socket: &Path, path: &str, version: Option<ApiVersion>) -> Result<Value, ApiError> {
    let found = find_json(socket, path, version).await?;
    found.ok_or_else(|| ApiError::Unavailable(format!("the container engine has no {path}")))
}

/// What the engine of this node has at this path. `None` if it has no such object.
pub(super) async fn find(api: &Api, path: &str) -> Result<Option<Value>, ApiError> {
    let socket = api.node.engine.as_ref().ok_or_else(|| features::CONTAINERS.refusal())?;
    find_json(socket, path, None).await
}

/// Deletes what the engine of this node has at this path.
pub(super) async fn delete(api: &Api, path: &str) -> Result<(), ApiError> {
    let socket = api.node.engine.as_ref().ok_or_else(|| features::CONTAINERS.refusal())?;
    let request = Request::delete(path).header(header::HOST, "engine").body(Body::empty());
    let request = request.map_err(|error| ApiError::Internal(error.to_string()))?;
    with_timeout(socket, ENGINE_TIMEOUT, send_for_json(socket, request, None)).await.map(drop)
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
    let found = with_timeout(socket, REGISTRY_TIMEOUT, send_for_json(socket, request, None)).await?;
    found.ok_or_else(|| ApiError::Unavailable(format!("the registry has no {image}")))
}

async fn send_for_json(
    socket: &Path,
    mut request: Request,
    version: Option<ApiVersion>,
) -> Result<Option<Value>, ApiError> {
    let mut engine = Engine::connect(socket).await?;
    *request.uri_mut() = versioned(request.uri(), version, engine.version)?;
    let response = engine.send(request).await?;
    let status = response.status();
    if status == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    let value = read_json(Body::new(response.into_body())).await?.1;
    if status.is_success() { Ok(Some(value)) } else { Err(ApiError::Unavailable(message(&value))) }
}

/// The text of an error of the engine.
fn message(answer: &Value) -> String {
    answer["message"].as_str().map_or_else(|| answer.to_string(), str::to_owned)
}

/// Reads an answer of the engine to its end: as it came, and as JSON.
///
/// # Errors
/// If it is neither empty nor JSON, or larger than 64 MiB.
pub(super) async fn read_json(body: Body) -> Result<(Bytes, Value), ApiError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        ApiError::Unavailable(format!("the answer of the container engine cannot be read: {error}"))
    };
    let bytes = axum::body::to_bytes(body, MAX_ANSWER).await.map_err(|error| unreadable(&error))?;
    let value = if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes) };
    let value = value.map_err(|error| unreadable(&error))?;
    Ok((bytes, value))
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
            (None, version("1.99"), "/v1.53/containers/json?all=1"),
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
}
