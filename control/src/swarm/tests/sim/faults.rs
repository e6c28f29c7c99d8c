//! The faults of one run: chosen from its seed before it starts, so that a failure can list them.

use rand::{Rng, rngs::StdRng};

use super::network::Quality;

/// Faults happen within this time.
pub(super) const FAULTS_MS: std::ops::Range<u64> = 3_500..25_000;

/// What a crash loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsynced {
    Vote,
    /// A vote, whose candidate does not reach the host from then on.
    SplitVote,
    Anything,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// The network loses, duplicates, delays and reorders packets.
    Network(Quality),
    /// The hosts whose bit is set cannot exchange packets with the others.
    Partition {
        side: u32,
    },
    /// No packet arrives from one host at another one.
    OneWay {
        from: usize,
        to: usize,
    },
    /// The node gives up its connection, connects again, and only then the leader reads what the
    /// node has sent before.
    Stall {
        host: usize,
    },
    /// The manager that leads cannot exchange packets with anyone.
    IsolateLeader,
    /// The manager that leads cannot exchange packets with the other managers, and its nodes
    /// connect again.
    CutLeader,
    /// The daemon is killed, and started again at the end. What was not synced is lost.
    Kill {
        host: usize,
    },
    KillLeader,
    /// The daemon is killed for a moment, as soon as it has something that is not synced.
    KillBeforeSync {
        host: usize,
        what: Unsynced,
    },
    /// The machine is switched off, and on at the end: its kernel state and its tasks are gone too.
    PowerOff {
        host: usize,
    },
    /// Two managers compete for the vote of the leader, which restarts. They do not reach each
    /// other, and the disk of one of them is slow. The former leader dies before its vote is
    /// synced.
    SplitVote,
    /// A manager of a former cluster answers sessions with plans of the past, or one whose disk was
    /// set back. It does not compare what the nodes have.
    FormerManager {
        host: usize,
    },
    /// The daemon is killed, and started again at the end, and its tasks continue. Meanwhile users
    /// replace the tasks of all services, again and again.
    Churn {
        host: usize,
    },
    /// All machines lose power, as soon as the next entry is committed.
    PowerFailure,
    /// The process is stopped, and continues at the end.
    Pause {
        host: usize,
    },
    PauseLeader,
    /// The wall clock jumps.
    ClockStep {
        host: usize,
        by_ms: i64,
    },
    /// Each sync takes this long.
    SlowDisk {
        host: usize,
        sync_ms: u64,
    },
    /// The log of a manager is lost, while its daemon restarts.
    LoseLog {
        host: usize,
    },
    /// No plan takes effect on the node, which sends heartbeats.
    Stuck {
        host: usize,
    },
    /// A process of a task dies.
    CrashTask {
        host: usize,
        nth: usize,
    },
    /// The heartbeat interval changes.
    Heartbeat {
        ms: u64,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Scheduled {
    pub at_ms: u64,
    pub until_ms: u64,
    pub fault: Fault,
}

impl Scheduled {
    /// The name of the fault's kind, for statistics.
    pub(super) fn kind(&self) -> String {
        let text = format!("{:?}", self.fault);
        text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
    }
}

/// Chooses the faults of a run with this many hosts.
pub(super) fn choose(hosts: usize, rng: &mut StdRng) -> Vec<Scheduled> {
    let mut faults: Vec<Scheduled> = (0..rng.random_range(0..11)).map(|_| one(hosts, rng)).collect();
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

fn one(hosts: usize, rng: &mut StdRng) -> Scheduled {
    let host = rng.random_range(0..hosts);
    let fault = match rng.random_range(0..35) {
        0..2 => Fault::Network(Quality {
            loss: rng.random_range(0.0..0.3),
            duplicates: rng.random_range(0.0..0.3),
            max_delay_ms: rng.random_range(5..300),
        }),
        2..4 => Fault::Partition { side: rng.random_range(1..(1 << hosts) - 1) },
        4 => Fault::OneWay { from: host, to: (host + rng.random_range(1..hosts)) % hosts },
        5 => Fault::IsolateLeader,
        6 => Fault::CutLeader,
        7..9 => Fault::Kill { host },
        9 => Fault::KillLeader,
        10 => Fault::PowerOff { host },
        11 => Fault::Pause { host },
        12 | 30 => Fault::PauseLeader,
        13 => Fault::ClockStep { host, by_ms: rng.random_range(-3_600_000..3_600_000) },
        14 => Fault::SlowDisk { host, sync_ms: rng.random_range(50..3_000) },
        15 => Fault::LoseLog { host },
        16 => Fault::Stuck { host },
        17..19 => Fault::CrashTask { host, nth: rng.random_range(0..4) },
        19 => Fault::Heartbeat { ms: rng.random_range(100..1_500) },
        20..22 => Fault::PowerFailure,
        22..24 => Fault::SplitVote,
        24..26 => Fault::FormerManager { host },
        26..28 => Fault::Stall { host },
        28..30 => Fault::Churn { host },
        _ => {
            Fault::KillBeforeSync { host, what: if rng.random_bool(0.7) { Unsynced::Vote } else { Unsynced::Anything } }
        }
    };
    let at_ms = rng.random_range(FAULTS_MS);
    let length_ms = if rng.random_bool(0.5) { rng.random_range(50..3_000) } else { rng.random_range(3_000..15_000) };
    let until_ms = match fault {
        // Longer than an election with a slow disk.
        Fault::SplitVote => at_ms + 6_000,
        // Longer than a node that is down keeps its addresses, and some replacements.
        Fault::Churn { .. } => (at_ms + 12_000).min(FAULTS_MS.end),
        // Long enough that the leader must notice, and no longer waits for it.
        Fault::Stuck { .. } => at_ms + rng.random_range(3_000..40_000),
        _ => (at_ms + length_ms).min(FAULTS_MS.end),
    };
    Scheduled { at_ms, until_ms, fault }
}
