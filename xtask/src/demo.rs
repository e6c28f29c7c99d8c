//! `demo`: from a bare machine to the whole story in one command. Prepares, has [`crate::story`] told by a process of its
//! own, cleans up whatever happened to it, and sums up.

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
    interrupt::{self, End, Watch},
    lab, machine, setup, story,
    ui::Ui,
};

const NODES: usize = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the cluster up at the end, to play with.
    #[arg(long)]
    keep: bool,
    /// Remove a lab that is up instead of refusing to.
    #[arg(long)]
    replace: bool,
    /// The binary to run; built where absent.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
    /// Only tell the story, for the process that cleans up after it.
    #[arg(long, hide = true, requires = "weft")]
    tell: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    match &options.weft {
        Some(weft) if options.tell => return tell(&ui, weft, options.keep),
        Some(_) => {}
        None => {
            refuse(options)?;
            println!("weft demo: three nodes and a client on this machine, each in a network namespace of its own.\n");
        }
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
        arguments.extend(options.replace.then_some(OsStr::new("--replace")));
        return machine::become_root(&arguments);
    }
    let started = Instant::now();
    let _lock = Lab::lock()?;
    refuse(options)?;
    let watch = Watch::new(&interrupt::SIGNALS)?;
    let mut teller = Command::new(env::current_exe()?);
    teller.args(["demo", "--tell", "--weft"]).arg(&weft).args(options.keep.then_some("--keep"));
    let (told, interrupted) = match watch.run(&mut teller)? {
        End::Itself(status) => (status.success(), false),
        End::Interrupted => (false, true),
    };
    if interrupted {
        eprintln!("\ninterrupted: cleaning up");
    }
    if interrupted || !options.keep {
        ui.step("remove it all", |_| lab::remove())?;
    }
    if interrupted {
        bail!("interrupted");
    }
    if !told {
        bail!("the story ended early, by the error above");
    }
    if !options.keep {
        println!("That took {:.0} s, and nothing is left of it.", started.elapsed().as_secs_f64());
        println!("`cargo xtask demo --keep` leaves the cluster up to play with.");
    }
    Ok(())
}

/// Nobody's lab is taken away unasked.
fn refuse(options: &Options) -> Result<()> {
    let nodes = Lab::in_use();
    if options.replace || nodes.is_empty() {
        return Ok(());
    }
    bail!(
        "a lab is up (nodes {}): remove it with `cargo xtask lab down`, or have it replaced with `cargo xtask demo --replace`",
        nodes.join(", ")
    )
}

/// Makes the lab and tells the story in it. The lab stays up.
fn tell(ui: &Ui, weft: &Path, keep: bool) -> Result<()> {
    let options =
        LabOptions { nodes: NODES, managers: 1, runtime: Runtime::Process, init: false, weft: weft.to_owned() };
    let lab = ui.step("start three nodes", |_| Lab::up(options))?;
    let told = story::tell(ui, &lab);
    if told.is_err() {
        for node in lab.nodes() {
            eprintln!("--- the end of {node}'s log\n{}", lab.log_tail(&node));
        }
    }
    if let Ok(summary) = &told {
        println!("\n{summary}");
    }
    if keep {
        if told.is_ok() {
            story::again(ui, &lab)?;
        }
        lab.keep()?;
        println!("\n{}", lab::how_to_play(&lab, true));
    }
    told.map(|_| ())
}
