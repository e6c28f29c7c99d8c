//! `lab up|down|exec|status`: a cluster to play with.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result, bail};
use weft_lab::{Lab, LabOptions, Runtime, contract, netns};

use crate::{cargo, machine, setup, ui::Ui};

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum RuntimeName {
    /// Tasks are processes in namespaces of their own; no container engine needed.
    Process,
    /// Tasks are containers of a docker engine.
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
    /// Start nodes and a client. A lab that is up is removed first; a test, demo or bench that runs is waited for.
    Up(UpOptions),
    /// Remove the lab without a trace. A test, demo or bench that runs is waited for.
    Down,
    /// Run a command on a node or on the client: `lab exec n1 -- weft node ls`.
    Exec {
        /// n1, n2, … or client.
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Say what is up.
    Status,
}

#[derive(Debug, clap::Args)]
pub(crate) struct UpOptions {
    /// How many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many of them are managers, with --init.
    #[arg(long, default_value_t = 1)]
    managers: usize,
    #[arg(long, value_enum, default_value = "process")]
    runtime: RuntimeName,
    /// Form the cluster too.
    #[arg(long)]
    init: bool,
    /// The binary to run; built where absent.
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
        // The build was the user's; what follows is root's, with the same arguments and the binary built.
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
    // While this works, and no longer: a lab that is up is its user's.
    let _lock = Lab::lock()?;
    let lab = ui.step(&format!("{} nodes and a client", options.nodes), |_| Lab::up(lab_options))?;
    lab.keep()?;
    eprintln!("\n{}", how_to_play(&lab, options.init));
    Ok(())
}

/// What to type next.
pub(crate) fn how_to_play(lab: &Lab, formed: bool) -> String {
    let formed = if formed { "node ls" } else { "swarm init --advertise-addr 192.0.2.1" };
    // The client is not among what a lab needs.
    let docker = match machine::find("docker") {
        Some(_) => "",
        None => "   # the docker client, which `cargo xtask setup --docker` installs",
    };
    format!(
        "The lab is up: nodes {} and a client, each in a network namespace of its own.\n\
         \n  cargo xtask lab exec n1 -- weft {formed}\n\
         \x20 cargo xtask lab exec client -- curl http://192.0.2.1:8080/\n\
         \x20 cargo xtask lab exec n1 -- docker service ls{docker}\n\
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

/// Removes whatever lab there is, and proves it.
pub(crate) fn remove() -> Result<()> {
    Lab::remove_any()?;
    let left = weft_lab::leftovers();
    if !left.is_empty() {
        bail!("still there:\n  {}", left.join("\n  "));
    }
    Ok(())
}

fn exec(host: &str, command: &[OsString]) -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    machine::become_root(&arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>())?;
    let namespace = contract::namespace_path(host);
    if !namespace.exists() {
        bail!("there is no host {host:?} in the lab; see `cargo xtask lab status`");
    }
    netns::enter(&namespace)?;
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command = process::Command::new(program);
    command.args(arguments).env("PATH", path_with_weft()?);
    if contract::is_node(host) {
        // Both the weft and the docker client talk to this node.
        let socket = format!("unix://{}", contract::socket(host).display());
        command.env("WEFT_HOST", &socket).env("DOCKER_HOST", &socket);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(program).display()))
}

/// The search path with the binaries of this build in front.
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
