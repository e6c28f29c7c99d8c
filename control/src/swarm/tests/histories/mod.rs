//! A history of requests to three managers under faults, and whether it is linearizable: whether
//! the answers are those that a single machine could have given.
//!
//! Clients create, update, read and remove three services through the Engine API of the managers,
//! at the same time, while links are held, slowed and cut, daemons restart, all machines lose their
//! power, and leaders are isolated until another one leads. Each call and its answer are recorded.
//! [`check()`] decides for each service whether its history is linearizable. Services do not depend
//! on each other, so this is the case for the whole history too.
//!
//! - A call without an answer, and an answer with status 503, leave the outcome open: the change
//!   may have been made at any time, or may still be made.
//! - Other errors promise that nothing has changed, and are checked like every answer.
//! - An answer with the warning that it may be out of date must be what was true at some earlier
//!   time. Without the warning, it must be true during the request.
//!
//! `WEFT_SIM_SEEDS` sets how many seeds the test runs, and `WEFT_SIM_SEED` names the one to run.

mod operation;
mod check;
mod client;
mod tests;

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom as _};
use tokio::time::{sleep, timeout};

use self::{
    check::check,
    client::{Client, Recorder, SERVICES},
    operation::{Answer, Operation, Outcome},
};
use super::{
    fixture::DEADLINE,
    trial::{Fault, Trial},
};
use crate::fixture::seeds;

const SEEDS: u64 = 1;
/// Two for each manager.
const CLIENTS: usize = 6;
/// How long a fault lasts, and the time without faults before it, in milliseconds.
const FAULT_MS: Range<u64> = 500..2_000;
const HEALTHY_MS: Range<u64> = 700..1_500;
/// How long a deposed leader stays isolated. A read takes 2 s there, and then has a warning.
const DEPOSED: Duration = Duration::from_millis(2_500);
/// The delay of a message on a slow link, in milliseconds. A voter has 250 ms to answer.
const SLOW_MS: Range<u64> = 10..80;
/// The fewest confirmed changes of each service. More than 100 are usual.
const CHANGES: usize = 30;

fn random_ms(rng: &mut StdRng, range: Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

/// Deposes the leader, and injects each kind of fault once, in a random order.
async fn inject(trial: &mut Trial, rng: &mut StdRng) {
    let mut victim = || rng.random_range(0..3);
    let (alone, caller, restarts) = (victim(), victim(), victim());
    let called = (caller + rng.random_range(1..3)) % 3;
    let mut faults = [
        None,
        Some(Fault::Alone(alone)),
        Some(Fault::Held(caller, called)),
        Some(Fault::Slow(random_ms(rng, SLOW_MS))),
        Some(Fault::Cut),
        Some(Fault::Restart(restarts, random_ms(rng, FAULT_MS))),
        Some(Fault::PowerCut(None, random_ms(rng, FAULT_MS), rng.random())),
    ];
    faults.shuffle(rng);
    for fault in faults {
        sleep(random_ms(rng, HEALTHY_MS)).await;
        match fault {
            Some(fault) => {
                trial.begin(fault).await;
                sleep(random_ms(rng, FAULT_MS)).await;
            }
            None => {
                trial.depose_leader().await;
                sleep(DEPOSED).await;
            }
        }
        trial.heal();
    }
}

/// Runs clients and faults. Returns the histories of the services, and the faults.
async fn record(seed: u64) -> ([Vec<Operation>; SERVICES], Vec<String>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut trial = Trial::new().await;
    let recorder = Recorder::new();
    let mut clients: Vec<Client> = (0..=CLIENTS)
        .map(|number| Client::new(number, trial.managers.clone(), recorder.clone(), rng.random()))
        .collect();
    let mut last = clients.pop().expect("a client");
    let clients: Vec<_> = clients.into_iter().map(|client| tokio::spawn(client.run())).collect();
    inject(&mut trial, &mut rng).await;
    recorder.end();
    for client in clients {
        client.await.expect("the client ends");
    }
    for manager in 0..3 {
        timeout(DEADLINE, last.read_all(manager)).await.expect("answers in time");
    }
    let faults = std::mem::take(&mut trial.faults);
    trial.stop().await;
    (recorder.histories(), faults)
}

async fn run(seed: u64) {
    let started = Instant::now();
    let (histories, faults) = record(seed).await;
    for (service, history) in histories.iter().enumerate() {
        if let Err(text) = check(history) {
            panic!("seed {seed}: the history of service-{service} is not linearizable: {text}\nfaults: {faults:#?}");
        }
        let changes = history.iter().filter(|operation| operation.is_confirmed_change()).count();
        assert!(changes >= CHANGES, "only {changes} confirmed changes of service-{service}: {faults:#?}");
    }
    let count = |is: &dyn Fn(&Operation) -> bool| histories.iter().flatten().filter(|operation| is(operation)).count();
    let unknown = count(&|operation| operation.outcome.is_none());
    assert!(unknown > 0, "all outcomes are known: {faults:#?}");
    let has = |operation: &Operation, is: &dyn Fn(&Outcome) -> bool| operation.outcome.as_ref().is_some_and(is);
    println!(
        "seed {seed}: {} operations in {:?}: {} confirmed changes, {} refused, {unknown} unknown, {} answers may be out \
         of date; faults: {faults:?}",
        count(&|_| true),
        started.elapsed(),
        count(&Operation::is_confirmed_change),
        count(&|operation| has(operation, &|outcome| outcome.answer == Answer::Conflict)),
        count(&|operation| has(operation, &|outcome| outcome.stale)),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_under_faults_are_those_of_a_single_machine() {
    for seed in seeds(SEEDS) {
        run(seed).await;
    }
}
