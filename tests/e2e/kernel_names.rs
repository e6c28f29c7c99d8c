//! Names that the kernel answers: the same replies as those of the daemon's resolver, also while no
//! daemon runs, and never an old one. The tests are in the group of [`crate::names`].

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use weft_lab::{Lab, Task, contract, dns, dns::RecordType, eventually, scaled};

use crate::fixtures::{FOLLOW_TIMEOUT, WHOAMI, probe_on, resolves_to, rounds_or, service, v4_of};

/// The node of the probe. It is no manager: its daemon can be down without an election.
pub(crate) const NODE: &str = "n2";
/// A reply of the kernel takes less than a tenth of this. The rest is for a busy machine.
const REPLY_TIMEOUT: Duration = Duration::from_millis(50);
const TCP_TIMEOUT: Duration = Duration::from_secs(5);
const DNS_HEADER: usize = 12;
/// How often a service shrinks and grows again, unless the environment says otherwise.
const SHRINKING_ROUNDS: usize = 3;
/// The threads that ask for its name meanwhile.
const ASKING_THREADS: usize = 2;

/// The OPT record of a question (RFC 6891, section 6.1.2): its flags, and its options.
fn opt(flags: u8, options: &[u8]) -> Vec<u8> {
    let len = options.len() as u8;
    [&[0, 0, 41, 4, 208, 0, 0, flags, 0, 0, len], options].concat()
}

fn question(flags: u16, name: &str, record: RecordType, opt: &[u8]) -> Vec<u8> {
    let mut octets = [0xbeef, flags, 1, 0, 0, u16::from(!opt.is_empty())].map(u16::to_be_bytes).concat();
    for label in name.split('.') {
        octets.push(label.len() as u8);
        octets.extend(label.bytes());
    }
    octets.push(0);
    octets.extend([u16::from(record), 1].map(u16::to_be_bytes).concat());
    octets.extend(opt);
    octets
}

fn ask_by_udp(question: &[u8]) -> Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(dns::IN_TASK)?;
    socket.set_read_timeout(Some(scaled(REPLY_TIMEOUT)))?;
    socket.send(question)?;
    let mut reply = vec![0; 4096];
    let len = socket.recv(&mut reply)?;
    reply.truncate(len);
    Ok(reply)
}

fn ask_by_tcp(question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(dns::IN_TASK)?;
    stream.set_read_timeout(Some(scaled(TCP_TIMEOUT)))?;
    stream.write_all(&[&(question.len() as u16).to_be_bytes(), question].concat())?;
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut reply = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut reply)?;
    Ok(reply)
}

/// The reply with its address records in order, because the resolver and the kernel rotate them,
/// and without the names of the records. The kernel writes a pointer to the question, the resolver
/// the name of the question, and then pointers to it.
fn comparable(question_octets: usize, data_octets: usize, reply: &[u8]) -> Result<Vec<u8>> {
    ensure!(reply.len() >= question_octets, "the reply is too short: {reply:02x?}");
    let (start, mut rest) = reply.split_at(question_octets);
    // Before the type and the class.
    let name = &start[DNS_HEADER..question_octets - 4];
    let pointers = [DNS_HEADER, question_octets].map(|offset| [0xc0, offset as u8]);
    let mut answers = Vec::new();
    for _ in 0..u16::from_be_bytes([reply[6], reply[7]]) {
        let stripped = pointers.iter().find_map(|pointer| rest.strip_prefix(pointer)).or(rest.strip_prefix(name));
        // Type, class, TTL and length before the data.
        let record = stripped.and_then(|record| record.split_at_checked(10 + data_octets));
        let (record, after) = record.with_context(|| format!("a record has another name: {reply:02x?}"))?;
        answers.push(record);
        rest = after;
    }
    answers.sort_unstable();
    Ok([start, &answers.concat(), rest].concat())
}

fn send_signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("a process has a number")?;
    Ok(kill_process(pid, signal)?)
}

/// Runs `action` while the daemon of the probe's node is stopped by SIGSTOP.
pub(crate) fn while_paused<T>(lab: &Lab, action: impl FnOnce() -> T) -> Result<T> {
    let pid = lab.daemon_pid(NODE)?;
    send_signal(pid, Signal::STOP)?;
    let done = action();
    send_signal(pid, Signal::CONT)?;
    Ok(done)
}

