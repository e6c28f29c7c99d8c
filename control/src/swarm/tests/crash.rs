//! A manager that is killed in the middle of its writes. The victim is this test program itself,
//! run once more.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Stdio},
};

use weft_model::spec::Availability;

use super::lab::{Place, config, has_label, label, spec};
use crate::swarm::{InitOptions, Swarm};

/// Tells the second run what it is, and where.
const VICTIM_DIR: &str = "WEFT_TEST_VICTIM_DIR";
const VICTIM_ADDR: &str = "WEFT_TEST_VICTIM_ADDR";
/// Goes before the number of each confirmed write in the victim's output.
const CONFIRMED: &str = "confirmed ";

#[test]
fn nothing_that_was_confirmed_is_lost_when_a_manager_is_killed() {
    let place = Place::new("n1");
    // Each life goes on where the one before was cut off, after another number of writes.
    let mut confirmed = Vec::new();
    for writes in [1, 7, 30] {
        let mut victim = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "swarm::tests::crash::victim", "--nocapture"])
            .env(VICTIM_DIR, place.dir())
            .env(VICTIM_ADDR, place.addr().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the victim starts");
        let output = BufReader::new(victim.stdout.take().expect("its output"));
        let numbers = output.lines().map_while(Result::ok).filter_map(|line| {
            let at = line.find(CONFIRMED)?;
            line[at + CONFIRMED.len()..].trim().parse::<u64>().ok()
        });
        confirmed.extend(numbers.take(writes));
        victim.kill().expect("SIGKILL");
        victim.wait().expect("it is dead");
    }
    assert_eq!(confirmed.len(), 38, "it wrote each time");

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let swarm = Swarm::open(config(place.dir(), "n1")).await.expect("it resumes");
        let manager = wait_for_manager(&swarm).await;
        let state = manager.state().borrow().clone();
        for number in confirmed {
            assert!(has_label(&state, &number.to_string()), "{number} was confirmed");
        }
        label(&manager, "after").await.expect("and it goes on");
        swarm.shutdown().await;
    });
}

/// Does nothing unless it is the second run: then it writes until it is killed.
#[test]
fn victim() {
    let (Ok(dir), Ok(addr)) = (std::env::var(VICTIM_DIR), std::env::var(VICTIM_ADDR)) else {
        return;
    };
    let addr: Ipv4Addr = addr.parse().expect("an address");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(write_for_ever(Path::new(&dir), addr));
}

async fn write_for_ever(dir: &Path, addr: Ipv4Addr) {
    let swarm = Swarm::open(config(dir, "n1")).await.expect("it resumes");
    if *swarm.membership().borrow() == crate::swarm::Membership::None {
        let options = InitOptions {
            advertise_addr: None,
            listen_addr: SocketAddr::new(addr.into(), 0),
            spec: spec(),
            availability: Availability::Active,
        };
        swarm.init(options).await.expect("it forms a cluster");
    }
    let manager = wait_for_manager(&swarm).await;
    let known = manager.state().borrow().cluster.as_ref().expect("a cluster").spec.labels.len();
    for number in known as u64.. {
        label(&manager, &number.to_string()).await.expect("written");
        println!("{CONFIRMED}{number}");
    }
}

/// Waits until the log has been read back and this manager leads again.
async fn wait_for_manager(swarm: &Swarm) -> crate::swarm::Manager {
    let mut managers = swarm.lifecycle.channels.manager.subscribe();
    let manager = managers.wait_for(Option::is_some).await.expect("the daemon runs").clone().expect("a manager");
    let mut led = manager.tracker().term();
    led.wait_for(Option::is_some).await.expect("the daemon runs");
    manager
}
