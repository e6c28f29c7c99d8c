//! Private images: Debian's docker-registry behind a password, on the loopback address of each
//! node, and services whose tasks are pulled from it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use weft_lab::{Lab, Runtime, contract, docker, eventually, process};

use crate::{
    fixtures::inspect,
    harness::{Group, Shape, tests},
};

/// Where the registry listens in each node's namespace. Engines use registries on loopback
/// addresses without TLS.
const REGISTRY: &str = "127.0.0.1:5000";
const USER: &str = "ann";
/// Its JSON has characters in which the two alphabets of base64 differ.
const PASSWORD: &str = "a?>?>~~ open sesame";
/// The line of the password, in the form of htpasswd(1) with bcrypt.
const HTPASSWD: &str = r"ann:$2y$04$GKa8pyNjLW6x/7M4RhCVi.5ESG1q7GUB14w5icvmOtoutABzKW4Rq";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const TASK_TIMEOUT: Duration = Duration::from_secs(60);
/// Creates a service whose tasks end soon after they are stopped.
const CREATE: [&str; 5] = ["service", "create", "--detach", "--stop-grace-period", "1s"];
const SLEEP: [&str; 2] = ["sleep", "infinity"];

pub(crate) fn group() -> Group {
    Group {
        name: "docker_registry",
        shape: Shape { runtime: Runtime::Docker, ..Shape::default() },
        setup,
        tests: tests![
            docker_logs_in_through_weft,
            a_service_without_the_password_says_why,
            the_nodes_that_pull_get_the_credentials,
            an_update_keeps_the_digest_when_the_tag_moves,
            credentials_stay_with_a_service_until_an_update_changes_them,
            docker_sends_credentials_and_pins_images,
            old_clients_get_pinned_images,
            an_image_for_another_platform_has_no_node,
        ],
    }
}

/// The name of a private image.
fn image(name: &str) -> String {
    format!("{REGISTRY}/team/{name}:1")
}

/// The registry's files, and the settings of the docker client. They are removed with the lab.
fn files(name: &str) -> PathBuf {
    contract::data_dir("registry").join(name)
}

fn setup(lab: &Lab) -> Result<()> {
    lab.create_tools_images()?;
    for dir in ["storage", "docker"] {
        fs::create_dir_all(files(dir))?;
    }
    fs::write(files("htpasswd"), format!("{HTPASSWD}\n"))?;
    let config = json!({
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": files("storage")}},
        "http": {"addr": REGISTRY},
        "auth": {"htpasswd": {"realm": "lab", "path": files("htpasswd")}},
    });
    // JSON is YAML.
    fs::write(files("config.yml"), config.to_string())?;
    for node in lab.nodes() {
        let log = fs::File::create(files(&format!("{node}.log")))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(files("config.yml")).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = lab.within(&node, || command.spawn())?;
        let child = child.context("cannot run docker-registry: install it with `cargo xtask setup --test`")?;
        let addr: SocketAddr = REGISTRY.parse()?;
        eventually(START_TIMEOUT, &format!("the registry of {node} answers"), || {
            if !process::is_running(child.id()) {
                return Err(fs::read_to_string(files(&format!("{node}.log"))).unwrap_or_default());
            }
            let connected = lab.within(&node, || TcpStream::connect(addr)).map_err(|error| format!("{error:#}"))?;
            connected.map(drop).map_err(|error| error.to_string())
        });
    }
    login(lab, PASSWORD)?;
    push(lab, "web", "first")
}

