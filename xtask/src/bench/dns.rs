//! `bench dns`: the kernel, the resolver of a task, dnsmasq and unbound, each with one thread and
//! the same names, asked by dnsperf.
//!
//! Everything runs in one network namespace, [`NETNS`], and on its loopback link. Where the machine
//! has two cores, the server has one of them, and dnsperf the other. The kernel answers on the core
//! of dnsperf: there is no server, but the program that has written the names and waits.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use tempfile::TempDir;
use weft_lab::{Lab, netns};

use super::{
    Args, load,
    programs::{OWN_NETNS, Runner, Server, configure},
    report::{median, number, three_decimals},
};
use crate::{
    cargo,
    machine::{self, Tool},
    setup,
    ui::Ui,
};

const TOOLS: &[Tool] = &[
    Tool { program: "dnsperf", package: "dnsperf" },
    Tool { program: "dnsmasq", package: "dnsmasq-base" },
    Tool { program: "taskset", package: "util-linux" },
];

const NETNS: &str = "wbench-dns";
/// The namespace of the programs for a node. The task of the plan is in [`NETNS`].
const NODE_NETNS: &str = "wbench-dns-node";
const PIN_DIR: &str = "/sys/fs/bpf/wbench-dns";
const ADDRESS: &str = "127.0.0.1";
/// Where the kernel answers.
const KERNEL_ADDRESS: (&str, u16) = ("127.0.0.11", 53);
/// Names with one IPv4 address and one IPv6 address each.
const NAMES: u32 = 10_000;
/// Tasks besides the first one, for the memory of a task.
const TASKS: u32 = 500;
/// Questions per second for the latency: a fraction of what each server can answer, so that no
/// question waits for another.
const LATENCY_RATE: u32 = 5_000;
/// The time in which a server must answer its first question. unbound needs a second for its names.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// The additional time that dnsperf needs to start and to print.
const SLACK: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Kernel,
    Weft,
    Dnsmasq,
    Unbound,
}

impl Case {
    const ALL: [Self; 4] = [Self::Kernel, Self::Weft, Self::Dnsmasq, Self::Unbound];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "weft-kernel",
            Self::Weft => "weft-daemon",
            Self::Dnsmasq => "dnsmasq",
            Self::Unbound => "unbound",
        }
    }

    fn address(self) -> (&'static str, u16) {
        match self {
            Self::Kernel => KERNEL_ADDRESS,
            Self::Weft => (ADDRESS, 5301),
            Self::Dnsmasq => (ADDRESS, 5302),
            Self::Unbound => (ADDRESS, 5303),
        }
    }

    fn port(self) -> u16 {
        self.address().1
    }
}

/// The metrics, with their headings.
const METRICS: [(&str, &str); 6] = [
    ("cpu_us_per_query", "CPU µs per query"),
    ("all_cpu_us_per_query", "with client"),
    ("queries_per_s", "queries/s"),
    ("p50_us", "p50 µs"),
    ("p99_us", "p99 µs"),
    ("memory_mib", "memory MiB"),
];

/// The values of a case in the order of [`METRICS`], one list for each round.
#[derive(Debug)]
struct Samples {
    case: Case,
    rounds: Vec<[f64; METRICS.len()]>,
}

/// A line of the JSON output.
#[derive(Debug, Serialize)]
struct Line<'a> {
    bench: &'a str,
    case: &'a str,
    metric: &'a str,
    median: f64,
    min: f64,
    max: f64,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::packages(&ui, TOOLS)?;
    setup::resolver(&ui)?;
    let programs = match &args.weft {
        Some(folder) => folder.clone(),
        None => build(&ui)?,
    };
    fs::create_dir_all(results_folder()).with_context(|| format!("cannot create {}", results_folder().display()))?;
    if !machine::is_root() {
        // The user has built the server, and owns the folder. Root continues with the same
        // arguments.
        return machine::become_root_with(&[("--weft", &programs)]);
    }
    // Before signals are caught, so that a user who waits for the lock can interrupt.
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    remove()?;
    let outcome = measure(&ui, &runner, &programs, args);
    outcome.and(remove())
}

