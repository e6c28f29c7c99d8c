//! The credentials that `docker login` has stored, for registries whose images services use.
//!
//! They are in the settings of the docker client, or in a credential helper that the settings name
//! (<https://docs.docker.com/reference/cli/docker/login/>). This module reads them as the docker
//! client does. It must not print them.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::image_name::DOCKER_HUB;

/// How the settings call Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// How a helper calls the user of an identity token.
const TOKEN_USER: &str = "<token>";
/// What a helper answers if it has no credentials of a registry.
const NOT_FOUND: &str = "credentials not found";

/// The settings of the docker client, as far as they are about credentials.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    store: String,
    /// The helper of each registry.
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    /// Name and password in base64, with a colon between them.
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

/// The answer of a helper.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// The header `X-Registry-Auth` for a registry. `None`: no credentials are stored.
///
/// # Errors
/// If the settings cannot be read, or a helper fails.
pub(super) fn header(registry: &str) -> Result<Option<String>> {
    let file = settings_file(env::var_os("DOCKER_CONFIG"), env::var_os("HOME"));
    let Some(file) = file else { return Ok(None) };
    let settings = settings(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let key = if registry == DOCKER_HUB { DOCKER_HUB_KEY } else { registry };
    let entry = match settings.helper(key) {
        Some(helper) => ask(&format!("docker-credential-{helper}"), key)?,
        None => settings.stored(key)?,
    };
    Ok(entry.map(|entry| encode(&entry, key)))
}

fn settings_file(docker_config: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let dir = docker_config.filter(|dir| !dir.is_empty()).map(PathBuf::from);
    Some(dir.or_else(|| Some(Path::new(&home?).join(".docker")))?.join("config.json"))
}

fn settings(file: &Path) -> Result<Settings> {
    match fs::read(file) {
        Ok(bytes) => read(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Settings::default()),
        Err(error) => Err(error.into()),
    }
}

/// Reads JSON in which `null` means absence. An error shows no value: it may be a secret.
fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    // An error of the syntax shows a position, and no value.
    let mut value: Value = serde_json::from_slice(bytes)?;
    remove_nulls(&mut value);
    serde_json::from_value(value).map_err(|_| anyhow!("a field is missing or has another type than docker writes"))
}

fn remove_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(remove_nulls);
    }
}

impl Settings {
    /// The helper that has the credentials of a registry.
    fn helper(&self, key: &str) -> Option<&str> {
        let helper = self.helpers.get(key).unwrap_or(&self.store);
        Some(helper.as_str()).filter(|helper| !helper.is_empty())
    }

    /// The credentials in the settings themselves.
    fn stored(&self, key: &str) -> Result<Option<Entry>> {
        let of_host = || self.auths.iter().find(|(name, _)| host(name) == key).map(|(_, entry)| entry);
        let Some(entry) = self.auths.get(key).or_else(of_host) else { return Ok(None) };
        let (mut username, mut password) = (entry.username.clone(), entry.password.clone());
        if !entry.auth.is_empty() {
            let decoded = STANDARD.decode(&entry.auth).ok().and_then(|text| String::from_utf8(text).ok());
            let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
            let Some((name, secret)) = pair else { bail!("the settings of docker have invalid credentials of {key}") };
            (username, password) = (name.to_owned(), secret.trim_matches('\0').to_owned());
        }
        let entry = Entry {
            auth: String::new(),
            username,
            password,
            identity_token: entry.identity_token.clone(),
            registry_token: entry.registry_token.clone(),
        };
        Ok(Some(entry).filter(|entry| !entry.is_anonymous()))
    }
}

impl Entry {
    fn is_anonymous(&self) -> bool {
        [&self.username, &self.password, &self.identity_token, &self.registry_token].iter().all(|text| text.is_empty())
    }
}

/// The host in a key such as `https://registry.test/v1/`.
fn host(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    rest.split('/').next().unwrap_or_default()
}

