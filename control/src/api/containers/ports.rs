//! The published ports of the tasks of this node. They follow from its plan, so workers know them
//! too.

use std::collections::BTreeMap;

use weft_model::{MeshServiceId, NodePlan, ServiceId, TaskId, spec::Protocol};

/// A port of all nodes that leads to a port of the tasks of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Published {
    /// The port of the task.
    pub(super) target: u16,
    pub(super) port: u16,
    pub(super) protocol: &'static str,
}

/// The published ports of each task of this node.
#[derive(Debug, Default)]
pub(super) struct Ports {
    services: BTreeMap<ServiceId, Vec<Published>>,
    tasks: BTreeMap<TaskId, Owner>,
}

/// The service of a task, and whether its ports answer over IPv4.
#[derive(Debug)]
struct Owner {
    service: ServiceId,
    has_v4: bool,
}

impl Ports {
    pub(super) fn of(plan: &NodePlan) -> Self {
        let mesh: BTreeMap<MeshServiceId, &ServiceId> =
            plan.services.iter().map(|service| (service.mesh, &service.service)).collect();
        let mut services: BTreeMap<ServiceId, Vec<Published>> = BTreeMap::new();
        for port in &plan.ports {
            let Some(service) = mesh.get(&port.mesh) else { continue };
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            };
            let published = Published { target: port.target, port: port.port, protocol };
            services.entry((*service).clone()).or_default().push(published);
        }
        let task = |task: &weft_model::plan::TaskPlan| {
            // Published ports lead to eth0. A task without links has all addresses of its node.
            let has_v4 = task.attachments.first().is_none_or(|eth0| eth0.addr.v4.is_some());
            (task.id.clone(), Owner { service: task.service.clone(), has_v4 })
        };
        Self { services, tasks: plan.tasks.iter().map(task).collect() }
    }

    /// The published ports of a task, each with the addresses of the nodes at which they answer.
    pub(super) fn of_task(&self, task: &TaskId) -> impl Iterator<Item = (Published, &'static [&'static str])> {
        let found = self.tasks.get(task);
        let hosts: &[&str] = if found.is_some_and(|task| task.has_v4) { &["0.0.0.0", "::"] } else { &["::"] };
        let ports = found.and_then(|task| self.services.get(&task.service));
        ports.into_iter().flatten().map(move |port| (*port, hosts))
    }
}
