//! `--profile`: shows where one case spends CPU time. perf samples all cores while wrk sends
//! requests on connections that stay open.

use std::{collections::BTreeMap, fmt::Write, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{
    case::Target,
    load,
    programs::{OWN_NETNS, Runner},
};

/// Samples per second and core. A multiple of the timer's frequency would always sample at the same
/// point of the timer's period.
const FREQUENCY: u32 = 1999;
/// The additional time that perf needs to write and to read its file.
const SLACK: Duration = Duration::from_secs(60);
/// The number of symbols in each list.
const TOP: usize = 40;

/// The purposes of the kernel's functions, each with parts of function names. The first purpose
/// that matches counts. This is rough: a function with many callers counts for the purpose of its
/// name.
const GROUPS: [(&str, &[&str]); 11] = [
    ("eBPF: the programs", &["bpf_prog_"]),
    ("eBPF: maps", &["htab", "lookup_nulls", "bpf_map", "array_map", "lru", "map_lookup", "map_update"]),
    ("eBPF: helpers and redirection", &["bpf_", "skb_do_redirect", "skb_scrub", "csum_replace", "tc_run"]),
    ("VXLAN and UDP", &["vxlan", "udp", "iptunnel", "metadata_dst", "gro_cells"]),
    ("bridges (also the switch between the nodes)", &["br_", "fdb_"]),
    ("netfilter and conntrack", &["nf_", "nft_", "conntrack"]),
    ("TCP", &["tcp", "bbr", "inet_", "sock_def", "sk_", "release_sock"]),
    (
        "links: veth, queues, softirq",
        &["veth", "xmit", "netif", "backlog", "napi", "net_rx", "eth_", "softirq", "local_bh", "skb_features", "dev_"],
    ),
    ("IP, routes, neighbours", &["ip_", "fib", "neigh", "rt_", "ipv4", "route", "dst_"]),
    ("buffers", &["skb", "kmem", "kfree", "alloc", "slab", "page_"]),
    (
        "system calls, sockets, epoll",
        &[
            "sys",
            "epoll",
            "ep_",
            "vfs",
            "sock",
            "fdget",
            "fput",
            "copy_",
            "iov",
            "check_object",
            "security",
            "write",
            "poll",
        ],
    ),
];

/// A symbol's share of all samples, in percent.
#[derive(Debug, Clone, PartialEq)]
struct Share {
    /// Including the functions that it calls.
    total: f64,
    own: f64,
    symbol: String,
}

/// Runs the load under perf. Returns the lists as text.
pub(super) fn record<C>(runner: &Runner, target: &Target<C>, seconds: u64) -> Result<String> {
    let files = TempDir::new().context("cannot make a temporary directory")?;
    let data = files.path().join("perf.data");
    let limit = Duration::from_secs(seconds) + SLACK;
    let wrk = load::keep_alive(target, seconds);
    let mut command = Command::new("perf");
    command.args(["record", "--quiet", "-a", "-g", "--freq", &FREQUENCY.to_string(), "--output"]).arg(&data);
    command.arg("--").arg(wrk.get_program()).args(wrk.get_args());
    let wrk_output = runner.run(&target.client, command, limit)?;
    let report = |arguments: &[&str]| {
        let mut command = Command::new("perf");
        command.args(["report", "--stdio", "--call-graph", "none"]).args(arguments).arg("--input").arg(&data);
        runner.run(Path::new(OWN_NETNS), command, limit)
    };
    let programs = report(&["--no-children", "--sort", "comm,symbol"])?;
    let symbols = report(&["--children", "--sort", "symbol", "--fields", "overhead_children,overhead,symbol"])?;
    Ok(format!("{}\n{}\n{wrk_output}", print_groups(&groups(&programs)), lists(&shares(&symbols))))
}

/// Reads lines of `perf report` by program and symbol: `     4.56%  wrk  [k] name`. Sums the
/// kernel's functions by purpose, and the rest by program.
fn groups(report: &str) -> BTreeMap<String, f64> {
    let mut groups = BTreeMap::new();
    for line in report.lines() {
        let mut fields = line.split_whitespace();
        let share = fields.next().and_then(|field| field.strip_suffix('%')?.parse::<f64>().ok());
        let (Some(share), Some(program), Some(level), Some(symbol)) =
            (share, fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let matches = |(_, parts): &&(&str, &[&str])| parts.iter().any(|part| symbol.contains(part));
        let program = if program.starts_with("ksoftirqd/") { "swapper" } else { program };
        let group = match (program, level) {
            ("wrk" | "weft", "[.]") => format!("user space: {program}"),
            // The kernel also works for the two programs in the idle task and in its own threads.
            ("wrk" | "weft" | "swapper", _) => {
                GROUPS.iter().find(matches).map_or("the rest of the kernel", |(name, _)| name).to_owned()
            }
            _ => "other programs".to_owned(),
        };
        *groups.entry(group).or_default() += share;
    }
    groups
}

fn print_groups(groups: &BTreeMap<String, f64>) -> String {
    let mut sorted: Vec<_> = groups.iter().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(a.1));
    let mut text = "Share of all samples, by purpose:\n".to_owned();
    for (group, share) in sorted {
        writeln!(text, "{share:>8.2} %  {group}").expect("writing to a string succeeds");
    }
    text
}

/// Reads lines of `perf report` by symbol: `    12.30%     4.56%  [k] name`.
fn shares(report: &str) -> Vec<Share> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let percent = |field: &str| field.strip_suffix('%')?.parse::<f64>().ok();
        let (total, own) = (percent(fields.next()?)?, percent(fields.next()?)?);
        let symbol = fields.collect::<Vec<_>>().join(" ");
        // Some versions of perf print more columns than were requested.
        Some(Share { total, own, symbol: symbol.trim_end_matches(" -").to_owned() })
    };
    report.lines().filter_map(line).collect()
}

