//! Runs themes: lists of tests that share one lab. A theme's lab is made for its first test and removed after its last. A
//! test that fails leaves its cluster to nobody: the next one gets a new lab.

use std::{
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use weft_lab::{Lab, LabOptions, Runtime};

/// Name and body of a test.
pub(crate) type Test = (&'static str, fn(&Lab) -> Result<()>);

/// Lists functions as tests under their own names.
macro_rules! tests {
    ($($test:path),* $(,)?) => {
        vec![$((stringify!($test), $test as fn(&weft_lab::Lab) -> anyhow::Result<()>)),*]
    };
}
pub(crate) use tests;

pub(crate) struct Theme {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    /// What all tests of the theme find there.
    pub(crate) setup: fn(&Lab) -> Result<()>,
    pub(crate) tests: Vec<Test>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) managers: usize,
    pub(crate) runtime: Runtime,
    pub(crate) init: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nodes: 3, managers: 1, runtime: Runtime::Process, init: true }
    }
}

/// The lab that is up, of the theme with this index.
struct Current {
    theme: usize,
    lab: Lab,
}

/// What the trials share.
struct Stage {
    themes: Vec<Theme>,
    current: Mutex<Option<Current>>,
    /// Themes whose lab could not be made, and why: not tried again.
    hopeless: Mutex<Vec<(usize, String)>>,
}

pub(crate) fn run(themes: Vec<Theme>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests of a theme share a lab.
    arguments.test_threads = Some(1);
    if !arguments.list && !is_root() {
        eprintln!(
            "the end-to-end tests make network namespaces and load eBPF: run them as root (`cargo xtask test` asks sudo)"
        );
        return ExitCode::FAILURE;
    }
    let lock = if arguments.list { None } else { Some(Lab::lock()) };
    if let Some(Err(error)) = &lock {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    // What a run that was killed left up would count as left behind by this one.
    if !arguments.list
        && let Err(error) = Lab::make_room()
    {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let stage = Arc::new(Stage { themes, current: Mutex::new(None), hopeless: Mutex::new(Vec::new()) });
    let trials = trials(&stage);
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Where a filter left the last test of a theme out.
    if let Err(error) = stage.clear() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn trials(stage: &Arc<Stage>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (index, theme) in stage.themes.iter().enumerate() {
        for (name, test) in theme.tests.iter().copied() {
            let stage = Arc::clone(stage);
            let short = name.rsplit("::").next().unwrap_or(name);
            trials.push(Trial::test(format!("{}::{short}", theme.name), move || {
                stage.run(index, test).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
        let stage = Arc::clone(stage);
        trials.push(Trial::test(format!("{}::nothing_is_left_behind", theme.name), move || {
            stage.clear().map_err(|error| Failed::from(format!("{error:#}")))
        }));
    }
    trials
}

impl Stage {
    fn run(&self, theme: usize, test: fn(&Lab) -> Result<()>) -> Result<()> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.theme != theme) {
            if current.is_some() {
                // A filter left the last test of another theme out.
                remove(&mut current)?;
            }
            *current = Some(Current { theme, lab: self.make(theme)? });
        }
        let lab = &current.as_ref().context("a lab is up")?.lab;
        let result = caught(|| test(lab)).map_err(|error| with_logs(&error, lab));
        if result.is_err() {
            remove(&mut current)?;
        }
        result
    }

    fn make(&self, index: usize) -> Result<Lab> {
        let mut hopeless = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, why)) = hopeless.iter().find(|(theme, _)| *theme == index) {
            return Err(anyhow!("this theme's lab could not be made: {}", why.lines().next().unwrap_or_default()));
        }
        let theme = &self.themes[index];
        let made = caught(|| up(theme));
        if let Err(error) = &made {
            hopeless.push((index, format!("{error:#}")));
        }
        made
    }

    /// Removes the lab that is up, and proves it.
    fn clear(&self) -> Result<()> {
        remove(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn up(theme: &Theme) -> Result<Lab> {
    let Shape { nodes, managers, runtime, init } = theme.shape;
    let weft = Path::new(env!("CARGO_BIN_EXE_weft")).to_owned();
    let lab = Lab::up(LabOptions { nodes, managers, runtime, init, weft })?;
    if let Err(error) = caught(|| (theme.setup)(&lab)) {
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

/// A panic becomes an error, so that both end the same way.
fn caught<T>(action: impl FnOnce() -> Result<T>) -> Result<T> {
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
