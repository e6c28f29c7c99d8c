//! The flags of `service create`, and the spec that is built from them.

use std::fs;

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::{Value, json};

use super::{
    super::values::{environment, environment_of_file, pairs},
    common::{Common, network, preferences},
    converge::Wait,
    files::Files,
    image::ImageFlags,
    lookup::Lookup,
    publish::{self, Publish},
};

#[derive(Debug, Args)]
#[command(override_usage = "weft service create [OPTIONS] IMAGE [COMMAND] [ARG]...")]
pub(crate) struct Create {
    /// Name of the service; by default a random one
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Mode: replicated runs --replicas tasks, global runs one task on each node
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "replicated")]
    mode: Mode,
    /// Publish a port on each node: TARGET, PUBLISHED:TARGET/udp or
    /// published=PORT,target=PORT,protocol=udp; may be repeated
    #[arg(short, long, value_name = "PORT", value_parser = publish::parse)]
    publish: Vec<Publish>,
    /// Connect the tasks to a network: NAME or name=NAME,alias=ALIAS; the first is eth0; may be
    /// repeated
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Label of the service; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Label of its containers; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    container_label: Vec<String>,
    /// Environment variable of the tasks; KEY alone takes the value from this environment, or
    /// unsets the image's variable if this environment has none; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// File of environment variables, one on each line; --env takes precedence; may be repeated
    #[arg(long, value_name = "FILE")]
    env_file: Vec<String>,
    /// Condition for the nodes that tasks may run on, such as node.labels.storage==ssd; may be
    /// repeated
    #[arg(long, value_name = "EXPRESSION")]
    constraint: Vec<String>,
    /// How tasks are spread over nodes, such as spread=node.labels.zone; may be repeated
    #[arg(long, value_name = "PREFERENCE")]
    placement_pref: Vec<String>,
    #[command(flatten)]
    lookup: Lookup,
    #[command(flatten)]
    pub(super) files: Files,
    #[command(flatten)]
    pub(super) image: ImageFlags,
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pub(super) wait: Wait,
    // The image and its command are one list, so that all words after the image are part of the
    // command, even if they begin with `-`.
    /// Image of the tasks; the words after it replace the command of the image
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE")]
    image_and_args: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Replicated,
    Global,
}

fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "replicated" => Ok(Mode::Replicated),
        "global" => Ok(Mode::Global),
        "replicated-job" | "global-job" => Err("weft does not support jobs yet: give replicated or global".to_owned()),
        _ => Err("give replicated or global".to_owned()),
    }
}

impl Create {
    /// Builds the spec of the new service.
    ///
    /// # Errors
    ///
    /// If a flag has an invalid value, if flags contradict each other, or if a file cannot be read.
    pub(super) fn spec(&self) -> Result<Value> {
        let mut spec = json!({
            "Name": self.name.clone().unwrap_or_else(random_name),
            "Labels": pairs(&self.label),
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": self.image_and_args.first(),
                    "Labels": pairs(&self.container_label),
                    "Args": self.image_and_args.get(1..),
                    "Env": self.environment()?,
                },
                "Placement": {
                    "Constraints": self.constraint,
                    "Preferences": preferences(&self.placement_pref)?,
                },
                "Networks": self.network.iter().map(|n| network(n)).collect::<Result<Vec<_>>>()?,
            },
            "Mode": match self.mode {
                Mode::Replicated => json!({ "Replicated": { "Replicas": 1 } }),
                Mode::Global => json!({ "Global": {} }),
            },
            "EndpointSpec": {
                "Mode": "vip",
                "Ports": self.publish.iter().map(Publish::json).collect::<Vec<_>>(),
            },
        });
        self.lookup.apply(&mut spec["TaskTemplate"]["ContainerSpec"]);
        self.common.apply(&mut spec)?;
        Ok(spec)
    }

    fn environment(&self) -> Result<Vec<String>> {
        let mut entries = Vec::new();
        for file in &self.env_file {
            entries.extend(environment_of_file(
                &fs::read_to_string(file).with_context(|| format!("cannot read --env-file {file}"))?,
            ));
        }
        entries.extend_from_slice(&self.env);
        Ok(environment(&entries))
    }
}

