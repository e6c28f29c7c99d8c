//! The containers that are being started, and what their start waits for.
//!
//! The plugin calls [`Starts::join`], and the runtime [`Starts::begin`], before it asks the engine
//! to start a container, and [`Starts::connect`], when the agent has made links.
//!
//! While an engine starts a container, it holds the container's lock: a request to inspect the
//! container would wait until `Join` is answered, which waits for the agent, which must not wait
//! for that request. So the runtime asks here first ([`Starts::netns`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use weft_model::{TaskId, plan::TaskPlan};

use super::{LinkOptions, links::links_of, wire::Joined};
use crate::runtime::TaskNetns;

/// How long a start waits for the links. A pass of the agent takes some milliseconds, and a failed
/// one is repeated after half a second.
const LINKS_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the start looks whether the engine has made the namespace.
const NETNS_POLL: Duration = Duration::from_millis(5);

/// Shared by the plugin and the runtime.
#[derive(Debug, Clone)]
pub(in crate::runtime::docker) struct Starts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    starting: Mutex<BTreeMap<TaskId, Start>>,
    /// The links of the tasks whose network is ready, or why a task gets none.
    connected: watch::Sender<BTreeMap<TaskId, Links>>,
    /// Changes when a start begins or ends.
    start_changes: watch::Sender<u64>,
    /// Wakes the agent.
    changed: watch::Sender<u64>,
    /// How long a start waits for its links.
    limit: Duration,
}

/// An error is a text for the user.
type Links = Result<Vec<Joined>, String>;

#[derive(Debug, Default)]
struct Start {
    /// Where the namespace is, or will be. `None` before the first `Join`.
    netns: Option<PathBuf>,
    /// The engine has been told of the links, or is about to be.
    connected: bool,
    /// The runtime has asked for this start: it ends with the request. Otherwise a user has, and it
    /// ends when the container runs.
    requested: bool,
}

/// A start that the runtime has asked for. It ends when this value is dropped.
#[derive(Debug)]
pub(in crate::runtime::docker) struct RequestedStart {
    starts: Starts,
    task: TaskId,
}

impl Drop for RequestedStart {
    fn drop(&mut self) {
        self.starts.end(&self.task);
    }
}

/// A start that a user has asked the engine for. It ends when this value is dropped before the
/// container has joined, also because the engine has gone away.
struct UserStart<'a> {
    starts: &'a Starts,
    task: &'a TaskId,
    joined: bool,
}

impl Drop for UserStart<'_> {
    fn drop(&mut self) {
        if !self.joined {
            self.starts.end_of_user(self.task);
        }
    }
}

impl Starts {
    pub(in crate::runtime::docker) fn new(changed: watch::Sender<u64>) -> Self {
        Self::with_limit(changed, LINKS_TIMEOUT)
    }

    fn with_limit(changed: watch::Sender<u64>, limit: Duration) -> Self {
        let (starting, connected, start_changes) =
            (Mutex::default(), watch::Sender::default(), watch::Sender::default());
        Self { inner: Arc::new(Inner { starting, connected, start_changes, changed, limit }) }
    }

    /// Must be called before the engine is asked to start the task's container.
    pub(in crate::runtime::docker) fn begin(&self, task: &TaskId) -> RequestedStart {
        self.lock().insert(task.clone(), Start { requested: true, ..Start::default() });
        self.inner.start_changes.send_modify(|count| *count += 1);
        RequestedStart { starts: self.clone(), task: task.clone() }
    }

    /// Ends a start that a user has asked the engine for, once the container runs.
    pub(in crate::runtime::docker) fn end_of_user(&self, task: &TaskId) {
        let by_user = self.lock().get(task).is_some_and(|start| !start.requested);
        if by_user {
            self.end(task);
        }
    }

    fn end(&self, task: &TaskId) {
        self.lock().remove(task);
        self.inner.connected.send_modify(|connected| drop(connected.remove(task)));
        self.inner.start_changes.send_modify(|count| *count += 1);
        self.inner.changed.send_modify(|count| *count += 1);
    }

    /// `None` if the container is not being started.
    pub(in crate::runtime::docker) fn netns(&self, task: &TaskId) -> Option<TaskNetns> {
        let starting = self.lock();
        let start = starting.get(task)?;
        let netns = start.netns.clone().filter(|path| is_netns(path));
        Some(TaskNetns::Starting { netns, connected: start.connected })
    }

    /// Resolves when the container is being started.
    pub(in crate::runtime::docker) async fn wait_until_started(&self, task: &TaskId) {
        let mut start_changes = self.inner.start_changes.subscribe();
        // Never an error: this value has the sender.
        let _ = start_changes.wait_for(|_| self.lock().contains_key(task)).await;
    }

