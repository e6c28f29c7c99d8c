//! Flags that several commands share, and the docker client's form of boolean flags. Pure.

use std::any::TypeId;

use clap::{Arg, ArgAction, Args, Command, ValueEnum};

/// The flags that each `ls` command has.
#[derive(Debug, Args)]
pub(super) struct Listing {
    /// Print only the ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Show only what matches KEY=VALUE, such as name=web; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Output format: table, json, or a template for each line, such as '{{.ID}} {{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// The role of a node in its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Worker,
    Manager,
}

impl Role {
    /// The word that the API uses.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Manager => "manager",
        }
    }
}

/// Whether the scheduler places tasks on a node.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Availability {
    Active,
    Pause,
    Drain,
}

impl Availability {
    /// The word that the API uses.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Pause => "pause",
            Self::Drain => "drain",
        }
    }
}

/// Changes all boolean flags of a command and its subcommands, so that they accept what the docker
/// client accepts: `--flag`, `--flag=true` and `--flag=false`. A flag may be repeated; the last one
/// is used. The next word is never the value of a boolean flag.
pub(super) fn with_docker_booleans(command: Command) -> Command {
    command.mut_args(docker_boolean).mut_subcommands(with_docker_booleans)
}

fn docker_boolean(arg: Arg) -> Arg {
    let is_switch = matches!(arg.get_action(), ArgAction::SetTrue);
    if !is_switch && arg.get_value_parser().type_id() != TypeId::of::<bool>() {
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
    if is_switch { arg.default_value("false").hide_default_value(true) } else { arg }
}

/// Reads a boolean as Go's `strconv.ParseBool` does.
fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}
