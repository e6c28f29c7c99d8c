//! `bench overlay`: what encryption costs. Two namespaces, client and server, with one veth pair.
//! All tunnels are on this pair, side by side, and idle unless they are measured.

mod case;
mod network;
mod tunnels;

use std::{path::PathBuf, thread};

use anyhow::{Context, Result};
use weft_lab::Lab;

use self::case::{Case, Tunnel};
use super::{
    Args,
    case::{ExpectedServer, Target},
    load::{Load, Metric},
    peers,
    programs::{Runner, Server},
    publish, rounds,
};
use crate::{
    cargo,
    machine::{self, Tool},
    setup,
    ui::Ui,
};

const TOOLS: &[Tool] = &[Tool { program: "wrk", package: "wrk" }, Tool { program: "iperf3", package: "iperf3" }];
const KERNEL_TOOLS: &[Tool] = &[Tool { program: "wg", package: "wireguard-tools" }];

const LOADS: &[Load] = &[Load::KeepAlive, Load::OneAtATime, Load::OneStream, Load::ManyStreams];
const METRICS: &[Metric] = &[
    Metric::KeepaliveRps,
    Metric::P99Us,
    Metric::IdleP50Us,
    Metric::Stream1Gbps,
    Metric::Stream8Gbps,
    Metric::CpuUsPerReq,
    Metric::CpuNsPerByte,
];

pub(super) fn run(args: &Args) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::packages(&ui, TOOLS)?;
    let programs = Programs::find(&ui, args)?;
    publish::create_folder()?;
    if !machine::is_root() {
        // The user has built the programs, and owns the folder. Root continues with the same
        // arguments.
        let Programs { weft, device, boringtun } = &programs;
        let mut paths = vec![("--weft", weft.as_path()), ("--device", device)];
        paths.extend(boringtun.as_ref().map(|path| ("--boringtun", path.as_path())));
        return machine::become_root_with(&paths);
    }
    // Before signals are caught, so that a user who waits for the lock can interrupt.
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    let outcome = up(&ui, &runner, &programs).and_then(|bed| {
        let (samples, background) = rounds::measure(&ui, &runner, &bed.targets, LOADS, METRICS, args)?;
        let mut versions = vec![publish::wrk_version(), publish::version("iperf3", "-v")];
        versions.extend(programs.boringtun.as_ref().map(|path| publish::version(&path.to_string_lossy(), "-V")));
        publish::report("overlay", &samples, background, &versions, args)
    });
    let cleaned = ui.step("remove all cases", |_| peers::remove());
    outcome.and(cleaned)
}

/// The programs that are no packages of the system.
struct Programs {
    weft: PathBuf,
    /// The example of weft-wireguard, which runs a device.
    device: PathBuf,
    /// `None` if it is left out.
    boringtun: Option<PathBuf>,
}

impl Programs {
    /// Builds or installs those that `args` does not name.
    fn find(ui: &Ui, args: &Args) -> Result<Self> {
        let weft = match &args.weft {
            Some(weft) => weft.clone(),
            None => cargo::build_release(ui, "weft", "bin", "weft")?,
        };
        let device = match &args.device {
            Some(device) => device.clone(),
            None => cargo::build_release(ui, "weft-wireguard", "example", "device")?,
        };
        let boringtun = match &args.boringtun {
            _ if args.without_boringtun => None,
            Some(boringtun) => Some(boringtun.clone()),
            None => {
                setup::cargo_program(ui, tunnels::BORINGTUN, &[])?;
                Some(machine::find(tunnels::BORINGTUN).context("cargo has installed boringtun-cli outside of PATH")?)
            }
        };
        Ok(Self { weft, device, boringtun })
    }
}

/// All cases, ready to be measured.
struct TestBed {
    targets: Vec<Target<Case>>,
    _running: Vec<Server>,
}

fn up(ui: &Ui, runner: &Runner, programs: &Programs) -> Result<TestBed> {
    peers::remove()?;
    let mut kinds = vec![Tunnel::UserSpace];
    if programs.boringtun.is_some() {
        kinds.extend([Tunnel::Boringtun, Tunnel::Mixed]);
    }
    network::create_pair()?;
    if tunnels::kernel_has_wireguard()? {
        setup::packages(ui, KERNEL_TOOLS)?;
        kinds.push(Tunnel::Kernel);
    } else {
        eprintln!("  - this kernel has no WireGuard: its cases are left out");
    }
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let mut running = Vec::new();
    ui.step("create the tunnels", |_| {
        network::create_vxlan(Case::Vxlan)?;
        for tunnel in &kinds {
            running.extend(tunnels::start(runner, *tunnel, programs, workers)?);
            network::configure_tunnel(*tunnel)?;
            network::create_vxlan(Case::Encrypted(*tunnel))?;
        }
        Ok(())
    })?;
    let plain = kinds.iter().map(|tunnel| Case::Plain(*tunnel));
    let encrypted = kinds.iter().map(|tunnel| Case::Encrypted(*tunnel));
    let cases: Vec<Case> = [Case::Raw, Case::Vxlan].into_iter().chain(plain).chain(encrypted).collect();
    running.extend(network::start_servers(&programs.weft, &cases)?);
    let target = |case: &Case| Target {
        case: *case,
        client: peers::netns_path(network::CLIENT),
        http: (network::address(*case, network::Side::Server), network::HTTP).into(),
        stream: (network::address(*case, network::Side::Server), network::stream_port(*case)).into(),
        server: ExpectedServer::Task(peers::task_name(network::SERVER)),
    };
    let bed = TestBed { targets: cases.iter().map(target).collect(), _running: running };
    ui.step("wait until every case answers", |_| {
        bed.targets.iter().try_for_each(|target| rounds::wait_ready(runner, target))
    })?;
    Ok(bed)
}
