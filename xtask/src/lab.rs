//! `lab up|down|exec|status`: creates, shows and removes a cluster in network namespaces, in which
//! a user can try commands.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};
use weft_lab::{Lab, LabOptions, Runtime, contract, docker, netns};

use crate::{cargo, machine, setup, ui::Ui};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum RuntimeName {
    /// Tasks are processes in namespaces; no container engine is needed.
    Process,
    /// Tasks are containers. Each node has a docker engine of its own.
    Docker,
}

impl From<RuntimeName> for Runtime {
    fn from(name: RuntimeName) -> Self {
        match name {
            RuntimeName::Process => Self::Process,
            RuntimeName::Docker => Self::Docker,
        }
    }
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Start nodes and a client. Removes a lab that is up; waits while a test, demo or bench runs.
    Up(UpOptions),
    /// Remove the lab and everything that belongs to it. Waits while a test, demo or bench runs.
    Down,
    /// Run a command on a node or on the client: `lab exec n1 -- weft node ls`.
    Exec {
        /// n1, n2, … or client.
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// List everything that belongs to the lab.
    Status,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// The number of nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many of the nodes are managers; used with --init.
    #[arg(long, default_value_t = 1)]
    managers: usize,
    #[arg(long, value_enum, default_value = "process")]
    runtime: RuntimeName,
    /// Also form the cluster.
    #[arg(long)]
    init: bool,
    /// The binary to run. Without this option it is built.
    #[arg(long, hide = true)]
    weft: Option<PathBuf>,
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(options) => up(&options),
        Command::Down => down(),
        Command::Exec { host, command } => exec(&host, &command),
        Command::Status => status(),
    }
}

fn up(options: &UpOptions) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    if matches!(options.runtime, RuntimeName::Docker) {
        setup::docker(&ui)?;
    }
    let weft = match &options.weft {
        Some(weft) => weft.clone(),
        None => cargo::build_weft(&ui)?,
    };
    if !machine::is_root() {
        // The user has built the binary. Root continues with the same arguments and that binary.
        let arguments: Vec<OsString> = env::args_os().skip(1).collect();
        let mut arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        arguments.extend([OsStr::new("--weft"), weft.as_os_str()]);
        return machine::become_root(&arguments);
    }
    let lab_options = LabOptions {
        nodes: options.nodes,
        managers: options.managers,
        runtime: options.runtime.into(),
        init: options.init,
        weft,
    };
    // The lock is released when this command ends. From then on a mark in the lab says that it is
    // in use.
    let _lock = Lab::lock()?;
    let lab = ui.step(&format!("start {} nodes and a client", options.nodes), |_| Lab::up(lab_options))?;
    lab.mark_in_use()?;
    eprintln!("\n{}", next_commands(&lab, options.init));
    Ok(())
}

/// Commands that a user can run in a lab that is up.
pub(crate) fn next_commands(lab: &Lab, has_cluster: bool) -> String {
    let first = if has_cluster { "node ls" } else { "swarm init --advertise-addr 192.0.2.1" };
    // A lab does not need the client, and does not install it.
    let install = match machine::find("docker") {
        Some(_) => "",
        None => "   # first install the docker client: `cargo xtask setup --docker`",
    };
    format!(
        "The lab is up: nodes {} and a client, each in a network namespace. Try:\n\
         \n  cargo xtask lab exec n1 -- weft {first}\n\
         \x20 cargo xtask lab exec client -- curl http://192.0.2.1:8080/\n\
         \x20 cargo xtask lab exec n1 -- docker service ls{install}\n\
         \x20 cargo xtask lab down\n",
        lab.nodes().collect::<Vec<_>>().join(", "),
    )
}

fn down() -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    machine::become_root(&arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>())?;
    let _lock = Lab::lock()?;
    remove()
}

/// Removes the lab that exists, and checks that nothing of it is left.
pub(crate) fn remove() -> Result<()> {
    Lab::remove()?;
    let left = weft_lab::leftovers();
    if !left.is_empty() {
        bail!("not removed:\n  {}", left.join("\n  "));
    }
    Ok(())
}

fn exec(host: &str, command: &[OsString]) -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    machine::become_root(&arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>())?;
    let namespace = contract::namespace_path(host);
    if !namespace.exists() {
        bail!("the lab has no host {host:?}: `cargo xtask lab status` lists what is up");
    }
    netns::move_thread_to(&namespace)?;
    let (program, arguments) = command.split_first().context("the command is empty")?;
    let mut command = process::Command::new(program);
    command.args(arguments).env("PATH", path_with_weft()?);
    if contract::is_node(host) {
        // The weft client and the docker client use this node.
        let socket = docker::docker_host(&contract::socket(host));
        command.env("WEFT_HOST", &socket).env("DOCKER_HOST", &socket);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(program).display()))
}

/// The user's PATH with the folder of this build before it.
fn path_with_weft() -> Result<OsString> {
    let own = env::current_exe()?;
    let folders = own.parent().map(Path::to_owned).into_iter();
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(folders.chain(env::split_paths(&path)))?)
}

fn status() -> Result<()> {
    let found = weft_lab::leftovers();
    if found.is_empty() {
        println!("no lab is up");
    }
    for line in found {
        println!("{line}");
    }
    Ok(())
}