/// Removes what this run or an earlier run has created.
fn remove() -> Result<()> {
    // The pins of programs that are attached to all processes.
    match fs::remove_dir_all(PIN_DIR) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {PIN_DIR}"));
        }
        _ => {}
    }
    for netns in [NETNS, NODE_NETNS] {
        if netns_path(netns).exists() {
            configure(OWN_NETNS.as_ref(), Command::new("ip").args(["netns", "delete", netns]), "")?;
        }
    }
    Ok(())
}

fn netns_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Builds the program that serves weft's names on ordinary sockets, and the one that lets the
/// kernel answer them. Returns their folder.
fn build(ui: &Ui) -> Result<PathBuf> {
    cargo::build_release(ui, "weft-dns", "example", "serve_names")?;
    let program = cargo::build_release(ui, "weft-mesh", "example", "answer_names")?;
    program.parent().map(Path::to_owned).context("the program is in a folder")
}

fn results_folder() -> PathBuf {
    cargo::root().join("target/bench")
}

fn measure(ui: &Ui, runner: &Runner, programs: &Path, args: &Args) -> Result<()> {
    let bed = ui.step("start the servers", |_| TestBed::up(runner, programs))?;
    let background = ui.step("measure the machine without load", |_| load::background_percent(runner))?;
    let mut samples = Case::ALL.map(|case| Samples { case, rounds: Vec::new() });
    ui.step("warm up", |_| samples.iter().try_for_each(|samples| bed.round(samples.case, 1).map(drop)))?;
    for round in 0..usize::try_from(args.rounds)? {
        let name = format!("round {} of {}", round + 1, args.rounds);
        // Each round begins with another case, so that no case is always the first after a pause.
        samples.rotate_left(1);
        ui.step(&name, |_| {
            samples.iter_mut().try_for_each(|samples| {
                samples.rounds.push(bed.round(samples.case, args.seconds)?);
                Ok(())
            })
        })?;
    }
    samples.sort_by_key(|samples| samples.case);
    let per_task = ui.step("measure the memory of a task", |_| bed.memory_per_task())?;
    report(&samples, per_task, background, args)
}

/// All servers, with their names.
struct TestBed<'a> {
    runner: &'a Runner,
    netns: PathBuf,
    files: TempDir,
    /// The folder of weft's programs.
    programs: PathBuf,
    servers: Vec<(Case, Server)>,
}

impl<'a> TestBed<'a> {
    fn up(runner: &'a Runner, programs: &Path) -> Result<Self> {
        let netns = netns_path(NETNS);
        for name in [NETNS, NODE_NETNS] {
            configure(OWN_NETNS.as_ref(), Command::new("ip").args(["netns", "add", name]), "")?;
            configure(&netns_path(name), Command::new("ip").args(["link", "set", "lo", "up"]), "")?;
        }
        let files = TempDir::new().context("cannot make a temporary directory")?;
        let mut bed = Self { runner, netns, files, programs: programs.to_owned(), servers: Vec::new() };
        let write = |name: &str, text: String| fs::write(bed.files.path().join(name), text);
        write("questions", questions()).context("cannot write the questions")?;
        write("hosts", hosts()).context("cannot write the names for dnsmasq")?;
        write("unbound.conf", unbound_conf()).context("cannot write the names for unbound")?;
        for case in Case::ALL {
            let netns = if case == Case::Kernel { netns_path(NODE_NETNS) } else { bed.netns.clone() };
            let server = Server::start(&netns, bed.command(case), "")?;
            bed.servers.push((case, server));
        }
        for case in Case::ALL {
            bed.wait_ready(case.address()).with_context(|| format!("{} does not answer", case.name()))?;
        }
        Ok(bed)
    }

