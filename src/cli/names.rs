//! Names of things by their ids, for people to read.

use std::collections::BTreeMap;

use anyhow::Result;

use super::client::{Client, list, text};

pub(super) type Names = BTreeMap<String, String>;

pub(super) async fn nodes(client: &Client) -> Result<Names> {
    by_id(client, "/nodes", "/ID", "/Description/Hostname").await
}

pub(super) async fn services(client: &Client) -> Result<Names> {
    by_id(client, "/services", "/ID", "/Spec/Name").await
}

pub(super) async fn networks(client: &Client) -> Result<Names> {
    by_id(client, "/networks", "/Id", "/Name").await
}

async fn by_id(client: &Client, path: &str, id: &str, name: &str) -> Result<Names> {
    let things = client.get(path).await?;
    Ok(list(&things, "").iter().map(|thing| (text(thing, id).to_owned(), text(thing, name).to_owned())).collect())
}
