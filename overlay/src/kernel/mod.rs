//! Netlink, sysctls and network namespaces: the only code of this crate that makes system calls.
//!
//! `reconcile` and `overlay` call it. It reads the actual state, applies one operation at a time,
//! and translates errno into [`Error`]. It never decides what to do.
//!
//! Invariant: every function acts on the network namespace of the calling thread, or of the thread
//! that opened the socket it is given.

mod cookie;
mod decode;
pub(crate) mod netlink;
pub(crate) mod sysctl;
pub mod netns;
pub(crate) mod watch;
pub(crate) mod wireguard;

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
};

use netlink::Netlink;

use crate::{actual::ActualNetns, diff::Op, error::Error};

/// Reads the links, addresses and routes of the namespace of `netlink`, which must be the calling
/// thread's. It does not read sysctls.
pub(crate) async fn read_netns(netlink: &Netlink) -> Result<ActualNetns, Error> {
    let cookie = cookie::netns_cookie().map_err(Error::Cookie)?;
    let links = netlink.links().await?;
    let (routes, key_routes) = netlink.routes().await?;
    Ok(ActualNetns { cookie, links, routes, key_routes, sysctls: BTreeMap::new() })
}

/// Applies `op` in the namespace of `netlink`, which must be the calling thread's.
pub(crate) async fn apply(netlink: &Netlink, op: &Op) -> Result<(), Error> {
    match op {
        Op::DeleteLink { name } => netlink.delete_link(name).await,
        Op::CreateTunnel { name, port, mtu } => netlink.create_tunnel(name, *port, *mtu).await,
        Op::CreateVeth { host, peer, sandbox, mtu } => {
            let sandbox = sandbox.as_deref().unwrap_or(Path::new(netns::CURRENT));
            netlink.create_veth(host, peer, sandbox, *mtu).await
        }
        Op::SetSysctl { key, value } => sysctl::write(key, value),
        Op::SetLink { name, change } => netlink.set_link(name, change).await,
        Op::RemoveAddress { link, address } => netlink.remove_address(link, *address).await,
        Op::AddAddress { link, address } => netlink.add_address(link, *address).await,
        Op::RemoveRoute(route) => netlink.remove_route(route).await,
        Op::AddRoute(route) => netlink.add_route(route).await,
        Op::RemoveKeyRoute(route) => netlink.remove_key_route(route).await,
        Op::AddKeyRoute(route) => netlink.add_key_route(route).await,
    }
}

/// Runs `work` inside the network namespace that `path` names, with a netlink socket opened there.
/// It uses a new thread with its own tokio runtime, because `/proc/sys/net` shows the namespace of
/// the calling thread.
pub(crate) async fn run_in_netns<T, W, F>(path: PathBuf, work: W) -> Result<T, Error>
where
    T: Send + 'static,
    W: FnOnce(Netlink) -> F + Send + 'static,
    F: Future<Output = Result<T, Error>>,
{
    run_blocking(move || netns::in_netns(&path, || block_on(&path, work))?).await?
}

/// Runs `work` on a thread that may block.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Stopped,
    })
}

fn block_on<T, W, F>(path: &Path, work: W) -> Result<T, Error>
where
    W: FnOnce(Netlink) -> F,
    F: Future<Output = Result<T, Error>>,
{
    let open = |source| Error::Open { namespace: path.display().to_string(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(open)?;
    runtime.block_on(async {
        let netlink = Netlink::open().map_err(open)?;
        work(netlink).await
    })
}
