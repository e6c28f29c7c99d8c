//! What is asked of the engine for a task, and what the engine's answers mean: pure translation between the plan's words
//! and the engine's.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, HostConfig, RestartPolicy, RestartPolicyNameEnum,
};
use weft_model::{NodeName, TaskId, plan::TaskPlan};

use super::{PAUSE_COMMAND, image};
use crate::runtime::{Exit, Phase, identity};

/// The node that a container belongs to.
pub(super) const NODE_LABEL: &str = "weft.node";
/// The task that it belongs to.
pub(super) const TASK_LABEL: &str = "weft.task";
/// Which of the task's two it is.
const PART_LABEL: &str = "weft.part";

/// Which of a task's containers. In the order in which they are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Task,
    Sandbox,
}

impl Part {
    fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Sandbox => "sandbox",
        }
    }
}

/// Whose a container is; `None` for one that is not ours.
pub(super) fn identify(labels: Option<&HashMap<String, String>>) -> Option<(TaskId, Part)> {
    let labels = labels?;
    let task = labels.get(TASK_LABEL)?.parse().ok()?;
    let part =
        [Part::Task, Part::Sandbox].into_iter().find(|p| labels.get(PART_LABEL).is_some_and(|l| l == p.as_str()))?;
    Some((task, part))
}

pub(super) fn sandbox_name(task: &TaskPlan) -> String {
    format!("{}.sandbox", task.name)
}

