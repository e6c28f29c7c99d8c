//! A small Engine API client: one connection for each request, JSON in and out, errors in the daemon's own words.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::net::{TcpStream, UnixStream};

const DEFAULT_HOST: &str = "unix:///run/weft/weft.sock";
/// Every ASCII character that is not unreserved (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

#[derive(Debug)]
pub(super) struct Client {
    endpoint: Endpoint,
}

/// What the daemon answered instead of what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("Error response from daemon: {message}")]
pub(super) struct DaemonError {
    pub status: StatusCode,
    pub message: String,
}

impl Client {
    /// Where `--host`, else the environment, else the default says.
    pub(super) fn new(host: Option<&str>) -> Result<Self> {
        let from_env = || ["WEFT_HOST", "DOCKER_HOST"].iter().find_map(|name| std::env::var(name).ok());
        let host = host.map(str::to_owned).or_else(from_env).unwrap_or_else(|| DEFAULT_HOST.to_owned());
        Ok(Self { endpoint: endpoint(&host)? })
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call(Method::POST, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    /// The body as it comes.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming> {
        Ok(self.request(Method::GET, path, None).await?.into_body())
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let response = self.request(method, path, body).await?;
        let bytes = response.into_body().collect().await.context("the daemon's answer broke off")?.to_bytes();
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).context("the daemon's answer is not JSON")
    }

    async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "weft");
        let body = match body {
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Full::new(Bytes::from(serde_json::to_vec(value)?))
            }
            None => Full::default(),
        };
        let response = self.send(request.body(body)?).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = response.into_body().collect().await.context("the daemon's answer broke off")?.to_bytes();
        let message = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|v| v.get("message")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&bytes).trim().to_owned());
        Err(DaemonError { status, message }.into())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.with_context(|| {
                    format!(
                        "Cannot connect to the weft daemon at unix://{}. Is `weft daemon` running there?",
                        path.display()
                    )
                })?;
                exchange(TokioIo::new(stream), request).await
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await.with_context(|| {
                    format!("Cannot connect to the weft daemon at tcp://{address}. Is `weft daemon` running there?")
                })?;
                exchange(TokioIo::new(stream), request).await
            }
        }
    }
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> Result<Response<Incoming>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // Ends with the response's body; its errors reach the caller through that.
    tokio::spawn(connection);
    sender.send_request(request).await.context("the daemon did not answer")
}

fn endpoint(host: &str) -> Result<Endpoint> {
    if let Some(path) = host.strip_prefix("unix://") {
        return Ok(Endpoint::Unix(PathBuf::from(path)));
    }
    if let Some(address) = host.strip_prefix("tcp://") {
        return Ok(Endpoint::Tcp(address.trim_end_matches('/').to_owned()));
    }
    bail!("invalid host {host:?}: give unix:///PATH or tcp://HOST:PORT")
}

/// `?filters=…` of the given `key=value` pairs; empty where there is none.
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

/// Percent-encodes all characters that are not unreserved, for a path segment or a query value (RFC 3986, section 2.3).
pub(super) fn percent_encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The text at a JSON pointer; empty where there is none.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer; zero where there is none.
pub(super) fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

/// The list at a JSON pointer; empty where there is none.
pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_sockets_or_addresses() {
        assert_eq!(endpoint("unix:///run/x.sock").unwrap(), Endpoint::Unix("/run/x.sock".into()));
        assert_eq!(endpoint("tcp://192.0.2.1:2375").unwrap(), Endpoint::Tcp("192.0.2.1:2375".into()));
        assert!(endpoint("http://example.test").is_err());
    }

    #[test]
    fn filters_are_grouped_by_key_and_escaped() {
        assert_eq!(filters(&[]).unwrap(), "");
        let query = filters(&["name=a".into(), "name=b".into()]).unwrap();
        assert_eq!(query, "filters=%7B%22name%22%3A%7B%22a%22%3Atrue%2C%22b%22%3Atrue%7D%7D");
        assert!(filters(&["name".into()]).is_err());
    }
}
