//! Translates a task's plan into the request to create its container, and the inspected container
//! into the task's phase. Pure. [`super::engine`] and [`super::DockerRuntime`] call it.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::Duration,
};

use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, EndpointSettings, HostConfig, Mount, MountType, NetworkingConfig, PluginsInfo,
    RestartPolicy, RestartPolicyNameEnum, SystemInfo,
};
use weft_model::{
    NodeName, TASK_LABEL, TaskId,
    plan::TaskPlan,
    report::EnginePlugin,
    spec::{DnsConfig, NodeNetwork, SearchDomain},
};

use crate::runtime::{EngineFacts, Exit, Phase, files::FileMount, identity};

/// Label with the node that a container belongs to.
pub(super) const NODE_LABEL: &str = "weft.node";
/// Label with the [`Part`] that a container is.
const PART_LABEL: &str = "weft.part";

/// Earlier releases gave a task two containers: its own one, and a sandbox with the network
/// namespace that it shared. Such tasks are adopted until they end. The order of the variants is
/// the order of removal.
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

/// Why weft cannot use an engine. `None` if it can: it needs network drivers of other programs, and
/// the network namespaces of the machine.
pub(super) fn unfit(info: &SystemInfo) -> Option<String> {
    let is_rootless = info.security_options.iter().flatten().any(|option| option.contains("name=rootless"));
    if is_rootless {
        return Some(
            "it is rootless, so that its containers cannot have links of weft; run dockerd as root".to_owned(),
        );
    }
    // Docker lists its built-in drivers at least; Podman's API lists none of libnetwork's.
    let drivers = info.plugins.as_ref().and_then(|plugins| plugins.network.as_ref());
    let has_drivers = drivers.is_some_and(|drivers| drivers.iter().any(|driver| driver == "overlay"));
    (!has_drivers).then(|| {
        "it does not take network drivers of other programs as Docker does (Podman's API does not); use dockerd"
            .to_owned()
    })
}

/// The labels that were given to the engine (`dockerd --label KEY=VALUE`), and its plugins.
pub(super) fn facts(info: &SystemInfo) -> EngineFacts {
    let labels = info.labels.iter().flatten().map(|label| label.split_once('=').unwrap_or((label, "")));
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let none = PluginsInfo::default();
    let known = info.plugins.as_ref().unwrap_or(&none);
    let kinds = [
        ("Authorization", &known.authorization),
        ("Log", &known.log),
        ("Network", &known.network),
        ("Volume", &known.volume),
    ];
    let plugins = kinds.into_iter().flat_map(|(kind, names)| {
        names.iter().flatten().map(move |name| EnginePlugin { kind: kind.to_owned(), name: name.clone() })
    });
    EngineFacts { labels, plugins: plugins.collect() }
}

/// Reads a container's labels. `None` if weft did not create it.
pub(super) fn identify(labels: Option<&HashMap<String, String>>) -> Option<(TaskId, Part)> {
    let labels = labels?;
    let task = labels.get(TASK_LABEL)?.parse().ok()?;
    let part =
        [Part::Task, Part::Sandbox].into_iter().find(|p| labels.get(PART_LABEL).is_some_and(|l| l == p.as_str()))?;
    Some((task, part))
}

/// The container of a task, on these of its networks and with these files. `machine_search` are
/// the search domains of the machine.
pub(super) fn task(
    task: &TaskPlan,
    node: &NodeName,
    machine_search: &[String],
    networks: &[(String, EndpointSettings)],
    files: &[FileMount],
) -> ContainerCreateBody {
    let container = &task.container;
    let non_empty = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let list = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    let limit = |n: u64| Some(i64::try_from(n).unwrap_or(i64::MAX)).filter(|n| *n > 0);
    let env = identity::with_user_variables(identity::environment(task, node).into(), task, true);
    // A later label replaces an earlier one of the same name. So the cluster's labels come after
    // the user's, and weft's own come last.
    let labels = container.labels.clone().into_iter().chain(task.labels.clone());
    let labels = labels.chain(own_labels(task, node)).collect();
    let lookup = match task.node_network {
        Some(_) => Lookup::of_machine(&container.dns),
        None => Lookup::of_cluster(task, machine_search),
    };
    // The engine adds its own name to the hosts file. Version 28 writes the address as one of IPv6,
    // in which musl does not find it.
    let hosts = task.hostname().map_or_else(|| identity::chosen_hosts(task).collect(), |_| identity::hosts(task));
    let hosts = if task.node_network.is_some() { identity::chosen_hosts(task).collect() } else { hosts };
    let hosts = hosts.into_iter().map(|(name, addr)| format!("{name}:{addr}")).collect();
    ContainerCreateBody {
        image: Some(container.image.clone()),
        // The default of the engine is a prefix of the container's id.
        hostname: task.hostname().filter(|name| !name.is_empty()).map(str::to_owned),
        entrypoint: list(&container.command),
        cmd: list(&container.args),
        env: Some(env),
        working_dir: non_empty(&container.dir),
        user: non_empty(&container.user),
        labels: Some(labels),
        stop_signal: non_empty(&container.stop_signal),
        // The engine takes whole seconds.
        stop_timeout: Some(i64::try_from(container.stop_grace_ms.div_ceil(1000)).unwrap_or(i64::MAX)),
        host_config: Some(HostConfig {
            network_mode: Some(network_mode(task.node_network, networks)),
            dns: lookup.servers,
            dns_options: lookup.options,
            dns_search: lookup.search,
            extra_hosts: Some(hosts),
            readonly_rootfs: Some(container.read_only),
            init: container.init,
            nano_cpus: limit(task.resources.limit_nano_cpus),
            memory: limit(task.resources.limit_memory_bytes),
            memory_reservation: limit(task.resources.reserve_memory_bytes),
            pids_limit: limit(task.resources.limit_pids),
            mounts: list_mounts(files),
            restart_policy: Some(never_restart()),
            ..HostConfig::default()
        }),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(networks.iter().cloned().collect()) }),
        ..ContainerCreateBody::default()
    }
}

