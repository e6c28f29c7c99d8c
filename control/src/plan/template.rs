//! Templates in host names, environment variables, and secrets and configs that were created with
//! them, such as `{{.Task.Slot}}`. Spaces inside the braces are allowed. The plan expands them, and
//! `state` refuses a service, secret or config with an unknown template.

use weft_model::state::{Node, Service, Slot, Task};

/// The values of the templates for one task.
#[derive(Debug)]
pub(crate) struct Values<'a> {
    node: &'a Node,
    service: &'a Service,
    task: &'a Task,
}

impl<'a> Values<'a> {
    pub(crate) fn of(node: &'a Node, service: &'a Service, task: &'a Task) -> Self {
        Self { node, service, task }
    }
}

type Value = fn(&Values<'_>) -> String;

/// The name and the value of each template.
pub(crate) const KNOWN: [(&str, Value); 7] = [
    (".Node.ID", |v| v.node.id.to_string()),
    (".Node.Hostname", |v| v.node.hostname.to_string()),
    (".Service.ID", |v| v.service.id.to_string()),
    (".Service.Name", |v| v.service.spec.name.to_string()),
    (".Task.ID", |v| v.task.id.to_string()),
    (".Task.Name", |v| v.task.name.clone()),
    (".Task.Slot", |v| match &v.task.slot {
        Slot::Replica(nth) => nth.to_string(),
        Slot::Node(node) => node.to_string(),
    }),
];

/// The first unknown template in `text`, with its braces.
pub(crate) fn unknown(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some((before, name, after)) = next(rest) {
        if value(name).is_none() {
            return Some(&rest[before.len()..rest.len() - after.len()]);
        }
        rest = after;
    }
    None
}

/// Whether `text` may have templates.
pub(crate) fn is_in(text: &str) -> bool {
    next(text).is_some()
}

/// `text` with every known template replaced.
pub(crate) fn expand(text: &str, values: &Values<'_>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, name, after)) = next(rest) {
        expanded.push_str(before);
        match value(name) {
            Some(value) => expanded.push_str(&value(values)),
            None => expanded.push_str(&rest[before.len()..rest.len() - after.len()]),
        }
        rest = after;
    }
    expanded + rest
}

fn value(name: &str) -> Option<Value> {
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// The text before the next pair of braces, inside it, and after it.
fn next(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("{{")?;
    let (name, after) = rest.split_once("}}")?;
    Some((before, name.trim(), after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_unknown_template() {
        for good in ["plain", "{{.Task.Slot}}", "a-{{ .Node.Hostname }}-{{.Service.Name}}", "{{", "}}{{"] {
            assert_eq!(unknown(good), None, "{good}");
        }
        assert_eq!(unknown("x-{{.Task.Slot}}-{{.Task.Age}}"), Some("{{.Task.Age}}"));
    }
}
