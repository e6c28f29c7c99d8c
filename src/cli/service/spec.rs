//! The flags of `service create` and `service update`, and the spec that they make or change.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use clap::{ArgAction, Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::{
    super::{
        client::{Client, text},
        flags::{bytes, duration_ns, environment, nano_cpus, pairs, ratio},
    },
    network_names,
    publish::{self, Publish},
};

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The service's name; a random one where absent
    #[arg(long)]
    name: Option<String>,
    /// replicated or global
    #[arg(long, value_enum, default_value_t = Mode::Replicated)]
    mode: Mode,
    /// Publish a port on every node: PUBLISHED:TARGET[/PROTOCOL] or published=…,target=…
    #[arg(short, long, value_parser = publish::parse)]
    publish: Vec<Publish>,
    /// A network to be on: NAME or name=NAME,alias=ALIAS; the first becomes eth0
    #[arg(long)]
    network: Vec<String>,
    /// How the name resolves: vip or dnsrr
    #[arg(long, value_enum)]
    endpoint_mode: Option<EndpointMode>,
    /// KEY=VALUE of the service
    #[arg(short, long)]
    label: Vec<String>,
    /// KEY=VALUE of its containers
    #[arg(long)]
    container_label: Vec<String>,
    /// KEY=VALUE of the tasks' environment
    #[arg(short, long)]
    env: Vec<String>,
    /// Where tasks may run, such as node.labels.storage==ssd
    #[arg(long)]
    constraint: Vec<String>,
    /// How tasks are spread, such as spread=node.labels.zone
    #[arg(long)]
    placement_pref: Vec<String>,
    #[command(flatten)]
    common: Common,
    /// Do not wait until the tasks run
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
    pub detach: bool,
    /// Only the id
    #[arg(short, long)]
    pub quiet: bool,
    image: String,
    /// Command of the tasks, in place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Update {
    #[arg(long)]
    image: Option<String>,
    /// The tasks' command, as one string split at spaces
    #[arg(long)]
    args: Option<String>,
    /// Replace the tasks though nothing changed
    #[arg(long)]
    force: bool,
    /// Return to the spec before the last update
    #[arg(long, conflicts_with_all = ["image", "args", "force"])]
    rollback: bool,
    #[arg(long, value_parser = publish::parse)]
    publish_add: Vec<Publish>,
    /// A published port to give up, by its target: PORT[/PROTOCOL]
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<String>,
    #[arg(long)]
    network_add: Vec<String>,
    #[arg(long)]
    network_rm: Vec<String>,
    #[arg(long)]
    label_add: Vec<String>,
    #[arg(long)]
    label_rm: Vec<String>,
    #[arg(long)]
    container_label_add: Vec<String>,
    #[arg(long)]
    container_label_rm: Vec<String>,
    #[arg(long)]
    env_add: Vec<String>,
    #[arg(long)]
    env_rm: Vec<String>,
    #[arg(long)]
    constraint_add: Vec<String>,
    #[arg(long)]
    constraint_rm: Vec<String>,
    #[arg(long)]
    placement_pref_add: Vec<String>,
    #[arg(long)]
    placement_pref_rm: Vec<String>,
    #[arg(long, value_enum)]
    endpoint_mode: Option<EndpointMode>,
    #[command(flatten)]
    common: Common,
    /// Do not wait until the update is through
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
    pub detach: bool,
    #[arg(short, long)]
    pub quiet: bool,
    pub service: String,
}

