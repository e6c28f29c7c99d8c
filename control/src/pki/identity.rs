//! A node's certificate with its private key, and the request for a new one.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{
    PeerIdentity, PkiError, Validity,
    subject::{CLOCK_SKEW, read_certificate},
    verify::Verifiers,
};

/// A new private key and the certificate request for it.
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

    /// The identity made of this key and the certificate that the CA signed for it.
    ///
    /// # Errors
    /// If the CA did not sign the certificate. A manager that answers a renewal may have shown an
    /// expired certificate, so its answer is not trusted.
    pub fn finish(&self, cert_pem: &str, ca_pem: &str) -> Result<Identity, PkiError> {
        let identity = Identity::new(cert_pem, &self.key.serialize_pem(), ca_pem)?;
        Verifiers::new(&identity.roots)?.check_signed(&identity.chain[0], &identity.chain[1..])?;
        Ok(identity)
    }
}

/// Whether the CA with the certificate `root` signed `certificate` itself.
fn is_signed_by(certificate: &CertificateDer<'static>, root: &CertificateDer<'static>) -> bool {
    Verifiers::new(std::slice::from_ref(root)).is_ok_and(|verifiers| verifiers.check_signed(certificate, &[]).is_ok())
}

/// The SHA-256 of a CA's certificate in DER, which is given in PEM.
pub fn ca_digest(ca_pem: &str) -> Result<Vec<u8>, PkiError> {
    let der =
        CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| PkiError::new("read the CA certificate", e))?;
    Ok(digest(&SHA256, &der).as_ref().to_vec())
}

