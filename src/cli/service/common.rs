//! The flags that both `service create` and `service update` have, and the fields of a spec that
//! these flags set.

use anyhow::{Result, bail, ensure};
use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::super::{
    duration::nanos,
    values::{ShellWords, bytes, duration, nano_cpus, ratio, shell_words},
};

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Number of tasks
    #[arg(long, value_name = "COUNT")]
    replicas: Option<u64>,
    /// Maximum number of tasks on one node; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    replicas_max_per_node: Option<u64>,
    /// What the service's name resolves to: one address for all tasks (vip), or the tasks' own
    /// addresses (dnsrr)
    #[arg(long, value_enum, value_name = "MODE")]
    endpoint_mode: Option<EndpointMode>,
    /// Command that replaces the entry point of the image, as one string with the quoting of a
    /// shell
    #[arg(long, value_name = "COMMAND", value_parser = shell_words)]
    entrypoint: Option<ShellWords>,
    /// Host name inside the tasks
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// User that the tasks run as: USER or USER:GROUP, by name or number
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Working directory of the tasks
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Make the root file system of the tasks read-only
    #[arg(long)]
    read_only: Option<bool>,
    /// Run an init process in each task, which forwards signals and reaps orphaned processes
    #[arg(long)]
    init: Option<bool>,
    /// Maximum number of CPUs of a task, such as 0.5; 0 for no limit
    #[arg(long, value_name = "CPUS", value_parser = nano_cpus)]
    limit_cpu: Option<i64>,
    /// Maximum memory of a task, such as 64m or 1g; 0 for no limit
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    limit_memory: Option<i64>,
    /// Maximum number of processes and threads in a task; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    limit_pids: Option<u64>,
    /// CPUs that must be unreserved on a node before a task is placed there, such as 0.5
    #[arg(long, value_name = "CPUS", value_parser = nano_cpus)]
    reserve_cpu: Option<i64>,
    /// Memory that must be unreserved on a node before a task is placed there, such as 64m or 1g
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    reserve_memory: Option<i64>,
    /// When to replace a task that has ended
    #[arg(long, value_enum, value_name = "CONDITION")]
    restart_condition: Option<RestartCondition>,
    /// Time between the end of a task and the start of its replacement, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    restart_delay: Option<SignedDuration>,
    /// Maximum number of times that a task is replaced; 0 for no limit
    #[arg(long, value_name = "COUNT")]
    restart_max_attempts: Option<u64>,
    /// Time span in which the attempts are counted, such as 2m; 0 to count all of them
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    restart_window: Option<SignedDuration>,
    /// Time between the stop signal and SIGKILL, such as 10s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    stop_grace_period: Option<SignedDuration>,
    /// Signal that stops a task, such as SIGTERM
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Number of tasks that an update replaces at once; 0 for all
    #[arg(long, value_name = "COUNT")]
    update_parallelism: Option<u64>,
    /// Time between two batches of an update, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    update_delay: Option<SignedDuration>,
    /// How long an update watches each new task for failure, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    update_monitor: Option<SignedDuration>,
    /// Part of the tasks that may fail during an update, from 0 to 1
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    update_max_failure_ratio: Option<f64>,
    /// What an update does if more tasks fail than --update-max-failure-ratio allows
    #[arg(long, value_name = "ACTION", value_parser = ["pause", "continue", "rollback"])]
    update_failure_action: Option<String>,
    /// Whether an update starts the new task first or stops the old one first
    #[arg(long, value_name = "ORDER", value_parser = ["start-first", "stop-first"])]
    update_order: Option<String>,
    /// Number of tasks that a rollback replaces at once; 0 for all
    #[arg(long, value_name = "COUNT")]
    rollback_parallelism: Option<u64>,
    /// Time between two batches of a rollback, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    rollback_delay: Option<SignedDuration>,
    /// How long a rollback watches each new task for failure, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    rollback_monitor: Option<SignedDuration>,
    /// Part of the tasks that may fail during a rollback, from 0 to 1
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    rollback_max_failure_ratio: Option<f64>,
    /// What a rollback does if more tasks fail than --rollback-max-failure-ratio allows
    #[arg(long, value_name = "ACTION", value_parser = ["pause", "continue"])]
    rollback_failure_action: Option<String>,
    /// Whether a rollback starts the new task first or stops the old one first
    #[arg(long, value_name = "ORDER", value_parser = ["start-first", "stop-first"])]
    rollback_order: Option<String>,
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

