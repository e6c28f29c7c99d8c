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

#[cfg(test)]
mod tests {
    use weft_model::{DualAddr, Mac, NetworkId, Vni, net::Subnets};

    use super::*;
    use crate::runtime::fixture;

    fn attachment(net: u8) -> AttachmentPlan {
        let addr = DualAddr { v4: Some([10, 0, net, 7].into()), v6: [0xfd00, u16::from(net), 0, 0, 0, 0, 0, 7].into() };
        AttachmentPlan {
            network: NetworkId::from_random(net.into()),
            vni: Vni::new(4096).expect("a VNI"),
            mtu: None,
            subnets: Subnets::dual(
                format!("10.0.{net}.0/24").parse().expect("a subnet"),
                format!("fd00:{net}::/64").parse().expect("a subnet"),
            ),
            addr,
            mac: Mac::of_task(addr),
        }
    }

    #[test]
    fn only_the_first_link_has_gateways() {
        let task = TaskPlan { attachments: vec![attachment(1), attachment(2)], ..fixture::task(|_| ()) };
        let links = links_of(&task, &["a".to_owned(), "b".to_owned()]);
        let shown: Vec<_> = links.iter().map(|link| (link.interface_name.src_name.as_str(), link.gateway)).collect();
        assert_eq!(shown, [("a", Some([10, 0, 1, 1].into())), ("b", None)]);
        let v6: Vec<_> = links.iter().map(|link| link.gateway_v6.map(|gateway| gateway.to_string())).collect();
        assert_eq!(v6, [Some("fd00:1::1".to_owned()), None]);
        assert!(links.iter().all(|link| link.static_routes.is_empty() && link.disable_gateway_service));
    }
}
