//! The network driver and the IPAM driver `weft`, which the Docker engine calls over a socket
//! (libnetwork's remote drivers: `libnetwork/docs/remote.md` and `ipam.md` in moby).
//!
//! With them a container is on networks of the cluster like on any docker network. The cluster
//! chooses all addresses, and the agent makes all links:
//!
//! ```text
//!   engine                     plugin                        agent
//!     │ starts a container       │                             │
//!     │ CreateEndpoint ─────────▶│ the MAC of the address      │
//!     │ Join ───────────────────▶│ the task waits ────────────▶│ makes the links, with the task
//!     │                          │                             │ sides in the node's namespace;
//!     │ name of the task side, ◀─│◀──────────── links are ready│ data plane, resolver
//!     │ gateway and routes       │                             │
//!     │ moves the task side into the namespace, starts the program
//! ```
//!
//! So no program of a container runs before its network is ready: the engine does not go on before
//! `Join` is answered. From version 28 on an engine names the namespace in `Join`. An earlier one
//! makes it after `Join`, some 60 ms before the program starts.
//!
//! In reading order: [`wire`] has the messages, [`links`] what is told of links, [`starts`]
//! connects the calls with the agent, [`driver`] and [`ipam`] answer, [`mod@serve`] listens.
//!
//! The plugin keeps no state that outlives it: what it must know of an endpoint comes with the
//! options that the runtime gave to the container ([`LinkOptions`]).

mod wire;
mod links;
pub(super) mod starts;
mod driver;
mod ipam;
mod serve;

use std::collections::HashMap;

use weft_model::TaskId;

pub(super) use self::serve::{bind, serve};

/// Name of both drivers: the engine looks for a socket with this name.
pub(super) const DRIVER: &str = "weft";
/// Where the engine looks for sockets of drivers.
pub(crate) const SOCKET: &str = "/run/docker/plugins/weft.sock";

const TASK_OPTION: &str = "weft.task";
const LINK_OPTION: &str = "weft.link";

/// The options by which the plugin knows an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkOptions {
    pub(super) task: TaskId,
    /// Which of the task's links it is.
    pub(super) index: usize,
}

impl LinkOptions {
    /// The driver options of the endpoint (`EndpointSettings.DriverOpts`).
    pub(super) fn to_map(&self) -> HashMap<String, String> {
        [(TASK_OPTION, self.task.to_string()), (LINK_OPTION, self.index.to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }

    /// Reads the options of an endpoint. `None` if weft did not create its container.
    fn read(options: &serde_json::Map<String, serde_json::Value>) -> Option<Self> {
        let text = |key| options.get(key)?.as_str();
        Some(Self { task: text(TASK_OPTION)?.parse().ok()?, index: text(LINK_OPTION)?.parse().ok()? })
    }
}