/// As read-only bind mounts. `None` if there are no files.
fn list_mounts(files: &[FileMount]) -> Option<Vec<Mount>> {
    let mount = |file: &FileMount| Mount {
        target: Some(file.target.clone()),
        source: Some(file.source.display().to_string()),
        typ: Some(MountType::BIND),
        read_only: Some(true),
        ..Mount::default()
    };
    (!files.is_empty()).then(|| files.iter().map(mount).collect())
}

fn network_mode(node_network: Option<NodeNetwork>, networks: &[(String, EndpointSettings)]) -> String {
    match (node_network, networks.first()) {
        (Some(network), _) => network.as_str().to_owned(),
        (None, Some((id, _))) => id.clone(),
        (None, None) => "none".to_owned(),
    }
}

/// The resolv.conf of a container. `None` or empty: as on the machine.
struct Lookup {
    servers: Option<Vec<String>>,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

impl Lookup {
    /// A task on networks of the cluster.
    fn of_cluster(task: &TaskPlan, machine_search: &[String]) -> Self {
        let search = identity::search_domains(task, machine_search);
        // The engine takes an empty list as those of the machine at this moment, and the root as
        // none.
        let search = if search.is_empty() { vec![SearchDomain::ROOT.to_owned()] } else { search };
        Self {
            // resolv.conf has the engine's own resolver, from which weft's programs lead to this
            // one.
            servers: Some(vec![identity::CONTAINER_RESOLVER.to_string()]),
            search: Some(search),
            options: Some(identity::resolver_options(task)),
        }
    }

    /// A task on a network of its node, where weft has no resolver.
    fn of_machine(chosen: &DnsConfig) -> Self {
        let texts = |texts: Vec<String>| Some(texts).filter(|texts| !texts.is_empty());
        Self {
            servers: texts(chosen.name_servers.iter().map(ToString::to_string).collect()),
            search: texts(chosen.search.iter().map(ToString::to_string).collect()),
            options: texts(chosen.options.iter().map(ToString::to_string).collect()),
        }
    }
}

/// The engine must not restart containers: the orchestrator decides that.
fn never_restart() -> RestartPolicy {
    RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }
}

/// The labels by which a new daemon finds a container.
fn own_labels(task: &TaskPlan, node: &NodeName) -> [(String, String); 3] {
    [
        (NODE_LABEL.to_owned(), node.to_string()),
        (TASK_LABEL.to_owned(), task.id.to_string()),
        (PART_LABEL.to_owned(), Part::Task.as_str().to_owned()),
    ]
}

pub(super) fn is_running(container: &ContainerInspectResponse) -> bool {
    container.state.as_ref().is_some_and(|state| state.running == Some(true))
}

