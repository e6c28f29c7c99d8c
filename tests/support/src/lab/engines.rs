//! The nodes' container engines in a lab with the docker runtime: their sockets, killing and
//! starting them, and the image with the tools of tests.

use std::{panic, path::Path, thread};

use anyhow::{Context, Result};

use super::Lab;
use crate::{docker, engine::Engine};

impl Lab {
    fn engine_of(&self, node: &str) -> Result<&Engine> {
        self.engines.get(node).with_context(|| format!("{node:?} has no container engine"))
    }

    /// The socket of a node's container engine.
    ///
    /// # Errors
    /// When the lab has the process runtime, or has no such node.
    pub fn engine(&self, node: &str) -> Result<&Path> {
        self.engine_of(node).map(Engine::socket)
    }

    /// Kills a node's container engine with SIGKILL. Its containers continue to run.
    ///
    /// # Errors
    /// When the engine is not running, or as [`Lab::engine`].
    pub fn kill_engine(&self, node: &str) -> Result<()> {
        self.engine_of(node)?.kill()
    }

    /// Starts a node's container engine. Returns when it serves its socket.
    ///
    /// # Errors
    /// When the engine is already running or does not start, or as [`Lab::engine`].
    pub fn start_engine(&self, node: &str) -> Result<()> {
        self.engine_of(node)?.start(&[])
    }

    /// Like [`Lab::start_engine`], with these options of dockerd besides the lab's own.
    pub fn start_engine_with(&self, node: &str, options: &[&str]) -> Result<()> {
        self.engine_of(node)?.start(options)
    }

    /// Creates [`docker::TOOLS_IMAGE`] in all engines at the same time.
    pub fn create_tools_images(&self) -> Result<()> {
        thread::scope(|scope| {
            let create = |engine: &Engine| docker::create_tools_image(engine.socket());
            let threads: Vec<_> = self.engines.values().map(|engine| scope.spawn(move || create(engine))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
        })
    }
}
