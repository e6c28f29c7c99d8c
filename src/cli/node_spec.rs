//! Reads a node, and changes its spec.

use anyhow::Result;
use serde_json::Value;

use super::client::{Client, number, percent_encode, text};

pub(super) async fn get(client: &Client, node: &str) -> Result<Value> {
    client.get(&format!("/nodes/{}", percent_encode(node))).await
}

/// Gets the spec of a node, edits it and sends it back. The request contains the version that was
/// read. The daemon refuses the request if the node has changed since then.
pub(super) async fn change(client: &Client, node: &str, edit: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    let found = get(client, node).await?;
    let mut spec = found["Spec"].clone();
    edit(&mut spec)?;
    let path = format!("/nodes/{}/update?version={}", text(&found, "/ID"), number(&found, "/Version/Index"));
    client.post(&path, &spec).await?;
    Ok(())
}
