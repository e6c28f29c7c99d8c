//! The containers that are being started, and what their start waits for.
//!
//! The plugin calls [`Starts::join`], and the runtime [`Starts::begin`], before it asks the engine
//! to start a container, and [`Starts::connect`], when the agent has made links.
//!
//! While an engine starts or connects a container, it holds the container's lock: a request to
//! inspect the container would wait until `Join` is answered, which waits for the agent, which must
//! not wait for that request. So the runtime asks here first ([`Starts::netns`],
//! [`Starts::wait_until_held`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{sleep_until, timeout_at},
};
use weft_model::{NodePlan, TaskId, plan::LocalPlan};

use super::{
    LinkOptions, Owner,
    links::{links_in_place, links_of},
    wire::Joined,
};
use crate::runtime::{Ready, TaskNetns};

/// How long a start waits for the links. A pass of the agent takes some milliseconds, and a failed
/// one is repeated after half a second.
const LINKS_TIMEOUT: Duration = Duration::from_secs(20);
/// How long an engine may take from the last `Join` of a container until it runs.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Why the start of another container fails while its engine starts. The agent connects nothing as
/// long as it cannot ask the engine, and the engine answers when it has started its containers. The
/// engine does not say here whether the container has a restart policy.
const ENGINE_STARTS: &str = "the engine starts, or weft has not connected to it yet: weft starts this container again if it \
                             has a restart policy; otherwise try again in a few seconds";
/// Why the start of a task fails.
const GONE_TASK: &str = "the task is not in the plan of this node any more";
/// Why the start of another container fails.
const GONE_CONTAINER: &str = "the cluster has no address for this container any more: disconnect it from its networks of \
                              the cluster and connect it again, or create it again, through the socket of weft";
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
    /// The running containers that the engine connects to another network. With the number of links
    /// that it waits for.
    connecting: Mutex<BTreeMap<TaskId, u32>>,
    /// Whether the engine answers requests. While it starts, it starts containers before.
    engine_answers: AtomicBool,
    /// The namespaces of the running containers that are no tasks. `None` until they were observed.
    running: watch::Sender<Option<BTreeMap<TaskId, PathBuf>>>,
    /// The links of running containers that are no tasks.
    in_place: watch::Sender<BTreeMap<TaskId, BTreeMap<u32, Joined>>>,
    /// The links of the tasks whose network is ready, or why a task gets none.
    connected: watch::Sender<BTreeMap<TaskId, Links>>,
    /// Changes when a start or a connection begins or ends.
    start_changes: watch::Sender<u64>,
    /// Wakes the agent.
    changed: watch::Sender<u64>,
    /// How long a start waits for its links.
    limit: Duration,
}

/// By the numbers of the links. An error is a text for the user.
type Links = Result<BTreeMap<u32, Joined>, String>;

#[derive(Debug, Default)]
struct Start {
    /// Where the namespace is, or will be. `None` before the first `Join`.
    netns: Option<PathBuf>,
    /// The engine has been told of the links, or is about to be.
    connected: bool,
    /// The runtime has asked for this start: it ends with the request. Otherwise a user has, and it
    /// ends when the container runs.
    requested: bool,
    /// It is that of a container that is no task.
    of_container: bool,
    /// When the last `Join` came, or was answered.
    joined_at: Option<Instant>,
    /// The number of the link that the last `Join` waits for.
    awaited: Option<u32>,
    /// How many times the agent has connected since then without that link in its plan.
    missed: u32,
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

/// A connection of a running container that the engine waits for. It ends when this value is
/// dropped, also because the engine has gone away.
struct Connecting<'a> {
    starts: &'a Starts,
    container: &'a TaskId,
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.starts.count_connections(self.container, |count| count.saturating_sub(1));
    }
}

impl Starts {
    pub(in crate::runtime::docker) fn new(changed: watch::Sender<u64>) -> Self {
        Self::with_limit(changed, LINKS_TIMEOUT)
    }

    fn with_limit(changed: watch::Sender<u64>, limit: Duration) -> Self {
        let (starting, connecting) = (Mutex::default(), Mutex::default());
        let (connected, start_changes) = (watch::Sender::default(), watch::Sender::default());
        let (running, in_place) = (watch::Sender::default(), watch::Sender::default());
        Self {
            inner: Arc::new(Inner {
                starting,
                connecting,
                engine_answers: AtomicBool::new(false),
                running,
                in_place,
                connected,
                start_changes,
                changed,
                limit,
            }),
        }
    }

