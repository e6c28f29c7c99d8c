//! `weft service`: create, change, scale, watch, remove.

mod converge;
mod logs;
mod pretty;
mod publish;
mod spec;
pub(super) mod tasks;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::{ArgAction, Subcommand};
use serde_json::{Value, json};

use self::{
    converge::Goal,
    spec::{Create, Update},
};
use super::{
    client::{Client, escape, filters, list, number, text},
    each,
    output::Table,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a service
    Create(Box<Create>),
    /// Change a service; its tasks are replaced batch by batch where they must be
    Update(Box<Update>),
    /// Set how many tasks services have
    Scale {
        /// SERVICE=REPLICAS
        #[arg(required = true)]
        services: Vec<String>,
        /// Do not wait until the tasks run
        #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
            default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
        detach: bool,
    },
    /// Return a service to its spec before the last update
    Rollback {
        service: String,
        #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false",
            default_missing_value = "true", hide_default_value = true, hide_possible_values = true)]
        detach: bool,
        #[arg(short, long)]
        quiet: bool,
    },
    /// List services
    #[command(visible_alias = "list")]
    Ls {
        #[arg(short, long)]
        quiet: bool,
        /// KEY=VALUE, such as name=whoami
        #[arg(short, long)]
        filter: Vec<String>,
        #[arg(long)]
        format: Option<String>,
    },
    /// List the tasks of services
    Ps {
        #[arg(required = true)]
        services: Vec<String>,
        #[command(flatten)]
        options: tasks::Options,
    },
    /// Show services whole
    Inspect {
        #[arg(required = true)]
        services: Vec<String>,
        /// For people
        #[arg(long)]
        pretty: bool,
    },
    /// Show what the tasks of a service, or one task, wrote
    Logs(logs::Options),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true)]
        services: Vec<String>,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Create(options) => return create(client, &options).await,
        Verb::Update(options) => return update(client, &options).await,
        Verb::Scale { services, detach } => return scale(client, &services, detach).await,
        Verb::Rollback { service, detach, quiet } => return rollback(client, &service, detach, quiet).await,
        Verb::Ls { quiet, filter, format } => ls(client, quiet, &filter, format.as_deref()).await?,
        Verb::Ps { services, options } => {
            let mut pairs = Vec::new();
            for service in &services {
                pairs.push(format!("service={}", text(&get(client, service).await?, "/ID")));
            }
            tasks::print(client, &pairs, &options).await?;
        }
        Verb::Inspect { services, pretty } => inspect(client, &services, pretty).await?,
        Verb::Logs(options) => logs::print(client, &options).await?,
        Verb::Rm { services } => {
            each(&services, async |service| {
                client.delete(&format!("/services/{}", escape(service))).await?;
                println!("{service}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(client: &Client, service: &str) -> Result<Value> {
    client.get(&format!("/services/{}", escape(service))).await
}

async fn create(client: &Client, options: &Create) -> Result<ExitCode> {
    let spec = options.spec()?;
    let created = client.post("/services/create", &spec).await?;
    warn(&created);
    let id = text(&created, "/ID");
    println!("{id}");
    converge::unless_detached(client, id, Goal::Spec, options.detach, options.quiet).await
}

async fn update(client: &Client, options: &Update) -> Result<ExitCode> {
    let found = get(client, &options.service).await?;
    if options.is_rollback() {
        return rollback(client, &options.service, options.detach, options.quiet).await;
    }
    let mut spec = found["Spec"].clone();
    options.apply(client, &mut spec).await?;
    let answer = client.post(&update_path(&found, ""), &spec).await?;
    warn(&answer);
    println!("{}", options.service);
    converge::unless_detached(client, text(&found, "/ID"), Goal::Spec, options.detach, options.quiet).await
}

fn update_path(service: &Value, more: &str) -> String {
    format!("/services/{}/update?version={}{more}", text(service, "/ID"), number(service, "/Version/Index"))
}

fn warn(answer: &Value) {
    list(answer, "/Warnings").iter().filter_map(Value::as_str).for_each(|warning| eprintln!("WARNING: {warning}"));
}

async fn scale(client: &Client, services: &[String], detach: bool) -> Result<ExitCode> {
    let mut wanted = Vec::new();
    for text in services {
        let (name, replicas) =
            text.split_once('=').with_context(|| format!("invalid scale specifier {text:?}: give SERVICE=REPLICAS"))?;
        let replicas: u64 = replicas.parse().with_context(|| format!("invalid replicas in {text:?}: give a number"))?;
        wanted.push((name, replicas));
    }
    let mut ids = Vec::new();
    for (name, replicas) in wanted {
        let found = get(client, name).await?;
        let mut spec = found["Spec"].clone();
        if spec.pointer("/Mode/Replicated").is_none_or(Value::is_null) {
            bail!("{name}: scale can only be used with replicated mode");
        }
        spec["Mode"] = json!({ "Replicated": { "Replicas": replicas } });
        client.post(&update_path(&found, ""), &spec).await?;
        println!("{name} scaled to {replicas}");
        ids.push(text(&found, "/ID").to_owned());
    }
    for id in &ids {
        let code = converge::unless_detached(client, id, Goal::Spec, detach, false).await?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn rollback(client: &Client, service: &str, detach: bool, quiet: bool) -> Result<ExitCode> {
    let found = get(client, service).await?;
    client.post(&update_path(&found, "&rollback=previous"), &found["Spec"]).await?;
    println!("{service}");
    converge::unless_detached(client, text(&found, "/ID"), Goal::Rollback, detach, quiet).await
}

async fn ls(client: &Client, quiet: bool, filter: &[String], format: Option<&str>) -> Result<()> {
    let services = client.get(&format!("/services?status=true&{}", filters(filter)?)).await?;
    let mut services: Vec<&Value> = list(&services, "").iter().collect();
    services.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    if quiet {
        services.iter().for_each(|service| println!("{}", text(service, "/ID")));
        return Ok(());
    }
    let table = Table {
        columns: vec![
            ("ID", "ID"),
            ("NAME", "Name"),
            ("MODE", "Mode"),
            ("REPLICAS", "Replicas"),
            ("IMAGE", "Image"),
            ("PORTS", "Ports"),
        ],
        rows: services.iter().map(|service| row(service)).collect(),
    };
    print!("{}", table.render(format)?);
    Ok(())
}

fn row(service: &Value) -> Vec<String> {
    let mode = if service.pointer("/Spec/Mode/Global").is_some_and(|g| !g.is_null()) { "global" } else { "replicated" };
    let status = |field: &str| number(service, &format!("/ServiceStatus/{field}"));
    vec![
        text(service, "/ID").chars().take(12).collect(),
        text(service, "/Spec/Name").to_owned(),
        mode.to_owned(),
        format!("{}/{}", status("RunningTasks"), status("DesiredTasks")),
        text(service, "/Spec/TaskTemplate/ContainerSpec/Image").to_owned(),
        ports(list(service, "/Endpoint/Ports")),
    ]
}

/// `*:8080->80/tcp`, comma-separated.
fn ports(ports: &[Value]) -> String {
    let one = |port: &Value| {
        format!("*:{}->{}/{}", number(port, "/PublishedPort"), number(port, "/TargetPort"), text(port, "/Protocol"))
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

async fn inspect(client: &Client, services: &[String], pretty: bool) -> Result<()> {
    let mut found = Vec::new();
    for service in services {
        found.push(get(client, service).await?);
    }
    if !pretty {
        println!("{}", serde_json::to_string_pretty(&found)?);
        return Ok(());
    }
    let networks = network_names(client).await?;
    found.iter().for_each(|service| pretty::print(service, &networks));
    Ok(())
}

async fn network_names(client: &Client) -> Result<BTreeMap<String, String>> {
    let networks = client.get("/networks").await?;
    Ok(list(&networks, "").iter().map(|n| (text(n, "/Id").to_owned(), text(n, "/Name").to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_one_row() {
        let service = json!({
            "ID": "0123456789abcdefghijklmno",
            "Spec": { "Name": "whoami", "Mode": { "Replicated": { "Replicas": 3 } },
                      "TaskTemplate": { "ContainerSpec": { "Image": "weft/whoami" } } },
            "ServiceStatus": { "RunningTasks": 2, "DesiredTasks": 3 },
            "Endpoint": { "Ports": [{ "PublishedPort": 8080, "TargetPort": 80, "Protocol": "tcp" }] },
        });
        assert_eq!(row(&service), ["0123456789ab", "whoami", "replicated", "2/3", "weft/whoami", "*:8080->80/tcp"]);
    }
}
