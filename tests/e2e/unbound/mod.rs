//! The same odd questions to the resolver of a task and to unbound, which has the same names. Every
//! difference between the replies must be listed in [`differences`], with the reason for it.

mod questions;
mod replies;
mod differences;

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    CLIENT, Lab, contract,
    dns::{self, RecordType},
    process, try_eventually,
};

use self::{differences::DIFFERENCES, questions::Question, replies::Outcome};
use crate::fixtures::{FOLLOW_TIMEOUT, task_of, vip};

/// Where unbound listens, in the client's namespace.
const UNBOUND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 5354);
/// The least number of questions, so that a mistake in the lists is noticed.
const MIN_QUESTIONS: usize = 500;

pub(crate) fn replies_differ_from_those_of_unbound_only_as_listed(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let whoami = vip(lab, &probe, "whoami")?;
    let dual = vip(lab, &probe, "dual")?;
    let mut names = Names::default();
    for (name, record) in [
        ("whoami", RecordType::A),
        ("tasks.whoami", RecordType::A),
        ("dual", RecordType::A),
        ("dual", RecordType::AAAA),
        ("tasks.dual", RecordType::A),
        ("tasks.dual", RecordType::AAAA),
    ] {
        names.add(name, record, lab.lookup(&probe, name, record)?.records);
    }
    let qualified = lab.lookup(&probe, "whoami.app", RecordType::A)?.records;
    names.add("whoami.app", RecordType::A, qualified);
    for (address, name) in [(whoami, "whoami.app"), (dual, "dual.six")] {
        names.add(&reverse(address)?, RecordType::PTR, vec![format!("{name}.")]);
    }
    let _unbound = Unbound::start(lab, &names)?;

    let questions = questions::all(&reverse(whoami)?);
    ensure!(questions.len() >= MIN_QUESTIONS, "only {} questions", questions.len());
    let ours = lab.within_task(&probe, || ask_all(dns::IN_TASK, &questions))??;
    let theirs = lab.within(CLIENT, || ask_all(UNBOUND, &questions))??;
    compare(&questions, &ours, &theirs)
}

fn ask_all(server: SocketAddr, questions: &[Question]) -> Result<Vec<Outcome>> {
    questions
        .iter()
        .map(|question| replies::ask(server, question).with_context(|| format!("{server}: {}", question.what)))
        .collect()
}

fn compare(questions: &[Question], ours: &[Outcome], theirs: &[Outcome]) -> Result<()> {
    let mut used = vec![0; DIFFERENCES.len()];
    let mut unexplained = Vec::new();
    for ((question, ours), theirs) in questions.iter().zip(ours).zip(theirs) {
        if ours == theirs {
            continue;
        }
        match DIFFERENCES.iter().position(|difference| (difference.explains)(question, ours, theirs)) {
            Some(index) => used[index] += 1,
            None => unexplained.push(format!("{}:\n    weft    {ours}\n    unbound {theirs}", question.what)),
        }
    }
    for (difference, count) in DIFFERENCES.iter().zip(&used) {
        println!("{count:4} × {}", difference.reason);
    }
    ensure!(unexplained.is_empty(), "{} replies differ:\n{}", unexplained.len(), unexplained.join("\n"));
    let unused: Vec<_> =
        DIFFERENCES.iter().zip(&used).filter(|(_, count)| **count == 0).map(|(d, _)| d.reason).collect();
    ensure!(unused.is_empty(), "these differences no longer exist: {unused:#?}");
    Ok(())
}

/// The name for the reverse lookup of an IPv4 address.
fn reverse(address: std::net::IpAddr) -> Result<String> {
    let std::net::IpAddr::V4(v4) = address else { anyhow::bail!("{address} is not an IPv4 address") };
    let [a, b, c, d] = v4.octets();
    Ok(format!("{d}.{c}.{b}.{a}.in-addr.arpa"))
}

/// The records that unbound gets.
#[derive(Debug, Default)]
struct Names(BTreeMap<(String, String), Vec<String>>);

impl Names {
    fn add(&mut self, name: &str, record: RecordType, data: Vec<String>) {
        self.0.insert((name.to_owned(), record.to_string()), data);
    }

    fn config(&self) -> String {
        let mut text = format!(
            "server:\n  interface: {}@{}\n  num-threads: 1\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  pidfile: \
             \"\"\n  use-syslog: no\n  verbosity: 0\n  module-config: \"iterator\"\n  qname-minimisation: no\n  \
             local-zone: \"10.in-addr.arpa.\" transparent\n  local-zone: \"test.\" transparent\n  minimal-responses: yes\n",
            UNBOUND.ip(),
            UNBOUND.port(),
        );
        for ((name, record), data) in &self.0 {
            for data in data {
                text += &format!("  local-data: \"{name}. 1 IN {record} {data}\"\n");
            }
        }
        text + &format!(
            "forward-zone:\n  name: \".\"\n  forward-addr: {}\nremote-control:\n  control-enable: no\n",
            contract::upstream().ip()
        )
    }
}

/// unbound in the client's namespace. Dropping the value ends it.
struct Unbound {
    pid: u32,
    _files: tempfile::TempDir,
}

impl Unbound {
    fn start(lab: &Lab, names: &Names) -> Result<Self> {
        let files = tempfile::tempdir()?;
        let config = files.path().join("unbound.conf");
        fs::write(&config, names.config())?;
        let mut command = Command::new("unbound");
        command.arg("-d").arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        let child = lab.within(CLIENT, || command.spawn())?;
        let child = child.context("cannot run unbound: install it with `cargo xtask setup --test`")?;
        let unbound = Self { pid: child.id(), _files: files };
        try_eventually(FOLLOW_TIMEOUT, "unbound answers", || {
            let answer = lab.within(CLIENT, || dns::lookup(UNBOUND, "whoami", RecordType::A));
            match answer {
                Ok(Ok(answer)) if answer.addrs().len() == 1 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
        Ok(unbound)
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        if let Err(error) = process::kill(self.pid) {
            eprintln!("cannot end unbound: {error:#}");
        }
    }
}
