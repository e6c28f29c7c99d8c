//! More tasks, fewer tasks, none: traffic and names follow at once, and clients notice nothing.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    CLIENT, Lab, Task, contract,
    dns::{RecordType, ResponseCode},
    eventually, http, netns,
};

use crate::{
    fixtures::{
        HTTP, Loads, SILENCE, all_answer, all_answer_within, at_once, names_follow, probe, soon_after, task_of, vip,
    },
    harness::{Shape, Theme, tests},
    mesh,
};

pub(crate) fn theme() -> Theme {
    Theme {
        name: "scaling",
        shape: Shape::default(),
        setup,
        tests: tests![
            new_tasks_take_traffic_within_a_second,
            scaling_down_loses_no_request,
            scaling_to_zero_and_back_works,
            a_removed_service_is_gone_within_a_second,
        ],
    }
}

pub(crate) fn setup(lab: &Lab) -> Result<()> {
    mesh::setup(lab)?;
    probe(lab, "probe", &["app"]).map(|_| ())
}

fn scale(lab: &Lab, replicas: usize) -> Result<Vec<Task>> {
    lab.weft_ok("n1", &["service", "scale", &format!("whoami={replicas}")])?;
    lab.wait_running("n1", "whoami", replicas)
}

/// The service with this many tasks, whatever the test before left.
fn begin(lab: &Lab, replicas: usize) -> Result<Vec<Task>> {
    let tasks = scale(lab, replicas)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(5));
    Ok(tasks)
}

/// Names, published ports and VIP know exactly these tasks, all of them within a second of the event.
fn all_follow(lab: &Lab, tasks: &[Task], event: Instant) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    let inside = lab.task_namespace(&probe)?;
    let published = lab.published(mesh::PORT);
    let checks: [&(dyn Fn() + Sync); 3] = [
        &|| names_follow(lab, &probe, tasks, soon_after(event)),
        &|| all_answer(CLIENT, &published, tasks, soon_after(event)),
        &|| all_answer_within(&inside, "the probe", &[vip], tasks, soon_after(event)),
    ];
    at_once(&checks, |check| check());
    Ok(())
}

pub(crate) fn new_tasks_take_traffic_within_a_second(lab: &Lab) -> Result<()> {
    begin(lab, 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.weft_ok("n1", &["service", "scale", "--detach", "whoami=5"])?;
    let tasks = lab.wait_running("n1", "whoami", 5)?;
    all_follow(lab, &tasks, Instant::now())?;
    loads.expect_no_errors()
}

pub(crate) fn scaling_down_loses_no_request(lab: &Lab) -> Result<()> {
    begin(lab, 5)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let addrs = lab.published(mesh::PORT);
    // More than there are tasks: those that go are among them.
    let long = thread::scope(|scope| -> Result<Vec<http::Reply>> {
        let requests: Vec<_> = (0..12)
            .map(|n| {
                let addr = addrs[n % addrs.len()];
                scope
                    .spawn(move || lab.within(CLIENT, || http::get_within(addr, "/?delay=3s", Duration::from_secs(10))))
            })
            .collect();
        started(lab, &addrs)?;
        lab.weft_ok("n1", &["service", "scale", "--detach", "whoami=1"])?;
        let returned = Instant::now();
        let tasks = lab.wait_running("n1", "whoami", 1)?;
        all_follow(lab, &tasks, returned)?;
        let replies = requests.into_iter().map(|request| {
            let reply = request.join().ok().context("a client panicked")??;
            reply.context("a request that began before the scale-down")
        });
        replies.collect()
    })?;
    let answered: BTreeSet<&str> = long.iter().map(|reply| reply.name.as_str()).collect();
    ensure!(answered.len() > 1, "only {answered:?} answered: no request was at a task that went");
    loads.expect_no_errors()
}

/// Requests begun before this returns have reached their tasks: later ones have come back.
fn started(lab: &Lab, addrs: &[SocketAddr]) -> Result<()> {
    for addr in addrs {
        lab.within(CLIENT, || http::spread(*addr, 10))??;
    }
    Ok(())
}

/// Nobody takes a connection at any of the addresses, within a second of the event.
fn closed(netns: &Path, addrs: &[SocketAddr], event: Instant) {
    at_once(addrs, |addr| {
        eventually(soon_after(event), "no task, no connection", || {
            match netns::within(netns, || http::connect(*addr, SILENCE)) {
                Ok(Err(_)) => Ok(()),
                other => Err(format!("{addr}: {other:?}")),
            }
        });
    });
}

pub(crate) fn scaling_to_zero_and_back_works(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    lab.weft_ok("n1", &["service", "scale", "--detach", "whoami=0"])?;
    let returned = Instant::now();
    names_follow(lab, &probe, &[], soon_after(returned));
    closed(&contract::namespace_path(CLIENT), &lab.published(mesh::PORT), returned);
    closed(&lab.task_namespace(&probe)?, &[vip], returned);
    let tasks = begin(lab, 2)?;
    all_follow(lab, &tasks, Instant::now())
}

pub(crate) fn a_removed_service_is_gone_within_a_second(lab: &Lab) -> Result<()> {
    begin(lab, 3)?;
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    let inside = lab.task_namespace(&probe)?;
    lab.weft_ok("n1", &["service", "rm", "whoami"])?;
    let returned = Instant::now();
    let name_gone = |name: &str| {
        eventually(soon_after(returned), &format!("the name {name} is gone"), || {
            let answer = lab.ask(&probe, name, RecordType::A).map_err(|error| format!("{error:#}"))?;
            if answer.code == ResponseCode::NXDomain { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    };
    let checks: [&(dyn Fn() + Sync); 5] = [
        &|| name_gone("whoami"),
        &|| name_gone("tasks.whoami"),
        &|| closed(&contract::namespace_path(CLIENT), &lab.published(mesh::PORT), returned),
        &|| closed(&inside, &[vip], returned),
        &|| datagrams_find_nobody(lab, returned),
    ];
    at_once(&checks, |check| check());
    let missing = lab.weft_refused("n1", &["service", "inspect", "whoami"])?;
    ensure!(missing.contains("no such service: whoami"), "{missing}");
    // Whoever comes next finds it as the setup made it.
    mesh::setup_service(lab)
}

fn datagrams_find_nobody(lab: &Lab, event: Instant) {
    at_once(&lab.published(mesh::UDP_PORT), |addr| {
        eventually(soon_after(event), "no task, no echo", || {
            match lab.within(CLIENT, || http::udp(*addr, b"anybody", SILENCE)) {
                Ok(Err(_)) => Ok(()),
                other => Err(format!("{addr}: {other:?}")),
            }
        });
    });
}
