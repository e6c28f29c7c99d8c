//! `demo`: shows what weft does, in one command on a bare machine.
//!
//! It prepares the machine, runs [`crate::story`] in a second process, and removes the lab when
//! that process has ended, failed, or was interrupted. Two processes are needed, because the story
//! must not change the lab while the lab is removed ([`crate::interrupt`]).

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Result, bail};
use weft_lab::{Lab, LabOptions, Runtime};

use crate::{
    cargo,
    interrupt::{self, End, SignalWatch},
    lab, machine, setup, story,
    ui::Ui,
};

const NODES: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the cluster up at the end, to try things out.
    #[arg(long)]
    keep: bool,
    /// Remove a lab that is up, instead of stopping with an error.
    #[arg(long)]
    replace: bool,
    /// The binary to run. Without this option it is built.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
    /// Run only the story, for the process that cleans up after it.
    #[arg(long, hide = true, requires = "weft")]
    story_only: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    match &options.weft {
        Some(weft) if options.story_only => return run_story(&ui, weft, options.keep),
        Some(_) => {}
        None => {
            check_not_in_use(options)?;
            println!("weft demo: three nodes and a client on this machine, each in a network namespace.\n");
        }
    }
    setup::lab(&ui)?;
    let weft = match &options.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_weft(&ui)?,
    };
    if !machine::is_root() {
        // The user has built the binary. Root continues with it.
        let mut arguments = vec![OsStr::new("demo"), OsStr::new("--weft"), weft.as_os_str()];
        arguments.extend(options.keep.then_some(OsStr::new("--keep")));
        arguments.extend(options.replace.then_some(OsStr::new("--replace")));
        return machine::become_root(&arguments);
    }
    let started = Instant::now();
    let _lock = Lab::lock()?;
    check_not_in_use(options)?;
    let watch = SignalWatch::new(&interrupt::SIGNALS)?;
    let mut story = Command::new(env::current_exe()?);
    story.args(["demo", "--story-only", "--weft"]).arg(&weft).args(options.keep.then_some("--keep"));
    let end = watch.run(&mut story)?;
    let interrupted = end == End::Interrupted;
    if interrupted {
        eprintln!("\ninterrupted: removing the lab");
    }
    if interrupted || !options.keep {
        ui.step("remove the lab", |_| lab::remove())?;
    }
    match end {
        End::Interrupted => bail!("the demo was interrupted"),
        End::Exited(status) if !status.success() => bail!("the demo stopped with the error above"),
        End::Exited(_) => {}
    }
    if !options.keep {
        println!("The demo took {:.0} s. Its lab is removed.", started.elapsed().as_secs_f64());
        println!("`cargo xtask demo --keep` leaves the cluster up, to try things out.");
    }
    Ok(())
}

/// Fails when a lab of a user is up: the demo removes such a lab only with `--replace`.
fn check_not_in_use(options: &Options) -> Result<()> {
    let nodes = Lab::in_use();
    if options.replace || nodes.is_empty() {
        return Ok(());
    }
    bail!(
        "a lab is up (nodes {}): remove it with `cargo xtask lab down`, or run `cargo xtask demo --replace`",
        nodes.join(", ")
    )
}

/// Creates the lab and runs the story in it. The lab stays up, also after an error.
fn run_story(ui: &Ui, weft: &Path, keep: bool) -> Result<()> {
    let options =
        LabOptions { nodes: NODES, managers: 1, runtime: Runtime::Process, init: false, weft: weft.to_owned() };
    let lab = ui.step("start three nodes", |_| Lab::up(options))?;
    let result = story::run(ui, &lab);
    match &result {
        Ok(summary) => println!("\n{summary}"),
        Err(_) => {
            for node in lab.nodes() {
                eprintln!("--- the end of the log of {node}\n{}", lab.log_tail(&node));
            }
        }
    }
    if keep {
        if result.is_ok() {
            story::prepare_for_user(ui, &lab)?;
        }
        lab.mark_in_use()?;
        println!("\n{}", lab::next_commands(&lab, true));
    }
    result.map(|_| ())
}
