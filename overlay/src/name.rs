//! The names and aliases of the links that are weft's. A link in the node's namespace is weft's if and only if its name
//! says so: the kernel sets a name with the link itself, and an alias only afterwards.

use weft_model::{NetworkId, TaskId};

/// The one VXLAN device of a node. Its namespace is the node's, so a fixed name does.
pub(crate) const TUNNEL: &str = "weft-tun";
/// Made and removed at once, to learn whether the kernel can.
pub(crate) const PROBE: &str = "weft-probe";
/// Longest name of a link (IFNAMSIZ less the final zero).
const MAX_LEN: usize = 15;
/// Begins the name of the host side of a task's link.
const HOST_PREFIX: &str = "wv";
/// Fewest digits of a task id in such a name: 36^9 keep a node's tasks apart.
const MIN_ID_DIGITS: usize = 9;

/// The host side of a task's `index`th link: the last digits of the task's id (the first ones are the least random),
/// and the index.
pub(crate) fn host_side(task: &TaskId, index: usize) -> String {
    let suffix = format!("-{index}");
    let digits = MAX_LEN - HOST_PREFIX.len() - suffix.len();
    let id = task.as_str();
    format!("{HOST_PREFIX}{}{suffix}", &id[id.len() - digits..])
}

/// The task's side of its `index`th link.
pub(crate) fn task_side(index: usize) -> String {
    format!("eth{index}")
}

/// What `ip link` shows of the host side, for people.
pub(crate) fn alias(task: &TaskId, network: &NetworkId) -> String {
    format!("weft task={task} network={network}")
}

/// Whether [`host_side`] makes such names.
pub(crate) fn is_host_side(name: &str) -> bool {
    let Some((id, index)) = name.strip_prefix(HOST_PREFIX).and_then(|rest| rest.split_once('-')) else {
        return false;
    };
    name.len() == MAX_LEN
        && id.len() >= MIN_ID_DIGITS
        && id.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        && !index.is_empty()
        && index.bytes().all(|b| b.is_ascii_digit())
}

/// Whether a link of the node is weft's.
pub(crate) fn is_ours(name: &str) -> bool {
    name == TUNNEL || name == PROBE || is_host_side(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_sides_fit_and_are_recognised() {
        let task = TaskId::from_random(u128::MAX - 7);
        for index in [0, 1, 9, 10, 99, 100] {
            let name = host_side(&task, index);
            assert_eq!(name.len(), MAX_LEN, "{name}");
            assert!(is_host_side(&name) && is_ours(&name), "{name}");
        }
        assert_ne!(host_side(&task, 0), host_side(&task, 1));
        assert_ne!(host_side(&task, 0), host_side(&TaskId::from_random(u128::MAX - 8), 0));
    }

    #[test]
    fn other_links_are_not_ours() {
        for name in ["eth0", "lo", "wv0", "wv-0", "wvABCDEFGHIJK-0", "wvabcdefghijk-x", "wvabcdefghijkl0", "veth12ab-0"]
        {
            assert!(!is_ours(name), "{name}");
        }
        assert!(is_ours(TUNNEL));
    }
}
