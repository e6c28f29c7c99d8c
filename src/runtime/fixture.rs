//! A task plan for the tests of both runtimes and of the agent.

use weft_model::{
    ServiceId, TaskId,
    plan::{Expanded, TaskGoal, TaskPlan},
    spec::{ContainerSpec, Resources},
};

/// A task of the image weft/whoami. `change` can change its container.
pub(crate) fn task(change: impl FnOnce(&mut ContainerSpec)) -> TaskPlan {
    let mut container = ContainerSpec::new("weft/whoami");
    change(&mut container);
    TaskPlan {
        id: TaskId::from_random(7),
        service: ServiceId::from_random(8),
        service_name: "web".parse().expect("a valid service name"),
        name: "web.1.x".to_owned(),
        container: container.into(),
        resources: Resources::default(),
        labels: [("com.docker.swarm.node.id".to_owned(), "node".to_owned())].into(),
        attachments: vec![],
        desired: TaskGoal::Run,
        expanded: Expanded::default(),
        container_at: None,
        registry_auth: None,
        node_network: None,
        has_run: false,
    }
}
