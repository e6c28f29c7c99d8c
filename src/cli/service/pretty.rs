//! Formats the lines that `weft service inspect --pretty` prints. They have the form of the docker
//! client. Pure.

use jiff::SignedDuration;
use serde_json::Value;

use super::super::{
    client::{list, number, text},
    duration,
    format::{human_size, time_ago},
    names::NamesById,
};

/// How many of the API's units of CPU time (1e-9 CPUs) are one CPU.
const NANO_CPUS_PER_CPU: f64 = 1e9;

/// Formats the lines about `service`. `networks` has the names of networks by their ids.
pub(super) fn lines(service: &Value, networks: &NamesById) -> Vec<String> {
    let mut out = vec![
        String::new(),
        format!("ID:\t\t{}", text(service, "/ID")),
        format!("Name:\t\t{}", text(service, "/Spec/Name")),
    ];
    if let Some(labels) = service.pointer("/Spec/Labels").and_then(Value::as_object).filter(|l| !l.is_empty()) {
        out.push("Labels:".to_owned());
        out.extend(labels.iter().map(|(key, value)| format!(" {key}={}", value.as_str().unwrap_or_default())));
    }
    match service.pointer("/Spec/Mode/Replicated/Replicas").and_then(Value::as_u64) {
        Some(replicas) => out.extend(["Service Mode:\tReplicated".to_owned(), format!(" Replicas:\t{replicas}")]),
        None => out.push("Service Mode:\tGlobal".to_owned()),
    }
    let update = text(service, "/UpdateStatus/State");
    if !update.is_empty() {
        out.push("UpdateStatus:".to_owned());
        out.push(format!(" State:\t\t{update}"));
        out.push(format!(" Started:\t{}", time_ago(text(service, "/UpdateStatus/StartedAt"))));
        if !text(service, "/UpdateStatus/CompletedAt").is_empty() {
            out.push(format!(" Completed:\t{}", time_ago(text(service, "/UpdateStatus/CompletedAt"))));
        }
        out.push(format!(" Message:\t{}", text(service, "/UpdateStatus/Message")));
    }
    out.push("Placement:".to_owned());
    let constraints: Vec<&str> =
        list(service, "/Spec/TaskTemplate/Placement/Constraints").iter().filter_map(Value::as_str).collect();
    if !constraints.is_empty() {
        out.push(format!(" Constraints:\t[{}]", constraints.join(" ")));
    }
    update_config(&mut out, service, "Update", "/Spec/UpdateConfig");
    update_config(&mut out, service, "Rollback", "/Spec/RollbackConfig");
    container(&mut out, service);
    let attached = list(service, "/Spec/TaskTemplate/Networks");
    if !attached.is_empty() {
        let name = |n: &Value| networks.get(text(n, "/Target")).map_or(text(n, "/Target"), String::as_str).to_owned();
        out.push(format!("Networks: {}", attached.iter().map(name).collect::<Vec<_>>().join(" ")));
    }
    out.push(format!("Endpoint Mode:\t{}", text(service, "/Spec/EndpointSpec/Mode")));
    let ports = list(service, "/Endpoint/Ports");
    if !ports.is_empty() {
        out.push("Ports:".to_owned());
        for port in ports {
            out.push(format!(" PublishedPort = {}", number(port, "/PublishedPort")));
            out.push(format!("  Protocol = {}", text(port, "/Protocol")));
            out.push(format!("  TargetPort = {}", number(port, "/TargetPort")));
            out.push(format!("  PublishMode = {}", text(port, "/PublishMode")));
        }
    }
    out
}

/// Formats the section about how tasks are replaced. `kind` is `Update` or `Rollback`, and `at` the
/// JSON pointer to its settings.
fn update_config(out: &mut Vec<String>, service: &Value, kind: &str, at: &str) {
    let Some(config) = service.pointer(at).filter(|c| c.is_object()) else { return };
    out.push(format!("{kind}Config:"));
    out.push(format!(" Parallelism:\t{}", number(config, "/Parallelism")));
    let length = |at: &str| SignedDuration::from_nanos(config.pointer(at).and_then(Value::as_i64).unwrap_or_default());
    let delay = length("/Delay");
    if delay.is_positive() {
        out.push(format!(" Delay:\t\t{}", duration::format(delay)));
    }
    out.push(format!(" On failure:\t{}", text(config, "/FailureAction")));
    out.push(format!(" Monitoring Period: {}", duration::format(length("/Monitor"))));
    let ratio = config.get("MaxFailureRatio").and_then(Value::as_f64).unwrap_or_default();
    out.push(format!(" Max failure ratio: {ratio}"));
    out.push(format!(" {:<18} {}", format!("{kind} order:"), text(config, "/Order")));
}

