//! `vm`: boots another kernel in a virtual machine, and runs the end-to-end tests, a benchmark or
//! one command in it. So the parts of weft that depend on the kernel are tested on other kernels
//! than that of the machine: clsact instead of tcx, an older verifier, WireGuard in the kernel,
//! cgroup2 without hierarchies of version 1.
//!
//! qemu emulates the processor in software: computing is about 10 times slower, and opening a
//! connection up to 40 times. Therefore the tests multiply all their deadlines by a factor that is
//! measured in the machine (`weft_lab`, module `speed`), and CI does not run this task.
//!
//! - [`kernel`]: the kernels.
//! - [`emulator`]: the program that emulates it.
//! - [`image`]: the disk with the root file system, built once.
//! - [`payload`]: the disk with the binaries of the tree and the command, built for each run.
//! - [`mod@boot`]: runs the machine.

mod kernel;
mod image;
mod emulator;
mod payload;
mod boot;

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weft_lab::speed;

use self::{boot::Finished, emulator::Emulator, kernel::Kernel, payload::Payload};
use crate::{
    cargo::{self, Binaries},
    machine::{self, Tool},
    outcome::Outcome,
    setup,
    test::DOCKER_TESTS,
    ui::Ui,
};

/// The groups of end-to-end tests that run without a filter: those whose subject depends on the
/// kernel.
const GROUPS: [&str; 6] = ["mesh", "names", "isolation", "encrypted", "scaling", "update"];
/// The time after which a run is ended.
const DEADLINE: Duration = Duration::from_mins(30);

const TOOLS: &[Tool] = &[
    Tool { program: "debootstrap", package: "debootstrap" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "dpkg-deb", package: "dpkg" },
    Tool { program: "unshare", package: "util-linux" },
    Tool { program: "strip", package: "binutils" },
];

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Run end-to-end tests: without a filter those of mesh, names, isolation, encrypted, scaling
    /// and update.
    Test {
        #[command(flatten)]
        machine: Options,
        /// Run only the tests whose names contain this.
        filter: Option<String>,
        /// The program of the tests. Without this option it is built.
        #[arg(long, hide = true, requires = "weft")]
        tests: Option<PathBuf>,
    },
    /// Run `bench overlay`, for the WireGuard of the machine's kernel. The processor is emulated,
    /// so only the ratios between the cases mean something.
    Bench {
        #[command(flatten)]
        machine: Options,
        /// How many times each measurement is taken.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=20))]
        rounds: u64,
        /// The example `device` of weft-wireguard. Without this option it is built.
        #[arg(long, hide = true)]
        device: Option<PathBuf>,
    },
    /// Run one command as root: `vm shell -- weft --version`. `weft` and the programs of the lab
    /// are in its PATH.
    Shell {
        #[command(flatten)]
        machine: Options,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The version of Debian's kernel.
    #[arg(long, value_enum, default_value = "6.1")]
    kernel: Kernel,
    /// The binary to run. Without this option it is built.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
}

pub(crate) fn run(command: &Command) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!("the virtual machine has a processor of x86_64, and this build is for {}", env::consts::ARCH);
    }
    let ui = Ui::new();
    match command {
        Command::Test { machine, filter, tests } => run_tests(&ui, machine, filter.as_deref(), tests.clone()),
        Command::Bench { machine, rounds, device } => run_bench(&ui, machine, *rounds, device.clone()),
        Command::Shell { machine, command } => run_shell(&ui, machine, command),
    }
}

fn run_tests(ui: &Ui, options: &Options, filter: Option<&str>, tests: Option<PathBuf>) -> Result<()> {
    install(ui)?;
    let binaries = match (&options.weft, tests) {
        (Some(weft), Some(tests)) => Binaries { weft: weft.clone(), tests },
        _ => cargo::build_tests(ui)?,
    };
    continue_as_root(&[("--weft", &binaries.weft), ("--tests", &binaries.tests)])?;
    let names = cargo::test_names(&binaries.tests)?;
    let filters = filters(&names, filter)?;
    let payload =
        Payload { weft: &binaries.weft, programs: &[("e2e", &binaries.tests)], command: &test_command(&filters)? };
    let finished = boot(ui, options.kernel, &payload)?;
    let mut outcome = Outcome::default();
    outcome.finished_tests("end-to-end tests", finished.exit_code == 0, &finished.output);
    outcome.report()
}

fn run_bench(ui: &Ui, options: &Options, rounds: u64, device: Option<PathBuf>) -> Result<()> {
    install(ui)?;
    let weft = match &options.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_release(ui, "weft", "bin", "weft")?,
    };
    let device = match device {
        Some(device) => device,
        None => cargo::build_release(ui, "weft-wireguard", "example", "device")?,
    };
    continue_as_root(&[("--weft", &weft), ("--device", &device)])?;
    let xtask = env::current_exe().context("cannot find the file of this program")?;
    let (variable, argument) = (speed::VARIABLE, speed::ARGUMENT);
    let command = format!(
        "export {variable}=$(xtask {argument}) || exit\n\
         xtask bench overlay --rounds {rounds} --weft /payload/weft --device /payload/device --without-boringtun\n"
    );
    let programs: &[(&str, &Path)] = &[("xtask", &xtask), ("device", &device)];
    let finished = boot(ui, options.kernel, &Payload { weft: &weft, programs, command: &command })?;
    ensure!(finished.exit_code == 0, "the benchmark ended with exit code {}", finished.exit_code);
    Ok(())
}

