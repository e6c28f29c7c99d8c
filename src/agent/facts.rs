//! What the overlay found and made, in the mesh's words.

use weft_mesh::{HostRoute, LocalEndpoint, LocalFacts, Uplink};
use weft_overlay::OverlayState;

pub(super) fn of(links: &OverlayState) -> LocalFacts {
    let node = &links.facts;
    let uplink = |uplink: &weft_overlay::Uplink| Uplink {
        ifindex: uplink.ifindex,
        addresses: uplink.addresses.iter().map(ipnetwork::IpNetwork::ip).collect(),
    };
    let route =
        |way: &weft_overlay::Way| HostRoute { destination: way.destination, ifindex: way.ifindex, source: way.source };
    let endpoint = |endpoint: &weft_overlay::Endpoint| LocalEndpoint {
        task: endpoint.task.clone(),
        network: endpoint.network.clone(),
        ifindex: endpoint.host_ifindex,
        netns_cookie: endpoint.netns_cookie,
    };
    LocalFacts {
        netns_cookie: node.netns_cookie,
        tunnel_ifindex: links.tunnel_ifindex,
        task_mtu: links.mtu,
        uplinks: node.uplinks.iter().map(uplink).collect(),
        routes: node.ways.iter().map(route).collect(),
        endpoints: links.endpoints.iter().map(endpoint).collect(),
    }
}