    /// Must be called before the engine is asked to start the task's container.
    pub(in crate::runtime::docker) fn begin(&self, task: &TaskId) -> RequestedStart {
        self.lock().insert(task.clone(), Start { requested: true, ..Start::default() });
        self.inner.start_changes.send_modify(|count| *count += 1);
        RequestedStart { starts: self.clone(), task: task.clone() }
    }

    /// Ends a start that a user has asked the engine for, if a list that was requested at
    /// `listed_at` shows that the container runs. Returns the namespace in which it runs. The list
    /// says nothing of a `Join` that came later: before, the container can have been stopped.
    pub(in crate::runtime::docker) fn end_of_running(&self, task: &TaskId, listed_at: Instant) -> Option<PathBuf> {
        let start = self.lock().get(task).map(|start| (start.requested, start.joined_at, start.netns.clone()));
        let (requested, joined_at, netns) = start?;
        if requested || joined_at.is_some_and(|joined_at| joined_at >= listed_at) {
            return None;
        }
        self.end(task);
        netns.filter(|netns| is_netns(netns))
    }

    /// Ends a start that a user has asked the engine for.
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

    /// The containers that are no tasks and are being started. An engine that was killed says of no
    /// start how it ended, so old ones are forgotten.
    pub(in crate::runtime::docker) fn containers(&self) -> Vec<TaskId> {
        let mut starting = self.lock();
        let is_old = |start: &Start| start.joined_at.is_some_and(|at| at.elapsed() >= START_TIMEOUT);
        starting.retain(|_, start| !start.of_container || !is_old(start));
        starting.iter().filter(|(_, start)| start.of_container).map(|(id, _)| id.clone()).collect()
    }

    /// Resolves when the engine holds a container that is no task, because it starts it or connects
    /// it.
    pub(in crate::runtime::docker) async fn wait_until_any_is_held(&self) {
        let mut start_changes = self.inner.start_changes.subscribe();
        let is_held = || !self.connecting().is_empty() || self.lock().values().any(|start| start.of_container);
        let _ = start_changes.wait_for(|_| is_held()).await;
    }

    /// Resolves when the engine holds this container.
    pub(in crate::runtime::docker) async fn wait_until_held(&self, container: &TaskId) {
        let mut start_changes = self.inner.start_changes.subscribe();
        let _ = start_changes.wait_for(|_| self.is_held(container)).await;
    }

    fn is_held(&self, container: &TaskId) -> bool {
        self.connecting().contains_key(container) || self.lock().contains_key(container)
    }

    fn count_connections(&self, container: &TaskId, next: impl FnOnce(u32) -> u32) {
        let mut connecting = self.connecting();
        let count = next(connecting.remove(container).unwrap_or_default());
        if count > 0 {
            connecting.insert(container.clone(), count);
        }
        drop(connecting);
        self.inner.start_changes.send_modify(|count| *count += 1);
    }

    /// The engine answers requests, or does not any more.
    pub(in crate::runtime::docker) fn set_engine_answers(&self, answers: bool) {
        self.inner.engine_answers.store(answers, Ordering::Relaxed);
    }

    /// The namespaces of the running containers that are no tasks, as they were observed now.
    pub(in crate::runtime::docker) fn set_running(&self, running: BTreeMap<TaskId, PathBuf>) {
        self.inner.running.send_replace(Some(running));
    }

    /// What is ready for the tasks and containers of the plan. A start that waits for it goes on.
    pub(in crate::runtime::docker) fn connect(&self, plan: Option<&NodePlan>, ready: &Ready) {
        let handed_over = |local: &LocalPlan<'_>| ready.handed_over.get(local.id).map(|names| links_of(local, names));
        let local = || plan.into_iter().flat_map(NodePlan::local);
        self.set_connected(local().map(|local| (local.id.clone(), handed_over(&local))));
        let in_place = local().filter(|local| ready.in_place.contains(local.id));
        let in_place = in_place.map(|local| (local.id.clone(), links_in_place(&local))).collect();
        // Sent also if it has not changed: a start counts the passes.
        self.inner.in_place.send_replace(in_place);
    }