fn run_shell(ui: &Ui, options: &Options, command: &[OsString]) -> Result<()> {
    install(ui)?;
    let weft = match &options.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_weft(ui)?,
    };
    continue_as_root(&[("--weft", &weft)])?;
    let words: Option<Vec<&str>> = command.iter().map(|word| word.to_str()).collect();
    let command =
        shlex::try_join(words.context("the command is not UTF-8")?).context("the command cannot be quoted")?;
    let finished = boot(ui, options.kernel, &Payload { weft: &weft, programs: &[], command: &command })?;
    ensure!(finished.exit_code == 0, "the command ended with exit code {}", finished.exit_code);
    Ok(())
}

/// Installs the programs that are missing.
fn install(ui: &Ui) -> Result<()> {
    setup::packages(ui, TOOLS)?;
    Emulator::prepare(ui).map(drop)
}

/// Restarts this program as root, with its arguments and these paths. The user has built the
/// programs.
fn continue_as_root(paths: &[(&str, &PathBuf)]) -> Result<()> {
    let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
    // After `vm test`: a command of `vm shell` may be behind `--`.
    let options = paths.iter().flat_map(|(name, path)| [OsString::from(name), path.as_os_str().to_owned()]);
    drop(arguments.splice(2..2, options));
    machine::become_root(&arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>())
}

fn boot(ui: &Ui, kernel: Kernel, payload: &Payload<'_>) -> Result<Finished> {
    let (emulator, image) = (Emulator::prepare(ui)?, image::prepare(ui, kernel)?);
    let folder = tempfile::Builder::new().prefix("run-").tempdir_in(image::folder())?;
    let disk = payload.write(ui, folder.path())?;
    eprintln!("  … boot Linux {kernel} under qemu");
    boot::run(emulator.command(), &image, &disk, folder.path(), DEADLINE)
}

/// The filters with which the test program is run, one after the other.
///
/// # Errors
/// When they select no test, or only tests that need a container engine.
fn filters(names: &[String], filter: Option<&str>) -> Result<Vec<String>> {
    let Some(filter) = filter else {
        let filters: Vec<String> = GROUPS.iter().map(|group| format!("{group}::")).collect();
        let unknown = filters.iter().find(|filter| !names.iter().any(|name| name.starts_with(*filter)));
        if let Some(group) = unknown {
            bail!("there is no group of end-to-end tests {group:?}: correct the list of groups in xtask/src/vm/mod.rs");
        }
        return Ok(filters);
    };
    let selected: Vec<&String> = names.iter().filter(|name| name.contains(filter)).collect();
    ensure!(!selected.is_empty(), "no end-to-end test has {filter:?} in its name");
    ensure!(
        selected.iter().any(|name| !name.starts_with(DOCKER_TESTS)),
        "{filter:?} selects only tests that need a container engine, and the virtual machine has none: run them with \
         `cargo xtask test {filter}`"
    );
    Ok(vec![filter.to_owned()])
}

/// The command that measures the machine's speed and runs the tests.
fn test_command(filters: &[String]) -> Result<String> {
    let (variable, argument) = (speed::VARIABLE, speed::ARGUMENT);
    let mut command = format!(
        "{variable}=$(e2e {argument}) || exit\n\
         export {variable}\n\
         echo \"the tests multiply their deadlines by ${variable}\"\n\
         failed=0\n"
    );
    for filter in filters {
        let filter = shlex::try_quote(filter).context("the filter cannot be quoted")?;
        command += &format!("e2e --color never --skip {DOCKER_TESTS} {filter} || failed=1\n");
    }
    Ok(command + "exit $failed\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        let groups = GROUPS.iter().map(|group| format!("{group}::works"));
        groups.chain(["cluster::works", "docker_client::lists_nodes"].map(str::to_owned)).collect()
    }

    #[test]
    fn without_a_filter_the_groups_run_that_depend_on_the_kernel() -> Result<()> {
        let filters = filters(&names(), None)?;
        assert_eq!(filters.len(), GROUPS.len());
        assert!(filters.contains(&"mesh::".to_owned()));
        Ok(())
    }

    #[test]
    fn a_group_that_was_renamed_is_an_error() {
        let names: Vec<String> = names().into_iter().filter(|name| !name.starts_with("mesh")).collect();
        let error = filters(&names, None).expect_err("there is no group mesh");
        assert!(error.to_string().contains("mesh::"), "{error}");
    }

    #[test]
    fn a_filter_must_select_a_test_that_can_run() -> Result<()> {
        assert_eq!(filters(&names(), Some("works"))?, ["works"]);
        assert!(filters(&names(), Some("none")).is_err());
        let error = filters(&names(), Some("docker_")).expect_err("the machine has no engine");
        assert!(error.to_string().contains("cargo xtask test docker_"), "{error}");
        Ok(())
    }

    #[test]
    fn a_filter_is_one_word_of_the_command() -> Result<()> {
        assert!(test_command(&["a b".to_owned()])?.contains("'a b' || failed=1\n"));
        Ok(())
    }
}
