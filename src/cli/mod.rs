//! The command line: flags → Engine API calls → tables. A client like any other: it knows nothing that the API does not
//! say.
//!
//! One file for each noun; [`client`] talks to the daemon, [`output`] draws. Wording, columns and flags are the docker
//! client's, so that scripts written for it go on working. Every flag is either honoured or refused.

mod client;
mod flags;
mod network;
mod node;
mod output;
mod service;
mod swarm;
mod system;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::client::Client;
use crate::daemon;

/// A cluster's network with just enough control plane to run it.
#[derive(Debug, Parser)]
#[command(name = "weft", version, propagate_version = false, disable_help_subcommand = true)]
struct Cli {
    /// Daemon to talk to: unix:///PATH or tcp://HOST:PORT; else $WEFT_HOST, else $DOCKER_HOST
    #[arg(short = 'H', long = "host", global = true, value_name = "URL")]
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

/// Parses the command line, runs it, and tells what went wrong.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(dispatch(cli)));
    match outcome {
        Ok(code) => code,
        // Whoever reads has seen enough (`… | head`).
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
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

/// Runs `act` for each name; goes on past errors and reports them all, as the docker client does.
async fn each<'a, F>(names: &'a [String], mut act: impl FnMut(&'a str) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut errors = Vec::new();
    for name in names {
        if let Err(error) = act(name).await {
            errors.push(format!("{error:#}"));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(anyhow::Error::msg(errors.join("\n"))) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
