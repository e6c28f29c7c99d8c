//! The flags of `service create` and `service update` for secrets and configs, and the fields of a
//! spec that these flags set.

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::{
    super::{
        client::{Client, list, text},
        dependency::Kind,
    },
    lists::items,
};

/// The permissions of a file for which none are given, as in the docker client.
const MODE: u32 = 0o444;

/// The flags of `service create`.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// Secret that the tasks have as a file in /run/secrets: NAME or
    /// source=NAME,target=FILE,uid=0,gid=0,mode=0444; may be repeated
    #[arg(long, value_name = "SECRET", value_parser = file)]
    secret: Vec<File>,
    /// Config that the tasks have as a file: NAME or
    /// source=NAME,target=/FILE,uid=0,gid=0,mode=0444; may be repeated
    #[arg(long, value_name = "CONFIG", value_parser = file)]
    config: Vec<File>,
}

/// The flags of `service update`.
#[derive(Debug, Args)]
pub(super) struct FileChanges {
    /// Secret to add: NAME or source=NAME,target=FILE,uid=0,gid=0,mode=0444; may be repeated
    #[arg(long, value_name = "SECRET", value_parser = file)]
    secret_add: Vec<File>,
    /// Name of a secret to remove; may be repeated
    #[arg(long, value_name = "SECRET")]
    secret_rm: Vec<String>,
    /// Config to add: NAME or source=NAME,target=/FILE,uid=0,gid=0,mode=0444; may be repeated
    #[arg(long, value_name = "CONFIG", value_parser = file)]
    config_add: Vec<File>,
    /// Name of a config to remove; may be repeated
    #[arg(long, value_name = "CONFIG")]
    config_rm: Vec<String>,
}

/// A secret or a config, and the file that tasks have of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct File {
    source: String,
    target: String,
    uid: String,
    gid: String,
    mode: u32,
}

impl Kind {
    /// The field of a container with the references, and those of a reference with id and name.
    fn fields(self) -> [&'static str; 3] {
        match self {
            Self::Secret => ["Secrets", "SecretID", "SecretName"],
            Self::Config => ["Configs", "ConfigID", "ConfigName"],
        }
    }
}

impl Files {
    /// Adds the files to a container.
    ///
    /// # Errors
    ///
    /// If there is no such secret or config.
    pub(super) async fn apply(&self, client: &Client, container: &mut Value) -> Result<()> {
        change(client, Kind::Secret, container, &self.secret, &[]).await?;
        change(client, Kind::Config, container, &self.config, &[]).await
    }
}

impl FileChanges {
    /// Adds files to a container, and removes files from it.
    ///
    /// # Errors
    ///
    /// If there is no such secret or config, or the container does not have one that is removed.
    pub(super) async fn apply(&self, client: &Client, container: &mut Value) -> Result<()> {
        change(client, Kind::Secret, container, &self.secret_add, &self.secret_rm).await?;
        change(client, Kind::Config, container, &self.config_add, &self.config_rm).await
    }
}

async fn change(client: &Client, kind: Kind, container: &mut Value, add: &[File], remove: &[String]) -> Result<()> {
    let known = if add.is_empty() { Value::Null } else { client.get(&format!("/{kind}s")).await? };
    change_files(kind, container, add, remove, list(&known, ""))
}

/// `known` are the secrets or configs of the cluster.
fn change_files(kind: Kind, container: &mut Value, add: &[File], remove: &[String], known: &[Value]) -> Result<()> {
    let [field, id, name] = kind.fields();
    if add.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let items = items(&mut container[field]);
    for removed in remove {
        let before = items.len();
        items.retain(|item| text(item, &format!("/{name}")) != removed && text(item, &format!("/{id}")) != removed);
        ensure!(items.len() < before, "the service has no {kind} {removed}");
    }
    for file in add {
        let is_named = |found: &&Value| text(found, "/Spec/Name") == file.source;
        let has_id = |found: &&Value| text(found, "/ID") == file.source;
        let Some(found) = known.iter().find(is_named).or_else(|| known.iter().find(has_id)) else {
            bail!("{kind} not found: {}", file.source);
        };
        items.push(json!({
            "File": { "Name": file.target, "UID": file.uid, "GID": file.gid, "Mode": file.mode },
            id: text(found, "/ID"),
            name: text(found, "/Spec/Name"),
        }));
    }
    Ok(())
}

