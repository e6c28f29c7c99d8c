//! The TLS configuration for upstream resolvers (RFC 7858): which certificates are trusted.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use tracing::warn;

use crate::{error::Error, upstream::Upstream};

/// The configuration for `upstreams`. It trusts the authorities that this machine trusts. If none
/// of the upstream resolvers uses TLS, it trusts nothing, and the machine's files are not read.
///
/// # Errors
///
/// [`Error::Certificates`] if the machine has no certificates of authorities.
pub(super) fn client_config(upstreams: &[Upstream]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    if upstreams.iter().any(|upstream| upstream.tls_name.is_some()) {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!(%error, "cannot read certificates of authorities");
        }
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(Error::Certificates);
        }
    }
    trusting(roots)
}

/// A configuration that trusts `roots`.
pub(super) fn trusting(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(Error::Tls)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
