//! The certificate authority (CA). `swarm init` creates it once; every manager that signs a
//! certificate opens it from the cluster state.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
};
use ring::digest::{SHA256, digest};
use time::OffsetDateTime;
use weft_model::{NodeId, id::ClusterId, spec::Role};

use super::{
    Kek, PkiError,
    subject::{CLOCK_SKEW, role_unit},
    tls::MANAGER_NAME,
};

/// Life of the CA's own certificate: 20 years, as in Swarm.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// A certificate authority with its private key.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

/// The subject of a certificate to be signed. It comes from the cluster state, never from the
/// node_id_of_request.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub cluster: &'a ClusterId,
    pub node: &'a NodeId,
    pub role: Role,
    pub life: Duration,
}

/// The id of the node that sent this certificate request. It is a hash of the request's public key,
/// so a node that repeats a request, because the first answer was lost, gets the same id.
///
/// # Errors
/// If the text is not a certificate request, or is not signed with its own key.
pub fn node_id_of_request(csr_pem: &str) -> Result<NodeId, PkiError> {
    let request = CertificateSigningRequestParams::from_pem(csr_pem)
        .map_err(|e| PkiError::new("read the certificate request", e))?;
    let key = digest(&SHA256, request.public_key.der_bytes());
    Ok(NodeId::from_random(key.as_ref().iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte))))
}

impl Ca {
    pub fn create() -> Result<Self, PkiError> {
        let failed = |e: rcgen::Error| PkiError::new("create the certificate authority", e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        set_validity(&mut params, CA_LIFE);
        let cert_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), cert_pem })
    }

    /// Opens the CA from the certificate and the sealed key that the cluster state holds.
    ///
    /// # Errors
    /// If `kek` is not the key that encrypted the sealed key, or the certificate cannot be read.
    pub fn open(cluster: &ClusterId, cert_pem: &str, key_sealed: &[u8], kek: &Kek) -> Result<Self, PkiError> {
        let failed = |e: rcgen::Error| PkiError::new("read the certificate authority", e);
        let key = kek.open(cluster.as_str(), key_sealed)?;
        let key = KeyPair::try_from(key).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(failed)?;
        Ok(Self { issuer, cert_pem: cert_pem.to_owned() })
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    pub fn sealed_key(&self, cluster: &ClusterId, kek: &Kek) -> Result<Vec<u8>, PkiError> {
        kek.seal(cluster.as_str(), &self.issuer.key().serialize_der())
    }

    /// Signs a certificate request. The request proves that the node_id_of_request holds the
    /// private key; everything else in the certificate comes from `subject`.
    pub fn sign(&self, csr_pem: &str, subject: Subject<'_>) -> Result<String, PkiError> {
        let failed = |e: rcgen::Error| PkiError::new("sign the certificate request", e);
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(failed)?;
        let role_name = role_unit(subject.role);
        debug_assert_eq!(role_unit(Role::Manager), MANAGER_NAME);
        let mut params =
            CertificateParams::new(vec![subject.node.to_string(), role_name.to_owned()]).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, subject.cluster.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role_name);
        params.distinguished_name.push(DnType::CommonName, subject.node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, subject.life);
        request.params = params;
        Ok(request.signed_by(&self.issuer).map_err(failed)?.pem())
    }
}

fn set_validity(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
}