    fn command(&self, case: Case) -> Command {
        let file = |name: &str| self.files.path().join(name);
        match case {
            Case::Kernel => {
                let mut command = on_core(0, self.programs.join("answer_names"));
                command.arg(PIN_DIR).arg(&self.netns).arg(NAMES.to_string());
                command
            }
            Case::Weft => self.weft_command(case.port(), 1),
            Case::Dnsmasq => {
                let mut command = on_core(0, "dnsmasq");
                let options =
                    ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"];
                command.args(options).arg("--bind-interfaces").arg(format!("--listen-address={ADDRESS}"));
                command.arg(format!("--port={}", case.port())).arg("--pid-file=").arg("--log-facility=-");
                command.arg("--addn-hosts").arg(file("hosts"));
                command
            }
            Case::Unbound => {
                let mut command = on_core(0, "unbound");
                command.arg("-d").arg("-c").arg(file("unbound.conf"));
                command
            }
        }
    }

    fn weft_command(&self, port: u16, tasks: u32) -> Command {
        let mut command = on_core(0, self.programs.join("serve_names"));
        command.args([format!("{ADDRESS}:{port}"), NAMES.to_string(), tasks.to_string()]);
        command
    }

    /// Waits until the last of the names is answered.
    fn wait_ready(&self, (address, port): (&str, u16)) -> Result<()> {
        let server = SocketAddr::new(address.parse().context("an address")?, port);
        let name = format!("s{}", NAMES - 1);
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let answer =
                netns::within(&self.netns, || weft_lab::dns::lookup(server, &name, weft_lab::dns::RecordType::A))?;
            match answer {
                Ok(answer) if answer.addrs() == [vip(NAMES - 1)] => return Ok(()),
                other => ensure!(Instant::now() < deadline, "not ready within {READY_TIMEOUT:?}: {other:?}"),
            }
            self.runner.pause(POLL)?;
        }
    }

    fn pid(&self, case: Case) -> Result<u32> {
        let server = self.servers.iter().find(|(other, _)| *other == case);
        Ok(server.context("the server was started")?.1.pid())
    }

    /// Measures one case once. The values are in the order of [`METRICS`].
    fn round(&self, case: Case, seconds: u64) -> Result<[f64; METRICS.len()]> {
        let pid = self.pid(case)?;
        let used = || if case == Case::Kernel { program_seconds(pid) } else { cpu_seconds(pid) };
        let (before, busy_before) = (used()?, load::busy_us()?);
        let full = self.dnsperf(case, seconds, &[])?;
        let (cpu, busy) = (used()? - before, load::busy_us()? - busy_before);
        let completed = field(&full, "Queries completed:").context("dnsperf prints the completed queries")?;
        let per_second = field(&full, "Queries per second:").context("dnsperf prints the rate")?;
        ensure!(full.contains("NOERROR"), "{} does not know the names:\n{full}", case.name());
        let slow = self.dnsperf(case, seconds, &["-v", "-Q", &LATENCY_RATE.to_string()])?;
        let mut latencies = latencies_us(&slow);
        latencies.sort_by(f64::total_cmp);
        let at = |permille: usize| {
            let index = (latencies.len() * permille / 1000).min(latencies.len().saturating_sub(1));
            latencies.get(index).copied().context("dnsperf prints the latencies")
        };
        let memory = if case == Case::Kernel { names_mib(pid)? } else { resident_mib(pid)? };
        Ok([cpu * 1e6 / completed, busy / completed, per_second, at(500)?, at(990)?, memory])
    }

    fn dnsperf(&self, case: Case, seconds: u64, more: &[&str]) -> Result<String> {
        let mut command = on_core(1, "dnsperf");
        let (address, port) = case.address();
        command.args(["-s", address, "-p", &port.to_string(), "-l", &seconds.to_string(), "-d"]);
        command.arg(self.files.path().join("questions")).args(more);
        self.runner.run(&self.netns, command, Duration::from_secs(seconds) + SLACK)
    }

    /// The memory that each further task needs, in KiB.
    fn memory_per_task(&self) -> Result<f64> {
        let mut resident = [0.0; 2];
        for (resident, tasks) in resident.iter_mut().zip([1, TASKS + 1]) {
            let port = 5310;
            let server = Server::start(&self.netns, self.weft_command(port, tasks), "")?;
            self.wait_ready((ADDRESS, port))?;
            *resident = resident_mib(server.pid())?;
        }
        Ok((resident[1] - resident[0]) * 1024.0 / f64::from(TASKS))
    }
}

