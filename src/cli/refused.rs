//! What the docker client has and weft has not: each command and flag refused by its name, with what to do instead. Pure.
//!
//! Consulted only where the parser did not understand something: what weft learns needs no change here to work, though its
//! line should go.

use std::ffi::OsString;

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

const CONTAINERS: &str = "weft runs containers as services: see \"weft service --help\", or use the docker client";
const IMAGES: &str = "weft leaves images to the container engine: use the docker client";
const STACKS: &str = "point the docker client at weft's socket: DOCKER_HOST=unix:///run/weft/weft.sock docker stack …";
const NO_SECRETS: &str = "secrets are not there yet: give what tasks need with --env";
const NO_CONFIGS: &str = "configs are not there yet: give what tasks need with --env";
const NO_UNLOCK: &str = "managers cannot be locked yet, so there is nothing to unlock";
const NOT_ATTACHABLE: &str = "only services can be on its networks yet: run the container as a service";

/// Commands, by the words that lead to them.
pub(super) const COMMANDS: &[(&[&str], &str)] = &[
    (
        &[
            "attach",
            "container",
            "cp",
            "create",
            "diff",
            "exec",
            "kill",
            "logs",
            "pause",
            "port",
            "ps",
            "rename",
            "restart",
            "rm",
            "run",
            "start",
            "stats",
            "stop",
            "top",
            "unpause",
            "update",
            "wait",
        ],
        CONTAINERS,
    ),
    (&["build", "commit", "history", "image", "images", "load", "pull", "push", "rmi", "save", "tag"], IMAGES),
    (&["stack"], STACKS),
    (&["secret"], NO_SECRETS),
    (&["config"], NO_CONFIGS),
    (&["volume"], "volumes are not there yet: tasks keep nothing"),
    (
        &["inspect"],
        "say of what kind it is: \"weft service inspect\", \"weft node inspect\" or \"weft network inspect\"",
    ),
    (
        &["events", "system"],
        "use the docker client, pointed at weft's socket with DOCKER_HOST=unix:///run/weft/weft.sock",
    ),
    (&["context"], "say which daemon to talk to with --host, or with WEFT_HOST in the environment"),
    (
        &["swarm ca"],
        "the certificate authority cannot be shown or replaced yet; nodes' certificates are renewed by themselves",
    ),
    (&["swarm unlock", "swarm unlock-key"], NO_UNLOCK),
    (&["network connect", "network disconnect"], NOT_ATTACHABLE),
    (&["network prune"], "remove each network with \"weft network rm\""),
];