pub(crate) fn the_kernel_and_the_resolver_give_the_same_replies(lab: &Lab) -> Result<()> {
    let probe = probe_on(lab, NODE, "asker", &["app", "six"])?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let (task_name, short_id) = (tasks[0].name(), tasks[0].id[..12].to_owned());
    let names =
        ["whoami", "WhoAmI", "whoami.app", "tasks.whoami", "dual", "dual.six", "tasks.dual.SIX", &task_name, &short_id];
    for name in &names {
        eventually(FOLLOW_TIMEOUT, "the probe resolves the name", || {
            let answer = lab.lookup(&probe, name, RecordType::A).map_err(|error| format!("{error:#}"))?;
            if answer.addrs().is_empty() { Err(format!("{name}: {answer:?}")) } else { Ok(()) }
        });
    }
    let opts = [vec![], opt(0, &[]), opt(0x80, &[]), opt(0, &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8])];
    let mut questions = Vec::new();
    for name in names {
        for (record, data_octets) in [(RecordType::A, 4), (RecordType::AAAA, 16)] {
            for flags in [0x0100, 0x0000, 0x0120, 0x0110] {
                questions.extend(opts.iter().map(|opt| {
                    let octets = question(flags, name, record, opt);
                    (format!("{name} {record} {flags:x} {opt:?}"), octets.len() - opt.len(), data_octets, octets)
                }));
            }
        }
    }
    // A process that is stopped by SIGSTOP answers nothing: only the kernel can reply.
    let by_kernel: Vec<Result<Vec<u8>>> = while_paused(lab, || {
        lab.within_task(&probe, || questions.iter().map(|(.., octets)| ask_by_udp(octets)).collect())
    })??;
    for ((what, question_octets, data_octets, octets), by_kernel) in questions.iter().zip(by_kernel) {
        let by_kernel = by_kernel.with_context(|| format!("the kernel does not answer {what}"))?;
        // Questions by TCP are always answered by the daemon.
        let by_daemon = lab.within_task(&probe, || ask_by_tcp(octets))?.with_context(|| what.clone())?;
        let [kernel, daemon] = [&by_kernel, &by_daemon].map(|reply| comparable(*question_octets, *data_octets, reply));
        ensure!(kernel? == daemon?, "{what}: the kernel replies {by_kernel:02x?}, the daemon {by_daemon:02x?}");
        ensure!(by_kernel[DNS_HEADER..*question_octets] == octets[DNS_HEADER..*question_octets], "another question");
    }
    lab.weft_ok("n1", &["service", "rm", "asker"])?;
    Ok(())
}

pub(crate) fn names_resolve_while_the_daemon_is_down(lab: &Lab) -> Result<()> {
    let probe = probe_on(lab, NODE, "orphan", &["app", "six"])?;
    let expected: Vec<(&str, RecordType, BTreeSet<IpAddr>)> =
        [("whoami", RecordType::A), ("dual", RecordType::A), ("dual", RecordType::AAAA), ("tasks.dual", RecordType::A)]
            .into_iter()
            .map(|(name, record)| {
                let addrs = eventually(FOLLOW_TIMEOUT, "the name resolves", || {
                    let answer = lab.lookup(&probe, name, record).map_err(|error| format!("{error:#}"))?;
                    if answer.addrs().is_empty() { Err(format!("{answer:?}")) } else { Ok(answer.addrs()) }
                });
                (name, record, addrs.into_iter().collect())
            })
            .collect();
    lab.kill_daemon(NODE)?;
    let resolved = check_without_daemon(lab, &probe, &expected);
    lab.start(NODE)?;
    resolved?;
    // The next daemon adopts the attachment, and its resolver answers the other names again.
    eventually(FOLLOW_TIMEOUT, "names outside of the cluster resolve again", || {
        let answer =
            lab.lookup(&probe, contract::EXTERNAL_NAME, RecordType::A).map_err(|error| format!("{error:#}"))?;
        if answer.addrs().is_empty() { Err(format!("{answer:?}")) } else { Ok(()) }
    });
    while_paused(lab, || check_names(lab, &probe, &expected))??;
    lab.weft_ok("n1", &["service", "rm", "orphan"])?;
    Ok(())
}

fn check_without_daemon(lab: &Lab, probe: &Task, expected: &[(&str, RecordType, BTreeSet<IpAddr>)]) -> Result<()> {
    check_names(lab, probe, expected)?;
    // The task's own program uses the C library and resolv.conf.
    let found = lab.task_exec_ok(probe, &["getent", "ahostsv4", "whoami"])?;
    ensure!(expected[0].2.iter().all(|addr| found.contains(&addr.to_string())), "{found}");
    let outside = lab.lookup(probe, contract::EXTERNAL_NAME, RecordType::A);
    ensure!(outside.is_err(), "a name outside of the cluster resolves without a daemon: {outside:?}");
    Ok(())
}

