//! Reads the credentials of a registry from the header `X-Registry-Auth` of a request.
//!
//! The handlers of services call [`read`]. The header is JSON in base64
//! (<https://docs.docker.com/reference/api/engine/version/v1.50/>, "Authentication"). Clients
//! differ in the alphabet and the padding, so both alphabets are read, with and without padding.
//! This module must never put a part of the header into a text.

use axum::http::HeaderMap;
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE},
};
use serde_json::{Map, Value};
use weft_model::spec::RegistryAuth;

use super::error::ApiError;

pub(super) const HEADER: &str = "x-registry-auth";
/// The longest header. The longest tokens of registries have about 5,000 characters. The
/// credentials are in the cluster state, once for each spec.
const MAX_HEADER: usize = 16 << 10;

/// The standard alphabet, with any padding (RFC 4648, section 4).
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What the header of a request says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Header {
    Absent,
    /// `None`: the client wants no credentials. It has sent an empty user, `{}` or `null`.
    Given(Option<RegistryAuth>),
    /// The request goes on as if there were no header, as in Docker. The reason is for the user.
    Undecodable(&'static str),
}

/// Reads the header.
///
/// # Errors
/// If it is too long to be stored.
pub(super) fn read(headers: &HeaderMap) -> Result<Header, ApiError> {
    let Some(value) = headers.get(HEADER).filter(|value| !value.is_empty()) else { return Ok(Header::Absent) };
    if value.len() > MAX_HEADER {
        return Err(ApiError::Invalid(format!(
            "the header X-Registry-Auth has {} characters: weft stores {MAX_HEADER} at most",
            value.len()
        )));
    }
    Ok(decode(value.as_bytes()).map_or_else(Header::Undecodable, Header::Given))
}

/// The header for the engine, which reads the URL-safe alphabet with padding.
pub(super) fn encode(auth: &RegistryAuth) -> String {
    let fields = auth.fields().into_iter().filter(|(_, text)| !text.is_empty());
    let json: Map<String, Value> = fields.map(|(name, text)| (name.to_owned(), text.into())).collect();
    URL_SAFE.encode(Value::Object(json).to_string())
}

/// Reads the value of the header. The error says why it cannot be decoded.
pub(super) fn decode(value: &[u8]) -> Result<Option<RegistryAuth>, &'static str> {
    let standard: Vec<u8> = value
        .iter()
        .map(|octet| match octet {
            b'-' => b'+',
            b'_' => b'/',
            other => *other,
        })
        .collect();
    let text = ANY_PADDING.decode(standard).map_err(|_| "it is not base64")?;
    let fields = match serde_json::from_slice(&text) {
        Ok(Value::Object(fields)) => fields,
        Ok(Value::Null) => return Ok(None),
        Ok(_) => return Err("it is not a JSON object"),
        Err(_) => return Err("it is not JSON"),
    };
    let mut auth = RegistryAuth::default();
    for (name, value) in fields {
        // Names are matched without case, and unknown ones are skipped, as Docker's decoder does.
        let field = match name.to_ascii_lowercase().as_str() {
            "username" => &mut auth.username,
            "password" => &mut auth.password,
            "auth" => &mut auth.auth,
            "email" => &mut auth.email,
            "serveraddress" => &mut auth.server_address,
            "identitytoken" => &mut auth.identity_token,
            "registrytoken" => &mut auth.registry_token,
            _ => continue,
        };
        match value {
            Value::String(text) => *field = text,
            Value::Null => {}
            _ => return Err("a field is not a text"),
        }
    }
    Ok(Some(auth).filter(|auth| !auth.is_anonymous()))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::*;

    fn header(text: &str) -> Result<Header, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(text).expect("a header"));
        read(&headers)
    }

    fn user() -> RegistryAuth {
        // The base64 of these has characters in which the two alphabets differ.
        RegistryAuth { username: "ann".into(), password: "a?>?>ÿþ~~".into(), ..RegistryAuth::default() }
    }

    #[test]
    fn both_alphabets_are_read_with_and_without_padding() {
        let json = json!({"username": "ann", "password": "a?>?>ÿþ~~"}).to_string();
        for length in 0..3 {
            let json = format!("{json}{}", " ".repeat(length));
            for text in [
                STANDARD.encode(&json),
                STANDARD_NO_PAD.encode(&json),
                URL_SAFE.encode(&json),
                URL_SAFE_NO_PAD.encode(&json),
            ] {
                assert_eq!(header(&text), Ok(Header::Given(Some(user()))), "{text}");
            }
        }
        assert!(STANDARD.encode(&json).contains(['+', '/']));
    }

    #[test]
    fn what_clients_send_without_a_user_means_no_credentials() {
        for json in [
            "{}",
            "null",
            // docker-py and Ansible, for a registry without an entry in their settings.
            r#"{"username": null, "password": null, "email": null, "serveraddress": "https://index.docker.io/v1/"}"#,
            r#"{"username":"","password":"","auth":"","serveraddress":"registry.test"}"#,
            // Portainer, for an anonymous registry.
            r#"{"Username":"","Password":"","ServerAddress":""}"#,
            r#"{"registryId":0}"#,
        ] {
            assert_eq!(header(&URL_SAFE.encode(json)), Ok(Header::Given(None)), "{json}");
        }
        assert_eq!(header(""), Ok(Header::Absent));
        assert_eq!(read(&HeaderMap::new()), Ok(Header::Absent));
    }

    #[test]
    fn tokens_are_credentials_too() {
        let json = r#"{"IdentityToken":"i","registrytoken":"r","serveraddress":"registry.test","registryId":3}"#;
        let expected = RegistryAuth {
            identity_token: "i".into(),
            registry_token: "r".into(),
            server_address: "registry.test".into(),
            ..RegistryAuth::default()
        };
        assert_eq!(header(&STANDARD.encode(json)), Ok(Header::Given(Some(expected))));
    }

    #[test]
    fn a_header_that_cannot_be_decoded_has_a_reason_without_its_content() {
        for (text, reason) in [
            ("secret secret".to_owned(), "it is not base64"),
            ("secret!".to_owned(), "it is not base64"),
            (STANDARD.encode("secret"), "it is not JSON"),
            (STANDARD.encode("[\"secret\"]"), "it is not a JSON object"),
            (STANDARD.encode("\"secret\""), "it is not a JSON object"),
            (STANDARD.encode("{\"username\": 7}"), "a field is not a text"),
        ] {
            assert_eq!(header(&text), Ok(Header::Undecodable(reason)), "{text}");
        }
        let error = header(&"x".repeat(MAX_HEADER + 1)).expect_err("too long").to_string();
        assert!(error.contains("16385 characters") && !error.contains("xx"), "{error}");
    }

    #[test]
    fn the_engine_gets_what_the_client_has_sent() {
        let encoded = encode(&user());
        assert_eq!(header(&encoded), Ok(Header::Given(Some(user()))));
        assert!(!encoded.contains(['+', '/']), "{encoded}");
    }
}