/// Reads `NAME`, or `source=NAME,target=FILE,uid=UID,gid=GID,mode=MODE`.
fn file(text: &str) -> Result<File> {
    let of = |source: &str| File {
        source: source.to_owned(),
        target: source.to_owned(),
        uid: "0".to_owned(),
        gid: "0".to_owned(),
        mode: MODE,
    };
    if !text.contains('=') {
        return Ok(of(text));
    }
    let (mut file, mut target) = (of(""), None);
    for field in text.split(',') {
        let Some((key, value)) = field.split_once('=') else {
            bail!("{field:?} in {text:?} is no field: give KEY=VALUE");
        };
        match key.to_ascii_lowercase().as_str() {
            "source" | "src" => value.clone_into(&mut file.source),
            "target" => target = Some(value.to_owned()),
            "uid" => value.clone_into(&mut file.uid),
            "gid" => value.clone_into(&mut file.gid),
            "mode" => file.mode = mode(value)?,
            _ => bail!("unknown field {key:?} in {text:?}: the fields are source, target, uid, gid and mode"),
        }
    }
    ensure!(!file.source.is_empty(), "{text:?} has no source: add source=NAME");
    file.target = target.unwrap_or_else(|| file.source.clone());
    Ok(file)
}

/// Reads permissions such as `0444`. As in the docker client, a number without a leading zero is
/// decimal.
fn mode(text: &str) -> Result<u32> {
    let parsed = match text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| !rest.is_empty())) {
        Some(octal) => u32::from_str_radix(octal, 8),
        None => text.parse(),
    };
    let Ok(mode) = parsed else { bail!("invalid mode {text:?}: give permissions such as 0444") };
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> File {
        file(text).expect(text)
    }

    #[test]
    fn a_file_has_the_name_of_its_source_unless_another_is_given() {
        let plain = parsed("key");
        assert_eq!((&*plain.source, &*plain.target, &*plain.uid, plain.mode), ("key", "key", "0", 0o444));
        assert_eq!(parsed("source=key"), plain);
        assert_eq!(parsed("src=key,target=key,uid=0,gid=0,mode=0444"), plain);
        let chosen = parsed("target=/etc/key,Source=key,uid=1000,gid=7,mode=0400");
        let expected =
            File { target: "/etc/key".to_owned(), uid: "1000".to_owned(), gid: "7".to_owned(), mode: 0o400, ..plain };
        assert_eq!(chosen, expected);
        for (bad, why) in [
            ("target=x", "has no source"),
            ("source=x,mode=rw", "invalid mode"),
            ("source=x,owner=y", "unknown field \"owner\""),
            ("source=x,y", "is no field"),
        ] {
            assert!(file(bad).is_err_and(|error| error.to_string().contains(why)), "{bad}");
        }
    }

    #[test]
    fn a_mode_is_octal_with_a_leading_zero() {
        for (text, value) in [("0440", 0o440), ("0o600", 0o600), ("292", 0o444), ("0", 0)] {
            assert_eq!(mode(text).expect(text), value);
        }
        assert!(mode("0999").is_err() && mode("").is_err());
    }

    #[test]
    fn references_have_the_ids_of_the_cluster() {
        let known = [json!({"ID": "1", "Spec": {"Name": "first"}}), json!({"ID": "2", "Spec": {"Name": "second"}})];
        let mut container = json!({});
        let add = ["first", "source=2,target=two"].map(parsed);
        change_files(Kind::Secret, &mut container, &add, &[], &known).expect("they exist");
        let file = |name: &str| json!({"Name": name, "UID": "0", "GID": "0", "Mode": 0o444});
        assert_eq!(
            container,
            json!({"Secrets": [
                {"File": file("first"), "SecretID": "1", "SecretName": "first"},
                {"File": file("two"), "SecretID": "2", "SecretName": "second"},
            ]})
        );
        let (add, remove) = ([parsed("source=second,target=first")], ["first".to_owned(), "2".to_owned()]);
        change_files(Kind::Secret, &mut container, &add, &remove, &known).expect("they exist");
        assert_eq!(container, json!({"Secrets": [{"File": file("first"), "SecretID": "2", "SecretName": "second"}]}));
        let mut check = |add: &[File], remove: &[String], text: &str| {
            let error = change_files(Kind::Config, &mut container, add, remove, &known).expect_err(text);
            assert_eq!(error.to_string(), text);
        };
        check(&[parsed("third")], &[], "config not found: third");
        check(&[], &["first".to_owned()], "the service has no config first");
    }
}
