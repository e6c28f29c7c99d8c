//! Flags that several commands share, and the docker client's form of boolean flags. Pure.

use std::any::TypeId;

use clap::{Arg, ArgAction, Args, Command, ValueEnum};

/// What every `ls` takes.
#[derive(Debug, Args)]
pub(super) struct Listing {
    /// Only the ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Only what matches KEY=VALUE, such as name=web; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// How to print: table, json, or a template such as '{{.ID}} {{.Name}}' for each line
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// What a node is in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Worker,
    Manager,
}

impl Role {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Whether a node takes tasks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Availability {
    Active,
    Pause,
    Drain,
}

impl Availability {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// Lets every boolean flag be given as the docker client takes it: `--flag`, `--flag=true`, `--flag=false`, any number of
/// times, the last one counting; never with its value in the next word.
pub(super) fn with_docker_booleans(command: Command) -> Command {
    command.mut_args(docker_boolean).mut_subcommands(with_docker_booleans)
}

fn docker_boolean(arg: Arg) -> Arg {
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if !switch && arg.get_value_parser().type_id() != TypeId::of::<bool>() {
        return arg;
    }
    let id = arg.get_id().clone();
    let arg = arg
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .overrides_with(id)
        .value_name("BOOL")
        .value_parser(boolean);
    if switch { arg.default_value("false").hide_default_value(true) } else { arg }
}

/// As Go reads a boolean.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}
