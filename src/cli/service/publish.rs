//! Parses the value of `--publish`, which has a short and a long form. Pure.

use serde_json::{Value, json};

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Publish {
    pub target: u16,
    /// The port on each node. If it is `None`, the cluster chooses a port.
    pub published: Option<u16>,
    pub protocol: String,
    pub mode: String,
}

impl Publish {
    /// The port as the API expects it.
    pub(super) fn json(&self) -> Value {
        let mut port = json!({ "Protocol": self.protocol, "TargetPort": self.target, "PublishMode": self.mode });
        if let Some(published) = self.published {
            port["PublishedPort"] = published.into();
        }
        port
    }
}

/// Parses a port such as `8080:80`, `80`, `8080:80/udp` or
/// `published=8080,target=80,protocol=udp,mode=ingress`.
///
/// # Errors
///
/// If a part of the text is missing or not valid, or if the text contains an address of the host.
pub(super) fn parse(text: &str) -> Result<Publish, String> {
    if text.contains('=') { long(text) } else { short(text) }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse()
        .ok()
        .filter(|&port| port != 0)
        .ok_or_else(|| format!("invalid port {text:?}: give a number from 1 to 65535"))
}

fn short(text: &str) -> Result<Publish, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (published, target) = match ports.rsplit_once(':') {
        Some((published, _)) if published.contains(':') || published.contains('.') => {
            return Err(format!(
                "{text:?} names a host address, but weft publishes ports on all addresses: give PUBLISHED:TARGET"
            ));
        }
        Some((published, target)) => (Some(port(published)?), port(target)?),
        None => (None, port(ports)?),
    };
    Ok(Publish { target, published, protocol: protocol.to_ascii_lowercase(), mode: "ingress".to_owned() })
}

fn long(text: &str) -> Result<Publish, String> {
    let (mut target, mut published) = (None, None);
    let (mut protocol, mut mode) = ("tcp".to_owned(), "ingress".to_owned());
    for field in text.split(',') {
        let (key, value) =
            field.split_once('=').ok_or_else(|| format!("invalid field {field:?} in {text:?}: give KEY=VALUE"))?;
        match key {
            "target" => target = Some(port(value)?),
            "published" => published = Some(port(value)?),
            "protocol" => protocol = value.to_ascii_lowercase(),
            "mode" => mode = value.to_owned(),
            _ => {
                return Err(format!(
                    "unknown field {key:?} in {text:?}: the fields are target, published, protocol and mode"
                ));
            }
        }
    }
    let target = target.ok_or_else(|| format!("{text:?} has no target port: add target=PORT"))?;
    Ok(Publish { target, published, protocol, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, published: Option<u16>, target: u16, protocol: &str) {
        let want = Publish { target, published, protocol: protocol.into(), mode: "ingress".into() };
        assert_eq!(parse(text), Ok(want));
    }

    #[test]
    fn reads_both_forms() {
        check("8080:80", Some(8080), 80, "tcp");
        check("80", None, 80, "tcp");
        check("53:53/udp", Some(53), 53, "udp");
        check("published=8080,target=80", Some(8080), 80, "tcp");
        check("target=80,protocol=UDP", None, 80, "udp");
    }

    #[test]
    fn refuses_other_texts_with_a_reason() {
        for (text, reason) in [
            ("0:80", "invalid port"),
            ("70000:80", "invalid port"),
            ("127.0.0.1:8080:80", "host address"),
            ("published=80", "no target port"),
            ("target=80,color=red", "unknown field"),
        ] {
            assert!(parse(text).is_err_and(|error| error.contains(reason)), "{text}");
        }
    }
}
