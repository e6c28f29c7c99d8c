//! The lab itself: up, its daemons' lives, commands and requests inside, down.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    api::{self, Task},
    clean,
    contract::{self, CLIENT},
    docker, http,
    lock::{self, LabLock},
    netns, process, resolver,
    topology::{self, Cable},
    wait,
};

/// From start to an answering API socket.
const START: Duration = Duration::from_secs(20);
/// For a service to reach its number of running tasks.
const CONVERGE: Duration = Duration::from_secs(60);
/// Lines of a daemon's log that an error quotes.
const LOG_TAIL: usize = 30;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Runtime {
    #[default]
    Process,
    Docker,
}

impl Runtime {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
        }
    }
}

#[derive(Debug, Clone)]
pub struct LabOptions {
    pub nodes: usize,
    /// How many of them are managers, where the cluster is formed.
    pub managers: usize,
    pub runtime: Runtime,
    /// Form the cluster.
    pub init: bool,
    /// The `weft` binary.
    pub weft: PathBuf,
}

/// A lab that is up. Dropping the value leaves it up.
#[derive(Debug)]
pub struct Lab {
    options: LabOptions,
    /// The engine that the docker runtime uses.
    engine: Option<PathBuf>,
}

impl Lab {
    /// Takes the right to have a lab on this machine. Where another process has it, says so and waits. A lab that an ended
    /// process left up holds none.
    pub fn lock() -> Result<LabLock> {
        lock::take()
    }

    /// The nodes of a lab that was left up for people, and whose daemons run. What a process that was cut off left behind
    /// is nobody's.
    pub fn in_use() -> Vec<String> {
        if contract::kept_file().exists() { clean::live_nodes() } else { Vec::new() }
    }

    /// Removes whatever lab there is, to make a new one. Says so first where people use it.
    pub fn make_room() -> Result<()> {
        let nodes = Self::in_use();
        if !nodes.is_empty() {
            eprintln!("removing the lab that is up (nodes {})", nodes.join(", "));
        }
        clean::down()
    }

    /// Marks the lab as left up for people, who are asked or told before it is removed.
    pub fn keep(&self) -> Result<()> {
        fs::write(contract::kept_file(), "").context("cannot mark the lab as kept")
    }

