//! The DNS servers inside the tasks' network namespaces: one in each sandbox that has a link, at
//! 127.0.0.11, or at 127.0.0.12 in a container.
//!
//! [`super::reconcile`] calls it, with the zone of the plan, which has the answers. Most questions
//! for names of the zone do not reach a server: the kernel answers them, from the entries that
//! [`super::data_plane`] writes.
//!
//! The node's upstream resolvers answer other names, unless the user chose upstream resolvers for
//! the task: these are asked from the task's network namespace. For a container that is no task,
//! its engine's own resolver is asked. It listens in the container's namespace at the address that
//! the container's programs ask, and the data plane leads the questions of this server there.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use tokio::net::TcpSocket;
use weft_model::{NetworkId, NodePlan, TaskId, plan::LocalPlan};
use weft_overlay::netns::Netns;

use super::sandboxes::Sandboxes;
use crate::runtime::identity;

pub(super) struct Resolvers {
    zone: weft_dns::ZoneHandle,
    server: weft_dns::Server,
    outside: weft_dns::Outside,
    /// The cookies of the namespaces that the servers listen in.
    cookies: BTreeMap<TaskId, u64>,
}

impl Resolvers {
    /// `outside` answers names outside of the cluster.
    pub(super) fn new(outside: weft_dns::Outside) -> Self {
        let zone = weft_dns::ZoneHandle::default();
        let server = weft_dns::Server::new(zone.clone());
        Self { zone, server, outside, cookies: BTreeMap::new() }
    }

    /// Publishes the zone of the plan, starts the missing servers of the tasks in `linked`, and
    /// stops all others. The values are the cookies of the tasks' namespaces: a container that was
    /// restarted has another one.
    ///
    /// If a server cannot start, the error is only logged. The task does not start until a later
    /// reconcile has started its server.
    pub(super) fn reconcile(
        &mut self,
        plan: &NodePlan,
        zone: weft_dns::Zone,
        linked: &BTreeMap<TaskId, u64>,
        sandboxes: &Sandboxes,
    ) {
        self.zone.publish(zone);
        for task in self.serving() {
            if linked.get(&task).is_none_or(|cookie| self.cookies.get(&task) != Some(cookie)) {
                self.stop(&task);
            }
        }
        let serving = self.serving();
        for local in plan.local() {
            if serving.contains(local.id) {
                // A container can be connected and disconnected while it runs.
                if local.task.is_none() {
                    self.server.set_networks(local.id, networks(&local));
                }
                continue;
            }
            let (Some(cookie), Some(netns)) = (linked.get(local.id), sandboxes.netns(local.id)) else { continue };
            match self.start(&local, netns, sandboxes.resolver(local.id)) {
                Ok(()) => drop(self.cookies.insert(local.id.clone(), *cookie)),
                Err(error) => {
                    tracing::warn!(task = %local.id, error = format!("{error:#}"), "cannot start the task's resolver");
                }
            }
        }
    }

    fn start(&self, local: &LocalPlan<'_>, netns: &Path, addr: Ipv4Addr) -> Result<()> {
        let netns = Netns::open(netns).context("cannot open the task's network namespace")?;
        let sockets = netns
            .run(|| weft_dns::open_sockets(addr))
            .context("cannot enter the task's network namespace")?
            .with_context(|| format!("cannot listen on {addr}:53 in the task's network namespace"))?;
        // Other names of a container that is no task are those of its engine, which also has the
        // name servers that the user chose.
        let engine = [IpAddr::from(identity::CONTAINER_RESOLVER)];
        let name_servers = local.task.map_or(&engine[..], |task| &task.container.dns.name_servers);
        let outside = if name_servers.is_empty() {
            self.outside.clone()
        } else {
            let chosen = self.outside.for_task(name_servers, Arc::new(TaskSockets(netns)));
            chosen.context("cannot use the name servers that the user chose for the task")?
        };
        let networks = networks(local);
        self.server
            .start(local.id.clone(), weft_dns::TaskConfig { networks, outside }, sockets)
            .context("cannot serve DNS in the task's network namespace")
    }

    /// The tasks that have a server.
    pub(super) fn serving(&self) -> BTreeSet<TaskId> {
        self.server.serving().into_iter().collect()
    }

    pub(super) fn stop(&mut self, task: &TaskId) {
        self.cookies.remove(task);
        self.server.stop(task);
    }

    /// Publishes an empty zone, after this node has left its cluster.
    pub(super) fn clear_zone(&self) {
        self.zone.publish(weft_dns::Zone::default());
    }
}

/// In the order in which names are looked up.
fn networks(local: &LocalPlan<'_>) -> Vec<NetworkId> {
    local.links.iter().map(|(_, attachment)| attachment.network.clone()).collect()
}

/// Opens sockets in the network namespace of a task.
#[derive(Debug)]
struct TaskSockets(Netns);

impl weft_dns::OpenSockets for TaskSockets {
    fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        self.0.run(|| UdpSocket::bind(local)).map_err(io::Error::other)?
    }

    fn tcp(&self, server: IpAddr) -> io::Result<TcpSocket> {
        let open = || if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        self.0.run(open).map_err(io::Error::other)?
    }
}
