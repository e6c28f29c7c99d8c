//! Controls the mesh: programs the data plane, closes connections to tasks that no longer exist,
//! and removes the data plane.
//!
//! [`super::reconcile`] calls it. The mesh blocks in system calls, so each call runs on a thread
//! that may block.
//!
//! Invariant: after a panic in the mesh, the handle is dropped and the agent ends. No later call
//! uses the state after the panic.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use weft_mesh::{LocalFacts, Mesh};
use weft_model::{NodePlan, error_chain};
use weft_overlay::{Endpoint, OverlayState};

use super::{blocking::run_blocking, sandboxes::Sandboxes};

pub(super) struct DataPlane {
    /// `None` during a call, after a failed open, and after this node left its cluster. The next
    /// reconcile opens the mesh again.
    mesh: Option<Mesh>,
    /// The directory in the BPF file system in which the mesh is opened.
    pin_dir: PathBuf,
}

impl DataPlane {
    /// Takes an open mesh. Without one, the first reconcile opens it in `pin_dir`.
    pub(super) fn new(mesh: Option<Mesh>, pin_dir: PathBuf) -> Self {
        Self { mesh, pin_dir }
    }

    /// Programs the kernel with the plan, for the links that the overlay made.
    pub(super) async fn reconcile(&mut self, plan: &Arc<NodePlan>, facts: LocalFacts) -> Result<weft_mesh::Report> {
        let (open, pin_dir, plan) = (self.mesh.take(), self.pin_dir.clone(), Arc::clone(plan));
        let (mesh, report) = run_blocking("program the data plane", move || {
            let mut mesh = match open.map_or_else(|| Mesh::open(&pin_dir), Ok) {
                Ok(mesh) => mesh,
                Err(error) => return (None, Err(error)),
            };
            let report = mesh.reconcile(&plan, &facts);
            (Some(mesh), report)
        })
        .await?;
        self.mesh = mesh;
        let report = report.context("cannot program the data plane")?;
        if !report.is_unchanged() {
            tracing::debug!(?report, "data plane updated");
        }
        Ok(report)
    }

    /// Removes all programs and maps.
    pub(super) async fn teardown(&mut self) -> Result<()> {
        let (mesh, pin_dir) = (self.mesh.take(), self.pin_dir.clone());
        run_blocking("remove the data plane", move || {
            drop(mesh);
            Mesh::teardown(&pin_dir)
        })
        .await?
        .context("cannot remove the data plane")
    }
}

/// Closes the connections of this node's tasks to the addresses in `gone`, so that their programs
/// get an error at once.
///
/// `gone` holds addresses of tasks that no longer exist, by VNI. A failure is only logged: such a
/// connection ends when its task sends the next packet.
pub(super) async fn close_connections(
    gone: BTreeMap<u32, BTreeSet<IpAddr>>,
    links: &OverlayState,
    sandboxes: &Sandboxes,
) -> Result<()> {
    let of_endpoint = |endpoint: &Endpoint| {
        Some((sandboxes.netns(&endpoint.task)?.to_owned(), gone.get(&endpoint.vni.get())?.clone()))
    };
    let work: Vec<(PathBuf, BTreeSet<IpAddr>)> = links.endpoints.iter().filter_map(of_endpoint).collect();
    if work.is_empty() {
        return Ok(());
    }
    run_blocking("close connections to removed tasks", move || {
        for (sandbox, gone) in work {
            let closed = weft_overlay::netns::in_netns(&sandbox, || weft_mesh::close_connections(&gone));
            match closed {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => {
                    tracing::debug!(count, sandbox = %sandbox.display(), "closed connections to removed tasks");
                }
                Ok(Err(error)) => {
                    let error = error_chain(&error);
                    tracing::warn!(error, sandbox = %sandbox.display(), "cannot close connections to removed tasks");
                }
                // The task has ended meanwhile, which closed its connections.
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::debug!(error, sandbox = %sandbox.display(), "cannot enter the sandbox to close connections");
                }
            }
        }
    })
    .await
}
