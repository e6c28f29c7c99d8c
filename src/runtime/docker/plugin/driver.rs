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
    LinkOptions, Owner,
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
        let mut joined = self.starts.join(&link, netns(&request.sandbox_key)).await?;
        if link.owner == (Owner::Container { gateway: false }) {
            (joined.gateway, joined.gateway_v6) = (None, None);
        }
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

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    /// The answer to the creation of an endpoint, as the engine asks for it.
    fn create(request: Value) -> Result<Value, String> {
        let driver = Driver::new(Starts::new(watch::Sender::default()));
        driver.create_endpoint(serde_json::from_value(request).expect("a request"))
    }

    #[test]
    fn an_endpoint_of_a_task_gets_the_mac_of_its_addresses() {
        let addr = DualAddr { v4: Some([10, 0, 1, 7].into()), v6: [0xfd00, 1, 0, 0, 0, 0, 0, 7].into() };
        let options = json!({"weft.task": weft_model::TaskId::from_random(1), "weft.link": "0", "other": 1});
        let interface = json!({"Address": "10.0.1.7/24", "AddressIPv6": "fd00:1::7/64", "MacAddress": ""});
        let answer = create(json!({"EndpointID": "e", "Options": options, "Interface": interface}));
        assert_eq!(answer, Ok(json!({"Interface": {"MacAddress": Mac::of_task(addr).to_string()}})));
        let foreign = create(json!({"EndpointID": "e", "Options": {}, "Interface": interface}));
        assert!(foreign.is_err_and(|error| error.contains("its own socket")));
    }

    #[tokio::test]
    async fn an_endpoint_that_is_unknown_cannot_join() {
        let driver = Driver::new(Starts::new(watch::Sender::default()));
        let join = serde_json::from_value(json!({"EndpointID": "e", "SandboxKey": "/k"})).expect("a request");
        let refused = driver.join(join, |path| path.into()).await;
        assert!(refused.is_err_and(|error| error.contains("start the container again")));
    }
}
