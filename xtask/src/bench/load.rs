//! The loads and their metrics: wrk sends requests, iperf3 sends streams, and /proc/stat counts the
//! busy time of the cores.

use std::{
    fmt, fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{case::Target, programs::Runner};

/// The threads of wrk: one, so that on a machine with two cores one core is left for everything
/// else.
const THREADS: u32 = 1;
const CONNECTIONS: u32 = 32;
const MANY_STREAMS: u32 = 8;
/// Ticks per second in /proc/stat. It does not depend on the kernel's own frequency (USER_HZ,
/// include/asm-generic/param.h).
pub(super) const USER_HZ: f64 = 100.0;
/// How long the machine is watched without load.
const IDLE_TIME: Duration = Duration::from_secs(2);
/// How much longer than planned a load may take.
const SLACK: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Requests on connections that stay open.
    KeepAlive,
    /// A new connection for each request.
    NewConnections,
    /// One request at a time, on a connection that stays open: no request waits for another.
    OneAtATime,
    OneStream,
    ManyStreams,
}

impl Load {
    pub(super) const ALL: &[Self] =
        &[Self::KeepAlive, Self::NewConnections, Self::OneAtATime, Self::OneStream, Self::ManyStreams];
}

/// In the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    KeepaliveRps,
    P50Us,
    P99Us,
    IdleP50Us,
    ConnsPerS,
    Stream1Gbps,
    Stream8Gbps,
    CpuUsPerReq,
    CpuNsPerByte,
}

impl Metric {
    /// Those of a benchmark of connections.
    pub(super) const ALL: &[Self] = &[
        Self::KeepaliveRps,
        Self::P50Us,
        Self::P99Us,
        Self::IdleP50Us,
        Self::ConnsPerS,
        Self::Stream1Gbps,
        Self::Stream8Gbps,
        Self::CpuUsPerReq,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KeepaliveRps => "keepalive_rps",
            Self::P50Us => "p50_us",
            Self::P99Us => "p99_us",
            Self::IdleP50Us => "idle_p50_us",
            Self::ConnsPerS => "conns_per_s",
            Self::Stream1Gbps => "stream1_gbps",
            Self::Stream8Gbps => "stream8_gbps",
            Self::CpuUsPerReq => "cpu_us_per_req",
            Self::CpuNsPerByte => "cpu_ns_per_byte",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The result of one run of a load.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) values: Vec<(Metric, f64)>,
    /// Lines of wrk about requests that failed.
    pub(super) failures: Vec<String>,
}

/// Runs a load on a target for `seconds`.
pub(super) fn measure<C>(runner: &Runner, target: &Target<C>, load: Load, seconds: u64) -> Result<Measured> {
    let limit = Duration::from_secs(seconds) + SLACK;
    let run = |command| runner.run(&target.client, command, limit);
    match load {
        Load::KeepAlive => {
            let before = busy_us()?;
            let output = run(keep_alive(target, seconds))?;
            let busy = busy_us()? - before;
            let requests = parse_wrk(&output)?;
            let values = vec![
                (Metric::KeepaliveRps, requests.per_second),
                (Metric::P50Us, requests.p50_us),
                (Metric::P99Us, requests.p99_us),
                (Metric::CpuUsPerReq, busy / requests.count),
            ];
            Ok(Measured { values, failures: requests.failures })
        }
        Load::NewConnections => {
            let requests = parse_wrk(&run(wrk(target, seconds, CONNECTIONS, false))?)?;
            Ok(Measured { values: vec![(Metric::ConnsPerS, requests.per_second)], failures: requests.failures })
        }
        Load::OneAtATime => {
            let requests = parse_wrk(&run(wrk(target, seconds, 1, true))?)?;
            Ok(Measured { values: vec![(Metric::IdleP50Us, requests.p50_us)], failures: requests.failures })
        }
        Load::OneStream => {
            let before = busy_us()?;
            let stream = parse_iperf3(&run(iperf3(target, seconds, 1))?)?;
            let busy = busy_us()? - before;
            let values = vec![
                (Metric::Stream1Gbps, stream.gbits_per_second),
                (Metric::CpuNsPerByte, busy * 1e3 / stream.octets),
            ];
            Ok(Measured { values, failures: Vec::new() })
        }
        Load::ManyStreams => {
            let streams = parse_iperf3(&run(iperf3(target, seconds, MANY_STREAMS))?)?;
            Ok(Measured { values: vec![(Metric::Stream8Gbps, streams.gbits_per_second)], failures: Vec::new() })
        }
    }
}

/// The command of [`Load::KeepAlive`].
pub(super) fn keep_alive<C>(target: &Target<C>, seconds: u64) -> Command {
    wrk(target, seconds, CONNECTIONS, true)
}

fn wrk<C>(target: &Target<C>, seconds: u64, connections: u32, keep_alive: bool) -> Command {
    let mut command = Command::new("wrk");
    command.args([&format!("-t{THREADS}"), &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency"]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}/", target.http));
    command
}

fn iperf3<C>(target: &Target<C>, seconds: u64, streams: u32) -> Command {
    let mut command = Command::new("iperf3");
    command.args(["--client", &target.stream.ip().to_string(), "--port", &target.stream.port().to_string()]);
    command.args(["--time", &seconds.to_string(), "--parallel", &streams.to_string()]);
    command.args(["--connect-timeout", "3000", "--json"]);
    command
}