fn login(lab: &Lab, password: &str) -> Result<()> {
    let output = as_user(lab, &["login", "--username", USER, "--password-stdin", REGISTRY], password)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs the docker client against the weft of n1, with the settings that `docker login` has
/// written.
fn as_user(lab: &Lab, arguments: &[&str], input: &str) -> Result<Output> {
    let settings = files("docker").display().to_string();
    lab.docker_with_input("n1", &[&["--config", &settings][..], arguments].concat(), input)
}

fn as_user_ok(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let output = as_user(lab, arguments, "")?;
    ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same for weft's own client. Returns what it has printed to standard error.
fn weft_as_user(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let settings = format!("DOCKER_CONFIG={}", files("docker").display());
    let weft = lab.options().weft.display().to_string();
    let host = docker::docker_host(&contract::socket("n1"));
    let output = lab.exec("n1", &[&["env", &settings, &weft, "-H", &host][..], arguments].concat())?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "weft {arguments:?}: {errors}");
    Ok(errors)
}

/// Makes an image whose content depends on `content`, and pushes it under the name. The engine
/// does not keep it.
fn push(lab: &Lab, name: &str, content: &str) -> Result<()> {
    let engine = lab.engine("n1")?;
    let settings = files("docker").display().to_string();
    let image = image(name);
    let made = docker::docker(engine, &["create", docker::TOOLS_IMAGE, "true"])?;
    let change = format!("LABEL content={content}");
    docker::docker(engine, &["commit", "--change", &change, made.trim(), &image])?;
    docker::docker(engine, &["rm", made.trim()])?;
    docker::docker(engine, &["--config", &settings, "push", &image])?;
    docker::docker(engine, &["rmi", "--no-prune", &image]).map(drop)
}

fn spec_image(service: &str) -> Result<String> {
    let shown = inspect("n1", service)?;
    let image = shown["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str();
    image.map(str::to_owned).with_context(|| format!("{shown} has no image"))
}

/// The label of the image that the container of the service's first task runs.
fn content(lab: &Lab, service: &str) -> Result<String> {
    let tasks = lab.wait_running("n1", service, 1)?;
    let task = tasks.first().context("a task")?;
    let format = ["inspect", "--format", "{{.Config.Labels.content}}", &task.container];
    Ok(docker::docker(lab.engine(&task.node)?, &format)?.trim().to_owned())
}

/// Waits until a task of the service has an error, and returns the error.
fn task_error(lab: &Lab, service: &str, contains: &str) -> String {
    eventually(TASK_TIMEOUT, &format!("a task of {service} has an error with {contains:?}"), || {
        let tasks = lab.tasks("n1", service).map_err(|error| format!("{error:#}"))?;
        tasks
            .iter()
            .find(|task| task.error.contains(contains))
            .map(|task| task.error.clone())
            .ok_or(format!("{tasks:?}"))
    })
}

/// Sends a service to the API of n1, with a header X-Registry-Auth or without one.
fn post(path: &str, auth: Option<&str>, body: &Value) -> Result<Value> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail-with-body", "--unix-socket"]).arg(contract::socket("n1"));
    if let Some(auth) = auth {
        command.args(["--header", &format!("X-Registry-Auth: {auth}")]);
    }
    let output = command.args(["--json", &body.to_string(), &format!("http://weft{path}")]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "POST {path}: {text} {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_str(&text)?)
}

/// Updates a service by the API: another image, and this query and header.
fn update(service: &str, image: &str, query: &str, auth: Option<&str>) -> Result<Value> {
    let shown = inspect("n1", service)?;
    let mut spec = shown["Spec"].clone();
    spec["TaskTemplate"]["ContainerSpec"]["Image"] = image.into();
    post(&format!("/services/{service}/update?version={}{query}", shown["Version"]["Index"]), auth, &spec)
}

fn docker_logs_in_through_weft(lab: &Lab) -> Result<()> {
    let wrong = as_user(lab, &["login", "--username", USER, "--password-stdin", REGISTRY], "wrong")?;
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(!wrong.status.success() && error.contains("401"), "{error}");
    login(lab, PASSWORD)
}

fn a_service_without_the_password_says_why(lab: &Lab) -> Result<()> {
    let image = image("web");
    let create = [&CREATE[..], &["--name", "open", &image], &SLEEP].concat();
    let output = lab.weft("n1", &create)?;
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && warning.contains("no registry has given a digest"), "{output:?}");
    let error = task_error(lab, "open", "cannot get image");
    ensure!(error.contains(&image) && error.contains("no basic auth credentials"), "{error}");
    lab.weft_ok("n1", &["service", "rm", "open"]).map(drop)
}

fn the_nodes_that_pull_get_the_credentials(lab: &Lab) -> Result<()> {
    let image = image("web");
    let create = [&CREATE[..], &["--with-registry-auth", "--name", "web", "--mode", "global", &image], &SLEEP].concat();
    let warnings = weft_as_user(lab, &create)?;
    ensure!(warnings.is_empty(), "{warnings}");
    let tasks = lab.wait_running("n1", "web", 3)?;
    for node in lab.nodes() {
        ensure!(tasks.iter().any(|task| task.node == node), "no task is on {node}: {tasks:?}");
    }
    let pinned = spec_image("web")?;
    ensure!(pinned.starts_with(&format!("{image}@sha256:")), "{pinned}");
    for task in &tasks {
        let format = ["inspect", "--format", "{{.Config.Image}}", &task.container];
        let used = docker::docker(lab.engine(&task.node)?, &format)?;
        ensure!(used.trim() == pinned, "{used} instead of {pinned}");
    }
    let shown = inspect("n1", "web")?;
    let platforms = &shown["Spec"]["TaskTemplate"]["Placement"]["Platforms"];
    ensure!(*platforms == json!([{"Architecture": "amd64", "OS": "linux"}]), "{platforms}");
    for command in [&["service", "ls"][..], &["service", "ps", "web"]] {
        let table = lab.weft_ok("n1", command)?;
        ensure!(table.contains(&image) && !table.contains("sha256"), "{table}");
    }
    ensure!(lab.weft_ok("n1", &["service", "ps", "--no-trunc", "web"])?.contains(&pinned), "the digest is not shown");
    // No node keeps the password once its tasks have their image, and nobody is shown it.
    let secret = [PASSWORD.as_bytes()];
    for node in lab.nodes() {
        eventually(TASK_TIMEOUT, &format!("{node} has no password on its disk"), || {
            let found = find_in(&contract::data_dir(&node), &secret).map_err(|error| format!("{error:#}"))?;
            if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    for node in lab.nodes() {
        let log = fs::read_to_string(contract::log(&node))?;
        ensure!(!log.contains(PASSWORD), "the log of {node} shows the password:\n{log}");
    }
    let shown = lab.weft_ok("n1", &["service", "inspect", "web"])?;
    ensure!(!shown.contains(USER) && !shown.contains(PASSWORD), "{shown}");
    Ok(())
}

/// The files below a directory that contain one of these texts.
fn find_in(dir: &Path, texts: &[&[u8]]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(find_in(&path, texts)?);
            continue;
        }
        // A file may be replaced meanwhile.
        let Ok(bytes) = fs::read(&path) else { continue };
        if texts.iter().any(|text| bytes.windows(text.len()).any(|window| window == *text)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn an_update_keeps_the_digest_when_the_tag_moves(lab: &Lab) -> Result<()> {
    push(lab, "moving", "first")?;
    let image = image("moving");
    let create = [&CREATE[..], &["--with-registry-auth", "--name", "moving", &image], &SLEEP].concat();
    weft_as_user(lab, &create)?;
    ensure!(content(lab, "moving")? == "first");
    let pinned = spec_image("moving")?;
    push(lab, "moving", "second")?;
    let before = lab.wait_running("n1", "moving", 1)?;
    weft_as_user(lab, &["service", "update", "--force", "--update-monitor", "1s", "moving"])?;
    let after = lab.wait_running("n1", "moving", 1)?;
    ensure!(before[0].id != after[0].id, "the task is not replaced");
    ensure!((spec_image("moving")?, content(lab, "moving")?) == (pinned.clone(), "first".to_owned()));
    // Only a new image is asked for.
    let change = ["service", "update", "--with-registry-auth", "--update-monitor", "1s", "--image", &image, "moving"];
    weft_as_user(lab, &change)?;
    ensure!(content(lab, "moving")? == "second" && spec_image("moving")? != pinned);
    let by_name = ["service", "update", "--no-resolve-image", "--update-monitor", "1s", "--image", &image, "moving"];
    weft_as_user(lab, &by_name)?;
    ensure!(spec_image("moving")? == image);
    lab.weft_ok("n1", &["service", "rm", "moving"]).map(drop)
}

fn credentials_stay_with_a_service_until_an_update_changes_them(lab: &Lab) -> Result<()> {
    for name in ["kept", "none", "previous"] {
        push(lab, name, name)?;
    }
    let first = image("web");
    let create = [&CREATE[..], &["--with-registry-auth", "--name", "kept", &first], &SLEEP].concat();
    weft_as_user(lab, &create)?;
    lab.wait_running("n1", "kept", 1)?;
    let runs = |name: &str| {
        eventually(TASK_TIMEOUT, &format!("kept runs {name}"), || {
            let found = content(lab, "kept").map_err(|error| format!("{error:#}"))?;
            if found == name { Ok(()) } else { Err(found) }
        });
    };
    // The image is pulled with the credentials that the service has.
    update("kept", &image("kept"), "&registryAuthFrom=spec", None)?;
    runs("kept");
    // {} in base64
    update("kept", &image("none"), "", Some("e30="))?;
    let error = task_error(lab, "kept", "cannot get image");
    ensure!(error.contains("no basic auth credentials"), "{error}");
    update("kept", &image("previous"), "&registryAuthFrom=previous-spec", None)?;
    runs("previous");
    let answer = update("kept", &image("previous"), "", Some("no base64!"))?;
    ensure!(answer["Warnings"][0].as_str().is_some_and(|text| text.contains("X-Registry-Auth")), "{answer}");
    lab.weft_ok("n1", &["service", "rm", "kept"]).map(drop)
}

fn docker_sends_credentials_and_pins_images(lab: &Lab) -> Result<()> {
    push(lab, "docker", "docker")?;
    let image = image("docker");
    let service = ["--name", "by-docker", "--replicas", "3", "--with-registry-auth", &image];
    as_user_ok(lab, &[&CREATE[..], &service, &SLEEP].concat())?;
    lab.wait_running("n1", "by-docker", 3)?;
    let pinned = spec_image("by-docker")?;
    ensure!(pinned.starts_with(&format!("{image}@sha256:")), "{pinned}");
    let shown = inspect("n1", "by-docker")?;
    ensure!(shown["Spec"]["TaskTemplate"]["Placement"]["Platforms"][0]["OS"] == "linux", "{shown}");
    push(lab, "docker-2", "other")?;
    let image = self::image("docker-2");
    as_user_ok(lab, &["service", "update", "--detach", "--with-registry-auth", "--image", &image, "by-docker"])?;
    eventually(TASK_TIMEOUT, "all tasks have the new image", || {
        let found = lab.wait_running("n1", "by-docker", 3).and_then(|_| content_of_all(lab, "by-docker"));
        let found = found.map_err(|error| format!("{error:#}"))?;
        if found.iter().all(|content| content == "other") { Ok(()) } else { Err(format!("{found:?}")) }
    });
    as_user_ok(lab, &["service", "update", "--detach", "--rollback", "by-docker"])?;
    ensure!(spec_image("by-docker")? == pinned);
    // Without --with-registry-auth the client cannot ask for the digest, and says so.
    let open = as_user(lab, &["service", "create", "--detach", "--name", "open", &image, "true"], "")?;
    let warning = String::from_utf8_lossy(&open.stderr).into_owned();
    ensure!(open.status.success() && warning.contains("could not be accessed on a registry"), "{open:?}");
    lab.weft_ok("n1", &["service", "rm", "open", "by-docker"]).map(drop)
}

fn content_of_all(lab: &Lab, service: &str) -> Result<Vec<String>> {
    let tasks = lab.wait_running("n1", service, 3)?;
    let content = |task: &weft_lab::Task| {
        let format = ["inspect", "--format", "{{.Config.Labels.content}}", &task.container];
        Ok(docker::docker(lab.engine(&task.node)?, &format)?.trim().to_owned())
    };
    tasks.iter().map(content).collect()
}

/// Clients of API 1.29 do not ask for digests themselves.
fn old_clients_get_pinned_images(lab: &Lab) -> Result<()> {
    let spec = |name: &str, image: &str| json!({"Name": name, "TaskTemplate": {"ContainerSpec": {"Image": image, "Args": SLEEP}}});
    let image = image("web");
    let made = post("/v1.29/services/create", None, &spec("old-open", &image))?;
    ensure!(made["Warnings"][0].as_str().is_some_and(|text| text.contains("no basic auth credentials")), "{made}");
    // In the standard alphabet of base64. The client of docker uses the URL-safe one.
    let header = STANDARD.encode(json!({"username": USER, "password": PASSWORD}).to_string());
    ensure!(header.contains(['+', '/']), "{header} is the same in both alphabets");
    let made = post("/v1.29/services/create", Some(&header), &spec("old", &image))?;
    ensure!(made["Warnings"] == json!([]), "{made}");
    ensure!(spec_image("old")?.starts_with(&format!("{image}@sha256:")));
    lab.wait_running("n1", "old", 1)?;
    lab.weft_ok("n1", &["service", "rm", "old", "old-open"]).map(drop)
}

fn an_image_for_another_platform_has_no_node(lab: &Lab) -> Result<()> {
    let mut spec = json!({
        "Name": "arm",
        "TaskTemplate": {
            "ContainerSpec": {"Image": "weft/whoami"},
            "Placement": {"Platforms": [{"Architecture": "arm64", "OS": "linux"}]},
        },
    });
    post("/services/create", None, &spec)?;
    let error = task_error(lab, "arm", "unsupported platform on 3 nodes");
    ensure!(error == "no suitable node (unsupported platform on 3 nodes)", "{error}");
    let version = inspect("n1", "arm")?["Version"]["Index"].clone();
    spec["TaskTemplate"]["Placement"]["Platforms"] = json!([{"Architecture": "x86_64", "OS": "linux"}]);
    post(&format!("/services/arm/update?version={version}"), None, &spec)?;
    lab.wait_running("n1", "arm", 1)?;
    lab.weft_ok("n1", &["service", "rm", "arm"]).map(drop)
}
