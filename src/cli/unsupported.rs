//! The commands and flags of the docker client that weft does not support. The error for each names
//! the command or flag, the reason, and what to do instead. Pure.
//!
//! The command line calls [`explain`] only after its parser has refused a word. If weft later
//! supports a command or a flag, the parser accepts it, and its line here has no effect any more. A
//! test then fails until the line is removed.

use std::ffi::OsString;

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

const CONTAINERS: &str = "weft runs containers as services: see \"weft service --help\", or use the docker client";
const IMAGES: &str = "the container engine manages images: use the docker client";
const STACKS: &str = "use the docker client with weft's socket: DOCKER_HOST=unix:///run/weft/weft.sock docker stack …";

/// Commands, each with all its words, such as `network prune`. Each reason is for the commands of
/// its entry.
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
    (&["volume"], "tasks cannot use volumes yet: weft keeps no data of a task after its end"),
    (
        &["inspect"],
        "use the command for the kind of object: \"weft service inspect\", \"weft node inspect\" or \"weft network inspect\"",
    ),
    (&["events", "system"], "use the docker client with weft's socket: DOCKER_HOST=unix:///run/weft/weft.sock"),
    (&["context"], "choose the daemon with --host, or with WEFT_HOST in the environment"),
    (
        &["network connect", "network disconnect", "network prune"],
        "use the docker client with weft's socket: DOCKER_HOST=unix:///run/weft/weft.sock",
    ),
];

/// Flags. A flag without a command is refused for all commands. A flag after the words of a command
/// is refused for this command only. The first match is used, so a flag of one command must come
/// before the same flag of all commands.
pub(super) const FLAGS: &[(&[&str], &str)] = &[
    (&["--mount", "--mount-add", "--mount-rm"], "tasks cannot use mounts yet"),
    (&["secret create --driver", "secret create -d"], "weft has no secret drivers yet: give the content of the secret"),
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
        "weft has no health checks yet: a task is healthy while it runs",
    ),
    (&["daemon --host", "daemon -H"], "this command runs a daemon: set its socket with --socket PATH"),
    (&["--host", "-H"], "this flag goes before the command: weft --host URL …"),
    (&["--group", "--group-add", "--group-rm"], "tasks cannot have supplementary groups yet: --user takes USER:GROUP"),
    (&["--cap-add", "--cap-drop"], "the capabilities of tasks cannot be changed yet"),
    (&["--sysctl", "--sysctl-add", "--sysctl-rm"], "the sysctls of tasks cannot be changed yet"),
    (
        &["--ulimit", "--ulimit-add", "--ulimit-rm"],
        "the ulimits of tasks cannot be changed yet: see --limit-pids and --limit-memory",
    ),
    (&["--tty", "-t"], "tasks cannot have a terminal yet"),
    (&["--credential-spec", "--isolation"], "the flag is for Windows, on which weft does not run"),
    (&["--oom-score-adj"], "the OOM scores of tasks cannot be changed yet"),
    (&["--memory-swap", "--memory-swappiness"], "the swap settings of tasks cannot be changed yet: see --limit-memory"),
    (&["--log-driver", "--log-opt"], "weft has no log drivers yet: see \"weft service logs\""),
    (
        &["--generic-resource", "--generic-resource-add", "--generic-resource-rm"],
        "weft has no generic resources yet: label nodes and use --constraint",
    ),
    (&["--max-concurrent"], "weft has no jobs yet"),
    (
        &["service logs --details", "service logs --no-task-ids", "service logs --no-trunc"],
        "each line begins with the full name of its task; --raw leaves the name out",
    ),
    (&["--external-ca"], "weft cannot use an external certificate authority yet"),
    (&["--max-snapshots", "--snapshot-interval"], "Raft snapshots cannot be configured: leave the flag out"),
    (
        &[
            "service inspect --format",
            "service inspect -f",
            "node inspect --format",
            "node inspect -f",
            "network inspect --format",
            "network inspect -f",
            "secret inspect --format",
            "secret inspect -f",
            "config inspect --format",
            "config inspect -f",
        ],
        "the command prints all fields as JSON: choose from them with a program such as jq",
    ),
];

/// An error about the command line, in the form of the parser's own errors.
pub(super) fn usage_error(kind: ErrorKind, message: &str) -> clap::Error {
    clap::Error::raw(kind, format!("{message}\n"))
}

/// Replaces the parser's error about an unknown command or flag in `args`, if the docker client has
/// that command or flag. Returns all other errors as they are.
pub(super) fn explain(parser: &Command, args: &[OsString], error: clap::Error) -> clap::Error {
    let (kind, reasons, context) = match error.kind() {
        kind @ ErrorKind::InvalidSubcommand => (kind, COMMANDS, ContextKind::InvalidSubcommand),
        kind @ ErrorKind::UnknownArgument => (kind, FLAGS, ContextKind::InvalidArg),
        _ => return error,
    };
    let Some(ContextValue::String(word)) = error.get(context) else { return error };
    let with_command = [command_words(parser, args), vec![word.clone()]].concat().join(" ");
    let matches_flag = |name: &&str| *name == with_command || *name == word.as_str();
    let (shown, found) = match kind {
        // A command matches only with all its words: "rm" does not match "swarm rm".
        ErrorKind::InvalidSubcommand => {
            (&with_command, reasons.iter().find(|(names, _)| names.contains(&with_command.as_str())))
        }
        _ => (word, reasons.iter().find(|(names, _)| names.iter().any(matches_flag))),
    };
    match found {
        Some((_, reason)) => usage_error(kind, &format!("weft does not support \"{shown}\": {reason}")),
        None => error,
    }
}

/// The words of `args` that are names of commands, such as `service` and `create`. Skips the flags
/// before the command.
fn command_words(parser: &Command, args: &[OsString]) -> Vec<String> {
    let mut words = args.iter().skip(1).filter_map(|arg| arg.to_str());
    let (mut command, mut path) = (parser, Vec::new());
    while let Some(word) = words.next() {
        if matches!(word, "-H" | "--host") {
            words.next();
        } else if !word.starts_with('-') {
            let Some(next) = command.find_subcommand(word) else { break };
            path.push(next.get_name().to_owned());
            command = next;
        }
    }
    path
}
