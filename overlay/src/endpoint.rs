//! The links through which the tasks of this node can be reached. Pure.
//!
//! `reconcile` computes them after each pass; the agent gives them to the mesh. A link that was
//! never configured completely is no endpoint, so that no traffic reaches a task too early.

use std::collections::BTreeMap;

use weft_model::{DualAddr, Mac, NetworkId, TaskId, Vni};

use crate::{
    actual::ActualNetns,
    desired::{Desired, DesiredAttachment},
};

/// One link of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub task: TaskId,
    pub network: NetworkId,
    pub vni: Vni,
    /// The index of the host side, in the node's namespace.
    pub host_ifindex: u32,
    /// The address of the task side.
    pub mac: Mac,
    pub addr: DualAddr,
    /// `SO_NETNS_COOKIE` of the task's network namespace. `None` if it does not exist yet.
    pub netns_cookie: Option<u64>,
}

/// Computes the endpoints of a node whose namespace holds `node`. `cookies` has the namespace
/// cookies of the tasks whose links are configured; `None` if the task has no namespace yet.
///
/// A task that is not in `cookies` keeps its endpoints in `previous` that have not changed. So a
/// task whose links cannot be read or repaired for a moment keeps its traffic as long as its host
/// sides exist.
pub(crate) fn endpoints(
    desired: &Desired,
    node: &ActualNetns,
    cookies: &BTreeMap<&TaskId, Option<u64>>,
    previous: &[Endpoint],
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for (task, desired) in &desired.tasks {
        for attachment in &desired.attachments {
            let Some(link) = node.links.get(&attachment.host) else { continue };
            match cookies.get(task) {
                Some(cookie) => endpoints.push(endpoint(task, attachment, link.index, *cookie)),
                None => endpoints.extend(
                    previous
                        .iter()
                        .find(|previous| **previous == endpoint(task, attachment, link.index, previous.netns_cookie))
                        .cloned(),
                ),
            }
        }
    }
    endpoints
}

fn endpoint(task: &TaskId, attachment: &DesiredAttachment, host_ifindex: u32, netns_cookie: Option<u64>) -> Endpoint {
    Endpoint {
        task: task.clone(),
        network: attachment.network.clone(),
        vni: attachment.vni,
        host_ifindex,
        mac: attachment.mac,
        addr: attachment.addr,
        netns_cookie,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actual::ActualLink, desired::DesiredTask};

    fn task() -> TaskId {
        TaskId::from_random(7)
    }

    fn desired(host: u8) -> Desired {
        let addr = DualAddr { v4: Some([10, 0, 1, host].into()), v6: [0xfd00, 1, 0, 0, 0, 0, 0, host.into()].into() };
        let attachment = DesiredAttachment {
            host: "wv-0".to_owned(),
            network: NetworkId::from_random(1),
            vni: Vni::new(4097).expect("a VNI"),
            wanted_mtu: None,
            mac: Mac::of_task(addr),
            addr,
        };
        let task_desired = DesiredTask { attachments: vec![attachment], ..DesiredTask::default() };
        Desired { tasks: [(task(), task_desired)].into(), ..Desired::default() }
    }

    fn node(index: u32) -> ActualNetns {
        ActualNetns {
            links: [("wv-0".to_owned(), ActualLink { index, ..ActualLink::default() })].into(),
            ..ActualNetns::default()
        }
    }

    /// `expected` are the indexes of the host sides and the cookies of the endpoints.
    fn check(
        desired: &Desired,
        node: &ActualNetns,
        cookie: Option<u64>,
        previous: &[Endpoint],
        expected: &[(u32, u64)],
    ) {
        let task = task();
        let cookies = cookie.map(|cookie| (&task, Some(cookie))).into_iter().collect();
        let actual = endpoints(desired, node, &cookies, previous);
        let expected: Vec<_> = expected.iter().map(|(index, cookie)| (*index, Some(*cookie))).collect();
        assert_eq!(actual.iter().map(|e| (e.host_ifindex, e.netns_cookie)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_task_that_cannot_be_read_keeps_its_unchanged_endpoints() {
        let previous = endpoints(&desired(2), &node(21), &[(&task(), Some(5))].into(), &[]);
        check(&desired(2), &node(21), None, &previous, &[(21, 5)]);
        // The link was replaced, is gone, has another address, or is not desired any more.
        check(&desired(2), &node(22), None, &previous, &[]);
        check(&desired(2), &ActualNetns::default(), None, &previous, &[]);
        check(&desired(3), &node(21), None, &previous, &[]);
        check(&Desired::default(), &node(21), None, &previous, &[]);
    }

    #[test]
    fn a_link_that_was_never_configured_is_no_endpoint() {
        check(&desired(2), &node(21), None, &[], &[]);
        check(&desired(2), &node(21), Some(5), &[], &[(21, 5)]);
    }

    #[test]
    fn the_current_state_of_a_configured_task_replaces_the_previous_one() {
        let previous = endpoints(&desired(2), &node(21), &[(&task(), Some(5))].into(), &[]);
        check(&desired(2), &node(22), Some(6), &previous, &[(22, 6)]);
    }

    #[test]
    fn a_task_without_a_namespace_has_endpoints_without_a_cookie() {
        let cookies = BTreeMap::from([(task(), None)]);
        let cookies = cookies.iter().map(|(task, cookie)| (task, *cookie)).collect();
        let actual = endpoints(&desired(2), &node(21), &cookies, &[]);
        assert_eq!(actual.iter().map(|e| (e.host_ifindex, e.netns_cookie)).collect::<Vec<_>>(), [(21, None)]);
    }
}
