//! Waits until cases answer, and measures them in turn. `mesh` and `overlay` call it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use weft_lab::{http, netns, scaled};

use super::{
    Args,
    case::{ExpectedServer, Label, Target},
    load::{self, Load, Metric},
    programs::Runner,
    report::Samples,
};
use crate::ui::Ui;

/// The time in which a case must answer its first request.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// How long each load runs on each case before the first round, so that caches and neighbour
/// entries are filled.
pub(super) const WARM_UP_SECONDS: u64 = 1;

/// Waits until the expected server of a target answers, and iperf3 works.
pub(super) fn wait_ready<C: Label>(runner: &Runner, target: &Target<C>) -> Result<()> {
    let deadline = Instant::now() + scaled(READY_TIMEOUT);
    loop {
        let Err(error) = check_server(target).and_then(|()| load::measure(runner, target, Load::OneStream, 1)) else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            let case = target.case.name();
            return Err(error.context(format!("{case} does not answer within {READY_TIMEOUT:?}")));
        }
        runner.pause(POLL)?;
    }
}

/// Also returns the share of the cores that other programs used, in percent: the larger one of the
/// values before and after.
pub(super) fn measure<C: Label>(
    ui: &Ui,
    runner: &Runner,
    targets: &[Target<C>],
    loads: &[Load],
    metrics: &'static [Metric],
    args: &Args,
) -> Result<(Samples<C>, f64)> {
    let mut samples = Samples::new(metrics);
    let background = || ui.step("measure the machine without load", |_| load::background_percent(runner));
    let before = background()?;
    ui.step("warm up", |_| round(runner, targets, loads, 0, WARM_UP_SECONDS, &mut Samples::new(metrics)))?;
    for number in 0..usize::try_from(args.rounds)? {
        let name = format!("round {} of {}", number + 1, args.rounds);
        ui.step(&name, |_| round(runner, targets, loads, number, args.seconds, &mut samples))?;
    }
    Ok((samples, before.max(background()?)))
}

/// Runs every load on every case. Each round begins with another case, so that no case is always
/// the first after a pause.
fn round<C: Label>(
    runner: &Runner,
    targets: &[Target<C>],
    loads: &[Load],
    number: usize,
    seconds: u64,
    samples: &mut Samples<C>,
) -> Result<()> {
    let mut targets: Vec<&Target<C>> = targets.iter().collect();
    let first = number % targets.len();
    targets.rotate_left(first);
    for load in loads {
        for target in &targets {
            let measured = load::measure(runner, target, *load, seconds)
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

/// Sends one request, and checks that the expected server answers.
fn check_server<C>(target: &Target<C>) -> Result<()> {
    let address = target.http;
    let reply = netns::within(&target.client, || http::get(address, "/"))??;
    let (found, expected) = match &target.server {
        ExpectedServer::Task(task) => (reply.name, task),
        ExpectedServer::Node(node) => (reply.node, node),
    };
    ensure!(found == *expected, "{found} answers instead of {expected}");
    Ok(())
}
