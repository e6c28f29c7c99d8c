//! The identity of a task inside its container: its host name, its variables and the address of its
//! resolver. Pure.
//!
//! Both runtimes call it, so that a task has the same identity in both.

use std::net::{IpAddr, Ipv4Addr};

use weft_model::{NodeName, plan::TaskPlan};

/// Variables that each task has.
pub(crate) const NODE_VARIABLE: &str = "WEFT_NODE";
pub(crate) const TASK_NAME_VARIABLE: &str = "WEFT_TASK_NAME";
const TASK_ID_VARIABLE: &str = "WEFT_TASK_ID";
/// Address of the resolver in each task's network namespace.
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// The options of each task's resolv.conf. With `ndots:0` a name is first looked up as it is, and
/// only then in the search domains. So a search domain never hides a service, and the names of
/// services are not sent to other resolvers.
pub(crate) const RESOLVER_OPTIONS: &str = "ndots:0";
/// Length of the default host name: a prefix of the task's id.
const HOSTNAME_LEN: usize = 12;

pub(crate) fn hostname(task: &TaskPlan) -> String {
    let own = task.container.hostname.clone().filter(|name| !name.is_empty());
    own.unwrap_or_else(|| task.id.as_str()[..HOSTNAME_LEN].to_owned())
}

/// weft's own variables. Callers put the user's variables after them, so that a user can replace
/// them.
pub(crate) fn environment(task: &TaskPlan, node: &NodeName) -> [String; 3] {
    [
        format!("{NODE_VARIABLE}={node}"),
        format!("{TASK_ID_VARIABLE}={}", task.id),
        format!("{TASK_NAME_VARIABLE}={}", task.name),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fixture;

    #[test]
    fn the_default_host_name_is_a_prefix_of_the_task_id() {
        let check = |given: Option<&str>, want: &str| {
            let task = fixture::task(|container| container.hostname = given.map(str::to_owned));
            assert_eq!(hostname(&task), want);
        };
        let id = fixture::task(|_| ()).id;
        check(None, &id.as_str()[..12]);
        check(Some(""), &id.as_str()[..12]);
        check(Some("web"), "web");
    }

    #[test]
    fn the_variables_name_the_node_and_the_task() {
        let task = fixture::task(|_| ());
        let want =
            ["WEFT_NODE=n1".to_owned(), format!("WEFT_TASK_ID={}", task.id), "WEFT_TASK_NAME=web.1.x".to_owned()];
        assert_eq!(environment(&task, &"n1".parse().expect("a valid node name")), want);
    }
}
