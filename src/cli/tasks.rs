//! Tables of tasks: `service ps` and `node ps`.

use std::cmp::Reverse;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, filters, list, number, text},
    flags::Listing,
    names::{self, Names},
    output::{Cut, Table, ago, out, out_line, title},
};

#[derive(Debug, Args)]
pub(super) struct Options {
    #[command(flatten)]
    listing: Listing,
    /// Show ids and errors whole
    #[arg(long)]
    no_trunc: bool,
    /// Show the ids of nodes instead of their names
    #[arg(long)]
    no_resolve: bool,
}

/// Prints the tasks that the given filters choose.
pub(super) async fn print(client: &Client, pairs: &[String], options: &Options) -> Result<()> {
    let pairs: Vec<String> = pairs.iter().chain(&options.listing.filter).cloned().collect();
    let tasks = client.get(&format!("/tasks?{}", filters(&pairs)?)).await?;
    let mut tasks: Vec<&Value> = list(&tasks, "").iter().collect();
    sort(&mut tasks);
    if options.listing.quiet {
        return tasks.iter().try_for_each(|task| out_line(text(task, "/ID")));
    }
    let known = Known {
        services: names::services(client).await?,
        nodes: if options.no_resolve { Names::new() } else { names::nodes(client).await? },
    };
    out(table(&tasks, &known, Cut::unless(options.no_trunc)).render(options.listing.format.as_deref())?)
}

struct Known {
    services: Names,
    nodes: Names,
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

fn table(tasks: &[&Value], known: &Known, cut: Cut) -> Table {
    let mut rows = Vec::new();
    let mut last = String::new();
    for task in tasks {
        let name = slot_name(task, known);
        let shown = if name == last { format!(" \\_ {name}") } else { name.clone() };
        last = name;
        let node = text(task, "/NodeID");
        rows.push(vec![
            cut.id(text(task, "/ID")),
            shown,
            text(task, "/Spec/ContainerSpec/Image").to_owned(),
            known.nodes.get(node).map_or(node, String::as_str).to_owned(),
            title(text(task, "/DesiredState")),
            format!("{} {}", title(text(task, "/Status/State")), ago(text(task, "/Status/Timestamp")).to_lowercase()),
            cut.error(text(task, "/Status/Err")),
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
fn slot_name(task: &Value, known: &Known) -> String {
    let service = text(task, "/ServiceID");
    let service = known.services.get(service).map_or(service, String::as_str);
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
    fn earlier_tasks_of_a_slot_stand_below_the_newest() {
        let task = |id: &str, created: &str, state: &str| {
            json!({ "ID": id, "ServiceID": "s", "Slot": 1, "NodeID": "n", "CreatedAt": created, "DesiredState": "running",
                    "Spec": { "ContainerSpec": { "Image": "i" } }, "Status": { "State": state, "Timestamp": "" } })
        };
        let (old, new) =
            (task("old", "2026-01-01T00:00:00Z", "failed"), task("new", "2026-01-02T00:00:00Z", "running"));
        let mut tasks = vec![&old, &new];
        sort(&mut tasks);
        let known = Known {
            services: [("s".to_owned(), "web".to_owned())].into(),
            nodes: [("n".to_owned(), "n1".to_owned())].into(),
        };
        let rows = table(&tasks, &known, Cut::Short).rows;
        assert_eq!(rows[0][..4], ["new", "web.1", "i", "n1"]);
        assert_eq!(rows[1][..2], ["old", " \\_ web.1"]);
    }
}
