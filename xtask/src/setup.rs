//! Installs the programs that the other tasks need, and only those that are missing.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    apt, cargo, ebpf,
    machine::{self, Tool},
    ui::Ui,
};

/// The lab is built with `ip`, and starts daemons with `setsid`. The demo and the tests run curl,
/// ping and getent in tasks.
const LAB: &[Tool] = &[
    Tool { program: "ip", package: "iproute2" },
    Tool { program: "setsid", package: "util-linux" },
    Tool { program: "curl", package: "curl" },
    Tool { program: "ping", package: "iputils-ping" },
    Tool { program: "getent", package: "libc-bin" },
];

/// The engine for the tests of the docker runtime, and the docker client.
const DOCKER: &[Tool] =
    &[Tool { program: "dockerd", package: "docker.io" }, Tool { program: "docker", package: "docker.io" }];

/// The resolver with which the end-to-end tests compare weft's.
const RESOLVER: &[Tool] = &[Tool { program: "unbound", package: "unbound" }];

/// The registry from which the end-to-end tests pull private images.
const REGISTRY: &[Tool] = &[Tool { program: "docker-registry", package: "docker-registry" }];

/// The compiler of libFuzzer, which the fuzz targets contain.
const FUZZER: &[Tool] = &[Tool { program: "c++", package: "g++" }];

/// Subcommands of cargo that the static checks use. Each is in a crate of the same name.
const EXTENSIONS: &[&str] = &["cargo-deny", "cargo-machete"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also install a container engine, for labs with the docker runtime.
    #[arg(long)]
    docker: bool,
    /// Install everything that `test` needs.
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
        resolver(&ui)?;
        registry(&ui)?;
        checks(&ui)?;
        if let Some(reason) = ebpf::prepare(&ui)? {
            eprintln!("  - the eBPF object cannot be rebuilt on this machine: {reason}");
        }
    }
    eprintln!("All programs are installed.");
    Ok(())
}

/// Installs what a lab needs.
pub(crate) fn lab(ui: &Ui) -> Result<()> {
    packages(ui, LAB)
}

/// Installs the container engine and its client.
pub(crate) fn docker(ui: &Ui) -> Result<()> {
    packages(ui, DOCKER)
}

/// Installs unbound. Its package starts a service on port 53 of the machine.
pub(crate) fn resolver(ui: &Ui) -> Result<()> {
    without_services(ui, RESOLVER, &["unbound.service", "unbound-resolvconf.service"])
}

/// Installs the registry. Its package starts a service on port 5000 of the machine.
pub(crate) fn registry(ui: &Ui) -> Result<()> {
    without_services(ui, REGISTRY, &["docker-registry.service"])
}

/// Installs the packages of the tools that are missing. The tests start their own servers and do
/// not need the services of the packages, so these are masked first.
fn without_services(ui: &Ui, tools: &[Tool], services: &[&str]) -> Result<()> {
    if !machine::missing(tools).is_empty() && Path::new("/run/systemd/system").exists() {
        ui.step(&format!("keep {} from starting", services.join(" and ")), |step| {
            let mut command = Command::new(if machine::is_root() { "env" } else { "sudo" });
            step.run(command.args(["systemctl", "mask"]).args(services))
        })?;
    }
    packages(ui, tools)
}

/// Installs the packages of the tools that are missing.
pub(crate) fn packages(ui: &Ui, tools: &[Tool]) -> Result<()> {
    let mut packages: Vec<&str> = machine::missing(tools).iter().map(|tool| tool.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    ui.step(&format!("install {}", packages.join(" ")), |step| apt::install(step, &packages))
}

/// Installs what the static checks need.
pub(crate) fn checks(ui: &Ui) -> Result<()> {
    packages(ui, FUZZER)?;
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if machine::find(program).is_none() {
            ui.step(&format!("install {component}"), |step| {
                step.run(Command::new("rustup").args(["component", "add", component]))
            })?;
        }
    }
    // They check in a second also without optimisation, and take a third of the time to build.
    EXTENSIONS.iter().try_for_each(|package| cargo_program(ui, package, &["--debug"]))
}

/// Installs a crate's program of the same name by cargo, with these options.
pub(crate) fn cargo_program(ui: &Ui, package: &str, options: &[&str]) -> Result<()> {
    if machine::find(package).is_some() {
        return Ok(());
    }
    // Not in the workspace's folder: its build flags are not for these tools.
    ui.step(&format!("install {package}"), |step| {
        let mut command = cargo::command(&["install", "--locked", "--quiet", package]);
        step.run(command.args(options).current_dir("/"))
    })
}
