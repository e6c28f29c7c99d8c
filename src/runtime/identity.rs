//! Who a task is, as its program is told, whatever runs it: host name, variables, resolver.

use std::net::{IpAddr, Ipv4Addr};

use weft_model::{NodeName, plan::TaskPlan};

/// The variables that every task has.
pub(crate) const NODE_VARIABLE: &str = "WEFT_NODE";
pub(crate) const TASK_NAME_VARIABLE: &str = "WEFT_TASK_NAME";
const TASK_ID_VARIABLE: &str = "WEFT_TASK_ID";
/// Where every task's resolver answers.
pub(crate) const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
/// How much of a task's id is its host name where it has none of its own.
const HOSTNAME_LEN: usize = 12;

pub(crate) fn hostname(task: &TaskPlan) -> String {
    let own = task.container.hostname.clone().filter(|name| !name.is_empty());
    own.unwrap_or_else(|| task.id.as_str()[..HOSTNAME_LEN].to_owned())
}

/// To be put before the user's own variables: those win.
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
    fn a_task_without_a_host_name_is_called_by_its_id() {
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
    fn a_task_knows_its_node_and_its_names() {
        let task = fixture::task(|_| ());
        let want =
            ["WEFT_NODE=n1".to_owned(), format!("WEFT_TASK_ID={}", task.id), "WEFT_TASK_NAME=web.1.x".to_owned()];
        assert_eq!(environment(&task, &"n1".parse().unwrap()), want);
    }
}
