//! The nodes' daemons: starting, stopping, pausing, killing, and their logs.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{Lab, Runtime};
use crate::{
    api, cleanup,
    contract::{self, CLIENT},
    docker, netns, process, resolver,
    topology::{self, Cable, Direction},
    wait,
};

/// The time in which a daemon must serve its API socket, or end.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How many lines of a daemon's log an error contains.
const LOG_LINES: usize = 30;

/// Whether a `weft` binary serves a network driver of the engine. 0.1.0 does not.
fn has_plugin_socket(weft: &Path) -> Result<bool> {
    let help = Command::new(weft).args(["daemon", "--help"]).output();
    let help = help.with_context(|| format!("cannot run {}", weft.display()))?;
    Ok(String::from_utf8_lossy(&help.stdout).contains("--plugin-socket"))
}

impl Lab {
    /// Starts the upstream resolver and all daemons. Returns when every API socket answers.
    pub(super) fn start_all(&self) -> Result<()> {
        let (program, argument) = resolver::command()?;
        self.spawn(CLIENT, Command::new(program).arg(argument), &contract::log("resolver"))?;
        for node in self.nodes() {
            self.spawn_daemon(&node, &self.options.weft, None)?;
        }
        self.nodes().try_for_each(|node| self.wait_api(&node))
    }

    /// Starts a node's daemon. Returns when its API socket answers.
    pub fn start(&self, node: &str) -> Result<()> {
        self.start_with(node, &self.options.weft)
    }

    /// Starts a node's daemon from another `weft` binary.
    pub fn start_with(&self, node: &str, weft: &Path) -> Result<()> {
        self.spawn_daemon(node, weft, None)?;
        self.wait_api(node)
    }

    /// Starts a node's daemon as a service manager does that has opened the socket of the network
    /// driver (sd_listen_fds(3)).
    pub fn start_with_socket(&self, node: &str, plugin: &UnixListener) -> Result<()> {
        self.spawn_daemon(node, &self.options.weft, Some(plugin))?;
        self.wait_api(node)
    }

    fn spawn_daemon(&self, node: &str, weft: &Path, plugin: Option<&UnixListener>) -> Result<()> {
        let mut command = Command::new(weft);
        command
            .arg("daemon")
            .args(["--hostname", node])
            .args([OsStr::new("--data-dir"), contract::data_dir(node).as_os_str()])
            .args([OsStr::new("--run-dir"), contract::run_dir(node).as_os_str()])
            .args([OsStr::new("--socket"), contract::socket(node).as_os_str()])
            .args(["--runtime", self.options.runtime.as_str()])
            .args(["--dns-upstream", &contract::upstream().to_string()])
            .args(["--label", &format!("lab-node={node}")]);
        if self.options.runtime == Runtime::Docker {
            command.args(["--docker-host", &docker::docker_host(self.engine(node)?)]);
            if has_plugin_socket(weft)? {
                let socket = contract::engine_plugins(node).join("weft.sock");
                command.args([OsStr::new("--plugin-socket"), socket.as_os_str()]);
            }
        }
        let pid = match plugin {
            None => self.spawn(node, &command, &contract::log(node))?,
            Some(plugin) => {
                // The first socket has the descriptor 3. The shell gets it as its standard input.
                let mut shell = Command::new("sh");
                shell.args(["-c", "LISTEN_FDS=1 exec \"$0\" \"$@\" 3<&0 0</dev/null"]);
                shell.arg(command.get_program()).args(command.get_args());
                let stdin = OwnedFd::from(plugin.try_clone()?);
                self.spawn_reading(node, &shell, stdin.into(), &contract::log(node))?
            }
        };
        fs::write(contract::pid_file(node), pid.to_string()).context("cannot write the daemon's pid file")
    }

    /// Starts a program in a host's namespace. The program gets its own session, so it continues
    /// after this process has ended.
    fn spawn(&self, host: &str, command: &Command, log: &Path) -> Result<u32> {
        self.spawn_reading(host, command, Stdio::null(), log)
    }

