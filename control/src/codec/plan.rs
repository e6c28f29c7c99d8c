//! Plans as records, in messages to the node and on its disk. They have the container of many tasks
//! once.
//!
//! The dispatcher calls [`encode`] for a node of some feature level, and the node [`decode`]. At
//! level 0 each task has its own container, with its templates expanded.

use std::{collections::BTreeMap, mem};

use weft_model::{
    NodePlan, Shared,
    plan::{Expanded, TaskPlan},
    spec::{ContainerSpec, NodeNetwork},
    state::Dependency,
};

use super::{CodecError, PLAN};

/// The feature level from which on nodes read containers beside the tasks.
const CONTAINERS_LEVEL: u32 = 1;

/// Encodes a plan for a node of the feature level `level`.
///
/// # Errors
/// Those of [`super::encode_at`].
pub(crate) fn encode(plan: &NodePlan, level: u32) -> Result<Vec<u8>, CodecError> {
    super::encode_at(&PLAN, level, &at_level(plan, level))
}

/// Decodes a plan of any feature level.
///
/// # Errors
/// Those of [`super::decode`], and [`CodecError::Container`].
pub(crate) fn decode(bytes: &[u8]) -> Result<NodePlan, CodecError> {
    let mut plan: NodePlan = super::decode(&PLAN, bytes)?;
    let containers = mem::take(&mut plan.containers);
    for task in &mut plan.tasks {
        if let Some(at) = task.container_at.take() {
            let found = usize::try_from(at).ok().and_then(|at| containers.get(at));
            task.container = found.cloned().ok_or(CodecError::Container(at))?;
        }
    }
    Ok(plan)
}

/// The form of the plan that nodes of this level read.
pub(crate) fn at_level(plan: &NodePlan, level: u32) -> NodePlan {
    let mut sent = plan.clone();
    if level < NodeNetwork::LEVEL {
        sent.tasks.retain(|task| task.node_network.is_none());
    }
    if level < Dependency::LEVEL {
        sent.tasks.retain(|task| task.container.files().next().is_none());
    }
    if level < CONTAINERS_LEVEL {
        sent.tasks.iter_mut().for_each(expand);
        return sent;
    }
    let empty = Shared::from(ContainerSpec::new(""));
    let mut known = BTreeMap::<*const ContainerSpec, u32>::new();
    for task in &mut sent.tasks {
        let container = mem::replace(&mut task.container, empty.clone());
        let at = *known.entry(container.as_ptr()).or_insert_with(|| {
            sent.containers.push(container);
            u32::try_from(sent.containers.len() - 1).expect("fewer than 2^32 tasks")
        });
        task.container_at = Some(at);
    }
    sent
}

/// Gives a task a container of its own if it has templates.
fn expand(task: &mut TaskPlan) {
    if task.expanded != Expanded::default() {
        let mut container = ContainerSpec::clone(&task.container);
        container.hostname = task.hostname().map(str::to_owned);
        container.env = task.env().map(str::to_owned).collect();
        task.container = container.into();
        task.expanded = Expanded::default();
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{NodeId, plan::TaskGoal, spec::Resources};

    use super::*;

    fn task(number: u128, container: &Shared<ContainerSpec>, expanded: Expanded) -> TaskPlan {
        TaskPlan {
            id: weft_model::TaskId::from_random(number),
            service: weft_model::ServiceId::from_random(1),
            service_name: crate::fixture::parse("web"),
            name: format!("web.{number}"),
            container: container.clone(),
            resources: Resources::default(),
            labels: Default::default(),
            attachments: Vec::new(),
            desired: TaskGoal::Run,
            expanded,
            container_at: None,
            registry_auth: None,
            node_network: None,
            has_run: false,
        }
    }

    fn plan() -> NodePlan {
        let mut first = ContainerSpec::new("one");
        first.env = ["A=1", "SLOT={{.Task.Slot}}"].map(str::to_owned).into();
        first.hostname = Some("web-{{.Task.Slot}}".to_owned());
        let (first, second) = (Shared::from(first), Shared::from(ContainerSpec::new("two")));
        let slot = |n: u32| Expanded {
            hostname: Some(format!("web-{n}")),
            env: [(1, format!("SLOT={n}"))].into(),
            ..Expanded::default()
        };
        let tasks = vec![task(1, &first, slot(1)), task(2, &second, Expanded::default()), task(3, &first, slot(3))];
        NodePlan { tasks, ..NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into()) }
    }

    #[test]
    fn tasks_share_their_container_before_and_after_a_plan_is_sent() {
        let plan = plan();
        assert_eq!(at_level(&plan, 1).containers.len(), 2);
        let read = decode(&encode(&plan, 1).expect("encoded")).expect("decoded");
        assert_eq!(read, plan);
        assert!(read.tasks[0].container.is_same(&read.tasks[2].container));
    }

    #[test]
    fn a_node_of_level_0_gets_each_container_with_its_templates_expanded() {
        let (plan, sent) = (plan(), at_level(&plan(), 0));
        assert!(sent.containers.is_empty());
        for (task, of_plan) in sent.tasks.iter().zip(&plan.tasks) {
            assert_eq!((&task.expanded, task.container_at), (&Expanded::default(), None));
            assert_eq!(task.container.hostname.as_deref(), of_plan.hostname());
            assert!(task.container.env.iter().map(String::as_str).eq(of_plan.env()));
        }
        assert_eq!(sent.tasks[2].container.env, ["A=1", "SLOT=3"]);
        assert_eq!(decode(&encode(&plan, 0).expect("encoded")).expect("decoded"), sent);
    }

    #[test]
    fn a_node_of_level_0_gets_no_task_with_secrets() {
        let mut plan = plan();
        plan.tasks[1].container.secrets.push(crate::fixture::file_reference(1, "key"));
        let sent = at_level(&plan, 0);
        assert_eq!(sent.tasks.iter().map(|task| &*task.name).collect::<Vec<_>>(), ["web.1", "web.3"]);
        assert_eq!(at_level(&plan, 1).tasks.len(), 3);
    }

    #[test]
    fn a_container_that_is_missing_is_an_error() {
        let mut sent = at_level(&plan(), 1);
        sent.containers.pop();
        let bytes = crate::codec::encode(&PLAN, &sent).expect("encoded");
        assert!(matches!(decode(&bytes), Err(CodecError::Container(1))));
    }
}