/// A node's certificate with its private key, and the certificates of the CAs that the node trusts.
pub struct Identity {
    pub peer: PeerIdentity,
    /// The trusted CAs in PEM. While the CA is being replaced, the new one is the last.
    pub ca_pem: String,
    /// The node's certificate, and the cross-signed one of a new CA while the CA is being replaced.
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// The SHA-256 of the certificate (DER) of the CA that signs now, which is the last of the
    /// trusted CAs, if this CA has signed the node's certificate itself. Otherwise `None`.
    pub signing_ca_digest: Option<Vec<u8>>,
    pub validity: Validity,
    pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Identity {
    fn new(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, PkiError> {
        let failed = |e: rustls::pki_types::pem::Error| PkiError::new("read the node's certificate", e);
        let chain =
            CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let cert = chain
            .first()
            .ok_or_else(|| PkiError::new("read the node's certificate", "there is no certificate in it"))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(failed)?;
        let roots = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let (peer, validity) = read_certificate(cert)?;
        let pem = format!("{}\n{}\n", key_pem.trim_end(), cert_pem.trim_end());
        let signing_ca = roots.last().filter(|root| is_signed_by(cert, root));
        let signing_ca_digest = signing_ca.map(|root| digest(&SHA256, root).as_ref().to_vec());
        Ok(Self { peer, ca_pem: ca_pem.to_owned(), chain, key, roots, signing_ca_digest, validity, pem })
    }

    /// Key and certificate in one text, so that one rename of a file replaces both. Secret.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The inverse of [`Self::to_pem`].
    pub fn from_pem(pem: &str, ca_pem: &str) -> Result<Self, PkiError> {
        let marker = "-----BEGIN CERTIFICATE-----";
        let at = pem
            .find(marker)
            .ok_or_else(|| PkiError::new("read the node's certificate", "there is no certificate in it"))?;
        Self::new(&pem[at..], &pem[..at], ca_pem)
    }

    /// The same certificate and key, of a node that trusts these CAs.
    pub fn with_roots(&self, ca_pem: &str) -> Result<Self, PkiError> {
        Self::from_pem(&self.pem, ca_pem)
    }

    /// Whether the last of the trusted CAs, the one that signs now, signed the certificate itself.
    pub fn is_of_signing_ca(&self) -> bool {
        self.signing_ca_digest.is_some()
    }

    /// Whether a trusted CA that is being replaced signed the certificate. A certificate of a newer
    /// CA, which this node does not know yet, is not one of these.
    pub fn is_of_former_ca(&self) -> bool {
        self.roots.split_last().is_some_and(|(_, former)| former.iter().any(|root| is_signed_by(&self.chain[0], root)))
    }

    /// How long after `now_ms` (Unix milliseconds) the node should renew its certificate: between
    /// 50 % and 80 % of the certificate's life. `spread` (a random number from 0 to 1 that the
    /// caller provides) chooses the point, so that the nodes of a cluster do not renew at the same
    /// time.
    pub fn renew_in(&self, now_ms: u64, spread: f64) -> Duration {
        let signed_s = self.validity.not_before_s + CLOCK_SKEW.as_secs() as i64;
        let life_ms = (self.validity.not_after_s - signed_s).max(0) as f64 * 1000.0;
        let at_ms = signed_s as f64 * 1000.0 + life_ms * (0.5 + 0.3 * spread.clamp(0.0, 1.0));
        Duration::from_millis((at_ms - now_ms as f64).max(0.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{NodeId, id::ClusterId, spec::Role};

    use super::*;
    use crate::pki::{Ca, Kek, Subject, ca::to_pem};

    fn ids() -> (ClusterId, NodeId) {
        (ClusterId::from_random(1), NodeId::from_random(2))
    }

    #[test]
    fn a_signed_identity_has_the_requested_subject_and_survives_encoding() {
        let (cluster, node) = ids();
        let ca = Ca::create().expect("a CA");
        let kek = Kek::generate().expect("a key");
        let sealed = ca.sealed_key(&cluster, &kek).expect("sealed");
        let opened = Ca::open(&cluster, ca.cert_pem(), &sealed, &kek).expect("opened");
        for role in [Role::Worker, Role::Manager] {
            let request = KeyRequest::generate().expect("a request");
            let life = Duration::from_secs(1000);
            let subject = Subject { cluster: &cluster, node: &node, role, life };
            let cert = opened.sign(request.csr_pem(), subject).expect("signed");
            let identity = request.finish(&cert, ca.cert_pem()).expect("an identity");
            assert_eq!(identity.peer, PeerIdentity { cluster: cluster.clone(), node: node.clone(), role });
            let read = Identity::from_pem(identity.to_pem(), ca.cert_pem()).expect("read back");
            assert_eq!(read.peer, identity.peer);
        }
    }

    #[test]
    fn a_certificate_of_another_ca_is_refused() {
        let (cluster, node) = ids();
        let (ca, other) = (Ca::create().expect("a CA"), Ca::create().expect("a CA"));
        let request = KeyRequest::generate().expect("a request");
        let subject = Subject { cluster: &cluster, node: &node, role: Role::Worker, life: Duration::from_secs(1000) };
        let cert = other.sign(request.csr_pem(), subject).expect("signed");
        request.finish(&cert, other.cert_pem()).expect("the CA that signed it");
        let refused = request.finish(&cert, ca.cert_pem()).expect_err("another CA").to_string();
        assert!(refused.contains("verify the certificate"), "{refused}");
    }

    #[test]
    fn a_certificate_of_a_new_ca_is_trusted_by_nodes_that_know_only_the_old_one() {
        let (cluster, node) = ids();
        let (old, new) = (Ca::create().expect("a CA"), Ca::create().expect("a CA"));
        let cross = old.cross_sign(&new).expect("cross-signed");
        let request = KeyRequest::generate().expect("a request");
        let subject = Subject { cluster: &cluster, node: &node, role: Role::Worker, life: Duration::from_secs(1000) };
        let cert = new.sign(request.csr_pem(), subject).expect("signed");
        request.finish(&cert, old.cert_pem()).expect_err("without the cross-signed certificate");
        let chain = format!("{cert}{cross}");
        let identity = request.finish(&chain, old.cert_pem()).expect("through the cross-signed certificate");
        assert!(!identity.is_of_signing_ca() && !identity.is_of_former_ca());
        let both = identity.with_roots(&format!("{}{}", old.cert_pem(), new.cert_pem())).expect("both roots");
        assert_eq!(both.signing_ca_digest, Some(ca_digest(new.cert_pem()).expect("a digest")));
        assert!(!both.is_of_former_ca());
        let former = old.sign(request.csr_pem(), subject).expect("signed");
        let former = request.finish(&former, &both.ca_pem).expect("both are trusted");
        assert!(former.is_of_former_ca() && !former.is_of_signing_ca());
        let read = Identity::from_pem(both.to_pem(), new.cert_pem()).expect("read back");
        assert!(read.is_of_signing_ca());
        assert_eq!(read.chain.len(), 2, "the cross-signed certificate is stored");
        let other = Ca::create().expect("a CA");
        request.finish(&chain, other.cert_pem()).expect_err("a CA that signed neither");
    }

    #[test]
    fn a_ca_of_the_user_must_be_a_root_with_its_own_key() {
        let (ca, other) = (Ca::create().expect("a CA"), Ca::create().expect("a CA"));
        let key = ca.key_pem();
        let read = Ca::from_pem(ca.cert_pem(), &key).expect("a root with its key");
        assert_eq!(read.cert_pem(), ca.cert_pem());
        for bundle in [
            format!("{}{key}", ca.cert_pem()),
            format!("{key}{}", ca.cert_pem()),
            format!("subject=swarm-ca\n{}", ca.cert_pem().replace('\n', "\r\n")),
        ] {
            let read = Ca::from_pem(&bundle, &key).expect("a root with its key in the same file");
            assert_eq!(read.cert_pem(), ca.cert_pem(), "only the certificate of {bundle:?} is kept");
        }
        let refusal_of = |cert: &str, key: &str| Ca::from_pem(cert, key).expect_err("refused").to_string();
        assert!(refusal_of(other.cert_pem(), &key).contains("does not belong"));
        assert!(refusal_of("nonsense", &key).contains("exactly one certificate"));
        assert!(
            refusal_of(&format!("{}{}", ca.cert_pem(), other.cert_pem()), &key).contains("exactly one certificate")
        );
        assert!(refusal_of(ca.cert_pem(), "nonsense").contains("PKCS#8"));
        let mut der = CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).expect("a certificate").to_vec();
        der.push(0);
        assert!(refusal_of(&to_pem(&der.into()), &key).contains("other data after"));
        let (cluster, node) = ids();
        let request = KeyRequest::generate().expect("a request");
        let subject = Subject { cluster: &cluster, node: &node, role: Role::Worker, life: Duration::from_secs(1000) };
        let leaf = ca.sign(request.csr_pem(), subject).expect("signed");
        assert!(refusal_of(&leaf, &request.key.serialize_pem()).contains("not a certificate authority"));
    }

    #[test]
    fn renewal_is_due_between_half_and_four_fifths_of_the_life() {
        let (cluster, node) = ids();
        let ca = Ca::create().expect("a CA");
        let request = KeyRequest::generate().expect("a request");
        let subject =
            Subject { cluster: &cluster, node: &node, role: Role::Worker, life: Duration::from_secs(100_000) };
        let cert = ca.sign(request.csr_pem(), subject).expect("signed");
        let identity = request.finish(&cert, ca.cert_pem()).expect("an identity");
        let start_ms = (identity.validity.not_before_s as u64 + CLOCK_SKEW.as_secs()) * 1000;
        let life_s = 100_000;
        assert_eq!(identity.renew_in(start_ms, 0.0), Duration::from_secs(life_s / 2));
        assert_eq!(identity.renew_in(start_ms, 1.0), Duration::from_secs(life_s * 4 / 5));
        assert_eq!(identity.renew_in(start_ms + life_s * 1000, 0.5), Duration::ZERO);
    }
}