    fn spawn_reading(&self, host: &str, command: &Command, stdin: Stdio, log: &Path) -> Result<u32> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let mut session = Command::new("setsid");
        session.arg(command.get_program()).args(command.get_args());
        session.stdin(stdin).stdout(log.try_clone()?).stderr(log);
        let child = netns::within(&contract::namespace_path(host), || session.spawn())?;
        Ok(child.with_context(|| format!("cannot run {}", command.get_program().display()))?.id())
    }

    fn wait_api(&self, node: &str) -> Result<()> {
        let pid = self.daemon_pid(node)?;
        let socket = contract::socket(node);
        let is_serving = wait::poll(TIMEOUT, || {
            if api::get(&socket, "/_ping").is_ok() {
                return Some(true);
            }
            (!process::is_running(pid)).then_some(false)
        });
        let problem = match is_serving {
            Some(true) => return Ok(()),
            Some(false) => "ended".to_owned(),
            None => format!("does not answer within {TIMEOUT:?}"),
        };
        bail!("the daemon of {node} {problem}. The end of its log:\n{}", self.log_tail(node))
    }

    pub fn daemon_pid(&self, node: &str) -> Result<u32> {
        let file = contract::pid_file(node);
        let text = fs::read_to_string(&file).with_context(|| format!("the daemon of {node} was not started"))?;
        text.trim().parse().with_context(|| format!("no process id in {}", file.display()))
    }

    /// Kills a node's daemon with SIGKILL. Its tasks continue to run.
    pub fn kill_daemon(&self, node: &str) -> Result<()> {
        process::kill(self.daemon_pid(node)?)
    }

    /// Stops a node's daemon with SIGTERM, as a service manager does.
    pub fn stop_daemon(&self, node: &str) -> Result<()> {
        process::terminate(self.daemon_pid(node)?, TIMEOUT)
    }

    /// Pauses a node's daemon with SIGSTOP. Its tasks continue to run, and so does its data plane.
    pub fn pause_daemon(&self, node: &str) -> Result<()> {
        process::pause(self.daemon_pid(node)?)
    }

    /// Lets a node's daemon continue.
    pub fn resume_daemon(&self, node: &str) -> Result<()> {
        process::resume(self.daemon_pid(node)?)
    }

    /// Whether a node's daemon is paused.
    pub fn is_daemon_paused(&self, node: &str) -> Result<bool> {
        Ok(process::is_paused(self.daemon_pid(node)?))
    }

    /// Simulates the loss of a machine: disconnects the node first, then kills its daemon, its
    /// container engine and its tasks.
    pub fn power_off(&self, node: &str) -> Result<()> {
        topology::set_cable(node, Cable::Unplugged)?;
        self.kill_daemon(node)?;
        let ended = wait::poll(TIMEOUT, || {
            let pids = cleanup::processes_of(node);
            pids.iter().for_each(|pid| drop(process::kill(*pid)));
            pids.is_empty().then_some(())
        });
        ended.with_context(|| format!("processes of {node} are still running"))
    }

    /// Simulates the start of a machine after [`Lab::power_off`]: its kernel is new, so no links,
    /// maps and control groups of weft exist, and its run directory is empty. Its data directory is
    /// as before. Connects the node, and starts its daemon and its container engine.
    pub fn power_on(&self, node: &str) -> Result<()> {
        cleanup::remove_kernel_state(node)?;
        topology::add_host(node)?;
        // As on a machine that boots: the engine asks weft's network driver when it starts.
        self.start(node)?;
        if self.options.runtime == Runtime::Docker { self.start_engine(node) } else { Ok(()) }
    }

    /// Connects a host to the switch, or disconnects it.
    pub fn set_cable(&self, host: &str, cable: Cable) -> Result<()> {
        topology::set_cable(host, cable)
    }

    /// Cuts these hosts off from all others. They can still reach each other.
    pub fn divide(&self, apart: &[&str]) -> Result<()> {
        let hosts: Vec<String> = self.nodes().chain([CLIENT.to_owned()]).collect();
        topology::divide(&hosts, apart)
    }

    /// Undoes [`Lab::divide`].
    pub fn unite(&self) -> Result<()> {
        self.divide(&[])
    }

    /// From now on, the frames that a host sends, or those that are sent to it, are lost. Frames of
    /// the other direction arrive.
    pub fn cut(&self, host: &str, direction: Direction) -> Result<()> {
        topology::cut(host, direction)
    }

    /// Undoes [`Lab::cut`].
    pub fn mend(&self, host: &str, direction: Direction) -> Result<()> {
        topology::mend(host, direction)
    }

    /// The last lines of a daemon's log.
    pub fn log_tail(&self, node: &str) -> String {
        let text = fs::read_to_string(contract::log(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}
