//! Follows this machine's `/etc/resolv.conf`: its resolvers answer names outside of the cluster,
//! and tasks get its search domains. [`super::run`] starts it.
//!
//! Tasks (tokio): one, which reads the file again and again. The file is often a link or a mount,
//! and programs replace it or write into it, so there is no single event that shows a change.
//!
//! Invariant: a file without a usable resolver is ignored, because a program may just be writing
//! it.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{sync::watch, time::MissedTickBehavior};
use weft_dns::{Outside, Upstream};
use weft_model::error_chain;

use crate::runtime::identity;

/// See resolv.conf(5).
pub(super) const PATH: &str = "/etc/resolv.conf";
/// The time between two looks at the file.
const PERIOD: Duration = Duration::from_secs(1);

/// The parts of the file that concern tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct ResolvConf {
    upstreams: Vec<Upstream>,
    search: Vec<String>,
}

/// Starts to follow the file at `path`. Returns the resolver for names outside of the cluster, and
/// the machine's search domains. The resolver asks `fixed`; if this is empty, the resolvers in the
/// file.
///
/// # Errors
///
/// If the upstream resolvers cannot be used.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub(super) fn follow(path: &Path, fixed: &[Upstream]) -> Result<(Outside, watch::Receiver<Vec<String>>)> {
    let current = read(path).unwrap_or_default();
    let upstreams = if fixed.is_empty() { &current.upstreams } else { fixed };
    let outside = Outside::new(upstreams).context("cannot resolve names outside of the cluster")?;
    let (search, receiver) = watch::channel(current.search.clone());
    let (path, use_upstreams) = (path.to_owned(), fixed.is_empty());
    tokio::spawn(Follower { path, use_upstreams, outside: outside.clone(), search, current }.run());
    Ok((outside, receiver))
}

struct Follower {
    path: PathBuf,
    /// Whether the resolvers in the file are used.
    use_upstreams: bool,
    outside: Outside,
    search: watch::Sender<Vec<String>>,
    current: ResolvConf,
}

impl Follower {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(new) = read(&self.path).filter(|new| *new != self.current) {
                self.apply(new);
            }
        }
    }

    fn apply(&mut self, new: ResolvConf) {
        let upstreams: Vec<_> = new.upstreams.iter().map(ToString::to_string).collect();
        if self.use_upstreams && new.upstreams != self.current.upstreams {
            match self.outside.set_upstreams(&new.upstreams) {
                Ok(()) => tracing::info!(?upstreams, "upstream resolvers changed"),
                Err(error) => {
                    tracing::warn!(?upstreams, error = error_chain(&error), "cannot use the upstream resolvers");
                }
            }
        }
        if new.search != self.current.search {
            tracing::info!(search = ?new.search, "search domains changed: new tasks get them");
            self.search.send_replace(new.search.clone());
        }
        self.current = new;
    }
}

/// `None` if the file cannot be read, or names no resolver that can be used.
fn read(path: &Path) -> Option<ResolvConf> {
    Some(parse(&fs::read(path).ok()?)).filter(|conf| !conf.upstreams.is_empty())
}

/// Lines that cannot be understood are ignored, as the C library does.
fn parse(file: &[u8]) -> ResolvConf {
    let (conf, _errors) = resolv_conf::Config::parse_with_errors(file);
    let upstreams = conf.nameservers.iter().filter_map(|address| match address {
        resolv_conf::ScopedIp::V4(v4) => Some(IpAddr::V4(*v4)),
        // An address with the name of a link: hickory-resolver cannot use it.
        resolv_conf::ScopedIp::V6(_, Some(_)) => None,
        resolv_conf::ScopedIp::V6(v6, None) => Some(IpAddr::V6(*v6)),
    });
    ResolvConf {
        // The tasks' own resolver would ask itself.
        upstreams: upstreams.filter(|address| *address != identity::RESOLVER).map(Upstream::from).collect(),
        search: conf.get_last_search_or_domain().filter(|domain| is_domain(domain)).cloned().collect(),
    }
}

/// Whether the text is a domain that is not the root. The root adds nothing to a name.
fn is_domain(text: &str) -> bool {
    let labels = text.strip_suffix('.').unwrap_or(text);
    labels.len() < 254
        && labels.split('.').all(|label| {
            matches!(label.len(), 1..=63)
                && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(file: &str, upstreams: &[&str], search: &[&str]) {
        let got = parse(file.as_bytes());
        assert_eq!(got.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>(), upstreams, "{file:?}");
        assert_eq!(got.search, search, "{file:?}");
    }

    #[test]
    fn reads_the_resolvers_and_the_search_domains() {
        check(
            "# a comment\nsearch corp.test example.test.\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:1\n",
            &["192.0.2.1:53", "[2001:db8::1]:53"],
            &["corp.test", "example.test."],
        );
        check("domain a.test\nsearch b.test\nnameserver 192.0.2.1", &["192.0.2.1:53"], &["b.test"]);
        check("search b.test\ndomain a.test\n", &[], &["a.test"]);
        check("search .\n", &[], &[]);
    }

    #[test]
    fn leaves_out_what_it_cannot_use() {
        check("nameserver 127.0.0.11\nnameserver 127.0.0.53\n", &["127.0.0.53:53"], &[]);
        check(
            "nameserver fe80::1%eth0\nnameserver dns.test\nfuture 1\noptions unknown:7\nsearch a..b ok.test",
            &[],
            &["ok.test"],
        );
    }

    #[tokio::test]
    async fn a_changed_file_is_seen_and_a_half_written_one_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("resolv.conf");
        let write = |text: &str| fs::write(&path, text).expect("written");
        write("nameserver 192.0.2.1\nsearch a.test\n");
        let (_outside, mut search) = follow(&path, &[]).expect("upstream resolvers");
        assert_eq!(*search.borrow_and_update(), ["a.test"]);
        write("search half.test\n");
        assert_eq!(read(&path), None, "without a resolver");
        write("nameserver 192.0.2.2\nsearch b.test\n");
        let changed = tokio::time::timeout(20 * PERIOD, search.changed()).await;
        changed.expect("in time").expect("the follower runs");
        assert_eq!(*search.borrow(), ["b.test"]);
    }

    proptest! {
        #[test]
        fn any_file_is_read(file in proptest::collection::vec(any::<u8>(), 0..300)) {
            let conf = parse(&file);
            prop_assert!(conf.search.iter().all(|domain| !domain.contains(char::is_whitespace)));
        }
    }
}
