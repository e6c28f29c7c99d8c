//! The flags of `weft daemon`, and their default values. Reads the machine's host name,
//! and changes nothing. The command line parses the flags, and the parent module reads them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use weft_dns::Upstream;
use weft_model::{NodeName, spec::Labels, wireguard::WIREGUARD_PORTS};
use weft_overlay::EncryptionMode;

use crate::runtime::{RuntimeKind, docker};

/// The default run directories of all nodes of a machine are below this one.
const RUN_DIR: &str = "/run/weft";

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Name of this node; by default the host name of the machine
    #[arg(long)]
    hostname: Option<NodeName>,
    /// Directory for the identity of this node and its copy of the cluster state
    #[arg(long, value_name = "DIR", default_value = "/var/lib/weft")]
    pub(super) data_dir: PathBuf,
    /// Directory for the state of running tasks; by default /run/weft/HOSTNAME
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Path of the socket of the Engine API
    #[arg(long, value_name = "PATH", default_value = "/run/weft/weft.sock")]
    pub(super) socket: PathBuf,
    /// What runs the tasks
    #[arg(long, value_enum, default_value_t = RuntimeKind::Process)]
    pub(super) runtime: RuntimeKind,
    /// Socket of this machine's container engine, as unix:///PATH; by default
    /// unix:///var/run/docker.sock
    #[arg(long, value_name = "URL", value_parser = engine_socket)]
    docker_host: Option<PathBuf>,
    /// Where the engine looks for weft's network driver; the file must have the name weft.sock
    #[arg(long, value_name = "PATH", default_value = docker::plugin::SOCKET)]
    pub(super) plugin_socket: PathBuf,
    /// Label of this node's engine, for constraints on engine.labels.KEY; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// What encrypts the traffic of encrypted networks; auto is the kernel's WireGuard if it has
    /// one
    #[arg(long, value_enum, default_value_t = Encryption::Auto)]
    pub(super) encryption: Encryption,
    /// First of the two UDP ports at which this node receives the traffic of encrypted networks
    #[arg(long, value_name = "PORT", default_value_t = WIREGUARD_PORTS[0], value_parser = clap::value_parser!(u16).range(1..65535))]
    pub(super) wireguard_port: u16,
    /// Resolver for names outside of the cluster, as ADDRESS, ADDRESS:PORT, or for DNS over TLS as
    /// tls://ADDRESS#NAME with the name in its certificate; by default those of /etc/resolv.conf;
    /// may be repeated
    #[arg(long = "dns-upstream", value_name = "ADDRESS")]
    pub(super) dns_upstreams: Vec<Upstream>,
}

/// The values of `--encryption`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Encryption {
    /// The kernel's WireGuard if it has one, otherwise that of the daemon
    Auto,
    /// Only the kernel's WireGuard
    Kernel,
    /// The WireGuard of the daemon, on a TUN device
    Userspace,
}

impl From<Encryption> for EncryptionMode {
    fn from(encryption: Encryption) -> Self {
        match encryption {
            Encryption::Auto => Self::Auto,
            Encryption::Kernel => Self::Kernel,
            Encryption::Userspace => Self::UserSpace,
        }
    }
}

impl Args {
    /// The name of this node.
    ///
    /// # Errors
    ///
    /// Without `--hostname`, if the machine's host name is not a valid node name.
    pub(super) fn hostname(&self) -> Result<NodeName> {
        if let Some(name) = &self.hostname {
            return Ok(name.clone());
        }
        let uname = rustix::system::uname();
        let name = uname.nodename().to_string_lossy();
        name.parse()
            .with_context(|| format!("the machine's host name {name:?} cannot be used: choose one with --hostname"))
    }

    /// The directory for the state of running tasks. It need not survive a restart of the machine,
    /// because the tasks do not survive it either.
    pub(super) fn run_dir(&self, hostname: &NodeName) -> PathBuf {
        self.run_dir.clone().unwrap_or_else(|| Path::new(RUN_DIR).join(hostname.as_str()))
    }

    /// The path at which the container engine of this machine listens, whether or not the engine
    /// exists.
    pub(super) fn docker_socket(&self) -> PathBuf {
        self.docker_host.clone().unwrap_or_else(|| docker::SOCKET.into())
    }

    /// The engine that the API forwards requests about containers and images to. `None` if the
    /// machine has no engine.
    pub(super) fn engine(&self) -> Option<PathBuf> {
        let path = self.docker_socket();
        (self.runtime == RuntimeKind::Docker || path.exists()).then_some(path)
    }

    /// The labels of this node's engine.
    ///
    /// # Errors
    ///
    /// If one key has two values.
    pub(super) fn labels(&self) -> Result<Labels> {
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

/// Parses `--docker-host`. weft creates the links and namespaces of tasks on this machine, so it
/// can only use an engine of this machine.
fn engine_socket(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix("unix://") {
        Some(path) if path.starts_with('/') => Ok(path.into()),
        _ => Err("weft connects tasks to networks on this machine, so the engine must run on this machine too: \
                  give its socket as unix:///PATH"
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn refuses_an_engine_of_another_machine() {
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

    /// The labels of a daemon that is started with these `--label` flags.
    fn labels(given: &[&str]) -> Result<Labels> {
        let flags = given.iter().flat_map(|label| ["--label", label]);
        Line::try_parse_from(["weft"].into_iter().chain(flags))?.args.labels()
    }

    #[test]
    fn a_label_is_a_key_with_one_value() {
        let check = |given: &[&str], want: &[(&str, &str)]| {
            let want = want.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            assert_eq!(labels(given).expect("valid labels"), want);
        };
        check(&[], &[]);
        check(&["storage=ssd", "zone=a=b", "empty="], &[("empty", ""), ("storage", "ssd"), ("zone", "a=b")]);
        check(&["storage=ssd", "storage=ssd"], &[("storage", "ssd")]);
        for (invalid, reason) in [
            (&["storage"][..], "KEY=VALUE"),
            (&["=ssd"], "KEY=VALUE"),
            (&["a b=c"], "KEY=VALUE"),
            (&["storage=ssd", "storage=hdd"], "two values"),
        ] {
            let error = labels(invalid).expect_err("invalid labels").to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
