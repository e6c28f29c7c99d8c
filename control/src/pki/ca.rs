//! The certificate authority (CA). `swarm init` creates it once; every manager that signs a
//! certificate opens it from the cluster state.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData,
    string::{Ia5String, PrintableString},
};
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use weft_model::{NodeId, id::ClusterId, spec::Role};
use x509_parser::{
    asn1_rs::Tag,
    prelude::{FromDer, X509Certificate, X509Name},
};

use super::{
    Kek, KeyRequest, PkiError,
    subject::{CLOCK_SKEW, MANAGER_NAME, role_unit},
    verify::Verifiers,
};
#[cfg(test)]
use crate::fixture::simulated;
use crate::host;

/// Life of the CA's own certificate: 20 years, as in Swarm.
const CA_LIFE: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// A certificate authority with its private key.
pub struct Ca {
    issuer: rcgen::Issuer<'static, KeyPair>,
    cert_pem: String,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

/// The subject of a certificate to be signed. It comes from the cluster state, never from the
/// request.
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
    #[cfg(test)]
    if let Some(id) = simulated::current().map(|host| host.net.id_of(key.as_ref(), host::random)) {
        return Ok(NodeId::from_random(id));
    }
    Ok(NodeId::from_random(key.as_ref().iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte))))
}

/// The fields by which the Engine API identifies a CA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// The subject of the CA's certificate in DER.
    pub subject: Vec<u8>,
    /// The public key of the CA in DER (SubjectPublicKeyInfo; RFC 5280, section 4.1.2.7).
    pub public_key: Vec<u8>,
}

/// The CA with this certificate, as an issuer. `None` if the certificate cannot be read.
pub fn issuer_of(ca_pem: &str) -> Option<Issuer> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).ok()?;
    let (_, ca) = X509Certificate::from_der(&der).ok()?;
    Some(Issuer { subject: ca.subject().as_raw().to_vec(), public_key: ca.public_key().raw.to_vec() })
}