    /// Makes the lab and starts its daemons, after removing what an earlier one left.
    pub fn up(options: LabOptions) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "a lab makes network namespaces: run this as root");
        ensure!(
            (1..=contract::MAX_NODES).contains(&options.nodes) && (1..=options.nodes).contains(&options.managers),
            "a lab has 1 to {} nodes, and no more managers than nodes",
            contract::MAX_NODES
        );
        Self::make_room()?;
        let mut lab = Self { options, engine: None };
        lab.build().inspect_err(|_| {
            // The first error tells; what cannot be removed either shows in the next attempt.
            drop(clean::down());
        })?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        let hosts: Vec<String> = self.nodes().chain([CLIENT.to_owned()]).collect();
        topology::make(&hosts)?;
        fs::create_dir_all(contract::LAB_RUN)?;
        fs::create_dir_all(contract::LAB_DATA)?;
        if self.options.runtime == Runtime::Docker {
            self.engine = Some(docker::ensure()?);
        }
        let (program, role) = resolver::command()?;
        let mut command = Command::new(program);
        self.spawn(CLIENT, command.arg(role), &contract::log("resolver"))?;
        for node in self.nodes() {
            self.spawn_daemon(&node)?;
        }
        for node in self.nodes() {
            self.wait_api(&node)?;
        }
        if self.options.init { self.form(self.options.managers) } else { Ok(()) }
    }

    /// Removes the lab. Goes on past failures and reports them all.
    pub fn down(self) -> Result<()> {
        clean::down()
    }

    /// Removes whatever lab there is on this machine.
    pub fn remove_any() -> Result<()> {
        clean::down()
    }

    pub fn nodes(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.options.nodes).map(contract::node)
    }

    pub fn options(&self) -> &LabOptions {
        &self.options
    }

    /// The engine of the docker runtime.
    pub fn engine(&self) -> Option<&Path> {
        self.engine.as_deref()
    }

    // Daemons.

    /// Starts a node's daemon, and returns when its API answers.
    pub fn start(&self, node: &str) -> Result<()> {
        self.spawn_daemon(node)?;
        self.wait_api(node)
    }

    fn spawn_daemon(&self, node: &str) -> Result<()> {
        let mut command = Command::new(&self.options.weft);
        command
            .arg("daemon")
            .args(["--hostname", node])
            .args([OsStr::new("--data-dir"), contract::data_dir(node).as_os_str()])
            .args([OsStr::new("--run-dir"), contract::run_dir(node).as_os_str()])
            .args([OsStr::new("--socket"), contract::socket(node).as_os_str()])
            .args(["--runtime", self.options.runtime.as_str()])
            .args(["--dns-upstream", &contract::upstream().to_string()])
            .args(["--label", &format!("lab-node={node}")]);
        if let Some(engine) = &self.engine {
            command.args(["--docker-host", &docker::host(engine)]);
        }
        let pid = self.spawn(node, &command, &contract::log(node))?;
        fs::write(contract::pid_file(node), pid.to_string()).context("cannot note the daemon's process id")
    }

    /// Starts a program in a host's namespace, in a session of its own, so that it outlives this process.
    fn spawn(&self, host: &str, command: &Command, log: &Path) -> Result<u32> {
        let log = File::options().create(true).append(true).open(log).context("cannot open the log")?;
        let mut session = Command::new("setsid");
        session.arg(command.get_program()).args(command.get_args());
        session.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns::within(&contract::namespace_path(host), || session.spawn())?;
        Ok(child.with_context(|| format!("cannot start {}", command.get_program().display()))?.id())
    }

    fn wait_api(&self, node: &str) -> Result<()> {
        let pid = self.daemon_pid(node)?;
        let socket = contract::socket(node);
        let answered = wait::until(START, || {
            if api::get(&socket, "/_ping").is_ok() {
                return Some(true);
            }
            (!process::runs(pid)).then_some(false)
        });
        match answered {
            Some(true) => Ok(()),
            Some(false) => bail!("the daemon of {node} ended at once. Its log:\n{}", self.log_tail(node)),
            None => bail!("the daemon of {node} does not answer within {START:?}. Its log:\n{}", self.log_tail(node)),
        }
    }

    pub fn daemon_pid(&self, node: &str) -> Result<u32> {
        let text = fs::read_to_string(contract::pid_file(node)).with_context(|| format!("{node} was never started"))?;
        text.trim().parse().context("no process id in the pid file")
    }

    /// Kills a daemon without warning. Its tasks live on.
    pub fn kill_daemon(&self, node: &str) -> Result<()> {
        process::kill(self.daemon_pid(node)?)
    }

    /// Asks a daemon to end, as a service manager does.
    pub fn stop_daemon(&self, node: &str) -> Result<()> {
        process::terminate(self.daemon_pid(node)?, START)
    }

    /// The node is lost: its cable first, then daemon, tasks and all.
    pub fn power_off(&self, node: &str) -> Result<()> {
        topology::set_cable(node, Cable::Pulled)?;
        self.kill_daemon(node)?;
        if let Some(engine) = &self.engine {
            docker::remove(engine, &docker::containers_of(engine, node)?)?;
        }
        let gone = wait::until(START, || {
            let left = clean::processes_of(node);
            left.iter().for_each(|pid| drop(process::kill(*pid)));
            left.is_empty().then_some(())
        });
        gone.with_context(|| format!("processes of {node} do not end"))
    }

    /// Pulls or plugs a host's cable.
    pub fn set_cable(&self, host: &str, cable: Cable) -> Result<()> {
        topology::set_cable(host, cable)
    }

    /// The end of a daemon's log.
    pub fn log_tail(&self, node: &str) -> String {
        let text = fs::read_to_string(contract::log(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }

    // Commands.

    /// Runs `weft` against a node.
    pub fn weft(&self, node: &str, arguments: &[&str]) -> Result<Output> {
        let host = format!("unix://{}", contract::socket(node).display());
        let mut command = Command::new(&self.options.weft);
        command.args(["-H", &host]).args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {}", self.options.weft.display()))
    }

    /// As [`Lab::weft`], and it must succeed: its standard output.
    pub fn weft_ok(&self, node: &str, arguments: &[&str]) -> Result<String> {
        checked(&format!("{node}: weft {}", arguments.join(" ")), &self.weft(node, arguments)?)
    }

    /// As [`Lab::weft`], and it must be refused: what it says.
    pub fn weft_refused(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let output = self.weft(node, arguments)?;
        ensure!(!output.status.success(), "{node}: weft {} should have been refused", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Runs a program of this machine in a host's namespace.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<Output> {
        exec_in(&contract::namespace_path(host), command)
    }

    pub fn exec_ok(&self, host: &str, command: &[&str]) -> Result<String> {
        checked(&format!("{host}: {}", command.join(" ")), &self.exec(host, command)?)
    }

    // Requests.

    /// Runs `action` inside a host's network namespace.
    pub fn within<T: Send>(&self, host: &str, action: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&contract::namespace_path(host), action)
    }

    /// One request on a new connection from a host.
    pub fn get(&self, host: &str, addr: SocketAddr, path: &str) -> Result<http::Reply> {
        self.within(host, || http::get(addr, path))?.with_context(|| format!("{host}: GET http://{addr}{path}"))
    }

    /// The addresses at which a port of every node is reached, both families.
    pub fn published(&self, port: u16) -> Vec<SocketAddr> {
        let addrs = self.nodes().flat_map(|node| contract::addrs(&node));
        addrs.map(|addr: IpAddr| SocketAddr::new(addr, port)).collect()
    }

    // Tasks.

    /// The tasks of a service, ended ones too.
    pub fn tasks(&self, via: &str, service: &str) -> Result<Vec<Task>> {
        api::tasks(&contract::socket(via), service)
    }

    /// Waits until exactly `count` tasks of the service run and no other is about to; returns them.
    pub fn wait_running(&self, via: &str, service: &str, count: usize) -> Result<Vec<Task>> {
        let mut seen = String::new();
        let settled = wait::until(CONVERGE, || {
            let tasks = self.tasks(via, service).inspect_err(|error| seen = format!("{error:#}")).ok()?;
            let live: Vec<Task> = tasks.iter().filter(|task| task.desired == "running").cloned().collect();
            seen = tasks.iter().map(describe).collect::<Vec<_>>().join("; ");
            (live.len() == count && live.iter().all(Task::is_running)).then_some(live)
        });
        settled.with_context(|| format!("{count} tasks of {service} should run within {CONVERGE:?}, but: {seen}"))
    }

    /// Waits until no task of the service runs that should not: what drained has stopped.
    pub fn wait_stopped(&self, via: &str, service: &str) -> Result<()> {
        let mut seen = String::new();
        let stopped = wait::until(CONVERGE, || {
            let tasks = self.tasks(via, service).inspect_err(|error| seen = format!("{error:#}")).ok()?;
            seen = tasks.iter().map(describe).collect::<Vec<_>>().join("; ");
            tasks.iter().all(|task| task.desired == "running" || task.state != "running").then_some(())
        });
        stopped.with_context(|| format!("tasks of {service} should stop within {CONVERGE:?}, but: {seen}"))
    }

    /// The network namespace of a running task, openable.
    pub fn task_namespace(&self, task: &Task) -> Result<PathBuf> {
        match &self.engine {
            None => Ok(contract::task_namespace(&task.node, &task.id)),
            Some(engine) => {
                let pid = docker::pid(engine, &task.container)?;
                Ok(PathBuf::from(format!("/proc/{pid}/ns/net")))
            }
        }
    }

    /// Runs `action` inside a task's network namespace.
    pub fn within_task<T: Send>(&self, task: &Task, action: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&self.task_namespace(task)?, action)
    }

    /// Runs a program of the task inside the task.
    pub fn task_exec(&self, task: &Task, command: &[&str]) -> Result<Output> {
        let mut exec = match &self.engine {
            None => {
                let mut enter = Command::new("nsenter");
                let pid = task.pid.with_context(|| format!("task {} has no process", task.id))?;
                enter.args(["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]);
                enter
            }
            Some(engine) => {
                let mut docker = docker::client(engine);
                docker.args(["exec", &task.container]);
                docker
            }
        };
        exec.args(command).stdin(Stdio::null()).output().context("cannot enter the task")
    }

    /// Runs a program of this machine in a task's network namespace, where it has rights that the task has not.
    pub fn exec_beside(&self, task: &Task, command: &[&str]) -> Result<Output> {
        exec_in(&self.task_namespace(task)?, command)
    }

    /// The docker client pointed at a node of the lab, instead of at an engine.
    pub fn docker(&self, node: &str, arguments: &[&str]) -> Result<Output> {
        let mut client = docker::client(&contract::socket(node));
        client.args(arguments).stdin(Stdio::null()).output().context("cannot run the docker client")
    }

    /// As [`Lab::docker`], and it must succeed: its standard output.
    pub fn docker_ok(&self, node: &str, arguments: &[&str]) -> Result<String> {
        checked(&format!("{node}: docker {}", arguments.join(" ")), &self.docker(node, arguments)?)
    }

    pub fn task_exec_ok(&self, task: &Task, command: &[&str]) -> Result<String> {
        checked(&format!("{}: {}", task.id, command.join(" ")), &self.task_exec(task, command)?)
    }
}

fn describe(task: &Task) -> String {
    let error = if task.error.is_empty() { String::new() } else { format!(" ({})", task.error) };
    format!("{}.{} on {:?} is {}, shall be {}{error}", task.service, task.slot, task.node, task.state, task.desired)
}

/// Runs a program of this machine in a network namespace.
fn exec_in(netns: &Path, command: &[&str]) -> Result<Output> {
    let (program, arguments) = command.split_first().context("no command")?;
    let output: io::Result<Output> =
        netns::within(netns, || Command::new(program).args(arguments).stdin(Stdio::null()).output())?;
    output.with_context(|| format!("cannot run {program}"))
}

fn checked(what: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{what}: {}\n{}{stdout}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(stdout)
}
