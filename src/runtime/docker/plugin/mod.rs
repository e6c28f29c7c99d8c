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
//! A container that a user has created through weft's own API is connected in the same way: its
//! addresses are in the plan since it was created. If it is connected while it runs, the agent
//! makes the link in its namespace, and `Join` is answered without a link to move:
//!
//! ```text
//!   engine                     plugin                        agent
//!     │ connects a container     │                             │ has made the link, with the plan
//!     │ Join ───────────────────▶│ same namespace as observed  │
//!     │ gateway and routes     ◀─│◀────────── links in place ──│
//! ```
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

use weft_model::{CONTAINER_GATEWAY_OPTION, CONTAINER_LINK_OPTION, CONTAINER_OPTION, TaskId};

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
    /// The task, or the id of a container that is no task.
    pub(super) task: TaskId,
    /// Which of its links it is.
    pub(super) index: u32,
    pub(super) owner: Owner,
}

/// What an endpoint belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// Only its first link has gateways.
    Task,
    /// A container that is no task. `gateway`: it is on no other networks of its engine, so that
    /// its default route leads through the cluster's.
    Container { gateway: bool },
}

impl LinkOptions {
    /// The driver options of an endpoint of a task (`EndpointSettings.DriverOpts`). The API has
    /// those of other containers.
    pub(super) fn to_map(&self) -> HashMap<String, String> {
        [(TASK_OPTION, self.task.to_string()), (LINK_OPTION, self.index.to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into()
    }

    /// Reads the options of an endpoint. `None` if weft did not create its container.
    fn read(options: &serde_json::Map<String, serde_json::Value>) -> Option<Self> {
        let text = |key| options.get(key)?.as_str();
        if let Some(task) = text(TASK_OPTION) {
            let index = text(LINK_OPTION)?.parse().ok()?;
            return Some(Self { task: task.parse().ok()?, index, owner: Owner::Task });
        }
        let task = text(CONTAINER_OPTION)?.parse().ok()?;
        let index = text(CONTAINER_LINK_OPTION)?.parse().ok()?;
        let gateway = options.contains_key(CONTAINER_GATEWAY_OPTION);
        Some(Self { task, index, owner: Owner::Container { gateway } })
    }
}
