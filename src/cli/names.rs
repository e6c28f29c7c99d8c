//! Gets the names of nodes, services and networks. Answers of the API contain ids, and the commands
//! print names.

use std::collections::BTreeMap;

use anyhow::Result;

use super::client::{Client, list, text};

pub(super) type NamesById = BTreeMap<String, String>;

pub(super) async fn nodes(client: &Client) -> Result<NamesById> {
    fetch(client, "/nodes", "/ID", "/Description/Hostname").await
}

pub(super) async fn services(client: &Client) -> Result<NamesById> {
    fetch(client, "/services", "/ID", "/Spec/Name").await
}

/// No list has the networks that each node has by itself, so they are looked up by their names.
pub(super) async fn networks(client: &Client) -> Result<NamesById> {
    let mut names = fetch(client, "/networks", "/Id", "/Name").await?;
    for name in ["bridge", "host"] {
        if let Ok(network) = client.get(&format!("/networks/{name}?scope=swarm")).await {
            names.insert(text(&network, "/Id").to_owned(), name.to_owned());
        }
    }
    Ok(names)
}

/// Gets the list at `path`. `id` and `name` are JSON pointers into each object of the list.
async fn fetch(client: &Client, path: &str, id: &str, name: &str) -> Result<NamesById> {
    let objects = client.get(path).await?;
    let names = list(&objects, "").iter().map(|object| (text(object, id).to_owned(), text(object, name).to_owned()));
    Ok(names.collect())
}
