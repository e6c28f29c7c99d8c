//! What the engine is told of a task's links when it joins them: the plan has the addresses and
//! routes, the agent the names of the task sides. Pure.

use std::collections::BTreeMap;

use weft_model::plan::{AttachmentPlan, LocalPlan};

use super::wire::{InterfaceName, Joined, StaticRoute};

/// The answers for the links of a task or another container, which the agent has made, by the
/// numbers of the links. `names` are those of the task sides, in the order of the links. Only the
/// first link of a task has gateways, and each link of another container.
pub(super) fn links_of(local: &LocalPlan<'_>, names: &[String]) -> BTreeMap<u32, Joined> {
    let links = local.links.iter().zip(names);
    let has_gateway = |index: u32| index == 0 || local.task.is_none();
    links
        .map(|(&(index, attachment), name)| (index, joined(attachment, has_gateway(index), Some(name.clone()))))
        .collect()
}

/// The answers for the links of a running container, which the agent has made in its namespace.
pub(super) fn links_in_place(local: &LocalPlan<'_>) -> BTreeMap<u32, Joined> {
    local.links.iter().map(|&(index, attachment)| (index, joined(attachment, true, None))).collect()
}

/// The answer for one link, whose task side waits under the name `src_name`.
fn joined(attachment: &AttachmentPlan, is_first: bool, src_name: Option<String>) -> Joined {
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
        interface_name: src_name.map(|src_name| InterfaceName { src_name, dst_prefix: "eth" }),
        gateway,
        gateway_v6,
        static_routes,
        disable_gateway_service: true,
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{
        DualAddr, Mac, NetworkId, NodeId, NodePlan, TaskId, Vni,
        net::Subnets,
        plan::{AttachedLink, AttachedPlan, TaskPlan},
    };

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
        let plan = NodePlan { tasks: vec![task], ..NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into()) };
        let local = plan.local().next().expect("the task");
        let links: Vec<_> = links_of(&local, &["a".to_owned(), "b".to_owned()]).into_values().collect();
        let name = |link: &Joined| link.interface_name.as_ref().map(|name| name.src_name.clone()).unwrap_or_default();
        let shown: Vec<_> = links.iter().map(|link| (name(link), link.gateway)).collect();
        assert_eq!(shown, [("a".to_owned(), Some([10, 0, 1, 1].into())), ("b".to_owned(), None)]);
        let v6: Vec<_> = links.iter().map(|link| link.gateway_v6.map(|gateway| gateway.to_string())).collect();
        assert_eq!(v6, [Some("fd00:1::1".to_owned()), None]);
        assert!(links.iter().all(|link| link.static_routes.is_empty() && link.disable_gateway_service));
    }

    #[test]
    fn the_links_of_another_container_are_known_by_their_numbers() {
        let link = |index, net| AttachedLink { index, attachment: attachment(net), present: true };
        let container =
            AttachedPlan { id: TaskId::from_random(1), identity: None, links: vec![link(1, 1), link(3, 2)] };
        let attached = vec![container];
        let plan = NodePlan { attached, ..NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into()) };
        let local = plan.local().next().expect("the container");
        let waiting = links_of(&local, &["a".to_owned(), "b".to_owned()]);
        let in_place = links_in_place(&local);
        for (index, name, gateway) in [(1, "a", [10, 0, 1, 1]), (3, "b", [10, 0, 2, 1])] {
            assert_eq!(waiting[&index].interface_name.as_ref().map(|name| name.src_name.as_str()), Some(name));
            assert_eq!(in_place[&index].interface_name, None, "the engine moves nothing");
            assert_eq!([&waiting, &in_place].map(|links| links[&index].gateway), [Some(gateway.into()); 2]);
        }
    }
}
