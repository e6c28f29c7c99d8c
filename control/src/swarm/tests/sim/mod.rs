//! A simulation of the whole control plane: managers, agents, users and faults, in one thread and
//! without a clock. A run follows from its seed alone.
//!
//! Real are all parts that decide: `apply`, `decide` and `plan`; the leader's `Steps`,
//! `LeaderView`, `voters`, `Lease` and cluster clock; the session's `Acked` and `Outgoing`; the
//! link's `AckTracker` and `receive`. Modelled are the parts around them:
//!
//! - `raft`: the log of one manager, with its snapshots, in the place of openraft;
//! - `network`: calls and connections between the hosts;
//! - `manager`: the loops of a manager; `node`: the link, the agent, and the machine;
//! - `users`: who ask for changes;
//! - `faults`: what goes wrong;
//! - `sabotage`: mistakes that the invariants must catch;
//! - `invariants`: what must hold at every moment;
//! - `world`: the hosts, and the order of events.
//!
//! A run has 25 s with users and faults. Then the faults end, the users repair their specs, and the
//! cluster must meet them.
//!
//! `WEFT_SIM_SEEDS` sets how many seeds the test runs, and `WEFT_SIM_SEED` names the one to run.

mod raft;
mod network;
mod ctx;
mod node;
mod manager;
mod users;
mod faults;
mod sabotage;
mod invariants;
mod world;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use sabotage::Sabotage;
use world::Report;

use crate::fixture::{seeds, variable};

/// How many seeds run by default.
const SEEDS: u64 = 2_000;

/// A mistake must be caught within so many seeds.
const SABOTAGED: u64 = 300;

/// Runs a seed. A panic is a violation too.
fn run(seed: u64, traced: bool, sabotage: Option<Sabotage>) -> Report {
    catch_unwind(AssertUnwindSafe(|| world::run(seed, traced, sabotage))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let violation = Some(format!("a panic: {}", text.unwrap_or_default()));
        Report { seed, violation, ..Report::default() }
    })
}

fn describe(report: &Report) -> String {
    let mut text = format!(
        "seed {}: {}\n(WEFT_SIM_SEED={} runs it alone)\nfaults:\n",
        report.seed,
        report.violation.as_deref().unwrap_or("every invariant held"),
        report.seed
    );
    for fault in &report.faults {
        let _ = writeln!(text, "  {:>6} to {:>6} ms: {:?}", fault.at_ms, fault.until_ms, fault.fault);
    }
    let _ = writeln!(text, "the last events:\n  {}", report.trace.join("\n  "));
    text
}

#[test]
fn every_invariant_holds_under_faults_and_the_spec_is_met_after_them() {
    if let Some(seed) = variable("WEFT_SIM_SEED") {
        let report = run(seed, true, None);
        assert!(report.violation.is_none(), "{}", describe(&report));
        return println!("{}", describe(&report));
    }
    let seeds = seeds(SEEDS).end;
    let (next, started) = (AtomicU64::new(0), Instant::now());
    let work = || {
        let mut reports = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return reports;
            }
            let report = run(seed, false, None);
            let failed = report.violation.is_some();
            reports.push(report);
            if failed {
                next.store(seeds, Ordering::Relaxed);
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(4);
    let reports: Vec<Report> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    let failed: Vec<_> = reports.iter().filter(|report| report.violation.is_some()).collect();
    if let Some(first) = failed.iter().min_by_key(|report| report.seed) {
        panic!("{}", describe(&run(first.seed, true, None)));
    }
    let mut faults = BTreeMap::<String, usize>::new();
    for fault in reports.iter().flat_map(|report| &report.faults) {
        *faults.entry(fault.kind()).or_default() += 1;
    }
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    println!(
        "{} seeds in {:?}: {} s simulated, {} entries, {} changes asked for, {} confirmed, {} unknown; faults: {faults:?}",
        reports.len(),
        started.elapsed(),
        sum(|report| report.time_ms) / 1_000,
        sum(|report| report.entries as u64),
        sum(|report| report.asked),
        sum(|report| report.confirmed as u64),
        sum(|report| report.unknown),
    );
}

/// Runs seeds with a mistake until one fails, and checks what it says.
fn check_caught(sabotage: Sabotage, expected: &[&str]) {
    for seed in 0..SABOTAGED {
        if let Some(violation) = run(seed, false, Some(sabotage)).violation {
            assert!(expected.iter().any(|text| violation.contains(text)), "seed {seed} of {sabotage:?}: {violation}");
            return println!("{sabotage:?} is caught by seed {seed}: {violation}");
        }
    }
    panic!("{SABOTAGED} seeds of {sabotage:?} violate no invariant");
}

#[test]
fn a_leader_that_sends_plans_without_a_lease_is_caught() {
    check_caught(Sabotage::KeepLease, &["the deposed leader of term"]);
}

#[test]
fn a_node_that_acks_before_its_plan_is_in_effect_is_caught() {
    check_caught(Sabotage::AckEarly, &["and another plan is"]);
}

#[test]
fn a_change_that_is_applied_twice_is_caught() {
    check_caught(Sabotage::ApplyTwice, &["differs from that of others", "was applied again"]);
}

#[test]
fn a_manager_that_lost_its_log_and_keeps_its_id_is_caught() {
    check_caught(Sabotage::ReuseRaftId, &["a second log has the Raft id"]);
}

#[test]
fn a_manager_that_replies_before_it_has_synced_is_caught() {
    // What is lost is a vote or an entry, and what follows from it.
    let expected = ["another entry", "a committed entry", "lead in term", "a second log", "is lost"];
    check_caught(Sabotage::ReplyBeforeSync, &expected);
}

#[test]
fn a_manager_that_votes_before_it_has_synced_is_caught() {
    check_caught(Sabotage::VoteBeforeSync, &["lead in term"]);
}

#[test]
fn a_snapshot_without_outcomes_is_caught() {
    check_caught(Sabotage::ForgetOutcomes, &["differs from that of others", "was applied again"]);
}

#[test]
fn a_node_that_takes_an_older_plan_is_caught() {
    check_caught(Sabotage::TakeOlderPlans, &["and has acked", "went back"]);
}

#[test]
fn a_leader_that_accepts_messages_of_earlier_sessions_is_caught() {
    check_caught(Sabotage::AcceptFormerSessions, &["takes a message of an earlier session"]);
}

#[test]
fn an_address_that_is_released_too_early_is_caught() {
    check_caught(Sabotage::ReleaseEarly, &["got an address that"]);
}

#[test]
fn a_leader_that_does_not_notice_its_pause_is_caught() {
    check_caught(Sabotage::IgnorePauses, &["to down, which sends heartbeats"]);
}

#[test]
fn a_leader_that_sets_nodes_to_down_without_a_quorum_is_caught() {
    check_caught(Sabotage::AssumeSilence, &["while it hears from no quorum"]);
}

#[test]
fn a_leader_that_removes_a_voter_without_asking_the_others_is_caught() {
    check_caught(Sabotage::AssumeAnswers, &["voters are removed"]);
}