/// Flags that mean the same when a service is made and when it is changed.
#[derive(Debug, Args)]
struct Common {
    /// How many tasks
    #[arg(long)]
    replicas: Option<u64>,
    /// Most tasks on one node; 0: no bound
    #[arg(long)]
    replicas_max_per_node: Option<u64>,
    #[arg(long)]
    hostname: Option<String>,
    /// USER or USER:GROUP
    #[arg(short, long)]
    user: Option<String>,
    #[arg(short, long)]
    workdir: Option<String>,
    #[arg(long)]
    read_only: Option<bool>,
    #[arg(long, value_parser = nano_cpus)]
    limit_cpu: Option<i64>,
    #[arg(long, value_parser = bytes)]
    limit_memory: Option<i64>,
    #[arg(long)]
    limit_pids: Option<u64>,
    #[arg(long, value_parser = nano_cpus)]
    reserve_cpu: Option<i64>,
    #[arg(long, value_parser = bytes)]
    reserve_memory: Option<i64>,
    #[arg(long, value_enum)]
    restart_condition: Option<RestartCondition>,
    #[arg(long, value_parser = duration_ns)]
    restart_delay: Option<i64>,
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    #[arg(long, value_parser = duration_ns)]
    restart_window: Option<i64>,
    #[arg(long, value_parser = duration_ns)]
    stop_grace_period: Option<i64>,
    #[arg(long)]
    stop_signal: Option<String>,
    #[arg(long)]
    update_parallelism: Option<u64>,
    #[arg(long, value_parser = duration_ns)]
    update_delay: Option<i64>,
    #[arg(long, value_parser = duration_ns)]
    update_monitor: Option<i64>,
    #[arg(long, value_parser = ratio)]
    update_max_failure_ratio: Option<f64>,
    #[arg(long, value_parser = ["pause", "continue", "rollback"])]
    update_failure_action: Option<String>,
    #[arg(long, value_parser = ["start-first", "stop-first"])]
    update_order: Option<String>,
    #[arg(long)]
    rollback_parallelism: Option<u64>,
    #[arg(long, value_parser = duration_ns)]
    rollback_delay: Option<i64>,
    #[arg(long, value_parser = duration_ns)]
    rollback_monitor: Option<i64>,
    #[arg(long, value_parser = ratio)]
    rollback_max_failure_ratio: Option<f64>,
    #[arg(long, value_parser = ["pause", "continue"])]
    rollback_failure_action: Option<String>,
    #[arg(long, value_parser = ["start-first", "stop-first"])]
    rollback_order: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Replicated,
    Global,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EndpointMode {
    Vip,
    Dnsrr,
}

impl EndpointMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RestartCondition {
    None,
    OnFailure,
    Any,
}

impl RestartCondition {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::OnFailure => "on-failure",
            Self::Any => "any",
        }
    }
}

impl Create {
    pub(super) fn spec(&self) -> Result<Value> {
        let mut spec = json!({
            "Name": self.name.clone().unwrap_or_else(random_name),
            "Labels": pairs(&self.label),
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": self.image,
                    "Labels": pairs(&self.container_label),
                    "Args": self.args,
                    "Env": environment(&self.env),
                },
                "Placement": {
                    "Constraints": self.constraint,
                    "Preferences": preferences(&self.placement_pref)?,
                },
                "Networks": self.network.iter().map(|n| network(n)).collect::<Result<Vec<_>>>()?,
            },
            "Mode": match self.mode {
                Mode::Replicated => json!({ "Replicated": { "Replicas": 1 } }),
                Mode::Global => json!({ "Global": {} }),
            },
            "EndpointSpec": {
                "Mode": self.endpoint_mode.unwrap_or(EndpointMode::Vip).as_str(),
                "Ports": self.publish.iter().map(Publish::json).collect::<Vec<_>>(),
            },
        });
        self.common.apply(&mut spec)?;
        Ok(spec)
    }
}

impl Common {
    fn apply(&self, spec: &mut Value) -> Result<()> {
        if let Some(replicas) = self.replicas {
            ensure!(
                spec.pointer("/Mode/Replicated").is_some_and(|r| !r.is_null()),
                "--replicas can only be used with replicated mode"
            );
            spec["Mode"] = json!({ "Replicated": { "Replicas": replicas } });
        }
        let task = &mut spec["TaskTemplate"];
        put(&mut task["Placement"], "MaxReplicas", self.replicas_max_per_node);
        let container = &mut task["ContainerSpec"];
        put(container, "Hostname", self.hostname.as_deref());
        put(container, "User", self.user.as_deref());
        put(container, "Dir", self.workdir.as_deref());
        put(container, "ReadOnly", self.read_only);
        put(container, "StopGracePeriod", self.stop_grace_period);
        put(container, "StopSignal", self.stop_signal.as_deref());
        let limits = [("NanoCPUs", self.limit_cpu), ("MemoryBytes", self.limit_memory)];
        for (field, value) in limits {
            put_within(task, &["Resources", "Limits"], field, value);
        }
        put_within(task, &["Resources", "Limits"], "Pids", self.limit_pids);
        put_within(task, &["Resources", "Reservations"], "NanoCPUs", self.reserve_cpu);
        put_within(task, &["Resources", "Reservations"], "MemoryBytes", self.reserve_memory);
        let restart = &["RestartPolicy"];
        put_within(task, restart, "Condition", self.restart_condition.map(RestartCondition::as_str));
        put_within(task, restart, "Delay", self.restart_delay);
        put_within(task, restart, "MaxAttempts", self.restart_max_attempts);
        put_within(task, restart, "Window", self.restart_window);
        let update = &["UpdateConfig"];
        // A lone field would leave parallelism at zero, which means all at once; the docker client sends 1 then.
        let any_update = self.update_delay.is_some()
            || self.update_monitor.is_some()
            || self.update_max_failure_ratio.is_some()
            || self.update_failure_action.is_some()
            || self.update_order.is_some();
        let parallelism = self
            .update_parallelism
            .or_else(|| (any_update && spec.pointer("/UpdateConfig/Parallelism").is_none()).then_some(1));
        put_within(spec, update, "Parallelism", parallelism);
        put_within(spec, update, "Delay", self.update_delay);
        put_within(spec, update, "Monitor", self.update_monitor);
        put_within(spec, update, "MaxFailureRatio", self.update_max_failure_ratio);
        put_within(spec, update, "FailureAction", self.update_failure_action.as_deref());
        put_within(spec, update, "Order", self.update_order.as_deref());
        let any_rollback = self.rollback_delay.is_some()
            || self.rollback_monitor.is_some()
            || self.rollback_max_failure_ratio.is_some()
            || self.rollback_failure_action.is_some()
            || self.rollback_order.is_some();
        let parallelism = self
            .rollback_parallelism
            .or_else(|| (any_rollback && spec.pointer("/RollbackConfig/Parallelism").is_none()).then_some(1));
        let rollback = &["RollbackConfig"];
        put_within(spec, rollback, "Parallelism", parallelism);
        put_within(spec, rollback, "Delay", self.rollback_delay);
        put_within(spec, rollback, "Monitor", self.rollback_monitor);
        put_within(spec, rollback, "MaxFailureRatio", self.rollback_max_failure_ratio);
        put_within(spec, rollback, "FailureAction", self.rollback_failure_action.as_deref());
        put_within(spec, rollback, "Order", self.rollback_order.as_deref());
        Ok(())
    }
}