    /// The tasks whose links, data plane and resolver are ready, with the names of their task
    /// sides. A start that waits for one of them goes on.
    pub(in crate::runtime::docker) fn connect<'a>(
        &self,
        tasks: impl Iterator<Item = (&'a TaskPlan, Option<&'a [String]>)>,
    ) {
        self.set_connected(tasks.map(|(task, names)| (task.id.clone(), names.map(|names| links_of(task, names)))));
    }

    /// `None`: the network of the task is not ready yet.
    fn set_connected(&self, tasks: impl Iterator<Item = (TaskId, Option<Vec<Joined>>)>) {
        let mut starting = self.lock();
        let mut missing: BTreeSet<TaskId> = starting.keys().cloned().collect();
        let mut ready = BTreeMap::new();
        for (task, links) in tasks {
            if missing.remove(&task)
                && let Some(links) = links
                && let Some(start) = starting.get_mut(&task)
            {
                start.connected = true;
                ready.insert(task, Ok(links));
            }
        }
        let gone = || Err("the task is not in the plan of this node any more".to_owned());
        ready.extend(missing.into_iter().map(|task| (task, gone())));
        self.inner.connected.send_if_modified(|connected| {
            let changed = *connected != ready;
            *connected = ready;
            changed
        });
    }

    /// Waits until the links of a container are ready. `netns` is the path of its network
    /// namespace, which may not exist yet.
    ///
    /// # Errors
    /// A text for the user.
    pub(super) async fn join(&self, link: &LinkOptions, netns: PathBuf) -> Result<Joined, String> {
        self.lock().entry(link.task.clone()).or_default().netns = Some(netns.clone());
        self.inner.start_changes.send_modify(|count| *count += 1);
        self.inner.changed.send_modify(|count| *count += 1);
        let mut user = UserStart { starts: self, task: &link.task, joined: false };
        let mut connected = self.inner.connected.subscribe();
        let joined = |connected: &BTreeMap<TaskId, Links>| match connected.get(&link.task)? {
            Ok(links) => links.get(link.index).cloned().map(Ok),
            Err(reason) => Some(Err(reason.clone())),
        };
        let waited = timeout(self.inner.limit, connected.wait_for(|connected| joined(connected).is_some())).await;
        let joined = waited.ok().and_then(Result::ok).and_then(|connected| joined(&connected));
        let joined = joined.unwrap_or_else(|| {
            Err(format!(
                "weft did not connect the container within {:?}: see \"weft node inspect\" and the log of its daemon",
                self.inner.limit
            ))
        })?;
        user.joined = true;
        drop(user);
        if !is_netns(&netns) {
            tokio::spawn(self.clone().follow_netns(link.task.clone(), netns));
        }
        Ok(joined)
    }

    /// Wakes the agent when the engine has made the namespace: until then, the task's resolver and
    /// the programs on its sockets are missing.
    async fn follow_netns(self, task: TaskId, netns: PathBuf) {
        let mut interval = tokio::time::interval(NETNS_POLL);
        while self.lock().contains_key(&task) {
            interval.tick().await;
            if is_netns(&netns) {
                return self.inner.changed.send_modify(|count| *count += 1);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Start>> {
        // Each change is complete before anything can panic.
        self.inner.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a network namespace is mounted on the file. Before that, the engine makes an empty file.
fn is_netns(path: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    matches!((device(path), device(Path::new("/proc/self/ns/net"))), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::{super::wire::InterfaceName, *};

    fn joined(name: &str) -> Joined {
        Joined {
            interface_name: InterfaceName { src_name: name.to_owned(), dst_prefix: "eth" },
            gateway: None,
            gateway_v6: None,
            static_routes: vec![],
            disable_gateway_service: true,
        }
    }

    #[tokio::test]
    async fn a_start_waits_until_its_links_are_ready() {
        let starts = Starts::new(watch::Sender::default());
        let (task, other) = (TaskId::from_random(1), TaskId::from_random(2));
        assert_eq!(starts.netns(&task), None);
        let started = starts.begin(&task);
        let starting =
            |netns: Option<&str>, connected| Some(TaskNetns::Starting { netns: netns.map(PathBuf::from), connected });
        assert_eq!(starts.netns(&task), starting(None, false));
        let link = LinkOptions { task: task.clone(), index: 1 };
        let netns = PathBuf::from("/proc/self/ns/net");
        let join = tokio::spawn({
            let starts = starts.clone();
            async move { starts.join(&link, netns).await }
        });
        starts.set_connected([(other, Some(vec![joined("x"), joined("y")])), (task.clone(), None)].into_iter());
        // The agent reports the links in each pass.
        let mut interval = tokio::time::interval(Duration::from_millis(1));
        while !join.is_finished() {
            interval.tick().await;
            starts.set_connected([(task.clone(), Some(vec![joined("a"), joined("b")]))].into_iter());
        }
        assert_eq!(join.await.expect("no panic"), Ok(joined("b")));
        assert_eq!(starts.netns(&task), starting(Some("/proc/self/ns/net"), true));
        drop(started);
        assert_eq!(starts.netns(&task), None);
        assert!(starts.inner.connected.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_start_of_a_task_that_is_no_longer_planned_fails() {
        let starts = Starts::new(watch::Sender::default());
        let link = LinkOptions { task: TaskId::from_random(1), index: 0 };
        let mut changed = starts.inner.changed.subscribe();
        let fails = async {
            changed.wait_for(|count| *count > 0).await.expect("the sender exists");
            starts.set_connected([].into_iter());
        };
        let (error, ()) = tokio::join!(starts.join(&link, "/no/netns".into()), fails);
        assert!(error.is_err_and(|error| error.contains("not in the plan")));
        assert_eq!(starts.netns(&link.task), None, "the start of a user has ended");
    }

    #[tokio::test]
    async fn a_start_whose_links_are_not_made_fails() {
        let starts = Starts::with_limit(watch::Sender::default(), Duration::from_millis(10));
        let link = LinkOptions { task: TaskId::from_random(1), index: 0 };
        let error = starts.join(&link, "/no/netns".into()).await.expect_err("no links");
        assert!(error.contains("within 10ms"), "{error}");
        assert_eq!(starts.netns(&link.task), None);
    }
}
