//! The tables of tasks that `service ps` and `node ps` print.

use std::cmp::Reverse;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, filters, list, number, text},
    flags::Listing,
    format::{Truncation, capitalize, time_ago},
    names::{self, NamesById},
    output::{print, print_line},
    table::Table,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    listing: Listing,
    /// Do not shorten ids and errors
    #[arg(long)]
    no_trunc: bool,
    /// Show the ids of nodes instead of their names
    #[arg(long)]
    no_resolve: bool,
}

/// Prints the tasks that match both the filters in `pairs` and the filters of the user.
pub(super) async fn print_tasks(client: &Client, pairs: &[String], options: &Options) -> Result<()> {
    let pairs: Vec<String> = pairs.iter().chain(&options.listing.filter).cloned().collect();
    let tasks = client.get(&format!("/tasks?{}", filters(&pairs)?)).await?;
    let mut tasks: Vec<&Value> = list(&tasks, "").iter().collect();
    sort(&mut tasks);
    if options.listing.quiet {
        return tasks.iter().try_for_each(|task| print_line(text(task, "/ID")));
    }
    let names = Names {
        services: names::services(client).await?,
        nodes: if options.no_resolve { NamesById::new() } else { names::nodes(client).await? },
    };
    print(table(&tasks, &names, Truncation::new(options.no_trunc)).render(options.listing.format.as_deref())?)
}

/// The names to show. If an id has no name here, the id is shown.
struct Names {
    services: NamesById,
    nodes: NamesById,
}

/// Sorts by service and slot, with the newest task of a slot first. A global service has one slot
/// on each node.
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

/// Builds the table. The caller must sort `tasks`.
fn table(tasks: &[&Value], names: &Names, truncation: Truncation) -> Table {
    let mut rows = Vec::new();
    let mut previous = String::new();
    for task in tasks {
        let name = slot_name(task, names);
        let shown = if name == previous { format!(" \\_ {name}") } else { name.clone() };
        previous = name;
        let node = text(task, "/NodeID");
        let age = time_ago(text(task, "/Status/Timestamp")).to_lowercase();
        rows.push(vec![
            truncation.id(text(task, "/ID")),
            shown,
            truncation.image(text(task, "/Spec/ContainerSpec/Image")).to_owned(),
            names.nodes.get(node).map_or(node, String::as_str).to_owned(),
            capitalize(text(task, "/DesiredState")),
            format!("{} {age}", capitalize(text(task, "/Status/State"))),
            truncation.error(text(task, "/Status/Err")),
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

/// The name of a task's slot: `whoami.2`, or `agent.<node id>` for a global service.
fn slot_name(task: &Value, names: &Names) -> String {
    let service = text(task, "/ServiceID");
    let service = names.services.get(service).map_or(service, String::as_str);
    match number(task, "/Slot") {
        0 => format!("{service}.{}", text(task, "/NodeID")),
        slot => format!("{service}.{slot}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn older_tasks_of_a_slot_are_below_the_newest() {
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
        let rows = table(&tasks, &names, Truncation::Short).rows;
        assert_eq!(rows[0][..4], ["new", "web.1", "i", "n1"]);
        assert_eq!(rows[1][..2], ["old", " \\_ web.1"]);
    }
}
