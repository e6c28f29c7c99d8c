//! The faults of a simulation, which follow from its seed.

use std::{fmt, time::Duration};

use rand::{Rng as _, rngs::StdRng};

use super::observed::{MANAGERS, NODES};

/// When faults may begin, how many there are, and how long each lasts.
pub(super) const FAULTS_MS: std::ops::Range<u64> = 300..9_000;
const COUNT: std::ops::Range<usize> = 7..13;
const LENGTH_MS: std::ops::Range<u64> = 100..3_500;
/// A machine or a daemon is off for so long.
const OFF_MS: std::ops::Range<u64> = 50..2_500;
/// The power is cut after fewer writes than this. A transaction has about ten.
const MAX_WRITES: usize = 60;
/// The delay of a slow link, in milliseconds. A voter has 250 ms to answer.
const SLOW_MS: std::ops::Range<u64> = 10..150;
const SYNC_MS: std::ops::Range<u64> = 20..400;
/// The longest step of a wall clock, in milliseconds: less than the certificates allow between two
/// nodes, and a day.
const CLOCK_STEP_MS: i64 = 25 * 60_000;
const LONG_CLOCK_STEP_MS: i64 = 24 * 3_600_000;
const HEARTBEATS_MS: [u64; 4] = [200, 500, 1_000, 2_000];
const LATE_ACK_MS: std::ops::Range<u64> = 100..3_000;

/// A fault. Nodes are counted from 0, and the managers are the first ones.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Nothing passes between this node and the others.
    Alone(usize),
    /// Nothing passes between the manager that leads, if one does, and the other nodes.
    LeaderAlone,
    /// What the first node sends to the second one arrives only at the end.
    Held(usize, usize),
    /// The same in both directions.
    Apart(usize, usize),
    /// All links have this delay, or those of one node.
    Slow(Option<usize>, Duration),
    /// All connections are cut, or those of one node. They can be opened again at once.
    Cut(Option<usize>),
    /// This node refuses connections.
    Refuses(usize),
    /// The machine of this node stops, with everything that runs on it, and continues.
    Paused(usize),
    LeaderPaused,
    /// The daemon is stopped, and starts after this time.
    Restart(usize, Duration),
    /// The daemon is killed.
    Killed(usize, Duration),
    /// The power of this machine, or of all, is cut after so many writes of the disk.
    PowerCut(Option<usize>, usize, Duration),
    /// Each write to the disk takes longer.
    SlowDisk(usize, Duration),
    FullDisk(usize),
    /// The daemon is killed, and its log is gone.
    LogLost(usize, Duration),
    /// The manager becomes a worker, and a manager again.
    Reappointed(usize),
    /// The wall clock is wrong by this time, in milliseconds.
    Clock(usize, i64),
    /// A user changes the heartbeat, in milliseconds.
    Heartbeat(u64),
    /// A user changes the service whose tasks run, and the number of its tasks.
    Update(u64),
    /// The agent puts plans into effect late, or no plan at all.
    LateAcks(usize, Duration),
    NoAcks(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = |node: &Option<usize>| node.map_or_else(|| "all".to_owned(), |node| format!("n{}", node + 1));
        match self {
            Self::Alone(node) => write!(f, "n{} is alone", node + 1),
            Self::LeaderAlone => write!(f, "the leader is alone"),
            Self::Held(from, to) => write!(f, "what n{} sends to n{} is held", from + 1, to + 1),
            Self::Apart(one, other) => write!(f, "n{} and n{} are apart", one + 1, other + 1),
            Self::Slow(node, delay) => write!(f, "links of {} are slow by {} ms", all(node), delay.as_millis()),
            Self::Cut(node) => write!(f, "connections of {} are cut", all(node)),
            Self::Refuses(node) => write!(f, "n{} refuses connections", node + 1),
            Self::Paused(node) => write!(f, "n{} is paused", node + 1),
            Self::LeaderPaused => write!(f, "the leader is paused"),
            Self::Restart(node, off) => write!(f, "n{} restarts after {} ms", node + 1, off.as_millis()),
            Self::Killed(node, off) => write!(f, "n{} is killed, for {} ms", node + 1, off.as_millis()),
            Self::PowerCut(node, writes, off) => {
                write!(f, "{} have no power after {writes} writes, for {} ms", all(node), off.as_millis())
            }
            Self::SlowDisk(node, sync) => write!(f, "the disk of n{} is slow by {} ms", node + 1, sync.as_millis()),
            Self::FullDisk(node) => write!(f, "the disk of n{} is full", node + 1),
            Self::LogLost(node, off) => write!(f, "n{} loses its log, and is off for {} ms", node + 1, off.as_millis()),
            Self::Reappointed(node) => write!(f, "n{} becomes a worker and a manager again", node + 1),
            Self::Clock(node, by_ms) => write!(f, "the wall clock of n{} is wrong by {by_ms} ms", node + 1),
            Self::Heartbeat(heartbeat_ms) => write!(f, "the heartbeat is {heartbeat_ms} ms"),
            Self::Update(replicas) => write!(f, "the service is updated to {replicas} tasks"),
            Self::LateAcks(node, time) => write!(f, "n{} acks after {} ms", node + 1, time.as_millis()),
            Self::NoAcks(node) => write!(f, "n{} acks nothing", node + 1),
        }
    }
}

