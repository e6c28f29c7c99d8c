//! What the runtime has listed last: the tasks, and the containers that are no tasks.
//!
//! [`super::reconcile`] uses it while the runtime cannot list them. Tasks and their traffic go on
//! without their engine, and the data plane must follow the plan meanwhile, also under a daemon
//! that starts in that time. So the last list is a file too, `DATA/last-seen.json`. It is of no use
//! after a reboot, which no task survives, and says of which boot it is.
//!
//! Invariant: a path of a network namespace is used only as long as it leads to the namespace of
//! the time of the list. Such a path contains the id of a process, which the kernel gives to
//! another process some time after the task has ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use weft_control::{
    files,
    json::{self, Schema},
};
use weft_model::{TaskId, report::AttachedReports};
use weft_overlay::{Endpoint, netns::Netns};

use super::blocking::run_blocking;
use crate::runtime::{ObservedContainer, ObservedContainers, ObservedTask, TaskNetns};

const FILE: &str = "last-seen.json";
const SCHEMA: Schema = Schema { version: 1, release: "0.2.0" };
/// Another value after each start of the machine (proc_sys_kernel(5)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The lists of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lists {
    /// `None` if the runtime has listed none since the node has joined its cluster.
    tasks: Option<Arc<BTreeMap<TaskId, ObservedTask>>>,
    attached: Option<Arc<BTreeMap<TaskId, ObservedContainer>>>,
    /// The cookies of the network namespaces, of those that have links.
    cookies: BTreeMap<TaskId, u64>,
}

/// The content of the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    boot_id: String,
    lists: Lists,
}

pub(super) struct LastSeen {
    file: PathBuf,
    lists: Lists,
    /// What the file has. `None` if that is not known.
    stored: Option<Lists>,
}

impl LastSeen {
    /// Reads the lists of an earlier daemon.
    pub(super) fn load(data_dir: &Path) -> Self {
        let file = data_dir.join(FILE);
        let lists = read(&file).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "cannot read which tasks the node had");
            None
        });
        Self { file, lists: lists.unwrap_or_default(), stored: None }
    }

    /// `None` if the runtime has listed none yet.
    pub(super) fn tasks(&self) -> Option<&Arc<BTreeMap<TaskId, ObservedTask>>> {
        self.lists.tasks.as_ref()
    }

    /// The containers that are no tasks. `None` if the runtime has listed none yet.
    pub(super) fn attached(&self) -> Option<&BTreeMap<TaskId, ObservedContainer>> {
        self.lists.attached.as_deref()
    }

    pub(super) fn set_tasks(&mut self, tasks: Arc<BTreeMap<TaskId, ObservedTask>>) {
        self.lists.tasks = Some(tasks);
    }

    /// Takes over what is known of the containers that are no tasks. An engine of which an earlier
    /// daemon has asked more than it answers now may say nothing of some: those stay as they were.
    /// If nothing is known yet of all that it lists, nothing is taken over, unless that is `late`.
    pub(super) fn update_attached(&mut self, observed: ObservedContainers, late: bool) -> AttachedReports {
        if observed.complete || late || self.lists.attached.is_some() {
            let unanswered: BTreeSet<&String> = observed.report.unanswered.iter().collect();
            let kept = self.attached().into_iter().flat_map(BTreeMap::values);
            let kept = kept.filter(|container| unanswered.contains(&container.identity.container)).cloned();
            let containers = kept.chain(observed.containers).map(|container| (container.id.clone(), container));
            self.lists.attached = Some(Arc::new(containers.collect()));
        }
        observed.report
    }

    /// The runtime cannot list now. Forgets the tasks whose network namespace does not exist any
    /// more, and the namespaces of such containers: only the runtime reports ends otherwise.
    ///
    /// # Errors
    /// If this panics, or tokio is shutting down.
    pub(super) async fn forget_ended(&mut self) -> Result<()> {
        let lists = self.lists.clone();
        self.lists = run_blocking("look for the tasks that still run", || without_ended(lists)).await?;
        Ok(())
    }

    /// Records the namespaces of a pass for which the runtime has listed all, and stores the lists
    /// if they have changed. A file that cannot be written is removed: an old one would make the
    /// next daemon take running tasks for ended ones.
    pub(super) fn store(&mut self, endpoints: &[Endpoint]) {
        self.lists.cookies = endpoints.iter().filter_map(|e| Some((e.task.clone(), e.netns_cookie?))).collect();
        if self.stored.as_ref() == Some(&self.lists) {
            return;
        }
        match write(&self.file, &self.lists) {
            Ok(()) => self.stored = Some(self.lists.clone()),
            Err(error) => {
                self.stored = None;
                let removed = files::remove(&self.file);
                tracing::warn!(error = format!("{error:#}"), ?removed, "cannot store which tasks the node has");
            }
        }
    }

    /// Forgets all, after this node has left its cluster.
    pub(super) fn clear(&mut self) -> Result<()> {
        (self.lists, self.stored) = (Lists::default(), None);
        files::remove(&self.file).with_context(|| format!("cannot remove {}", self.file.display()))
    }
}

