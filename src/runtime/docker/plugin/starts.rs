//! The containers that are being started, and what their start waits for.
//!
//! The plugin calls [`Starts::join`], and the runtime [`Starts::begin`], before it asks the engine
//! to start a container, and [`Starts::connect`], when the agent has made links.
//!
//! While an engine starts a container, it holds the container's lock: a request to inspect the
//! container would wait until `Join` is answered, which waits for the agent, which must not wait
//! for that request. So the runtime asks here first ([`Starts::netns`]).

use std::{
    collections::BTreeMap,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use weft_model::{TaskId, plan::TaskPlan};

use super::{LinkOptions, links::links_of, wire::Joined};

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
    /// The links of the tasks whose network is ready.
    connected: watch::Sender<BTreeMap<TaskId, Vec<Joined>>>,
    /// Changes when a start begins or ends.
    start_changes: watch::Sender<u64>,
    /// Wakes the agent.
    changed: watch::Sender<u64>,
    /// How long a start waits for its links.
    limit: Duration,
}

#[derive(Debug, Default)]
struct Start {
    /// Where the namespace is, or will be. `None` before the first `Join`.
    netns: Option<PathBuf>,
    /// The runtime has asked for this start: it ends with the request. Otherwise a user has, and it
    /// ends when the container runs.
    requested: bool,
}

/// A start that the runtime has asked for. It ends when this value is dropped.
#[derive(Debug)]
pub(in crate::runtime::docker) struct Started {
    starts: Starts,
    task: TaskId,
}

impl Drop for Started {
    fn drop(&mut self) {
        self.starts.end(&self.task);
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
    pub(in crate::runtime::docker) fn begin(&self, task: &TaskId) -> Started {
        self.lock().insert(task.clone(), Start { requested: true, ..Start::default() });
        self.inner.start_changes.send_modify(|count| *count += 1);
        Started { starts: self.clone(), task: task.clone() }
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

    /// `None` if the container is not being started. The inner value is the path of its network
    /// namespace, if that exists and weft has been told where it is.
    pub(in crate::runtime::docker) fn netns(&self, task: &TaskId) -> Option<Option<PathBuf>> {
        let starting = self.lock();
        let start = starting.get(task)?;
        Some(start.netns.clone().filter(|path| is_netns(path)))
    }

    /// Resolves when the container is being started.
    pub(in crate::runtime::docker) async fn wait_until_started(&self, task: &TaskId) {
        let mut start_changes = self.inner.start_changes.subscribe();
        // Never an error: this value has the sender.
        let _ = start_changes.wait_for(|_| self.lock().contains_key(task)).await;
    }

    /// The tasks whose links, data plane and resolver are ready, with the names of their task
    /// sides. A start that waits for one of them goes on.
    pub(in crate::runtime::docker) fn connect<'a>(&self, ready: impl Iterator<Item = (&'a TaskPlan, &'a [String])>) {
        self.set_connected(ready.map(|(task, names)| (task.id.clone(), links_of(task, names))));
    }

    fn set_connected(&self, ready: impl Iterator<Item = (TaskId, Vec<Joined>)>) {
        let starting = self.lock();
        let ready: BTreeMap<_, _> = ready.filter(|(task, _)| starting.contains_key(task)).collect();
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
        let mut connected = self.inner.connected.subscribe();
        let joined = |connected: &BTreeMap<TaskId, Vec<Joined>>| connected.get(&link.task)?.get(link.index).cloned();
        let waited = timeout(self.inner.limit, connected.wait_for(|connected| joined(connected).is_some())).await;
        let joined = waited.ok().and_then(Result::ok).and_then(|connected| joined(&connected));
        let Some(joined) = joined else {
            self.end_of_user(&link.task);
            return Err(format!(
                "weft did not connect the container within {:?}: see \"weft node inspect\" and the log of its daemon",
                self.inner.limit
            ));
        };
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
        assert_eq!(starts.netns(&task), Some(None));
        let link = LinkOptions { task: task.clone(), index: 1 };
        let netns = PathBuf::from("/proc/self/ns/net");
        let join = tokio::spawn({
            let starts = starts.clone();
            async move { starts.join(&link, netns).await }
        });
        starts.set_connected([(other, vec![joined("x"), joined("y")])].into_iter());
        starts.set_connected([(task.clone(), vec![joined("a"), joined("b")])].into_iter());
        // The agent reports the links in each pass.
        let mut interval = tokio::time::interval(Duration::from_millis(1));
        while !join.is_finished() {
            interval.tick().await;
            starts.set_connected([(task.clone(), vec![joined("a"), joined("b")])].into_iter());
        }
        assert_eq!(join.await.expect("no panic"), Ok(joined("b")));
        assert_eq!(starts.netns(&task), Some(Some("/proc/self/ns/net".into())));
        drop(started);
        assert_eq!(starts.netns(&task), None);
        assert!(starts.inner.connected.borrow().is_empty());
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
