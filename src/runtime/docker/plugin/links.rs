//! What the engine is told of a task's links when it joins them: the plan has the addresses and
//! routes, the agent the names of the task sides. Pure.

use weft_model::plan::{AttachmentPlan, TaskPlan};

use super::wire::{InterfaceName, Joined, StaticRoute};

/// The answers for the links of a task, which the agent has made. `names` are those of the task
/// sides, in the order of the links.
pub(super) fn links_of(task: &TaskPlan, names: &[String]) -> Vec<Joined> {
    let links = task.attachments.iter().zip(names).enumerate();
    links.map(|(index, (attachment, name))| joined(attachment, index == 0, name.clone())).collect()
}

/// The answer for one link of a task, whose task side waits under the name `src_name`.
fn joined(attachment: &AttachmentPlan, is_first: bool, src_name: String) -> Joined {
    let gateways = attachment.addr.ips().filter_map(|ip| Some((ip, attachment.subnets.containing(ip)?)));
    let (mut gateway, mut gateway_v6, mut static_routes) = (None, None, Vec::new());
    for (ip, (own, via)) in gateways {
        if is_first {
            *(if ip.is_ipv4() { &mut gateway } else { &mut gateway_v6 }) = Some(via);
        }
        let others = attachment.subnets.iter().map(|(range, _)| range);
        let others = others.filter(|range| *range != own && range.is_ipv4() == own.is_ipv4());
        static_routes.extend(others.map(|destination| StaticRoute { destination, route_type: 0, next_hop: via }));
    }
    Joined {
        interface_name: InterfaceName { src_name, dst_prefix: "eth" },
        gateway,
        gateway_v6,
        static_routes,
        disable_gateway_service: true,
    }
}
