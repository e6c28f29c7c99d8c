//! The flags of `service update`, and the changes that they make to a spec.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    super::{
        client::{Client, text},
        names::{self, NamesById},
        values::{ShellWords, environment, pairs, shell_words},
    },
    common::{Common, network, preferences, put},
    converge::Wait,
    files::FileChanges,
    image::ImageFlags,
    lists::{change_list, items},
    lookup::LookupChanges,
    publish::{self, Publish},
};

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Return to the spec that the service had before the last update; excludes all flags that
    /// change the spec
    // The argument groups of these structs contain all flags that change the spec.
    #[arg(long, conflicts_with_all = ["Changes", "LookupChanges", "FileChanges", "ImageFlags", "Common"])]
    pub rollback: bool,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    lookup: LookupChanges,
    #[command(flatten)]
    files: FileChanges,
    #[command(flatten)]
    pub(super) image_flags: ImageFlags,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pub(super) wait: Wait,
    /// Name or id of the service
    pub service: String,
}

#[derive(Debug, Args)]
struct Changes {
    /// Image of the tasks
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Command of the tasks, as one string with the quoting of a shell
    #[arg(long, value_name = "COMMAND", value_parser = shell_words, allow_hyphen_values = true)]
    args: Option<ShellWords>,
    /// Replace the tasks even if nothing has changed
    #[arg(long)]
    force: bool,
    /// Port to publish: TARGET, PUBLISHED:TARGET/udp or published=PORT,target=PORT,protocol=udp;
    /// may be repeated
    #[arg(long, value_name = "PORT", value_parser = publish::parse)]
    publish_add: Vec<Publish>,
    /// Port to stop publishing, by its target: PORT[/PROTOCOL]; may be repeated
    #[arg(long, value_name = "TARGET")]
    publish_rm: Vec<String>,
    /// Network to connect the tasks to: NAME or name=NAME,alias=ALIAS; may be repeated
    #[arg(long, value_name = "NETWORK")]
    network_add: Vec<String>,
    /// Network to disconnect the tasks from; may be repeated
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Label of the service to add or change; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label_add: Vec<String>,
    /// Key of a label of the service to remove; may be repeated
    #[arg(long, value_name = "KEY")]
    label_rm: Vec<String>,
    /// Label of its containers to add or change; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    container_label_add: Vec<String>,
    /// Key of a label of its containers to remove; may be repeated
    #[arg(long, value_name = "KEY")]
    container_label_rm: Vec<String>,
    /// Environment variable of the tasks to add or change; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    env_add: Vec<String>,
    /// Environment variable to remove; may be repeated
    #[arg(long, value_name = "KEY")]
    env_rm: Vec<String>,
    /// Constraint to add, such as node.labels.storage==ssd; may be repeated
    #[arg(long, value_name = "EXPRESSION")]
    constraint_add: Vec<String>,
    /// Constraint to remove, written as it was added; may be repeated
    #[arg(long, value_name = "EXPRESSION")]
    constraint_rm: Vec<String>,
    /// Placement preference to add, such as spread=node.labels.zone; may be repeated
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_add: Vec<String>,
    /// Placement preference to remove, written as it was added; may be repeated
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref_rm: Vec<String>,
}

impl Update {
    /// Applies the changes to `spec`, the present spec of the service.
    ///
    /// # Errors
    ///
    /// If a flag cannot be applied to the service, such as `--network-rm` with a network that the
    /// service is not connected to.
    pub(super) async fn apply(&self, client: &Client, spec: &mut Value) -> Result<()> {
        self.common.apply(spec)?;
        self.lookup.apply(&mut spec["TaskTemplate"]["ContainerSpec"]);
        self.files.apply(client, &mut spec["TaskTemplate"]["ContainerSpec"]).await?;
        let changes = &self.changes;
        let names = if changes.network_add.is_empty() && changes.network_rm.is_empty() {
            NamesById::new()
        } else {
            names::networks(client).await?
        };
        changes.apply(spec, &names)
    }

    /// Whether the user has named an image.
    pub(super) fn changes_image(&self) -> bool {
        self.changes.image.is_some()
    }
}

impl Changes {
    /// Applies the changes. `networks` has the names of networks by their ids.
    fn apply(&self, spec: &mut Value, networks: &NamesById) -> Result<()> {
        let task = &mut spec["TaskTemplate"];
        if self.force {
            let forced = task["ForceUpdate"].as_u64().unwrap_or(0);
            task["ForceUpdate"] = (forced + 1).into();
        }
        put(&mut task["ContainerSpec"], "Image", self.image.as_deref());
        put(&mut task["ContainerSpec"], "Args", self.args.as_ref().map(|words| json!(words.0)));
        change_map(&mut task["ContainerSpec"]["Labels"], &self.container_label_add, &self.container_label_rm);
        change_env(&mut task["ContainerSpec"]["Env"], &self.env_add, &self.env_rm);
        change_list(&mut task["Placement"]["Constraints"], &self.constraint_add, &self.constraint_rm);
        change_preferences(&mut task["Placement"]["Preferences"], &self.placement_pref_add, &self.placement_pref_rm)?;
        change_networks(&mut task["Networks"], &self.network_add, &self.network_rm, networks)?;
        change_map(&mut spec["Labels"], &self.label_add, &self.label_rm);
        change_ports(&mut spec["EndpointSpec"]["Ports"], &self.publish_add, &self.publish_rm);
        Ok(())
    }
}

