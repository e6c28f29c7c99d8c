//! The loads and what is read off each: wrk for requests, iperf3 for streams, /proc/stat for the cost.

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

/// wrk's threads: one core for the client, so that one is left for everything else on a machine with two.
const THREADS: u32 = 1;
const CONNECTIONS: u32 = 32;
const MANY_STREAMS: u32 = 8;
/// Ticks a second in /proc/stat, whatever the kernel's own frequency (USER_HZ, include/asm-generic/param.h).
const USER_HZ: f64 = 100.0;
/// Long enough to see what else the machine does.
const REST: Duration = Duration::from_secs(2);
/// What a load may take beyond the time it was asked for.
const SLACK: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Requests on connections that stay open.
    KeepAlive,
    /// A new connection for each request.
    NewConnections,
    /// One request at a time, on a connection that stays open: nothing waits for anything but the path.
    OneAtATime,
    OneStream,
    ManyStreams,
}

impl Load {
    pub(super) const ALL: [Self; 5] =
        [Self::KeepAlive, Self::NewConnections, Self::OneAtATime, Self::OneStream, Self::ManyStreams];
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
}

impl Metric {
    pub(super) const ALL: [Self; 8] = [
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
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one run of a load gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    pub(super) values: Vec<(Metric, f64)>,
    /// Requests that got no good answer, in the words of the program that counted them.
    pub(super) failures: Vec<String>,
}

/// Puts a load on a target for `seconds`.
pub(super) fn measure(runner: &Runner, target: &Target, load: Load, seconds: u64) -> Result<Measured> {
    let limit = Duration::from_secs(seconds) + SLACK;
    let run = |command| runner.run(&target.client, command, limit);
    match load {
        Load::KeepAlive => {
            let before = busy_us()?;
            let said = run(keep_alive(target, seconds))?;
            let busy = busy_us()? - before;
            let requests = requests(&said)?;
            let values = vec![
                (Metric::KeepaliveRps, requests.per_second),
                (Metric::P50Us, requests.p50_us),
                (Metric::P99Us, requests.p99_us),
                (Metric::CpuUsPerReq, busy / requests.count),
            ];
            Ok(Measured { values, failures: requests.failures })
        }
        Load::NewConnections => {
            let requests = requests(&run(wrk(target, seconds, CONNECTIONS, false))?)?;
            Ok(Measured { values: vec![(Metric::ConnsPerS, requests.per_second)], failures: requests.failures })
        }
        Load::OneAtATime => {
            let requests = requests(&run(wrk(target, seconds, 1, true))?)?;
            Ok(Measured { values: vec![(Metric::IdleP50Us, requests.p50_us)], failures: requests.failures })
        }
        Load::OneStream => {
            let rate = stream_gbps(&run(iperf3(target, seconds, 1))?)?;
            Ok(Measured { values: vec![(Metric::Stream1Gbps, rate)], failures: Vec::new() })
        }
        Load::ManyStreams => {
            let rate = stream_gbps(&run(iperf3(target, seconds, MANY_STREAMS))?)?;
            Ok(Measured { values: vec![(Metric::Stream8Gbps, rate)], failures: Vec::new() })
        }
    }
}

/// The load of [`Load::KeepAlive`], as a command.
pub(super) fn keep_alive(target: &Target, seconds: u64) -> Command {
    wrk(target, seconds, CONNECTIONS, true)
}

fn wrk(target: &Target, seconds: u64, connections: u32, keep_alive: bool) -> Command {
    let mut command = Command::new("wrk");
    command.args([&format!("-t{THREADS}"), &format!("-c{connections}"), &format!("-d{seconds}s"), "--latency"]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}/", target.http));
    command
}

fn iperf3(target: &Target, seconds: u64, streams: u32) -> Command {
    let mut command = Command::new("iperf3");
    command.args(["--client", &target.stream.ip().to_string(), "--port", &target.stream.port().to_string()]);
    command.args(["--time", &seconds.to_string(), "--parallel", &streams.to_string()]);
    command.args(["--connect-timeout", "3000", "--json"]);
    command
}

/// What wrk reports.
#[derive(Debug, Clone, PartialEq)]
struct Requests {
    count: f64,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    failures: Vec<String>,
}

fn requests(said: &str) -> Result<Requests> {
    let read = || {
        let lines = || said.lines().map(str::trim);
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
    let requests: Requests = read().with_context(|| format!("not what wrk should say:\n{said}"))?;
    ensure!(requests.count > 0.0, "not one request was answered:\n{said}");
    Ok(requests)
}

/// wrk's times: `163.00us`, `1.20ms`, `1.01s`.
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

/// What arrived, by iperf3's server.
fn stream_gbps(said: &str) -> Result<f64> {
    let report: Value = serde_json::from_str(said).context("iperf3 should print JSON")?;
    let rate = report.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
    Ok(rate.with_context(|| format!("no rate in what iperf3 says:\n{said}"))? / 1e9)
}

/// How busy the machine is by itself: the share of all cores that work while `runner` rests, in percent.
pub(super) fn background_percent(runner: &Runner) -> Result<f64> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let (start, before) = (Instant::now(), busy_us()?);
    runner.pause(REST)?;
    Ok((busy_us()? - before) / (start.elapsed().as_secs_f64() * 1e6 * cores as f64) * 100.0)
}

/// Time that the machine's cores have worked so far, for whomever.
fn busy_us() -> Result<f64> {
    let path = Path::new("/proc/stat");
    let text = fs::read_to_string(path).context("cannot read /proc/stat")?;
    let ticks = busy_ticks(&text).context("no `cpu` line in /proc/stat")?;
    Ok(ticks * 1e6 / USER_HZ)
}

/// User, nice, system, irq and softirq of proc(5)'s `cpu` line; neither idle, nor waiting, nor what the hypervisor stole.
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
    fn wrk_is_understood() {
        let found = requests(WRK).expect("a report");
        let expected =
            Requests { count: 370_352.0, per_second: 176_360.96, p50_us: 163.0, p99_us: 1200.0, failures: Vec::new() };
        assert_eq!(found, expected);
    }

    #[test]
    fn requests_without_a_good_answer_are_told() {
        let errors = "  Socket errors: connect 0, read 3, write 0, timeout 1\n  Non-2xx or 3xx responses: 7\n";
        let found = requests(&format!("{WRK}{errors}")).expect("a report");
        assert_eq!(
            found.failures,
            ["Socket errors: connect 0, read 3, write 0, timeout 1", "Non-2xx or 3xx responses: 7"]
        );
    }

    #[test]
    fn a_run_without_an_answer_is_no_measurement() {
        assert!(requests(&WRK.replace("370352 requests", "0 requests")).is_err());
        assert!(requests("unable to connect to 192.0.2.1:8080 Connection refused").is_err());
    }

    #[test]
    fn iperf3_is_understood() {
        let report = r#"{"end": {"sum_sent": {"bits_per_second": 3e9}, "sum_received": {"bits_per_second": 2.5e9}}}"#;
        assert_eq!(stream_gbps(report).ok(), Some(2.5));
        assert!(stream_gbps(r#"{"error": "error - the server is busy"}"#).is_err());
    }

    #[test]
    fn idle_time_is_not_work() {
        let stat = "cpu  100 1 30 9000 50 2 7 99 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), Some(140.0));
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
