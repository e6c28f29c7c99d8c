//! The names and aliases of weft's links. Pure.
//!
//! `desired`, `diff` and `facts` use them. Invariant: a link in the node's namespace belongs to
//! weft if and only if its name says so. The name, and not the alias, marks a link, because the
//! kernel sets the name when it creates the link, and the alias only later.

use weft_model::{NetworkId, TaskId};

/// The one VXLAN device of a node. Each node has its own network namespace, so the name can be
/// fixed.
pub(crate) const TUNNEL: &str = "weft-tun";
/// A link that [`crate::Overlay::check`] creates and deletes again, to test the kernel.
pub(crate) const PROBE: &str = "weft-probe";
/// The links of this node's WireGuard keys. A node has two keys while it replaces one.
pub(crate) const WIREGUARD: [&str; 2] = ["weft-wg0", "weft-wg1"];
/// Octets of the longest name of a link: `IFNAMSIZ` (linux/if.h) less the final zero.
const MAX_LEN: usize = 15;
/// The beginning of the name of a host side.
const HOST_PREFIX: &str = "wv";
/// The beginning of the name of a task side that waits in the node's namespace for the engine.
const HANDED_OVER_PREFIX: &str = "wp";
/// The fewest digits of a task id in such a name. 36^9 values are enough for the tasks of one node.
const MIN_ID_DIGITS: usize = 9;

/// The name of the host side of a task's `index`th link: the last digits of the task's id and the
/// index. The first digits of an id are less random than the last ones.
pub(crate) fn host_side(task: &TaskId, index: usize) -> String {
    of_task(HOST_PREFIX, task, index)
}

/// The name of the task side of a task's `index`th link, until the engine moves it to the task's
/// namespace.
pub fn handed_over(task: &TaskId, index: usize) -> String {
    of_task(HANDED_OVER_PREFIX, task, index)
}

fn of_task(prefix: &str, task: &TaskId, index: usize) -> String {
    let suffix = format!("-{index}");
    let digits = MAX_LEN - prefix.len() - suffix.len();
    let id = task.as_str();
    format!("{prefix}{}{suffix}", &id[id.len() - digits..])
}

/// The name of the task side of a task's `index`th link.
pub(crate) fn task_side(index: usize) -> String {
    format!("eth{index}")
}

/// The name of the task side of a link that weft makes in the namespace. In a container that is no
/// task, the engine may choose any name that [`task_side`] returns for a link of its own.
pub(crate) fn new_task_side(index: usize, is_task: bool) -> String {
    if is_task { task_side(index) } else { format!("weft{index}") }
}

/// The alias of the host side, which `ip link` shows to the operator.
pub(crate) fn alias(task: &TaskId, network: &NetworkId) -> String {
    format!("weft task={task} network={network}")
}

/// Whether `name` has the form that [`host_side`] returns.
pub(crate) fn is_host_side(name: &str) -> bool {
    is_of_task(HOST_PREFIX, name)
}

/// Whether `name` has the form that [`handed_over`] returns.
fn is_handed_over(name: &str) -> bool {
    is_of_task(HANDED_OVER_PREFIX, name)
}

fn is_of_task(prefix: &str, name: &str) -> bool {
    let Some((id, index)) = name.strip_prefix(prefix).and_then(|suffix| suffix.split_once('-')) else {
        return false;
    };
    name.len() == MAX_LEN
        && id.len() >= MIN_ID_DIGITS
        && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        && !index.is_empty()
        && index.bytes().all(|b| b.is_ascii_digit())
}

/// The name of the WireGuard link that listens at `port`. Two neighbouring ports give different
/// names.
pub(crate) fn wireguard(port: u16) -> &'static str {
    let [even, odd] = WIREGUARD;
    if port.is_multiple_of(2) { even } else { odd }
}

/// Whether `name` is that of a WireGuard link of weft.
pub(crate) fn is_wireguard(name: &str) -> bool {
    WIREGUARD.contains(&name)
}

/// Whether a link in the node's namespace belongs to weft.
pub(crate) fn is_weft_link(name: &str) -> bool {
    name == TUNNEL || name == PROBE || is_wireguard(name) || is_host_side(name) || is_handed_over(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_host_side_fits_and_is_recognised() {
        let task = TaskId::from_random(u128::MAX - 7);
        for index in [0, 1, 9, 10, 99, 100] {
            let name = host_side(&task, index);
            assert_eq!(name.len(), MAX_LEN, "{name}");
            assert!(is_host_side(&name) && is_weft_link(&name), "{name}");
            let name = handed_over(&task, index);
            assert!(!is_host_side(&name) && is_weft_link(&name) && name.len() == MAX_LEN, "{name}");
        }
        assert_ne!(host_side(&task, 0), host_side(&task, 1));
        assert_ne!(host_side(&task, 0), host_side(&TaskId::from_random(u128::MAX - 8), 0));
    }

    #[test]
    fn other_names_are_not_recognised() {
        for name in ["eth0", "lo", "wv0", "wv-0", "wvABCDEFGHIJK-0", "wvabcdefghijk-x", "wvabcdefghijkl0", "veth12ab-0"]
        {
            assert!(!is_weft_link(name), "{name}");
        }
        assert!(is_weft_link(TUNNEL));
    }

    #[test]
    fn neighbouring_ports_have_different_links() {
        for port in [51820, 51821, u16::MAX - 1] {
            assert_ne!(wireguard(port), wireguard(port + 1));
            assert!(is_weft_link(wireguard(port)));
        }
    }
}
