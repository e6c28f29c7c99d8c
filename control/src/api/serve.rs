//! The listener's loop, and the API version before a path.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Uri},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use tower::ServiceExt as _;

use super::{API_VERSION, ApiVersion, MIN_API_VERSION, body, error::ApiError};

/// Connections served at once; more wait in the listener's queue. Each may follow a stream of logs or events.
const MAX_CONNECTIONS: usize = 1024;
/// A connection that asks nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// Between attempts to accept when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The version that the client named in the path, for those who pass the request on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked(pub(super) Option<ApiVersion>);

/// Serves `router` on `listener`, until the future is dropped.
///
/// # Errors
/// None that a single connection or a passing lack of resources causes.
pub async fn serve(listener: UnixListener, router: Router) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    connection(stream, router).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an API connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, router: Router) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(answer(router, request.map(Body::new)).await) }
    });
    // Clients close their sending side before they have read the answer (attach, logs): that is no abort.
    let served = http1::Builder::new()
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an API connection ended");
    }
}

async fn answer(router: Router, request: Request) -> Response {
    router.oneshot(request).await.unwrap_or_else(|never| match never {})
}

/// Takes the version off each request's path, refuses versions that are not spoken, and says with every answer who answers.
pub(super) fn with_versions(routes: Router) -> Router {
    let service = tower::service_fn(move |request: Request| {
        let routes = routes.clone();
        async move {
            let (request, unread) = body::track(request);
            let mut response = match unversioned(request) {
                Ok(request) => answer(routes, request).await,
                Err(error) => error.into_response(),
            };
            let headers = response.headers_mut();
            for (name, value) in [
                ("api-version", API_VERSION.to_string()),
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

fn unversioned(mut request: Request) -> Result<Request, ApiError> {
    let (asked, rest) = split(request.uri());
    if let Some(asked) = asked {
        if asked > API_VERSION {
            return Err(ApiError::Invalid(format!(
                "client version {asked} is too new. Maximum supported API version is {API_VERSION}"
            )));
        }
        if asked < MIN_API_VERSION {
            return Err(ApiError::Invalid(format!(
                "client version {asked} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your client to a newer version"
            )));
        }
    }
    if let Some(rest) = rest {
        *request.uri_mut() = rest;
    }
    request.extensions_mut().insert(Asked(asked));
    Ok(request)
}

/// `/v1.44/info?x` as 1.44 and `/info?x`.
fn split(uri: &Uri) -> (Option<ApiVersion>, Option<Uri>) {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    let parts = path.strip_prefix("/v").and_then(|rest| rest.split_once('/'));
    let Some((version, rest)) = parts else { return (None, None) };
    match (version.parse::<ApiVersion>(), format!("/{rest}").parse()) {
        (Ok(version), Ok(rest)) => (Some(version), Some(rest)),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_off_the_path() {
        for (path, version, rest) in [
            ("/v1.44/info?a=b", Some("1.44"), Some("/info?a=b")),
            ("/volumes/x", None, None),
            ("/v/x", None, None),
            ("/info", None, None),
        ] {
            let (asked, uri) = split(&path.parse().expect(path));
            assert_eq!(asked.map(|v| v.to_string()).as_deref(), version, "{path}");
            assert_eq!(uri.map(|u| u.to_string()).as_deref(), rest, "{path}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text: &str| text.parse::<ApiVersion>().expect(text);
        assert!(version("1.9") < version("1.24"));
        assert!("1".parse::<ApiVersion>().is_err());
    }
}
