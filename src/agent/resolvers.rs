//! The DNS servers inside the tasks' network namespaces: one in each sandbox that has a link, at
//! 127.0.0.11, or at 127.0.0.12 in a container.
//!
//! [`super::reconcile`] calls it, with the zone of the plan, which has the answers. Most questions
//! for names of the zone do not reach a server: the kernel answers them, from the entries that
//! [`super::data_plane`] writes.
//!
//! The node's upstream resolvers answer other names, unless the user chose upstream resolvers for
//! the task: these are asked from the task's network namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use tokio::net::TcpSocket;
use weft_model::{NodePlan, TaskId, plan::TaskPlan};
use weft_overlay::netns::Netns;

use super::sandboxes::Sandboxes;

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
        for task in plan.tasks.iter().filter(|task| !serving.contains(&task.id)) {
            let (Some(cookie), Some(netns)) = (linked.get(&task.id), sandboxes.netns(&task.id)) else { continue };
            match self.start(task, netns, sandboxes.resolver(&task.id)) {
                Ok(()) => drop(self.cookies.insert(task.id.clone(), *cookie)),
                Err(error) => {
                    tracing::warn!(task = %task.id, error = format!("{error:#}"), "cannot start the task's resolver");
                }
            }
        }
    }

    fn start(&self, task: &TaskPlan, netns: &Path, addr: Ipv4Addr) -> Result<()> {
        let netns = Netns::open(netns).context("cannot open the task's network namespace")?;
        let sockets = netns
            .run(|| weft_dns::open_sockets(addr))
            .context("cannot enter the task's network namespace")?
            .with_context(|| format!("cannot listen on {addr}:53 in the task's network namespace"))?;
        let name_servers = &task.container.dns.name_servers;
        let outside = if name_servers.is_empty() {
            self.outside.clone()
        } else {
            let chosen = self.outside.for_task(name_servers, Arc::new(TaskSockets(netns)));
            chosen.context("cannot use the name servers that the user chose for the task")?
        };
        let networks = task.attachments.iter().map(|a| a.network.clone()).collect();
        self.server
            .start(task.id.clone(), weft_dns::TaskConfig { networks, outside }, sockets)
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
