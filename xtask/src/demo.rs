//! `demo`: from a bare machine to the whole story in one command. Prepares, hands over to [`crate::story`], cleans up
//! whatever happened, and sums up.

use std::{ffi::OsStr, path::PathBuf, time::Instant};

use anyhow::{Result, bail};
use weft_lab::{Lab, LabOptions, Runtime};

use crate::{cargo, lab, machine, setup, story, ui::Ui};

const NODES: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the cluster up at the end, to play with.
    #[arg(long)]
    keep: bool,
    /// The binary to run; built where absent.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    if options.weft.is_none() {
        println!("weft demo: three nodes and a client on this machine, each in a network namespace of its own.\n");
    }
    setup::lab(&ui)?;
    let weft = match &options.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_weft(&ui)?,
    };
    if !machine::is_root() {
        // The build was the user's; what follows is root's.
        let mut arguments = vec![OsStr::new("demo"), OsStr::new("--weft"), weft.as_os_str()];
        arguments.extend(options.keep.then_some(OsStr::new("--keep")));
        return machine::become_root(&arguments);
    }
    let started = Instant::now();
    let _lock = Lab::lock()?;
    let lab_options = LabOptions { nodes: NODES, managers: 1, runtime: Runtime::Process, init: false, weft };
    let lab = ui.step("start three nodes", |_| Lab::up(lab_options))?;
    let told = story::tell(&ui, &lab);
    if let Err(error) = &told {
        for node in lab.nodes() {
            eprintln!("--- the end of {node}'s log\n{}", lab.log_tail(&node));
        }
        eprintln!("error: {error:#}");
    }
    if options.keep {
        println!("\n{}", lab::how_to_play(&lab, true));
        told?;
        return Ok(());
    }
    ui.step("remove it all", |_| {
        lab.down()?;
        let left = weft_lab::leftovers();
        if !left.is_empty() {
            bail!("still there:\n  {}", left.join("\n  "));
        }
        Ok(())
    })?;
    let summary = told?;
    println!("\n{summary}");
    println!("That took {:.0} s, and nothing is left of it.", started.elapsed().as_secs_f64());
    println!("`cargo xtask demo --keep` leaves the cluster up to play with.");
    Ok(())
}