impl Ca {
    pub fn create() -> Result<Self, PkiError> {
        let failed = |e: rcgen::Error| PkiError::new("create the certificate authority", e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "swarm-ca");
        let params = ca_params(name)?;
        let cert_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { issuer: rcgen::Issuer::new(params, key), cert_pem })
    }

    /// Opens the CA from the certificate and the sealed key that the cluster state holds.
    ///
    /// # Errors
    /// If `kek` is not the key that encrypted the sealed key, or the certificate cannot be read.
    pub fn open(cluster: &ClusterId, cert_pem: &str, key_sealed: &[u8], kek: &Kek) -> Result<Self, PkiError> {
        let failed = |e: rcgen::Error| PkiError::new("read the certificate authority", e);
        let key = kek.open(cluster.as_str(), key_sealed)?;
        let key = KeyPair::try_from(key).map_err(failed)?;
        let issuer = rcgen::Issuer::from_ca_cert_pem(cert_pem, key).map_err(failed)?;
        Ok(Self { issuer, cert_pem: cert_pem.to_owned() })
    }

    /// A CA that a user provides. Only the certificate of `cert_pem` is kept, encoded again: a file
    /// of a user often contains the private key too, or the certificate as readable text, and every
    /// node gets [`Self::cert_pem`].
    ///
    /// # Errors
    /// If the texts are not one root certificate and its own key, if the certificate is not valid
    /// now, or if weft cannot sign with it.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let failed = |reason: &dyn std::fmt::Display| PkiError::new("use the given certificate authority", reason);
        let found = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
        let found = found.map_err(|e| failed(&e))?;
        let [certificate] = found.as_slice() else {
            return Err(failed(&"give exactly one certificate in PEM, that of the root"));
        };
        let (rest, parsed) = X509Certificate::from_der(certificate).map_err(|e| failed(&e))?;
        if !rest.is_empty() {
            return Err(failed(&"there are other data after the certificate"));
        }
        if !parsed.basic_constraints().ok().flatten().is_some_and(|constraints| constraints.value.ca) {
            return Err(failed(&"the certificate is not a certificate authority's"));
        }
        if parsed.subject().as_raw() != parsed.issuer().as_raw() {
            return Err(failed(&"another authority has signed the certificate: give a root, which has signed itself"));
        }
        if !parsed.validity().is_valid() {
            return Err(failed(&"the certificate has expired or is not valid yet"));
        }
        let key = KeyPair::from_pem(key_pem).map_err(|e| {
            let hint = "give a key in PKCS#8 without a passphrase (\"openssl pkcs8 -topk8 -nocrypt\" converts one)";
            failed(&format!("the key cannot be read ({e}): {hint}"))
        })?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(failed(&"the key does not belong to the certificate"));
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(certificate, key).map_err(|e| failed(&e))?;
        let cert_pem = to_pem(certificate);
        let ca = Self { issuer, cert_pem };
        ca.check_trial(std::slice::from_ref(certificate), &[]).map_err(|e| failed(&e))?;
        Ok(ca)
    }

    /// A certificate of `other`'s key that this CA signs, in PEM. Nodes that trust only this CA
    /// then trust the certificates that `other` signs.
    ///
    /// # Errors
    /// If `other` has a subject that weft cannot write.
    pub fn cross_sign(&self, other: &Self) -> Result<String, PkiError> {
        let failed = |reason: &dyn std::fmt::Display| PkiError::new("cross-sign the certificate authority", reason);
        let parse = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| failed(&e));
        let (own, new) = (parse(&self.cert_pem)?, parse(&other.cert_pem)?);
        let (_, new) = X509Certificate::from_der(&new).map_err(|e| failed(&e))?;
        let mut params = ca_params(name_of(new.subject()).map_err(|e| failed(&e))?)?;
        params.not_after = params.not_after.min(new.validity().not_after.to_datetime());
        let cross = params.signed_by(other.issuer.key(), &self.issuer).map_err(|e| failed(&e))?;
        other.check_trial(&[own], std::slice::from_ref(cross.der())).map_err(|e| failed(&e))?;
        Ok(cross.pem())
    }

    /// Signs the certificate of a manager, and checks that a node with these roots trusts it.
    fn check_trial(
        &self,
        roots: &[CertificateDer<'static>],
        intermediates: &[CertificateDer<'static>],
    ) -> Result<(), PkiError> {
        let request = KeyRequest::generate()?;
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(1));
        let life = Duration::from_secs(60);
        let subject = Subject { cluster: &cluster, node: &node, role: Role::Manager, life };
        let cert_pem = self.sign(request.csr_pem(), subject)?;
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| PkiError::new("read the certificate", e))?;
        let verifiers = Verifiers::new(roots)?;
        verifiers.check_signed(&cert, intermediates)?;
        verifiers.check_manager(&cert, intermediates)
    }

    #[cfg(test)]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    pub fn sealed_key(&self, cluster: &ClusterId, kek: &Kek) -> Result<Vec<u8>, PkiError> {
        kek.seal(cluster.as_str(), &self.issuer.key().serialize_der())
    }

    /// Signs a certificate request. The request proves that the node holds the private key;
    /// everything else in the certificate comes from `subject`.
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

/// The certificate in PEM, as rcgen writes it (RFC 7468: lines of 64 characters).
pub(super) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let body = STANDARD.encode(certificate);
    let lines: String = body.as_bytes().chunks(64).map(|line| format!("{}\n", String::from_utf8_lossy(line))).collect();
    format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
}

/// A certificate of a CA that signs certificates of nodes only.
fn ca_params(name: DistinguishedName) -> Result<CertificateParams, PkiError> {
    let mut params =
        CertificateParams::new(Vec::new()).map_err(|e| PkiError::new("create the certificate authority", e))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = name;
    set_validity(&mut params, CA_LIFE);
    Ok(params)
}

/// A name as rcgen writes it. The certificates of a CA must contain exactly the CA's own name.
fn name_of(name: &X509Name<'_>) -> Result<DistinguishedName, String> {
    let mut written = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let kind: Vec<u64> =
            attribute.attr_type().iter().ok_or("its subject has an attribute of unknown type")?.collect();
        let value = attribute.attr_value();
        let text = std::str::from_utf8(value.data).map_err(|_| "its subject is not text")?;
        let value = match value.header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => {
                DnValue::PrintableString(PrintableString::try_from(text).map_err(|e| e.to_string())?)
            }
            Tag::Ia5String => DnValue::Ia5String(Ia5String::try_from(text).map_err(|e| e.to_string())?),
            other => return Err(format!("its subject contains a string of type {other}: use UTF8String")),
        };
        written.push(DnType::from_oid(&kind), value);
    }
    Ok(written)
}

fn set_validity(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(host::now_ms());
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + life;
}
