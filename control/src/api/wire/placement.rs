//! Converts constraints and spread preferences. They are texts on the wire, and attributes with
//! values in weft's types.

use weft_model::spec::{Constraint, NodeAttribute};

use crate::api::error::ApiError;

/// Reads a constraint such as `node.labels.storage==ssd` or `node.role != manager`.
pub(crate) fn read_constraint(text: &str) -> Result<Constraint, ApiError> {
    let found = ["==", "!="].into_iter().filter_map(|operator| Some((text.find(operator)?, operator))).min();
    let parts = found.and_then(|(_, operator)| Some((operator == "==", text.split_once(operator)?)));
    // The first operator counts: a value may contain another one, an attribute may not.
    let Some((equal, (attribute, value))) = parts.filter(|(_, (attribute, _))| !attribute.contains(['=', '!'])) else {
        return Err(invalid(text, "give ATTRIBUTE==VALUE or ATTRIBUTE!=VALUE"));
    };
    let value = value.trim();
    if value.is_empty() || value.contains(char::is_whitespace) {
        return Err(invalid(text, "its value must be one word"));
    }
    let attribute = attribute.trim();
    let attribute = read_attribute(attribute).ok_or_else(|| {
        invalid(text, "its attribute must be node.id, node.hostname, node.role, node.platform.os, node.platform.arch, node.labels.KEY or engine.labels.KEY")
    })?;
    if attribute == NodeAttribute::Role && !matches!(value, "manager" | "worker") {
        return Err(invalid(text, "a role is manager or worker"));
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

/// Reads the attribute over which tasks are spread, such as `node.labels.zone`.
pub(crate) fn read_spread(text: &str) -> Result<NodeAttribute, ApiError> {
    match read_attribute(text.trim()) {
        Some(attribute @ (NodeAttribute::Label(_) | NodeAttribute::EngineLabel(_))) => Ok(attribute),
        _ => Err(ApiError::Invalid(format!(
            "invalid placement preference spread={text}: spread over node.labels.KEY or engine.labels.KEY"
        ))),
    }
}

pub(crate) fn write_attribute(attribute: &NodeAttribute) -> String {
    match attribute {
        NodeAttribute::Id => "node.id".into(),
        NodeAttribute::Hostname => "node.hostname".into(),
        NodeAttribute::Role => "node.role".into(),
        NodeAttribute::PlatformOs => "node.platform.os".into(),
        NodeAttribute::PlatformArch => "node.platform.arch".into(),
        NodeAttribute::Label(key) => format!("node.labels.{key}"),
        NodeAttribute::EngineLabel(key) => format!("engine.labels.{key}"),
    }
}

fn read_attribute(text: &str) -> Option<NodeAttribute> {
    let label = |prefix: &str| text.strip_prefix(prefix).filter(|key| !key.is_empty()).map(str::to_owned);
    Some(match text {
        "node.id" => NodeAttribute::Id,
        "node.hostname" => NodeAttribute::Hostname,
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
            ("node.ip==10.0.0.1", "its attribute must be"),
            ("node.labels.==x", "its attribute must be"),
            ("node.role==boss", "a role is"),
            ("node.id==", "one word"),
        ] {
            let error = read_constraint(text).expect_err(text).to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(read_spread("node.id").is_err());
        assert!(read_spread("node.labels.zone").is_ok());
    }
}
