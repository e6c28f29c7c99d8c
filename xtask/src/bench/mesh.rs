//! `bench mesh`: sets every case up, lets them take turns, and takes all of it away again.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use weft_lab::{Lab, http, netns};

use super::{
    Args,
    case::{Answer, Case, Target},
    load::{self, Load},
    peers::{self, Peers},
    profile,
    programs::Runner,
    report::Samples,
    swarm,
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

/// For a path to carry its first request once its parts run.
const READY: Duration = Duration::from_secs(15);
/// What a machine may do beside: more than that, and it disturbs.
const QUIET_PERCENT: f64 = 5.0;
const POLL: Duration = Duration::from_millis(50);
/// Of each load on each case before the first round: caches, neighbours, and the kernel's and the servers' tables fill.
const WARM_UP_SECONDS: u64 = 1;

pub(super) fn run(args: &Args) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::packages(&ui, TOOLS)?;
    if args.profile.is_some() {
        setup::packages(&ui, PROFILER)?;
    }
    let weft = match &args.weft {
        Some(weft) => weft.clone(),
        None => build(&ui)?,
    };
    if !machine::is_root() {
        // The build was the user's; what follows is root's.
        let arguments: Vec<OsString> = env::args_os().skip(1).collect();
        let mut arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        arguments.extend([OsStr::new("--weft"), weft.as_os_str()]);
        return machine::become_root(&arguments);
    }

    // Before signals are caught: whoever waits for the lock can still interrupt.
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    let outcome = Bed::up(&ui, &runner, &weft, &chosen(args)).and_then(|bed| match args.profile {
        Some(case) => bed.profile(&ui, case, args.seconds).map(|text| println!("{text}")),
        None => bed.measure(&ui, args).map(|(samples, background)| show(&samples, background, args)),
    });
    let cleaned = ui.step("clean up", |_| remove());
    outcome.and(cleaned)
}

/// Builds what users run.
fn build(ui: &Ui) -> Result<PathBuf> {
    let mut build = cargo::command(&["build", "--locked", "--release", "--package", "weft", "--bin", "weft"]);
    ui.step("build weft for release", |step| step.run(&mut build))?;
    // Beside this program's own profile.
    let own = env::current_exe().context("cannot find this program's file")?;
    let weft = own.parent().and_then(Path::parent).map(|target| target.join("release/weft"));
    let weft = weft.context("this program has no target directory")?;
    ensure!(weft.exists(), "cargo built weft, but not at {}", weft.display());
    Ok(weft)
}

/// The cases to measure. Raw is always among them.
fn chosen(args: &Args) -> Vec<Case> {
    let wanted = |case: &Case| match args.profile {
        Some(profiled) => *case == profiled,
        None => args.cases.is_empty() || args.cases.contains(case) || *case == Case::Raw,
    };
    Case::value_variants().iter().copied().filter(wanted).collect()
}

/// Takes away all that a run makes, this one or an earlier one.
fn remove() -> Result<()> {
    let peers = peers::remove();
    let lab = Lab::remove_any();
    peers.and(lab)
}

/// All cases, up.
struct Bed<'a> {
    runner: &'a Runner,
    targets: Vec<Target>,
    _peers: Option<Peers>,
    _lab: Option<Lab>,
}

impl<'a> Bed<'a> {
    fn up(ui: &Ui, runner: &'a Runner, weft: &Path, cases: &[Case]) -> Result<Self> {
        peers::remove()?;
        Lab::make_room()?;
        let has = |weft: bool| cases.iter().any(|case| case.is_weft() == weft);
        let peers = has(false).then(|| ui.step("set up the peers", |_| Peers::up(weft))).transpose()?;
        runner.check()?;
        let lab = has(true).then(|| ui.step("set up weft: a lab of two nodes", |_| swarm::up(weft))).transpose()?;
        let mut targets: Vec<Target> = Peers::targets().into_iter().chain(swarm::targets()).collect();
        targets.retain(|target| cases.contains(&target.case));
        let bed = Self { runner, targets, _peers: peers, _lab: lab };
        ui.step("wait until every case answers", |_| bed.targets.iter().try_for_each(|target| bed.wait(target)))?;
        Ok(bed)
    }

