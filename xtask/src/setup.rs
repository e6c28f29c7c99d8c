//! Installing what the other tasks need, and only what is missing.

use anyhow::Result;

use crate::{
    apt, cargo, ebpf,
    machine::{self, Tool},
    ui::Ui,
};

/// The lab is made with `ip`, its daemons are started with `setsid`; the demo and the tests ask with curl, ping and getent.
const LAB: &[Tool] = &[
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "setsid", package: "util-linux" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "ping", package: "iputils-ping" },
    Tool { program: "getent", package: "libc-bin" },
];

/// The tests of the docker runtime run Debian's engine, and its client.
const DOCKER: &[Tool] =
    &[Tool { program: "dockerd", package: "docker.io" }, Tool { program: "docker", package: "docker.io" }];

/// cargo's own extensions: subcommand and crate.
const EXTENSIONS: &[(&str, &str)] = &[("cargo-deny", "cargo-deny"), ("cargo-machete", "cargo-machete")];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also a container engine, for labs of the docker runtime.
    #[arg(long)]
    docker: bool,
    /// All that `test` needs.
    #[arg(long)]
    test: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    lab(&ui)?;
    if options.docker || options.test {
        docker(&ui)?;
    }
    if options.test {
        checks(&ui)?;
        if let Some(why) = ebpf::prepare(&ui)? {
            eprintln!("  - the eBPF object cannot be rebuilt here: {why}");
        }
    }
    eprintln!("Everything is there.");
    Ok(())
}

/// What a lab needs.
pub(crate) fn lab(ui: &Ui) -> Result<()> {
    packages(ui, LAB)
}

pub(crate) fn docker(ui: &Ui) -> Result<()> {
    packages(ui, DOCKER)
}

/// Installs the packages of those programs that are missing.
pub(crate) fn packages(ui: &Ui, tools: &[Tool]) -> Result<()> {
    let mut packages: Vec<&str> = machine::missing(tools).iter().map(|tool| tool.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    ui.step(&format!("install {}", packages.join(" ")), |step| apt::install(step, &packages))
}

/// What the static checks need.
pub(crate) fn checks(ui: &Ui) -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if machine::find(program).is_none() {
            ui.step(&format!("install {component}"), |step| {
                step.run(std::process::Command::new("rustup").args(["component", "add", component]))
            })?;
        }
    }
    for (program, package) in EXTENSIONS {
        if machine::find(program).is_none() {
            // Outside of the workspace's folder: its build flags are not for tools.
            ui.step(&format!("install {package}"), |step| {
                let mut command = cargo::command(&["install", "--locked", "--quiet", package]);
                step.run(command.current_dir("/"))
            })?;
        }
    }
    Ok(())
}