fn container(out: &mut Vec<String>, service: &Value) {
    let at = |field: &str| format!("/Spec/TaskTemplate/ContainerSpec/{field}");
    out.push("ContainerSpec:".to_owned());
    out.push(format!(" Image:\t\t{}", text(service, &at("Image"))));
    let mut texts = |title: &str, field: &str, separator: &str| {
        let texts: Vec<&str> = list(service, &at(field)).iter().filter_map(Value::as_str).collect();
        if !texts.is_empty() {
            out.push(format!(" {title}\t{}", texts.join(separator)));
        }
    };
    texts("Command:\t", "Command", " ");
    texts("Args:\t", "Args", " ");
    texts("Env:\t", "Env", " ");
    // The docker client does not print these.
    texts("DNS:\t", "DNSConfig/Nameservers", " ");
    texts("DNS search:", "DNSConfig/Search", " ");
    texts("DNS options:", "DNSConfig/Options", " ");
    texts("Hosts:\t", "Hosts", ", ");
    let resource = |group: &str, field: &str| number(service, &format!("/Spec/TaskTemplate/Resources/{group}/{field}"));
    let groups = [("Reservations", "Reservations"), ("Limits", "Limits")];
    let lines: Vec<String> = groups
        .iter()
        .flat_map(|(title, group)| {
            let (cpus, memory) = (resource(group, "NanoCPUs"), resource(group, "MemoryBytes"));
            let cpu = (cpus > 0).then(|| format!("  CPU:\t\t{}", cpus as f64 / NANO_CPUS_PER_CPU));
            let memory = (memory > 0).then(|| format!("  Memory:\t{}", human_size(memory)));
            let heading = (cpu.is_some() || memory.is_some()).then(|| format!(" {title}:"));
            heading.into_iter().chain(cpu).chain(memory)
        })
        .collect();
    if !lines.is_empty() {
        out.push("Resources:".to_owned());
        out.extend(lines);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_update_has_a_state_and_a_message() {
        let service = json!({
            "ID": "s", "Spec": { "Name": "web", "Mode": { "Replicated": { "Replicas": 2 } },
                "TaskTemplate": { "ContainerSpec": { "Image": "i" }, "Networks": [{ "Target": "n" }] },
                "EndpointSpec": { "Mode": "vip" } },
            "UpdateStatus": { "State": "paused", "Message": "why" },
        });
        let shown = lines(&service, &[("n".to_owned(), "app".to_owned())].into()).join("\n");
        for line in ["Name:\t\tweb", " Replicas:\t2", " State:\t\tpaused", " Message:\twhy", "Networks: app"] {
            assert!(shown.contains(line), "{line} is missing in\n{shown}");
        }
    }

    #[test]
    fn the_settings_of_names_have_a_line_each() {
        let service = json!({ "Spec": { "TaskTemplate": { "ContainerSpec": {
            "Args": ["a", "b"], "Hosts": ["192.0.2.7 db db.test", "192.0.2.8 web"],
            "DNSConfig": { "Nameservers": ["192.0.2.53"], "Search": ["a.test", "b.test"], "Options": ["rotate"] },
        } } } });
        let shown = lines(&service, &NamesById::new()).join("\n");
        for line in [
            " Args:\t\ta b",
            " DNS:\t\t192.0.2.53",
            " DNS search:\ta.test b.test",
            " DNS options:\trotate",
            " Hosts:\t\t192.0.2.7 db db.test, 192.0.2.8 web",
        ] {
            assert!(shown.contains(line), "{line} is missing in\n{shown}");
        }
        assert!(!lines(&json!({}), &NamesById::new()).join("\n").contains("DNS"));
    }

    #[test]
    fn durations_are_printed_as_the_docker_client_prints_them() {
        let service = json!({ "Spec": { "UpdateConfig": { "Delay": 90_000_000_000_i64, "Monitor": 500_000_000 } } });
        let shown = lines(&service, &NamesById::new()).join("\n");
        for line in [" Delay:\t\t1m30s", " Monitoring Period: 500ms"] {
            assert!(shown.contains(line), "{line} is missing in\n{shown}");
        }
    }

    #[test]
    fn updates_and_rollbacks_have_the_labels_of_the_docker_client() {
        let service = json!({ "Spec": {
            "UpdateConfig": { "Order": "start-first" }, "RollbackConfig": { "Order": "stop-first" },
        } });
        let shown = lines(&service, &NamesById::new()).join("\n");
        for line in
            ["UpdateConfig:", " Update order:      start-first", "RollbackConfig:", " Rollback order:    stop-first"]
        {
            assert!(shown.contains(line), "{line} is missing in\n{shown}");
        }
    }
}
