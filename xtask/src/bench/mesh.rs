//! `bench mesh`: creates all cases, measures them in turn, prints and writes the results, and
//! removes all cases.

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
    case::{Case, ExpectedServer, Target},
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

/// The time in which a case must answer its first request.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// The share of the cores that other programs may use. A larger share distorts the numbers.
const MAX_BACKGROUND_PERCENT: f64 = 5.0;
const POLL: Duration = Duration::from_millis(50);
/// How long each load runs on each case before the first round, so that caches and neighbour
/// entries are filled.
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
    fs::create_dir_all(results_folder()).with_context(|| format!("cannot create {}", results_folder().display()))?;
    if !machine::is_root() {
        // The user has built the binary, and owns the folder. Root continues with the same
        // arguments.
        let arguments: Vec<OsString> = env::args_os().skip(1).collect();
        let mut arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        arguments.extend([OsStr::new("--weft"), weft.as_os_str()]);
        return machine::become_root(&arguments);
    }

    // Before signals are caught, so that a user who waits for the lock can interrupt.
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    let outcome = TestBed::up(&ui, &runner, &weft, &chosen(args)).and_then(|bed| match args.profile {
        Some(case) => bed.profile(&ui, case, args.seconds).map(|text| println!("{text}")),
        None => bed.measure(&ui, args).and_then(|(samples, background)| report(&samples, background, args)),
    });
    let cleaned = ui.step("remove all cases", |_| remove());
    outcome.and(cleaned)
}

/// Builds weft as users do.
fn build(ui: &Ui) -> Result<PathBuf> {
    let mut build = cargo::command(&["build", "--locked", "--release", "--package", "weft", "--bin", "weft"]);
    ui.step("build weft for release", |step| step.run(&mut build))?;
    // The folder of the release profile is beside the folder of this program's profile.
    let own = env::current_exe().context("cannot find the file of this program")?;
    let weft = own.parent().and_then(Path::parent).map(|target| target.join("release/weft"));
    let weft = weft.context("the file of this program is not in a target folder")?;
    ensure!(weft.exists(), "cargo built weft, but there is no {}", weft.display());
    Ok(weft)
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
    targets: Vec<Target>,
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
        let mut targets: Vec<Target> = Peers::targets().into_iter().chain(swarm::targets()).collect();
        targets.retain(|target| cases.contains(&target.case));
        let bed = Self { runner, targets, _peers: peers, _lab: lab };
        ui.step("wait until every case answers", |_| bed.targets.iter().try_for_each(|target| bed.wait_ready(target)))?;
        Ok(bed)
    }

    /// Waits until the expected server of a target answers, and iperf3 works.
    fn wait_ready(&self, target: &Target) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let Err(error) = check_server(target).and_then(|()| load::measure(self.runner, target, Load::OneStream, 1))
            else {
                return Ok(());
            };
            if Instant::now() >= deadline {
                let case = target.case.name();
                return Err(error.context(format!("{case} does not answer within {READY_TIMEOUT:?}")));
            }
            self.runner.pause(POLL)?;
        }
    }

    /// Also returns the share of the cores that other programs used, in percent: the larger one of
    /// the values before and after.
    fn measure(&self, ui: &Ui, args: &Args) -> Result<(Samples, f64)> {
        let mut samples = Samples::default();
        let background = || ui.step("measure the machine without load", |_| load::background_percent(self.runner));
        let before = background()?;
        ui.step("warm up", |_| self.round(0, WARM_UP_SECONDS, &mut Samples::default()))?;
        for round in 0..usize::try_from(args.rounds)? {
            let name = format!("round {} of {}", round + 1, args.rounds);
            ui.step(&name, |_| self.round(round, args.seconds, &mut samples))?;
        }
        Ok((samples, before.max(background()?)))
    }

    /// Runs every load on every case. Each round begins with another case, so that no case is
    /// always the first after a pause.
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
        let target = self.targets.iter().find(|target| target.case == case).context("the case was created")?;
        ui.step("warm up", |_| load::measure(self.runner, target, Load::KeepAlive, WARM_UP_SECONDS))?;
        ui.step(&format!("profile {}", case.name()), |_| profile::record(self.runner, target, seconds))
    }
}

/// Sends one request, and checks that the expected server answers.
fn check_server(target: &Target) -> Result<()> {
    let reply = netns::within(&target.client, || http::get(target.http, "/"))??;
    let (found, expected) = match &target.server {
        ExpectedServer::Task(task) => (reply.name, task),
        ExpectedServer::Node(node) => (reply.node, node),
    };
    ensure!(found == *expected, "{found} answers instead of {expected}");
    Ok(())
}

/// The folder for the JSON files.
fn results_folder() -> PathBuf {
    cargo::root().join("target/bench")
}

/// Prints the table or the JSON lines, and writes the JSON file.
fn report(samples: &Samples, background: f64, args: &Args) -> Result<()> {
    let json = samples.json("mesh");
    let file = results_folder().join("mesh.jsonl");
    let machine = machine_lines(background);
    if args.json {
        machine.iter().for_each(|line| eprintln!("{line}"));
        json.iter().for_each(|line| println!("{line}"));
    } else {
        println!("{}\n", samples.table());
        println!(
            "Medians of {} rounds of {} s each, with their ratio to raw (the median of the ratios within each round). Minima \
             and maxima are in {}.",
            args.rounds,
            args.seconds,
            file.display()
        );
        for case in samples.cases() {
            println!("  {:<15} {}", case.name(), case.description());
        }
        machine.iter().for_each(|line| println!("{line}"));
    }
    if background > MAX_BACKGROUND_PERCENT {
        eprintln!("warning: other programs used {background:.1} % of the cores, which distorts these numbers");
    }
    for failure in samples.failures() {
        eprintln!("failed requests: {failure}");
    }
    // Write the file last, so that the results are printed even if this fails.
    fs::write(&file, json.join("\n") + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// Describes the machine, the programs and the metrics, on which the numbers depend.
fn machine_lines(background: f64) -> Vec<String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    vec![
        format!(
            "Machine: {cores} × {}, Linux {}. Client, servers and nodes are namespaces of this machine and share its cores.",
            model.trim_start_matches([' ', '\t', ':']),
            read("/proc/sys/kernel/osrelease").trim(),
        ),
        format!("TCP congestion control of all cases: {}.", read("/proc/sys/net/ipv4/tcp_congestion_control").trim()),
        format!("Other programs, with the idle daemons of weft, used {background:.1} % of the cores without load."),
        format!(
            "Programs: {}; {}; {}; {}.",
            version("wrk", "-v").split(" [").next().unwrap_or_default(),
            version("iperf3", "-v"),
            version("haproxy", "-v"),
            version("nft", "-v")
        ),
        "cpu_us_per_req: the time that all cores worked under keep-alive load (user and kernel; client, servers, nodes and \
         other programs), divided by the number of requests."
            .to_owned(),
        "p50_us and p99_us: latency under keep-alive load, where most of the time is waiting in a queue. idle_p50_us: \
         latency with one connection and one request at a time."
            .to_owned(),
    ]
}