/// The time between the stop signal and SIGKILL.
pub(super) fn grace_period(container: &ContainerInspectResponse) -> Duration {
    let seconds = container.config.as_ref().and_then(|config| config.stop_timeout).unwrap_or_default();
    Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

/// Path of the container's network namespace. It exists as long as the container's process.
pub(super) fn netns(container: &ContainerInspectResponse) -> Option<PathBuf> {
    let pid = pid(container.state.as_ref()?)?;
    Some(PathBuf::from(format!("/proc/{pid}/ns/net")))
}

fn pid(state: &ContainerState) -> Option<u32> {
    u32::try_from(state.pid?).ok().filter(|pid| *pid > 0)
}

/// Computes the phase of a task from its two containers. `None` if neither container exists, or if
/// only a sandbox exists and does not run.
pub(super) fn phase(
    sandbox: Option<&ContainerInspectResponse>,
    own: Option<&ContainerInspectResponse>,
) -> Option<Phase> {
    let Some((own, state)) = own.and_then(|own| Some((own, own.state.as_ref()?))) else {
        // A sandbox that does not run has no namespace. The agent must prepare the task again, or
        // remove it.
        return sandbox.filter(|sandbox| is_running(sandbox)).map(|_| Phase::Prepared);
    };
    let error = state.error.clone().filter(|error| !error.is_empty());
    let exit_code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or_default();
    // A container that could not be started has no end time.
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

/// The tasks that have only a sandbox, which was never started or has ended. [`phase`] is `None`
/// for these tasks.
pub(super) fn dead_sandboxes(containers: &[ContainerSummary]) -> BTreeSet<TaskId> {
    use ContainerSummaryStateEnum::{CREATED, DEAD, EXITED};
    let ours: Vec<_> = containers.iter().filter_map(|c| Some((identify(c.labels.as_ref())?, c.state))).collect();
    let ended = |state: &Option<_>| matches!(state, Some(CREATED | EXITED | DEAD));
    let alive: BTreeSet<&TaskId> =
        ours.iter().filter(|((_, part), state)| *part == Part::Task || !ended(state)).map(|((id, _), _)| id).collect();
    ours.iter().map(|((id, _), _)| id).filter(|id| !alive.contains(id)).cloned().collect()
}

/// Parses the engine's time to Unix milliseconds. `None` for the engine's zero time, year 1.
fn time_ms(text: Option<&str>) -> Option<u64> {
    let time: jiff::Timestamp = text?.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fixture;

    #[test]
    fn labels_of_the_engine_are_read_as_keys_and_values_and_its_plugins_with_their_kinds() {
        let labels = ["zone=a", "rack=x=y", "empty=", "bare"].map(str::to_owned).to_vec();
        let names = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        let plugins =
            PluginsInfo { volume: names(&["local"]), network: names(&["overlay", "host"]), ..Default::default() };
        let info = SystemInfo { labels: Some(labels), plugins: Some(plugins), ..SystemInfo::default() };
        let want = [("bare", ""), ("empty", ""), ("rack", "x=y"), ("zone", "a")];
        let found = facts(&info);
        assert_eq!(found.labels, want.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        let plugins: Vec<_> = found.plugins.iter().map(|plugin| (plugin.kind.as_str(), plugin.name.as_str())).collect();
        assert_eq!(plugins, [("Network", "host"), ("Network", "overlay"), ("Volume", "local")]);
        assert_eq!(facts(&SystemInfo::default()), EngineFacts::default());
    }

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
    fn computes_the_phase_from_both_containers() {
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
    fn finds_sandboxes_without_a_namespace_and_without_a_task() {
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
        let check = |containers: &[ContainerSummary], dead: bool| {
            assert_eq!(dead_sandboxes(containers).contains(&id), dead, "{containers:?}");
        };
        check(&[container(Part::Sandbox, CREATED)], true);
        check(&[container(Part::Sandbox, EXITED)], true);
        check(&[container(Part::Sandbox, RUNNING)], false);
        // The exit of the task has to be reported first.
        check(&[container(Part::Sandbox, EXITED), container(Part::Task, EXITED)], false);
        check(&[container(Part::Task, CREATED)], false);
        let unlabelled = ContainerSummary { state: Some(EXITED), ..ContainerSummary::default() };
        check(&[unlabelled], false);
    }

    #[test]
    fn refuses_engines_that_cannot_have_the_network_driver() {
        let engine = |drivers: Option<&[&str]>, options: &[&str]| SystemInfo {
            plugins: Some(PluginsInfo {
                network: drivers.map(|drivers| drivers.iter().map(|driver| (*driver).to_owned()).collect()),
                ..PluginsInfo::default()
            }),
            security_options: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            ..SystemInfo::default()
        };
        let docker: &[&str] = &["bridge", "host", "ipvlan", "macvlan", "null", "overlay"];
        let podman: &[&str] = &["bridge", "macvlan", "ipvlan"];
        let reason = |info: &SystemInfo| unfit(info).unwrap_or_default();
        assert_eq!(unfit(&engine(Some(docker), &["name=seccomp,profile=builtin"])), None);
        let rootless = engine(Some(docker), &["name=seccomp,profile=builtin", "name=rootless"]);
        assert!(reason(&rootless).contains("run dockerd as root"), "{}", reason(&rootless));
        for other in [engine(Some(podman), &[]), engine(None, &[]), SystemInfo::default()] {
            assert!(reason(&other).contains("Podman's API does not"), "{}", reason(&other));
        }
    }

    #[test]
    fn parses_the_engines_zero_time_as_none() {
        assert_eq!(time_ms(Some("0001-01-01T00:00:00Z")), None);
        assert_eq!(time_ms(None), None);
    }

    #[test]
    fn later_labels_replace_earlier_ones_on_a_tasks_container() {
        let plan = fixture::task(|container| {
            container.labels = [("team", "web"), ("com.docker.swarm.node.id", "forged"), ("weft.node", "forged")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        });
        let node: NodeName = "n1".parse().expect("a valid node name");
        let labels = task(&plan, &node, &[], &[], &[]).labels.expect("the container has labels");
        let from_cluster = &plan.labels["com.docker.swarm.node.id"];
        assert_eq!((&*labels["team"], &labels["com.docker.swarm.node.id"]), ("web", from_cluster));
        assert_eq!(labels[NODE_LABEL], "n1");
        assert_eq!(identify(Some(&labels)), Some((plan.id.clone(), Part::Task)));
    }

    #[test]
    fn a_container_has_the_settings_of_names_and_networks() {
        let plan = fixture::task(|container| {
            container.dns.options = vec!["timeout:1".parse().expect("an option")];
            container.hosts = vec!["2001:db8::7 db".parse().expect("an entry")];
        });
        let node: NodeName = "n1".parse().expect("a valid node name");
        let networks = [("one".to_owned(), EndpointSettings::default())];
        let body = |machine_search: &[String]| task(&plan, &node, machine_search, &networks, &[]);
        let endpoints = body(&[]).networking_config.and_then(|config| config.endpoints_config);
        assert!(endpoints.is_some_and(|endpoints| endpoints.contains_key("one")));
        let config = |search: &[String]| body(search).host_config.expect("a host configuration");
        let plain = config(&[]);
        assert_eq!(plain.network_mode.as_deref(), Some("one"));
        assert_eq!(plain.dns, Some(vec!["127.0.0.12".to_owned()]));
        assert_eq!(plain.dns_options, Some(vec!["ndots:0".to_owned(), "timeout:1".to_owned()]));
        assert_eq!(plain.extra_hosts, Some(vec!["db:2001:db8::7".to_owned()]));
        assert_eq!(plain.dns_search, Some(vec![".".to_owned()]));
        assert_eq!(config(&["a.test".to_owned()]).dns_search, Some(vec!["a.test".to_owned()]));
    }

    #[test]
    fn a_container_on_a_network_of_the_node_has_its_settings() {
        let node: NodeName = "n1".parse().expect("a valid node name");
        let config = |network: NodeNetwork, change: &dyn Fn(&mut weft_model::spec::ContainerSpec)| {
            let mut plan = fixture::task(change);
            plan.node_network = Some(network);
            let body = task(&plan, &node, &["corp.test".to_owned()], &[], &[]);
            let endpoints = body.networking_config.and_then(|config| config.endpoints_config);
            assert!(endpoints.is_some_and(|endpoints| endpoints.is_empty()));
            body.host_config.expect("a host configuration")
        };
        for (network, mode) in [(NodeNetwork::Host, "host"), (NodeNetwork::Bridge, "bridge")] {
            let plain = config(network, &|_| ());
            assert_eq!(plain.network_mode.as_deref(), Some(mode));
            assert_eq!((plain.dns, plain.dns_search, plain.dns_options), (None, None, None));
        }
        let chosen = config(NodeNetwork::Host, &|container| {
            container.dns.name_servers = vec![[192, 0, 2, 53].into()];
            container.dns.search = vec!["a.test".parse().expect("a search domain")];
            container.hosts = vec!["192.0.2.7 db".parse().expect("an entry")];
        });
        assert_eq!(chosen.dns, Some(vec!["192.0.2.53".to_owned()]));
        assert_eq!(chosen.dns_search, Some(vec!["a.test".to_owned()]));
        assert_eq!(chosen.extra_hosts, Some(vec!["db:192.0.2.7".to_owned()]));
    }

    #[test]
    fn files_are_mounted_read_only() {
        let (plan, node) = (fixture::task(|_| ()), "n1".parse().expect("a valid node name"));
        let mounts = |files: &[FileMount]| task(&plan, &node, &[], &[], files).host_config.and_then(|host| host.mounts);
        assert_eq!(mounts(&[]), None);
        let file = FileMount { source: "/run/weft/n1/files/x/0".into(), target: "/run/secrets/key".to_owned() };
        let mounts = mounts(&[file]).expect("mounts");
        assert_eq!((mounts[0].typ, mounts[0].read_only), (Some(MountType::BIND), Some(true)));
        assert_eq!(mounts[0].source.as_deref(), Some("/run/weft/n1/files/x/0"));
        assert_eq!(mounts[0].target.as_deref(), Some("/run/secrets/key"));
    }

    #[test]
    fn identifies_a_container_by_its_labels() {
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
