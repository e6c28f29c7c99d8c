//! Runs cargo, and finds the programs that it builds and the tests in them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::ui::Ui;

/// The top folder of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// A cargo command that runs in [`root`]. It is the cargo that runs this program.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(arguments).current_dir(root());
    command
}

/// Builds a program of a package for release, and returns its path. `kind` is `bin` or `example`.
pub(crate) fn build_release(ui: &Ui, package: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let arguments = ["build", "--locked", "--release", "--package", package, &format!("--{kind}"), name];
    ui.step(&format!("build {name} for release"), |step| step.run(&mut command(&arguments)))?;
    // The folder of the release profile is beside the folder of this program's profile.
    let own = env::current_exe().context("cannot find the file of this program")?;
    let target = own.parent().and_then(Path::parent).context("the file of this program is not in a target folder")?;
    let folder = if kind == "example" { "release/examples" } else { "release" };
    let program = target.join(folder).join(name);
    if !program.exists() {
        bail!("cargo built {name}, but there is no {}", program.display());
    }
    Ok(program)
}

/// Builds the `weft` binary in this program's own profile, and returns its path.
pub(crate) fn build_weft(ui: &Ui) -> Result<PathBuf> {
    ui.step("build weft", |step| step.run(&mut command(&["build", "--locked", "--workspace", "--bin", "weft"])))?;
    // One profile and one target: cargo puts both programs into one folder.
    let weft = env::current_exe().context("cannot find the file of this program")?.with_file_name("weft");
    if !weft.exists() {
        bail!("cargo built weft, but there is no {}", weft.display());
    }
    Ok(weft)
}

/// The programs of the end-to-end tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binaries {
    /// The binary that the tests run. They contain its path.
    pub(crate) weft: PathBuf,
    pub(crate) tests: PathBuf,
}

/// Builds the end-to-end tests and the binary that they run.
pub(crate) fn build_tests(ui: &Ui) -> Result<Binaries> {
    ui.step("build weft and the end-to-end tests", |step| {
        let arguments = ["test", "--locked", "--workspace", "--test", "e2e", "--no-run", "--message-format=json"];
        let (success, output) = step.capture(&mut command(&arguments))?;
        ensure!(success, "cannot build the tests:\n{}", without_messages(&output));
        let executable = |kind, main| {
            executable(&output, kind, main)
                .with_context(|| format!("cargo reports no {kind} of {main} among what it built"))
        };
        Ok(Binaries { weft: executable("bin", "src/main.rs")?, tests: executable("test", "tests/e2e/main.rs")? })
    })
}

/// The path of a program in cargo's messages (cargo's reference, "External tools"). `main` is its
/// source file: several packages have test programs of the same name.
fn executable(messages: &str, kind: &str, main: &str) -> Option<PathBuf> {
    let main = root().join(main);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut artifacts = messages.filter(|message| {
        let target = &message["target"];
        let has_kind = target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|found| found == kind));
        message["reason"] == "compiler-artifact"
            && has_kind
            && target["src_path"].as_str().is_some_and(|path| Path::new(path) == main)
    });
    // A library or binary may also be built as the program of its unit tests.
    artifacts.find_map(|artifact| {
        let is_unit_test = kind != "test" && artifact["profile"]["test"] == true;
        artifact["executable"].as_str().filter(|_| !is_unit_test).map(PathBuf::from)
    })
}

/// The output of cargo without its JSON messages, and with the text of the compiler's.
fn without_messages(output: &str) -> String {
    let text = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(message) => message["message"]["rendered"].as_str().map(str::to_owned),
        Err(_) => Some(format!("{line}\n")),
    };
    output.lines().filter_map(text).collect()
}

/// The names of the tests in a test program.
pub(crate) fn test_names(program: &Path) -> Result<Vec<String>> {
    let output =
        Command::new(program).arg("--list").output().with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "{} cannot list its tests", program.display());
    Ok(listed_tests(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads the output of `--list`: a line `name: test` for each test.
pub(crate) fn listed_tests(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.trim().strip_suffix(": test")).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_names_are_read_from_the_list() {
        let output = "   Compiling weft v0.1.0\n     Running unittests src/main.rs (target/debug/weft-1)\n\
                      cli::tests::a_flag: test\nsome_bench: benchmark\n\n1 test, 1 benchmark\n\
                      docker_client::lists_nodes: test\n";
        assert_eq!(listed_tests(output), ["cli::tests::a_flag", "docker_client::lists_nodes"]);
        assert!(listed_tests("0 tests, 0 benchmarks\n").is_empty());
    }

    /// One message of cargo about a program.
    fn message(kind: &str, main: &str, is_test: bool, executable: &str) -> String {
        serde_json::json!({
            "reason": "compiler-artifact",
            "target": { "kind": [kind], "src_path": root().join(main) },
            "profile": { "test": is_test },
            "executable": executable,
        })
        .to_string()
    }

    #[test]
    fn programs_are_found_in_the_messages_of_cargo() {
        let messages = [
            "   Compiling weft v0.1.0".to_owned(),
            message("bin", "src/main.rs", true, "/deps/weft-1"),
            message("bin", "src/main.rs", false, "/weft"),
            message("test", "wireguard/tests/main.rs", true, "/deps/e2e-2"),
            message("test", "tests/e2e/main.rs", true, "/deps/e2e-1"),
        ]
        .join("\n");
        assert_eq!(executable(&messages, "bin", "src/main.rs"), Some(PathBuf::from("/weft")));
        assert_eq!(executable(&messages, "test", "tests/e2e/main.rs"), Some(PathBuf::from("/deps/e2e-1")));
        assert_eq!(executable(&messages, "bin", "other/main.rs"), None);
    }

    #[test]
    fn a_failed_build_shows_the_text_of_the_compiler() {
        let message = serde_json::json!({"reason": "compiler-message", "message": {"rendered": "error: no type\n"}});
        let output = format!("   Compiling weft\n{message}\n{}\n", message_without_text());
        assert_eq!(without_messages(&output), "   Compiling weft\nerror: no type\n");
    }

    fn message_without_text() -> String {
        message("bin", "src/main.rs", false, "/weft")
    }
}
