//! `bench mesh`: creates all cases, measures them in turn, prints and writes the results, and
//! removes all cases.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use weft_lab::Lab;

use super::{
    Args,
    case::{Case, Label, Target},
    load::{self, Load, Metric},
    peers::{self, Peers},
    profile,
    programs::Runner,
    publish, rounds, swarm,
};
use crate::{
    cargo,
    machine::{self, Tool},
    setup,
    ui::Ui,
};

const TOOLS: &[Tool] = &[
    Tool { program: "wrk", package: "wrk" },
    Tool { program: "iperf3", package: "iperf3" },
    Tool { program: "haproxy", package: "haproxy" },
    Tool { program: "nft", package: "nftables" },
    Tool { program: "bridge", package: "iproute2" },
];
const PROFILER: &[Tool] = &[Tool { program: "perf", package: "linux-perf" }];

pub(super) fn run(args: &Args) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::packages(&ui, TOOLS)?;
    if args.profile.is_some() {
        setup::packages(&ui, PROFILER)?;
    }
    let weft = match &args.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_release(&ui, "weft", "bin", "weft")?,
    };
    publish::create_folder()?;
    if !machine::is_root() {
        // The user has built the binary, and owns the folder. Root continues with the same
        // arguments.
        return machine::become_root_with(&[("--weft", &weft)]);
    }

    // Before signals are caught, so that a user who waits for the lock can interrupt.
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    let outcome = TestBed::up(&ui, &runner, &weft, &chosen(args)).and_then(|bed| match args.profile {
        Some(case) => bed.profile(&ui, case, args.seconds).map(|text| println!("{text}")),
        None => rounds::measure(&ui, &runner, &bed.targets, Load::ALL, Metric::ALL, args)
            .and_then(|(samples, background)| publish::report("mesh", &samples, background, &programs(), args)),
    });
    let cleaned = ui.step("remove all cases", |_| remove());
    outcome.and(cleaned)
}

/// The versions of the programs.
fn programs() -> Vec<String> {
    vec![
        publish::wrk_version(),
        publish::version("iperf3", "-v"),
        publish::version("haproxy", "-v"),
        publish::version("nft", "-v"),
    ]
}

/// The cases to measure, with raw, or the one case to profile.
fn chosen(args: &Args) -> Vec<Case> {
    let is_selected = |case: &Case| match args.profile {
        Some(profiled) => *case == profiled,
        None => args.cases.is_empty() || args.cases.contains(case) || *case == Case::Raw,
    };
    Case::value_variants().iter().copied().filter(is_selected).collect()
}

/// Removes everything that this run or an earlier run has created.
fn remove() -> Result<()> {
    let peers = peers::remove();
    let lab = Lab::remove();
    peers.and(lab)
}

/// All cases, ready to be measured.
struct TestBed<'a> {
    runner: &'a Runner,
    targets: Vec<Target<Case>>,
    _peers: Option<Peers>,
    _lab: Option<Lab>,
}

impl<'a> TestBed<'a> {
    fn up(ui: &Ui, runner: &'a Runner, weft: &Path, cases: &[Case]) -> Result<Self> {
        peers::remove()?;
        Lab::remove_previous()?;
        let has = |weft: bool| cases.iter().any(|case| case.is_weft() == weft);
        let peers = has(false).then(|| ui.step("create the peers", |_| Peers::up(weft))).transpose()?;
        runner.check()?;
        let lab = has(true).then(|| ui.step("create a lab of two nodes", |_| swarm::up(weft))).transpose()?;
        let mut targets: Vec<Target<Case>> = Peers::targets().into_iter().chain(swarm::targets()).collect();
        targets.retain(|target| cases.contains(&target.case));
        let bed = Self { runner, targets, _peers: peers, _lab: lab };
        ui.step("wait until every case answers", |_| {
            bed.targets.iter().try_for_each(|target| rounds::wait_ready(runner, target))
        })?;
        Ok(bed)
    }

    fn profile(&self, ui: &Ui, case: Case, seconds: u64) -> Result<String> {
        let target = self.targets.iter().find(|target| target.case == case).context("the case was created")?;
        ui.step("warm up", |_| load::measure(self.runner, target, Load::KeepAlive, rounds::WARM_UP_SECONDS))?;
        ui.step(&format!("profile {}", case.name()), |_| profile::record(self.runner, target, seconds))
    }
}
