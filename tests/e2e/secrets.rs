//! Secrets and configs, created and used with the docker client: what tasks see of them, and where
//! they are and are not.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_lab::{Lab, Task, contract, eventually};

use crate::fixtures::{only, tools};

/// The node that runs the tasks. Its daemon is killed.
const NODE: &str = "n3";
const TIMEOUT: Duration = Duration::from_secs(60);
/// Texts that are nowhere else on the machine's disk.
const FIRST: &str = "weft-e2e-hunter2-first";
const SECOND: &str = "weft-e2e-hunter2-second";
const CONFIG: &str = "weft-e2e-config of {{.Service.Name}}.{{.Task.Slot}}";

fn create(lab: &Lab, arguments: &[&str], data: &str) -> Result<String> {
    let output = lab.docker_with_input("n1", arguments, data)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {}: {error}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The commands of `weft`, in the same words as those of the docker client.
pub(crate) fn weft_creates_changes_and_removes_secrets(lab: &Lab) -> Result<()> {
    let create = |kind: &str, name: &str| -> Result<String> {
        let output = lab.weft_with_input("n1", &[kind, "create", "--label", "a=b", name, "-"], "content")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let id = create("secret", "old")?;
    create("secret", "new")?;
    create("config", "conf")?;
    let table = lab.weft_ok("n1", &["secret", "ls", "--filter", "name=ol"])?;
    ensure!(table.lines().count() == 2 && table.contains(&id) && table.contains("old"), "{table}");
    let shown = lab.weft_ok("n1", &["secret", "inspect", "old"])?;
    ensure!(shown.contains("\"a\": \"b\"") && !shown.contains("Data"), "{shown}");
    let shown = lab.weft_ok("n1", &["config", "inspect", "--pretty", "conf"])?;
    ensure!(shown.ends_with("Data:\ncontent\n"), "{shown}");

    let flags = ["--secret", "old", "--config", "source=conf,target=/run/conf,mode=0400"];
    let command = ["service", "create", "--name", "by-weft", "--restart-delay", "100ms"];
    lab.weft_ok("n1", &[&command[..], &flags, &[tools(lab), "sleep", "infinity"]].concat())?;
    let task = only(lab.wait_running("n1", "by-weft", 1)?)?;
    has(lab, &task, "/run/secrets/old", "content", "444 0 0")?;
    has(lab, &task, "/run/conf", "content", "400 0 0")?;
    let error = lab.weft_refused("n1", &["secret", "rm", "old"])?;
    ensure!(error.contains("secret 'old' is in use by the following service: by-weft"), "{error}");
    let flags = ["--secret-rm", "old", "--secret-add", "source=new,target=old,uid=7", "--config-rm", "conf"];
    lab.weft_ok("n1", &[&["service", "update"], &flags[..], &["by-weft"]].concat())?;
    let task = only(lab.wait_running("n1", "by-weft", 1)?)?;
    has(lab, &task, "/run/secrets/old", "content", "444 7 0")?;
    ensure!(!lab.task_exec(&task, &["cat", "/run/conf"])?.status.success(), "the config is still there");
    lab.weft_ok("n1", &["service", "rm", "by-weft"])?;
    lab.weft_ok("n1", &["secret", "rm", "old", "new"])?;
    lab.weft_ok("n1", &["config", "rm", "conf"])?;
    Ok(())
}

/// `docker stack deploy` finds out whether a secret exists, creates or relabels it, and uses it.
pub(crate) fn a_stack_brings_its_secrets(lab: &Lab) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let compose = json!({
        "version": "3.8",
        "services": {"app": {
            "image": tools(lab),
            "command": ["sleep", "infinity"],
            "secrets": ["key"],
            "configs": [{"source": "conf", "target": "/run/conf"}],
        }},
        "secrets": {"key": {"file": "./key"}},
        "configs": {"conf": {"file": "./conf"}},
    });
    let file = dir.path().join("compose.json");
    fs::write(&file, compose.to_string())?;
    fs::write(dir.path().join("key"), FIRST)?;
    fs::write(dir.path().join("conf"), "k=v")?;
    let file = file.to_str().context("a path")?;
    let deploy = ["stack", "deploy", "--detach", "--resolve-image", "never", "--compose-file", file, "st"];
    lab.docker_ok("n1", &deploy)?;
    let task = only(lab.wait_running("n1", "st_app", 1)?)?;
    has(lab, &task, "/run/secrets/key", FIRST, "444 0 0")?;
    has(lab, &task, "/run/conf", "k=v", "444 0 0")?;
    lab.docker_ok("n1", &deploy)?;
    let same = only(lab.wait_running("n1", "st_app", 1)?)?;
    ensure!(same.id == task.id, "the second deployment has replaced the task");
    fs::write(dir.path().join("key"), SECOND)?;
    let error = refusal(lab, &deploy)?;
    ensure!(error.contains("only updates to Labels are allowed"), "{error}");
    lab.docker_ok("n1", &["stack", "rm", "--detach=false", "st"])?;
    for kind in ["secret", "config"] {
        ensure!(lab.docker_ok("n1", &[kind, "ls", "--quiet"])?.is_empty(), "a {kind} is left");
    }
    Ok(())
}

/// The error of a command of the docker client that must fail.
fn refusal(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let output = lab.docker("n1", arguments)?;
    ensure!(!output.status.success(), "docker {} succeeded, and must be refused", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn running(lab: &Lab) -> Result<Task> {
    only(lab.wait_running("n1", "files", 1)?)
}

/// The directories of the tasks with files that a node has.
fn stored(node: &str) -> Vec<PathBuf> {
    let dir = contract::run_dir(node).join("files");
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

pub(crate) fn tasks_have_secrets_and_configs(lab: &Lab) -> Result<()> {
    // The file system's clock is coarser than the machine's.
    let start = SystemTime::now() - Duration::from_secs(1);
    create(lab, &["secret", "create", "--label", "team=a", "first", "-"], FIRST)?;
    create(lab, &["secret", "create", "second", "-"], SECOND)?;
    create(lab, &["config", "create", "--template-driver", "golang", "conf", "-"], CONFIG)?;
    docker_shows_the_data_of_configs_only(lab)?;

    let constraint = format!("node.hostname=={NODE}");
    let secret = "source=first,target=key,uid=1000,gid=1001,mode=0440";
    let command = ["service", "create", "--detach", "--name", "files", "--constraint", &constraint];
    let flags = ["--secret", secret, "--secret", "second", "--config", "source=conf,target=/run/conf,mode=0604"];
    let image = ["--restart-delay", "100ms", tools(lab), "sleep", "infinity"];
    lab.docker_ok("n1", &[&command[..], &flags, &image].concat())?;
    let task = running(lab)?;
    has(lab, &task, "/run/secrets/key", FIRST, "440 1000 1001")?;
    has(lab, &task, "/run/secrets/second", SECOND, "444 0 0")?;
    has(lab, &task, "/run/conf", "weft-e2e-config of files.1", "604 0 0")?;
    for node in lab.nodes().filter(|node| node != NODE) {
        ensure!(stored(&node).is_empty(), "{node} has files of tasks: {:?}", stored(&node));
    }
    data_is_on_no_disk(lab, start)?;

    lab.kill_daemon(NODE)?;
    lab.start(NODE)?;
    let same = running(lab)?;
    ensure!(same.id == task.id, "the restart of the daemon has replaced task {} by {}", task.id, same.id);
    has(lab, &task, "/run/secrets/key", FIRST, "440 1000 1001")?;
    data_is_on_no_disk(lab, start)?;
    an_update_gives_other_secrets(lab, &task)
}

fn docker_shows_the_data_of_configs_only(lab: &Lab) -> Result<()> {
    let listed = lab.docker_ok("n1", &["secret", "ls", "--filter", "label=team=a", "--format", "{{.Name}}"])?;
    ensure!(listed.trim() == "first", "{listed}");
    let shown = lab.docker_ok("n1", &["secret", "inspect", "first", "second"])?;
    ensure!(shown.contains("\"team\": \"a\"") && !shown.contains("Data"), "{shown}");
    let shown = lab.docker_ok("n1", &["config", "inspect", "--pretty", "conf"])?;
    ensure!(shown.contains(CONFIG), "{shown}");
    let error = refusal(lab, &["secret", "create", "first", "/etc/hostname"])?;
    ensure!(error.contains("secret first already exists"), "{error}");
    let error = refusal(lab, &["service", "create", "--secret", "third", tools(lab)])?;
    ensure!(error.contains("secret not found: third"), "{error}");
    Ok(())
}

/// Checks the content, the permissions and the owner of a file, and that it is mounted read-only
/// from memory.
fn has(lab: &Lab, task: &Task, path: &str, data: &str, mode_and_owner: &str) -> Result<()> {
    let found = lab.task_exec_ok(task, &["cat", path])?;
    ensure!(found == data, "{path} has {found:?}");
    let found = lab.task_exec_ok(task, &["stat", "-c", "%a %u %g", path])?;
    ensure!(found.trim() == mode_and_owner, "{path} is {found}");
    let pid = task.pid.context("the task has a process")?;
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(4) == Some(path));
    let mount = mount.with_context(|| format!("{path} is no mount:\n{mounts}"))?;
    let is_read_only = mount.split(' ').nth(5).is_some_and(|options| options.split(',').any(|option| option == "ro"));
    ensure!(is_read_only && mount.contains(" - tmpfs "), "{mount}");
    Ok(())
}

/// Searches all that the nodes and their engines have written to the disk since the texts exist.
fn data_is_on_no_disk(lab: &Lab, since: SystemTime) -> Result<()> {
    let mut dirs: Vec<PathBuf> = lab.nodes().map(|node| contract::data_dir(&node)).collect();
    dirs.push(contract::LAB_DATA.into());
    let mut files = 0;
    while let Some(path) = dirs.pop() {
        // Files come and go meanwhile.
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        if found.is_dir() {
            dirs.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if found.is_file() && found.modified()? >= since {
            let Ok(data) = fs::read(&path) else { continue };
            files += 1;
            for text in [FIRST, SECOND, "weft-e2e-config"] {
                let has_text = data.windows(text.len()).any(|part| part == text.as_bytes());
                ensure!(!has_text, "{text} is in {}", path.display());
            }
        }
    }
    ensure!(files > 0, "the managers have stored nothing since the secrets exist");
    Ok(())
}

fn an_update_gives_other_secrets(lab: &Lab, before: &Task) -> Result<()> {
    for (kind, name) in [("secret", "first"), ("config", "conf")] {
        let error = refusal(lab, &[kind, "rm", name])?;
        ensure!(error.contains(&format!("{kind} '{name}' is in use by the following service: files")), "{error}");
    }
    let flags = ["--secret-rm", "first", "--secret-rm", "second", "--secret-add", "source=second,target=/run/key"];
    lab.docker_ok("n1", &[&["service", "update", "--detach"], &flags[..], &["files"]].concat())?;
    eventually(TIMEOUT, "the task is replaced", || {
        let now = running(lab).map_err(|error| format!("{error:#}"))?;
        if now.id == before.id { Err("it is the same".to_owned()) } else { Ok(()) }
    });
    let task = running(lab)?;
    has(lab, &task, "/run/key", SECOND, "444 0 0")?;
    ensure!(!lab.task_exec(&task, &["cat", "/run/secrets/key"])?.status.success(), "the first secret is still there");
    let of_task = |path: &Path| path.file_name().is_some_and(|name| name.to_str() == Some(&*task.id));
    eventually(TIMEOUT, "only the new task has files", || match &stored(NODE)[..] {
        [path] if of_task(path) => Ok(()),
        stored => Err(format!("{stored:?}")),
    });
    lab.docker_ok("n1", &["secret", "rm", "first"])?;

    // The daemon cannot remove the files of a task that ends without it.
    lab.kill_daemon(NODE)?;
    lab.docker_ok("n1", &["service", "rm", "files"])?;
    ensure!(stored(NODE).len() == 1, "the files of a task went without its daemon: {:?}", stored(NODE));
    lab.start(NODE)?;
    eventually(TIMEOUT, "the files are gone with the task", || {
        let dir = contract::run_dir(NODE).join("files");
        if dir.exists() { Err(format!("{} has {:?}", dir.display(), stored(NODE))) } else { Ok(()) }
    });
    lab.docker_ok("n1", &["secret", "rm", "second"])?;
    lab.docker_ok("n1", &["config", "rm", "conf"])?;
    ensure!(lab.docker_ok("n1", &["secret", "ls", "--quiet"])?.is_empty(), "a secret is left");
    Ok(())
}
