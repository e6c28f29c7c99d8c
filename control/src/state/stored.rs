//! The stored form of the cluster state, for snapshots and backups: it has the spec of many tasks
//! once, as the state in memory does.
//!
//! The types that contain a state use this module with `#[serde(with)]`. At feature level 0 the
//! stored form is the state itself. All managers write the same bytes for the same state: specs are
//! compared by their value.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    mem,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use weft_model::{
    ClusterState, ServiceId, Shared, TaskId,
    spec::{ContainerSpec, TaskSpec},
};

/// The feature level from which on managers read specs beside the tasks.
const SPECS_LEVEL: u32 = 1;

/// # Errors
/// Those of the serializer.
pub(crate) fn serialize<T: Borrow<ClusterState>, S: Serializer>(state: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let state = state.borrow();
    if state.feature_level < SPECS_LEVEL { state.serialize(serializer) } else { compact(state).serialize(serializer) }
}

/// # Errors
/// Those of the deserializer, or if a task has a spec that the state does not contain.
pub(crate) fn deserialize<'de, T: From<ClusterState>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let stored = ClusterState::deserialize(deserializer)?;
    let missing = |at: u32| D::Error::custom(format!("a task has spec {at}, which is missing"));
    restore(stored).map(T::from).map_err(missing)
}

fn compact(state: &ClusterState) -> ClusterState {
    let empty = Shared::from(TaskSpec::new(ContainerSpec::new("")));
    let mut specs: Vec<Shared<TaskSpec>> = Vec::new();
    let mut known = BTreeMap::<*const TaskSpec, usize>::new();
    let mut of_service = BTreeMap::<&ServiceId, Vec<usize>>::new();
    let mut stored = state.clone();
    for (id, task) in state.tasks.keys().zip(state.tasks.values()) {
        let at = *known.entry(task.spec.as_ptr()).or_insert_with(|| {
            let earlier = of_service.entry(&task.service).or_default();
            earlier.iter().copied().find(|at| specs[*at] == task.spec).unwrap_or_else(|| {
                specs.push(task.spec.clone());
                earlier.push(specs.len() - 1);
                specs.len() - 1
            })
        });
        if let Some(task) = stored.tasks.get_mut(id) {
            task.spec = empty.clone();
            task.stored_spec = Some(u32::try_from(at).expect("fewer than 2^32 tasks"));
        }
    }
    stored.specs = specs;
    stored
}

/// The error is the position of a spec that is missing.
fn restore(mut state: ClusterState) -> Result<ClusterState, u32> {
    let specs = mem::take(&mut state.specs);
    let mut compared = BTreeSet::new();
    let ids: Vec<TaskId> = state.tasks.keys().cloned().collect();
    for id in ids {
        let Some(task) = state.tasks.get_mut(&id) else { continue };
        let Some(at) = task.stored_spec.take() else { continue };
        let spec = specs.get(at as usize).ok_or(at)?;
        task.spec = spec.clone();
        // The next tasks of the service share its spec.
        if compared.insert((task.service.clone(), at))
            && let Some(service) = state.services.get_mut(&task.service)
            && service.spec.task == *spec
        {
            service.spec.task = spec.clone();
        }
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{TestCluster, service_spec};

    /// A state that is damaged may have a task under the id of another one.
    #[test]
    fn the_stored_form_follows_the_keys_of_the_tasks() {
        let mut cluster = TestCluster::new();
        let node = cluster.first_node();
        let service = cluster.add_service(service_spec("web", 1, &[]));
        let task = cluster.running_task(&service, 1, &node);
        let mut state = cluster.state.clone();
        let other = state.tasks.get(&task).expect("the task").clone();
        state.tasks.insert(TaskId::from_random(99), other);
        let stored = compact(&state);
        assert!(stored.tasks.values().all(|task| task.stored_spec == Some(0)) && stored.specs.len() == 1);
        assert_eq!(restore(stored), Ok(state));
    }
}