/// Runs a program on one core, if the machine has more than one.
fn on_core(core: usize, program: impl AsRef<OsStr>) -> Command {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &(core % cores).to_string()]).arg(program);
    command
}

fn vip(number: u32) -> std::net::IpAddr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + number + 2).into()
}

/// Questions for the IPv4 addresses of all names. A fixed step through the names avoids the order
/// in which they were added.
fn questions() -> String {
    const STEP: u32 = 7919;
    let mut text = String::new();
    for number in 0..NAMES {
        let _ = writeln!(text, "s{} A", number * STEP % NAMES);
    }
    text
}

fn hosts() -> String {
    let mut text = String::new();
    for number in 0..NAMES {
        let _ = writeln!(text, "{0} s{number}\nfd00::{1:x} s{number}", vip(number), number + 2);
    }
    text
}

fn unbound_conf() -> String {
    let mut text = format!(
        "server:\n  interface: {ADDRESS}@{}\n  port: {0}\n  num-threads: 1\n  do-daemonize: no\n  username: \"\"\n  chroot: \
         \"\"\n  pidfile: \"\"\n  use-syslog: no\n  verbosity: 0\n  module-config: \"iterator\"\n",
        Case::Unbound.port()
    );
    for number in 0..NAMES {
        let _ = writeln!(
            text,
            "  local-data: \"s{number}. 1 IN A {}\"\n  local-data: \"s{number}. 1 IN AAAA fd00::{:x}\"",
            vip(number),
            number + 2
        );
    }
    text + "remote-control:\n  control-enable: no\n"
}

/// The time for which the threads of a process have worked.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    // The fields after the name of the program, which may contain spaces: proc(5), utime and stime.
    let fields = text.rsplit_once(')').map(|(_, fields)| fields.split_whitespace()).context("not a stat file")?;
    let ticks: f64 = fields.skip(11).take(2).map(|ticks| ticks.parse().unwrap_or(f64::NAN)).sum();
    Ok(ticks / load::USER_HZ)
}

/// The run time of the program for names, whose file descriptor the process has: of its programs
/// for links, the only one that runs.
fn program_seconds(pid: u32) -> Result<f64> {
    const SCHED_CLS: f64 = 3.0;
    let run_times = descriptors(pid)?.into_iter().filter(|text| field(text, "prog_type:") == Some(SCHED_CLS));
    let nanoseconds = run_times.filter_map(|text| field(&text, "run_time_ns:")).reduce(f64::max);
    Ok(nanoseconds.context("the process has no program")? / 1e9)
}

/// The memory of the map of names, which the process has open.
fn names_mib(pid: u32) -> Result<f64> {
    /// Octets of a key, which no other map has (`NameKey` in ebpf/common).
    const KEY_OCTETS: f64 = 104.0;
    let maps = descriptors(pid)?;
    let names = maps.iter().find(|text| field(text, "key_size:") == Some(KEY_OCTETS));
    Ok(field(names.context("the process has no map of names")?, "memlock:").context("a map has memory")? / 1048576.0)
}

/// What the kernel says about each file descriptor of a process.
fn descriptors(pid: u32) -> Result<Vec<String>> {
    let folder = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))?;
    // A descriptor can be closed meanwhile.
    Ok(entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok()).collect())
}

fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(field(&text, "VmRSS:").context("a process has memory")? / 1024.0)
}

