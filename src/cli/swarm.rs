//! `weft swarm`: create, join and leave a cluster, print its join tokens, and change its settings.
//! `lock` has the commands for locked managers.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    client::{Client, list, number, text},
    duration::nanos,
    flags::{Availability, Role},
    lock::{self, UnlockKey},
    output::{print, print_line, print_to_stderr},
    values::duration,
};

/// The pause between two questions for the progress of a rotation.
const POLL: Duration = Duration::from_millis(300);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a cluster with this node as its first manager
    Init(Init),
    /// Join a cluster as a worker or a manager, depending on the token
    Join(Join),
    /// Leave the cluster
    Leave(Leave),
    /// Show or replace the token that nodes join with
    JoinToken(JoinToken),
    /// Show or replace the cluster's certificate authority
    Ca(Ca),
    /// Start this manager, which is locked, with the unlock key from standard input
    Unlock,
    /// Show or replace the key that locked managers need after a restart
    UnlockKey(UnlockKey),
    /// Change the cluster's settings
    Update(Update),
}

/// Flags about this node, for the two commands that make it a member of a cluster.
#[derive(Debug, Args)]
pub(super) struct NodeFlags {
    /// Address at which other nodes reach this node: an IP address, or the name of a network
    /// interface
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    advertise_addr: String,
    /// Address and port to listen on for other nodes
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Address at which the tunnels of this node end: an IP address, or the name of a network
    /// interface; by default the address of --advertise-addr
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    data_path_addr: String,
    /// Whether tasks are placed on this node
    #[arg(long, value_enum, value_name = "AVAILABILITY", default_value_t = Availability::Active)]
    availability: Availability,
}

