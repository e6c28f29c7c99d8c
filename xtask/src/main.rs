//! The project's own tasks: `cargo xtask <task>`. One file for each; this one only knows their names.
//!
//! Everything that CI runs is a task, so that what passes here passes there.

mod apt;
mod bench;
mod cargo;
mod demo;
mod ebpf;
mod interrupt;
mod lab;
mod machine;
mod setup;
mod story;
mod test;
mod tidy;
mod ui;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Tasks of the weft project", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show what weft does: three nodes, a published service, names, isolation, scaling, a crash.
    Demo(demo::Options),
    /// Run everything that CI runs, and install what it lacks.
    Test(test::Options),
    /// A cluster to play with, in network namespaces.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Measure weft beside the limit of this machine and beside its peers.
    Bench(bench::Args),
    /// Rebuild the eBPF object, or check that the committed one is what its source makes.
    Ebpf(ebpf::Options),
    /// Install the programs that labs and the demo use, where they are missing; with --test all that `test` uses.
    Setup(setup::Options),
    /// Check the dependency edges between the crates, and that every source file says what it owns.
    Tidy,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    weft_lab::resolver::run_if_asked()?;
    match Arguments::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Lab(command) => lab::run(command),
        Task::Bench(args) => bench::run(&args),
        Task::Ebpf(options) => ebpf::run(&options),
        Task::Setup(options) => setup::run(&options),
        Task::Tidy => tidy::run(),
    }
}