fn check_names(lab: &Lab, probe: &Task, expected: &[(&str, RecordType, BTreeSet<IpAddr>)]) -> Result<()> {
    for (name, record, addrs) in expected {
        let (answer, elapsed) = lab.within_task(probe, || {
            let start = Instant::now();
            (dns::lookup(dns::IN_TASK, name, *record), start.elapsed())
        })?;
        let found: BTreeSet<IpAddr> = answer.with_context(|| (*name).to_owned())?.addrs().into_iter().collect();
        ensure!(found == *addrs, "{name}: {found:?} instead of {addrs:?}");
        ensure!(elapsed < scaled(REPLY_TIMEOUT), "{name}: the reply came after {elapsed:?}");
    }
    Ok(())
}

/// A task is stopped only after every node has acknowledged that it gets no more traffic. From then
/// on no answer has its address: neither one of the kernel, while the daemon is stopped, nor any of
/// those to threads that ask all the time.
pub(crate) fn a_stopped_task_is_in_no_reply(lab: &Lab) -> Result<()> {
    let probe = probe_on(lab, NODE, "observer", &["app"])?;
    let flags = ["--network", "app", "--endpoint-mode", "dnsrr"];
    let tasks = service(lab, "shrinking", 3, &flags, &[WHOAMI])?;
    resolves_to(lab, &probe, "shrinking", &v4_of(&tasks, "app"), FOLLOW_TIMEOUT);
    let rounds = rounds_or(SHRINKING_ROUNDS)?;
    let watch = Watch::default();
    let checked = thread::scope(|scope| {
        let asking: Vec<_> = (0..ASKING_THREADS).map(|_| scope.spawn(|| watch.ask_until_done(lab, &probe))).collect();
        let changed = (0..rounds).try_for_each(|round| {
            shrink_and_grow(lab, &probe, &watch).with_context(|| format!("round {round} of {rounds}"))
        });
        watch.done.store(true, Ordering::SeqCst);
        let checked: Result<Vec<usize>> = asking.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        changed.and(checked)
    })?;
    println!("{} changes, {} answers were checked", 2 * rounds, checked.iter().sum::<usize>());
    ensure!(checked.iter().all(|answers| *answers > rounds), "too few answers were checked: {checked:?}");
    lab.weft_ok("n1", &["service", "rm", "shrinking", "observer"])?;
    Ok(())
}

fn shrink_and_grow(lab: &Lab, probe: &Task, watch: &Watch) -> Result<()> {
    let tasks = lab.wait_running("n1", "shrinking", 3)?;
    let all = v4_of(&tasks, "app");
    resolves_to(lab, probe, "shrinking", &all, FOLLOW_TIMEOUT);
    lab.weft_ok("n1", &["service", "scale", "--detach", "shrinking=1"])?;
    let remaining = lab.wait_running("n1", "shrinking", 1)?[0].v4("app");
    lab.wait_stopped("n1", "shrinking")?;
    watch.stopped.lock().expect("no panic").extend(all.iter().filter(|addr| **addr != remaining));
    let answer = while_paused(lab, || lab.lookup(probe, "shrinking", RecordType::A))??;
    ensure!(answer.addrs() == [remaining], "{answer:?} instead of {remaining}");
    // The next tasks can have these addresses again.
    watch.stopped.lock().expect("no panic").clear();
    lab.weft_ok("n1", &["service", "scale", "--detach", "shrinking=3"])?;
    Ok(())
}

/// What the threads that ask all the time have in common with the one that makes the changes.
#[derive(Default)]
struct Watch {
    /// The addresses of stopped tasks. No new task has one of them yet.
    stopped: Mutex<BTreeSet<IpAddr>>,
    done: AtomicBool,
}

impl Watch {
    /// Returns how many answers were checked against the addresses of stopped tasks.
    fn ask_until_done(&self, lab: &Lab, probe: &Task) -> Result<usize> {
        let mut checked = 0;
        while !self.done.load(Ordering::SeqCst) {
            let stopped = self.stopped.lock().expect("no panic").clone();
            let answer = lab.lookup(probe, "shrinking", RecordType::A)?;
            ensure!(!answer.addrs().is_empty(), "the service has a ready task: {answer:?}");
            // Tasks stopped before the question. No new task can have their addresses yet.
            let still_stopped = self.stopped.lock().expect("no panic").clone();
            let old = answer.addrs().into_iter().find(|addr| stopped.contains(addr) && still_stopped.contains(addr));
            ensure!(old.is_none(), "{answer:?} has the address of a stopped task");
            checked += 1;
        }
        Ok(checked)
    }
}
