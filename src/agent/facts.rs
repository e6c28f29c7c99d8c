//! Translates the overlay's state and the resolver's zone into the facts that the mesh needs.
//!
//! Pure. [`super::reconcile`] calls it. The crates of the overlay, the mesh and the resolver do not
//! import each other, so the agent translates between them.

use std::collections::BTreeSet;

use weft_dns::Zone;
use weft_mesh::{HostRoute, LocalEndpoint, LocalFacts, LocalNetns, LocalWireGuard, ResolvedName, Uplink};
use weft_model::{NetworkId, NodePlan};
use weft_overlay::{OverlayState, actual::Framing};

use super::sandboxes::Sandboxes;

/// The facts for [`weft_mesh::Mesh::reconcile`].
pub(super) fn local_facts(links: &OverlayState, plan: &NodePlan, zone: &Zone, sandboxes: &Sandboxes) -> LocalFacts {
    let node = &links.facts;
    let uplink = |uplink: &weft_overlay::Uplink| Uplink {
        ifindex: uplink.ifindex,
        ethernet: uplink.framing == Framing::Ethernet,
        mtu: uplink.mtu,
        addresses: uplink.addresses.iter().map(ipnetwork::IpNetwork::ip).collect(),
    };
    let route = |route: &weft_overlay::EgressRoute| HostRoute {
        destination: route.destination,
        ifindex: route.ifindex,
        source: route.source,
    };
    let wireguard = |link: &weft_overlay::KeyLink| LocalWireGuard { ifindex: link.ifindex, key: link.key };
    let netns = |endpoint: &weft_overlay::Endpoint| {
        let (cookie, path) = (endpoint.netns_cookie?, sandboxes.netns(&endpoint.task)?.to_owned());
        Some(LocalNetns { cookie, path, resolver: sandboxes.resolver(&endpoint.task) })
    };
    let endpoint = |endpoint: &weft_overlay::Endpoint| LocalEndpoint {
        task: endpoint.task.clone(),
        network: endpoint.network.clone(),
        ifindex: endpoint.host_ifindex,
        netns: netns(endpoint),
    };
    LocalFacts {
        netns_cookie: node.netns_cookie,
        tunnel_ifindex: links.tunnel_ifindex,
        task_mtu: links.mtu,
        encrypted_mtu: links.encrypted_mtu,
        wireguard: links.key_links.iter().map(wireguard).collect(),
        uplinks: node.uplinks.iter().map(uplink).collect(),
        addresses: node.addresses.clone(),
        routes: node.egress_routes.iter().map(route).collect(),
        endpoints: links.endpoints.iter().map(endpoint).collect(),
        names: names(plan, zone),
    }
}

/// The names of the networks that this node's tasks are on.
pub(super) fn names(plan: &NodePlan, zone: &Zone) -> Vec<ResolvedName> {
    let networks: BTreeSet<&NetworkId> =
        plan.local().flat_map(|local| local.links).map(|(_, attachment)| &attachment.network).collect();
    let mut names = Vec::new();
    for network in networks {
        names.extend(zone.list(network).map(|listed| ResolvedName {
            network: network.clone(),
            name: listed.name,
            qualified: listed.qualified,
            v4: listed.v4,
            v6: listed.v6,
        }));
    }
    names
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_model::wireguard::EncryptionSupport;
    use weft_overlay::NodeFacts;

    use super::*;

    #[test]
    fn says_which_uplinks_have_ethernet() {
        let uplink = |ifindex: u32, framing: Framing, address: &str| weft_overlay::Uplink {
            ifindex,
            framing,
            mtu: 1500,
            addresses: vec![address.parse().expect("an address with a prefix")],
        };
        let uplinks = vec![uplink(2, Framing::Ethernet, "192.0.2.1/24"), uplink(3, Framing::Ip, "10.99.0.1/16")];
        let addresses: Vec<_> =
            uplinks.iter().flat_map(|uplink| &uplink.addresses).map(ipnetwork::IpNetwork::ip).collect();
        let facts = NodeFacts { uplinks, addresses: addresses.clone(), ..NodeFacts::default() };
        let links = OverlayState {
            tunnel_ifindex: 4,
            mtu: 1450,
            encrypted_mtu: 1370,
            encryption: EncryptionSupport::Kernel,
            key_links: Vec::new(),
            endpoints: Vec::new(),
            facts,
            faults: BTreeMap::new(),
            encryption_fault: None,
        };
        let plan = NodePlan::empty(weft_model::NodeId::from_random(1), [192, 0, 2, 1].into());
        let facts = local_facts(&links, &plan, &Zone::default(), &Sandboxes::default());
        assert_eq!(
            facts.uplinks.iter().map(|uplink| (uplink.ifindex, uplink.ethernet)).collect::<Vec<_>>(),
            [(2, true), (3, false)]
        );
        assert_eq!(facts.addresses, addresses);
    }
}
