//! The service changes under load: scaled, updated, removed.

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
    stage::{outcome, show, under_load, vip},
};
use crate::ui::Ui;

/// How soon traffic and names follow.
const SOON: Duration = Duration::from_secs(1);
/// How long nothing must answer to count as closed.
const SILENCE: Duration = Duration::from_millis(300);
/// For a rolling update of three tasks, each watched for a second.
const ROLLED: Duration = Duration::from_secs(60);
/// A request that lasts.
const LONG: &str = "/?delay=3s";

pub(super) fn scaled(ui: &Ui, lab: &Lab, friend: &Task) -> Result<u64> {
    under_load(lab, friend, || {
        show(lab, "n1", &["service", "scale", "--detach", "whoami=5"])?;
        let tasks = ui.step("five tasks run", |_| lab.wait_running("n1", "whoami", 5))?;
        follow(lab, friend, &tasks, Instant::now())?;
        scaled_down(ui, lab, friend)
    })
}

/// Down to one task, while requests that began before last.
fn scaled_down(ui: &Ui, lab: &Lab, friend: &Task) -> Result<()> {
    let addrs = lab.published(PORT);
    let long = || lab.within(CLIENT, || http::get_within(addrs[0], LONG, Duration::from_secs(10)));
    thread::scope(|scope| {
        // Twice as many as there are tasks: those that go are among them.
        let requests: Vec<_> = (0..10).map(|_| scope.spawn(long)).collect();
        // They have reached their tasks once a later one has come back.
        lab.get(CLIENT, addrs[0], "/?delay=300ms")?;
        show(lab, "n1", &["service", "scale", "--detach", "whoami=1"])?;
        let returned = Instant::now();
        let tasks = lab.wait_running("n1", "whoami", 1)?;
        follow(lab, friend, &tasks, returned)?;
        let mut answered = BTreeSet::new();
        for request in requests {
            let reply = request.join().ok().context("a client panicked")??.context("a request begun before")?;
            answered.insert(reply.name);
        }
        ensure!(answered.len() > 1, "only {answered:?} answered: no request was at a task that went");
        outcome("10 requests of 3 s begun before, at all tasks", "all answered in full");
        ui.step("the other tasks stop", |_| lab.wait_stopped("n1", "whoami"))
    })
}

/// Within a second of `event`, the mesh and the names know these tasks and no others.
fn follow(lab: &Lab, friend: &Task, tasks: &[Task], event: Instant) -> Result<()> {
    let names: BTreeSet<String> = tasks.iter().map(Task::name).collect();
    let addrs: BTreeSet<IpAddr> = tasks.iter().map(|task| task.v4("app")).collect();
    let left = || SOON.saturating_sub(event.elapsed());
    try_eventually(left(), "tasks.whoami follows", || {
        let answer = lab.ask(friend, "tasks.whoami", RecordType::A).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == addrs { Ok(()) } else { Err(format!("{found:?} instead of {addrs:?}")) }
    })?;
    for addr in lab.published(PORT) {
        try_eventually(left(), &format!("{addr} follows"), || {
            let seen = lab.within(CLIENT, || http::spread(addr, 2 * tasks.len())).map_err(|error| error.to_string())?;
            let seen: BTreeSet<String> = seen.map_err(|error| error.to_string())?.into_keys().collect();
            if seen == names { Ok(()) } else { Err(format!("{seen:?} instead of {names:?}")) }
        })?;
    }
    let took = event.elapsed();
    outcome("all nodes and tasks.whoami know exactly these", &format!("after {} ms", took.as_millis()));
    Ok(())
}

pub(super) fn updated(ui: &Ui, lab: &Lab, friend: &Task) -> Result<u64> {
    let mut total = 0;
    show(lab, "n1", &["service", "scale", "--detach", "whoami=3"])?;
    ui.step("three tasks run", |_| lab.wait_running("n1", "whoami", 3))?;
    for (change, what) in
        [(&["--force"][..], "every task is replaced"), (&["--image", "weft/whoami:latest"], "the new image rolls out")]
    {
        let before = lab.wait_running("n1", "whoami", 3)?;
        total += under_load(lab, friend, || {
            let update = ["service", "update", "--detach", "--update-monitor", "1s"];
            show(lab, "n1", &[&update[..], change, &["whoami"]].concat())?;
            let after = ui.step(what, |_| rolled(lab))?;
            let kept = after.iter().filter(|task| before.iter().any(|old| old.id == task.id)).count();
            ensure!(kept == 0, "{kept} tasks are the old ones");
            Ok(())
        })?;
    }
    Ok(total)
}

/// Waits for the end of the update; the tasks then.
fn rolled(lab: &Lab) -> Result<Vec<Task>> {
    try_eventually(ROLLED, "the update is completed", || {
        let service = api::get(&contract::socket("n1"), "/services/whoami").map_err(|error| format!("{error:#}"))?;
        let status = &service["UpdateStatus"];
        if status["State"] == "completed" { Ok(()) } else { Err(status.to_string()) }
    })?;
    lab.wait_running("n1", "whoami", 3)
}

/// `published` is where the service is reached until then.
pub(super) fn removed(ui: &Ui, lab: &Lab, published: &[SocketAddr]) -> Result<()> {
    // The friend may have moved.
    let friends = ui.quiet("the friend runs", |_| lab.wait_running("n1", "friend", 1))?;
    let friend = friends.first().context("one task")?;
    let vip = SocketAddr::new(vip(lab, friend, "whoami")?, 80);
    show(lab, "n1", &["service", "rm", "whoami"])?;
    let returned = Instant::now();
    let left = || SOON.saturating_sub(returned.elapsed());
    try_eventually(left(), "the name is gone", || {
        let answer = lab.ask(friend, "whoami", RecordType::A).map_err(|error| format!("{error:#}"))?;
        if answer.code == ResponseCode::NXDomain { Ok(()) } else { Err(format!("{answer:?}")) }
    })?;
    let closed = |what: String, connect: &dyn Fn() -> Result<bool>| {
        try_eventually(left(), &what, || match connect() {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        })
    };
    closed(format!("{vip} is closed"), &|| Ok(lab.within_task(friend, || http::connect(vip, SILENCE))?.is_ok()))?;
    for addr in published {
        closed(format!("{addr} is closed"), &|| Ok(lab.within(CLIENT, || http::connect(*addr, SILENCE))?.is_ok()))?;
    }
    outcome("its port, its VIP and its name", &format!("gone after {} ms", returned.elapsed().as_millis()));
    Ok(())
}
