//! Calls that any manager can answer, and a part of their answers. `join`, `role` and `leave` use
//! this module.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tokio::time::timeout;
use tonic::{Status, transport::Channel};
use weft_model::{UnlockKey, state::ManagerLock};

use crate::{
    rpc::{Dialer, connect_now, pb::Lock},
    swarm::error::root_cause,
};

/// Asks one manager after the other until one answers, with the TLS configuration `tls`. Each
/// manager has `limit` for the connection and its answer together.
///
/// # Errors
/// The reason why the last manager did not answer.
pub(super) async fn ask_managers<T, F>(
    tls: &Arc<ClientConfig>,
    addrs: impl IntoIterator<Item = SocketAddr>,
    limit: Duration,
    call: impl Fn(Channel) -> F,
) -> Result<T, String>
where
    F: Future<Output = Result<T, Status>>,
{
    let mut reason = "no manager's address is known".to_owned();
    for addr in addrs {
        let dialer = Dialer::manager(addr, tls.clone());
        let answer = timeout(limit, async {
            let channel = connect_now(&dialer).await.map_err(|error| root_cause(&error))?;
            call(channel).await.map_err(|status| status.message().to_owned())
        });
        reason = match answer.await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => format!("{addr}: {error}"),
            Err(_) => format!("{addr} does not answer"),
        };
        tracing::debug!(reason, "call to a manager failed");
    }
    Err(reason)
}

/// The lock in the answer of a manager. Managers of earlier releases send none.
pub(super) fn read_lock(lock: Option<Lock>) -> ManagerLock {
    let read = lock.and_then(|lock| Some((UnlockKey(lock.key.as_ref().try_into().ok()?), lock.version)));
    read.map_or_else(ManagerLock::default, |(key, version)| ManagerLock { key: Some(key), version })
}
