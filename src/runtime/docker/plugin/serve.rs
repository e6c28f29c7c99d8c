//! Listens on the socket of the drivers, and answers the engine's calls.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt as _, PermissionsExt as _},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State, connect_info::Connected},
    http::{Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::{
    driver::Driver,
    ipam,
    starts::Starts,
    wire::{Endpoint, RequestAddress},
};

/// The media type of libnetwork's answers.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// Largest request, in bytes. Requests contain labels and options of users.
const MAX_BODY: usize = 1 << 20;

/// The process that calls.
#[derive(Debug, Clone, Copy)]
struct Peer {
    pid: Option<i32>,
}

impl Connected<axum::serve::IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, UnixListener>) -> Self {
        Self { pid: stream.io().peer_cred().ok().and_then(|cred| cred.pid()) }
    }
}

/// Answers the calls at this socket until the future is dropped.
///
/// # Errors
/// If the socket cannot be used.
pub(in crate::runtime::docker) fn serve(
    listener: StdListener,
    starts: Starts,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let routes = Router::new()
        .fallback(answer)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Arc::new(Driver::new(starts)))
        .into_make_service_with_connect_info::<Peer>();
    Ok(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(%error, "the socket of the network driver has failed");
        }
    })
}

/// Only root may connect. The socket gets its name, under which the engine looks for it, when it
/// has its permissions. It replaces that of an earlier daemon.
pub(in crate::runtime::docker) fn bind(socket: &Path) -> io::Result<StdListener> {
    if let Some(dir) = socket.parent() {
        // As the engine makes them.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let new = socket.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
    fs::rename(&new, socket)?;
    Ok(listener)
}

async fn answer(
    State(driver): State<Arc<Driver>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    uri: Uri,
    body: Bytes,
) -> Response {
    let method = uri.path().trim_start_matches('/');
    let answer = call(&driver, peer, method, &body).await;
    if let Err(error) = &answer {
        tracing::warn!(method, error, "refused a call of the engine");
    }
    // IPAM errors are read from one field, those of network drivers from the other.
    let answer = answer.unwrap_or_else(|error| json!({ "Err": error, "Error": error }));
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], answer.to_string()).into_response()
}

async fn call(driver: &Driver, peer: Peer, method: &str, body: &[u8]) -> Result<Value, String> {
    Ok(match method {
        "Plugin.Activate" => json!({ "Implements": ["NetworkDriver", "IpamDriver"] }),
        "NetworkDriver.GetCapabilities" => json!({ "Scope": "local", "ConnectivityScope": "global" }),
        "NetworkDriver.GwAllocCheck" => json!({ "SkipIPv4": true, "SkipIPv6": true }),
        "NetworkDriver.CreateEndpoint" => driver.create_endpoint(read(body)?)?,
        "NetworkDriver.Join" => driver.join(read(body)?, |key| in_root_of(peer.pid, key)).await?,
        "NetworkDriver.DeleteEndpoint" => {
            // After a broken connection the engine repeats a call without its body.
            if let Ok(Endpoint { endpoint }) = read(body) {
                driver.delete_endpoint(&endpoint);
            }
            json!({})
        }
        "NetworkDriver.EndpointOperInfo" => json!({ "Value": {} }),
        // weft's own state has the networks, and the agent makes and removes the links.
        "NetworkDriver.CreateNetwork"
        | "NetworkDriver.DeleteNetwork"
        | "NetworkDriver.Leave"
        | "NetworkDriver.DiscoverNew"
        | "NetworkDriver.DiscoverDelete"
        | "NetworkDriver.ProgramExternalConnectivity"
        | "NetworkDriver.RevokeExternalConnectivity"
        | "IpamDriver.ReleasePool"
        | "IpamDriver.ReleaseAddress" => json!({}),
        "IpamDriver.GetCapabilities" => ipam::capabilities(),
        "IpamDriver.GetDefaultAddressSpaces" => ipam::address_spaces(),
        "IpamDriver.RequestPool" => ipam::request_pool(&read(body)?)?,
        "IpamDriver.RequestAddress" => ipam::request_address(&read::<RequestAddress>(body)?)?,
        other => return Err(format!("weft's network driver has no method {other}")),
    })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("cannot read the engine's call: {error}"))
}

/// A path as the process `pid` sees it: the engine may have a mount namespace of its own. An
/// absolute symbolic link in the path would lead out of that one, and /var/run is such a link.
fn in_root_of(pid: Option<i32>, path: &str) -> PathBuf {
    let path = path.strip_prefix("/var").filter(|path| path.starts_with("/run/")).unwrap_or(path);
    match pid {
        Some(pid) => PathBuf::from(format!("/proc/{pid}/root{path}")),
        None => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_the_engine_is_found_in_its_mount_namespace() {
        let check = |path, want: &str| assert_eq!(in_root_of(Some(7), path), Path::new(want));
        check("/var/run/docker/netns/1a", "/proc/7/root/run/docker/netns/1a");
        check("/run/docker/netns/1a", "/proc/7/root/run/docker/netns/1a");
        check("/var/runs/1a", "/proc/7/root/var/runs/1a");
        assert_eq!(in_root_of(None, "/run/docker/netns/1a"), Path::new("/run/docker/netns/1a"));
    }
}
