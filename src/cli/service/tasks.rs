//! Tables of tasks: `service ps` and `node ps`.

use std::{cmp::Reverse, collections::BTreeMap};

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::super::{
    client::{Client, filters, list, number, text},
    node,
    output::{Table, ago},
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// KEY=VALUE, such as desired-state=running
    #[arg(short, long)]
    filter: Vec<String>,
    #[arg(long)]
    format: Option<String>,
    /// Nothing cut short
    #[arg(long)]
    no_trunc: bool,
    /// Nodes by id
    #[arg(long)]
    no_resolve: bool,
}

/// Longest error shown when nothing says otherwise, as in the docker client.
const ERROR_LEN: usize = 30;
const ID_LEN: usize = 12;

/// Prints the tasks that the given filters choose.
pub(crate) async fn print(client: &Client, pairs: &[String], options: &Options) -> Result<()> {
    let pairs: Vec<String> = pairs.iter().chain(&options.filter).cloned().collect();
    let tasks = client.get(&format!("/tasks?{}", filters(&pairs)?)).await?;
    let mut tasks: Vec<&Value> = list(&tasks, "").iter().collect();
    sort(&mut tasks);
    if options.quiet {
        tasks.iter().for_each(|task| println!("{}", text(task, "/ID")));
        return Ok(());
    }
    let services = client.get("/services").await?;
    let names = Names {
        services: list(&services, "")
            .iter()
            .map(|s| (text(s, "/ID").to_owned(), text(s, "/Spec/Name").to_owned()))
            .collect(),
        nodes: if options.no_resolve { BTreeMap::new() } else { node::names(client).await? },
    };
    print!("{}", table(&tasks, &names, options.no_trunc).render(options.format.as_deref())?);
    Ok(())
}

struct Names {
    services: BTreeMap<String, String>,
    nodes: BTreeMap<String, String>,
}

/// By service and slot, the newest first.
fn sort(tasks: &mut [&Value]) {
    tasks.sort_by_key(|task| {
        (
            text(task, "/ServiceID").to_owned(),
            number(task, "/Slot"),
            if number(task, "/Slot") == 0 { text(task, "/NodeID").to_owned() } else { String::new() },
            Reverse(text(task, "/CreatedAt").to_owned()),
        )
    });
}

fn table(tasks: &[&Value], names: &Names, no_trunc: bool) -> Table {
    let mut rows = Vec::new();
    let mut last = String::new();
    for task in tasks {
        let name = slot_name(task, names);
        let shown = if name == last { format!(" \\_ {name}") } else { name.clone() };
        last = name;
        let id = text(task, "/ID");
        let node = text(task, "/NodeID");
        rows.push(vec![
            if no_trunc { id.to_owned() } else { id.chars().take(ID_LEN).collect() },
            shown,
            text(task, "/Spec/ContainerSpec/Image").to_owned(),
            names.nodes.get(node).map_or(node, String::as_str).to_owned(),
            node::title(text(task, "/DesiredState")),
            format!(
                "{} {}",
                node::title(text(task, "/Status/State")),
                ago(text(task, "/Status/Timestamp")).to_lowercase()
            ),
            error(text(task, "/Status/Err"), no_trunc),
            String::new(),
        ]);
    }
    Table {
        columns: vec![
            ("ID", "ID"),
            ("NAME", "Name"),
            ("IMAGE", "Image"),
            ("NODE", "Node"),
            ("DESIRED STATE", "DesiredState"),
            ("CURRENT STATE", "CurrentState"),
            ("ERROR", "Error"),
            ("PORTS", "Ports"),
        ],
        rows,
    }
}

/// `whoami.2`, or `agent.<node id>` of a global service.
fn slot_name(task: &Value, names: &Names) -> String {
    let service = text(task, "/ServiceID");
    let service = names.services.get(service).map_or(service, String::as_str);
    match number(task, "/Slot") {
        0 => format!("{service}.{}", text(task, "/NodeID")),
        slot => format!("{service}.{slot}"),
    }
}

fn error(text: &str, no_trunc: bool) -> String {
    match text {
        "" => String::new(),
        _ if no_trunc || text.chars().count() <= ERROR_LEN => format!("\"{text}\""),
        _ => format!("\"{}…\"", text.chars().take(ERROR_LEN - 1).collect::<String>()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn earlier_tasks_of_a_slot_stand_below_the_newest() {
        let task = |id: &str, created: &str, state: &str| {
            json!({ "ID": id, "ServiceID": "s", "Slot": 1, "NodeID": "n", "CreatedAt": created, "DesiredState": "running",
                    "Spec": { "ContainerSpec": { "Image": "i" } }, "Status": { "State": state, "Timestamp": "" } })
        };
        let (old, new) =
            (task("old", "2026-01-01T00:00:00Z", "failed"), task("new", "2026-01-02T00:00:00Z", "running"));
        let mut tasks = vec![&old, &new];
        sort(&mut tasks);
        let names = Names {
            services: [("s".to_owned(), "web".to_owned())].into(),
            nodes: [("n".to_owned(), "n1".to_owned())].into(),
        };
        let rows = table(&tasks, &names, false).rows;
        assert_eq!(rows[0][..4], ["new", "web.1", "i", "n1"]);
        assert_eq!(rows[1][..2], ["old", " \\_ web.1"]);
    }

    #[test]
    fn long_errors_are_cut_short() {
        assert_eq!(error("", false), "");
        assert_eq!(error("short", false), "\"short\"");
        assert_eq!(error(&"x".repeat(40), false).chars().count(), ERROR_LEN + 2);
        assert_eq!(error(&"x".repeat(40), true).chars().count(), 42);
    }
}