/// The lists of the file. `None` if there is no file.
fn read(file: &Path) -> Result<Option<Lists>> {
    let context = || format!("cannot read {}", file.display());
    let text = match fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(context),
    };
    let stored: Stored = json::decode(&SCHEMA, &text).with_context(context)?;
    if stored.boot_id != boot_id()? {
        let none = Lists { tasks: Some(Arc::default()), attached: Some(Arc::default()), ..Lists::default() };
        return Ok(Some(none));
    }
    let mut lists = stored.lists;
    // A start that waits for the links of its task ends with its daemon.
    let is_starting = |netns: &TaskNetns| matches!(netns, TaskNetns::Starting { .. });
    if let Some(tasks) = &mut lists.tasks {
        Arc::make_mut(tasks).retain(|_, task| !is_starting(&task.netns));
    }
    if let Some(attached) = &mut lists.attached {
        Arc::make_mut(attached).retain(|_, container| !is_starting(&container.netns));
    }
    Ok(Some(lists))
}

fn write(file: &Path, lists: &Lists) -> Result<()> {
    let stored = Stored { boot_id: boot_id()?, lists: lists.clone() };
    Ok(files::replace(file, &json::encode(&SCHEMA, &stored)?)?)
}

fn boot_id() -> Result<String> {
    let id = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(id.trim().to_owned())
}

fn without_ended(mut lists: Lists) -> Lists {
    let cookies = &lists.cookies;
    if let Some(tasks) = &mut lists.tasks {
        let ended = tasks.values().filter(|task| has_ended(&task.netns, cookies.get(&task.task)));
        let ended: Vec<TaskId> = ended.map(|task| task.task.clone()).collect();
        for id in ended {
            Arc::make_mut(tasks).remove(&id);
        }
    }
    if let Some(attached) = &mut lists.attached {
        let ended = attached.values().filter(|container| has_ended(&container.netns, cookies.get(&container.id)));
        let ended: Vec<TaskId> = ended.map(|container| container.id.clone()).collect();
        for id in ended {
            if let Some(container) = Arc::make_mut(attached).get_mut(&id) {
                container.netns = TaskNetns::Missing;
            }
        }
    }
    lists
}

/// Whether the path does not lead to the namespace any more that had this cookie.
fn has_ended(netns: &TaskNetns, cookie: Option<&u64>) -> bool {
    let TaskNetns::At(path) = netns else { return false };
    match (Netns::open(path).and_then(|netns| netns.cookie()), cookie) {
        (Ok(found), Some(cookie)) => found != *cookie,
        (Ok(_), None) => false,
        (Err(error), _) => error.is_of_ended_task(),
    }
}

#[cfg(test)]
mod tests {
    use weft_model::state::ContainerIdentity;

    use super::*;
    use crate::runtime::{Phase, identity};

    const OWN: &str = "/proc/self/ns/net";

    fn own_cookie() -> u64 {
        Netns::open(OWN.as_ref()).and_then(|netns| netns.cookie()).expect("this process has a namespace")
    }

    fn task(number: u128, netns: TaskNetns) -> (TaskId, ObservedTask) {
        let id = TaskId::from_random(number);
        let phase = Phase::Running { pid: 7, since_ms: 1 };
        let container = format!("c{number}");
        (id.clone(), ObservedTask { task: id, phase, netns, resolver: identity::RESOLVER, container })
    }

    fn container(number: u128, netns: TaskNetns) -> (TaskId, ObservedContainer) {
        let id = TaskId::from_random(number);
        let identity = ContainerIdentity { container: format!("c{number}"), name: "shell".to_owned() };
        (id.clone(), ObservedContainer { id, identity, networks: Vec::new(), netns })
    }

    fn endpoint(number: u128, cookie: u64) -> Endpoint {
        Endpoint {
            task: TaskId::from_random(number),
            network: weft_model::NetworkId::from_random(1),
            vni: weft_model::Vni::new(4097).expect("a valid VNI"),
            host_ifindex: 3,
            mac: weft_model::Mac([2, 0, 0, 0, 0, 1]),
            addr: weft_model::DualAddr { v4: Some([10, 0, 0, 2].into()), v6: std::net::Ipv6Addr::LOCALHOST },
            netns_cookie: Some(cookie),
        }
    }

    /// The engine knows these and no others.
    fn known(containers: &[(TaskId, ObservedContainer)]) -> ObservedContainers {
        let containers = containers.iter().map(|(_, container)| container.clone()).collect();
        ObservedContainers { containers, complete: true, ..ObservedContainers::default() }
    }

