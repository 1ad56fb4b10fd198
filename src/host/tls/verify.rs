//! Judging certificates on a machine that may believe it is 1970.

use std::{sync::Arc, time::Duration};

use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::TimeProvider,
};

use super::validity_of;
use crate::clock::WALL_FLOOR_US;

/// Wall time, never below the own certificate's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct FlooredTime {
    pub(super) floor_s: u64,
    /// Microseconds since 1970.
    pub(super) wall_us: fn() -> u64,
}

impl FlooredTime {
    pub(super) fn is_unset(&self) -> bool {
        let wall_us = (self.wall_us)();
        wall_us / 1_000_000 < self.floor_s || wall_us < WALL_FLOOR_US
    }

    /// The time at which to judge a peer's chain, `now` by this clock.
    fn judge_at(&self, now: UnixTime, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> UnixTime {
        if !self.is_unset() {
            return now;
        }
        let chain = std::iter::once(end_entity).chain(intermediates);
        // A certificate that does not parse is refused when it is judged.
        let starts_s = chain.filter_map(|cert| Some(validity_of("peer", cert).ok()?.0));
        let now_s = starts_s.fold(now.as_secs(), u64::max);
        UnixTime::since_unix_epoch(Duration::from_secs(now_s))
    }
}

impl TimeProvider for FlooredTime {
    fn current_time(&self) -> Option<UnixTime> {
        let now_s = ((self.wall_us)() / 1_000_000).max(self.floor_s);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now_s)))
    }
}

/// Verifies servers; while the wall clock is unset, at the latest start in the server's chain.
#[derive(Debug)]
pub(super) struct PatientServerVerifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) time: FlooredTime,
}

impl ServerCertVerifier for PatientServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let now = self.time.judge_at(now, end_entity, intermediates);
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Verifies clients; while the wall clock is unset, at the latest start in the client's chain.
#[derive(Debug)]
pub(super) struct PatientClientVerifier {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) time: FlooredTime,
}

impl ClientCertVerifier for PatientClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let now = self.time.judge_at(now, end_entity, intermediates);
        self.inner.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
