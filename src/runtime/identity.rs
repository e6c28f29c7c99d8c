//! The identity of a task inside its container: its host name, its variables, and the content of
//! its resolv.conf and hosts file. Pure.
//!
//! Both runtimes call it, so that a task has the same identity in both.

use std::net::{IpAddr, Ipv4Addr};

use weft_model::{NodeName, plan::TaskPlan, spec::SearchDomain};

/// Variables that each task has.
pub(crate) const NODE_VARIABLE: &str = "WEFT_NODE";
pub(crate) const TASK_NAME_VARIABLE: &str = "WEFT_TASK_NAME";
const TASK_ID_VARIABLE: &str = "WEFT_TASK_ID";
/// Address of the resolver in each task's network namespace.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// Address of the resolver in the network namespace of a container: the engine's own one has
/// [`RESOLVER`] there, and would answer names of the cluster with those of the container.
pub(crate) const CONTAINER_RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);
/// The option `ndots` of a task's resolv.conf, unless the user chose another value. With 0, a name
/// is first looked up as it is, and only then in the search domains. So a search domain never hides
/// a service, and the names of services are not sent to other resolvers.
const DEFAULT_NDOTS: &str = "ndots:0";
/// Length of the default host name: a prefix of the task's id.
const HOSTNAME_LEN: usize = 12;

pub(crate) fn hostname(task: &TaskPlan) -> String {
    let own = task.hostname().filter(|name| !name.is_empty());
    own.unwrap_or(&task.id.as_str()[..HOSTNAME_LEN]).to_owned()
}

/// The search domains of a task's resolv.conf: those that the user chose, or those of the
/// `machine`.
pub(crate) fn search_domains(task: &TaskPlan, machine: &[String]) -> Vec<String> {
    match task.container.dns.search.as_slice() {
        [] => machine.to_vec(),
        [only] if only.as_str() == SearchDomain::ROOT => Vec::new(),
        chosen => chosen.iter().map(ToString::to_string).collect(),
    }
}

/// The options of a task's resolv.conf.
pub(crate) fn resolver_options(task: &TaskPlan) -> Vec<String> {
    let chosen = &task.container.dns.options;
    let ndots = (!chosen.iter().any(|option| option.name() == "ndots")).then(|| DEFAULT_NDOTS.to_owned());
    ndots.into_iter().chain(chosen.iter().map(ToString::to_string)).collect()
}

/// The names in a task's hosts file, besides those of the loopback addresses, each with an address:
/// the host name, and the names that the user chose.
pub(crate) fn hosts(task: &TaskPlan) -> Vec<(String, IpAddr)> {
    let own = task.attachments.first().into_iter().flat_map(|first| first.addr.ips());
    let own = own.map(|addr| (hostname(task), addr));
    own.chain(chosen_hosts(task)).collect()
}

/// The names that the user chose for a task's hosts file, each with an address.
pub(crate) fn chosen_hosts(task: &TaskPlan) -> impl Iterator<Item = (String, IpAddr)> {
    let chosen = task.container.hosts.iter();
    chosen.flat_map(|entry| entry.names().map(|name| (name.to_string(), entry.addr)))
}

/// `defaults`, followed by the user's variables of a task. As in Docker, a user's entry without `=`
/// is a name: it removes the variable that is set before it, and it is passed on if `keep_names`
/// says so. An engine needs it to remove variables of the image.
pub(crate) fn with_user_variables(defaults: Vec<String>, task: &TaskPlan, keep_names: bool) -> Vec<String> {
    let mut variables = defaults;
    for entry in task.env() {
        if !entry.contains('=') {
            variables.retain(|variable| variable.split_once('=').is_none_or(|(name, _)| name != entry));
            if !keep_names {
                continue;
            }
        }
        variables.push(entry.to_owned());
    }
    variables
}

/// weft's own variables. Callers put the user's variables after them ([`with_user_variables`]), so
/// that a user can replace them.
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
    fn the_users_search_domains_replace_the_machines() {
        let machine = ["corp.test".to_owned()];
        let check = |chosen: &[&str], want: &[&str]| {
            let domains = chosen.iter().map(|text| text.parse().expect("a search domain")).collect();
            let task = fixture::task(|container| container.dns.search = domains);
            assert_eq!(search_domains(&task, &machine), want, "{chosen:?}");
        };
        check(&[], &["corp.test"]);
        check(&["a.test", "b.test"], &["a.test", "b.test"]);
        check(&["."], &[]);
        check(&[".", "a.test"], &[".", "a.test"]);
    }

    #[test]
    fn the_users_ndots_replaces_the_default() {
        let check = |chosen: &[&str], want: &[&str]| {
            let options = chosen.iter().map(|text| text.parse().expect("an option")).collect();
            let task = fixture::task(|container| container.dns.options = options);
            assert_eq!(resolver_options(&task), want, "{chosen:?}");
        };
        check(&[], &["ndots:0"]);
        check(&["timeout:1", "rotate"], &["ndots:0", "timeout:1", "rotate"]);
        check(&["rotate", "ndots:2"], &["rotate", "ndots:2"]);
    }

    #[test]
    fn each_name_of_a_hosts_entry_has_its_address() {
        let entries = ["192.0.2.7 db.test db", "2001:db8::7 db"].map(|text| text.parse().expect("an entry"));
        let task = fixture::task(|container| container.hosts = entries.into());
        let hosts = hosts(&task).into_iter().map(|(name, addr)| format!("{name} {addr}")).collect::<Vec<_>>();
        assert_eq!(hosts, ["db.test 192.0.2.7", "db 192.0.2.7", "db 2001:db8::7"]);
    }

    #[test]
    fn a_name_alone_removes_the_variable_before_it() {
        let check = |user: &[&str], keep_names: bool, want: &[&str]| {
            let task = fixture::task(|container| container.env = user.iter().map(|&entry| entry.to_owned()).collect());
            let defaults = ["PATH=/bin", "PATHS=x", "WEFT_NODE=n1"].map(str::to_owned).into();
            assert_eq!(with_user_variables(defaults, &task, keep_names), want, "{user:?}");
        };
        check(&["PATH"], false, &["PATHS=x", "WEFT_NODE=n1"]);
        check(&["WEFT_NODE", "WEFT_NODE=mine"], false, &["PATH=/bin", "PATHS=x", "WEFT_NODE=mine"]);
        check(&["A=1", "A", "B="], false, &["PATH=/bin", "PATHS=x", "WEFT_NODE=n1", "B="]);
        check(&["IMAGE_VARIABLE"], false, &["PATH=/bin", "PATHS=x", "WEFT_NODE=n1"]);
        check(&["IMAGE_VARIABLE", "PATHS"], true, &["PATH=/bin", "WEFT_NODE=n1", "IMAGE_VARIABLE", "PATHS"]);
    }

    #[test]
    fn the_variables_name_the_node_and_the_task() {
        let task = fixture::task(|_| ());
        let want =
            ["WEFT_NODE=n1".to_owned(), format!("WEFT_TASK_ID={}", task.id), "WEFT_TASK_NAME=web.1.x".to_owned()];
        assert_eq!(environment(&task, &"n1".parse().expect("a valid node name")), want);
    }
}