    /// Waits until a target answers, and from the place where it should.
    fn wait(&self, target: &Target) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let Err(error) = ask(target).and_then(|()| load::measure(self.runner, target, Load::OneStream, 1)) else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let case = target.case.name();
                return Err(error.context(format!("{case} does not answer within {READY:?}")));
            }
            self.runner.pause(POLL)?;
        }
    }

    /// Also says how busy the machine was with other things, before and after: the larger share, in percent.
    fn measure(&self, ui: &Ui, args: &Args) -> Result<(Samples, f64)> {
        let mut samples = Samples::default();
        let rest = || ui.step("look at the machine at rest", |_| load::background_percent(self.runner));
        let before = rest()?;
        ui.step("warm up", |_| self.round(0, WARM_UP_SECONDS, &mut Samples::default()))?;
        for round in 0..usize::try_from(args.rounds)? {
            let name = format!("round {} of {}", round + 1, args.rounds);
            ui.step(&name, |_| self.round(round, args.seconds, &mut samples))?;
        }
        Ok((samples, before.max(rest()?)))
    }

    /// Every load on every case, load by load. Each round begins with another case: none is always the first after a pause.
    fn round(&self, round: usize, seconds: u64, samples: &mut Samples) -> Result<()> {
        let mut targets: Vec<&Target> = self.targets.iter().collect();
        targets.rotate_left(round % self.targets.len());
        for load in Load::ALL {
            for target in &targets {
                let measured = load::measure(self.runner, target, load, seconds)
                    .with_context(|| format!("{}: {load:?}", target.case.name()))?;
                for (metric, value) in measured.values {
                    samples.add(target.case, metric, value);
                }
                for failure in measured.failures {
                    samples.add_failure(target.case, failure);
                }
            }
        }
        Ok(())
    }

    fn profile(&self, ui: &Ui, case: Case, seconds: u64) -> Result<String> {
        let target = self.targets.iter().find(|target| target.case == case).context("the case is not up")?;
        ui.step("warm up", |_| load::measure(self.runner, target, Load::KeepAlive, WARM_UP_SECONDS))?;
        ui.step(&format!("profile {}", case.name()), |_| profile::record(self.runner, target, seconds))
    }
}

/// One request: whether the right task answers.
fn ask(target: &Target) -> Result<()> {
    let reply = netns::within(&target.client, || http::get(target.http, "/"))??;
    let (said, expected) = match &target.answers {
        Answer::Task(task) => (reply.name, task),
        Answer::Node(node) => (reply.node, node),
    };
    ensure!(said == *expected, "{expected} should answer, but {said} does");
    Ok(())
}

fn show(samples: &Samples, background: f64, args: &Args) {
    let machine = machine_lines(background);
    if args.json {
        machine.iter().for_each(|line| eprintln!("{line}"));
        samples.json("mesh").iter().for_each(|line| println!("{line}"));
    } else {
        println!("{}\n", samples.table());
        println!(
            "Median of {} rounds of {} s each, ×ratio to raw (median of the ratios within each round); below, min–max.",
            args.rounds, args.seconds
        );
        for case in samples.cases() {
            println!("  {:<15} {}", case.name(), case.what());
        }
        machine.iter().for_each(|line| println!("{line}"));
    }
    if background > QUIET_PERCENT {
        eprintln!("warning: the machine was busy with other things, too: these numbers mean little");
    }
    for failure in samples.failures() {
        eprintln!("failed requests: {failure}");
    }
}

/// What the numbers depend on.
fn machine_lines(background: f64) -> Vec<String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let version = |program: &str, argument: &str| {
        let said = Command::new(program).arg(argument).output();
        let text = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    vec![
        format!(
            "Machine: {cores} × {}, Linux {}. Client, servers and nodes are namespaces of this machine and share its cores.",
            model.trim_start_matches([' ', '\t', ':']),
            read("/proc/sys/kernel/osrelease").trim(),
        ),
        format!("TCP congestion control, of all cases: {}.", read("/proc/sys/net/ipv4/tcp_congestion_control").trim()),
        format!("Other programs, idle daemons of weft among them, used {background:.1} % of the cores before or after."),
        format!(
            "Programs: {}; {}; {}; {}.",
            version("wrk", "-v").split(" [").next().unwrap_or_default(),
            version("iperf3", "-v"),
            version("haproxy", "-v"),
            version("nft", "-v")
        ),
        "cpu_us_per_req: time that all cores worked while connections were kept alive (user and kernel; client, servers, \
         nodes, and whatever else the machine did), by the number of requests."
            .to_owned(),
        "p50_us and p99_us: under that full load, where requests wait at whichever end is the busier. idle_p50_us: one \
         connection, one request at a time."
            .to_owned(),
    ]
}
