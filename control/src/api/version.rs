//! Versions of the Engine API. Clients write the version at the start of a path.
//!
//! `serve` calls [`strip`] for each request before it is routed. `announce` says which version is
//! the highest at that moment.

use axum::{extract::Request, http::Uri};

use super::error::ApiError;

/// The newest version of the Engine API that weft supports. A node whose engine is older announces
/// the engine's version.
pub(super) const API_VERSION: ApiVersion = ApiVersion { major: 1, minor: 53 };
/// The oldest version that weft supports: the first with services. Its form of a service's networks
/// differs from today's, and is accepted.
pub(super) const MIN_API_VERSION: ApiVersion = ApiVersion { major: 1, minor: 24 };

/// A version such as `1.53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ApiVersion {
    major: u32,
    minor: u32,
}

impl ApiVersion {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::str::FromStr for ApiVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self { major: major.parse().map_err(|_| ())?, minor: minor.parse().map_err(|_| ())? })
    }
}

/// The version in the path of a request, if it has one. [`strip`] adds it to the extensions of the
/// request, and `engine` reads it there to forward the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientVersion(pub(super) Option<ApiVersion>);

impl ClientVersion {
    /// Whether the client asks for a version before `version`. A client that gives no version gets
    /// the newest.
    pub(super) fn is_before(self, version: ApiVersion) -> bool {
        self.0.is_some_and(|client| client < version)
    }
}

/// Removes the version from the path of a request. `newest` is the version that this node
/// announces.
///
/// # Errors
/// If this node does not support the version.
pub(super) fn strip(mut request: Request, newest: ApiVersion) -> Result<Request, ApiError> {
    let (version, rest) = split(request.uri());
    if let Some(version) = version {
        if version > newest {
            return Err(ApiError::Invalid(format!(
                "client version {version} is too new. Maximum supported API version is {newest}"
            )));
        }
        if version < MIN_API_VERSION {
            return Err(ApiError::Invalid(format!(
                "client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your client to a newer version"
            )));
        }
    }
    if let Some(rest) = rest {
        *request.uri_mut() = rest;
    }
    request.extensions_mut().insert(ClientVersion(version));
    Ok(request)
}

/// Splits `/v1.44/info?x` into 1.44 and `/info?x`.
fn split(uri: &Uri) -> (Option<ApiVersion>, Option<Uri>) {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    let parts = path.strip_prefix("/v").and_then(|rest| rest.split_once('/'));
    let Some((version, rest)) = parts else { return (None, None) };
    match (version.parse::<ApiVersion>(), format!("/{rest}").parse()) {
        (Ok(version), Ok(rest)) => (Some(version), Some(rest)),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_removed_from_the_path() {
        for (path, version, rest) in [
            ("/v1.44/info?a=b", Some("1.44"), Some("/info?a=b")),
            ("/volumes/x", None, None),
            ("/v/x", None, None),
            ("/info", None, None),
        ] {
            let (found, uri) = split(&path.parse().expect(path));
            assert_eq!(found.map(|v| v.to_string()).as_deref(), version, "{path}");
            assert_eq!(uri.map(|u| u.to_string()).as_deref(), rest, "{path}");
        }
    }

    #[test]
    fn versions_compare_by_number() {
        let version = |text: &str| text.parse::<ApiVersion>().expect(text);
        assert!(version("1.9") < version("1.24"));
        assert!("1".parse::<ApiVersion>().is_err());
    }
}