impl Update {
    /// Changes the spec that the service has now.
    pub(super) async fn apply(&self, client: &Client, spec: &mut Value) -> Result<()> {
        self.common.apply(spec)?;
        let task = &mut spec["TaskTemplate"];
        if self.force {
            let forced = task["ForceUpdate"].as_u64().unwrap_or(0);
            task["ForceUpdate"] = (forced + 1).into();
        }
        put(&mut task["ContainerSpec"], "Image", self.image.as_deref());
        if let Some(args) = &self.args {
            task["ContainerSpec"]["Args"] = json!(args.split_whitespace().collect::<Vec<_>>());
        }
        change_map(&mut task["ContainerSpec"]["Labels"], &self.container_label_add, &self.container_label_rm);
        change_env(&mut task["ContainerSpec"]["Env"], &self.env_add, &self.env_rm);
        change_list(&mut task["Placement"]["Constraints"], &self.constraint_add, &self.constraint_rm);
        change_preferences(&mut task["Placement"]["Preferences"], &self.placement_pref_add, &self.placement_pref_rm)?;
        if !self.network_add.is_empty() || !self.network_rm.is_empty() {
            let names = network_names(client).await?;
            change_networks(&mut task["Networks"], &self.network_add, &self.network_rm, &names)?;
        }
        change_map(&mut spec["Labels"], &self.label_add, &self.label_rm);
        if let Some(mode) = self.endpoint_mode {
            spec["EndpointSpec"]["Mode"] = mode.as_str().into();
        }
        change_ports(&mut spec["EndpointSpec"]["Ports"], &self.publish_add, &self.publish_rm);
        Ok(())
    }

    pub(super) fn is_rollback(&self) -> bool {
        self.rollback
    }
}

/// Sets a field where a value was given.
fn put(object: &mut Value, field: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[field] = value.into();
    }
}

/// The same, some objects further down.
fn put_within(object: &mut Value, path: &[&str], field: &str, value: Option<impl Into<Value>>) {
    if value.is_some() {
        let inner = path.iter().fold(object, |object, name| &mut object[*name]);
        put(inner, field, value);
    }
}

/// `NAME`, or `name=NAME,alias=ALIAS`.
fn network(text: &str) -> Result<Value> {
    if !text.contains('=') {
        return Ok(json!({ "Target": text }));
    }
    let (mut name, mut aliases) = (None, Vec::new());
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("name", value)) => name = Some(value),
            Some(("alias", value)) => aliases.push(value),
            _ => bail!("unknown field {field:?} in {text:?}: the fields are name and alias"),
        }
    }
    let Some(name) = name else { bail!("{text:?} names no network: add name=NETWORK") };
    Ok(json!({ "Target": name, "Aliases": aliases }))
}

fn preferences(texts: &[String]) -> Result<Vec<Value>> {
    texts.iter().map(|text| preference(text)).collect()
}

fn preference(text: &str) -> Result<Value> {
    match text.split_once('=') {
        Some(("spread", attribute)) => Ok(json!({ "Spread": { "SpreadDescriptor": attribute } })),
        _ => bail!("invalid placement preference {text:?}: give spread=ATTRIBUTE, such as spread=node.labels.zone"),
    }
}

fn items(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(items) => items,
        _ => unreachable!("made an array just now"),
    }
}

fn change_list(value: &mut Value, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let items = items(value);
    items.retain(|item| !remove.iter().any(|gone| item == gone));
    items.extend(add.iter().map(|text| json!(text)));
}