    /// `None`: the network of the task is not ready yet.
    fn set_connected(&self, tasks: impl Iterator<Item = (TaskId, Option<BTreeMap<u32, Joined>>)>) {
        let mut starting = self.lock();
        let mut missing: BTreeSet<TaskId> = starting.keys().cloned().collect();
        let mut ready = BTreeMap::new();
        for (task, links) in tasks {
            let Some(start) = starting.get_mut(&task) else { continue };
            let Some(links) = links else {
                missing.remove(&task);
                continue;
            };
            // The links of a task never change.
            let has_awaited = start.awaited.is_none_or(|awaited| links.contains_key(&awaited));
            if has_awaited || !start.of_container {
                missing.remove(&task);
            }
            start.connected = true;
            ready.insert(task, Ok(links));
        }
        for task in missing {
            let Some(start) = starting.get_mut(&task) else { continue };
            start.missed += 1;
            match start.of_container {
                false => drop(ready.insert(task, Err(GONE_TASK.to_owned()))),
                // The pass may have begun before the plan had the container, and the start after
                // it.
                true if start.missed > 1 => drop(ready.insert(task, Err(GONE_CONTAINER.to_owned()))),
                true => self.inner.changed.send_modify(|count| *count += 1),
            }
        }
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
        let of_container = matches!(link.owner, Owner::Container { .. });
        if of_container && !self.inner.engine_answers.load(Ordering::Relaxed) {
            return Err(ENGINE_STARTS.to_owned());
        }
        let deadline = tokio::time::Instant::now() + self.inner.limit;
        if of_container && self.is_running_in(&link.task, &netns, deadline).await {
            return self.join_running(link, deadline).await;
        }
        {
            let mut starting = self.lock();
            let start = starting.entry(link.task.clone()).or_default();
            (start.netns, start.of_container) = (Some(netns.clone()), of_container);
            (start.awaited, start.missed, start.joined_at) = (Some(link.index), 0, Some(Instant::now()));
            // An error for an earlier link says nothing of this one.
            let is_error = |links: Option<&Links>| of_container && links.is_some_and(Result::is_err);
            self.inner.connected.send_if_modified(|connected| {
                is_error(connected.get(&link.task)) && connected.remove(&link.task).is_some()
            });
        }
        self.inner.start_changes.send_modify(|count| *count += 1);
        self.inner.changed.send_modify(|count| *count += 1);
        let mut user = UserStart { starts: self, task: &link.task, joined: false };
        let joined = tokio::select! {
            joined = self.wait_until_connected(link) => joined?,
            // It was started with other links, and the engine connects this one while it runs.
            () = self.wait_until_running_in(&link.task, &netns), if of_container => {
                drop(user);
                return self.join_running(link, deadline).await;
            }
            () = sleep_until(deadline) => return Err(self.too_late()),
        };
        user.joined = true;
        drop(user);
        if let Some(start) = self.lock().get_mut(&link.task) {
            (start.awaited, start.joined_at) = (None, Some(Instant::now()));
        }
        if !is_netns(&netns) {
            tokio::spawn(self.clone().follow_netns(link.task.clone(), netns));
        }
        Ok(joined)
    }

    /// Waits until a link of a container that is being started is ready.
    async fn wait_until_connected(&self, link: &LinkOptions) -> Result<Joined, String> {
        let mut connected = self.inner.connected.subscribe();
        let joined = |connected: &BTreeMap<TaskId, Links>| match connected.get(&link.task)? {
            Ok(links) => links.get(&link.index).cloned().map(Ok),
            Err(reason) => Some(Err(reason.clone())),
        };
        let connected = connected.wait_for(|connected| joined(connected).is_some()).await;
        connected.ok().and_then(|connected| joined(&connected)).unwrap_or_else(|| Err(self.too_late()))
    }

    /// Waits until a link of a running container is in its namespace.
    async fn join_running(&self, link: &LinkOptions, deadline: tokio::time::Instant) -> Result<Joined, String> {
        let mut in_place = self.inner.in_place.subscribe();
        self.count_connections(&link.task, |count| count + 1);
        let _connecting = Connecting { starts: self, container: &link.task };
        self.inner.changed.send_modify(|count| *count += 1);
        let joined = async {
            let mut passes = 0;
            loop {
                let links = in_place.borrow_and_update().get(&link.task).cloned();
                match links.map(|links| links.get(&link.index).cloned()) {
                    Some(Some(joined)) => return Ok(joined),
                    Some(None) if passes > 1 => return Err(GONE_CONTAINER.to_owned()),
                    // The pass may have begun before the plan had the link.
                    Some(None) => self.inner.changed.send_modify(|count| *count += 1),
                    None => {}
                }
                if in_place.changed().await.is_err() {
                    return Err(self.too_late());
                }
                passes += 1;
            }
        };
        timeout_at(deadline, joined).await.unwrap_or_else(|_| Err(self.too_late()))
    }

    /// Whether the container runs in this namespace, so that the engine connects it while it runs.
    async fn is_running_in(&self, container: &TaskId, netns: &Path, deadline: tokio::time::Instant) -> bool {
        let mut running = self.inner.running.subscribe();
        let Ok(Ok(running)) = timeout_at(deadline, running.wait_for(Option::is_some)).await else { return false };
        runs_in(running.as_ref(), container, netns)
    }

