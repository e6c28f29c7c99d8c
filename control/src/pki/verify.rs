//! Verification of certificates against the cluster's roots, also of certificates that have
//! expired.
//!
//! A cluster that was switched off past the expiry of its certificates must be able to renew them.
//! So the server accepts an expired certificate of a client in the handshake, and the RPC layer
//! then refuses every call of that client except the renewal. The client accepts the expired
//! certificate of a server only in the configuration for the renewal. An expired certificate is
//! verified as of its last valid second: its signature, name and usage are checked as ever.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    PkiError,
    subject::{MANAGER_NAME, read_certificate},
};

/// The verifiers for one set of roots.
#[derive(Debug, Clone)]
pub(super) struct Verifiers {
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<WebPkiServerVerifier>,
}

impl Verifiers {
    pub(super) fn new(roots: &[CertificateDer<'static>]) -> Result<Self, PkiError> {
        let failed = |e: &dyn fmt::Display| PkiError::new("trust the CA certificate", e);
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).map_err(|e| failed(&e))?;
        }
        let store = Arc::new(store);
        // A peer without a certificate may make two calls (fetch the CA, join). The services check
        // all others.
        let clients = WebPkiClientVerifier::builder_with_provider(store.clone(), provider())
            .clear_root_hint_subjects()
            .allow_unauthenticated()
            .build()
            .map_err(|e| failed(&e))?;
        let servers = WebPkiServerVerifier::builder_with_provider(store, provider()).build().map_err(|e| failed(&e))?;
        Ok(Self { clients, servers })
    }

    /// Checks that one of the roots signed this certificate, directly or through one of
    /// `intermediates`, whether it has expired or not.
    pub(super) fn check_signed(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), PkiError> {
        let at = last_valid(certificate).map_err(|e| PkiError::new("verify the certificate", e))?;
        let verified = self.clients.verify_client_cert(certificate, intermediates, at);
        verified.map(|_| ()).map_err(|e| PkiError::new("verify the certificate", e))
    }

    /// Checks that a client with these roots takes the server with this certificate for a manager.
    pub(super) fn check_manager(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), PkiError> {
        let failed = |e: &dyn fmt::Display| PkiError::new("verify the certificate", e);
        let at = last_valid(certificate).map_err(|e| failed(&e))?;
        let name = ServerName::try_from(MANAGER_NAME).map_err(|e| failed(&e))?;
        let verified = self.servers.verify_server_cert(certificate, intermediates, &name, &[], at);
        verified.map(|_| ()).map_err(|e| failed(&e))
    }
}

/// The owner of the verifiers that are in use now. They change with the roots.
pub(super) trait CurrentVerifiers: fmt::Debug + Send + Sync {
    fn verifiers(&self) -> Verifiers;
}

/// The server's verifier of clients. It accepts expired certificates: see the module's text.
#[derive(Debug)]
pub(super) struct ClientVerifier(pub(super) Arc<dyn CurrentVerifiers>);

/// The client's verifier of servers.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    pub(super) current: Arc<dyn CurrentVerifiers>,
    /// Whether an expired certificate is accepted: only for the renewal.
    pub(super) accept_expired: bool,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let clients = self.0.verifiers().clients;
        verify_although_expired(end_entity, now, |at| clients.verify_client_cert(end_entity, intermediates, at))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verifiers().clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verifiers().clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.verifiers().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let servers = self.current.verifiers().servers;
        let verify = |at| servers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, at);
        if self.accept_expired { verify_although_expired(end_entity, now, verify) } else { verify(now) }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.verifiers().servers.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.current.verifiers().servers.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.verifiers().servers.supported_verify_schemes()
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Verifies a certificate at the time `now`, and if it has expired, as of its last valid second.
fn verify_although_expired<T>(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
    verify: impl Fn(UnixTime) -> Result<T, Error>,
) -> Result<T, Error> {
    match verify(now) {
        Err(error) if is_expiry(&error) => verify(last_valid(certificate)?),
        verified => verified,
    }
}

fn is_expiry(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }))
}

/// The last second in which the certificate is valid.
fn last_valid(certificate: &CertificateDer<'_>) -> Result<UnixTime, Error> {
    let unreadable = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let (_, validity) = read_certificate(certificate).map_err(|_| unreadable())?;
    let seconds = u64::try_from(validity.not_after_s).map_err(|_| unreadable())?;
    Ok(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}