/// A fault, when it begins, and when it ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scheduled {
    pub(super) from: Duration,
    pub(super) to: Duration,
    pub(super) fault: Fault,
}

/// The faults of a simulation, in the order in which they begin.
pub(super) fn choose(rng: &mut StdRng) -> Vec<Scheduled> {
    // A node asks for a certificate when its role changes. With a clock that is wrong by a day, no
    // other node accepts it.
    let changes_roles = rng.random_bool(0.5);
    let mut loses_a_log = changes_roles;
    let mut faults = Vec::new();
    for _ in 0..rng.random_range(COUNT) {
        let ms = |rng: &mut StdRng, range| Duration::from_millis(rng.random_range(range));
        let (node, manager) = (rng.random_range(0..NODES), rng.random_range(0..MANAGERS));
        let other = (node + rng.random_range(1..NODES)) % NODES;
        let off = ms(rng, OFF_MS);
        let one = rng.random_bool(0.6).then_some(node);
        let fault = match rng.random_range(0..24) {
            0 => Fault::Alone(node),
            1 | 2 => Fault::LeaderAlone,
            3 => Fault::Held(manager, (manager + rng.random_range(1..MANAGERS)) % MANAGERS),
            4 => Fault::Held(node, other),
            5 => Fault::Apart(node, other),
            6 => Fault::Slow(one, ms(rng, SLOW_MS)),
            7 => Fault::Cut(one),
            8 => Fault::Refuses(node),
            9 => Fault::Paused(node),
            10 | 11 => Fault::LeaderPaused,
            12 => Fault::Restart(node, off),
            13 => Fault::Killed(node, off),
            14 | 15 => Fault::PowerCut(one, rng.random_range(1..MAX_WRITES), off),
            16 => Fault::SlowDisk(manager, ms(rng, SYNC_MS)),
            17 => Fault::FullDisk(manager),
            18 if loses_a_log => {
                loses_a_log = false;
                Fault::LogLost(manager, off)
            }
            19 if changes_roles => Fault::Reappointed(manager),
            18..=20 => {
                let limit_ms = if changes_roles { CLOCK_STEP_MS } else { LONG_CLOCK_STEP_MS };
                Fault::Clock(node, rng.random_range(-limit_ms..limit_ms))
            }
            21 => Fault::Heartbeat(HEARTBEATS_MS[rng.random_range(0..HEARTBEATS_MS.len())]),
            22 => Fault::Update(rng.random_range(1..5)),
            _ if rng.random_bool(0.5) => Fault::LateAcks(node, ms(rng, LATE_ACK_MS)),
            _ => Fault::NoAcks(node),
        };
        let from = ms(rng, FAULTS_MS);
        faults.push(Scheduled { from, to: from + ms(rng, LENGTH_MS), fault });
    }
    faults.sort_by_key(|scheduled| scheduled.from);
    faults
}
