//! The secrets and configs of a task, as its plan has them. Pure.
//!
//! The plan has their data only until the task is prepared, and the plan on the disk never has it:
//! after a restart of the daemon, a task that is not prepared waits for the leader.

use weft_model::{
    NodePlan,
    plan::TaskPlan,
    spec::{DependencyKind, FileReference},
};

use crate::runtime::TaskFile;

/// What a plan has of the secrets and configs of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Files {
    /// All that the task has.
    Complete(Vec<TaskFile>),
    /// The leader sends them with the next plan.
    Awaited,
    /// One does not exist any more, for this reason.
    Missing(String),
}

impl Default for Files {
    fn default() -> Self {
        Self::Complete(Vec::new())
    }
}

impl Files {
    /// The files, if they are complete.
    pub(super) fn complete(self) -> Vec<TaskFile> {
        match self {
            Self::Complete(files) => files,
            Self::Awaited | Self::Missing(_) => Vec::new(),
        }
    }
}

pub(super) fn of(plan: &NodePlan, task: &TaskPlan) -> Files {
    let mut files = Vec::new();
    for (kind, reference) in task.container.files() {
        match file(plan, task, kind, reference) {
            Ok(Some(file)) => files.push(file),
            Ok(None) => return Files::Awaited,
            Err(missing) => return Files::Missing(missing),
        }
    }
    Files::Complete(files)
}

/// `None` if its data comes later. The error is why it does not.
fn file(
    plan: &NodePlan,
    task: &TaskPlan,
    kind: DependencyKind,
    reference: &FileReference,
) -> Result<Option<TaskFile>, String> {
    let shared = || plan.dependencies.iter().find(|found| found.id == reference.id).map(|found| &found.data);
    let Some(data) = task.expanded.files.get(&reference.id).or_else(shared) else {
        let name = &reference.name;
        return Err(format!("{kind} {name} was removed, or the task has lost its files: update the service"));
    };
    let path = reference.path(kind).ok_or_else(|| format!("{kind} {} has no path", reference.name))?;
    let (uid, gid, mode) = (reference.uid, reference.gid, reference.mode);
    Ok(data.clone().map(|data| TaskFile { path, uid, gid, mode, data }))
}

#[cfg(test)]
mod tests {
    use weft_model::{DependencyId, NodeId, Shared, plan::DependencyPlan, spec::FileData};

    use super::*;
    use crate::runtime::fixture;

    fn reference(id: u128, target: &str) -> FileReference {
        let (name, target) = (format!("name-{id}"), target.to_owned());
        FileReference { id: DependencyId::from_random(id), name, target, uid: 1, gid: 2, mode: 0o440 }
    }

    fn data(text: &str) -> Option<Shared<FileData>> {
        Some(FileData(text.as_bytes().to_vec()).into())
    }

    #[test]
    fn a_task_has_the_files_of_its_plan_or_waits_for_their_data() {
        let mut task = fixture::task(|container| {
            container.secrets = vec![reference(1, "key")];
            container.configs = vec![reference(2, "/etc/conf")];
        });
        let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
        plan.dependencies = vec![DependencyPlan { id: DependencyId::from_random(1), data: data("hunter2") }];
        let missing =
            Files::Missing("config name-2 was removed, or the task has lost its files: update the service".to_owned());
        assert_eq!(of(&plan, &task), missing);

        // The second one has templates.
        task.expanded.files = [(DependencyId::from_random(2), data("slot 1"))].into();
        let file = |path: &str, text: &str| TaskFile {
            path: path.to_owned(),
            uid: 1,
            gid: 2,
            mode: 0o440,
            data: data(text).expect("data"),
        };
        let complete = Files::Complete(vec![file("/run/secrets/key", "hunter2"), file("/etc/conf", "slot 1")]);
        assert_eq!(of(&plan, &task), complete);

        // As it is read from the disk.
        plan.tasks = vec![task];
        let stored = plan.without_data();
        assert_eq!(of(&stored, &stored.tasks[0]), Files::Awaited);
        assert_eq!(of(&stored, &fixture::task(|_| ())), Files::default());
    }
}
