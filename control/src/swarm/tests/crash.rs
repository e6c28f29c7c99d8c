//! Test of a manager that is killed in the middle of its writes. The victim is this test program,
//! which runs a second time in a separate process.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use weft_model::{DEFAULT_TUNNEL_PORT, spec::Availability};

use super::fixture::{Host, config, has_label, propose_label, spec};
use crate::swarm::{InitOptions, Manager, Membership, Swarm};

/// Environment variables. If they are set, the run is the victim.
const VICTIM_DIR: &str = "WEFT_TEST_VICTIM_DIR";
const VICTIM_ADDR: &str = "WEFT_TEST_VICTIM_ADDR";
/// In the victim's output, this precedes the number of each confirmed write.
const CONFIRMED: &str = "confirmed ";

#[test]
fn confirmed_writes_survive_kill_9_of_the_manager() {
    let host = Host::new("n1");
    // Each run resumes where the one before was killed, after a different number of writes.
    let mut confirmed = Vec::new();
    for writes in [1, 7, 30] {
        let mut victim = Command::new(std::env::current_exe().expect("the path of this program"))
            .args(["--exact", "swarm::tests::crash::victim", "--nocapture"])
            .env(VICTIM_DIR, host.dir())
            .env(VICTIM_ADDR, host.addr().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the victim starts");
        let output = BufReader::new(victim.stdout.take().expect("the victim's output"));
        let numbers = output.lines().map_while(Result::ok).filter_map(|line| {
            let at = line.find(CONFIRMED)?;
            line[at + CONFIRMED.len()..].trim().parse::<u64>().ok()
        });
        confirmed.extend(numbers.take(writes));
        victim.kill().expect("the victim gets SIGKILL");
        victim.wait().expect("the victim has ended");
    }
    assert_eq!(confirmed.len(), 38, "each run made its writes");

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let swarm = Swarm::open(config(host.dir(), "n1", host.addr())).await.expect("the membership resumes");
        let manager = wait_for_leader(&swarm).await;
        let state = manager.state().borrow().clone();
        for number in confirmed {
            assert!(has_label(&state, &number.to_string()), "{number} was confirmed");
        }
        propose_label(&manager, "after").await.expect("the manager accepts changes");
        swarm.shutdown().await;
    });
}

/// Does nothing in the first run. In the second run it makes writes until it is killed.
#[test]
fn victim() {
    let (Ok(dir), Ok(addr)) = (std::env::var(VICTIM_DIR), std::env::var(VICTIM_ADDR)) else {
        return;
    };
    let addr: Ipv4Addr = addr.parse().expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(write_until_killed(Path::new(&dir), addr));
}

async fn write_until_killed(dir: &Path, addr: Ipv4Addr) {
    let swarm = Swarm::open(config(dir, "n1", addr)).await.expect("the membership resumes");
    if *swarm.membership().borrow() == Membership::None {
        let options = InitOptions {
            advertise_addr: None,
            listen_addr: SocketAddr::new(addr.into(), 0),
            tunnel_addr: None,
            tunnel_port: DEFAULT_TUNNEL_PORT,
            spec: spec(),
            auto_lock: false,
            availability: Availability::Active,
        };
        swarm.init(options).await.expect("the node forms a cluster");
    }
    let manager = wait_for_leader(&swarm).await;
    let written = manager.state().borrow().cluster.as_ref().expect("a cluster").spec.labels.len();
    for number in written as u64.. {
        propose_label(&manager, &number.to_string()).await.expect("the write is confirmed");
        println!("{CONFIRMED}{number}");
    }
}

/// Waits until the log is open and this manager leads.
async fn wait_for_leader(swarm: &Swarm) -> Manager {
    let mut managers = swarm.lifecycle.channels.manager.subscribe();
    let manager = managers.wait_for(Option::is_some).await.expect("the daemon runs").clone().expect("a manager");
    let mut led = manager.tracker().term();
    led.wait_for(Option::is_some).await.expect("the daemon runs");
    manager
}
