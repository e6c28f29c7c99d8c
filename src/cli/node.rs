//! `weft node`: list, look at, change, promote, demote, remove.

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, escape, filters, list, number, text},
    each,
    flags::pairs,
    output::Table,
    service::tasks,
    swarm::{Availability, TokenRole},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the cluster's nodes
    #[command(visible_alias = "list")]
    Ls {
        #[arg(short, long)]
        quiet: bool,
        /// KEY=VALUE, such as role=manager
        #[arg(short, long)]
        filter: Vec<String>,
        #[arg(long)]
        format: Option<String>,
    },
    /// Show nodes whole
    Inspect {
        #[arg(required = true)]
        nodes: Vec<String>,
        /// For people
        #[arg(long)]
        pretty: bool,
    },
    /// List the tasks on nodes, by default on this one
    Ps {
        nodes: Vec<String>,
        #[command(flatten)]
        options: tasks::Options,
    },
    /// Change a node
    Update(Update),
    /// Make nodes managers
    Promote {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Make nodes workers
    Demote {
        #[arg(required = true)]
        nodes: Vec<String>,
    },
    /// Remove nodes from the cluster
    Rm {
        #[arg(required = true)]
        nodes: Vec<String>,
        /// Remove though the node is not down
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct Update {
    node: String,
    #[arg(long, value_enum)]
    availability: Option<Availability>,
    #[arg(long, value_enum)]
    role: Option<TokenRole>,
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<()> {
    match verb {
        Verb::Ls { quiet, filter, format } => ls(client, quiet, &filter, format.as_deref()).await,
        Verb::Inspect { nodes, pretty } => inspect(client, &nodes, pretty).await,
        Verb::Ps { nodes, options } => {
            let own = ["self".to_owned()];
            let nodes = if nodes.is_empty() { &own[..] } else { &nodes };
            let mut pairs = Vec::new();
            for node in nodes {
                pairs.push(format!("node={}", text(&get(client, node).await?, "/ID")));
            }
            tasks::print(client, &pairs, &options).await
        }
        Verb::Update(options) => {
            change(client, &options.node, |spec| apply(&options, spec)).await?;
            println!("{}", options.node);
            Ok(())
        }
        Verb::Promote { nodes } => set_role(client, &nodes, "manager").await,
        Verb::Demote { nodes } => set_role(client, &nodes, "worker").await,
        Verb::Rm { nodes, force } => {
            each(&nodes, async |node| {
                client.delete(&format!("/nodes/{}?force={force}", escape(node))).await?;
                println!("{node}");
                Ok(())
            })
            .await
        }
    }
}

async fn get(client: &Client, node: &str) -> Result<Value> {
    client.get(&format!("/nodes/{}", escape(node))).await
}

async fn ls(client: &Client, quiet: bool, filter: &[String], format: Option<&str>) -> Result<()> {
    let mut nodes = client.get(&format!("/nodes?{}", filters(filter)?)).await?;
    let nodes = nodes.as_array_mut().map(std::mem::take).unwrap_or_default();
    if quiet {
        nodes.iter().for_each(|node| println!("{}", text(node, "/ID")));
        return Ok(());
    }
    let info = client.get("/info").await?;
    print!("{}", table(&nodes, text(&info, "/Swarm/NodeID")).render(format)?);
    Ok(())
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

/// `ready` → `Ready`.
pub(super) fn title(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

async fn inspect(client: &Client, nodes: &[String], pretty: bool) -> Result<()> {
    let mut found = Vec::new();
    for node in nodes {
        found.push(get(client, node).await?);
    }
    if !pretty {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    found.iter().for_each(print_pretty);
    Ok(())
}

fn print_pretty(node: &Value) {
    println!("ID:\t\t\t{}", text(node, "/ID"));
    if let Some(labels) = node.pointer("/Spec/Labels").and_then(Value::as_object).filter(|l| !l.is_empty()) {
        println!("Labels:");
        labels.iter().for_each(|(key, value)| println!(" - {key}={}", value.as_str().unwrap_or_default()));
    }
    println!("Hostname:              \t{}", text(node, "/Description/Hostname"));
    println!("Joined at:             \t{}", text(node, "/CreatedAt"));
    println!("Status:");
    println!(" State:\t\t\t{}", title(text(node, "/Status/State")));
    if !text(node, "/Status/Message").is_empty() {
        println!(" Message:              \t{}", text(node, "/Status/Message"));
    }
    println!(" Availability:         \t{}", title(text(node, "/Spec/Availability")));
    println!(" Address:\t\t{}", text(node, "/Status/Addr"));
    if node.get("ManagerStatus").is_some_and(|m| !m.is_null()) {
        let leader = node.pointer("/ManagerStatus/Leader").and_then(Value::as_bool) == Some(true);
        println!("Manager Status:");
        println!(" Address:\t\t{}", text(node, "/ManagerStatus/Addr"));
        println!(" Raft Status:\t\t{}", title(text(node, "/ManagerStatus/Reachability")));
        println!(" Leader:\t\t{}", if leader { "Yes" } else { "No" });
    }
    println!("Platform:");
    println!(" Operating System:\t{}", text(node, "/Description/Platform/OS"));
    println!(" Architecture:\t\t{}", text(node, "/Description/Platform/Architecture"));
    println!("Resources:");
    println!(" CPUs:\t\t\t{}", number(node, "/Description/Resources/NanoCPUs") / 1_000_000_000);
    println!(" Memory:\t\t{}", super::output::size(number(node, "/Description/Resources/MemoryBytes")));
    println!("Engine Version:\t\t{}\n", text(node, "/Description/Engine/EngineVersion"));
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
        spec["Role"] = match role {
            TokenRole::Worker => "worker",
            TokenRole::Manager => "manager",
        }
        .into();
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

async fn set_role(client: &Client, nodes: &[String], role: &str) -> Result<()> {
    each(nodes, async |node| {
        if text(&get(client, node).await?, "/Spec/Role") == role {
            println!("Node {node} is already a {role}.");
            return Ok(());
        }
        change(client, node, |spec| {
            spec["Role"] = role.into();
            Ok(())
        })
        .await?;
        match role {
            "manager" => println!("Node {node} promoted to a manager in the swarm."),
            _ => println!("Manager {node} demoted in the swarm."),
        }
        Ok(())
    })
    .await
}

/// The names of all nodes by their ids.
pub(super) async fn names(client: &Client) -> Result<std::collections::BTreeMap<String, String>> {
    let nodes = client.get("/nodes").await?;
    Ok(list(&nodes, "")
        .iter()
        .map(|n| (text(n, "/ID").to_owned(), text(n, "/Description/Hostname").to_owned()))
        .collect())
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
