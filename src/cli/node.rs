//! `weft node`: list, inspect, change, promote, demote and remove nodes.

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, filters, list, number, percent_encode, text},
    flags::{Availability, Listing, Role},
    for_each_name,
    format::{capitalize, human_size},
    node_spec::{change, get},
    output::{print, print_line},
    role,
    table::Table,
    tasks,
    values::pairs,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the nodes of the cluster
    #[command(visible_alias = "list")]
    Ls(Listing),
    /// Show all details of nodes
    Inspect(Inspect),
    /// List the tasks on nodes, by default on this node
    Ps(Ps),
    /// Change a node
    Update(Update),
    /// Make nodes managers
    Promote(role::Nodes),
    /// Make nodes workers
    Demote(role::Nodes),
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// Names or ids of nodes; self is the node that answers the request
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    nodes: Nodes,
    /// Print readable lines instead of JSON
    #[arg(long)]
    pretty: bool,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Names or ids of nodes; by default self
    #[arg(value_name = "NODE", default_value = "self", hide_default_value = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    options: tasks::Options,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Name or id of the node; self is the node that answers the request
    node: String,
    /// Whether tasks are placed on the node; drain also replaces its tasks on other nodes
    #[arg(long, value_enum, value_name = "AVAILABILITY")]
    availability: Option<Availability>,
    /// Role of the node in the cluster
    #[arg(long, value_enum, value_name = "ROLE")]
    role: Option<Role>,
    /// Label to add or change, such as storage=ssd; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Key of a label to remove; may be repeated
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    nodes: Nodes,
    /// Remove the node even if it is not down
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Ls(listing) => ls(client, &listing).await,
        Command::Inspect(options) => inspect(client, &options).await,
        Command::Ps(options) => ps(client, &options).await,
        Command::Update(options) => {
            change(client, &options.node, |spec| apply(&options, spec)).await?;
            print_line(&options.node)
        }
        Command::Promote(nodes) => role::set(client, &nodes, Role::Manager).await,
        Command::Demote(nodes) => role::set(client, &nodes, Role::Worker).await,
        Command::Rm(options) => rm(client, &options).await,
    }
}

async fn ps(client: &Client, options: &Ps) -> Result<()> {
    let mut pairs = Vec::new();
    for node in &options.nodes {
        pairs.push(format!("node={}", text(&get(client, node).await?, "/ID")));
    }
    tasks::print_tasks(client, &pairs, &options.options).await
}

async fn rm(client: &Client, options: &Rm) -> Result<()> {
    for_each_name(&options.nodes.nodes, async |node| {
        client.delete(&format!("/nodes/{}?force={}", percent_encode(node), options.force)).await?;
        print_line(node)
    })
    .await
}

async fn ls(client: &Client, listing: &Listing) -> Result<()> {
    let mut nodes = client.get(&format!("/nodes?{}", filters(&listing.filter)?)).await?;
    let nodes = nodes.as_array_mut().map(std::mem::take).unwrap_or_default();
    if listing.quiet {
        return nodes.iter().try_for_each(|node| print_line(text(node, "/ID")));
    }
    let info = client.get("/info").await?;
    print(table(&nodes, text(&info, "/Swarm/NodeID")).render(listing.format.as_deref())?)
}

/// `this_node` is the id of the node that answers the request.
fn table(nodes: &[Value], this_node: &str) -> Table {
    let row = |node: &Value| {
        let id = text(node, "/ID");
        let manager = match (node.pointer("/ManagerStatus/Leader"), text(node, "/ManagerStatus/Reachability")) {
            (Some(Value::Bool(true)), _) => "Leader".to_owned(),
            (_, reachability) => capitalize(reachability),
        };
        vec![
            format!("{id} {}", if id == this_node { "*" } else { " " }),
            text(node, "/Description/Hostname").to_owned(),
            status(node),
            capitalize(text(node, "/Spec/Availability")),
            manager,
            text(node, "/Description/Engine/EngineVersion").to_owned(),
        ]
    };
    let mut rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    rows.sort_by(|a, b| a[1].cmp(&b[1]));
    Table {
        columns: vec![
            ("ID", "ID"),
            ("HOSTNAME", "Hostname"),
            ("STATUS", "Status"),
            ("AVAILABILITY", "Availability"),
            ("MANAGER STATUS", "ManagerStatus"),
            ("ENGINE VERSION", "EngineVersion"),
        ],
        rows,
    }
}

/// The status and its reason: why the node is down, or why a ready node does not converge.
fn status(node: &Value) -> String {
    let (state, message) = (capitalize(text(node, "/Status/State")), text(node, "/Status/Message"));
    if message.is_empty() { state } else { format!("{state}, {message}") }
}

async fn inspect(client: &Client, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for node in &options.nodes.nodes {
        found.push(get(client, node).await?);
    }
    if options.pretty {
        found.iter().flat_map(pretty).try_for_each(print_line)
    } else {
        print_line(serde_json::to_string_pretty(&found)?)
    }
}

