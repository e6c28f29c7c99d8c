//! The network driver. [`mod@super::serve`] passes the engine's calls on to it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use weft_model::{DualAddr, Mac};

use super::{
    LinkOptions,
    starts::Starts,
    wire::{CreateEndpoint, Interface, Join},
};

/// What the engine has told about endpoints since this daemon started. An engine creates an
/// endpoint and lets it join in one start of a container.
#[derive(Debug)]
pub(super) struct Driver {
    starts: Starts,
    endpoints: Mutex<BTreeMap<String, LinkOptions>>,
}

impl Driver {
    pub(super) fn new(starts: Starts) -> Self {
        Self { starts, endpoints: Mutex::default() }
    }

    pub(super) fn create_endpoint(&self, request: CreateEndpoint) -> Result<Value, String> {
        let link = request.options.as_ref().and_then(LinkOptions::read);
        let link = link.ok_or("weft connects the containers that are created through its own socket")?;
        self.lock().insert(request.endpoint, link);
        let interface = request.interface.unwrap_or_default();
        if !interface.mac_address.is_empty() {
            return Ok(json!({}));
        }
        let mac = mac_of(&interface)?;
        Ok(json!({ "Interface": { "MacAddress": mac.to_string() } }))
    }

    /// `netns` finds the namespace in the engine's view of the file system.
    pub(super) async fn join(&self, request: Join, netns: impl FnOnce(&str) -> PathBuf) -> Result<Value, String> {
        let link = self.lock().get(&request.endpoint).cloned();
        let link =
            link.ok_or("weft does not know this endpoint: its daemon was restarted, start the container again")?;
        let joined = self.starts.join(&link, netns(&request.sandbox_key)).await?;
        serde_json::to_value(joined).map_err(|error| error.to_string())
    }

    /// The links go with the namespace, and those that are left over in the agent's next pass.
    pub(super) fn delete_endpoint(&self, endpoint: &str) {
        if let Some(link) = self.lock().remove(endpoint) {
            self.starts.end_of_user(&link.task);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, LinkOptions>> {
        // Each change is complete before anything can panic.
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The MAC that the cluster has for the addresses.
fn mac_of(interface: &Interface) -> Result<Mac, String> {
    let ip = |text: &str| text.parse::<IpNetwork>().ok().map(|network| network.ip());
    let v4 = match ip(&interface.address) {
        Some(IpAddr::V4(addr)) => Some(addr),
        _ => None,
    };
    match ip(&interface.address_v6) {
        Some(IpAddr::V6(v6)) => Ok(Mac::of_task(DualAddr { v4, v6 })),
        _ => Err("an endpoint of weft has an IPv6 address".to_owned()),
    }
}
