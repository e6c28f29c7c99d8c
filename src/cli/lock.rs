//! `weft swarm unlock` and `weft swarm unlock-key`: start a locked manager, and show or replace the
//! key that managers need after a restart.

use anyhow::{Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::{
    client::{Client, number, text},
    output::{print, print_line},
    prompt::ask,
};

#[derive(Debug, Args)]
pub(super) struct UnlockKey {
    /// Replace the key; managers that are down need the old key once more
    #[arg(long)]
    rotate: bool,
    /// Print only the key
    #[arg(short, long)]
    quiet: bool,
}

/// Asks for the key only if this manager needs it.
pub(super) async fn unlock(client: &Client) -> Result<()> {
    let info = client.get("/info").await?;
    match text(&info, "/Swarm/LocalNodeState") {
        "locked" => {}
        "inactive" => bail!("This node is not part of a swarm"),
        _ => bail!("swarm is not locked"),
    }
    let key = ask("Enter unlock key: ", "unlock key")?;
    client.post("/swarm/unlock", &json!({ "UnlockKey": key })).await?;
    Ok(())
}

pub(super) async fn unlock_key(client: &Client, options: &UnlockKey) -> Result<()> {
    if options.rotate {
        let swarm = client.get("/swarm").await?;
        ensure!(is_locked(&swarm), "cannot rotate because autolock is not turned on");
        let path = format!("/swarm/update?version={}&rotateManagerUnlockKey=true", number(&swarm, "/Version/Index"));
        client.post(&path, &swarm["Spec"]).await?;
        if !options.quiet {
            print("Successfully rotated manager unlock key.\n\n")?;
        }
    }
    let key = read_key(client).await?;
    ensure!(!key.is_empty(), "no unlock key is set");
    if options.quiet { print_line(key) } else { print_instructions(&key) }
}

/// Prints the key and how to use it.
pub(super) async fn print_unlock_command(client: &Client) -> Result<()> {
    print_instructions(&read_key(client).await?)
}

fn print_instructions(key: &str) -> Result<()> {
    print(format_args!(
        "To unlock a swarm manager after it restarts, run the `weft swarm unlock`\n\
         command and provide the following key:\n\n    {key}\n\n\
         Remember to store this key in a password manager, since without it you\n\
         will not be able to restart the manager.\n"
    ))
}

/// Whether managers are locked, in the answer of `GET /swarm`.
pub(super) fn is_locked(swarm: &Value) -> bool {
    swarm["Spec"]["EncryptionConfig"]["AutoLockManagers"] == true
}

/// The unlock key. Empty if managers are not locked.
async fn read_key(client: &Client) -> Result<String> {
    Ok(text(&client.get("/swarm/unlockkey").await?, "/UnlockKey").to_owned())
}
