//! `weft daemon`: wires the layers up, runs, shuts down.
//!
//! Owns the order of start-up and the life of the process. A daemon that ends, however it ends, leaves tasks, links,
//! maps and programs as they are: traffic needs no daemon, and the next one adopts everything.

use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{self, IsTerminal as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{FlockOperation, flock};
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
use weft_model::{NodeName, spec::Labels};
use weft_overlay::Overlay;

use crate::{
    agent::{Agent, AgentConfig},
    preflight,
    runtime::{self, RuntimeConfig, RuntimeKind, chain, docker, identity},
};

/// Where the default upstream resolvers are listed (resolv.conf(5)).
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Environment variable that says what is logged, and what it says where it is not set: openraft calls every try to reach a
/// lost manager an error, and what ends it comes back to us.
const LOG_VARIABLE: &str = "WEFT_LOG";
const LOG_DEFAULT: &str = "info,openraft=off";

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
    /// Where this machine's container engine listens, as unix:///PATH; its usual place where absent
    #[arg(long, value_name = "URL", value_parser = engine_socket)]
    docker_host: Option<PathBuf>,
    /// Label of this node's engine, for constraints on engine.labels.KEY
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Resolver for names from outside, as ADDRESS or ADDRESS:PORT; those of /etc/resolv.conf where absent
    #[arg(long = "dns-upstream", value_name = "ADDRESS", value_parser = upstream)]
    dns_upstreams: Vec<SocketAddr>,
}

impl Args {
    /// Where the local container engine listens, if there is one.
    fn docker_socket(&self) -> PathBuf {
        self.docker_host.clone().unwrap_or_else(|| docker::SOCKET.into())
    }

    /// Its socket, where there is one: what is not the cluster's is passed on to it.
    fn engine(&self) -> Option<PathBuf> {
        let path = self.docker_socket();
        (self.runtime == RuntimeKind::Docker || path.exists()).then_some(path)
    }

    fn labels(&self) -> Result<Labels> {
        let mut labels = Labels::new();
        for (key, value) in &self.labels {
            if let Some(other) = labels.insert(key.clone(), value.clone())
                && other != *value
            {
                bail!("--label gives {key} two values, {other:?} and {value:?}: give one");
            }
        }
        Ok(labels)
    }
}

/// A tunnel, a link, a namespace are made beside the engine: one of another machine is of no use.
fn engine_socket(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err("tasks are linked on this machine, so the engine must be its own: give its socket as unix:///PATH"
            .to_owned()),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !key.contains(char::is_whitespace) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("give a label as KEY=VALUE".to_owned()),
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
    log_to_stderr()?;
    let labels = args.labels()?;
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
    // Held to the end, whatever the end: the kernel lets go of it with the process.
    let _data = take(&args.data_dir)?;
    let listener = listen(&args.socket).await?;

    let runtime = runtime::open(RuntimeConfig {
        kind: args.runtime,
        run_dir: run_dir.clone(),
        hostname: hostname.clone(),
        docker_socket: args.docker_socket(),
    })
    .await
    .context("the task runtime cannot be used")?;
    let pin_dir = Path::new(weft_mesh::BPFFS).join("weft").join(hostname.as_str());
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

    let agent = Agent::new(AgentConfig {
        swarm: swarm.clone(),
        executor: Arc::clone(&runtime.executor),
        runtime: args.runtime,
        labels,
        overlay,
        mesh,
        pin_dir,
        upstreams,
    });
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

fn log_to_stderr() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(log_filter(env::var_os(LOG_VARIABLE).as_deref())?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// What is logged, the variable says, such as `debug` or `weft_mesh=trace`.
fn log_filter(asked: Option<&OsStr>) -> Result<EnvFilter> {
    let asked = asked.filter(|text| !text.is_empty());
    let text = asked.map_or(Cow::Borrowed(LOG_DEFAULT), OsStr::to_string_lossy);
    EnvFilter::try_new(&text).map_err(|error| {
        let reason = chain(&error);
        anyhow!("{LOG_VARIABLE}={text} does not say what to log ({reason}): use debug, say, or weft_mesh=trace,info")
    })
}

/// Takes the data directory for this daemon alone: two would each write the cluster's table, and be one node twice.
fn take(dir: &Path) -> Result<File> {
    let held = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    match flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(held),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let dir = dir.display();
            bail!("{dir} is in use by another daemon: stop that one or choose another directory with --data-dir")
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
    }
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

/// The machine's own resolvers; none where the file is missing.
fn system_upstreams() -> Vec<SocketAddr> {
    nameservers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// `nameserver` lines of resolv.conf(5), but the tasks' own resolver: it would be asked by itself.
fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|ip| *ip != identity::RESOLVER)
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_data_directory_is_one_daemons() {
        let dir = tempfile::tempdir().unwrap();
        let held = take(dir.path()).unwrap();
        let refused = take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("in use by another daemon") && refused.contains("--data-dir"), "{refused}");
        drop(held);
        assert!(take(dir.path()).is_ok());
    }

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

    #[test]
    fn the_tasks_own_resolver_is_no_upstream() {
        assert_eq!(nameservers("nameserver 127.0.0.11\nnameserver 127.0.0.53\n"), ["127.0.0.53:53".parse().unwrap()]);
        assert_eq!(nameservers("nameserver 127.0.0.11\n"), []);
    }

    #[test]
    fn an_engine_is_this_machines() {
        assert_eq!(engine_socket("unix:///run/docker.sock"), Ok("/run/docker.sock".into()));
        for other in ["tcp://192.0.2.1:2375", "unix://docker.sock", "/run/docker.sock", ""] {
            assert!(engine_socket(other).is_err_and(|text| text.contains("unix:///PATH")), "{other}");
        }
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// The labels of a daemon with these flags.
    fn labels(given: &[&str]) -> Result<Labels> {
        let flags = given.iter().flat_map(|label| ["--label", label]);
        Line::try_parse_from(["weft"].into_iter().chain(flags))?.args.labels()
    }

    #[test]
    fn labels_are_keys_with_values() {
        let check = |given: &[&str], want: &[(&str, &str)]| {
            let want = want.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(labels(given).unwrap(), want);
        };
        check(&[], &[]);
        check(&["storage=ssd", "zone=a=b", "empty="], &[("empty", ""), ("storage", "ssd"), ("zone", "a=b")]);
        check(&["storage=ssd", "storage=ssd"], &[("storage", "ssd")]);
        for (refused, said) in [
            (&["storage"][..], "KEY=VALUE"),
            (&["=ssd"], "KEY=VALUE"),
            (&["a b=c"], "KEY=VALUE"),
            (&["storage=ssd", "storage=hdd"], "two values"),
        ] {
            let error = labels(refused).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_to_log_is_understood_or_refused() {
        for fine in [None, Some(""), Some("debug"), Some("weft_mesh=trace,info")] {
            assert!(log_filter(fine.map(OsStr::new)).is_ok(), "{fine:?}");
        }
        let error = format!("{:#}", log_filter(Some(OsStr::new("weft_mesh=loud"))).unwrap_err());
        assert!(error.contains("WEFT_LOG=weft_mesh=loud") && error.contains("debug"), "{error}");
    }
}
