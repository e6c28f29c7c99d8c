//! The subject of a node's certificate: the cluster, the node and its role.
//!
//! The CA writes it, and every TLS peer reads it. This module contains both directions, so that
//! they use the same format.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use weft_model::{NodeId, id::ClusterId, spec::Role};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::PkiError;

/// The DNS name in the certificates of all managers, and of no worker.
pub const MANAGER_NAME: &str = "swarm-manager";

/// Certificates are valid from this long before they are signed, because the clocks of nodes
/// differ.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The subject of a node's certificate: O, CN and OU (RFC 5280, section 4.1.2.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub role: Role,
}

/// The OU of a role, which is also the certificate's second DNS name. The names are Swarm's.
pub fn role_unit(role: Role) -> &'static str {
    match role {
        Role::Manager => "swarm-manager",
        Role::Worker => "swarm-worker",
    }
}

/// From when to when a certificate is valid, in Unix seconds; both ends are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before_s: i64,
    pub not_after_s: i64,
}

impl Validity {
    /// Whether the certificate has expired at `now_ms`, in Unix milliseconds.
    pub fn has_expired(&self, now_ms: u64) -> bool {
        i64::try_from(now_ms / 1000).is_ok_and(|now_s| now_s > self.not_after_s)
    }
}

impl PeerIdentity {
    /// Reads the subject of a certificate in PEM form.
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::new("read the certificate", e))?;
        Ok(read_certificate(&der)?.0)
    }

    /// Reads the subject and the validity of a certificate that TLS has already verified.
    pub fn from_certificate(der: &[u8]) -> Result<(Self, Validity), PkiError> {
        read_certificate(der)
    }
}

pub(super) fn read_certificate(der: &[u8]) -> Result<(PeerIdentity, Validity), PkiError> {
    let failed = |reason: &str| PkiError::new("read the certificate", reason);
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| PkiError::new("read the certificate", e))?;
    let subject = cert.subject();
    let organization = subject.iter_organization().next().and_then(|a| a.as_str().ok());
    let unit = subject.iter_organizational_unit().next().and_then(|a| a.as_str().ok());
    let name = subject.iter_common_name().next().and_then(|a| a.as_str().ok());
    let role = match unit {
        Some("swarm-manager") => Role::Manager,
        Some("swarm-worker") => Role::Worker,
        _ => return Err(failed("its OU is not the name of a role")),
    };
    let cluster = organization.and_then(|o| o.parse().ok()).ok_or_else(|| failed("its O is not a cluster id"))?;
    let node = name.and_then(|n| n.parse().ok()).ok_or_else(|| failed("its CN is not a node id"))?;
    let (start, end) = (cert.validity().not_before, cert.validity().not_after);
    let validity = Validity { not_before_s: start.timestamp(), not_after_s: end.timestamp() };
    Ok((PeerIdentity { cluster, node, role }, validity))
}
