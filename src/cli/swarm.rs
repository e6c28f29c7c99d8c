//! `weft swarm`: form, join, leave, tokens, settings.

use anyhow::Result;
use clap::{Args, Subcommand};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    client::{Client, list, number, text},
    duration::nanos,
    flags::{Availability, Role},
    output::{out, out_line},
    values::duration,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Form a new cluster with this node as its first manager
    Init(Init),
    /// Join a cluster as the node that the token says
    Join(Join),
    /// Leave the cluster
    Leave(Leave),
    /// Show or replace the tokens that nodes join with
    JoinToken(JoinToken),
    /// Change the cluster's settings
    Update(Update),
}

/// Flags about this node, for the two commands that make it a member of a cluster.
#[derive(Debug, Args)]
struct NodeFlags {
    /// Address that other nodes reach this one at: an address, or a link's name
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    advertise_addr: String,
    /// Where to listen for other nodes
    #[arg(long, value_name = "ADDRESS[:PORT]", default_value = "0.0.0.0:2377")]
    listen_addr: String,
    /// Whether this node takes tasks
    #[arg(long, value_enum, value_name = "AVAILABILITY", default_value_t = Availability::Active)]
    availability: Availability,
}

impl NodeFlags {
    /// The body of a request that makes this node a member.
    fn request(&self) -> Value {
        json!({
            "ListenAddr": self.listen_addr,
            "AdvertiseAddr": self.advertise_addr,
            "Availability": self.availability.as_str(),
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    node: NodeFlags,
    /// Pool that subnets are cut from, as ADDRESS/PREFIX
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    default_addr_pool: Vec<String>,
    /// Prefix length of the subnets that are cut from the pool
    #[arg(long, value_name = "LENGTH")]
    default_addr_pool_mask_length: Option<u32>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
pub(super) struct Join {
    /// As "weft swarm join-token" prints it
    #[arg(long, value_name = "TOKEN")]
    token: String,
    #[command(flatten)]
    node: NodeFlags,
    /// A manager, as ADDRESS:PORT
    #[arg(required = true, value_name = "MANAGER")]
    remotes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Leave {
    /// Leave though this node is a manager
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct JoinToken {
    /// What nodes become that join with it
    role: Role,
    /// Replace it: the old one stops working at once, nodes that joined with it stay
    #[arg(long)]
    rotate: bool,
    /// Only the token
    #[arg(short, long)]
    quiet: bool,
}

/// Settings of the whole cluster.
#[derive(Debug, Args)]
struct Settings {
    /// How many ended tasks are kept for each slot
    #[arg(long, value_name = "COUNT")]
    task_history_limit: Option<u64>,
    /// How often a node says that it is alive, such as 5s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    dispatcher_heartbeat: Option<SignedDuration>,
    /// How many heartbeats a node may miss before it is down
    #[arg(long, value_name = "COUNT")]
    down_after: Option<u64>,
    /// Life of a node's certificate, such as 2160h; one hour at least
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    cert_expiry: Option<SignedDuration>,
}

impl Settings {
    /// Writes what was given into a swarm spec.
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
    }

    fn is_empty(&self) -> bool {
        self.task_history_limit.is_none()
            && self.dispatcher_heartbeat.is_none()
            && self.down_after.is_none()
            && self.cert_expiry.is_none()
    }
}

#[derive(Debug, Args)]
pub(super) struct Update {
    #[command(flatten)]
    settings: Settings,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<()> {
    match verb {
        Verb::Init(options) => init(client, &options).await,
        Verb::Join(options) => join(client, &options).await,
        Verb::Leave(options) => leave(client, &options).await,
        Verb::JoinToken(options) => join_token(client, &options).await,
        Verb::Update(options) => update(client, &options).await,
    }
}

async fn init(client: &Client, options: &Init) -> Result<()> {
    let mut body = options.node.request();
    body["Spec"] = json!({});
    options.settings.apply(&mut body["Spec"]);
    if !options.default_addr_pool.is_empty() {
        body["DefaultAddrPool"] = json!(options.default_addr_pool);
    }
    if let Some(length) = options.default_addr_pool_mask_length {
        body["SubnetSize"] = length.into();
    }
    let id = client.post("/swarm/init", &body).await?;
    out(format_args!(
        "Swarm initialized: current node ({}) is now a manager.\n\n\
         To add a worker to this swarm, run the following command:\n\n",
        id.as_str().unwrap_or_default()
    ))?;
    print_join(client, Role::Worker).await?;
    out_line("To add a manager to this swarm, run 'weft swarm join-token manager' and follow the instructions.")
}

async fn print_join(client: &Client, role: Role) -> Result<()> {
    let swarm = client.get("/swarm").await?;
    let info = client.get("/info").await?;
    let address = text(&info, "/Swarm/NodeAddr");
    let own = text(&info, "/Swarm/NodeID");
    let manager = list(&info, "/Swarm/RemoteManagers")
        .iter()
        .find(|m| text(m, "/NodeID") == own)
        .map_or_else(|| format!("{address}:2377"), |m| text(m, "/Addr").to_owned());
    out(format_args!("    weft swarm join --token {} {manager}\n\n", token(&swarm, role)))
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
    out_line(format_args!("This node joined a swarm as a {}.", role.as_str()))
}

async fn leave(client: &Client, options: &Leave) -> Result<()> {
    client.post(&format!("/swarm/leave?force={}", options.force), &Value::Null).await?;
    out_line("Node left the swarm.")
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
            out(format_args!("Successfully rotated {} join token.\n\n", role.as_str()))?;
        }
    }
    if options.quiet {
        return out_line(token(&client.get("/swarm").await?, role));
    }
    out(format_args!("To add a {} to this swarm, run the following command:\n\n", role.as_str()))?;
    print_join(client, role).await
}

async fn update(client: &Client, options: &Update) -> Result<()> {
    anyhow::ensure!(!options.settings.is_empty(), "nothing to change: give at least one flag (see --help)");
    let swarm = client.get("/swarm").await?;
    let mut spec = swarm["Spec"].clone();
    options.settings.apply(&mut spec);
    client.post(&format!("/swarm/update?version={}", number(&swarm, "/Version/Index")), &spec).await?;
    out_line("Swarm updated.")
}
