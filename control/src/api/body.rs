//! Reads the bodies of requests, and discards the part of a body that a handler did not read.
//!
//! Handlers call [`read`] or use [`JsonBody`]; `serve` calls [`track`] and [`Unread::discard`].
//!
//! If the server closes a connection while the client still sends, the client gets a broken pipe
//! instead of the answer. So the server reads each body to its end before it sends the answer:
//! [`track`] wraps the body of each request, and [`Unread::discard`] reads the part that the
//! handler did not read. Both the size and the time of this are limited, so that a client cannot
//! keep the server busy without end.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{header, request::Parts},
};
use http_body_util::{BodyExt as _, LengthLimitError};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::{Map, Value};
use tokio::{sync::oneshot, time::timeout};

use super::error::ApiError;

/// Largest body that is kept in memory, in bytes. Requests about the cluster are much smaller.
const MAX_BODY: usize = 4 << 20;
/// Largest body with a backup, in bytes. A snapshot may be as large.
const MAX_BACKUP: usize = 1 << 30;
/// How many bytes of an unread body are read at most before the answer is sent. A client that sends
/// more, for example a large build context, may get a broken pipe.
const MAX_DISCARDED: u64 = 64 << 20;
/// Longest time for reading an unread body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a request: a JSON object.
///
/// Unlike axum's `Json`, it returns errors in the form of the API and needs no content type.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (_, bytes) = read(request).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads a body as a JSON object. An empty body and `null` become an empty object: some clients
/// send them if a request has no options.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::Invalid("the request body must be a JSON object".into())),
        Err(error) => Err(ApiError::Invalid(format!("the request body is not JSON: {error}"))),
    }
}

/// Reads the whole body, and returns it beside the head. A handler that forwards the request to the
/// engine builds the request from both again.
///
/// # Errors
/// If the body is larger than 4 MiB, or the connection breaks.
pub(super) async fn read(request: Request) -> Result<(Parts, Bytes), ApiError> {
    read_up_to(MAX_BODY, request).await
}

/// Reads the whole body of a request that contains a backup.
///
/// # Errors
/// If the body is larger than 1 GiB, or the connection breaks.
pub(super) async fn read_large(request: Request) -> Result<Bytes, ApiError> {
    Ok(read_up_to(MAX_BACKUP, request).await?.1)
}

async fn read_up_to(limit_bytes: usize, request: Request) -> Result<(Parts, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    match axum::body::to_bytes(body, limit_bytes).await {
        Ok(bytes) => Ok((parts, bytes)),
        Err(error) if is_too_large(&error) => Err(ApiError::TooLarge { limit_bytes }),
        Err(error) => Err(ApiError::Invalid(format!("the request body cannot be read: {error}"))),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<LengthLimitError>)
}

/// Wraps the body of `request`, so that [`Unread::discard`] can read the rest of it after the
/// handler has dropped it.
pub(super) fn track(request: Request) -> (Request, Unread) {
    let expects_continue = request.headers().contains_key(header::EXPECT);
    let (sender, receiver) = oneshot::channel();
    let request = request.map(|body| Body::new(Tracked { body, polled: false, dropped: Some(sender) }));
    (request, Unread { receiver, expects_continue })
}

/// A body that is sent to `dropped` if it is dropped before its end.
struct Tracked {
    body: Body,
    /// Whether a part of the body was read.
    polled: bool,
    dropped: Option<oneshot::Sender<Dropped>>,
}

struct Dropped {
    body: Body,
    polled: bool,
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.polled = true;
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            return;
        }
        if let Some(sender) = self.dropped.take() {
            let body = std::mem::take(&mut self.body);
            // This fails if the client has disconnected. The rest of the body is then not needed.
            drop(sender.send(Dropped { body, polled: self.polled }));
        }
    }
}

/// The part of a body that the handler did not read.
pub(super) struct Unread {
    receiver: oneshot::Receiver<Dropped>,
    /// The client sends its body only after it gets "100 Continue" (RFC 9110, section 10.1.1).
    /// hyper sends this when the body is read for the first time.
    expects_continue: bool,
}

impl Unread {
    /// Reads the rest of a body that the handler has dropped. It does not touch a body that
    /// is still in use because it is being forwarded to the container engine.
    pub(super) async fn discard(mut self) {
        let Ok(Dropped { body, polled }) = self.receiver.try_recv() else { return };
        if self.expects_continue && !polled {
            return;
        }
        if !timeout(DISCARD_TIMEOUT, read_to_end(body)).await.unwrap_or(false) {
            tracing::debug!("answering before the end of the request body");
        }
    }
}

/// Reads the body. Returns whether it ended within [`MAX_DISCARDED`] bytes.
async fn read_to_end(mut body: Body) -> bool {
    let mut left = MAX_DISCARDED;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let size = frame.data_ref().map_or(0, |data| data.len() as u64);
        match left.checked_sub(size) {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use futures_util::stream;

    use super::*;

    /// A body that never ends, and how many bytes of it were read.
    fn endless() -> (Body, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&read);
        let chunks = stream::repeat_with(move || {
            let chunk = Bytes::from_static(&[0; 64 << 10]);
            counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            Ok::<_, std::convert::Infallible>(chunk)
        });
        (Body::from_stream(chunks), read)
    }

    fn post(body: Body) -> Request {
        Request::post("/x").body(body).expect("a request")
    }

    #[test]
    fn a_missing_body_is_an_empty_object() {
        for body in ["", "null", "{}"] {
            assert_eq!(parse(body.as_bytes()).ok(), Some(serde_json::json!({})));
        }
        assert!(parse(b"[]").is_err());
        assert!(parse(b"{").is_err());
    }

    #[tokio::test]
    async fn stops_discarding_at_the_limit() {
        let (body, read) = endless();
        let (request, unread) = track(post(body));
        drop(request);
        unread.discard().await;
        let read = read.load(Ordering::Relaxed);
        assert!((MAX_DISCARDED..MAX_DISCARDED + (1 << 20)).contains(&read), "{read}");
    }

    #[tokio::test]
    async fn does_not_discard_a_body_that_is_in_use() {
        let (body, read) = endless();
        let (request, unread) = track(post(body));
        unread.discard().await;
        assert_eq!(read.load(Ordering::Relaxed), 0);
        drop(request);
    }

    #[tokio::test]
    async fn a_client_that_expects_continue_does_not_have_to_send() {
        let (body, read) = endless();
        let mut request = post(body);
        request.headers_mut().insert(header::EXPECT, header::HeaderValue::from_static("100-continue"));
        let (request, unread) = track(request);
        drop(request);
        unread.discard().await;
        assert_eq!(read.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_body_that_is_too_large_to_hold_is_refused_and_then_discarded() {
        let size = MAX_BODY + 1;
        let (request, unread) = track(post(Body::from(vec![0; size])));
        assert_eq!(read(request).await.map(|_| ()), Err(ApiError::TooLarge { limit_bytes: MAX_BODY }));
        unread.discard().await;
        let (request, _unread) = track(post(Body::from(vec![0; MAX_BODY])));
        assert_eq!(read(request).await.map(|(_, bytes)| bytes.len()), Ok(MAX_BODY));
    }
}
