//! `bench`: measures weft, the limit of the machine, and alternatives to weft, in one run.
//!
//! Client, servers and nodes run in network namespaces of this machine and share its cores.
//! Therefore the numbers compare the cases of one run with each other, and nothing else.

mod case;
mod settings;
mod programs;
mod load;
mod report;
mod profile;
mod rounds;
mod publish;
mod peers;
mod swarm;
mod mesh;
mod dns;
mod steps;
mod control;
mod containers;
mod overlay;

use std::path::PathBuf;

use anyhow::{Result, ensure};

use self::case::Case;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// A published port: from a client through one node to a task.
    Mesh,
    /// The resolver of a task, with 10,000 names.
    Dns,
    /// The control plane: a /16 with 10,000 tasks, and networks that come and go.
    Control,
    /// Containers on a network of the cluster, on the engine's own networks, and as tasks.
    Containers,
    /// An overlay network between two nodes: clear, and encrypted by several WireGuard devices.
    Overlay,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Prints a table of medians. Writes medians, minima and maxima to target/bench/SUBJECT.jsonl, \
                        one JSON object for each case and metric.")]
pub(crate) struct Args {
    /// What to measure.
    #[arg(value_enum, default_value = "mesh")]
    subject: Subject,
    /// Print the lines of the JSON file instead of the table.
    #[arg(long)]
    json: bool,
    /// How many seconds each measurement takes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=5))]
    seconds: u64,
    /// How many times each measurement is taken. All cases are measured once in each round.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=20))]
    rounds: u64,
    /// Measure only this case of mesh, and raw, with which it is compared. Can be given more than
    /// once.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,
    /// Profile this case of mesh under keep-alive load instead of measuring: show where it spends
    /// CPU time.
    #[arg(long, value_enum, conflicts_with_all = ["json", "rounds", "cases"])]
    profile: Option<Case>,
    /// How many times `control` creates, uses and removes a network, and `containers` a container
    /// of each kind.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    count: u64,
    /// The binary to run. Without this option a release build is made.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
    /// The example `device` of weft-wireguard. Without this option a release build is made.
    #[arg(long, hide = true)]
    device: Option<PathBuf>,
    /// boringtun's own tool. Without this option it is searched, and installed if it is missing.
    #[arg(long, hide = true)]
    boringtun: Option<PathBuf>,
    /// Leave out boringtun's tool: the virtual machine of `vm bench` has no cargo.
    #[arg(long, hide = true, conflicts_with = "boringtun")]
    without_boringtun: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let only_mesh = args.cases.is_empty() && args.profile.is_none();
    ensure!(args.subject == Subject::Mesh || only_mesh, "--case and --profile are for `bench mesh`");
    match args.subject {
        Subject::Mesh => mesh::run(args),
        Subject::Dns => dns::run(args),
        Subject::Control => control::run(args),
        Subject::Containers => containers::run(args),
        Subject::Overlay => overlay::run(args),
    }
}
