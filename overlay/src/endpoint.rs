//! What tasks are reached by: the host sides of their links. Pure.

use std::collections::BTreeMap;

use weft_model::{DualAddr, Mac, NetworkId, TaskId, Vni};

use crate::{
    desired::{Desired, WantedAttachment},
    found::Found,
};

/// One link of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub task: TaskId,
    pub network: NetworkId,
    pub vni: Vni,
    /// Of its host side, in the node's namespace.
    pub host_ifindex: u32,
    /// Of its side in the task's namespace.
    pub mac: Mac,
    pub addr: DualAddr,
    /// Of the task's network namespace.
    pub netns_cookie: u64,
}

/// The endpoints of a node that holds `node`: of every task whose sandbox is in order (`cookies` has it), and of the
/// others those that are as they were (`before`). A refusal of the kernel's, or a sandbox that could not be looked into
/// just now, takes no traffic from a task whose link is still there; a link that was never in order gets none.
pub(crate) fn endpoints(
    desired: &Desired,
    node: &Found,
    cookies: &BTreeMap<&TaskId, u64>,
    before: &[Endpoint],
) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for (task, wanted) in &desired.tasks {
        for attachment in &wanted.attachments {
            let Some(link) = node.links.get(&attachment.host) else { continue };
            match cookies.get(task) {
                Some(cookie) => endpoints.push(endpoint(task, attachment, link.index, *cookie)),
                None => endpoints.extend(
                    before
                        .iter()
                        .find(|was| **was == endpoint(task, attachment, link.index, was.netns_cookie))
                        .cloned(),
                ),
            }
        }
    }
    endpoints
}

fn endpoint(task: &TaskId, attachment: &WantedAttachment, host_ifindex: u32, netns_cookie: u64) -> Endpoint {
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
    use crate::{desired::WantedTask, found::FoundLink};

    fn task() -> TaskId {
        TaskId::from_random(7)
    }

    fn desired(host: u8) -> Desired {
        let addr = DualAddr { v4: [10, 0, 1, host].into(), v6: [0xfd00, 1, 0, 0, 0, 0, 0, host.into()].into() };
        let attachment = WantedAttachment {
            host: "wv-0".to_owned(),
            network: NetworkId::from_random(1),
            vni: Vni::new(4097).expect("a VNI"),
            mac: Mac::of_task(addr.v4),
            addr,
        };
        let wanted = WantedTask { attachments: vec![attachment], ..WantedTask::default() };
        Desired { tasks: [(task(), wanted)].into(), ..Desired::default() }
    }

    fn node(index: u32) -> Found {
        Found { links: [("wv-0".to_owned(), FoundLink { index, ..FoundLink::default() })].into(), ..Found::default() }
    }

    /// Indexes of the host sides that are endpoints.
    fn check(desired: &Desired, node: &Found, cookie: Option<u64>, before: &[Endpoint], expected: &[(u32, u64)]) {
        let task = task();
        let cookies = cookie.map(|cookie| (&task, cookie)).into_iter().collect();
        let found = endpoints(desired, node, &cookies, before);
        assert_eq!(found.iter().map(|e| (e.host_ifindex, e.netns_cookie)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_fault_keeps_the_endpoints_whose_links_are_still_the_same() {
        let before = endpoints(&desired(2), &node(21), &[(&task(), 5)].into(), &[]);
        check(&desired(2), &node(21), None, &before, &[(21, 5)]);
        // Made anew meanwhile, gone, for another address, or wanted no more.
        check(&desired(2), &node(22), None, &before, &[]);
        check(&desired(2), &Found::default(), None, &before, &[]);
        check(&desired(3), &node(21), None, &before, &[]);
        check(&Desired::default(), &node(21), None, &before, &[]);
    }

    #[test]
    fn a_link_that_was_never_in_order_is_no_endpoint() {
        check(&desired(2), &node(21), None, &[], &[]);
        check(&desired(2), &node(21), Some(5), &[], &[(21, 5)]);
    }

    #[test]
    fn what_is_found_in_order_counts_and_not_what_was() {
        let before = endpoints(&desired(2), &node(21), &[(&task(), 5)].into(), &[]);
        check(&desired(2), &node(22), Some(6), &before, &[(22, 6)]);
    }
}