impl Common {
    /// Applies the given flags to the spec of a service.
    ///
    /// # Errors
    ///
    /// If `--replicas` is given for a service that is not replicated.
    pub(super) fn apply(&self, spec: &mut Value) -> Result<()> {
        if let Some(replicas) = self.replicas {
            ensure!(
                spec.pointer("/Mode/Replicated").is_some_and(|r| !r.is_null()),
                "--replicas can only be used with replicated mode"
            );
            spec["Mode"] = json!({ "Replicated": { "Replicas": replicas } });
        }
        put_within(spec, &["EndpointSpec"], "Mode", self.endpoint_mode.map(EndpointMode::as_str));
        let task = &mut spec["TaskTemplate"];
        put_within(task, &["Placement"], "MaxReplicas", self.replicas_max_per_node);
        self.apply_to_container(&mut task["ContainerSpec"]);
        self.apply_to_resources(task);
        let restart = &["RestartPolicy"];
        put_within(task, restart, "Condition", self.restart_condition.map(RestartCondition::as_str));
        put_within(task, restart, "Delay", self.restart_delay.map(nanos));
        put_within(task, restart, "MaxAttempts", self.restart_max_attempts);
        put_within(task, restart, "Window", self.restart_window.map(nanos));
        let update = UpdateFlags {
            parallelism: self.update_parallelism,
            delay: self.update_delay,
            monitor: self.update_monitor,
            max_failure_ratio: self.update_max_failure_ratio,
            failure_action: self.update_failure_action.as_deref(),
            order: self.update_order.as_deref(),
        };
        update.apply(spec, "UpdateConfig");
        let rollback = UpdateFlags {
            parallelism: self.rollback_parallelism,
            delay: self.rollback_delay,
            monitor: self.rollback_monitor,
            max_failure_ratio: self.rollback_max_failure_ratio,
            failure_action: self.rollback_failure_action.as_deref(),
            order: self.rollback_order.as_deref(),
        };
        rollback.apply(spec, "RollbackConfig");
        Ok(())
    }

    fn apply_to_container(&self, container: &mut Value) {
        put(container, "Command", self.entrypoint.as_ref().map(|words| json!(words.0)));
        put(container, "Hostname", self.hostname.as_deref());
        put(container, "User", self.user.as_deref());
        put(container, "Dir", self.workdir.as_deref());
        put(container, "ReadOnly", self.read_only);
        put(container, "Init", self.init);
        put(container, "StopGracePeriod", self.stop_grace_period.map(nanos));
        put(container, "StopSignal", self.stop_signal.as_deref());
    }

    fn apply_to_resources(&self, task: &mut Value) {
        let (limits, reservations) = (&["Resources", "Limits"], &["Resources", "Reservations"]);
        put_within(task, limits, "NanoCPUs", self.limit_cpu);
        put_within(task, limits, "MemoryBytes", self.limit_memory);
        put_within(task, limits, "Pids", self.limit_pids);
        put_within(task, reservations, "NanoCPUs", self.reserve_cpu);
        put_within(task, reservations, "MemoryBytes", self.reserve_memory);
    }
}

/// The flags that say how an update or a rollback replaces tasks.
struct UpdateFlags<'a> {
    parallelism: Option<u64>,
    delay: Option<SignedDuration>,
    monitor: Option<SignedDuration>,
    max_failure_ratio: Option<f64>,
    failure_action: Option<&'a str>,
    order: Option<&'a str>,
}