/// The number after a label.
fn field(text: &str, label: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The latencies in lines such as `> NOERROR s17 A 0.000050`.
fn latencies_us(output: &str) -> Vec<f64> {
    let lines = output.lines().filter_map(|line| line.strip_prefix("> NOERROR "));
    lines.filter_map(|line| Some(line.split_whitespace().last()?.parse::<f64>().ok()? * 1e6)).collect()
}

impl Samples {
    /// The values of one metric over all rounds.
    fn values(&self, metric: usize) -> Vec<f64> {
        self.rounds.iter().map(|round| round[metric]).collect()
    }
}

fn json(samples: &[Samples], per_task_kib: f64) -> Vec<String> {
    let line = |case: &str, metric: &str, values: &[f64]| {
        let [min, max] = [f64::min, f64::max].map(|f| values.iter().copied().reduce(f).unwrap_or(f64::NAN));
        let [median, min, max] = [median(values).unwrap_or(f64::NAN), min, max].map(three_decimals);
        serde_json::to_string(&Line { bench: "dns", case, metric, median, min, max })
            .expect("names and numbers can be written as JSON")
    };
    let mut lines = Vec::new();
    for samples in samples {
        for (metric, (name, _)) in METRICS.iter().enumerate() {
            lines.push(line(samples.case.name(), name, &samples.values(metric)));
        }
    }
    lines.push(line(Case::Weft.name(), "memory_per_task_kib", &[per_task_kib]));
    lines
}

fn table(samples: &[Samples]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["case"].into_iter().chain(METRICS.map(|(_, heading)| heading)));
    for samples in samples {
        let cells = (0..METRICS.len()).map(|metric| {
            let text = median(&samples.values(metric)).map(number).unwrap_or_default();
            Cell::new(text).set_alignment(CellAlignment::Right)
        });
        table.add_row([Cell::new(samples.case.name())].into_iter().chain(cells));
    }
    table.to_string()
}

/// Prints the table or the JSON lines, and writes the JSON file.
fn report(samples: &[Samples], per_task_kib: f64, background: f64, args: &Args) -> Result<()> {
    let json = json(samples, per_task_kib);
    let file = results_folder().join("dns.jsonl");
    if args.json {
        json.iter().for_each(|line| println!("{line}"));
    } else {
        println!("{}\n", table(samples));
        println!(
            "{NAMES} names, one thread for each server; medians of {} rounds of {} s each. Minima and maxima are in {}.\n\
             CPU: of the server alone, and of server and client; for weft-kernel the run time of the program. Latency: at {LATENCY_RATE} queries/s, where no question waits for another.\n\
             Memory: of the process; for weft-kernel of the map of names.\n\
             Each further task of the daemon needs {per_task_kib:.1} KiB.\n\
             Other programs used {background:.1} % of the cores without load.",
            args.rounds,
            args.seconds,
            file.display()
        );
    }
    // Write the file last, so that the results are printed even if this fails.
    fs::write(&file, json.join("\n") + "\n").with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_dnsperf_prints() {
        let output = "> NOERROR s17 A 0.000050\n> SERVFAIL s18 A 0.000010\n> NOERROR s19 A 0.001000\n\
                      Statistics:\n\n  Queries sent:         212345\n  Queries completed:    212345 (100.00%)\n\
                      \n  Queries per second:   106172.500000\n";
        assert_eq!(latencies_us(output), [50.0, 1000.0]);
        assert_eq!(field(output, "Queries completed:"), Some(212_345.0));
        assert_eq!(field(output, "Queries per second:"), Some(106_172.5));
        assert_eq!(field(output, "Queries lost:"), None);
    }

    #[test]
    fn every_server_has_the_same_names() {
        assert!(questions().lines().count() == 10_000 && questions().starts_with("s0 A\ns7919 A\n"));
        assert!(hosts().contains("10.0.39.17 s9999\nfd00::2711 s9999\n"));
        assert!(unbound_conf().contains("\"s9999. 1 IN AAAA fd00::2711\""));
    }

    #[test]
    fn json_lines_have_minimum_and_maximum() {
        let samples = Samples { case: Case::Weft, rounds: vec![[3.0; 6], [1.0; 6], [2.0; 6]] };
        let lines = json(&[samples], 9.5);
        assert_eq!(
            lines[0],
            r#"{"bench":"dns","case":"weft-daemon","metric":"cpu_us_per_query","median":2.0,"min":1.0,"max":3.0}"#
        );
        assert_eq!(lines.len(), METRICS.len() + 1);
    }
}
