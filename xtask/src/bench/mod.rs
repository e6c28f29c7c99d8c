//! `bench`: what weft does beside the limit of the machine and beside the programs that people use instead, in one run.
//!
//! Everything runs on this machine in network namespaces, so all parties share its cores: the numbers compare the cases
//! of one run with each other, and nothing else.

mod case;
mod load;
mod mesh;
mod peers;
mod profile;
mod programs;
mod report;
mod swarm;

use std::path::PathBuf;

use anyhow::Result;

use self::case::Case;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// A published port: from a client through one node to a task.
    Mesh,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(value_enum, default_value = "mesh")]
    subject: Subject,
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// How long each measurement lasts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=5))]
    seconds: u64,
    /// How often each is taken; the cases take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=20))]
    rounds: u64,
    /// Only this case, and raw, to which it is compared. May be given more than once.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,
    /// Instead of measuring, show where this case spends the machine's time while connections are kept alive.
    #[arg(long, value_enum, conflicts_with_all = ["json", "rounds", "cases"])]
    profile: Option<Case>,
    /// The binary to run; a release build where absent.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match args.subject {
        Subject::Mesh => mesh::run(args),
    }
}
