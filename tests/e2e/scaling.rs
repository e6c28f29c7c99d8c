//! Scaling: traffic and names follow the number of tasks within a second, and no request fails.

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
        DROP_TIMEOUT, HTTP, Loads, all_answer, all_answer_within, in_parallel, names_follow, probe, task_of, time_left,
        vip,
    },
    harness::{Group, Shape, tests},
    mesh, pauses,
};

pub(crate) fn group() -> Group {
    Group {
        name: "scaling",
        shape: Shape::default(),
        setup,
        tests: tests![
            pauses::a_single_manager_that_was_paused_takes_no_node_for_down,
            new_tasks_receive_traffic_within_a_second,
            scaling_down_fails_no_request,
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

/// Scales to this number of tasks, and waits until all of them get traffic. The previous test may
/// have left another number.
fn prepare(lab: &Lab, replicas: usize) -> Result<Vec<Task>> {
    let tasks = scale(lab, replicas)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(5));
    Ok(tasks)
}

/// Checks that the names, the published ports and the VIP lead to exactly these tasks within a
/// second of the event.
fn check_follows(lab: &Lab, tasks: &[Task], event: Instant) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    let inside = lab.task_namespace(&probe)?;
    let published = lab.published(mesh::PORT);
    let checks: [&(dyn Fn() + Sync); 3] = [
        &|| names_follow(lab, &probe, tasks, time_left(event)),
        &|| all_answer(CLIENT, &published, tasks, time_left(event)),
        &|| all_answer_within(&inside, "the probe", &[vip], tasks, time_left(event)),
    ];
    in_parallel(&checks, |check| check());
    Ok(())
}

pub(crate) fn new_tasks_receive_traffic_within_a_second(lab: &Lab) -> Result<()> {
    prepare(lab, 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.weft_ok("n1", &["service", "scale", "--detach", "whoami=5"])?;
    let tasks = lab.wait_running("n1", "whoami", 5)?;
    check_follows(lab, &tasks, Instant::now())?;
    loads.expect_no_errors()
}

pub(crate) fn scaling_down_fails_no_request(lab: &Lab) -> Result<()> {
    prepare(lab, 5)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let addrs = lab.published(mesh::PORT);
    // More requests than tasks, so that also the tasks that will be stopped have open requests.
    let slow = thread::scope(|scope| -> Result<Vec<http::Reply>> {
        let requests: Vec<_> = (0..12)
            .map(|n| {
                let addr = addrs[n % addrs.len()];
                scope.spawn(move || {
                    lab.within(CLIENT, || http::get_with_timeout(addr, "/?delay=3s", Duration::from_secs(10)))
                })
            })
            .collect();
        wait_until_delivered(lab, &addrs)?;
        lab.weft_ok("n1", &["service", "scale", "--detach", "whoami=1"])?;
        let scaled = Instant::now();
        let tasks = lab.wait_running("n1", "whoami", 1)?;
        check_follows(lab, &tasks, scaled)?;
        let replies = requests.into_iter().map(|request| {
            let reply = request.join().ok().context("a client panicked")??;
            reply.context("a request that was open when the service was scaled down")
        });
        replies.collect()
    })?;
    let answered: BTreeSet<&str> = slow.iter().map(|reply| reply.name.as_str()).collect();
    ensure!(answered.len() > 1, "only {answered:?} answered: no stopped task had a request");
    loads.expect_no_errors()
}

/// Waits until requests that were sent before have reached their tasks: later ones are answered.
fn wait_until_delivered(lab: &Lab, addrs: &[SocketAddr]) -> Result<()> {
    for addr in addrs {
        lab.within(CLIENT, || http::answers_by_task(*addr, 10))??;
    }
    Ok(())
}

/// Checks that no address accepts connections within a second of the event.
fn check_closed(netns: &Path, addrs: &[SocketAddr], event: Instant) {
    in_parallel(addrs, |addr| {
        eventually(time_left(event), "the address is closed", || {
            match netns::within(netns, || http::connect(*addr, DROP_TIMEOUT)) {
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
    let scaled = Instant::now();
    names_follow(lab, &probe, &[], time_left(scaled));
    check_closed(&contract::namespace_path(CLIENT), &lab.published(mesh::PORT), scaled);
    check_closed(&lab.task_namespace(&probe)?, &[vip], scaled);
    let tasks = prepare(lab, 2)?;
    check_follows(lab, &tasks, Instant::now())
}

pub(crate) fn a_removed_service_is_gone_within_a_second(lab: &Lab) -> Result<()> {
    prepare(lab, 3)?;
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    let inside = lab.task_namespace(&probe)?;
    lab.weft_ok("n1", &["service", "rm", "whoami"])?;
    let removed = Instant::now();
    let check_unresolved = |name: &str| {
        eventually(time_left(removed), &format!("{name} does not resolve"), || {
            let answer = lab.lookup(&probe, name, RecordType::A).map_err(|error| format!("{error:#}"))?;
            if answer.code == ResponseCode::NXDomain { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    };
    let checks: [&(dyn Fn() + Sync); 5] = [
        &|| check_unresolved("whoami"),
        &|| check_unresolved("tasks.whoami"),
        &|| check_closed(&contract::namespace_path(CLIENT), &lab.published(mesh::PORT), removed),
        &|| check_closed(&inside, &[vip], removed),
        &|| check_no_echo(lab, removed),
    ];
    in_parallel(&checks, |check| check());
    let missing = lab.weft_refused("n1", &["service", "inspect", "whoami"])?;
    ensure!(missing.contains("no such service: whoami"), "{missing}");
    // The next test needs the service.
    mesh::setup_service(lab)
}

/// Checks that no published UDP port echoes within a second of the event.
fn check_no_echo(lab: &Lab, event: Instant) {
    in_parallel(&lab.published(mesh::UDP_PORT), |addr| {
        eventually(time_left(event), "the port does not echo", || {
            match lab.within(CLIENT, || http::udp(*addr, b"hello", DROP_TIMEOUT)) {
                Ok(Err(_)) => Ok(()),
                other => Err(format!("{addr}: {other:?}")),
            }
        });
    });
}