/// A random name that is easy to remember, such as `calm_loom42`.
fn random_name() -> String {
    const FIRST: [&str; 8] = ["brisk", "calm", "deft", "eager", "fine", "keen", "plain", "swift"];
    const SECOND: [&str; 8] = ["bobbin", "heddle", "loom", "reed", "shuttle", "thread", "treadle", "warp"];
    let pick = |words: &[&'static str; 8]| words[usize::from(rand::random::<u8>()) % words.len()];
    format!("{}_{}{}", pick(&FIRST), pick(&SECOND), rand::random::<u16>() % 1000)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _, Parser};

    use super::*;
    use crate::cli::{client::text, flags::with_docker_booleans};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn parsed(line: &str) -> Create {
        let command = with_docker_booleans(Line::command());
        let matches = command.try_get_matches_from(["create"].into_iter().chain(line.split(' '))).expect("valid flags");
        Line::from_arg_matches(&matches).expect("valid values").create
    }

    fn created(line: &str) -> Value {
        parsed(line).spec().expect("a spec")
    }

    #[test]
    fn flags_become_fields_of_the_spec() {
        let spec = created("--name whoami --network app --replicas 3 -p 8080:80 weft/whoami");
        assert_eq!(text(&spec, "/Name"), "whoami");
        assert_eq!(spec.pointer("/Mode/Replicated/Replicas"), Some(&json!(3)));
        assert_eq!(spec["TaskTemplate"]["Networks"], json!([{ "Target": "app" }]));
        assert_eq!(
            spec["EndpointSpec"]["Ports"],
            json!([{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress" }])
        );
    }

    #[test]
    fn flags_about_names_become_fields_of_the_spec() {
        let line = "--dns 192.0.2.53 --dns 2001:db8::53 --dns-search corp.test --dns-option timeout:1 \
                    --host db:192.0.2.7 --host v6=[2001:db8::7] weft/whoami";
        let container = &created(line)["TaskTemplate"]["ContainerSpec"];
        assert_eq!(
            container["DNSConfig"],
            json!({
                "Nameservers": ["192.0.2.53", "2001:db8::53"], "Search": ["corp.test"], "Options": ["timeout:1"],
            })
        );
        assert_eq!(container["Hosts"], json!(["192.0.2.7 db", "2001:db8::7 v6"]));
    }

    #[test]
    fn the_image_is_never_the_value_of_a_boolean_flag() {
        for (flag, detached) in [("-d", true), ("--detach", true), ("--detach=true", true), ("-d=false", false)] {
            let create = parsed(&format!("{flag} weft/whoami"));
            assert_eq!(
                (create.wait.detach, create.image_and_args),
                (detached, vec!["weft/whoami".to_owned()]),
                "{flag}"
            );
        }
        for (flag, field) in [("--read-only", "ReadOnly"), ("--init", "Init")] {
            let container = |line: &str| created(line)["TaskTemplate"]["ContainerSpec"].clone();
            assert_eq!(container(&format!("{flag} weft/whoami"))[field], true, "{flag}");
            assert_eq!(container(&format!("{flag} weft/whoami"))["Image"], "weft/whoami", "{flag}");
            assert_eq!(container(&format!("{flag}=false weft/whoami"))[field], false, "{flag}");
            assert_eq!(container("weft/whoami")[field], Value::Null, "{flag}");
        }
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let spec = created("--name c host sh -c true --name d -p 1");
        assert_eq!(text(&spec, "/Name"), "c");
        assert_eq!(
            spec["TaskTemplate"]["ContainerSpec"]["Args"],
            json!(["sh", "-c", "true", "--name", "d", "-p", "1"])
        );
        let spec = created("--name c weft/whoami --name d");
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Args"], json!(["--name", "d"]));
    }

    #[test]
    fn environment_variables_come_from_files_and_flags() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), "# note\nA=1\nB=2\n").expect("the file is writable");
        let spec = created(&format!("--env B=3 --env-file {} weft/whoami", file.path().display()));
        assert_eq!(spec["TaskTemplate"]["ContainerSpec"]["Env"], json!(["A=1", "B=2", "B=3"]));
        let error = parsed("--env-file /no/such/file weft/whoami").spec().expect_err("there is no such file");
        assert!(format!("{error:#}").contains("/no/such/file"));
    }

    #[test]
    fn refuses_replicas_for_a_global_service() {
        assert!(parsed("--mode global --replicas 2 x").spec().is_err());
    }
}