impl UpdateFlags<'_> {
    fn apply(&self, spec: &mut Value, section: &str) {
        let path = &[section];
        put_within(spec, path, "Parallelism", self.parallelism);
        put_within(spec, path, "Delay", self.delay.map(nanos));
        put_within(spec, path, "Monitor", self.monitor.map(nanos));
        put_within(spec, path, "MaxFailureRatio", self.max_failure_ratio);
        put_within(spec, path, "FailureAction", self.failure_action);
        put_within(spec, path, "Order", self.order);
        // If the spec has no parallelism, the API replaces all tasks at once. As in the docker
        // client, the default of the command line is 1.
        if let Some(section) = spec.get_mut(section).filter(|section| section.is_object())
            && section.get("Parallelism").is_none()
        {
            section["Parallelism"] = 1.into();
        }
    }
}

/// Sets a field of an object, if there is a value.
pub(super) fn put(object: &mut Value, field: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[field] = value.into();
    }
}

/// Sets a field of the object at `path` below `object`, if there is a value. Adds the objects on
/// the path that are missing.
fn put_within(object: &mut Value, path: &[&str], field: &str, value: Option<impl Into<Value>>) {
    if value.is_some() {
        let inner = path.iter().fold(object, |object, name| &mut object[*name]);
        put(inner, field, value);
    }
}

/// Reads a network to connect to: `NAME`, or `name=NAME,alias=ALIAS`.
pub(super) fn network(text: &str) -> Result<Value> {
    if !text.contains('=') {
        return Ok(json!({ "Target": text }));
    }
    let (mut name, mut aliases) = (None, Vec::new());
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("name", value)) => name = Some(value),
            Some(("alias", value)) => aliases.push(value),
            Some(("ip" | "ip6" | "mac-address" | "link-local-ip", _)) => bail!(
                "{field:?} in {text:?}: a task of a service cannot have a fixed address, because a service has any \
                 number of tasks: use the name or the VIP of the service"
            ),
            Some(("driver-opt", _)) => bail!("weft does not support {field:?}: leave it out"),
            _ => bail!("unknown field {field:?} in {text:?}: the fields are name and alias"),
        }
    }
    let Some(name) = name else { bail!("{text:?} has no network: add name=NETWORK") };
    Ok(json!({ "Target": name, "Aliases": aliases }))
}

/// Reads placement preferences such as `spread=node.labels.zone`.
pub(super) fn preferences(texts: &[String]) -> Result<Vec<Value>> {
    texts.iter().map(|text| preference(text)).collect()
}

fn preference(text: &str) -> Result<Value> {
    match text.split_once('=') {
        Some(("spread", attribute)) => Ok(json!({ "Spread": { "SpreadDescriptor": attribute } })),
        _ => bail!("invalid placement preference {text:?}: give spread=ATTRIBUTE, such as spread=node.labels.zone"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_fixed_address_and_says_why() {
        for field in ["ip=10.1.0.5", "ip6=fd00::5", "mac-address=02:42:0a:01:00:05"] {
            let error = network(&format!("name=app,{field}")).expect_err("a service has no fixed address").to_string();
            assert!(error.contains(field) && error.contains("cannot have a fixed address"), "{error}");
        }
    }

    #[test]
    fn a_changed_section_always_has_a_parallelism() {
        let nothing = UpdateFlags {
            parallelism: None,
            delay: None,
            monitor: None,
            max_failure_ratio: None,
            failure_action: None,
            order: None,
        };
        let check = |flags: &UpdateFlags<'_>, mut spec: Value, expected: Value| {
            flags.apply(&mut spec, "UpdateConfig");
            assert_eq!(spec, expected);
        };
        check(&nothing, json!({}), json!({}));
        let slow = UpdateFlags { delay: Some(SignedDuration::from_nanos(5)), ..nothing };
        check(&slow, json!({}), json!({ "UpdateConfig": { "Parallelism": 1, "Delay": 5 } }));
        check(
            &slow,
            json!({ "UpdateConfig": { "Parallelism": 0 } }),
            json!({ "UpdateConfig": { "Parallelism": 0, "Delay": 5 } }),
        );
    }
}