fn change_map(value: &mut Value, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let mut map: Map<String, Value> = value.as_object().cloned().unwrap_or_default();
    map.retain(|key, _| !remove.contains(key));
    map.extend(pairs(add).into_iter().map(|(key, value)| (key, value.into())));
    *value = Value::Object(map);
}

fn change_env(value: &mut Value, add: &[String], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let added = environment(add);
    let items = items(value);
    items.retain(|item| {
        let name = key(item.as_str().unwrap_or_default());
        !remove.contains(&name) && !added.iter().any(|entry| key(entry) == name)
    });
    items.extend(added.into_iter().map(Value::from));
}

fn change_preferences(value: &mut Value, add: &[String], remove: &[String]) -> Result<()> {
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let (add, remove) = (preferences(add)?, preferences(remove)?);
    let items = items(value);
    items.retain(|item| !remove.contains(item));
    items.extend(add);
    Ok(())
}

/// Adds and removes networks. The spec contains the ids of networks, and users give names or ids.
/// `names` has the names by their ids.
fn change_networks(value: &mut Value, add: &[String], remove: &[String], names: &NamesById) -> Result<()> {
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let items = items(value);
    for removed in remove {
        let before = items.len();
        items.retain(|item| {
            let target = text(item, "/Target");
            target != removed && names.get(target) != Some(removed)
        });
        ensure!(items.len() < before, "the service is not connected to network {removed}");
    }
    for text in add {
        items.push(network(text)?);
    }
    Ok(())
}

fn change_ports(value: &mut Value, add: &[Publish], remove: &[String]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let items = items(value);
    items.retain(|item| {
        let target = item["TargetPort"].as_u64().unwrap_or_default();
        let protocol = text(item, "/Protocol");
        !remove.iter().any(|removed| *removed == target.to_string() || *removed == format!("{target}/{protocol}"))
    });
    for new in add.iter().map(Publish::json) {
        if !items.contains(&new) {
            items.push(new);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _, Parser, error::ErrorKind};

    use super::*;
    use crate::cli::flags::with_docker_booleans;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        update: Update,
    }

    fn command() -> Command {
        with_docker_booleans(Line::command())
    }

    #[test]
    fn a_rollback_excludes_every_flag_that_changes_the_spec() {
        let command = command();
        let rollback = command.get_arguments().find(|arg| arg.get_id() == "rollback").expect("the flag --rollback");
        let excluded = command.get_arg_conflicts_with(rollback);
        for arg in command.get_arguments() {
            let is_allowed = ["rollback", "detach", "quiet", "service"].contains(&arg.get_id().as_str());
            let is_excluded = excluded.iter().any(|other| other.get_id() == arg.get_id());
            assert_ne!(is_excluded, is_allowed, "--rollback and {}", arg.get_id());
        }
    }

    #[test]
    fn refuses_a_rollback_with_a_change() {
        let check = |line: &str, expected: Option<ErrorKind>| {
            let outcome = command().try_get_matches_from(["update"].into_iter().chain(line.split(' ')));
            assert_eq!(outcome.err().map(|error| error.kind()), expected, "{line}");
        };
        check("--rollback web", None);
        check("--rollback --detach --quiet web", None);
        check("--force --image i --replicas 2 web", None);
        for change in [
            "--force",
            "--image i",
            "--replicas 2",
            "--env-add A=1",
            "--publish-rm 80",
            "--update-delay 5s",
            "--dns-add 192.0.2.1",
            "--secret-add key",
        ] {
            check(&format!("--rollback {change} web"), Some(ErrorKind::ArgumentConflict));
        }
    }

    #[test]
    fn adds_and_removes_single_items() {
        let mut env = json!(["A=1", "B=2"]);
        change_env(&mut env, &["A=3".into()], &["B".into()]);
        assert_eq!(env, json!(["A=3"]));
        let mut ports = json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080 }]);
        let add = ["8081:80", "8082:80"].map(|port| publish::parse(port).expect("a port"));
        change_ports(&mut ports, &add, &["80".into()]);
        let published: Vec<_> =
            items(&mut ports).iter().map(|port| port["PublishedPort"].as_u64().expect("a number")).collect();
        assert_eq!(published, [8081, 8082]);
        change_ports(&mut ports, &add[..1], &[]);
        assert_eq!(items(&mut ports).len(), 2, "a port that exists is not added again");
    }
}
