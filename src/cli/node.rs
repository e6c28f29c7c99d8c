//! `weft node`: list, look at, change, promote, demote, remove.

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, filters, number, percent_encode, text},
    each,
    flags::{Availability, Listing, Role},
    output::{Table, out, out_line, size, title},
    tasks,
    values::pairs,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the cluster's nodes
    #[command(visible_alias = "list")]
    Ls(Listing),
    /// Show nodes whole
    Inspect(Inspect),
    /// List the tasks on nodes, by default on this one
    Ps(Ps),
    /// Change a node
    Update(Update),
    /// Make nodes managers
    Promote(Nodes),
    /// Make nodes workers
    Demote(Nodes),
    /// Remove nodes from the cluster
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// Names or ids of nodes; self is the one that answers
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    nodes: Nodes,
    /// In lines for people instead of JSON
    #[arg(long)]
    pretty: bool,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Names or ids of nodes; self where absent
    #[arg(value_name = "NODE", default_value = "self", hide_default_value = true)]
    nodes: Vec<String>,
    #[command(flatten)]
    options: tasks::Options,
}

#[derive(Debug, Args)]
pub(super) struct Update {
    /// Name or id of the node; self is the one that answers
    node: String,
    /// Whether it takes tasks; drain also moves away those that it has
    #[arg(long, value_enum, value_name = "AVAILABILITY")]
    availability: Option<Availability>,
    /// What it is in the cluster
    #[arg(long, value_enum, value_name = "ROLE")]
    role: Option<Role>,
    /// A label to add or change, such as storage=ssd; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// A label to take off; may be repeated
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    #[command(flatten)]
    nodes: Nodes,
    /// Remove though the node is not down
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<()> {
    match verb {
        Verb::Ls(listing) => ls(client, &listing).await,
        Verb::Inspect(options) => inspect(client, &options).await,
        Verb::Ps(options) => ps(client, &options).await,
        Verb::Update(options) => {
            change(client, &options.node, |spec| apply(&options, spec)).await?;
            out_line(&options.node)
        }
        Verb::Promote(nodes) => set_role(client, &nodes, Role::Manager).await,
        Verb::Demote(nodes) => set_role(client, &nodes, Role::Worker).await,
        Verb::Rm(options) => rm(client, &options).await,
    }
}

async fn ps(client: &Client, options: &Ps) -> Result<()> {
    let mut pairs = Vec::new();
    for node in &options.nodes {
        pairs.push(format!("node={}", text(&get(client, node).await?, "/ID")));
    }
    tasks::print(client, &pairs, &options.options).await
}

async fn rm(client: &Client, options: &Rm) -> Result<()> {
    each(&options.nodes.nodes, async |node| {
        client.delete(&format!("/nodes/{}?force={}", percent_encode(node), options.force)).await?;
        out_line(node)
    })
    .await
}

async fn get(client: &Client, node: &str) -> Result<Value> {
    client.get(&format!("/nodes/{}", percent_encode(node))).await
}

async fn ls(client: &Client, listing: &Listing) -> Result<()> {
    let mut nodes = client.get(&format!("/nodes?{}", filters(&listing.filter)?)).await?;
    let nodes = nodes.as_array_mut().map(std::mem::take).unwrap_or_default();
    if listing.quiet {
        return nodes.iter().try_for_each(|node| out_line(text(node, "/ID")));
    }
    let info = client.get("/info").await?;
    out(table(&nodes, text(&info, "/Swarm/NodeID")).render(listing.format.as_deref())?)
}

fn table(nodes: &[Value], own: &str) -> Table {
    let row = |node: &Value| {
        let id = text(node, "/ID");
        let manager = match (node.pointer("/ManagerStatus/Leader"), text(node, "/ManagerStatus/Reachability")) {
            (Some(Value::Bool(true)), _) => "Leader".to_owned(),
            (_, reachability) => title(reachability),
        };
        vec![
            format!("{id} {}", if id == own { "*" } else { " " }),
            text(node, "/Description/Hostname").to_owned(),
            title(text(node, "/Status/State")),
            title(text(node, "/Spec/Availability")),
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

async fn inspect(client: &Client, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for node in &options.nodes.nodes {
        found.push(get(client, node).await?);
    }
    if options.pretty {
        found.iter().flat_map(pretty).try_for_each(out_line)
    } else {
        out_line(serde_json::to_string_pretty(&found)?)
    }
}

/// The lines of `inspect --pretty`.
fn pretty(node: &Value) -> Vec<String> {
    let mut lines = vec![format!("ID:\t\t\t{}", text(node, "/ID"))];
    if let Some(labels) = node.pointer("/Spec/Labels").and_then(Value::as_object).filter(|l| !l.is_empty()) {
        lines.push("Labels:".to_owned());
        lines.extend(labels.iter().map(|(key, value)| format!(" - {key}={}", value.as_str().unwrap_or_default())));
    }
    lines.push(format!("Hostname:              \t{}", text(node, "/Description/Hostname")));
    lines.push(format!("Joined at:             \t{}", text(node, "/CreatedAt")));
    lines.push("Status:".to_owned());
    lines.push(format!(" State:\t\t\t{}", title(text(node, "/Status/State"))));
    if !text(node, "/Status/Message").is_empty() {
        lines.push(format!(" Message:              \t{}", text(node, "/Status/Message")));
    }
    lines.push(format!(" Availability:         \t{}", title(text(node, "/Spec/Availability"))));
    lines.push(format!(" Address:\t\t{}", text(node, "/Status/Addr")));
    if node.get("ManagerStatus").is_some_and(|m| !m.is_null()) {
        let leader = node.pointer("/ManagerStatus/Leader").and_then(Value::as_bool) == Some(true);
        lines.push("Manager Status:".to_owned());
        lines.push(format!(" Address:\t\t{}", text(node, "/ManagerStatus/Addr")));
        lines.push(format!(" Raft Status:\t\t{}", title(text(node, "/ManagerStatus/Reachability"))));
        lines.push(format!(" Leader:\t\t{}", if leader { "Yes" } else { "No" }));
    }
    lines.push("Platform:".to_owned());
    lines.push(format!(" Operating System:\t{}", text(node, "/Description/Platform/OS")));
    lines.push(format!(" Architecture:\t\t{}", text(node, "/Description/Platform/Architecture")));
    lines.push("Resources:".to_owned());
    lines.push(format!(" CPUs:\t\t\t{}", number(node, "/Description/Resources/NanoCPUs") / 1_000_000_000));
    lines.push(format!(" Memory:\t\t{}", size(number(node, "/Description/Resources/MemoryBytes"))));
    lines.push(format!("Engine Version:\t\t{}\n", text(node, "/Description/Engine/EngineVersion")));
    lines
}

/// Reads a node's spec, changes it and writes it back.
async fn change(client: &Client, node: &str, alter: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    let found = get(client, node).await?;
    let mut spec = found["Spec"].clone();
    alter(&mut spec)?;
    let path = format!("/nodes/{}/update?version={}", text(&found, "/ID"), number(&found, "/Version/Index"));
    client.post(&path, &spec).await?;
    Ok(())
}

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

async fn set_role(client: &Client, nodes: &Nodes, role: Role) -> Result<()> {
    each(&nodes.nodes, async |node| {
        if text(&get(client, node).await?, "/Spec/Role") == role.as_str() {
            return out_line(format_args!("Node {node} is already a {}.", role.as_str()));
        }
        change(client, node, |spec| {
            spec["Role"] = role.as_str().into();
            Ok(())
        })
        .await?;
        match role {
            Role::Manager => out_line(format_args!("Node {node} promoted to a manager in the swarm.")),
            Role::Worker => out_line(format_args!("Manager {node} demoted in the swarm.")),
        }
    })
    .await
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
        let shown = table(&nodes, "a").render(None).unwrap();
        let lines: Vec<Vec<&str>> = shown.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "*", "n1", "Ready", "Active", "Leader", "0.1.0"]);
        assert_eq!(lines[2], ["b", "n2", "Ready", "Drain"]);
    }
}
