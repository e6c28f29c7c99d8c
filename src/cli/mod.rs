//! The command line: flags → Engine API calls → tables. A client like any other: it knows nothing that the API does not
//! say.
//!
//! One file for each noun; [`client`] talks to the daemon, [`output`] prints, [`refused`] answers for what the docker
//! client has and weft has not. Wording, columns and flags are the docker client's, so that scripts written for it go on
//! working. Every flag is either honoured or refused. Only [`output`] writes: `println!` panics where nobody reads.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod output;
mod flags;
mod duration;
mod values;
mod refused;
mod names;
mod tasks;
mod swarm;
mod node;
mod service;
mod network;
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
    /// Daemon to talk to: unix:///PATH or tcp://HOST:PORT; else $WEFT_HOST, else $DOCKER_HOST
    // Before the noun only, as the docker client has it: `service create --host` means something else.
    #[arg(short = 'H', long = "host", value_name = "URL")]
    host: Option<String>,
    #[command(subcommand)]
    command: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Run the node's daemon
    Daemon(Box<daemon::Args>),
    /// Form, join and leave a cluster
    #[command(subcommand)]
    Swarm(swarm::Verb),
    /// Manage the cluster's nodes
    #[command(subcommand)]
    Node(node::Verb),
    /// Manage services
    #[command(subcommand)]
    Service(service::Verb),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Verb),
    /// Show what this node is and how the cluster stands
    Info(system::Info),
    /// Show the versions of client and daemon
    Version,
}

/// Exit status of a program that the SIGPIPE signal ended, as shells count: 128 and the signal's number.
const UNREAD: u8 = 128 + 13;
/// Exit status of a command line that is not understood.
const USAGE: u8 = 2;

/// Parses the command line, runs it, and tells what went wrong.
pub(crate) fn main() -> ExitCode {
    let cli = match parse(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => cli,
        Err(error) => return explained(&error),
    };
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(dispatch(cli)));
    match outcome {
        Ok(code) => code,
        // Whoever read has seen enough (`… | head`).
        Err(error) if error.is::<output::Unread>() => ExitCode::from(UNREAD),
        Err(error) => {
            output::note(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The command line that [`Cli`] describes, with booleans as the docker client takes them.
fn command() -> clap::Command {
    flags::with_docker_booleans(Cli::command())
}

fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = command();
    let parsed = command.try_get_matches_from_mut(args).and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let cli = parsed.map_err(|error| refused::explain(&command, args, error))?;
    if matches!(cli.command, Noun::Daemon(_)) && cli.host.is_some() {
        return Err(refused::error(
            ErrorKind::ArgumentConflict,
            "--host names a daemon to talk to, and this command runs one: say where it listens with --socket PATH",
        ));
    }
    Ok(cli)
}

/// Shows help, versions and usage errors.
fn explained(error: &clap::Error) -> ExitCode {
    match error.print() {
        Err(closed) if closed.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::from(UNREAD),
        _ if error.use_stderr() => ExitCode::from(USAGE),
        _ => ExitCode::SUCCESS,
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode> {
    if let Noun::Daemon(args) = cli.command {
        return daemon::run(*args).await.map(|()| ExitCode::SUCCESS);
    }
    let client = Client::new(cli.host.as_deref())?;
    match cli.command {
        Noun::Daemon(_) => {}
        Noun::Swarm(verb) => swarm::run(&client, verb).await?,
        Noun::Node(verb) => node::run(&client, verb).await?,
        Noun::Service(verb) => return service::run(&client, verb).await,
        Noun::Network(verb) => network::run(&client, verb).await?,
        Noun::Info(info) => system::info(&client, info).await?,
        Noun::Version => system::version(&client).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `act` for each name; goes on past errors and reports them all, as the docker client does. Stops where nobody reads
/// what is printed.
async fn each<'a, F>(names: &'a [String], mut act: impl FnMut(&'a str) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut errors = Vec::new();
    for name in names {
        match act(name).await {
            Err(error) if error.is::<output::Unread>() => return Err(error),
            Err(error) => errors.push(format!("{error:#}")),
            Ok(()) => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(errors.join("\n"))) }
}
