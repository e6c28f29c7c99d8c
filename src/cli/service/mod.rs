//! `weft service`: create, change, scale, watch, remove.

mod converge;
mod publish;
mod common;
mod create;
mod update;
mod logs;
mod pretty;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use self::{
    converge::{Goal, Wait},
    create::Create,
    update::Update,
};
use super::{
    client::{Client, filters, list, number, percent_encode, text},
    each,
    flags::Listing,
    names,
    output::{Cut, Table, note, out, out_line},
    tasks,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a service
    Create(Box<Create>),
    /// Change a service; its tasks are replaced batch by batch where they must be
    Update(Box<Update>),
    /// Set how many tasks services have
    Scale(Scale),
    /// Return a service to its spec before the last update
    Rollback(Rollback),
    /// List services
    #[command(visible_alias = "list")]
    Ls(Listing),
    /// List the tasks of services
    Ps(Ps),
    /// Show services whole
    Inspect(Inspect),
    /// Show what the tasks of a service, or one task, wrote
    Logs(logs::Options),
    /// Remove services
    #[command(visible_alias = "remove")]
    Rm(Services),
}

#[derive(Debug, Args)]
pub(super) struct Services {
    /// Names or ids of services
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Scale {
    /// Services by name or id, and how many tasks each is to have
    #[arg(required = true, value_name = "SERVICE=REPLICAS")]
    services: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// Name or id of the service
    service: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct Ps {
    #[command(flatten)]
    services: Services,
    #[command(flatten)]
    options: tasks::Options,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    services: Services,
    /// In lines for people instead of JSON
    #[arg(long)]
    pretty: bool,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Create(options) => return create(client, &options).await,
        Verb::Update(options) => return update(client, &options).await,
        Verb::Scale(options) => return scale(client, &options).await,
        Verb::Rollback(options) => return rollback(client, &options.service, options.wait).await,
        Verb::Ls(listing) => ls(client, &listing).await?,
        Verb::Ps(options) => ps(client, &options).await?,
        Verb::Inspect(options) => inspect(client, &options).await?,
        Verb::Logs(options) => logs::print(client, &options).await?,
        Verb::Rm(services) => rm(client, &services).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ps(client: &Client, options: &Ps) -> Result<()> {
    let mut pairs = Vec::new();
    for service in &options.services.services {
        pairs.push(format!("service={}", text(&get(client, service).await?, "/ID")));
    }
    tasks::print(client, &pairs, &options.options).await
}

async fn rm(client: &Client, services: &Services) -> Result<()> {
    each(&services.services, async |service| {
        client.delete(&format!("/services/{}", percent_encode(service))).await?;
        out_line(service)
    })
    .await
}

async fn get(client: &Client, service: &str) -> Result<Value> {
    client.get(&format!("/services/{}", percent_encode(service))).await
}

async fn create(client: &Client, options: &Create) -> Result<ExitCode> {
    let spec = options.spec()?;
    let created = client.post("/services/create", &spec).await?;
    warn(&created);
    let id = text(&created, "/ID");
    out_line(id)?;
    converge::unless_detached(client, id, Goal::Spec, options.wait).await
}

async fn update(client: &Client, options: &Update) -> Result<ExitCode> {
    if options.rollback {
        return rollback(client, &options.service, options.wait).await;
    }
    let found = get(client, &options.service).await?;
    let mut spec = found["Spec"].clone();
    options.apply(client, &mut spec).await?;
    let answer = client.post(&update_path(&found, ""), &spec).await?;
    warn(&answer);
    out_line(&options.service)?;
    converge::unless_detached(client, text(&found, "/ID"), Goal::Spec, options.wait).await
}

fn update_path(service: &Value, more: &str) -> String {
    format!("/services/{}/update?version={}{more}", text(service, "/ID"), number(service, "/Version/Index"))
}

fn warn(answer: &Value) {
    list(answer, "/Warnings")
        .iter()
        .filter_map(Value::as_str)
        .for_each(|warning| note(format_args!("WARNING: {warning}")));
}

async fn scale(client: &Client, options: &Scale) -> Result<ExitCode> {
    let mut wanted = Vec::new();
    for text in &options.services {
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
        out_line(format_args!("{name} scaled to {replicas}"))?;
        ids.push(text(&found, "/ID").to_owned());
    }
    for id in &ids {
        let code = converge::unless_detached(client, id, Goal::Spec, options.wait).await?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn rollback(client: &Client, service: &str, wait: Wait) -> Result<ExitCode> {
    let found = get(client, service).await?;
    client.post(&update_path(&found, "&rollback=previous"), &found["Spec"]).await?;
    out_line(service)?;
    converge::unless_detached(client, text(&found, "/ID"), Goal::Rollback, wait).await
}

async fn ls(client: &Client, listing: &Listing) -> Result<()> {
    let services = client.get(&format!("/services?status=true&{}", filters(&listing.filter)?)).await?;
    let mut services: Vec<&Value> = list(&services, "").iter().collect();
    services.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    if listing.quiet {
        return services.iter().try_for_each(|service| out_line(text(service, "/ID")));
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
    out(table.render(listing.format.as_deref())?)
}

fn row(service: &Value) -> Vec<String> {
    let mode = if service.pointer("/Spec/Mode/Global").is_some_and(|g| !g.is_null()) { "global" } else { "replicated" };
    let status = |field: &str| number(service, &format!("/ServiceStatus/{field}"));
    vec![
        Cut::Short.id(text(service, "/ID")),
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

async fn inspect(client: &Client, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for service in &options.services.services {
        found.push(get(client, service).await?);
    }
    if !options.pretty {
        return out_line(serde_json::to_string_pretty(&found)?);
    }
    let networks = names::networks(client).await?;
    found.iter().flat_map(|service| pretty::lines(service, &networks)).try_for_each(out_line)
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
