//! The real stack on simulated machines: three managers and two workers with openraft, tonic,
//! rustls, redb, the dispatcher, the link and the supervisor, all in one thread. What is simulated
//! is below them: TCP, the disks, the clocks, threads that block, and random numbers
//! (`fixture::simulated`).
//!
//! A run follows from its seed: a cluster is formed, then clients make changes at every manager
//! while faults come and go, then the faults end, and the cluster must settle. A failure prints the
//! seed and what happened, and `WEFT_SIM_SEED=N` runs that seed again. `WEFT_SIM_SEEDS` sets the
//! number of seeds.
//!
//! tokio takes the seed of its own choices from the process. So each seed runs in a process of its
//! own, which is this test program with [`SEED`] in its environment.
//!
//! - `observed` has what is checked all the time: equal states at equal indexes, one leader in a
//!   term, no plan that goes back. `world` checks at the end that the cluster settles: no confirmed
//!   change is lost, the states are equal, all managers vote, all nodes are ready, all tasks run.
//! - `histories` checks that the answers of the API are linearizable.

mod observed;
mod faults;
mod daemon;
mod world;

use std::{
    panic::{self, AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use self::{faults::FAULTS_MS, observed::MANAGERS, world::World};
use crate::fixture::{seeds, simulated::seed_entropy, variable};

const SEEDS: u64 = 50;
/// In the environment of the process that runs this seed.
const SEED: &str = "WEFT_TEST_STACK_SEED";
/// In the environment of a process that runs [`simulate_resumed_leaders`].
const RESUMES: &str = "WEFT_TEST_STACK_RESUMES";
const ROUNDS: usize = 6;
/// The number of panics in this process.
static PANICS: AtomicUsize = AtomicUsize::new(0);
/// In its output, this precedes a number that depends on all that happened.
const DIGEST: &str = "trace ";
/// How long a cluster may take to settle without faults. A node without acknowledgements holds a
/// rollout for 20 s, and a stopped log is opened again after some seconds.
const SETTLE: Duration = Duration::from_secs(60);
/// How often the managers are looked at for one that a fault has left as a worker.
const APPOINT: Duration = Duration::from_secs(2);
/// How far the cluster's time may be behind the clock. A manager that gets an entry late takes over
/// its time. If it leads next, it is as late as the fault was long, and the next one again.
const CLOCK_SLACK: Duration = Duration::from_secs(8);
/// How many lines of the trace a failure prints.
const SHOWN: usize = 400;

fn simulate(seed: u64, world: &mut World) {
    world.set_up();
    let (started, started_ms) = (world.now, world.cluster_ms());
    let faults = faults::choose(world.rng());
    let end = started + Duration::from_millis(FAULTS_MS.end + 1_000);
    let mut next = faults.iter().peekable();
    while world.now < end {
        let now = world.now.saturating_sub(started);
        while let Some(over) = world.over(now) {
            world.end(over);
        }
        while let Some(scheduled) = next.next_if(|scheduled| scheduled.from <= now) {
            world.begin(*scheduled);
        }
        world.tick();
    }
    world.heal();
    let settled = world.now + SETTLE;
    while let Err(missing) = world.check_settled(world.replicas()) {
        assert!(world.now < settled, "the cluster does not settle: {missing}");
        let appoints = world.now + APPOINT;
        while world.now < appoints && world.check_settled(world.replicas()).is_err() {
            world.tick();
        }
        world.appoint_managers();
    }
    (0..MANAGERS).for_each(|at| world.read_all(at));
    let operations = world.recorder.check().unwrap_or_else(|text| panic!("{text}"));
    world.add_label("at-the-end");
    // It may run a tenth faster than real time. A manager that starts takes the real time.
    let (advanced, real) = (Duration::from_millis(world.cluster_ms() - started_ms), world.now - started);
    let follows = advanced <= real.mul_f64(1.1) + CLOCK_SLACK && advanced + CLOCK_SLACK >= real;
    assert!(follows, "the cluster's time has advanced by {advanced:?} in {real:?}");
    println!("seed {seed}: {operations} operations, {} labels, {real:?}", world.observed.count_labels());
}

/// All machines lose their power just after a change was confirmed, and start again. Managers
/// answer reads as soon as they can. What they call up to date must have the change.
fn simulate_resumed_leaders(world: &mut World) {
    world.set_up();
    let mut current = 0;
    for round in 0..ROUNDS {
        let label = format!("round-{round}");
        world.add_label(&label);
        world.cut_power();
        for (at, state) in world.read_at_once() {
            current += 1;
            let has_it = state.nodes[&world.nodes[0]].spec.labels.contains_key(&label);
            assert!(has_it, "round {round}: n{} answers without the confirmed label", at + 1);
        }
        world.wait_until_settled();
    }
    assert!(current > 0, "no manager was up to date");
    println!("{current} answers");
}

/// A number that depends on everything that happened.
fn digest(world: &World) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (world.observed.lines(), world.network_digest()).hash(&mut hasher);
    hasher.finish()
}

/// Does nothing, unless it runs in the process of a seed.
#[test]
fn seed() {
    let Some(seed) = variable(SEED) else { return };
    if let Ok(filter) = std::env::var("WEFT_SIM_LOG") {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(false).init();
    }
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        hook(info);
    }));
    let simulation = thread::spawn(move || {
        seed_entropy(seed);
        let mut world = World::new(seed);
        let failed = catch_unwind(AssertUnwindSafe(|| match variable(RESUMES) {
            None => simulate(seed, &mut world),
            Some(_) => simulate_resumed_leaders(&mut world),
        }));
        // tokio and openraft catch panics of their tasks.
        let failed = failed.is_err() || PANICS.load(Ordering::Relaxed) > 0;
        println!("{DIGEST}{:016x}", digest(&world));
        if failed || std::env::var("WEFT_SIM_TRACE").is_ok() {
            let lines = world.observed.lines();
            lines[lines.len().saturating_sub(SHOWN)..].iter().for_each(|line| println!("{line}"));
        }
        assert!(!failed, "seed {seed} has failed");
    });
    simulation.join().expect("the seed passes");
}

/// Runs a seed in a process of its own, with these variables. Returns the number that depends on
/// all that happened.
fn run(seed: u64, variables: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().expect("the path of this program"))
        .args(["--exact", "swarm::tests::stack::seed", "--nocapture"])
        .env(SEED, seed.to_string())
        .envs(variables.iter().copied())
        .output()
        .expect("the process runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed} fails; WEFT_SIM_SEED={seed} runs it again:\n{text}\n{errors}");
    let digest = text.lines().find_map(|line| line.split_once(DIGEST));
    digest.expect("the trace's digest").1.to_owned()
}

#[test]
fn the_real_stack_keeps_its_promises_under_every_fault() {
    for seed in seeds(SEEDS) {
        run(seed, &[]);
    }
}

#[test]
fn a_leader_that_resumes_confirms_no_read_before_all_that_was_confirmed() {
    for seed in 0..2 {
        run(seed, &[(RESUMES, "1")]);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in 0..2 {
        assert_eq!(run(seed, &[]), run(seed, &[]), "seed {seed}");
    }
}
