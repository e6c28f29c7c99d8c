//! More tasks, fewer tasks, none: traffic and names follow at once, and clients notice nothing.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    CLIENT, Lab, Load, Task, contract,
    dns::{RecordType, ResponseCode},
    eventually, http,
};

use crate::{
    fixtures::{SILENCE, SOON, all_answer, ask, probe, task_of, v4_of},
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
    all_answer(lab, CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(5));
    Ok(tasks)
}

/// The names know exactly these tasks.
fn names_follow(lab: &Lab, tasks: &[Task]) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let expected = v4_of(tasks, "app");
    eventually(SOON, "tasks.whoami gives the addresses of the running tasks", || {
        let answer = ask(lab, &probe, "tasks.whoami", RecordType::A).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
    });
    Ok(())
}

pub(crate) fn new_tasks_take_traffic_within_a_second(lab: &Lab) -> Result<()> {
    begin(lab, 3)?;
    let load = Load::start(&contract::namespace_path(CLIENT), &lab.published(mesh::PORT));
    lab.weft_ok("n1", &["service", "scale", "--detach", "whoami=5"])?;
    let tasks = lab.wait_running("n1", "whoami", 5)?;
    names_follow(lab, &tasks)?;
    all_answer(lab, CLIENT, &lab.published(mesh::PORT), &tasks, SOON);
    load.stop()?.expect_no_errors();
    Ok(())
}

pub(crate) fn scaling_down_loses_no_request(lab: &Lab) -> Result<()> {
    begin(lab, 5)?;
    let load = Load::start(&contract::namespace_path(CLIENT), &lab.published(mesh::PORT));
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
        let tasks = scale(lab, 1)?;
        names_follow(lab, &tasks)?;
        all_answer(lab, CLIENT, &addrs, &tasks, SOON);
        let replies = requests.into_iter().map(|request| {
            let reply = request.join().ok().context("a client panicked")??;
            reply.context("a request that began before the scale-down")
        });
        replies.collect()
    })?;
    let answered: BTreeSet<&str> = long.iter().map(|reply| reply.name.as_str()).collect();
    ensure!(answered.len() > 1, "only {answered:?} answered: no request was at a task that went");
    load.stop()?.expect_no_errors();
    Ok(())
}

/// Requests begun before this returns have reached their tasks: later ones have come back.
fn started(lab: &Lab, addrs: &[SocketAddr]) -> Result<()> {
    for addr in addrs {
        lab.within(CLIENT, || http::spread(*addr, 10))??;
    }
    Ok(())
}

pub(crate) fn scaling_to_zero_and_back_works(lab: &Lab) -> Result<()> {
    scale(lab, 0)?;
    names_follow(lab, &[])?;
    for addr in lab.published(mesh::PORT) {
        eventually(SOON, "no task, no connection", || match lab.within(CLIENT, || http::connect(addr, SILENCE)) {
            Ok(Err(_)) => Ok(()),
            other => Err(format!("{addr}: {other:?}")),
        });
    }
    let tasks = begin(lab, 2)?;
    names_follow(lab, &tasks)
}

pub(crate) fn a_removed_service_is_gone_within_a_second(lab: &Lab) -> Result<()> {
    begin(lab, 3)?;
    let probe = task_of(lab, "probe")?;
    lab.weft_ok("n1", &["service", "rm", "whoami"])?;
    eventually(SOON, "the name is gone", || {
        let answer = ask(lab, &probe, "whoami", RecordType::A).map_err(|error| format!("{error:#}"))?;
        if answer.code == ResponseCode::NXDomain { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    for addr in lab.published(mesh::PORT) {
        eventually(SOON, "the port is closed", || match lab.within(CLIENT, || http::connect(addr, SILENCE)) {
            Ok(Err(_)) => Ok(()),
            other => Err(format!("{addr}: {other:?}")),
        });
    }
    let missing = lab.weft_refused("n1", &["service", "inspect", "whoami"])?;
    ensure!(missing.contains("no such service: whoami"), "{missing}");
    // Whoever comes next finds it as the setup made it.
    mesh::setup_service(lab)
}
