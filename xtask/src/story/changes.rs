//! The service changes while clients use it: it is scaled, updated, and removed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    CLIENT, Lab, Task, api, contract,
    dns::{RecordType, ResponseCode},
    http, try_eventually,
};

use super::{
    PORT,
    show::{outcome, show, under_load, vip},
};
use crate::ui::Ui;

/// The time in which traffic and names must follow a change.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);
/// A port that does not answer within this time counts as closed.
const CLOSED_TIMEOUT: Duration = Duration::from_millis(300);
/// The time limit for a rolling update of three tasks, each monitored for a second.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(60);
/// A request whose answer takes 3 s.
const SLOW_REQUEST: &str = "/?delay=3s";

/// Scales the service up and down under load. Returns the number of requests.
pub(super) fn scale(ui: &Ui, lab: &Lab, probe: &Task) -> Result<u64> {
    under_load(lab, probe, || {
        show(lab, "n1", &["service", "scale", "--detach", "whoami=5"])?;
        let tasks = ui.step("wait until five tasks are running", |_| lab.wait_running("n1", "whoami", 5))?;
        check_follows(lab, probe, &tasks, Instant::now())?;
        scale_down(ui, lab, probe)
    })
}

/// Scales down to one task while slow requests are open.
fn scale_down(ui: &Ui, lab: &Lab, probe: &Task) -> Result<()> {
    let addrs = lab.published(PORT);
    let slow = || lab.within(CLIENT, || http::get_with_timeout(addrs[0], SLOW_REQUEST, Duration::from_secs(10)));
    thread::scope(|scope| {
        // Twice the number of tasks, so that also the tasks that will be stopped have open
        // requests.
        let requests: Vec<_> = (0..10).map(|_| scope.spawn(slow)).collect();
        // When this later request is answered, the slow ones have reached their tasks.
        lab.get(CLIENT, addrs[0], "/?delay=300ms")?;
        show(lab, "n1", &["service", "scale", "--detach", "whoami=1"])?;
        let scaled = Instant::now();
        let tasks = lab.wait_running("n1", "whoami", 1)?;
        check_follows(lab, probe, &tasks, scaled)?;
        let mut answered = BTreeSet::new();
        for request in requests {
            let reply = request.join().ok().context("a client panicked")??;
            answered.insert(reply.context("a request that was open when the service was scaled down")?.name);
        }
        ensure!(answered.len() > 1, "only {answered:?} answered: no stopped task had a request");
        outcome("10 requests of 3 s that all tasks had before", "all answered completely");
        ui.step("wait until the other tasks are stopped", |_| lab.wait_stopped("n1", "whoami"))
    })
}

/// Checks that the mesh and the names have exactly these tasks within a second of `event`.
fn check_follows(lab: &Lab, probe: &Task, tasks: &[Task], event: Instant) -> Result<()> {
    let names: BTreeSet<String> = tasks.iter().map(Task::name).collect();
    let addrs: BTreeSet<IpAddr> = tasks.iter().map(|task| task.v4("app")).collect();
    let left = || FOLLOW_TIMEOUT.saturating_sub(event.elapsed());
    try_eventually(left(), "tasks.whoami resolves to the running tasks", || {
        let answer = lab.lookup(probe, "tasks.whoami", RecordType::A).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == addrs { Ok(()) } else { Err(format!("{found:?} instead of {addrs:?}")) }
    })?;
    for addr in lab.published(PORT) {
        try_eventually(left(), &format!("the running tasks answer at {addr}"), || {
            let found = lab.within(CLIENT, || http::answers_by_task(addr, 2 * tasks.len()));
            let found = found.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            let found: BTreeSet<String> = found.into_keys().collect();
            if found == names { Ok(()) } else { Err(format!("{found:?} instead of {names:?}")) }
        })?;
    }
    let elapsed = event.elapsed();
    outcome("all nodes and tasks.whoami have exactly these tasks", &format!("after {} ms", elapsed.as_millis()));
    Ok(())
}

/// Updates the service twice under load. Returns the number of requests.
pub(super) fn update(ui: &Ui, lab: &Lab, probe: &Task) -> Result<u64> {
    let mut total = 0;
    show(lab, "n1", &["service", "scale", "--detach", "whoami=3"])?;
    ui.step("wait until three tasks are running", |_| lab.wait_running("n1", "whoami", 3))?;
    for (change, step) in [
        (&["--force"][..], "wait until every task is replaced"),
        (&["--image", "weft/whoami:latest"], "wait until every task has the new image"),
    ] {
        let before = lab.wait_running("n1", "whoami", 3)?;
        total += under_load(lab, probe, || {
            let update = ["service", "update", "--detach", "--update-monitor", "1s"];
            show(lab, "n1", &[&update[..], change, &["whoami"]].concat())?;
            let after = ui.step(step, |_| wait_updated(lab))?;
            let old = after.iter().filter(|task| before.iter().any(|old| old.id == task.id)).count();
            ensure!(old == 0, "{old} tasks were not replaced");
            Ok(())
        })?;
    }
    Ok(total)
}

/// Waits until the update is completed. Returns the tasks.
fn wait_updated(lab: &Lab) -> Result<Vec<Task>> {
    try_eventually(UPDATE_TIMEOUT, "the update is completed", || {
        let service = api::get(&contract::socket("n1"), "/services/whoami").map_err(|error| format!("{error:#}"))?;
        let status = &service["UpdateStatus"];
        if status["State"] == "completed" { Ok(()) } else { Err(status.to_string()) }
    })?;
    lab.wait_running("n1", "whoami", 3)
}

/// Removes the service. `published` are the addresses at which it answers before.
pub(super) fn remove(ui: &Ui, lab: &Lab, published: &[SocketAddr]) -> Result<()> {
    // The probe's task may be another one since a node failed.
    let probes =
        ui.step_without_result("wait until the task of probe is running", |_| lab.wait_running("n1", "probe", 1))?;
    let probe = probes.first().context("one task is running")?;
    let vip = SocketAddr::new(vip(lab, probe, "whoami")?, 80);
    show(lab, "n1", &["service", "rm", "whoami"])?;
    let removed = Instant::now();
    let left = || FOLLOW_TIMEOUT.saturating_sub(removed.elapsed());
    try_eventually(left(), "whoami does not resolve", || {
        let answer = lab.lookup(probe, "whoami", RecordType::A).map_err(|error| format!("{error:#}"))?;
        if answer.code == ResponseCode::NXDomain { Ok(()) } else { Err(format!("{answer:?}")) }
    })?;
    let wait_closed = |addr: SocketAddr, connects: &dyn Fn() -> Result<bool>| {
        try_eventually(left(), &format!("{addr} is closed"), || match connects() {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    wait_closed(vip, &|| Ok(lab.within_task(probe, || http::connect(vip, CLOSED_TIMEOUT))?.is_ok()))?;
    for addr in published {
        wait_closed(*addr, &|| Ok(lab.within(CLIENT, || http::connect(*addr, CLOSED_TIMEOUT))?.is_ok()))?;
    }
    outcome("its port, its VIP and its name", &format!("gone after {} ms", removed.elapsed().as_millis()));
    Ok(())
}