/// Flags, by what they are called on any command, or after the words that lead to the one command that they are meant on.
pub(super) const FLAGS: &[(&[&str], &str)] = &[
    (&["--mount", "--mount-add", "--mount-rm"], "mounts are not there yet"),
    (&["--secret", "--secret-add", "--secret-rm"], NO_SECRETS),
    (&["--config", "--config-add", "--config-rm"], NO_CONFIGS),
    (
        &[
            "--health-cmd",
            "--health-interval",
            "--health-retries",
            "--health-start-interval",
            "--health-start-period",
            "--health-timeout",
            "--no-healthcheck",
        ],
        "health checks are not there yet: a task is healthy while it runs",
    ),
    (&["service create --host", "--host-add", "--host-rm"], "extra host names are not there yet"),
    (&["daemon --host", "daemon -H"], "this command runs a daemon: say where it listens with --socket PATH"),
    (&["--host", "-H"], "the daemon to talk to is named before the command: weft --host URL …"),
    (
        &[
            "--dns",
            "--dns-add",
            "--dns-rm",
            "--dns-option",
            "--dns-option-add",
            "--dns-option-rm",
            "--dns-search",
            "--dns-search-add",
            "--dns-search-rm",
        ],
        "tasks ask weft's own resolver, and other settings of theirs are not there yet",
    ),
    (&["--group", "--group-add", "--group-rm"], "supplementary groups are not there yet: --user takes USER:GROUP"),
    (&["--cap-add", "--cap-drop"], "capabilities cannot be chosen yet"),
    (&["--sysctl", "--sysctl-add", "--sysctl-rm"], "sysctls are not there yet"),
    (&["--ulimit", "--ulimit-add", "--ulimit-rm"], "ulimits are not there yet: see --limit-pids and --limit-memory"),
    (&["--tty", "-t"], "terminals are not there yet"),
    (&["--credential-spec", "--isolation"], "it is for tasks on Windows, which weft does not run"),
    (&["--oom-score-adj"], "OOM scores are not there yet"),
    (&["--memory-swap", "--memory-swappiness"], "swap settings are not there yet: see --limit-memory"),
    (&["--log-driver", "--log-opt"], "log drivers are not there yet: see \"weft service logs\""),
    (
        &["--generic-resource", "--generic-resource-add", "--generic-resource-rm"],
        "generic resources are not there yet: label nodes and use --constraint",
    ),
    (&["--max-concurrent"], "jobs are not there yet"),
    (&["--no-resolve-image"], "weft never asks a registry for an image's digest: leave it out"),
    (&["--with-registry-auth"], "weft hands out no registry credentials yet: log each node's engine in"),
    (
        &["service logs --details", "service logs --no-task-ids", "service logs --no-trunc"],
        "lines of logs always name their task whole, or nothing with --raw",
    ),
    (&["--autolock"], "managers cannot be locked yet"),
    (&["--external-ca"], "external certificate authorities are not there yet"),
    (&["--max-snapshots", "--snapshot-interval"], "Raft's snapshots need no settings: leave it out"),
    (&["--force-new-cluster"], "a new cluster cannot be made from a lost one's table yet"),
    (&["--data-path-addr"], "tunnels use the address of --advertise-addr: leave it out"),
    (&["--data-path-port"], "tunnels always use UDP port 4789: leave it out"),
    (&["--attachable"], NOT_ATTACHABLE),
    (&["--ingress"], "the ingress network is built in: leave it out"),
    (&["--scope"], "networks always span the cluster: leave it out"),
    (&["--ipv4"], "networks always have IPv4: leave it out"),
    (&["--ipam-driver", "--ipam-opt"], "IPAM drivers are not there yet: see --subnet, --gateway and --ip-range"),
    (&["--aux-address"], "addresses cannot be set aside one by one yet: see --ip-range"),
    (&["--config-only", "--config-from"], "configuration-only networks are not there yet"),
    (
        &[
            "service inspect --format",
            "service inspect -f",
            "node inspect --format",
            "node inspect -f",
            "network inspect --format",
            "network inspect -f",
        ],
        "it prints everything: choose from its JSON with a program such as jq",
    ),
];

/// A usage error of our own, in the parser's form.
pub(super) fn error(kind: ErrorKind, message: &str) -> clap::Error {
    clap::Error::raw(kind, format!("{message}\n"))
}

/// The parser's error, or a better one where `args` ask for something that is known to be missing.
pub(super) fn explain(command: &Command, args: &[OsString], error: clap::Error) -> clap::Error {
    let (kind, table, context) = match error.kind() {
        kind @ ErrorKind::InvalidSubcommand => (kind, COMMANDS, ContextKind::InvalidSubcommand),
        kind @ ErrorKind::UnknownArgument => (kind, FLAGS, ContextKind::InvalidArg),
        _ => return error,
    };
    let Some(ContextValue::String(word)) = error.get(context) else { return error };
    let whole = [path(command, args), vec![word.clone()]].concat().join(" ");
    let is_asked = |name: &&str| *name == whole || *name == word.as_str();
    // A command counts where it stands: "swarm rm" is not "rm".
    let (shown, found) = match kind {
        ErrorKind::InvalidSubcommand => (&whole, table.iter().find(|(names, _)| names.contains(&whole.as_str()))),
        _ => (word, table.iter().find(|(names, _)| names.iter().any(is_asked))),
    };
    match found {
        Some((_, instead)) => self::error(kind, &format!("weft does not support \"{shown}\": {instead}")),
        None => error,
    }
}

/// The words of `args` that name commands.
fn path(command: &Command, args: &[OsString]) -> Vec<String> {
    let mut words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let (mut at, mut path) = (command, Vec::new());
    while let Some(word) = words.next() {
        if matches!(word, "-H" | "--host") {
            words.next();
        } else if !word.starts_with('-') {
            let Some(next) = at.find_subcommand(word) else { break };
            path.push(next.get_name().to_owned());
            at = next;
        }
    }
    path
}
