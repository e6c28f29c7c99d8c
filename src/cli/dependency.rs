//! `weft secret` and `weft config`: create, list, inspect and remove them. Both groups have the
//! same commands; only the data of configs can be read again.

use std::{
    fmt, fs,
    io::{self, Read as _},
};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, filters, list, percent_encode, text},
    flags::Listing,
    for_each_name,
    format::time_ago,
    output::{print, print_line},
    table::Table,
    values::pairs,
};

/// The name of the standard input, where a file is expected.
const STDIN: &str = "-";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Secret,
    Config,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Store the content of a file, or of the standard input, under a name
    Create(Create),
    /// List all
    #[command(visible_alias = "list")]
    Ls(Listing),
    /// Show all details
    Inspect(Inspect),
    /// Remove what no service uses
    #[command(visible_alias = "remove")]
    Rm(Names),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Label; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Expand templates such as {{.Task.Slot}} for each task; weft has only golang
    #[arg(long, value_name = "DRIVER")]
    template_driver: Option<String>,
    /// The name, by which services use it
    name: String,
    /// File with the content; "-" for the standard input
    file: String,
}

#[derive(Debug, Args)]
pub(super) struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    names: Names,
    /// Print readable lines instead of JSON
    #[arg(long)]
    pretty: bool,
}

pub(super) async fn run(client: &Client, kind: Kind, command: Command) -> Result<()> {
    match command {
        Command::Create(options) => create(client, kind, &options).await,
        Command::Ls(listing) => ls(client, kind, &listing).await,
        Command::Inspect(options) => inspect(client, kind, &options).await,
        Command::Rm(names) => {
            for_each_name(&names.names, async |name| {
                client.delete(&format!("/{kind}s/{}", percent_encode(name))).await?;
                print_line(name)
            })
            .await
        }
    }
}

async fn create(client: &Client, kind: Kind, options: &Create) -> Result<()> {
    let data = if options.file == STDIN {
        let mut data = Vec::new();
        io::stdin().lock().read_to_end(&mut data).context("cannot read the standard input")?;
        data
    } else {
        fs::read(&options.file).with_context(|| format!("cannot read {}", options.file))?
    };
    let mut body = json!({ "Name": options.name, "Labels": pairs(&options.label), "Data": STANDARD.encode(data) });
    if let Some(driver) = &options.template_driver {
        body["Templating"] = json!({ "Name": driver });
    }
    let created = client.post(&format!("/{kind}s/create"), &body).await?;
    print_line(text(&created, "/ID"))
}

async fn ls(client: &Client, kind: Kind, listing: &Listing) -> Result<()> {
    let found = client.get(&format!("/{kind}s?{}", filters(&listing.filter)?)).await?;
    let mut found: Vec<&Value> = list(&found, "").iter().collect();
    found.sort_by(|a, b| text(a, "/Spec/Name").cmp(text(b, "/Spec/Name")));
    if listing.quiet {
        return found.iter().try_for_each(|one| print_line(text(one, "/ID")));
    }
    let row = |one: &&Value| {
        let times = ["/CreatedAt", "/UpdatedAt"].map(|time| time_ago(text(one, time)));
        [[text(one, "/ID"), text(one, "/Spec/Name")].map(str::to_owned), times].concat()
    };
    let table = Table {
        columns: vec![("ID", "ID"), ("NAME", "Name"), ("CREATED", "CreatedAt"), ("UPDATED", "UpdatedAt")],
        rows: found.iter().map(row).collect(),
    };
    print(table.render(listing.format.as_deref())?)
}

async fn inspect(client: &Client, kind: Kind, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for name in &options.names.names {
        found.push(client.get(&format!("/{kind}s/{}", percent_encode(name))).await?);
    }
    if options.pretty {
        return found.iter().flat_map(lines).try_for_each(print_line);
    }
    print_line(serde_json::to_string_pretty(&found)?)
}

/// The lines that the docker client prints.
fn lines(one: &Value) -> Vec<String> {
    let mut out = vec![format!("ID:\t\t\t{}", text(one, "/ID")), format!("Name:\t\t\t{}", text(one, "/Spec/Name"))];
    if let Some(labels) = one.pointer("/Spec/Labels").and_then(Value::as_object).filter(|labels| !labels.is_empty()) {
        out.push("Labels:".to_owned());
        out.extend(labels.iter().map(|(key, value)| format!(" - {key}={}", value.as_str().unwrap_or_default())));
    }
    out.push(format!("Created at:\t\t{}", text(one, "/CreatedAt")));
    out.push(format!("Updated at:\t\t{}", text(one, "/UpdatedAt")));
    if let Some(data) = STANDARD.decode(text(one, "/Spec/Data")).ok().filter(|data| !data.is_empty()) {
        out.extend(["Data:".to_owned(), String::from_utf8_lossy(&data).into_owned()]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pretty_config_has_its_data_and_a_secret_none() {
        let mut one =
            json!({"ID": "x", "Spec": {"Name": "conf", "Labels": {"a": "b"}, "Data": STANDARD.encode("k=v")}});
        let shown = lines(&one).join("\n");
        assert!(shown.starts_with("ID:\t\t\tx\nName:\t\t\tconf\nLabels:\n - a=b\n"), "{shown}");
        assert!(shown.ends_with("Data:\nk=v"), "{shown}");
        one["Spec"].as_object_mut().expect("a spec").remove("Data");
        assert!(!lines(&one).join("\n").contains("Data"));
    }
}
