//! A node's certificate and key, and what a certificate says of its bearer.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use weft_model::{NodeId, id::ClusterId, spec::Role};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{PkiError, ca::BACKDATED};

/// What a certificate says of its bearer: the subject's O, CN and OU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub role: Role,
}

/// The subject's OU, and the certificate's second DNS name, for a role: Swarm's words.
pub fn role_unit(role: Role) -> &'static str {
    match role {
        Role::Manager => "swarm-manager",
        Role::Worker => "swarm-worker",
    }
}

impl PeerIdentity {
    pub fn from_pem(pem: &str) -> Result<Self, PkiError> {
        let der =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::new("read the certificate", e))?;
        Self::from_certificate(&der)
    }

    /// Reads the subject of a certificate that TLS has already verified.
    pub fn from_certificate(der: &[u8]) -> Result<Self, PkiError> {
        Ok(read_certificate(der)?.0)
    }
}

/// The identity, and the validity in Unix seconds.
fn read_certificate(der: &[u8]) -> Result<(PeerIdentity, i64, i64), PkiError> {
    let failed = |reason: &str| PkiError::new("read the certificate", reason);
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| PkiError::new("read the certificate", e))?;
    let subject = cert.subject();
    let organization = subject.iter_organization().next().and_then(|a| a.as_str().ok());
    let unit = subject.iter_organizational_unit().next().and_then(|a| a.as_str().ok());
    let name = subject.iter_common_name().next().and_then(|a| a.as_str().ok());
    let role = match unit {
        Some("swarm-manager") => Role::Manager,
        Some("swarm-worker") => Role::Worker,
        _ => return Err(failed("its OU names no role")),
    };
    let cluster = organization.and_then(|o| o.parse().ok()).ok_or_else(|| failed("its O is no cluster id"))?;
    let node = name.and_then(|n| n.parse().ok()).ok_or_else(|| failed("its CN is no node id"))?;
    let validity = cert.validity();
    Ok((PeerIdentity { cluster, node, role }, validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// A new key that waits for its certificate.
pub struct KeyRequest {
    key: KeyPair,
    csr_pem: String,
}

impl std::fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyRequest").finish_non_exhaustive()
    }
}

impl KeyRequest {
    pub fn generate() -> Result<Self, PkiError> {
        let failed = |e: rcgen::Error| PkiError::new("make a certificate request", e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let params = CertificateParams::new(Vec::new()).map_err(failed)?;
        let csr_pem = params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(failed)?;
        Ok(Self { key, csr_pem })
    }

    pub fn csr_pem(&self) -> &str {
        &self.csr_pem
    }

    /// The finished identity, once the authority has signed.
    pub fn finish(&self, cert_pem: &str, ca_pem: &str) -> Result<Identity, PkiError> {
        Identity::new(cert_pem, &self.key.serialize_pem(), ca_pem)
    }
}

/// A node's certificate with its private key, and the authority that signed it.
pub struct Identity {
    pub peer: PeerIdentity,
    pub ca_pem: String,
    pub(super) cert: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) ca: CertificateDer<'static>,
    pem: String,
    not_before_s: i64,
    not_after_s: i64,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Identity {
    fn new(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, PkiError> {
        let failed = |e: rustls::pki_types::pem::Error| PkiError::new("read the node's certificate", e);
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(failed)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(failed)?;
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(failed)?;
        let (peer, not_before_s, not_after_s) = read_certificate(&cert)?;
        let pem = format!("{}\n{}\n", key_pem.trim_end(), cert_pem.trim_end());
        Ok(Self { peer, ca_pem: ca_pem.to_owned(), cert, key, ca, pem, not_before_s, not_after_s })
    }

    /// Key and certificate in one text, so that one rename replaces both. Secret.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// Reads what [`Self::to_pem`] wrote.
    pub fn from_pem(pem: &str, ca_pem: &str) -> Result<Self, PkiError> {
        let marker = "-----BEGIN CERTIFICATE-----";
        let at = pem.find(marker).ok_or_else(|| PkiError::new("read the node's certificate", "there is none"))?;
        Self::new(&pem[at..], &pem[..at], ca_pem)
    }

    /// How long after `now_ms` (Unix milliseconds) to ask for the next certificate: at a point between 50 and 80 % of
    /// its life that `spread` (0 to 1) picks, so that a cluster's nodes do not all ask at once.
    pub fn renew_in(&self, now_ms: u64, spread: f64) -> Duration {
        let signed_s = self.not_before_s + BACKDATED.as_secs() as i64;
        let life_ms = (self.not_after_s - signed_s).max(0) as f64 * 1000.0;
        let at_ms = signed_s as f64 * 1000.0 + life_ms * (0.5 + 0.3 * spread.clamp(0.0, 1.0));
        Duration::from_millis((at_ms - now_ms as f64).max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Ca, Kek, SignedFor};

    fn ids() -> (ClusterId, NodeId) {
        (ClusterId::from_random(1), NodeId::from_random(2))
    }

    #[test]
    fn a_signed_identity_says_what_the_table_said_and_survives_the_disk() {
        let (cluster, node) = ids();
        let ca = Ca::create().expect("a CA");
        let kek = Kek::generate().expect("a key");
        let sealed = ca.sealed_key(&cluster, &kek).expect("sealed");
        let opened = Ca::open(&cluster, ca.cert_pem(), &sealed, &kek).expect("opened");
        for role in [Role::Worker, Role::Manager] {
            let request = KeyRequest::generate().expect("a request");
            let life = Duration::from_secs(1000);
            let subject = SignedFor { cluster: &cluster, node: &node, role, life };
            let cert = opened.sign(request.csr_pem(), subject).expect("signed");
            let identity = request.finish(&cert, ca.cert_pem()).expect("an identity");
            assert_eq!(identity.peer, PeerIdentity { cluster: cluster.clone(), node: node.clone(), role });
            let read = Identity::from_pem(identity.to_pem(), ca.cert_pem()).expect("read back");
            assert_eq!(read.peer, identity.peer);
        }
    }

    #[test]
    fn renewal_falls_between_half_and_four_fifths_of_the_life() {
        let (cluster, node) = ids();
        let ca = Ca::create().expect("a CA");
        let request = KeyRequest::generate().expect("a request");
        let subject =
            SignedFor { cluster: &cluster, node: &node, role: Role::Worker, life: Duration::from_secs(100_000) };
        let cert = ca.sign(request.csr_pem(), subject).expect("signed");
        let identity = request.finish(&cert, ca.cert_pem()).expect("an identity");
        let start_ms = (identity.not_before_s as u64 + BACKDATED.as_secs()) * 1000;
        let life_s = 100_000;
        assert_eq!(identity.renew_in(start_ms, 0.0), Duration::from_secs(life_s / 2));
        assert_eq!(identity.renew_in(start_ms, 1.0), Duration::from_secs(life_s * 4 / 5));
        assert_eq!(identity.renew_in(start_ms + life_s * 1000, 0.5), Duration::ZERO);
    }
}
