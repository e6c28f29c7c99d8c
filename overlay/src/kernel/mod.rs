//! The kernel: netlink sockets and sysctls, with errno translated into what a person can do about it.
//!
//! Everything here acts on the network namespace of the calling thread, or of the thread that opened the socket.

pub(crate) mod cookie;
mod decode;
mod error;
pub(crate) mod netlink;
pub(crate) mod sysctl;
pub(crate) mod watch;

use std::{
    future::Future,
    path::{Path, PathBuf},
};

pub use error::KernelError;
use netlink::Netlink;

use crate::{diff::Op, found::Found, netns};

/// Dumps the namespace of `netlink`, which must be the calling thread's, and reads `sysctls` there.
pub(crate) async fn dump<'a>(
    netlink: &Netlink,
    sysctls: impl Iterator<Item = &'a String>,
) -> Result<Found, KernelError> {
    let links = netlink.links().await?;
    let routes = netlink.routes().await?;
    let sysctls = sysctls.filter_map(|key| Some((key.clone(), sysctl::read(key)?))).collect();
    Ok(Found { links, routes, sysctls })
}

/// Does `op` in the namespace of `netlink`, which must be the calling thread's.
pub(crate) async fn apply(netlink: &Netlink, op: &Op) -> Result<(), KernelError> {
    match op {
        Op::DeleteLink { name } => netlink.delete_link(name).await,
        Op::CreateTunnel { name, mtu } => netlink.create_tunnel(name, *mtu).await,
        Op::CreateVeth { host, inside, sandbox, mtu } => netlink.create_veth(host, inside, sandbox, *mtu).await,
        Op::SetSysctl { key, value } => sysctl::write(key, value),
        Op::SetLink { name, change } => netlink.set_link(name, change).await,
        Op::RemoveAddress { link, address } => netlink.remove_address(link, *address).await,
        Op::AddAddress { link, address } => netlink.add_address(link, *address).await,
        Op::RemoveDefaultRoute { via, v6, link, metric } => {
            netlink.remove_default_route(*via, *v6, *link, *metric).await
        }
        Op::AddDefaultRoute(route) => netlink.add_default_route(route).await,
    }
}

/// Runs `work` inside another namespace, with a netlink socket of it: on a thread and a runtime of its own, for sysctls
/// belong to the thread that opens them.
pub(crate) async fn visit<T, W, F>(namespace: PathBuf, work: W) -> Result<T, KernelError>
where
    T: Send + 'static,
    W: FnOnce(Netlink) -> F + Send + 'static,
    F: Future<Output = Result<T, KernelError>>,
{
    let visited = tokio::task::spawn_blocking(move || {
        netns::in_netns(&namespace, || run_here(&namespace, work)).map_err(KernelError::from)?
    });
    visited.await.unwrap_or_else(|stopped| match stopped.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(KernelError::Stopped),
    })
}

fn run_here<T, W, F>(namespace: &Path, work: W) -> Result<T, KernelError>
where
    W: FnOnce(Netlink) -> F,
    F: Future<Output = Result<T, KernelError>>,
{
    let open = |source| KernelError::Open { namespace: namespace.display().to_string(), source };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(open)?;
    runtime.block_on(async {
        let netlink = Netlink::open().map_err(open)?;
        work(netlink).await
    })
}
