//! A small client of the Engine API, and functions that read fields of its answers.
//!
//! All commands use it. The client opens one connection for each request, sends and receives JSON,
//! and returns the error messages of the daemon unchanged. It must not print.

use std::{collections::BTreeMap, path::PathBuf, sync::OnceLock};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

const DEFAULT_HOST: &str = "unix:///run/weft/weft.sock";
/// The error if the connection ends before the answer is complete.
pub(super) const INCOMPLETE_ANSWER: &str = "the daemon's answer is incomplete";
/// The ASCII characters that are percent-encoded: all except the unreserved characters of RFC 3986,
/// section 2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The address on which a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DaemonAddress {
    Unix(PathBuf),
    Tcp(String),
}

#[derive(Debug)]
pub(super) struct Client {
    address: DaemonAddress,
    warning: OnceLock<String>,
}

/// The error for an answer whose HTTP status is not a success.
#[derive(Debug, thiserror::Error)]
#[error("Error response from daemon: {message}")]
pub(super) struct DaemonError {
    pub status: StatusCode,
    pub message: String,
}

impl Client {
    /// Makes a client of the daemon at `host`, which is the value of `--host`. If it is `None`, the
    /// client uses the environment variable `WEFT_HOST`, else `DOCKER_HOST`, else the default
    /// socket. This does not connect yet.
    ///
    /// # Errors
    ///
    /// If the address does not begin with `unix://` or `tcp://`.
    pub(super) fn new(host: Option<&str>) -> Result<Self> {
        let from_env = || ["WEFT_HOST", "DOCKER_HOST"].iter().find_map(|name| std::env::var(name).ok());
        let host = host.map(str::to_owned).or_else(from_env).unwrap_or_else(|| DEFAULT_HOST.to_owned());
        Ok(Self { address: parse_address(&host)?, warning: OnceLock::new() })
    }

    /// The first warning that an answer had in its header (RFC 7234, section 5.5).
    pub(super) fn warning(&self) -> Option<&str> {
        self.warning.get().map(String::as_str)
    }

    fn note_warning(&self, response: &Response<Incoming>) {
        let value = response.headers().get(header::WARNING).and_then(|value| value.to_str().ok());
        if let Some(text) = value.and_then(|value| value.split('"').nth(1)) {
            // Only the first one is kept.
            let _ = self.warning.set(text.to_owned());
        }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.get_with_auth(path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.post_with_auth(path, body, None).await
    }

    /// `auth` is the header with the credentials of a registry.
    pub(super) async fn get_with_auth(&self, path: &str, auth: Option<&str>) -> Result<Value> {
        self.call(Method::GET, path, None, auth).await
    }

    /// `auth` is the header with the credentials of a registry.
    pub(super) async fn post_with_auth(&self, path: &str, body: &Value, auth: Option<&str>) -> Result<Value> {
        self.call(Method::POST, path, Some(body), auth).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None, None).await
    }

    /// Sends a GET request, and returns the body while the daemon still sends it.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming> {
        Ok(self.request(Method::GET, path, None, None).await?.into_body())
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>, auth: Option<&str>) -> Result<Value> {
        let response = self.request(method, path, body, auth).await?;
        let bytes = response.into_body().collect().await.context(INCOMPLETE_ANSWER)?.to_bytes();
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).context("the daemon's answer is not JSON")
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        auth: Option<&str>,
    ) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "weft");
        if let Some(auth) = auth {
            request = request.header("X-Registry-Auth", auth);
        }
        let body = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::new(Bytes::from(serde_json::to_vec(value)?))
            }
            None => Full::default(),
        };
        let response = self.send(request.body(body)?).await?;
        self.note_warning(&response);
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.context(INCOMPLETE_ANSWER)?.to_bytes();
        let message = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|v| v.get("message")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
        Err(DaemonError { status, message }.into())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        match &self.address {
            DaemonAddress::Unix(path) => {
                let stream = UnixStream::connect(path).await.with_context(|| {
                    format!(
                        "Cannot connect to the weft daemon at unix://{}. Is `weft daemon` running there?",
                        path.display()
                    )
                })?;
                send_over(TokioIo::new(stream), request).await
            }
            DaemonAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await.with_context(|| {
                    format!("Cannot connect to the weft daemon at tcp://{address}. Is `weft daemon` running there?")
                })?;
                send_over(TokioIo::new(stream), request).await
            }
        }
    }
}

async fn send_over<I>(io: I, request: Request<Full<Bytes>>) -> Result<Response<Incoming>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // This tokio task ends when the body of the response ends. The caller gets the errors of the
    // connection when it reads the body.
    tokio::spawn(connection);
    sender.send_request(request).await.context("the daemon did not answer")
}

fn parse_address(host: &str) -> Result<DaemonAddress> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(DaemonAddress::Unix(PathBuf::from(path)));
    }
    if let Some(address) = host.strip_prefix("tcp://") {
        return Ok(DaemonAddress::Tcp(address.trim_end_matches('/').to_owned()));
    }
    bail!("invalid host {host:?}: give unix:///PATH or tcp://HOST:PORT")
}

/// The query parameter `filters=…` for the given `key=value` pairs. Empty if there is no pair.
///
/// # Errors
///
/// If a pair has no `=`.
pub(super) fn filters(pairs: &[String]) -> Result<String> {
    let mut filters: BTreeMap<&str, BTreeMap<&str, bool>> = BTreeMap::new();
    for pair in pairs {
        let (key, value) = pair.split_once('=').with_context(|| format!("invalid filter {pair:?}: give KEY=VALUE"))?;
        filters.entry(key).or_default().insert(value, true);
    }
    if filters.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("filters={}", percent_encode(&serde_json::to_string(&filters)?)))
}

/// Percent-encodes a path segment or a query value: all characters except the unreserved characters
/// of RFC 3986, section 2.3.
pub(super) fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The text at a JSON pointer (RFC 6901). Empty if there is no text.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer. Zero if there is no number, or if it is negative.
pub(super) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// The list at a JSON pointer. Empty if there is no list.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_listens_on_a_socket_or_an_address() {
        let check = |text: &str, expected: DaemonAddress| {
            assert_eq!(parse_address(text).expect("a daemon's address"), expected);
        };
        check("unix:///run/x.sock", DaemonAddress::Unix("/run/x.sock".into()));
        check("tcp://192.0.2.1:2375", DaemonAddress::Tcp("192.0.2.1:2375".into()));
        assert!(parse_address("http://example.test").is_err());
    }

    #[test]
    fn filters_are_grouped_by_key_and_escaped() {
        assert_eq!(filters(&[]).expect("no filters"), "");
        let query = filters(&["name=a".into(), "name=b".into()]).expect("valid filters");
        assert_eq!(query, "filters=%7B%22name%22%3A%7B%22a%22%3Atrue%2C%22b%22%3Atrue%7D%7D");
        assert!(filters(&["name".into()]).is_err());
    }
}