    fn here() -> TaskNetns {
        TaskNetns::At(OWN.into())
    }

    /// The lists of a daemon with two tasks and a container, of which nothing has ended.
    fn seen(dir: &Path) -> LastSeen {
        let mut seen = LastSeen::load(dir);
        let starting = TaskNetns::Starting { netns: None, connected: false };
        seen.set_tasks(Arc::new([task(1, here()), task(2, TaskNetns::Missing), task(3, starting)].into()));
        seen.update_attached(known(&[container(4, here())]), false);
        seen.store(&[endpoint(1, own_cookie()), endpoint(4, own_cookie())]);
        seen
    }

    #[tokio::test]
    async fn the_next_daemon_knows_what_was_listed_last_and_no_start_of_the_last_daemon() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(LastSeen::load(dir.path()).tasks().is_none(), "nothing is known");
        let last = seen(dir.path());
        let mut next = LastSeen::load(dir.path());
        let mut expected = BTreeMap::clone(last.tasks().expect("tasks were listed"));
        expected.remove(&TaskId::from_random(3)).expect("it was starting");
        next.forget_ended().await.expect("no panic");
        assert_eq!(next.tasks().map(|tasks| &**tasks), Some(&expected));
        assert_eq!(next.attached(), last.attached());

        next.clear().expect("the file can be removed");
        assert!(next.tasks().is_none() && LastSeen::load(dir.path()).tasks().is_none());
    }

    #[tokio::test]
    async fn a_path_that_leads_nowhere_or_to_another_namespace_is_of_an_ended_task() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut seen = seen(dir.path());
        let gone = TaskNetns::At("/proc/0/ns/net".into());
        seen.set_tasks(Arc::new([task(1, here()), task(5, here()), task(6, gone.clone()), task(7, here())].into()));
        seen.update_attached(known(&[container(4, here()), container(8, gone)]), false);
        seen.store(&[endpoint(1, own_cookie()), endpoint(5, own_cookie() + 1), endpoint(4, own_cookie() + 1)]);
        seen.forget_ended().await.expect("no panic");
        let left: Vec<_> = seen.tasks().expect("tasks were listed").keys().cloned().collect();
        let mut expected = [1, 7].map(TaskId::from_random);
        expected.sort();
        assert_eq!(left, expected, "task 7 has no links, so its namespace is not known");
        let attached = seen.attached().expect("containers were listed");
        assert!(
            attached.len() == 2 && attached.values().all(|found| found.netns == TaskNetns::Missing),
            "{attached:?}"
        );
    }

    #[test]
    fn a_container_of_which_the_engine_does_not_answer_yet_stays_as_it_was() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut seen = seen(dir.path());
        let report = AttachedReports { containers: Vec::new(), unanswered: vec!["c4".to_owned(), "c9".to_owned()] };
        let silent = || ObservedContainers { report: report.clone(), ..ObservedContainers::default() };
        assert_eq!(seen.update_attached(silent(), false), report);
        assert_eq!(seen.attached(), Some(&[container(4, here())].into()));
        seen.update_attached(known(&[]), false);
        assert_eq!(seen.attached(), Some(&BTreeMap::new()), "it was removed");

        let mut new = LastSeen::load(&dir.path().join("none"));
        new.update_attached(silent(), false);
        assert_eq!(new.attached(), None, "what the engine does not say may have links");
        new.update_attached(silent(), true);
        assert_eq!(new.attached(), Some(&BTreeMap::new()));
    }

    #[test]
    fn no_task_survives_a_reboot_and_a_file_that_cannot_be_read_says_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lists = seen(dir.path()).lists;
        let file = dir.path().join(FILE);
        let other = Stored { boot_id: "of an earlier boot".to_owned(), lists };
        fs::write(&file, json::encode(&SCHEMA, &other).expect("JSON")).expect("a written file");
        let after = LastSeen::load(dir.path());
        assert!(after.tasks().is_some_and(|tasks| tasks.is_empty()), "it is known that no task runs");
        assert!(after.attached().is_some_and(BTreeMap::is_empty));
        fs::write(&file, b"{\"boot_id").expect("a written file");
        assert!(LastSeen::load(dir.path()).tasks().is_none());
    }

    #[test]
    fn a_list_that_cannot_be_stored_leaves_no_older_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut seen = seen(dir.path());
        // The new content cannot be staged.
        let staged = dir.path().join(format!("{FILE}.new"));
        fs::create_dir(&staged).expect("a directory in its place");
        seen.set_tasks(Arc::default());
        seen.store(&[]);
        assert!(LastSeen::load(dir.path()).tasks().is_none());
        fs::remove_dir(&staged).expect("removed");
        seen.store(&[]);
        assert!(LastSeen::load(dir.path()).tasks().is_some_and(|tasks| tasks.is_empty()), "it is tried again");
    }
}
