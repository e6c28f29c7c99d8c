//! Programs and requests on the hosts of a lab and in its tasks. Functions with `_ok` in their
//! names return an error when the program fails.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Lab, Runtime};
use crate::{api::Task, contract, docker, http, netns};

impl Lab {
    /// Runs `weft` against a node.
    pub fn weft(&self, node: &str, arguments: &[&str]) -> Result<Output> {
        let host = docker::docker_host(&contract::socket(node));
        let mut command = Command::new(&self.options.weft);
        command.args(["-H", &host]).args(arguments).stdin(Stdio::null());
        command.output().with_context(|| format!("cannot run {}", self.options.weft.display()))
    }

    /// Like [`Lab::weft`], with this text as the standard input.
    pub fn weft_with_input(&self, node: &str, arguments: &[&str], input: &str) -> Result<Output> {
        let host = docker::docker_host(&contract::socket(node));
        let mut command = Command::new(&self.options.weft);
        with_input(command.args(["-H", &host]).args(arguments), input)
            .with_context(|| format!("cannot run {}", self.options.weft.display()))
    }

    /// Like [`Lab::weft`]. Returns the standard output.
    pub fn weft_ok(&self, node: &str, arguments: &[&str]) -> Result<String> {
        stdout_of(&format!("{node}: weft {}", arguments.join(" ")), &self.weft(node, arguments)?)
    }

    /// Like [`Lab::weft`] for a command that weft must refuse. Returns the standard error.
    ///
    /// # Errors
    /// When the command succeeds.
    pub fn weft_refused(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let output = self.weft(node, arguments)?;
        ensure!(!output.status.success(), "{node}: weft {} succeeded, and must be refused", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    /// Runs the docker client against a node of the lab, as if the node were an engine.
    pub fn docker(&self, node: &str, arguments: &[&str]) -> Result<Output> {
        let mut client = docker::client(&contract::socket(node));
        client.args(arguments).stdin(Stdio::null()).output().context("cannot run the docker client")
    }

    /// Like [`Lab::docker`], with this text as the standard input.
    pub fn docker_with_input(&self, node: &str, arguments: &[&str], input: &str) -> Result<Output> {
        let mut client = docker::client(&contract::socket(node));
        with_input(client.args(arguments), input).context("cannot run the docker client")
    }

    /// Like [`Lab::docker`]. Returns the standard output.
    pub fn docker_ok(&self, node: &str, arguments: &[&str]) -> Result<String> {
        stdout_of(&format!("{node}: docker {}", arguments.join(" ")), &self.docker(node, arguments)?)
    }

    /// Runs a program of this machine in a host's namespace.
    pub fn exec(&self, host: &str, command: &[&str]) -> Result<Output> {
        run_in(&contract::namespace_path(host), command)
    }

    /// Like [`Lab::exec`]. Returns the standard output.
    pub fn exec_ok(&self, host: &str, command: &[&str]) -> Result<String> {
        stdout_of(&format!("{host}: {}", command.join(" ")), &self.exec(host, command)?)
    }

    /// Runs `action` inside of a host's network namespace.
    pub fn within<T: Send>(&self, host: &str, action: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&contract::namespace_path(host), action)
    }

    /// Sends one HTTP request from a host, on a new connection.
    pub fn get(&self, host: &str, addr: SocketAddr, path: &str) -> Result<http::Reply> {
        self.within(host, || http::get(addr, path))?.with_context(|| format!("{host}: GET http://{addr}{path}"))
    }

    /// A published port at the IPv4 and IPv6 addresses of every node.
    pub fn published(&self, port: u16) -> Vec<SocketAddr> {
        let addrs = self.nodes().flat_map(|node| contract::addrs(&node));
        addrs.map(|addr: IpAddr| SocketAddr::new(addr, port)).collect()
    }

    /// A path of a running task's network namespace.
    pub fn task_namespace(&self, task: &Task) -> Result<PathBuf> {
        match self.options.runtime {
            Runtime::Process => Ok(contract::task_namespace(&task.node, &task.id)),
            Runtime::Docker => {
                let pid = docker::pid(self.engine(&task.node)?, &task.container)?;
                Ok(PathBuf::from(format!("/proc/{pid}/ns/net")))
            }
        }
    }

    /// Runs `action` inside of a task's network namespace.
    pub fn within_task<T: Send>(&self, task: &Task, action: impl FnOnce() -> T + Send) -> Result<T> {
        netns::within(&self.task_namespace(task)?, action)
    }

    /// Runs a program inside of a task: with the task's files, processes and rights.
    pub fn task_exec(&self, task: &Task, command: &[&str]) -> Result<Output> {
        let mut exec = match self.options.runtime {
            Runtime::Process => {
                let mut nsenter = Command::new("nsenter");
                let pid = task.pid.with_context(|| format!("task {} has no process", task.id))?;
                nsenter.args(["--target", &pid.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--root"]);
                nsenter
            }
            Runtime::Docker => {
                let mut docker = docker::client(self.engine(&task.node)?);
                docker.args(["exec", &task.container]);
                docker
            }
        };
        let output = exec.args(command).stdin(Stdio::null()).output();
        output.with_context(|| format!("cannot run a program in task {}", task.id))
    }

    /// Like [`Lab::task_exec`]. Returns the standard output.
    pub fn task_exec_ok(&self, task: &Task, command: &[&str]) -> Result<String> {
        stdout_of(&format!("{}: {}", task.id, command.join(" ")), &self.task_exec(task, command)?)
    }

    /// Runs a program of this machine, as root, in a task's network namespace.
    pub fn exec_in_task_netns(&self, task: &Task, command: &[&str]) -> Result<Output> {
        run_in(&self.task_namespace(task)?, command)
    }

    /// Like [`Lab::exec_in_task_netns`]. Returns the standard output.
    pub fn exec_in_task_netns_ok(&self, task: &Task, command: &[&str]) -> Result<String> {
        stdout_of(&format!("{}: {}", task.id, command.join(" ")), &self.exec_in_task_netns(task, command)?)
    }
}

/// Runs a program that reads `input`, which must fit into a pipe.
fn with_input(command: &mut Command, input: &str) -> io::Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that refuses before it reads has closed the pipe.
        if let Err(error) = stdin.write_all(input.as_bytes())
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error);
        }
    }
    child.wait_with_output()
}

fn run_in(netns: &Path, command: &[&str]) -> Result<Output> {
    let (program, arguments) = command.split_first().context("the command is empty")?;
    let output: io::Result<Output> =
        netns::within(netns, || Command::new(program).args(arguments).stdin(Stdio::null()).output())?;
    output.with_context(|| format!("cannot run {program}"))
}

fn stdout_of(what: &str, output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{what}: {}\n{}{stdout}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(stdout)
}