    /// Resolves when a pass finds that the container runs in this namespace.
    async fn wait_until_running_in(&self, container: &TaskId, netns: &Path) {
        let mut running = self.inner.running.subscribe();
        // Never an error: this value has the sender.
        let _ = running.wait_for(|running| runs_in(running.as_ref(), container, netns)).await;
    }

    fn too_late(&self) -> String {
        format!(
            "weft did not connect the container within {:?}: see \"weft node inspect\" and the log of its daemon",
            self.inner.limit
        )
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

    /// Connects a running container, to a link that no pass makes. Never resolves.
    #[cfg(test)]
    pub(in crate::runtime::docker) async fn connect_running(&self, container: &TaskId) {
        let link = LinkOptions { task: container.clone(), index: 7, owner: Owner::Container { gateway: false } };
        let deadline = tokio::time::Instant::now() + LINKS_TIMEOUT;
        let _joined = self.join_running(&link, deadline).await;
        std::future::pending::<()>().await;
    }

    /// Begins a start of a container that is no task, as its first `Join` does.
    #[cfg(test)]
    pub(in crate::runtime::docker) fn begin_of_user(&self, container: &TaskId, netns: PathBuf) {
        let (netns, joined_at) = (Some(netns), Some(Instant::now()));
        self.lock().insert(container.clone(), Start { netns, joined_at, of_container: true, ..Start::default() });
    }

    fn connecting(&self) -> MutexGuard<'_, BTreeMap<TaskId, u32>> {
        // Each change is complete before anything can panic.
        self.inner.connecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskId, Start>> {
        // Each change is complete before anything can panic.
        self.inner.starting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the container is one of those that run, and has this namespace.
fn runs_in(running: Option<&BTreeMap<TaskId, PathBuf>>, container: &TaskId, netns: &Path) -> bool {
    let known = running.and_then(|running| running.get(container));
    known.is_some_and(|known| is_netns(netns) && inode(known).is_some_and(|known| inode(netns) == Some(known)))
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.ino())
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
            interface_name: Some(InterfaceName { src_name: name.to_owned(), dst_prefix: "eth" }),
            gateway: None,
            gateway_v6: None,
            static_routes: vec![],
            disable_gateway_service: true,
        }
    }

