//! `weft daemon`: wires the layers up, runs, shuts down.
//!
//! Owns the order of start-up and the life of the process. A daemon that ends, however it ends, leaves tasks, links,
//! maps and programs as they are: traffic needs no daemon, and the next one adopts everything.

use std::{
    fs,
    io::{self, IsTerminal as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;
use weft_control::{
    api::{self, LocalNode},
    swarm::{Swarm, SwarmConfig},
};
use weft_mesh::Mesh;
use weft_model::NodeName;
use weft_overlay::Overlay;

use crate::{
    agent::Agent,
    preflight,
    runtime::{self, RuntimeConfig, RuntimeKind},
};

/// Where the default upstream resolvers are listed (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Name of this node; the machine's host name where absent
    #[arg(long)]
    hostname: Option<NodeName>,
    /// Where this node keeps its identity and the cluster's table
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft")]
    data_dir: PathBuf,
    /// Where running tasks are kept; /run/weft/HOSTNAME where absent
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Socket of the Engine API
    #[arg(long, value_name = "PATH", default_value = "/run/weft/weft.sock")]
    socket: PathBuf,
    /// What runs the tasks
    #[arg(long, value_enum, default_value_t = RuntimeKind::Process)]
    runtime: RuntimeKind,
    /// Where the container engine listens, as unix:///PATH or tcp://ADDRESS:PORT; its usual place where absent
    #[arg(long, value_name = "URL")]
    docker_host: Option<String>,
    /// Resolver for names from outside, as ADDRESS or ADDRESS:PORT; those of /etc/resolv.conf where absent
    #[arg(long = "dns-upstream", value_name = "ADDRESS", value_parser = upstream)]
    dns_upstreams: Vec<SocketAddr>,
}

/// Where Docker's engine listens when nothing says otherwise.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

impl Args {
    /// Socket of the local container engine, where there is one.
    fn engine(&self) -> Option<PathBuf> {
        let path = match &self.docker_host {
            Some(host) => PathBuf::from(host.strip_prefix("unix://")?),
            None => PathBuf::from(DOCKER_SOCKET),
        };
        (self.runtime == RuntimeKind::Docker || path.exists()).then_some(path)
    }
}

fn upstream(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    address.or_else(|_| text.parse::<SocketAddr>()).map_err(|_| {
        format!("{text:?} is not an address: give one like 192.0.2.53, 192.0.2.53:53 or [2001:db8::53]:53")
    })
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(args: Args) -> Result<()> {
    log_to_stderr();
    let lacking = preflight::lacking();
    if !lacking.is_empty() {
        bail!("this machine cannot run weft:\n  - {}", lacking.join("\n  - "));
    }
    let hostname = match args.hostname.clone() {
        Some(name) => name,
        None => machine_name()?,
    };
    let run_dir = args.run_dir.clone().unwrap_or_else(|| Path::new("/run/weft").join(hostname.as_str()));
    for dir in [&args.data_dir, &run_dir] {
        fs::create_dir_all(dir).with_context(|| {
            format!("cannot create {}: choose a writable place with --data-dir or --run-dir", dir.display())
        })?;
    }
    let listener = listen(&args.socket).await?;

    let runtime = runtime::open(RuntimeConfig {
        kind: args.runtime,
        run_dir: run_dir.clone(),
        hostname: hostname.clone(),
        docker_host: args.docker_host.clone(),
    })
    .await
    .context("the task runtime cannot be used")?;
    let pin_dir = Path::new(preflight::BPF_FS).join("weft").join(hostname.as_str());
    let mesh = Mesh::open(&pin_dir).context("the data plane cannot be loaded")?;
    let overlay = Overlay::open().context("the overlay cannot be used")?;
    overlay.check().await.context("the overlay cannot be used")?;
    let upstreams = if args.dns_upstreams.is_empty() { system_upstreams() } else { args.dns_upstreams.clone() };

    let swarm = Swarm::open(SwarmConfig {
        data_dir: args.data_dir.clone(),
        hostname: hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        logs: Arc::clone(&runtime.logs),
    })
    .await
    .with_context(|| format!("cannot use the data in {}", args.data_dir.display()))?;

    let agent = Agent::new(
        swarm.clone(),
        Arc::clone(&runtime.executor),
        args.runtime.as_str(),
        overlay,
        (mesh, pin_dir),
        upstreams,
    );
    let node = LocalNode {
        hostname: hostname.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime: args.runtime.as_str().to_owned(),
        data_dir: args.data_dir.clone(),
        engine: args.engine(),
    };
    let router = api::router(swarm.clone(), node);
    let server = tokio::spawn(api::serve(listener, router));
    tracing::info!(node = %hostname, socket = %args.socket.display(), "ready");
    // Outside systemd there is nobody to notify.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let ended = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = agent.run() => ended.context("the agent ended"),
        ended = server => ended.context("the API server panicked")?.context("the API server ended"),
    };
    swarm.shutdown().await;
    // A socket that stays behind is replaced at the next start.
    let _ = fs::remove_file(&args.socket);
    ended
}

/// What is logged, `WEFT_LOG` says, such as `debug` or `weft_mesh=trace`.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("WEFT_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

/// Takes the socket's path, and a dead daemon's socket with it; a living one's is refused.
async fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is no socket: remove it or choose another path with --socket", path.display())
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            bail!("{} is in use by another daemon: stop that one or choose another path with --socket", path.display())
        }
        Ok(_) => fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn machine_name() -> Result<NodeName> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    name.parse().with_context(|| format!("the machine's host name {name:?} cannot be used: choose one with --hostname"))
}

/// `nameserver` lines of resolv.conf(5); none where the file is missing or names only the tasks' own resolver.
fn system_upstreams() -> Vec<SocketAddr> {
    nameservers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_are_addresses_with_or_without_port() {
        assert_eq!(upstream("192.0.2.53"), Ok("192.0.2.53:53".parse().unwrap()));
        assert_eq!(upstream("[2001:db8::53]:5353"), Ok("[2001:db8::53]:5353".parse().unwrap()));
        assert!(upstream("resolver").is_err_and(|text| text.contains("is not an address")));
    }

    #[test]
    fn nameservers_are_read_from_resolv_conf() {
        let file = "# a comment\nsearch example.test\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:1\n";
        assert_eq!(nameservers(file), ["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()]);
    }
}
