//! Prints and writes the results of a benchmark. `mesh` and `overlay` call it.

use std::{fs, path::PathBuf, process::Command, thread};

use anyhow::{Context, Result};

use super::{Args, case::Label, load::Metric, report::Samples};
use crate::cargo;

/// The share of the cores that other programs may use. A larger share distorts the numbers.
const MAX_BACKGROUND_PERCENT: f64 = 5.0;

/// The folder for the JSON files.
fn results_folder() -> PathBuf {
    cargo::root().join("target/bench")
}

/// Creates the folder for the JSON files.
pub(super) fn create_folder() -> Result<()> {
    fs::create_dir_all(results_folder()).with_context(|| format!("cannot create {}", results_folder().display()))
}

/// Prints the table or the JSON lines, and writes the JSON file.
pub(super) fn report<C: Label>(
    bench: &str,
    samples: &Samples<C>,
    background: f64,
    programs: &[String],
    args: &Args,
) -> Result<()> {
    let json = samples.json(bench);
    let file = results_folder().join(format!("{bench}.jsonl"));
    let machine = machine_lines(samples, background, programs);
    if args.json {
        machine.iter().for_each(|line| eprintln!("{line}"));
        json.iter().for_each(|line| println!("{line}"));
    } else {
        println!("{}\n", samples.table());
        println!(
            "Medians of {} rounds of {} s each, with their ratio to raw (the median of the ratios within each round). Minima \
             and maxima are in {}.",
            args.rounds,
            args.seconds,
            file.display()
        );
        for case in samples.cases() {
            println!("  {:<18} {}", case.name(), case.description());
        }
        machine.iter().for_each(|line| println!("{line}"));
    }
    if background > MAX_BACKGROUND_PERCENT {
        eprintln!("warning: other programs used {background:.1} % of the cores, which distorts these numbers");
    }
    for failure in samples.failures() {
        eprintln!("failed requests: {failure}");
    }
    // Write the file last, so that the results are printed even if this fails.
    fs::write(&file, json.join("\n") + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// Describes the machine, the programs and the metrics, on which the numbers depend.
fn machine_lines<C: Label>(samples: &Samples<C>, background: f64, programs: &[String]) -> Vec<String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let mut lines = vec![
        format!(
            "Machine: {cores} × {}, Linux {}. Client, servers and nodes are namespaces of this machine and share its cores.",
            model.trim_start_matches([' ', '\t', ':']),
            read("/proc/sys/kernel/osrelease").trim(),
        ),
        format!("TCP congestion control of all cases: {}.", read("/proc/sys/net/ipv4/tcp_congestion_control").trim()),
        format!("Other programs, with the idle daemons of weft, used {background:.1} % of the cores without load."),
        format!("Programs: {}.", programs.join("; ")),
        "cpu_us_per_req: the time that all cores worked under keep-alive load (user and kernel; client, servers, nodes and \
         other programs), divided by the number of requests."
            .to_owned(),
        "p50_us and p99_us: latency under keep-alive load, where most of the time is waiting in a queue. idle_p50_us: \
         latency with one connection and one request at a time."
            .to_owned(),
    ];
    if samples.shows(Metric::CpuNsPerByte) {
        let text =
            "cpu_ns_per_byte: the time that all cores worked while one stream ran, divided by the octets that arrived.";
        lines.push(text.to_owned());
    }
    lines
}

/// The first line that a program prints about its version.
pub(super) fn version(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// That of wrk, without its copyright.
pub(super) fn wrk_version() -> String {
    version("wrk", "-v").split(" [").next().unwrap_or_default().to_owned()
}
