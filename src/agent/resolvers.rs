//! The DNS servers inside the tasks' network namespaces: one at 127.0.0.11 in each sandbox that
//! has a link.
//!
//! [`super::reconcile`] calls it, with the zone of the plan, which has the answers. Most questions
//! for names of the zone do not reach a server: the kernel answers them, from the entries that
//! [`super::data_plane`] writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use weft_model::{NetworkId, NodePlan, TaskId};

pub(super) struct Resolvers {
    zone: weft_dns::ZoneHandle,
    server: weft_dns::Server,
    outside: weft_dns::Outside,
}

impl Resolvers {
    /// `outside` answers names outside of the cluster.
    pub(super) fn new(outside: weft_dns::Outside) -> Self {
        let zone = weft_dns::ZoneHandle::default();
        let server = weft_dns::Server::new(zone.clone());
        Self { zone, server, outside }
    }

    /// Publishes the zone of the plan, starts the missing servers of the tasks in `linked`, and
    /// stops all others.
    ///
    /// If a server cannot start, the error is only logged. The task does not start until a later
    /// reconcile has started its server.
    pub(super) fn reconcile(
        &self,
        plan: &NodePlan,
        zone: weft_dns::Zone,
        linked: &BTreeSet<TaskId>,
        sandboxes: &BTreeMap<TaskId, PathBuf>,
    ) {
        self.zone.publish(zone);
        let serving = self.serving();
        for task in serving.difference(linked) {
            self.stop(task);
        }
        for task in plan.tasks.iter().filter(|t| linked.contains(&t.id) && !serving.contains(&t.id)) {
            if let Some(netns) = sandboxes.get(&task.id) {
                let networks = task.attachments.iter().map(|a| a.network.clone()).collect();
                if let Err(error) = self.start(&task.id, networks, netns) {
                    tracing::warn!(task = %task.id, error = format!("{error:#}"), "cannot start the task's resolver");
                }
            }
        }
    }

    fn start(&self, task: &TaskId, networks: Vec<NetworkId>, netns: &Path) -> Result<()> {
        let sockets = weft_overlay::netns::in_netns(netns, weft_dns::open_sockets)
            .context("cannot enter the task's network namespace")?
            .context("cannot listen on 127.0.0.11:53 in the task's network namespace")?;
        let config = weft_dns::TaskConfig { networks, outside: self.outside.clone() };
        self.server
            .start(task.clone(), config, sockets)
            .context("cannot serve DNS on 127.0.0.11:53 in the task's network namespace")
    }

    /// The tasks that have a server.
    pub(super) fn serving(&self) -> BTreeSet<TaskId> {
        self.server.serving().into_iter().collect()
    }

    pub(super) fn stop(&self, task: &TaskId) {
        self.server.stop(task);
    }

    /// Publishes an empty zone, after this node has left its cluster.
    pub(super) fn clear_zone(&self) {
        self.zone.publish(weft_dns::Zone::default());
    }
}