impl NodeFlags {
    /// The body of a request that makes this node a member.
    pub(super) fn request(&self) -> Value {
        json!({
            "ListenAddr": self.listen_addr,
            "AdvertiseAddr": self.advertise_addr,
            "DataPathAddr": self.data_path_addr,
            "Availability": self.availability.as_str(),
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    node: NodeFlags,
    /// UDP port of the tunnels between all nodes, from 1024 to 49151
    #[arg(long, value_name = "PORT", default_value_t = 4789)]
    data_path_port: u32,
    #[command(flatten)]
    settings: Settings,
    /// Form the cluster of this manager again, with this node as its only manager: for a cluster
    /// that has lost more than half of its managers for good
    #[arg(long)]
    force_new_cluster: bool,
}

#[derive(Debug, Args)]
pub(super) struct Join {
    /// Join token, as "weft swarm join-token" prints it
    #[arg(long, value_name = "TOKEN")]
    token: String,
    #[command(flatten)]
    node: NodeFlags,
    /// Addresses of managers, as ADDRESS:PORT
    #[arg(required = true, value_name = "MANAGER")]
    remotes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Leave {
    /// Leave even if this node is a manager
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct JoinToken {
    /// Role of the nodes that join with the token
    role: Role,
    /// Replace the token: the old one stops working at once; nodes that joined with it stay members
    #[arg(long)]
    rotate: bool,
    /// Print only the token
    #[arg(short, long)]
    quiet: bool,
}

/// Settings of the whole cluster.
#[derive(Debug, Args)]
struct Settings {
    /// How many ended tasks are kept for each slot
    #[arg(long, value_name = "COUNT")]
    task_history_limit: Option<u64>,
    /// Time between two heartbeats of a node, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    dispatcher_heartbeat: Option<SignedDuration>,
    /// How many heartbeats in a row a node may miss before it is down
    #[arg(long, value_name = "COUNT")]
    down_after: Option<u64>,
    /// How long the certificate of a node is valid, such as 2160h; at least 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cert_expiry: Option<SignedDuration>,
    /// After which time nodes replace their keys for encrypted networks, such as 12h; at least 10s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    key_rotation: Option<SignedDuration>,
    /// Lock managers: encrypt their keys, so that they need the unlock key after a restart
    #[arg(long)]
    autolock: Option<bool>,
    /// Pool of addresses that networks get their subnets from, as ADDRESS/PREFIX; may be repeated,
    /// and replaces all earlier pools
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    default_addr_pool: Vec<String>,
    /// Prefix length of the subnets in the pools
    #[arg(long, value_name = "LENGTH")]
    default_addr_pool_mask_length: Option<u32>,
}

impl Settings {
    /// Applies the given flags to the spec of a swarm.
    fn apply(&self, spec: &mut Value) {
        if let Some(limit) = self.task_history_limit {
            spec["Orchestration"]["TaskHistoryRetentionLimit"] = limit.into();
        }
        if let Some(period) = self.dispatcher_heartbeat {
            spec["Dispatcher"]["HeartbeatPeriod"] = nanos(period).into();
        }
        if let Some(misses) = self.down_after {
            spec["Dispatcher"]["HeartbeatMisses"] = misses.into();
        }
        if let Some(expiry) = self.cert_expiry {
            spec["CAConfig"]["NodeCertExpiry"] = nanos(expiry).into();
        }
        if let Some(period) = self.key_rotation {
            spec["EncryptionConfig"]["KeyRotationPeriod"] = nanos(period).into();
        }
        if let Some(autolock) = self.autolock {
            spec["EncryptionConfig"]["AutoLockManagers"] = autolock.into();
        }
        if !self.default_addr_pool.is_empty() {
            spec["DefaultAddrPool"] = json!(self.default_addr_pool);
        }
        if let Some(length) = self.default_addr_pool_mask_length {
            spec["SubnetSize"] = length.into();
        }
    }

    fn is_empty(&self) -> bool {
        self.task_history_limit.is_none()
            && self.dispatcher_heartbeat.is_none()
            && self.down_after.is_none()
            && self.cert_expiry.is_none()
            && self.key_rotation.is_none()
            && self.autolock.is_none()
            && self.default_addr_pool.is_empty()
            && self.default_addr_pool_mask_length.is_none()
    }
}

#[derive(Debug, Args)]
pub(super) struct Ca {
    /// Replace the certificate authority, by a new one unless --ca-cert is given
    #[arg(long)]
    rotate: bool,
    /// File with the root certificate of the new authority, in PEM
    #[arg(long, value_name = "FILE", requires = "rotate", requires = "ca_key")]
    ca_cert: Option<PathBuf>,
    /// File with the private key of the new authority, in PEM (PKCS#8 without a passphrase)
    #[arg(long, value_name = "FILE", requires = "rotate", requires = "ca_cert")]
    ca_key: Option<PathBuf>,
    /// How long the certificate of a node is valid, such as 2160h; at least 1h
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "rotate")]
    cert_expiry: Option<SignedDuration>,
    /// Do not wait until all nodes have new certificates
    #[arg(short, long, requires = "rotate")]
    detach: bool,
    /// Do not print which nodes have no certificate of the new authority yet
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    #[command(flatten)]
    settings: Settings,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Init(options) => init(client, &options).await,
        Command::Join(options) => join(client, &options).await,
        Command::Leave(options) => leave(client, &options).await,
        Command::JoinToken(options) => join_token(client, &options).await,
        Command::Ca(options) => ca(client, &options).await,
        Command::Unlock => lock::unlock(client).await,
        Command::UnlockKey(options) => lock::unlock_key(client, &options).await,
        Command::Update(options) => update(client, &options).await,
    }
}

async fn init(client: &Client, options: &Init) -> Result<()> {
    let mut body = options.node.request();
    body["DataPathPort"] = options.data_path_port.into();
    body["Spec"] = json!({});
    options.settings.apply(&mut body["Spec"]);
    body["ForceNewCluster"] = options.force_new_cluster.into();
    let id = client.post("/swarm/init", &body).await?;
    print(format_args!(
        "Swarm initialized: current node ({}) is now a manager.\n\n\
         To add a worker to this swarm, run the following command:\n\n",
        id.as_str().unwrap_or_default()
    ))?;
    print_join_command(client, Role::Worker).await?;
    print_line("To add a manager to this swarm, run 'weft swarm join-token manager' and follow the instructions.")?;
    if options.settings.autolock == Some(true) {
        print("\n")?;
        lock::print_unlock_command(client).await?;
    }
    Ok(())
}

/// Prints the command that joins a node to this cluster.
async fn print_join_command(client: &Client, role: Role) -> Result<()> {
    let swarm = client.get("/swarm").await?;
    let info = client.get("/info").await?;
    let address = text(&info, "/Swarm/NodeAddr");
    let this_node = text(&info, "/Swarm/NodeID");
    let manager = list(&info, "/Swarm/RemoteManagers")
        .iter()
        .find(|m| text(m, "/NodeID") == this_node)
        .map_or_else(|| format!("{address}:2377"), |m| text(m, "/Addr").to_owned());
    print(format_args!("    weft swarm join --token {} {manager}\n\n", token(&swarm, role)))
}

fn token(swarm: &Value, role: Role) -> &str {
    match role {
        Role::Worker => text(swarm, "/JoinTokens/Worker"),
        Role::Manager => text(swarm, "/JoinTokens/Manager"),
    }
}

async fn join(client: &Client, options: &Join) -> Result<()> {
    let mut body = options.node.request();
    body["RemoteAddrs"] = json!(options.remotes);
    body["JoinToken"] = options.token.as_str().into();
    client.post("/swarm/join", &body).await?;
    let info = client.get("/info").await?;
    let is_manager = info.pointer("/Swarm/ControlAvailable").and_then(Value::as_bool) == Some(true);
    let role = if is_manager { Role::Manager } else { Role::Worker };
    print_line(format_args!("This node joined a swarm as a {}.", role.as_str()))
}

async fn leave(client: &Client, options: &Leave) -> Result<()> {
    client.post(&format!("/swarm/leave?force={}", options.force), &Value::Null).await?;
    print_line("Node left the swarm.")
}

async fn join_token(client: &Client, options: &JoinToken) -> Result<()> {
    let role = options.role;
    if options.rotate {
        let swarm = client.get("/swarm").await?;
        let flag = match role {
            Role::Worker => "rotateWorkerToken",
            Role::Manager => "rotateManagerToken",
        };
        let path = format!("/swarm/update?version={}&{flag}=true", number(&swarm, "/Version/Index"));
        client.post(&path, &swarm["Spec"]).await?;
        if !options.quiet {
            print(format_args!("Successfully rotated {} join token.\n\n", role.as_str()))?;
        }
    }
    if options.quiet {
        return print_line(token(&client.get("/swarm").await?, role));
    }
    print(format_args!("To add a {} to this swarm, run the following command:\n\n", role.as_str()))?;
    print_join_command(client, role).await
}

async fn ca(client: &Client, options: &Ca) -> Result<()> {
    if options.rotate {
        let swarm = client.get("/swarm").await?;
        let mut spec = swarm["Spec"].clone();
        let settings = &mut spec["CAConfig"];
        if let Some(expiry) = options.cert_expiry {
            settings["NodeCertExpiry"] = nanos(expiry).into();
        }
        match (&options.ca_cert, &options.ca_key) {
            (Some(cert), Some(key)) => {
                settings["SigningCACert"] = read_file(cert)?.into();
                settings["SigningCAKey"] = read_file(key)?.into();
            }
            _ => settings["ForceRotate"] = (number(&swarm, "/Spec/CAConfig/ForceRotate") + 1).into(),
        }
        let version = number(&swarm, "/Version/Index");
        client.post(&format!("/swarm/update?version={version}"), &spec).await?;
        if options.detach {
            return Ok(());
        }
        wait_for_rotation(client, version, options.quiet).await?;
    }
    let swarm = client.get("/swarm").await?;
    if let Some(progress) = rotation_progress(client, &swarm).await?.filter(|_| !options.quiet) {
        print_to_stderr(progress);
    }
    print(text(&swarm, "/TLSInfo/TrustRoot"))
}

fn read_file(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Waits until every node uses a certificate of the new authority. Says which nodes do not. The
/// rotation has changed the `version` of the cluster's settings; the manager that answers may not
/// know that yet.
async fn wait_for_rotation(client: &Client, version: u64, quiet: bool) -> Result<()> {
    let mut printed = String::new();
    loop {
        let swarm = client.get("/swarm").await?;
        let progress = if number(&swarm, "/Version/Index") == version {
            "waiting for this manager to apply the change".to_owned()
        } else if let Some(progress) = rotation_progress(client, &swarm).await? {
            progress
        } else {
            return Ok(());
        };
        if !quiet && progress != printed {
            print_to_stderr(&progress);
            printed = progress;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Which nodes the replacement of the authority waits for. `None` if it is not being replaced.
async fn rotation_progress(client: &Client, swarm: &Value) -> Result<Option<String>> {
    if swarm["RootRotationInProgress"] != true {
        return Ok(None);
    }
    let nodes = client.get("/nodes").await?;
    let issuer = text(swarm, "/TLSInfo/CertIssuerPublicKey");
    let waiting: Vec<_> = nodes
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .filter(|node| text(node, "/Description/TLSInfo/CertIssuerPublicKey") != issuer)
        .map(|node| format!("{} ({})", text(node, "/Description/Hostname"), text(node, "/Status/State")))
        .collect();
    Ok(Some(if waiting.is_empty() {
        "all nodes have new certificates: the former authority will be forgotten soon".to_owned()
    } else {
        format!("waiting for new certificates of: {}", waiting.join(", "))
    }))
}

async fn update(client: &Client, options: &Update) -> Result<()> {
    anyhow::ensure!(!options.settings.is_empty(), "nothing to change: give at least one flag (see --help)");
    let swarm = client.get("/swarm").await?;
    let mut spec = swarm["Spec"].clone();
    options.settings.apply(&mut spec);
    client.post(&format!("/swarm/update?version={}", number(&swarm, "/Version/Index")), &spec).await?;
    print_line("Swarm updated.")?;
    if options.settings.autolock == Some(true) && !lock::is_locked(&swarm) {
        lock::print_unlock_command(client).await?;
    }
    Ok(())
}