/// The report of wrk.
#[derive(Debug, Clone, PartialEq)]
struct Requests {
    count: f64,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    failures: Vec<String>,
}

fn parse_wrk(output: &str) -> Result<Requests> {
    let parse = || {
        let lines = || output.lines().map(str::trim);
        let after = |prefix: &str| lines().find_map(|line| line.strip_prefix(prefix)).map(str::trim);
        let count = lines().find_map(|line| line.split_once(" requests in ")?.0.parse().ok())?;
        Some(Requests {
            count,
            per_second: after("Requests/sec:")?.parse().ok()?,
            p50_us: microseconds(after("50%")?)?,
            p99_us: microseconds(after("99%")?)?,
            failures: lines()
                .filter(|line| line.starts_with("Socket errors:") || line.starts_with("Non-2xx"))
                .map(str::to_owned)
                .collect(),
        })
    };
    let requests: Requests = parse().with_context(|| format!("the output of wrk has an unknown format:\n{output}"))?;
    ensure!(requests.count > 0.0, "no request was answered:\n{output}");
    Ok(requests)
}

/// A time of wrk, such as `163.00us`, `1.20ms` or `1.01s`, in microseconds.
fn microseconds(text: &str) -> Option<f64> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let factor = match unit {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * factor)
}

/// The data that arrived at the server.
#[derive(Debug, Clone, PartialEq)]
struct Streams {
    octets: f64,
    gbits_per_second: f64,
}

fn parse_iperf3(output: &str) -> Result<Streams> {
    let report: Value = serde_json::from_str(output).context("iperf3 printed no JSON")?;
    let number = |name: &str| {
        let value = report.pointer(&format!("/end/sum_received/{name}")).and_then(Value::as_f64);
        value.filter(|value| *value > 0.0).with_context(|| format!("the output of iperf3 has no {name}:\n{output}"))
    };
    Ok(Streams { octets: number("bytes")?, gbits_per_second: number("bits_per_second")? / 1e9 })
}

/// The share of all cores that work while there is no load, in percent.
pub(super) fn background_percent(runner: &Runner) -> Result<f64> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (start, before) = (Instant::now(), busy_us()?);
    runner.pause(IDLE_TIME)?;
    Ok((busy_us()? - before) / (start.elapsed().as_secs_f64() * 1e6 * cores as f64) * 100.0)
}

/// The time that all cores of the machine have worked since it started, in microseconds.
pub(super) fn busy_us() -> Result<f64> {
    let path = Path::new("/proc/stat");
    let text = fs::read_to_string(path).context("cannot read /proc/stat")?;
    let ticks = busy_ticks(&text).context("no `cpu` line in /proc/stat")?;
    Ok(ticks * 1e6 / USER_HZ)
}

/// The sum of user, nice, system, irq and softirq in the `cpu` line of /proc/stat (proc(5)),
/// without idle, iowait and the time that the hypervisor has stolen.
fn busy_ticks(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<f64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    [0, 1, 2, 5, 6].into_iter().map(|field| fields.get(field)).sum::<Option<f64>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 2s test @ http://198.51.100.2:80/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   179.83us  147.94us   6.91ms   98.67%
    Req/Sec   177.27k     8.87k  190.30k    71.43%
  Latency Distribution
     50%  163.00us
     75%  185.00us
     90%  225.00us
     99%    1.20ms
  370352 requests in 2.10s, 67.11MB read
Requests/sec: 176360.96
Transfer/sec:     31.96MB
";

    #[test]
    fn the_report_of_wrk_is_read() {
        let found = parse_wrk(WRK).expect("a report");
        let expected =
            Requests { count: 370_352.0, per_second: 176_360.96, p50_us: 163.0, p99_us: 1200.0, failures: Vec::new() };
        assert_eq!(found, expected);
    }

    #[test]
    fn failed_requests_are_reported() {
        let errors = "  Socket errors: connect 0, read 3, write 0, timeout 1\n  Non-2xx or 3xx responses: 7\n";
        let found = parse_wrk(&format!("{WRK}{errors}")).expect("a report");
        assert_eq!(
            found.failures,
            ["Socket errors: connect 0, read 3, write 0, timeout 1", "Non-2xx or 3xx responses: 7"]
        );
    }

    #[test]
    fn a_run_without_an_answer_is_an_error() {
        assert!(parse_wrk(&WRK.replace("370352 requests", "0 requests")).is_err());
        assert!(parse_wrk("unable to connect to 192.0.2.1:8080 Connection refused").is_err());
    }

    #[test]
    fn the_report_of_iperf3_is_read() {
        let report = r#"{"end": {"sum_sent": {"bits_per_second": 3e9},
                                 "sum_received": {"bits_per_second": 2.5e9, "bytes": 1000}}}"#;
        assert_eq!(parse_iperf3(report).ok(), Some(Streams { octets: 1000.0, gbits_per_second: 2.5 }));
        assert!(parse_iperf3(r#"{"error": "error - the server is busy"}"#).is_err());
    }

    #[test]
    fn idle_time_does_not_count_as_work() {
        let stat = "cpu  100 1 30 9000 50 2 7 99 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(140.0));
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
