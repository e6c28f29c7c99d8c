//! The lab: creating and removing it. Its modules add what tests do with it.
//!
//! - [`daemons`]: starting and stopping the nodes' daemons.
//! - [`engines`]: starting and killing the nodes' container engines.
//! - [`commands`]: running programs, and sending requests, on hosts and in tasks.
//! - [`tasks`]: the tasks of services, and waiting for them.
//! - [`cluster`]: forming a cluster and waiting for its nodes.
//! - [`traffic`]: checking what reaches hosts and tasks.

mod commands;
mod daemons;
mod engines;
mod tasks;
mod cluster;
mod traffic;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{
    cleanup,
    contract::{self, CLIENT},
    engine::{self, Engine},
    lock::{self, LabLock},
    topology,
};

pub use cluster::Role;

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
    /// How many of the nodes are managers. Used only with `init`.
    pub managers: usize,
    pub runtime: Runtime,
    /// Form the cluster.
    pub init: bool,
    /// The path of the `weft` binary.
    pub weft: PathBuf,
}

/// A lab that is up. Dropping the value does not remove the lab.
#[derive(Debug)]
pub struct Lab {
    options: LabOptions,
    /// The container engine of each node. Empty with the process runtime.
    engines: BTreeMap<String, Engine>,
}

impl Lab {
    /// Takes the lock for the lab of this machine. While another process holds it, prints which one
    /// and waits. A process must hold the lock while it creates, uses or removes a lab. A lab that
    /// is left up for a user needs no lock.
    pub fn lock() -> Result<LabLock> {
        lock::acquire()
    }

    /// The nodes whose daemons are running, in a lab that was left up for a user. Empty when there
    /// is no such lab. A lab that a killed process left behind is not in use.
    pub fn in_use() -> Vec<String> {
        if contract::in_use_file().exists() { cleanup::running_nodes() } else { Vec::new() }
    }

    /// Removes the lab that exists on this machine, if there is one, before a new one is created.
    /// Prints a message when it is in use.
    pub fn remove_previous() -> Result<()> {
        let nodes = Self::in_use();
        if !nodes.is_empty() {
            eprintln!("removing the lab that is up (nodes {})", nodes.join(", "));
        }
        Self::remove()
    }

    /// Marks the lab as left up for a user. The demo does not remove it without the user's consent.
    pub fn mark_in_use(&self) -> Result<()> {
        fs::write(contract::in_use_file(), "").context("cannot mark the lab as in use")
    }

    /// Removes the previous lab, creates a new one, and starts its daemons.
    ///
    /// # Errors
    /// When this process is not root, the options are wrong, or a part cannot be created. Then it
    /// removes what it has created.
    pub fn up(options: LabOptions) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "a lab uses network namespaces: run this as root");
        ensure!(
            (1..=contract::MAX_NODES).contains(&options.nodes) && (1..=options.nodes).contains(&options.managers),
            "a lab has 1 to {} nodes, and not more managers than nodes",
            contract::MAX_NODES
        );
        Self::remove_previous()?;
        let mut lab = Self { options, engines: BTreeMap::new() };
        lab.create().inspect_err(|_| {
            // Return the first error. If a part cannot be removed now, the creation of the next lab
            // fails and reports it.
            drop(Self::remove());
        })?;
        Ok(lab)
    }

    fn create(&mut self) -> Result<()> {
        let hosts: Vec<String> = self.nodes().chain([CLIENT.to_owned()]).collect();
        topology::create(&hosts)?;
        fs::create_dir_all(contract::LAB_RUN)?;
        fs::create_dir_all(contract::LAB_DATA)?;
        if self.options.runtime == Runtime::Docker {
            self.engines = engine::start_all(self.nodes())?;
        }
        self.start_all()?;
        if self.options.init { self.form_cluster(self.options.managers) } else { Ok(()) }
    }

    /// Removes the lab. Continues after a failure, and returns one error for all of them.
    pub fn down(self) -> Result<()> {
        // The mount namespaces of the engines end.
        drop(self);
        Self::remove()
    }

    /// Removes the lab that exists on this machine, if there is one. Otherwise like [`Lab::down`].
    pub fn remove() -> Result<()> {
        cleanup::remove_lab()
    }

    pub fn nodes(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.options.nodes).map(contract::node)
    }

    pub fn options(&self) -> &LabOptions {
        &self.options
    }
}