    fn links(names: &[&str]) -> BTreeMap<u32, Joined> {
        (0..).zip(names).map(|(index, name)| (index, joined(name))).collect()
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
        let link = LinkOptions { task: task.clone(), index: 1, owner: Owner::Task };
        let netns = PathBuf::from("/proc/self/ns/net");
        let join = tokio::spawn({
            let starts = starts.clone();
            async move { starts.join(&link, netns).await }
        });
        starts.set_connected([(other, Some(links(&["x", "y"]))), (task.clone(), None)].into_iter());
        // The agent reports the links in each pass.
        let mut interval = tokio::time::interval(Duration::from_millis(1));
        while !join.is_finished() {
            interval.tick().await;
            starts.set_connected([(task.clone(), Some(links(&["a", "b"])))].into_iter());
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
        let link = LinkOptions { task: TaskId::from_random(1), index: 0, owner: Owner::Task };
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
        let link = LinkOptions { task: TaskId::from_random(1), index: 0, owner: Owner::Task };
        let error = starts.join(&link, "/no/netns".into()).await.expect_err("no links");
        assert!(error.contains("within 10ms"), "{error}");
        assert_eq!(starts.netns(&link.task), None);
    }

    #[tokio::test]
    async fn a_container_may_start_a_moment_before_a_pass_knows_it() {
        let starts = Starts::new(watch::Sender::default());
        starts.set_engine_answers(true);
        starts.set_running(BTreeMap::new());
        let link = LinkOptions { task: TaskId::from_random(1), index: 0, owner: Owner::Container { gateway: true } };
        let mut changed = starts.inner.changed.subscribe();
        let fails = async {
            changed.wait_for(|count| *count > 0).await.expect("the sender exists");
            starts.set_connected([].into_iter());
            assert!(starts.inner.connected.borrow().is_empty(), "the first pass may be an earlier one");
            starts.set_connected([].into_iter());
        };
        let (error, ()) = tokio::join!(starts.join(&link, "/no/netns".into()), fails);
        assert!(error.is_err_and(|error| error.contains("connect it again")));
    }

    #[test]
    fn a_list_that_is_older_than_a_start_does_not_end_it() {
        let starts = Starts::new(watch::Sender::default());
        let (id, netns) = (TaskId::from_random(1), PathBuf::from("/proc/self/ns/net"));
        let listed_at = Instant::now();
        starts.begin_of_user(&id, netns.clone());
        assert_eq!(starts.end_of_running(&id, listed_at), None);
        assert!(starts.netns(&id).is_some(), "the list showed the container before it was started again");
        assert_eq!(starts.end_of_running(&id, Instant::now() + Duration::from_millis(1)), Some(netns));
        assert_eq!(starts.netns(&id), None);
        let requested = starts.begin(&id);
        assert_eq!(starts.end_of_running(&id, Instant::now()), None);
        assert!(starts.netns(&id).is_some(), "it ends with the request");
        drop(requested);
    }

    #[tokio::test]
    async fn a_link_is_connected_in_place_if_the_start_of_its_container_ends_meanwhile() {
        let starts = Starts::with_limit(watch::Sender::default(), LINKS_TIMEOUT / 4);
        starts.set_engine_answers(true);
        starts.set_running(BTreeMap::new());
        let (id, netns) = (TaskId::from_random(1), PathBuf::from("/proc/self/ns/net"));
        let link = LinkOptions { task: id.clone(), index: 1, owner: Owner::Container { gateway: true } };
        let join = tokio::spawn({
            let (starts, netns) = (starts.clone(), netns.clone());
            async move { starts.join(&link, netns).await }
        });
        starts.wait_until_any_is_held().await;
        // A pass that finds the container running.
        let ended = starts.end_of_running(&id, Instant::now() + Duration::from_millis(1));
        starts.set_running([(id.clone(), ended.expect("the namespace"))].into());
        let in_place = Joined { interface_name: None, ..joined("") };
        starts.inner.in_place.send_replace([(id, [(1, in_place.clone())].into())].into());
        assert_eq!(join.await.expect("no panic"), Ok(in_place));
    }

    /// The agent makes a pass each time it is woken, with these links.
    async fn fails_without_its_link(running: bool) {
        let starts = Starts::new(watch::Sender::default());
        starts.set_engine_answers(true);
        let (id, netns) = (TaskId::from_random(1), PathBuf::from("/proc/self/ns/net"));
        starts.set_running(running.then(|| (id.clone(), netns.clone())).into_iter().collect());
        let link = LinkOptions { task: id.clone(), index: 5, owner: Owner::Container { gateway: true } };
        let mut changed = starts.inner.changed.subscribe();
        let passes = async {
            loop {
                changed.changed().await.expect("the sender exists");
                starts.inner.in_place.send_replace([(id.clone(), links(&["a"]))].into());
                starts.set_connected([(id.clone(), Some(links(&["a"])))].into_iter());
            }
        };
        let error = tokio::select! {
            joined = starts.join(&link, netns.clone()) => joined.expect_err("no such link"),
            () = passes => unreachable!("the loop has no end"),
            () = tokio::time::sleep(LINKS_TIMEOUT / 4) => panic!("the start waits for a link that is not planned"),
        };
        assert!(error.contains("connect it again"), "{error}");
    }

    #[tokio::test]
    async fn a_start_does_not_wait_for_a_link_that_the_plan_does_not_have() {
        fails_without_its_link(false).await;
        fails_without_its_link(true).await;
    }

    #[tokio::test]
    async fn a_running_container_is_connected_in_its_namespace() {
        let starts = Starts::new(watch::Sender::default());
        let id = TaskId::from_random(1);
        let netns = PathBuf::from("/proc/self/ns/net");
        starts.set_engine_answers(true);
        let link = LinkOptions { task: id.clone(), index: 3, owner: Owner::Container { gateway: false } };
        let join = tokio::spawn({
            let (starts, netns) = (starts.clone(), netns.clone());
            async move { starts.join(&link, netns).await }
        });
        starts.set_running([(id.clone(), netns)].into());
        let in_place = Joined { interface_name: None, ..joined("") };
        starts.inner.in_place.send_replace([(id.clone(), [(3, in_place.clone())].into())].into());
        assert_eq!(join.await.expect("no panic"), Ok(in_place));
        assert_eq!(starts.netns(&id), None, "it is not being started");
    }

    #[tokio::test]
    async fn an_engine_that_starts_does_not_wait_for_the_agent_which_waits_for_it() {
        let starts = Starts::new(watch::Sender::default());
        let link = LinkOptions { task: TaskId::from_random(1), index: 0, owner: Owner::Container { gateway: true } };
        let refused = starts.join(&link, "/no/netns".into()).await;
        let error = refused.expect_err("the engine does not answer");
        assert!(error.contains("weft starts this container again if it has a restart policy"), "{error}");
        assert!(error.contains("try again"), "{error}");
        assert_eq!(starts.containers(), []);
    }
}
