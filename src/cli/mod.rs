//! The command line. It converts flags to Engine API requests, and prints the answers as tables and
//! lines.
//!
//! The `main` function of the binary calls [`main`] once. The command line gets all data about a
//! cluster from the daemon, over the same API as any other client. It must not use any crate of the
//! control plane or the data plane. Only `weft daemon` does not call the API: it runs
//! [`daemon::run`] in this process.
//!
//! Each group of commands has a file. Only [`client`] sends requests to the daemon, and only
//! [`output`] prints. Texts, columns and flags are the same as in the docker client, so that
//! scripts for it work with weft. Each flag of the docker client is either implemented or refused
//! with a reason; [`unsupported`] has the reasons.

// `println!` and `eprintln!` panic if the reader of a pipe has closed it. The functions of `output`
// return an error instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod output;
mod table;
mod image_name;
mod format;
mod duration;
mod values;
mod flags;
mod unsupported;
mod names;
mod tasks;
mod prompt;
mod login;
mod lock;
mod swarm;
mod node_spec;
mod role;
mod node;
mod dependency;
mod service;
mod network;
mod backup;
mod system;
#[cfg(test)]
mod tests;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind};

use self::client::Client;
use crate::daemon;

/// A cluster's network with just enough control plane to run it.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = false, disable_help_subcommand = true)]
struct Cli {
    /// Daemon to connect to: unix:///PATH or tcp://HOST:PORT; by default $WEFT_HOST, else
    /// $DOCKER_HOST
    // As in the docker client, this flag is accepted only before the command: `service create
    // --host` is a different flag.
    #[arg(short = 'H', long = "host", value_name = "URL")]
    host: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon of this node
    Daemon(Box<daemon::Args>),
    /// Create, join and leave a cluster
    #[command(subcommand)]
    Swarm(swarm::Command),
    /// Manage the nodes of the cluster
    #[command(subcommand)]
    Node(node::Command),
    /// Manage services
    #[command(subcommand)]
    Service(service::Command),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Command),
    /// Manage secrets
    #[command(subcommand)]
    Secret(dependency::Command),
    /// Manage configs
    #[command(subcommand)]
    Config(dependency::Command),
    /// Save the cluster to a file, and restore it on an empty machine
    #[command(subcommand)]
    Backup(backup::Command),
    /// Show this node and the state of its cluster
    Info(system::Info),
    /// Show the versions of the client and the daemon
    Version,
}

/// The exit status that shells report for a program that SIGPIPE ended: 128 plus the number of the
/// signal.
const EXIT_SIGPIPE: u8 = 128 + 13;
/// Exit status for a command line that is not valid.
const EXIT_USAGE: u8 = 2;

/// Parses the command line, runs the command, and prints the error if it fails.
pub(crate) fn main() -> ExitCode {
    let cli = match parse(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => cli,
        Err(error) => return print_parser_message(&error),
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(cli)));
    match outcome {
        Ok(code) => code,
        // The reader of the pipe does not want more output, as in `weft node ls | head -1`. The
        // user does not need an error message for this.
        Err(error) if error.is::<output::ClosedPipe>() => ExitCode::from(EXIT_SIGPIPE),
        Err(error) => {
            output::print_to_stderr(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The parser for [`Cli`], with boolean flags in the docker client's form.
fn parser() -> clap::Command {
    flags::with_docker_booleans(Cli::command())
}

fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut parser = parser();
    let parsed = parser.try_get_matches_from_mut(args).and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = parsed.map_err(|error| unsupported::explain(&parser, args, error))?;
    if matches!(cli.command, Command::Daemon(_)) && cli.host.is_some() {
        return Err(unsupported::usage_error(
            ErrorKind::ArgumentConflict,
            "--host names a daemon to connect to, but this command runs a daemon: set its socket with --socket PATH",
        ));
    }
    Ok(cli)
}

/// Prints a message of the parser: an error, help or a version.
fn print_parser_message(message: &clap::Error) -> ExitCode {
    match message.print() {
        Err(closed) if closed.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(EXIT_SIGPIPE),
        _ if message.use_stderr() => ExitCode::from(EXIT_USAGE),
        _ => ExitCode::SUCCESS,
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    if let Command::Daemon(args) = cli.command {
        return daemon::run(*args).await.map(|()| ExitCode::SUCCESS);
    }
    let client = Client::new(cli.host.as_deref())?;
    let outcome = call(&client, cli.command).await;
    if let Some(warning) = client.warning() {
        output::print_to_stderr(format_args!("WARNING: {warning}"));
    }
    outcome
}

/// Runs a command that calls the daemon.
async fn call(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Daemon(args) => daemon::run(*args).await?,
        Command::Swarm(command) => swarm::run(client, command).await?,
        Command::Node(command) => node::run(client, command).await?,
        Command::Service(command) => return service::run(client, command).await,
        Command::Network(command) => network::run(client, command).await?,
        Command::Secret(command) => dependency::run(client, dependency::Kind::Secret, command).await?,
        Command::Config(command) => dependency::run(client, dependency::Kind::Config, command).await?,
        Command::Backup(command) => backup::run(client, command).await?,
        Command::Info(options) => system::info(client, options).await?,
        Command::Version => system::version(client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Calls `action` for each name, in order. As in the docker client, it continues with the next name
/// after an error, and returns all errors together. It stops at once only if the pipe is closed.
async fn for_each_name<'a, F>(names: &'a [String], mut action: impl FnMut(&'a str) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut errors = Vec::new();
    for name in names {
        match action(name).await {
            Err(error) if error.is::<output::ClosedPipe>() => return Err(error),
            Err(error) => errors.push(format!("{error:#}")),
            Ok(()) => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(errors.join("\n"))) }
}