fn change_map(value: &mut Value, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let mut map: Map<String, Value> = value.as_object().cloned().unwrap_or_default();
    map.retain(|key, _| !remove.contains(key));
    map.extend(pairs(add).into_iter().map(|(key, value)| (key, value.into())));
    *value = Value::Object(map);
}

fn change_env(value: &mut Value, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let added = environment(add);
    let items = items(value);
    items.retain(|item| {
        let name = key(item.as_str().unwrap_or_default());
        !remove.contains(&name) && !added.iter().any(|entry| key(entry) == name)
    });
    items.extend(added.into_iter().map(Value::from));
}

fn change_preferences(value: &mut Value, add: &[String], remove: &[String]) -> Result<()> {
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let (add, remove) = (preferences(add)?, preferences(remove)?);
    let items = items(value);
    items.retain(|item| !remove.contains(item));
    items.extend(add);
    Ok(())
}

/// `names` gives the names of networks by their ids: the spec holds ids, people write either.
fn change_networks(
    value: &mut Value,
    add: &[String],
    remove: &[String],
    names: &BTreeMap<String, String>,
) -> Result<()> {
    let items = items(value);
    for gone in remove {
        let before = items.len();
        items.retain(|item| {
            let target = text(item, "/Target");
            target != gone && names.get(target) != Some(gone)
        });
        ensure!(items.len() < before, "network {gone} is not one of the service's");
    }
    for text in add {
        items.push(network(text)?);
    }
    Ok(())
}

fn change_ports(value: &mut Value, add: &[Publish], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let items = items(value);
    items.retain(|item| {
        let target = item["TargetPort"].as_u64().unwrap_or_default();
        let protocol = text(item, "/Protocol");
        !remove.iter().any(|gone| *gone == target.to_string() || *gone == format!("{target}/{protocol}"))
    });
    for new in add.iter().map(Publish::json) {
        if !items.contains(&new) {
            items.push(new);
        }
    }
}

/// Two words, as people remember them.
fn random_name() -> String {
    const FIRST: [&str; 8] = ["brisk", "calm", "deft", "eager", "fine", "keen", "plain", "swift"];
    const SECOND: [&str; 8] = ["bobbin", "heddle", "loom", "reed", "shuttle", "thread", "treadle", "warp"];
    let pick = |words: &[&'static str; 8]| words[usize::from(rand::random::<u8>()) % words.len()];
    format!("{}_{}{}", pick(&FIRST), pick(&SECOND), rand::random::<u16>() % 1000)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct CreateLine {
        #[command(flatten)]
        create: Create,
    }

    fn created(line: &str) -> Value {
        CreateLine::try_parse_from(["create"].into_iter().chain(line.split(' '))).unwrap().create.spec().unwrap()
    }

    #[test]
    fn the_story_s_service_is_asked_for() {
        let spec = created("--name whoami --network app --replicas 3 -p 8080:80 weft/whoami");
        assert_eq!(text(&spec, "/Name"), "whoami");
        assert_eq!(spec.pointer("/Mode/Replicated/Replicas"), Some(&json!(3)));
        assert_eq!(spec["TaskTemplate"]["Networks"], json!([{ "Target": "app" }]));
        assert_eq!(
            spec["EndpointSpec"]["Ports"],
            json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" }])
        );
    }

    #[test]
    fn detach_may_say_so_as_scripts_for_docker_do() {
        for (flag, detached) in [("-d", true), ("--detach", true), ("--detach=true", true), ("-d=false", false)] {
            let line = CreateLine::try_parse_from(["create", flag, "weft/whoami"]).unwrap();
            assert_eq!((line.create.detach, line.create.image.as_str()), (detached, "weft/whoami"), "{flag}");
        }
    }

    #[test]
    fn flags_of_the_command_are_its_own() {
        let spec = created("--name c host sh -c true");
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Args"], json!(["sh", "-c", "true"]));
    }

    #[test]
    fn a_global_service_has_no_replicas() {
        let line = CreateLine::try_parse_from(["create", "--mode", "global", "--replicas", "2", "x"]).unwrap();
        assert!(line.create.spec().is_err());
    }

    #[test]
    fn lists_are_changed_item_by_item() {
        let mut env = json!(["A=1", "B=2"]);
        change_env(&mut env, &["A=3".into()], &["B".into()]);
        assert_eq!(env, json!(["A=3"]));
        let mut ports = json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080 }]);
        let add = ["8081:80", "8082:80"].map(|port| publish::parse(port).unwrap());
        change_ports(&mut ports, &add, &["80".into()]);
        let published: Vec<_> = items(&mut ports).iter().map(|port| port["PublishedPort"].as_u64().unwrap()).collect();
        assert_eq!(published, [8081, 8082]);
        change_ports(&mut ports, &add[..1], &[]);
        assert_eq!(items(&mut ports).len(), 2, "what is there already is not added again");
    }
}
