//! The tasks of the cluster state, in a map whose copies share the tasks.
//!
//! The state is copied for each log entry and each decision, because readers keep the state before
//! it. A copy must not cost the time to copy every task. So the map holds shared tasks, and a task
//! is copied when it is changed while another copy of the map has it.

use std::{collections::BTreeMap, ops::Index, sync::Arc};

use serde::{Deserialize, Serialize};

use super::Task;
use crate::TaskId;

/// Tasks by id, in ascending order of the ids.
///
/// ```
/// use weft_model::{TaskId, state::TaskMap};
///
/// let tasks = TaskMap::default();
/// assert!(tasks.get(&TaskId::from_random(1)).is_none());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskMap(BTreeMap<TaskId, Arc<Task>>);

impl TaskMap {
    pub fn get(&self, id: &TaskId) -> Option<&Task> {
        self.0.get(id).map(|task| &**task)
    }

    /// The task, to be changed. Copies it first if another copy of the map has it.
    pub fn get_mut(&mut self, id: &TaskId) -> Option<&mut Task> {
        self.0.get_mut(id).map(Arc::make_mut)
    }

    /// Adds a task, or replaces the one with this id.
    pub fn insert(&mut self, id: TaskId, task: Task) {
        self.0.insert(id, Arc::new(task));
    }

    pub fn remove(&mut self, id: &TaskId) {
        self.0.remove(id);
    }

    pub fn contains_key(&self, id: &TaskId) -> bool {
        self.0.contains_key(id)
    }

    pub fn keys(&self) -> impl Iterator<Item = &TaskId> {
        self.0.keys()
    }

    pub fn values(&self) -> impl Iterator<Item = &Task> + Clone {
        self.0.values().map(|task| &**task)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Index<&TaskId> for TaskMap {
    type Output = Task;

    fn index(&self, id: &TaskId) -> &Task {
        &self.0[id]
    }
}
