//! Runs groups of tests that share one lab. The lab of a group is created before its first test and
//! removed after its last. A test that fails may leave its cluster in any state: its lab is
//! removed, and the next test gets a new one.

use std::{
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use weft_lab::{Lab, LabOptions, Runtime};

/// The program that was built with the tests.
pub(crate) const NEW_WEFT: &str = env!("CARGO_BIN_EXE_weft");

/// The name and the body of a test.
pub(crate) type Test = (&'static str, fn(&Lab) -> Result<()>);

/// Lists functions as tests. The name of a test is the name of its function.
macro_rules! tests {
    ($($test:path),* $(,)?) => {
        vec![$((stringify!($test), $test as fn(&weft_lab::Lab) -> anyhow::Result<()>)),*]
    };
}
pub(crate) use tests;

/// How the names of groups begin that use the container engine or the docker client.
/// `cargo xtask test FILTER` installs them only for tests of these groups.
const DOCKER_GROUPS: &str = "docker_";

pub(crate) struct Group {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// Creates what all tests of the group use.
    pub(crate) setup: fn(&Lab) -> Result<()>,
    pub(crate) tests: Vec<Test>,
}

/// The shape of a group's lab.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) managers: usize,
    pub(crate) runtime: Runtime,
    pub(crate) init: bool,
    /// The program of the daemons and of the commands. `None`: the one that was built with the
    /// tests.
    pub(crate) weft: Option<PathBuf>,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: 3, managers: 1, runtime: Runtime::Process, init: true, weft: None }
    }
}

/// The lab that is up, and the index of its group.
struct Current {
    group: usize,
    lab: Lab,
}

/// What the tests share.
struct Harness {
    groups: Vec<Group>,
    current: Mutex<Option<Current>>,
    /// Groups whose lab could not be created, each with the error. It is not tried again.
    failed_setups: Mutex<Vec<(usize, String)>>,
}

pub(crate) fn run(groups: Vec<Group>) -> ExitCode {
    for group in &groups {
        let uses_engine = group.shape.runtime == Runtime::Docker;
        assert!(
            !uses_engine || group.name.starts_with(DOCKER_GROUPS),
            "{} must begin with {DOCKER_GROUPS}",
            group.name
        );
    }
    let mut arguments = Arguments::from_args();
    // The tests of a group share a lab.
    arguments.test_threads = Some(1);
    if !arguments.list && !is_root() {
        eprintln!(
            "the end-to-end tests need root for network namespaces and eBPF: run `cargo xtask test`, which uses sudo"
        );
        return ExitCode::FAILURE;
    }
    let lock = if arguments.list { None } else { Some(Lab::lock()) };
    if let Some(Err(error)) = &lock {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    // Remove the lab of a killed run first. Otherwise the check after the tests would report its
    // remains as remains of this run.
    if !arguments.list
        && let Err(error) = Lab::remove_previous()
    {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let harness = Arc::new(Harness { groups, current: Mutex::new(None), failed_setups: Mutex::new(Vec::new()) });
    let trials = trials(&harness);
    let conclusion = libtest_mimic::run(&arguments, trials);
    // A filter may have left out the last test of a group, which removes the lab.
    if let Err(error) = harness.remove_lab() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn trials(harness: &Arc<Harness>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (index, group) in harness.groups.iter().enumerate() {
        for (name, test) in group.tests.iter().copied() {
            let harness = Arc::clone(harness);
            let short = name.rsplit("::").next().unwrap_or(name);
            trials.push(Trial::test(format!("{}::{short}", group.name), move || {
                harness.run(index, test).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
        let harness = Arc::clone(harness);
        trials.push(Trial::test(format!("{}::nothing_is_left_behind", group.name), move || {
            harness.remove_lab().map_err(|error| Failed::from(format!("{error:#}")))
        }));
    }
    trials
}

impl Harness {
    fn run(&self, group: usize, test: fn(&Lab) -> Result<()>) -> Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.group != group) {
            if current.is_some() {
                // A filter has left out the last test of another group.
                remove(&mut current)?;
            }
            *current = Some(Current { group, lab: self.create_lab(group)? });
        }
        let lab = &current.as_ref().context("the lab was created")?.lab;
        let result = catch_panic(|| test(lab)).map_err(|error| with_logs(&error, lab));
        if result.is_err() {
            remove(&mut current)?;
        }
        result
    }

    fn create_lab(&self, index: usize) -> Result<Lab> {
        let mut failed = self.failed_setups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, error)) = failed.iter().find(|(group, _)| *group == index) {
            return Err(anyhow!("the lab of this group failed before: {}", error.lines().next().unwrap_or_default()));
        }
        let group = &self.groups[index];
        let created = catch_panic(|| up(group));
        if let Err(error) = &created {
            failed.push((index, format!("{error:#}")));
        }
        created
    }

    /// Removes the lab that is up, if there is one, and checks that nothing is left.
    fn remove_lab(&self) -> Result<()> {
        remove(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn up(group: &Group) -> Result<Lab> {
    let Shape { nodes, managers, runtime, init, weft } = group.shape.clone();
    let weft = weft.unwrap_or_else(|| PathBuf::from(NEW_WEFT));
    let lab = Lab::up(LabOptions { nodes, managers, runtime, init, weft })?;
    if let Err(error) = catch_panic(|| (group.setup)(&lab)) {
        let error = with_logs(&error, &lab);
        lab.down()?;
        return Err(error);
    }
    Ok(lab)
}

fn remove(current: &mut Option<Current>) -> Result<()> {
    if let Some(Current { lab, .. }) = current.take() {
        lab.down()?;
    }
    let left = weft_lab::leftovers();
    ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    Ok(())
}

/// Turns a panic into an error, so that a test may fail either way.
fn catch_panic<T>(action: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Err(anyhow!("{}", text.unwrap_or("a panic without a message")))
    })
}

fn with_logs(error: &anyhow::Error, lab: &Lab) -> anyhow::Error {
    let logs = lab.nodes().map(|node| format!("--- log of {node}\n{}", lab.log_tail(&node)));
    let logs = logs.collect::<Vec<_>>().join("\n");
    anyhow!("{error:#}\n{logs}")
}