/// A container that does nothing, in a network namespace with nothing in it.
pub(super) fn sandbox(task: &TaskPlan, node: &NodeName) -> ContainerCreateBody {
    let hostname = identity::hostname(task);
    let addresses = task.attachments.first().map(|first| [first.addr.v4.to_string(), first.addr.v6.to_string()]);
    let hosts = addresses.into_iter().flatten().map(|addr| format!("{hostname}:{addr}")).collect();
    ContainerCreateBody {
        image: Some(image::PAUSE.to_owned()),
        entrypoint: Some(vec![image::PROGRAM.to_owned(), PAUSE_COMMAND.to_owned()]),
        hostname: Some(hostname),
        labels: Some(own_labels(task, node, Part::Sandbox).into()),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            dns: Some(vec![identity::RESOLVER.to_string()]),
            dns_options: Some(vec!["ndots:0".to_owned()]),
            dns_search: Some(vec![".".to_owned()]),
            extra_hosts: Some(hosts),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            // A namespace without networks gets none of IPv6 from the engine; our links have it.
            sysctls: Some(
                ["all", "default", "lo"]
                    .map(|link| (format!("net.ipv6.conf.{link}.disable_ipv6"), "0".to_owned()))
                    .into(),
            ),
            restart_policy: Some(never()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The task's own container, in the namespace of `sandbox`.
pub(super) fn task(task: &TaskPlan, node: &NodeName, sandbox: &str) -> ContainerCreateBody {
    let container = &task.container;
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let list = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    let limit = |n: u64| Some(i64::try_from(n).unwrap_or(i64::MAX)).filter(|n| *n > 0);
    let env = identity::environment(task, node).into_iter().chain(container.env.iter().cloned()).collect();
    // The user's first: the cluster's win over them, and ours over all.
    let labels = container.labels.clone().into_iter().chain(task.labels.clone());
    let labels = labels.chain(own_labels(task, node, Part::Task)).collect();
    ContainerCreateBody {
        image: Some(container.image.clone()),
        entrypoint: list(&container.command),
        cmd: list(&container.args),
        env: Some(env),
        working_dir: given(&container.dir),
        user: given(&container.user),
        labels: Some(labels),
        stop_signal: given(&container.stop_signal),
        // The engine counts whole seconds.
        stop_timeout: Some(i64::try_from(container.stop_grace_ms.div_ceil(1000)).unwrap_or(i64::MAX)),
        host_config: Some(HostConfig {
            network_mode: Some(format!("container:{sandbox}")),
            readonly_rootfs: Some(container.read_only),
            init: container.init,
            nano_cpus: limit(task.resources.limit_nano_cpus),
            memory: limit(task.resources.limit_memory_bytes),
            memory_reservation: limit(task.resources.reserve_memory_bytes),
            pids_limit: limit(task.resources.limit_pids),
            restart_policy: Some(never()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Restarting is the orchestrator's to decide.
fn never() -> RestartPolicy {
    RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }
}

/// What a new daemon knows a container by.
fn own_labels(task: &TaskPlan, node: &NodeName, part: Part) -> [(String, String); 3] {
    [
        (NODE_LABEL.to_owned(), node.to_string()),
        (TASK_LABEL.to_owned(), task.id.to_string()),
        (PART_LABEL.to_owned(), part.as_str().to_owned()),
    ]
}

pub(super) fn is_running(container: &ContainerInspectResponse) -> bool {
    container.state.as_ref().is_some_and(|state| state.running == Some(true))
}

/// How long it may take to end after its stop signal.
pub(super) fn grace(container: &ContainerInspectResponse) -> Duration {
    let seconds = container.config.as_ref().and_then(|config| config.stop_timeout).unwrap_or_default();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// Where its network namespace can be opened, for as long as its process lives.
pub(super) fn netns(container: &ContainerInspectResponse) -> Option<PathBuf> {
    let pid = pid(container.state.as_ref()?)?;
    Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
}

fn pid(state: &ContainerState) -> Option<u32> {
    u32::try_from(state.pid?).ok().filter(|pid| *pid > 0)
}

/// Where a task stands, by its containers; `None` where neither tells of one.
pub(super) fn phase(
    sandbox: Option<&ContainerInspectResponse>,
    own: Option<&ContainerInspectResponse>,
) -> Option<Phase> {
    let Some((own, state)) = own.and_then(|own| Some((own, own.state.as_ref()?))) else {
        // Without its process a sandbox holds no namespace: to be prepared again, or removed.
        return sandbox.filter(|sandbox| is_running(sandbox)).map(|_| Phase::Prepared);
    };
    let error = state.error.clone().filter(|error| !error.is_empty());
    let exit_code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or_default();
    // One that could not be started has not finished either.
    let created_ms = || u64::try_from(own.created?.unix_timestamp_nanos() / 1_000_000).ok();
    let at_ms = time_ms(state.finished_at.as_deref()).or_else(created_ms).unwrap_or_default();
    let ended = |error| Phase::Exited(Exit { code: exit_code, at_ms, error });
    Some(match (state.status, pid(state)) {
        (Some(ContainerStateStatusEnum::CREATED), _) if error.is_none() && exit_code == 0 => Phase::Prepared,
        (Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD), _) => {
            ended(error.or_else(|| (state.oom_killed == Some(true)).then(|| "out of memory".to_owned())))
        }
        (Some(ContainerStateStatusEnum::CREATED), _) => ended(error),
        (_, Some(pid)) => Phase::Running { pid, since_ms: time_ms(state.started_at.as_deref()).unwrap_or_default() },
        (_, None) => ended(error),
    })
}

/// The tasks of which there is only a sandbox that was never started, or has ended: [`phase`] shows none of them.
pub(super) fn leftovers(containers: &[ContainerSummary]) -> BTreeSet<TaskId> {
    use ContainerSummaryStateEnum::{CREATED, DEAD, EXITED};
    let ours: Vec<_> = containers.iter().filter_map(|c| Some((identify(c.labels.as_ref())?, c.state))).collect();
    let ended = |state: &Option<_>| matches!(state, Some(CREATED | EXITED | DEAD));
    let kept: BTreeSet<&TaskId> =
        ours.iter().filter(|((_, part), state)| *part == Part::Task || !ended(state)).map(|((id, _), _)| id).collect();
    ours.iter().map(|((id, _), _)| id).filter(|id| !kept.contains(id)).cloned().collect()
}

/// Unix milliseconds of the engine's time; `None` for its zero.
fn time_ms(text: Option<&str>) -> Option<u64> {
    let time: jiff::Timestamp = text?.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fixture;

    fn inspected(status: ContainerStateStatusEnum, pid: i64, exit_code: i64, error: &str) -> ContainerInspectResponse {
        ContainerInspectResponse {
            state: Some(ContainerState {
                running: Some(status == ContainerStateStatusEnum::RUNNING),
                status: Some(status),
                pid: Some(pid),
                exit_code: Some(exit_code),
                error: Some(error.to_owned()),
                started_at: Some("2026-01-02T03:04:05.678901234Z".to_owned()),
                finished_at: Some("2026-01-02T03:04:06Z".to_owned()),
                ..ContainerState::default()
            }),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn a_phase_follows_from_both_containers() {
        use ContainerStateStatusEnum::{CREATED, EXITED, RUNNING};
        let running = inspected(RUNNING, 7, 0, "");
        let exit = |code, error: Option<&str>| {
            Some(Phase::Exited(Exit { code, at_ms: 1_767_323_046_000, error: error.map(str::to_owned) }))
        };
        assert_eq!(phase(Some(&running), None), Some(Phase::Prepared));
        assert_eq!(phase(Some(&inspected(EXITED, 0, 137, "")), None), None);
        assert_eq!(phase(Some(&running), Some(&inspected(CREATED, 0, 0, ""))), Some(Phase::Prepared));
        let started = Phase::Running { pid: 7, since_ms: 1_767_323_045_678 };
        assert_eq!(phase(Some(&running), Some(&running)), Some(started));
        assert_eq!(phase(Some(&running), Some(&inspected(EXITED, 0, 143, ""))), exit(143, None));
        let refused = inspected(CREATED, 0, 127, "no such program");
        assert_eq!(phase(Some(&running), Some(&refused)), exit(127, Some("no such program")));
    }

    #[test]
    fn a_sandbox_that_holds_nothing_is_left_over() {
        use ContainerSummaryStateEnum::{CREATED, EXITED, RUNNING};
        let id = TaskId::from_random(7);
        let container = |part: Part, state| ContainerSummary {
            labels: Some(
                [(TASK_LABEL, id.as_str()), (PART_LABEL, part.as_str())]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            state: Some(state),
            ..ContainerSummary::default()
        };
        let check = |containers: &[ContainerSummary], left: bool| {
            assert_eq!(leftovers(containers).contains(&id), left, "{containers:?}");
        };
        check(&[container(Part::Sandbox, CREATED)], true);
        check(&[container(Part::Sandbox, EXITED)], true);
        check(&[container(Part::Sandbox, RUNNING)], false);
        // An exit that is still to be reported.
        check(&[container(Part::Sandbox, EXITED), container(Part::Task, EXITED)], false);
        check(&[container(Part::Task, CREATED)], false);
        let stranger = ContainerSummary { state: Some(EXITED), ..ContainerSummary::default() };
        check(&[stranger], false);
    }

    #[test]
    fn the_engines_zero_is_no_time() {
        assert_eq!(time_ms(Some("0001-01-01T00:00:00Z")), None);
        assert_eq!(time_ms(None), None);
    }

    #[test]
    fn a_tasks_container_has_the_users_the_clusters_and_our_labels() {
        let plan = fixture::task(|container| {
            container.labels = [("team", "web"), ("com.docker.swarm.node.id", "forged"), ("weft.node", "forged")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        });
        let node: NodeName = "n1".parse().unwrap();
        let labels = task(&plan, &node, "sandbox").labels.unwrap();
        let swarms = &plan.labels["com.docker.swarm.node.id"];
        assert_eq!((&*labels["team"], &labels["com.docker.swarm.node.id"]), ("web", swarms));
        assert_eq!(labels[NODE_LABEL], "n1");
        assert_eq!(identify(Some(&labels)), Some((plan.id.clone(), Part::Task)));
        let sandbox = sandbox(&plan, &node).labels.unwrap();
        assert_eq!(identify(Some(&sandbox)), Some((plan.id.clone(), Part::Sandbox)));
        assert!(sandbox.keys().all(|key| key.starts_with("weft.")), "a sandbox is no task: {sandbox:?}");
    }

    #[test]
    fn only_our_labels_make_a_container_ours() {
        let id = TaskId::from_random(7);
        let labels = |part: &str| {
            HashMap::from([(TASK_LABEL.to_owned(), id.to_string()), (PART_LABEL.to_owned(), part.to_owned())])
        };
        assert_eq!(identify(Some(&labels("sandbox"))), Some((id.clone(), Part::Sandbox)));
        assert_eq!(identify(Some(&labels("task"))), Some((id.clone(), Part::Task)));
        assert_eq!(identify(Some(&labels("other"))), None);
        assert_eq!(identify(None), None);
    }
}