fn lists(shares: &[Share]) -> String {
    let mut text = String::new();
    let mut list = |title: &str, key: fn(&Share) -> f64| {
        // A frame without a name cannot be looked up.
        let mut sorted: Vec<&Share> = shares.iter().filter(|share| !share.symbol.contains(" 0x")).collect();
        sorted.sort_by(|a, b| key(b).total_cmp(&key(a)));
        writeln!(text, "{title}").expect("writing to a string succeeds");
        for share in sorted.into_iter().take(TOP) {
            writeln!(text, "{:>8.2} %  {}", key(share), share.symbol).expect("writing to a string succeeds");
        }
        text.push('\n');
    };
    list("Share of all samples, the function alone:", |share| share.own);
    list("Share of all samples, with all that it calls:", |share| share.total);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_symbols_of_perf_are_read() {
        let report = "# To display the perf.data header info\n#\n# Children      Self  Symbol\n\n    \
                      12.30%     4.56%  [k] vxlan_xmit\n     0.50%     0.50%  [.] 0x0000000000123456 - -\n";
        let share = |total, own, symbol: &str| Share { total, own, symbol: symbol.to_owned() };
        assert_eq!(shares(report), [share(12.3, 4.56, "[k] vxlan_xmit"), share(0.5, 0.5, "[.] 0x0000000000123456")]);
    }

    #[test]
    fn functions_of_the_kernel_are_grouped_by_purpose() {
        let report = "     2.00%  wrk  [k] vxlan_xmit  - -\n     1.50%  swapper  [k] vxlan_rcv  - -\n     \
                      4.00%  weft  [.] http_parse  - -\n     3.00%  rustc  [k] clear_page  - -\n     \
                      0.50%  weft  [k] bpf_prog_877f88d414739809_F  - -\n     0.25%  wrk  [k] memcmp  - -\n";
        let found = groups(report);
        let found: Vec<(&str, f64)> = found.iter().map(|(name, share)| (name.as_str(), *share)).collect();
        let expected = [
            ("VXLAN and UDP", 3.5),
            ("eBPF: the programs", 0.5),
            ("other programs", 3.0),
            ("the rest of the kernel", 0.25),
            ("user space: weft", 4.0),
        ];
        assert_eq!(found, expected);
    }
}