/// Asks a credential helper (<https://github.com/docker/docker-credential-helpers#usage>).
fn ask(program: &str, key: &str) -> Result<Option<Entry>> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .with_context(|| format!("cannot run {program}, which the settings of docker name"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that has ended already says why.
        let _ = stdin.write_all(key.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot read from {program}"))?;
    if !output.status.success() {
        let answer = String::from_utf8_lossy(&output.stdout);
        if answer.contains(NOT_FOUND) {
            return Ok(None);
        }
        bail!("{program} failed for {key}: {}", answer.trim());
    }
    let answer: HelperAnswer =
        read(&output.stdout).with_context(|| format!("{program} has given an invalid answer"))?;
    Ok(Some(if answer.username == TOKEN_USER {
        Entry { identity_token: answer.secret, ..Entry::default() }
    } else {
        Entry { username: answer.username, password: answer.secret, ..Entry::default() }
    }))
}

fn encode(entry: &Entry, key: &str) -> String {
    let fields = [
        ("username", entry.username.as_str()),
        ("password", &entry.password),
        ("serveraddress", key),
        ("identitytoken", &entry.identity_token),
        ("registrytoken", &entry.registry_token),
    ];
    let fields = fields.into_iter().filter(|(_, text)| !text.is_empty());
    let json: Map<String, Value> = fields.map(|(name, text)| (name.to_owned(), text.into())).collect();
    URL_SAFE.encode(Value::Object(json).to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn parse(json: &Value) -> Settings {
        serde_json::from_value(json.clone()).expect("settings")
    }

    fn sent(entry: Option<Entry>, key: &str) -> Option<Value> {
        entry.map(|entry| serde_json::from_slice(&URL_SAFE.decode(encode(&entry, key)).expect("base64")).expect("JSON"))
    }

    #[test]
    fn the_settings_have_credentials_by_registry() {
        let settings = parse(&json!({
            "HttpHeaders": {"User-Agent": "x"},
            "auths": {
                "127.0.0.1:5000": {"auth": STANDARD.encode("ann:se:cret\0")},
                "https://registry.test/v1/": {"auth": STANDARD.encode("bob:x"), "identitytoken": "t"},
                DOCKER_HUB_KEY: {"username": "hub", "password": "p"},
                "empty.test": {},
                "broken.test": {"auth": "no base64"},
            },
        }));
        for (key, expected) in [
            ("127.0.0.1:5000", json!({"username": "ann", "password": "se:cret", "serveraddress": "127.0.0.1:5000"})),
            (
                "registry.test",
                json!({"username": "bob", "password": "x", "identitytoken": "t", "serveraddress": "registry.test"}),
            ),
            (DOCKER_HUB_KEY, json!({"username": "hub", "password": "p", "serveraddress": DOCKER_HUB_KEY})),
            ("empty.test", Value::Null),
            ("other.test", Value::Null),
        ] {
            let found = settings.stored(key).expect("valid settings");
            assert_eq!(sent(found, key).unwrap_or_default(), expected, "{key}");
        }
        let error = settings.stored("broken.test").map(|_| ()).expect_err("invalid").to_string();
        assert!(error.contains("broken.test") && !error.contains("no base64"), "{error}");
    }

    #[test]
    fn null_means_absence_and_no_error_shows_a_value() {
        let settings: Settings = read(br#"{"auths": {"r": {"auth": null}}, "credHelpers": null}"#).expect("settings");
        assert!(settings.stored("r").expect("valid settings").is_none());
        for json in [r#"{"auths": {"r": "s3cret"}}"#, r#"{"auths": {"r": {"password": 53}}}"#, r#"["s3cret"]"#] {
            let error = read::<Settings>(json.as_bytes()).map(|_| ()).expect_err(json);
            assert!(!format!("{error:#}").contains("s3cret") && !format!("{error:#}").contains("53"), "{error:#}");
        }
    }

    #[test]
    fn a_registry_has_its_own_helper_or_that_of_all() {
        let settings = parse(&json!({"credsStore": "all", "credHelpers": {"one.test": "one", "none.test": ""}}));
        assert_eq!(settings.helper("one.test"), Some("one"));
        assert_eq!(settings.helper("two.test"), Some("all"));
        assert_eq!(settings.helper("none.test"), None);
        assert_eq!(parse(&json!({"auths": {}})).helper("one.test"), None);
    }

    #[test]
    fn a_helper_is_asked_on_its_standard_input() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = dir.path().join("docker-credential-test").display().to_string();
        let ask_script = |script: &str| {
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
            ask(&program, "registry.test")
        };
        let answer = r#"[ "$1" = get ] && printf '{"ServerURL":"%s","Username":"ann","Secret":"s"}' "$(cat)""#;
        let found = ask_script(answer).expect("an answer");
        let expected = json!({"username": "ann", "password": "s", "serveraddress": "registry.test"});
        assert_eq!(sent(found, "registry.test"), Some(expected));
        let token = r#"printf '{"ServerURL":"x","Username":"<token>","Secret":"s"}'"#;
        let expected = json!({"identitytoken": "s", "serveraddress": "registry.test"});
        assert_eq!(sent(ask_script(token).expect("an answer"), "registry.test"), Some(expected));
        assert!(ask_script("echo credentials not found in native keychain; exit 1").expect("an answer").is_none());
        let error = ask_script("echo the keyring is locked; exit 1").map(|_| ()).expect_err("an error").to_string();
        assert!(error.contains("the keyring is locked"), "{error}");
        let error = format!("{:#}", ask("/no/such/helper", "registry.test").map(|_| ()).expect_err("an error"));
        assert!(error.contains("/no/such/helper"), "{error}");
    }

    #[test]
    fn the_settings_are_in_the_folder_of_docker() {
        let file =
            |config: Option<&str>, home: Option<&str>| settings_file(config.map(Into::into), home.map(Into::into));
        assert_eq!(file(None, Some("/root")), Some("/root/.docker/config.json".into()));
        assert_eq!(file(Some("/etc/d"), Some("/root")), Some("/etc/d/config.json".into()));
        assert_eq!(file(Some(""), None), None);
        assert!(settings(Path::new("/no/such/file")).expect("no settings").auths.is_empty());
    }
}
