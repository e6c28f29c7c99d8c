//! The tasks of this project: `cargo xtask <task>`. Each task is a module; this file only lists
//! them.
//!
//! Everything that CI runs is a task, so that a developer's machine and CI run the same checks.

mod machine;
mod ui;
mod cargo;
mod apt;
mod interrupt;
mod setup;
mod outcome;
mod tidy;
mod check;
mod lab;
mod story;
mod demo;
mod bench;
mod vm;
mod ebpf;
mod golden;
mod fuzz;
mod test;
mod upgrade;

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
    /// Show what weft does: three nodes, a published service, names, isolation, scaling, crashes.
    Demo(demo::Options),
    /// Check format, lints, tidy and docs, and run the unit and doc tests. Needs no root, and
    /// installs nothing.
    Check,
    /// Run everything that CI runs. Installs what is missing, and needs root.
    Test(test::Options),
    /// Run a cluster in network namespaces of this machine, to try things out.
    #[command(subcommand)]
    Lab(lab::Command),
    /// Measure weft, the limit of this machine, and other programs, to compare them.
    Bench(bench::Args),
    /// Boot another kernel in a virtual machine, and run end-to-end tests, a benchmark or a command
    /// in it.
    #[command(subcommand)]
    Vm(vm::Command),
    /// Rebuild the eBPF object, or check that the committed one is built from its source.
    Ebpf(ebpf::Options),
    /// Look for input that makes a reader of weft panic: what a disk, a node or a user may send.
    Fuzz(fuzz::Options),
    /// Add the golden files of new schema versions of what weft stores and sends.
    Golden,
    /// Build the previous release, and upgrade a cluster of it to this one, node by node under
    /// load.
    Upgrade,
    /// Install the programs that the lab and the demo need; with --test, those of `test` too.
    Setup(setup::Options),
    /// Check crate dependencies, imports, module docs, names and the width of comments.
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
    weft_lab::resolver::run_if_requested()?;
    if weft_lab::speed::measure_if_requested()? {
        return Ok(());
    }
    match Arguments::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Check => check::run(),
        Task::Test(options) => test::run(&options),
        Task::Lab(command) => lab::run(command),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Golden => golden::run(),
        Task::Upgrade => upgrade::run(),
        Task::Bench(args) => bench::run(&args),
        Task::Vm(command) => vm::run(&command),
        Task::Ebpf(options) => ebpf::run(&options),
        Task::Setup(options) => setup::run(&options),
        Task::Tidy => tidy::run(),
    }
}
