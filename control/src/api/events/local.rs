//! The events of the container engine, as users of the cluster know them.
//!
//! The handler of `events` passes the engine's answer to [`translate`], which shows each event as
//! it comes:
//!
//! - A container that is connected to a docker network, or disconnected from one, is shown with the
//!   cluster's network that this stands for. Other events of these docker networks are not shown:
//!   the cluster's networks have their own.
//! - The filter by network is applied here, because the engine knows other ids.
//!
//! All other events are passed on octet by octet.

use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::Uri,
};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};

use crate::api::{
    Api,
    docker_networks::{self, DockerNetworks},
    error::ApiError,
    query::{self, Filters},
};

/// The longest event, in bytes. It has the labels of a container.
const MAX_EVENT: usize = 4 << 20;

/// The request for the engine's events: without the filter by network.
pub(super) fn request(uri: &Uri) -> Result<Uri, ApiError> {
    query::change_filters(uri, |filters| drop(filters.remove("network")))
}

/// Translates the engine's stream of events. The stream ends with an error if an event is longer
/// than 4 MiB.
pub(super) fn translate(api: Api, filters: Filters, events: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> {
    let events = Events { api, filters, source: events.into_data_stream(), read: Vec::new(), networks: None };
    stream::try_unfold(events, |mut events| async move { Ok(events.next().await?.map(|event| (event, events))) })
}

struct Events {
    api: Api,
    filters: Filters,
    source: BodyDataStream,
    /// What was read of the next events.
    read: Vec<u8>,
    /// As the engine has listed them last.
    networks: Option<DockerNetworks>,
}

impl Events {
    /// The next event to show. `None` at the end of the stream.
    async fn next(&mut self) -> Result<Option<Bytes>, axum::Error> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.read[searched..].iter().position(|octet| *octet == b'\n') {
                let line: Vec<u8> = self.read.drain(..=searched + end).collect();
                searched = 0;
                if let Some(shown) = self.show(line).await {
                    return Ok(Some(shown));
                }
                continue;
            }
            searched = self.read.len();
            if searched > MAX_EVENT {
                return Err(axum::Error::new("an event of the container engine is too long"));
            }
            match self.source.next().await {
                Some(chunk) => self.read.extend_from_slice(&chunk?),
                None if self.read.is_empty() => return Ok(None),
                // An engine ends each event with a line feed.
                None => return Ok(Some(std::mem::take(&mut self.read).into())),
            }
        }
    }

    async fn show(&mut self, line: Vec<u8>) -> Option<Bytes> {
        let Ok(mut event) = serde_json::from_slice::<Value>(&line) else { return Some(line.into()) };
        let is_of_cluster = docker_networks::is_event_of_cluster(&event);
        if is_of_cluster {
            self.show_network(&mut event).await?;
        }
        if !has_network(&self.filters, &event) {
            return None;
        }
        Some(if is_of_cluster { format!("{event}\n").into() } else { line.into() })
    }

    /// Shows the cluster's network in an event. `None` if the event is not shown.
    async fn show_network(&mut self, event: &mut Value) -> Option<()> {
        if !matches!(event["Action"].as_str(), Some("connect" | "disconnect")) {
            return None;
        }
        let id = event["Actor"]["ID"].as_str()?.to_owned();
        if self.networks.as_ref().is_none_or(|networks| networks.of_docker_id(&id).is_none()) {
            match DockerNetworks::of(&self.api).await {
                Ok(networks) => self.networks = Some(networks),
                Err(error) => tracing::warn!(%error, "cannot list the networks of the container engine"),
            }
        }
        let network = self.networks.as_ref()?.of_docker_id(&id)?;
        event["Actor"]["ID"] = json!(network.network.as_str());
        event["Actor"]["Attributes"]["name"] = json!(network.name);
        event["Actor"]["Attributes"]["type"] = json!("overlay");
        Some(())
    }
}

/// Whether an event matches the filter by network. As in moby, it is a prefix of an id or a name,
/// and events of other objects match only without it.
fn has_network(filters: &Filters, event: &Value) -> bool {
    let actor = &event["Actor"];
    let texts = [actor["ID"].as_str(), actor["Attributes"]["name"].as_str()];
    filters.any("network", |wanted| texts.iter().flatten().any(|text| text.starts_with(wanted)))
}
