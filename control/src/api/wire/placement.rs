//! Converts constraints and spread preferences. They are texts on the wire, and attributes with
//! values in weft's types.

use ipnetwork::IpNetwork;
use weft_model::spec::{Constraint, NodeAttribute};

use crate::api::error::ApiError;

const ATTRIBUTES: &str = "node.id, node.hostname, node.ip, node.role, node.platform.os, node.platform.arch, \
                          node.labels.KEY or engine.labels.KEY";

/// Reads a constraint such as `node.labels.storage==ssd` or `node.role != Manager`.
pub(crate) fn read_constraint(text: &str) -> Result<Constraint, ApiError> {
    let found = ["==", "!="].into_iter().filter_map(|operator| Some((text.find(operator)?, operator))).min();
    let parts = found.and_then(|(_, operator)| Some((operator == "==", text.split_once(operator)?)));
    // The first operator counts: a value may contain another one, an attribute may not, and it may
    // not end like the beginning of one.
    let is_attribute = |text: &str| !text.contains('=') && !text.trim().ends_with('!');
    let Some((equal, (attribute, value))) = parts.filter(|(_, (attribute, _))| is_attribute(attribute)) else {
        return Err(invalid(text, "give ATTRIBUTE==VALUE or ATTRIBUTE!=VALUE"));
    };
    let (attribute, value) = (attribute.trim(), value.trim());
    if value.is_empty() {
        return Err(invalid(text, "its value is empty"));
    }
    let attribute =
        read_attribute(attribute).ok_or_else(|| invalid(text, &format!("its attribute must be {ATTRIBUTES}")))?;
    if attribute == NodeAttribute::Role && !["manager", "worker"].contains(&value.to_lowercase().as_str()) {
        return Err(invalid(text, "a role is manager or worker"));
    }
    if attribute == NodeAttribute::Ip && value.parse::<IpNetwork>().is_err() {
        return Err(invalid(text, "give an address or a subnet, such as 192.0.2.1 or 192.0.2.0/24"));
    }
    Ok(Constraint { attribute, equal, value: value.to_owned() })
}

fn invalid(text: &str, why: &str) -> ApiError {
    ApiError::Invalid(format!("invalid constraint {text:?}: {why}"))
}

pub(crate) fn write_constraint(constraint: &Constraint) -> String {
    let operator = if constraint.equal { "==" } else { "!=" };
    format!("{}{operator}{}", write_attribute(&constraint.attribute), constraint.value)
}

/// Reads the attribute over which tasks are spread, such as `node.labels.zone`. Swarm accepts any
/// text, and ignores what is no label.
pub(crate) fn read_spread(text: &str) -> Result<NodeAttribute, ApiError> {
    read_attribute(text.trim()).ok_or_else(|| {
        ApiError::Invalid(format!("invalid placement preference spread={text}: spread over {ATTRIBUTES}"))
    })
}

pub(crate) fn write_attribute(attribute: &NodeAttribute) -> String {
    match attribute {
        NodeAttribute::Id => "node.id".into(),
        NodeAttribute::Hostname => "node.hostname".into(),
        NodeAttribute::Ip => "node.ip".into(),
        NodeAttribute::Role => "node.role".into(),
        NodeAttribute::PlatformOs => "node.platform.os".into(),
        NodeAttribute::PlatformArch => "node.platform.arch".into(),
        NodeAttribute::Label(key) => format!("node.labels.{key}"),
        NodeAttribute::EngineLabel(key) => format!("engine.labels.{key}"),
    }
}

/// Reads an attribute. Only the key of a label distinguishes upper case from lower case.
fn read_attribute(text: &str) -> Option<NodeAttribute> {
    let label = |prefix: &str| {
        let (start, key) = text.split_at_checked(prefix.len())?;
        (start.eq_ignore_ascii_case(prefix) && !key.is_empty()).then(|| key.to_owned())
    };
    Some(match text.to_ascii_lowercase().as_str() {
        "node.id" => NodeAttribute::Id,
        "node.hostname" => NodeAttribute::Hostname,
        "node.ip" => NodeAttribute::Ip,
        "node.role" => NodeAttribute::Role,
        "node.platform.os" => NodeAttribute::PlatformOs,
        "node.platform.arch" => NodeAttribute::PlatformArch,
        _ => match label("node.labels.") {
            Some(key) => NodeAttribute::Label(key),
            None => NodeAttribute::EngineLabel(label("engine.labels.")?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constraint_is_written_in_one_form() {
        for (text, written) in [
            ("node.labels.storage==ssd", "node.labels.storage==ssd"),
            ("node.role != manager", "node.role!=manager"),
            ("node.hostname == n1", "node.hostname==n1"),
            ("engine.labels.a.b==c", "engine.labels.a.b==c"),
            ("node.labels.a != =b", "node.labels.a!==b"),
            ("node.labels.a!==b", "node.labels.a!==b"),
            ("node.labels.a==b!=c", "node.labels.a==b!=c"),
            ("node.labels.os == ubuntu 14.04", "node.labels.os==ubuntu 14.04"),
            ("Node.Role==Manager", "node.role==Manager"),
            ("NODE.LABELS.com.example/Zone!A == x", "node.labels.com.example/Zone!A==x"),
            ("Engine.Labels.Größe!=10 km", "engine.labels.Größe!=10 km"),
            ("node.ip == 192.0.2.1", "node.ip==192.0.2.1"),
            ("node.ip != 2001:db8::/32", "node.ip!=2001:db8::/32"),
        ] {
            assert_eq!(read_constraint(text).map(|c| write_constraint(&c)), Ok(written.to_owned()));
        }
    }

    #[test]
    fn an_invalid_constraint_gets_an_error_that_says_why() {
        for (text, why) in [
            ("node.role", "give ATTRIBUTE==VALUE"),
            ("node.role=manager", "give ATTRIBUTE==VALUE"),
            ("node.labels.a=!=b", "give ATTRIBUTE==VALUE"),
            ("node.labels.a! == b", "give ATTRIBUTE==VALUE"),
            ("node.ip==n1", "give an address or a subnet"),
            ("node.ip==192.0.2.0/33", "give an address or a subnet"),
            ("node.zone==x", "its attribute must be"),
            ("ö==x", "its attribute must be"),
            ("node.labels.==x", "its attribute must be"),
            ("node.role==boss", "a role is"),
            ("node.id== ", "its value is empty"),
        ] {
            let error = read_constraint(text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
        for (text, attribute) in [
            (" Node.Labels.zone ", Some("node.labels.zone")),
            ("engine.labels.a b", Some("engine.labels.a b")),
            ("node.hostname", Some("node.hostname")),
            ("node.ip", Some("node.ip")),
            ("zone", None),
            ("node.labels.", None),
            ("", None),
        ] {
            let read = read_spread(text).ok().map(|attribute| write_attribute(&attribute));
            assert_eq!(read.as_deref(), attribute, "{text:?}");
        }
    }
}
