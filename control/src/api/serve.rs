//! Accepts connections of API clients, and does the steps that all requests have in common.
//!
//! The daemon calls [`serve()`] with its socket, and `router` calls [`wrap`]. A failed connection
//! must never end the listener.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tower::ServiceExt as _;

use super::{announce::Announced, body, version};

/// How many connections are served at the same time. More connections wait in the queue of the
/// listener. Each connection may carry a long stream of logs or events.
const MAX_CONNECTIONS: usize = 1024;
/// A connection is closed after this time without a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause after a failed `accept`, for example when the process has no free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` on `listener`, until the future is dropped.
///
/// # Errors
/// In practice it does not return. It logs a connection that fails and a failed `accept`, and
/// continues.
pub async fn serve(listener: UnixListener, router: Router) -> io::Result<()> {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve_connection(stream, router).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request.map(Body::new)).await) }
    });
    // Some clients close their sending side before they have read the answer (attach, logs). With
    // half_close, the connection stays open for the answer.
    let served = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "API connection failed");
    }
}

async fn answer(router: Router, request: Request) -> Response {
    router.oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// Adds to `routes` the steps that all requests have in common: it removes the version from the
/// path, adds the headers by which clients recognise the API to each answer, and reads the rest of
/// the body.
pub(super) fn wrap(routes: Router, announced: Arc<Announced>) -> Router {
    let service = tower::service_fn(move |request: Request| {
        let (routes, announced) = (routes.clone(), Arc::clone(&announced));
        async move {
            let (request, unread) = body::track(request);
            let newest = announced.version().await;
            let mut response = match version::strip(request, newest) {
                Ok(request) => answer(routes, request).await,
                Err(error) => error.into_response(),
            };
            let headers = response.headers_mut();
            for (name, value) in [
                ("api-version", newest.to_string()),
                ("docker-experimental", "false".into()),
                ("ostype", "linux".into()),
            ] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    headers.insert(HeaderName::from_static(name), value);
                }
            }
            unread.discard().await;
            Ok::<_, Infallible>(response)
        }
    });
    Router::new().fallback_service(service)
}
