//! Bodies of requests: handlers read them here, and what a handler does not read is discarded here.
//!
//! If a connection closes while the client still sends, the client gets a broken pipe instead of
//! the answer. So each body is read to its end, within bounds, before the answer is sent: [`track`]
//! wraps the body of each request, and [`Unread::discard`] reads what the handler left of it.

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

/// Largest body that is held in memory. Requests about the cluster are far smaller.
const MAX_BODY: usize = 4 << 20;
/// Most bytes of an unread body that are read before the answer is sent. If a client sends more,
/// for example a large build context, it may get a broken pipe.
const MAX_DISCARDED: u64 = 64 << 20;
/// Longest time for reading an unread body.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a request: a JSON object.
///
/// Unlike axum's `Json`, it answers with the API's form of errors and needs no content type.
#[derive(Debug)]
pub(super) struct JsonBody(pub(super) Value);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let (_, bytes) = read(request).await?;
        parse(&bytes).map(Self)
    }
}

/// Reads a body as a JSON object. An empty body and `null` are an empty object: clients send them
/// where they have nothing to ask for.
pub(super) fn parse(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Null) => Ok(Value::Object(Map::new())),
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(ApiError::Invalid("the request's body must be a JSON object".into())),
        Err(error) => Err(ApiError::Invalid(format!("the request's body is not JSON: {error}"))),
    }
}

/// Reads the whole body. Handlers that may forward the request put head and body together again.
///
/// # Errors
/// If the body is larger than 4 MiB, or the connection breaks.
pub(super) async fn read(request: Request) -> Result<(Parts, Bytes), ApiError> {
    let (parts, body) = request.into_parts();
    match axum::body::to_bytes(body, MAX_BODY).await {
        Ok(bytes) => Ok((parts, bytes)),
        Err(error) if is_too_large(&error) => Err(ApiError::TooLarge { limit_bytes: MAX_BODY }),
        Err(error) => Err(ApiError::Invalid(format!("the request's body cannot be read: {error}"))),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<LengthLimitError>)
}

/// Wraps the body of `request`, so that the rest can be read when the handler drops it.
pub(super) fn track(request: Request) -> (Request, Unread) {
    let expects_continue = request.headers().contains_key(header::EXPECT);
    let (sender, receiver) = oneshot::channel();
    let request = request.map(|body| Body::new(Tracked { body, polled: false, dropped: Some(sender) }));
    (request, Unread { receiver, expects_continue })
}

/// A body that is sent to `dropped` if it is dropped before its end.
struct Tracked {
    body: Body,
    /// Whether anything of it was read.
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
            // The receiver is gone if the client is. Then the rest of the body does not matter.
            drop(sender.send(Dropped { body, polled: self.polled }));
        }
    }
}

/// The part of a body that the handler did not read.
pub(super) struct Unread {
    receiver: oneshot::Receiver<Dropped>,
    /// The client sends its body only after "100 Continue" (RFC 9110, section 10.1.1), which the
    /// first read of the body causes.
    expects_continue: bool,
}

impl Unread {
    /// Reads the rest of a body that the handler has dropped. A body that is still in use, because
    /// it is being forwarded to the container engine, is not touched.
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

/// Whether the body ended within [`MAX_DISCARDED`].
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
    async fn discarding_has_a_bound() {
        let (body, read) = endless();
        let (request, unread) = track(post(body));
        drop(request);
        unread.discard().await;
        let read = read.load(Ordering::Relaxed);
        assert!((MAX_DISCARDED..MAX_DISCARDED + (1 << 20)).contains(&read), "{read}");
    }

    #[tokio::test]
    async fn a_body_in_use_is_not_touched() {
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