/// The lines that `node inspect --pretty` prints.
fn pretty(node: &Value) -> Vec<String> {
    let mut lines = vec![format!("ID:\t\t\t{}", text(node, "/ID"))];
    if let Some(labels) = node.pointer("/Spec/Labels").and_then(Value::as_object).filter(|l| !l.is_empty()) {
        lines.push("Labels:".to_owned());
        lines.extend(labels.iter().map(|(key, value)| format!(" - {key}={}", value.as_str().unwrap_or_default())));
    }
    lines.push(format!("Hostname:              \t{}", text(node, "/Description/Hostname")));
    lines.push(format!("Joined at:             \t{}", text(node, "/CreatedAt")));
    lines.push("Status:".to_owned());
    lines.push(format!(" State:\t\t\t{}", capitalize(text(node, "/Status/State"))));
    if !text(node, "/Status/Message").is_empty() {
        lines.push(format!(" Message:              \t{}", text(node, "/Status/Message")));
    }
    lines.push(format!(" Availability:         \t{}", capitalize(text(node, "/Spec/Availability"))));
    lines.push(format!(" Address:\t\t{}", text(node, "/Status/Addr")));
    if node.get("ManagerStatus").is_some_and(|m| !m.is_null()) {
        let leader = node.pointer("/ManagerStatus/Leader").and_then(Value::as_bool) == Some(true);
        lines.push("Manager Status:".to_owned());
        lines.push(format!(" Address:\t\t{}", text(node, "/ManagerStatus/Addr")));
        lines.push(format!(" Raft Status:\t\t{}", capitalize(text(node, "/ManagerStatus/Reachability"))));
        lines.push(format!(" Leader:\t\t{}", if leader { "Yes" } else { "No" }));
    }
    lines.push("Platform:".to_owned());
    lines.push(format!(" Operating System:\t{}", text(node, "/Description/Platform/OS")));
    lines.push(format!(" Architecture:\t\t{}", text(node, "/Description/Platform/Architecture")));
    lines.extend(encryption(node));
    lines.push("Resources:".to_owned());
    lines.push(format!(" CPUs:\t\t\t{}", number(node, "/Description/Resources/NanoCPUs") / 1_000_000_000));
    lines.push(format!(" Memory:\t\t{}", human_size(number(node, "/Description/Resources/MemoryBytes"))));
    lines.push(format!("Engine Version:\t\t{}\n", text(node, "/Description/Engine/EngineVersion")));
    lines
}

/// The lines about encryption. Empty if the node has not described itself yet.
fn encryption(node: &Value) -> Vec<String> {
    let Some(encryption) = node.pointer("/Description/Encryption") else { return Vec::new() };
    let reason = match text(encryption, "/Reason") {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    let mut lines = vec!["Encryption:".to_owned(), format!(" Path:\t\t\t{}{reason}", text(encryption, "/Path"))];
    for key in list(encryption, "/Keys") {
        let (public, state, created) = (text(key, "/PublicKey"), text(key, "/State"), text(key, "/CreatedAt"));
        lines.push(format!(" Key:\t\t\t{public} {state} since {created}"));
    }
    lines
}

/// Applies the flags of `node update` to the spec of a node.
fn apply(options: &Update, spec: &mut Value) -> Result<()> {
    if let Some(availability) = options.availability {
        spec["Availability"] = availability.as_str().into();
    }
    if let Some(role) = options.role {
        spec["Role"] = role.as_str().into();
    }
    if !spec["Labels"].is_object() {
        spec["Labels"] = json!({});
    }
    for key in &options.label_rm {
        let removed = spec["Labels"].as_object_mut().and_then(|labels| labels.remove(key));
        ensure!(removed.is_some(), "key {key:?} doesn't exist in node's labels");
    }
    for (key, value) in pairs(&options.label_add) {
        spec["Labels"][key] = value.into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_marks_this_node_and_the_leader() {
        let nodes = [
            json!({"ID": "b", "Description": {"Hostname": "n2"}, "Status": {"State": "ready"}, "Spec": {"Availability": "drain"}}),
            json!({"ID": "a", "Description": {"Hostname": "n1", "Engine": {"EngineVersion": "0.1.0"}}, "Status": {"State": "ready"},
                   "Spec": {"Availability": "active"}, "ManagerStatus": {"Leader": true, "Reachability": "reachable"}}),
        ];
        let shown = table(&nodes, "a").render(None).expect("the table has no template");
        let lines: Vec<Vec<&str>> = shown.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "*", "n1", "Ready", "Active", "Leader", "0.1.0"]);
        assert_eq!(lines[2], ["b", "n2", "Ready", "Drain"]);
    }

    #[test]
    fn the_table_shows_the_reason_of_every_status() {
        for (state, message, shown) in [
            ("ready", "", "Ready"),
            ("ready", "not converged: no tunnel", "Ready, not converged: no tunnel"),
            ("down", "its certificate has expired", "Down, its certificate has expired"),
            ("unknown", "", "Unknown"),
        ] {
            let node = json!({"ID": "a", "Status": {"State": state, "Message": message}});
            let rendered = table(&[node], "a").render(Some("{{.Status}}")).expect("the template is valid");
            assert_eq!(rendered.trim(), shown);
        }
    }
}
