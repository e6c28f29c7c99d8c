//! `bench containers`: how long the docker engine of a node takes to create and start a container:
//! without a network, on the engine's default network, and on a network of the cluster. And how
//! long a service takes until its task runs.
//!
//! All containers are of one image, and run one program that waits. The docker client makes all but
//! the tasks through the API of weft, so the time of both is a part of each number.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_lab::{Lab, LabOptions, Runtime, docker};

use super::{Args, programs::Runner, steps};
use crate::{cargo, machine, setup, ui::Ui};

const BENCH: &str = "containers";
const NODE: &str = "n1";
/// The name of the container, of the service and of the network of the cluster.
const NAME: &str = "bench";
/// The time in which a task must run.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two looks at the task. It bounds the error of the measurement.
const POLL: Duration = Duration::from_millis(2);

/// The network of a container, and the name of its case.
const CASES: [(&str, &str); 3] = [("none", "none"), ("bridge", "bridge"), (NAME, "network of the cluster")];

pub(super) fn run(args: &Args) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::docker(&ui)?;
    let weft = match &args.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_release(&ui, "weft", "bin", "weft")?,
    };
    if !machine::is_root() {
        return machine::become_root_with(&[("--weft", &weft)]);
    }
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    let measured =
        ui.step(&format!("create and start containers {} times", args.count), |_| rounds(weft, &runner, args.count));
    let cleaned = ui.step("remove the lab", |_| Lab::remove());
    let lines = measured?;
    cleaned?;
    steps::report(BENCH, &lines, args.json)
}

fn rounds(weft: PathBuf, runner: &Runner, count: u64) -> Result<Vec<Value>> {
    Lab::remove_previous()?;
    let lab = Lab::up(LabOptions { nodes: 1, managers: 1, runtime: Runtime::Docker, init: true, weft })?;
    lab.create_tools_images()?;
    lab.weft_ok(NODE, &["network", "create", "--attachable", NAME])?;
    let mut times = BTreeMap::<String, Vec<f64>>::new();
    for round in 0..count {
        runner.check()?;
        for (network, case) in CASES {
            for (step, duration) in container(&lab, network).with_context(|| format!("round {round}, {case}"))? {
                times.entry(format!("{case}: {step}")).or_default().push(duration.as_secs_f64() * 1e3);
            }
        }
        let running = task(&lab, runner).with_context(|| format!("round {round}, task"))?;
        times.entry("task of a service: running".to_owned()).or_default().push(running.as_secs_f64() * 1e3);
    }
    lab.down()?;
    Ok(times.into_iter().filter_map(|(name, values)| steps::summary(BENCH, &name, values)).collect())
}

/// Creates, starts and removes a container on this network. Returns how long the first two took.
fn container(lab: &Lab, network: &str) -> Result<[(&'static str, Duration); 3]> {
    let begin = Instant::now();
    lab.docker_ok(NODE, &["create", "--name", NAME, "--network", network, docker::TOOLS_IMAGE, "sleep", "infinity"])?;
    let created = begin.elapsed();
    lab.docker_ok(NODE, &["start", NAME])?;
    let started = begin.elapsed();
    lab.docker_ok(NODE, &["rm", "--force", NAME])?;
    Ok([("create", created), ("start", started.saturating_sub(created)), ("create and start", started)])
}

/// Creates a service with one task on the network of the cluster, and removes it. Returns how long
/// it took until the task ran.
fn task(lab: &Lab, runner: &Runner) -> Result<Duration> {
    let begin = Instant::now();
    let mut create = vec!["service", "create", "--detach", "--quiet", "--no-resolve-image", "--name", NAME];
    create.extend(["--network", NAME, docker::TOOLS_IMAGE, "sleep", "infinity"]);
    lab.weft_ok(NODE, &create)?;
    let running = loop {
        if lab.tasks(NODE, NAME)?.iter().any(weft_lab::Task::is_running) {
            break begin.elapsed();
        }
        ensure!(begin.elapsed() < TIMEOUT, "the task does not run within {TIMEOUT:?}");
        runner.pause(POLL)?;
    };
    lab.weft_ok(NODE, &["service", "rm", NAME])?;
    while !docker::docker(lab.engine(NODE)?, &["ps", "--quiet"])?.is_empty() {
        ensure!(begin.elapsed() < 2 * TIMEOUT, "the task does not stop within {TIMEOUT:?}");
        runner.pause(POLL)?;
    }
    Ok(running)
}
