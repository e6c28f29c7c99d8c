//! The credentials with which nodes pull the image of a service.
//!
//! A part of the specs of services: it is in the log, in snapshots, and in the plans of nodes that
//! are about to pull. It is a secret. No API shows it, and its debug text does not contain it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a registry wants to know of a client, as a user has sent it. Any field may be empty, but
/// not all of them. The names are those of the JSON in the header `X-Registry-Auth`
/// (<https://docs.docker.com/reference/api/engine/version/v1.50/>, "Authentication").
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    /// Name and password in base64, with a colon between them.
    pub auth: String,
    pub email: String,
    pub server_address: String,
    /// A token that is exchanged for another one before a pull.
    pub identity_token: String,
    /// A token that is sent to the registry as it is.
    pub registry_token: String,
}

impl RegistryAuth {
    /// Whether there is nothing by which a registry could recognise a client.
    pub fn is_anonymous(&self) -> bool {
        [&self.username, &self.password, &self.auth, &self.identity_token, &self.registry_token]
            .iter()
            .all(|field| field.is_empty())
    }

    /// The fields with their names in the header `X-Registry-Auth`.
    pub fn fields(&self) -> [(&'static str, &str); 7] {
        [
            ("username", &self.username),
            ("password", &self.password),
            ("auth", &self.auth),
            ("email", &self.email),
            ("serveraddress", &self.server_address),
            ("identitytoken", &self.identity_token),
            ("registrytoken", &self.registry_token),
        ]
    }
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryAuth(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_text_shows_nothing() {
        let auth = RegistryAuth { username: "user".into(), password: "secret".into(), ..RegistryAuth::default() };
        assert_eq!(format!("{:?}", Some(auth)), "Some(RegistryAuth(..))");
    }

    #[test]
    fn an_address_alone_is_anonymous() {
        let auth = RegistryAuth { server_address: "registry.test".into(), email: "a@b".into(), ..Default::default() };
        assert!(auth.is_anonymous());
        assert!(!RegistryAuth { registry_token: "t".into(), ..auth }.is_anonymous());
    }
}
