//! `weft backup`: save the cluster to an encrypted file, and restore it on an empty machine.
//!
//! The daemon encrypts and decrypts, so that no key of the cluster passes through this program. The
//! passphrase comes from a file, from the environment, or from the terminal.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    client::{Client, text},
    output::print_line,
    prompt::ask,
    swarm::NodeFlags,
};

/// The environment variable with the passphrase.
const PASSPHRASE: &str = "WEFT_BACKUP_PASSPHRASE";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Save the cluster, with its keys, to an encrypted file
    Create(Create),
    /// Make this node, which is not in a cluster, the only manager of the cluster in a backup
    Restore(Restore),
}

#[derive(Debug, Args)]
struct Passphrase {
    /// File whose first line is the passphrase; by default $WEFT_BACKUP_PASSPHRASE, else the
    /// passphrase is read from the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    passphrase: Passphrase,
    /// The file to write; it must not exist
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    passphrase: Passphrase,
    #[command(flatten)]
    node: NodeFlags,
    /// The file that "weft backup create" has written
    file: PathBuf,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Create(options) => create(client, &options).await,
        Command::Restore(options) => restore(client, &options).await,
    }
}

async fn create(client: &Client, options: &Create) -> Result<()> {
    let passphrase = options.passphrase.read(true)?;
    let answer = client.post("/swarm/backup", &json!({ "Passphrase": passphrase })).await?;
    let file = STANDARD.decode(text(&answer, "/File")).context("the daemon's answer is not base64")?;
    ensure!(!file.is_empty(), "the daemon's answer contains no backup");
    write(&options.file, &file).with_context(|| format!("cannot write {}", options.file.display()))?;
    print_line(format_args!("Saved the cluster to {} ({} bytes).", options.file.display(), file.len()))
}

/// Creates the file, which only its owner may read. It is on the disk when this returns.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

async fn restore(client: &Client, options: &Restore) -> Result<()> {
    let file = fs::read(&options.file).with_context(|| format!("cannot read {}", options.file.display()))?;
    let mut body = options.node.request();
    body["Passphrase"] = options.passphrase.read(false)?.into();
    body["File"] = STANDARD.encode(file).into();
    let id = client.post("/swarm/restore", &body).await?;
    let id = id.as_str().unwrap_or_default();
    print_line(format_args!(
        "Cluster restored: current node ({id}) is its only manager. Nodes that reach it at the address of a former \
         manager continue; other nodes must leave and join again."
    ))
}

impl Passphrase {
    /// Reads the passphrase; from a terminal twice if it is a new one.
    fn read(&self, is_new: bool) -> Result<String> {
        if let Some(path) = &self.passphrase_file {
            let content = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(content.lines().next().unwrap_or_default().to_owned());
        }
        if let Ok(passphrase) = std::env::var(PASSPHRASE) {
            return Ok(passphrase);
        }
        let passphrase = ask("Passphrase:", "passphrase")?;
        if is_new && io::stdin().is_terminal() {
            ensure!(passphrase == ask("Repeat the passphrase:", "passphrase")?, "the passphrases differ");
        }
        Ok(passphrase)
    }
}
