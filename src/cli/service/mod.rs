//! `weft service`: create, change, scale, list, inspect and remove services, and read their logs.
//! This file has the commands; each larger part has its own file.

mod converge;
mod publish;
mod common;
mod lists;
mod lookup;
mod files;
mod image;
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
    flags::Listing,
    for_each_name,
    format::Truncation,
    image_name, names,
    output::{print, print_line, print_to_stderr},
    table::Table,
    tasks,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a service
    Create(Box<Create>),
    /// Change a service; tasks that the change affects are replaced, batch by batch
    Update(Box<Update>),
    /// Set the number of tasks of services
    Scale(Scale),
    /// Return a service to the spec that it had before the last update
    Rollback(Rollback),
    /// List services
    #[command(visible_alias = "list")]
    Ls(Listing),
    /// List the tasks of services
    Ps(Ps),
    /// Show all details of services
    Inspect(Inspect),
    /// Show the output of the tasks of a service, or of one task
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
    /// Names or ids of services, each with the number of its tasks
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
    /// Print readable lines instead of JSON
    #[arg(long)]
    pretty: bool,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(options) => return create(client, &options).await,
        Command::Update(options) => return update(client, &options).await,
        Command::Scale(options) => return scale(client, &options).await,
        Command::Rollback(options) => return rollback(client, &options.service, options.wait).await,
        Command::Ls(listing) => ls(client, &listing).await?,
        Command::Ps(options) => ps(client, &options).await?,
        Command::Inspect(options) => inspect(client, &options).await?,
        Command::Logs(options) => logs::print_logs(client, &options).await?,
        Command::Rm(services) => rm(client, &services).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn ps(client: &Client, options: &Ps) -> Result<()> {
    let mut pairs = Vec::new();
    for service in &options.services.services {
        pairs.push(format!("service={}", text(&get(client, service).await?, "/ID")));
    }
    tasks::print_tasks(client, &pairs, &options.options).await
}

async fn rm(client: &Client, services: &Services) -> Result<()> {
    for_each_name(&services.services, async |service| {
        client.delete(&format!("/services/{}", percent_encode(service))).await?;
        print_line(service)
    })
    .await
}

async fn get(client: &Client, service: &str) -> Result<Value> {
    client.get(&format!("/services/{}", percent_encode(service))).await
}

async fn create(client: &Client, options: &Create) -> Result<ExitCode> {
    let mut spec = options.spec()?;
    options.files.apply(client, &mut spec["TaskTemplate"]["ContainerSpec"]).await?;
    let auth = options.image.credentials(image(&spec))?;
    options.image.resolve(client, &mut spec, auth.as_deref()).await;
    let created = client.post_with_auth("/services/create", &spec, auth.as_deref()).await?;
    print_warnings(&created);
    let id = text(&created, "/ID");
    print_line(id)?;
    converge::wait(client, id, Goal::Spec, options.wait).await
}

async fn update(client: &Client, options: &Update) -> Result<ExitCode> {
    if options.rollback {
        return rollback(client, &options.service, options.wait).await;
    }
    let found = get(client, &options.service).await?;
    let mut spec = found["Spec"].clone();
    options.apply(client, &mut spec).await?;
    let auth = options.image_flags.credentials(image(&spec))?;
    if options.changes_image() {
        options.image_flags.resolve(client, &mut spec, auth.as_deref()).await;
    }
    let answer = client.post_with_auth(&update_path(&found, ""), &spec, auth.as_deref()).await?;
    print_warnings(&answer);
    print_line(&options.service)?;
    converge::wait(client, text(&found, "/ID"), Goal::Spec, options.wait).await
}

/// The image in the spec of a service.
fn image(spec: &Value) -> &str {
    text(spec, "/TaskTemplate/ContainerSpec/Image")
}

/// The path of the request that updates the service. `query` is appended to the query of the path.
fn update_path(service: &Value, query: &str) -> String {
    format!("/services/{}/update?version={}{query}", text(service, "/ID"), number(service, "/Version/Index"))
}

fn print_warnings(answer: &Value) {
    list(answer, "/Warnings")
        .iter()
        .filter_map(Value::as_str)
        .for_each(|warning| print_to_stderr(format_args!("WARNING: {warning}")));
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
        print_line(format_args!("{name} scaled to {replicas}"))?;
        ids.push(text(&found, "/ID").to_owned());
    }
    for id in &ids {
        let code = converge::wait(client, id, Goal::Spec, options.wait).await?;
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn rollback(client: &Client, service: &str, wait: Wait) -> Result<ExitCode> {
    let found = get(client, service).await?;
    client.post(&update_path(&found, "&rollback=previous"), &found["Spec"]).await?;
    print_line(service)?;
    converge::wait(client, text(&found, "/ID"), Goal::Rollback, wait).await
}

async fn ls(client: &Client, listing: &Listing) -> Result<()> {
    let services = client.get(&format!("/services?status=true&{}", filters(&listing.filter)?)).await?;
    let mut services: Vec<&Value> = list(&services, "").iter().collect();
    services.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    if listing.quiet {
        return services.iter().try_for_each(|service| print_line(text(service, "/ID")));
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
    print(table.render(listing.format.as_deref())?)
}

fn row(service: &Value) -> Vec<String> {
    let mode = if service.pointer("/Spec/Mode/Global").is_some_and(|g| !g.is_null()) { "global" } else { "replicated" };
    let status = |field: &str| number(service, &format!("/ServiceStatus/{field}"));
    vec![
        Truncation::Short.id(text(service, "/ID")),
        text(service, "/Spec/Name").to_owned(),
        mode.to_owned(),
        format!("{}/{}", status("RunningTasks"), status("DesiredTasks")),
        image_name::shown(image(&service["Spec"])).to_owned(),
        ports(list(service, "/Endpoint/Ports")),
    ]
}

/// Published ports such as `*:8080->80/tcp`, with commas between them.
fn ports(ports: &[Value]) -> String {
    let one = |port: &Value| {
        format!("*:{}->{}/{}", number(port, "/PublishedPort"), number(port, "/TargetPort"), text(port, "/Protocol"))
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

async fn inspect(client: &Client, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for service in &options.services.services {
        found.push(client.get(&format!("/services/{}?insertDefaults=true", percent_encode(service))).await?);
    }
    if !options.pretty {
        return print_line(serde_json::to_string_pretty(&found)?);
    }
    let networks = names::networks(client).await?;
    found.iter().flat_map(|service| pretty::lines(service, &networks)).try_for_each(print_line)
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
