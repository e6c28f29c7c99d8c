//! `weft daemon`: starts the layers in order, runs them, and shuts them down.
//!
//! The command line calls [`run`] once. This folder decides in which order the layers start and
//! when the process ends. It must not decide anything about tasks or packets.
//!
//! Invariant: when the daemon ends, for any reason, it does not change tasks, links, maps and
//! programs. Traffic does not need the daemon, and the next daemon adopts all of them.

mod resolv_conf;
mod args;
mod log;
mod exclusive;
mod activation;

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use weft_control::{
    api::{self, LocalNode},
    swarm::{KernelAddrs, Swarm, SwarmConfig},
};
use weft_mesh::Mesh;
use weft_overlay::Overlay;

pub(crate) use self::args::Args;
use crate::{
    agent::{Agent, AgentConfig},
    preflight,
    runtime::{self, RuntimeConfig, RuntimeKind},
};

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
///
/// If the machine or the flags do not allow the daemon to start, or if the agent or the API server
/// ends by itself.
pub(crate) async fn run(args: Args) -> Result<()> {
    log::init()?;
    let plugin_listener = activation::take_socket(&args.plugin_socket)?;
    if plugin_listener.is_some() && args.runtime != RuntimeKind::Docker {
        bail!(
            "the service manager passes the socket of the network driver, which only --runtime docker has: add \
               that option, or disable the socket unit"
        );
    }
    let labels = args.labels()?;
    let missing = preflight::missing_requirements();
    if !missing.is_empty() {
        bail!("this machine cannot run weft:\n  - {}", missing.join("\n  - "));
    }
    let hostname = args.hostname()?;
    let run_dir = args.run_dir(&hostname);
    for dir in [&args.data_dir, &run_dir] {
        fs::create_dir_all(dir).with_context(|| {
            format!("cannot create {}: choose a writable place with --data-dir or --run-dir", dir.display())
        })?;
    }
    let _data_lock = exclusive::lock_data_dir(&args.data_dir)?;
    let listener = exclusive::bind_socket(&args.socket).await?;

    raise_open_files_limit();
    let (outside, search) = resolv_conf::follow(resolv_conf::PATH.as_ref(), &args.dns_upstreams)?;

    let runtime = runtime::open(RuntimeConfig {
        kind: args.runtime,
        run_dir: run_dir.clone(),
        hostname: hostname.clone(),
        docker_socket: args.docker_socket(),
        plugin_socket: args.plugin_socket.clone(),
        plugin_listener: plugin_listener.map(Arc::new),
        search,
    })
    .await
    .context("cannot open the task runtime")?;
    let pin_dir = Path::new(weft_mesh::BPFFS).join("weft").join(hostname.as_str());
    let mesh = Mesh::open(&pin_dir).context("cannot load the data plane")?;
    let overlay = Overlay::open(args.encryption.into()).context("cannot use the overlay")?;
    overlay.check().await.context("cannot use the overlay")?;

    let swarm = Swarm::open(SwarmConfig {
        data_dir: args.data_dir.clone(),
        hostname: hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        logs: Arc::clone(&runtime.logs),
        addrs: Arc::new(KernelAddrs),
    })
    .await
    .with_context(|| format!("cannot use the data in {}", args.data_dir.display()))?;

    let agent = Agent::new(AgentConfig {
        swarm: swarm.clone(),
        executor: Arc::clone(&runtime.executor),
        runtime: args.runtime,
        labels,
        overlay,
        mesh,
        pin_dir,
        outside,
        data_dir: args.data_dir.clone(),
        wireguard_port: args.wireguard_port,
    });
    let node = LocalNode {
        hostname: hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime: args.runtime.as_str().to_owned(),
        data_dir: args.data_dir.clone(),
        engine: args.engine(),
        networks: runtime.networks.clone(),
    };
    let router = api::router(swarm.clone(), node);
    let server = tokio::spawn(api::serve(listener, router));
    tracing::info!(node = %hostname, socket = %args.socket.display(), "ready");
    // An error is ignored: the daemon also runs without systemd.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = agent.run() => ended.context("the agent ended"),
        ended = server => ended.context("the API server panicked")?.context("the API server ended"),
    };
    swarm.shutdown().await;
    // An error is ignored: the next daemon replaces a socket that still exists.
    let _ = fs::remove_file(&args.socket);
    outcome
}

/// Raises the soft limit of open files to the hard limit. Each question to an upstream resolver
/// needs a socket, and the inherited limit is often 1,024.
fn raise_open_files_limit() {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limits) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
