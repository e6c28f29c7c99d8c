//! Where one case spends the machine's time: perf's samples of all cores while wrk asks on connections that stay open.

use std::{fmt::Write, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{
    case::Target,
    load,
    programs::{HERE, Runner},
};

/// Samples a second and core; not a multiple of the timer's frequency, which would be in step with it.
const FREQUENCY: u32 = 1999;
/// Beyond the time of the load: perf writes and reads its file.
const SLACK: Duration = Duration::from_secs(60);
/// How many symbols each list has.
const TOP: usize = 40;

/// A symbol's share of all samples, in percent.
#[derive(Debug, Clone, PartialEq)]
struct Share {
    /// With all that it calls.
    total: f64,
    own: f64,
    symbol: String,
}

impl Share {
    fn is_user(&self) -> bool {
        self.symbol.starts_with("[.]")
    }

    fn is_ebpf(&self) -> bool {
        self.symbol.starts_with("[k] bpf_prog_")
    }
}

/// Puts the load on, and returns the lists for people.
pub(super) fn record(runner: &Runner, target: &Target, seconds: u64) -> Result<String> {
    let files = TempDir::new().context("cannot make a temporary directory")?;
    let data = files.path().join("perf.data");
    let limit = Duration::from_secs(seconds) + SLACK;
    let wrk = load::wrk(target, seconds, true);
    let mut command = Command::new("perf");
    command.args(["record", "--quiet", "-a", "-g", "--freq", &FREQUENCY.to_string(), "--output"]).arg(&data);
    command.arg("--").arg(wrk.get_program()).args(wrk.get_args());
    let said = runner.run(&target.client, command, limit)?;
    let mut command = Command::new("perf");
    command.args(["report", "--stdio", "--children", "--call-graph", "none", "--sort", "symbol"]);
    command.args(["--fields", "overhead_children,overhead,symbol", "--input"]).arg(&data);
    let report = runner.run(Path::new(HERE), command, limit)?;
    Ok(lists(&shares(&report), &said))
}

/// Lines of `perf report`: `    12.30%     4.56%  [k] name`.
fn shares(report: &str) -> Vec<Share> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let percent = |field: &str| field.strip_suffix('%')?.parse::<f64>().ok();
        let (total, own) = (percent(fields.next()?)?, percent(fields.next()?)?);
        let symbol = fields.collect::<Vec<_>>().join(" ");
        // Some versions of perf fill columns that nobody asked for.
        Some(Share { total, own, symbol: symbol.trim_end_matches(" -").to_owned() })
    };
    report.lines().filter_map(line).collect()
}

fn lists(shares: &[Share], wrk: &str) -> String {
    let sum = |of: fn(&Share) -> bool| shares.iter().filter(|share| of(share)).map(|share| share.own).sum::<f64>();
    let mut text = format!(
        "Of all samples: {:.1} % in user space, {:.1} % in eBPF programs (without the kernel's functions that they call), \
         {:.1} % elsewhere in the kernel.\n\n",
        sum(Share::is_user),
        sum(Share::is_ebpf),
        sum(|share| !share.is_user() && !share.is_ebpf()),
    );
    let mut list = |title: &str, key: fn(&Share) -> f64| {
        // Frames without a name say nothing.
        let mut sorted: Vec<&Share> = shares.iter().filter(|share| !share.symbol.contains(" 0x")).collect();
        sorted.sort_by(|a, b| key(b).total_cmp(&key(a)));
        writeln!(text, "{title}").expect("a string takes all");
        for share in sorted.into_iter().take(TOP) {
            writeln!(text, "{:>8.2} %  {}", key(share), share.symbol).expect("a string takes all");
        }
        text.push('\n');
    };
    list("Share of all samples, the function alone:", |share| share.own);
    list("Share of all samples, with all that it calls:", |share| share.total);
    text.push_str(wrk);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perfs_report_is_understood() {
        let report = "# To display the perf.data header info\n#\n# Children      Self  Symbol\n\n    \
                      12.30%     4.56%  [k] vxlan_xmit\n     0.50%     0.50%  [.] 0x0000000000123456 - -\n";
        let share = |total, own, symbol: &str| Share { total, own, symbol: symbol.to_owned() };
        assert_eq!(shares(report), [share(12.3, 4.56, "[k] vxlan_xmit"), share(0.5, 0.5, "[.] 0x0000000000123456")]);
    }
}
