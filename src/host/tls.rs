//! Certificates: loading them with errors a person can act on, TLS configurations, and the identity.
//!
//! Every party is known by one URI in its certificate's subject alternative names:
//! `weir://gateway/<name>` or `weir://cloud/<name>`. Nothing in a message can change who is speaking.
//!
//! A box without a battery may believe it is 1970. Then every certificate is "not yet valid", and the box
//! is locked out of the very network that would tell it the time. So time in TLS never goes below the
//! own certificate's start; and while the wall clock is plainly unset, a peer's certificate is judged at
//! the latest start in the peer's chain. What expired before the own certificate began stays refused.

mod identity;
mod verify;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::prelude::FromDer as _;

use crate::clock::{Wall, unix_us};
use verify::{FlooredTime, PatientClientVerifier, PatientServerVerifier};

pub use identity::{Identity, IdentityError, NAME_LEN_MAX, Role, identity, subject_name};

/// The protocol that both ends speak over QUIC.
pub const ALPN: &[u8] = b"weir/1";
/// Longest certificate or key file that is read.
const PEM_LEN_MAX: u64 = 1 << 20;

/// Why a certificate, a key or a TLS configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("the {what} {} cannot be read (`weir pki init` and `weir pki issue` make it; this user must be allowed to read it)", file.display())]
    Read {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is longer than any PEM file.
    #[error("the {what} {} has {len} bytes, more than {PEM_LEN_MAX}", file.display())]
    TooLong {
        /// What the file should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A text does not hold what it should.
    #[error("the {what} {name} holds {found}, expected {expected}")]
    WrongContent {
        /// What the text should be.
        what: &'static str,
        /// Where it came from.
        name: String,
        /// What it holds.
        found: &'static str,
        /// What it should hold.
        expected: &'static str,
    },
    /// The key is not the one the certificate was issued for.
    #[error("the key {key} does not belong to the certificate {cert}")]
    KeyMismatch {
        /// Where the certificate came from.
        cert: String,
        /// Where the key came from.
        key: String,
    },
    /// A certificate's bytes are not a certificate.
    #[error("the certificate {name} is malformed: {reason}")]
    Malformed {
        /// Where it came from.
        name: String,
        /// What the parser found.
        reason: String,
    },
    /// The certificate is over.
    #[error("the certificate {name} expired {days} days ago; issue a new one with `weir pki issue`")]
    Expired {
        /// Where it came from.
        name: String,
        /// Whole days since.
        days: u64,
    },
    /// The certificate is not valid yet, and the wall clock is set.
    #[error("the certificate {name} becomes valid in {days} days; is the clock right?")]
    NotYetValid {
        /// Where it came from.
        name: String,
        /// Whole days until then, rounded up.
        days: u64,
    },
    /// The certificate says nothing, or too much, about who holds it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The TLS library refuses.
    #[error("TLS set-up failed")]
    Library(#[from] rustls::Error),
    /// The TLS library refuses the roots for client certificates.
    #[error("client certificates cannot be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The common name of the first certificate in a PEM text.
///
/// # Errors
/// A text without a certificate, or one that is malformed or has no common name.
pub fn common_name(pem: &[u8]) -> Result<String, TlsError> {
    let chain = certificates("certificate", "in memory", pem)?;
    subject_name(&chain[0]).ok_or_else(|| malformed("in memory", &"it has no common name"))
}

/// A certificate chain and its key, checked to belong together.
#[derive(Debug)]
pub struct Credentials {
    name: String,
    key: Arc<CertifiedKey>,
    not_before_s: u64,
    not_after_s: u64,
    /// Microseconds since 1970.
    wall_us: fn() -> u64,
}

impl Credentials {
    /// Loads a PEM certificate chain (own certificate first) and its PEM key.
    ///
    /// # Errors
    /// A file that is missing, unreadable or holds something else, and a key of another certificate.
    /// Validity is not checked here: see [`Credentials::check_validity`].
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let cert_pem = read_pem("certificate", cert)?;
        let key_pem = read_pem("key", key)?;
        Self::from_named((&name_of(cert), &cert_pem), (&name_of(key), &key_pem))
    }

    /// The same from memory.
    ///
    /// # Errors
    /// As for [`Credentials::load`].
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Self::from_named(("in memory", cert), ("in memory", key))
    }

    fn from_named(cert: (&str, &[u8]), key: (&str, &[u8])) -> Result<Self, TlsError> {
        let (cert_name, cert_pem) = cert;
        let (key_name, key_pem) = key;
        let chain = certificates("certificate", cert_name, cert_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| TlsError::WrongContent {
            what: "key",
            name: key_name.to_owned(),
            found: content_of(key_pem),
            expected: "a private key in PEM",
        })?;
        let (not_before_s, not_after_s) = validity_of(cert_name, &chain[0])?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|err| match err {
            rustls::Error::InconsistentKeys(_) => {
                TlsError::KeyMismatch { cert: cert_name.to_owned(), key: key_name.to_owned() }
            }
            other => TlsError::Library(other),
        })?;
        Ok(Self { name: cert_name.to_owned(), key: Arc::new(key), not_before_s, not_after_s, wall_us: unix_us })
    }

    /// Takes the wall time, in microseconds since 1970, from another source than the system.
    #[must_use]
    pub fn with_wall_clock(mut self, wall_us: fn() -> u64) -> Self {
        self.wall_us = wall_us;
        self
    }

    /// Who these credentials speak for.
    ///
    /// # Errors
    /// As for [`identity`].
    pub fn identity(&self) -> Result<Identity, IdentityError> {
        identity(self.key.cert.first().map_or(&[], |cert| cert.as_ref()))
    }

    /// Start of validity, in seconds since 1970.
    pub fn not_before_s(&self) -> u64 {
        self.not_before_s
    }

    /// End of validity, in seconds since 1970.
    pub fn not_after_s(&self) -> u64 {
        self.not_after_s
    }

    /// Whether the certificate is valid at a wall time; an untrusted one proves nothing and passes.
    ///
    /// # Errors
    /// `Expired` or `NotYetValid`.
    pub fn check_validity(&self, wall: Wall) -> Result<(), TlsError> {
        const DAY_S: u64 = 86_400;
        let now_s = wall.unix_us / 1_000_000;
        let name = self.name.clone();
        if wall.trusted && now_s > self.not_after_s {
            return Err(TlsError::Expired { name, days: (now_s - self.not_after_s) / DAY_S });
        }
        if wall.trusted && now_s < self.not_before_s {
            let days = (self.not_before_s - now_s).div_ceil(DAY_S);
            return Err(TlsError::NotYetValid { name, days });
        }
        Ok(())
    }

    fn time(&self) -> FlooredTime {
        FlooredTime { floor_s: self.not_before_s, wall_us: self.wall_us }
    }
}

/// Certificate authorities whose certificates are believed.
#[derive(Debug, Clone)]
pub struct TrustRoots {
    store: Arc<RootCertStore>,
}

impl TrustRoots {
    /// Loads one or more PEM certificates.
    ///
    /// # Errors
    /// A file that is missing, unreadable, or holds no certificate.
    pub fn load(ca: &Path) -> Result<Self, TlsError> {
        Self::from_named(&name_of(ca), &read_pem("CA certificate", ca)?)
    }

    /// The same from memory.
    ///
    /// # Errors
    /// A text without a certificate.
    pub fn from_pem(ca: &[u8]) -> Result<Self, TlsError> {
        Self::from_named("in memory", ca)
    }

    fn from_named(name: &str, pem: &[u8]) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        for cert in certificates("CA certificate", name, pem)? {
            store.add(cert).map_err(|err| malformed(name, &err))?;
        }
        Ok(Self { store: Arc::new(store) })
    }
}

/// What a server asks of its clients.
#[derive(Debug, Clone, Copy)]
pub enum ClientCerts<'a> {
    /// A certificate under these roots, or no connection.
    Required(&'a TrustRoots),
    /// A certificate under these roots, or none.
    Optional(&'a TrustRoots),
    /// No certificate.
    Ignored,
}

/// Oldest TLS version a server accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// For sensors; QUIC has no such thing.
    V12,
    /// What QUIC needs.
    V13,
}

/// TLS for a server.
///
/// # Errors
/// `Verifier` for roots that cannot be used, `Library` for a chain that cannot.
pub fn server_config(
    credentials: &Credentials,
    clients: ClientCerts<'_>,
    oldest: TlsVersion,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let versions: &[&rustls::SupportedProtocolVersion] = match oldest {
        TlsVersion::V12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V13 => &[&rustls::version::TLS13],
    };
    let time = credentials.time();
    let builder = |roots: &TrustRoots| WebPkiClientVerifier::builder_with_provider(roots.store.clone(), provider());
    let patient = |inner| -> Arc<dyn ClientCertVerifier> { Arc::new(PatientClientVerifier { inner, time }) };
    let verifier = match clients {
        ClientCerts::Required(roots) => patient(builder(roots).build()?),
        ClientCerts::Optional(roots) => patient(builder(roots).allow_unauthenticated().build()?),
        ClientCerts::Ignored => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(time))
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(single(credentials));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// TLS 1.3 for a client that shows its certificate.
///
/// # Errors
/// `Verifier` for roots that cannot be used, `Library` for a chain that cannot.
pub fn client_config(credentials: &Credentials, roots: &TrustRoots, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots.store.clone(), provider()).build()?;
    let time = credentials.time();
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(time))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PatientServerVerifier { inner, time }))
        .with_client_cert_resolver(single(credentials));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// TLS 1.2 or 1.3 for a client that shows a certificate only if it has one, to servers of others.
///
/// # Errors
/// As for [`client_config`].
pub fn guest_config(credentials: Option<&Credentials>, roots: &TrustRoots) -> Result<ClientConfig, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots.store.clone(), provider()).build()?;
    let time = credentials.map_or(FlooredTime { floor_s: 0, wall_us: unix_us }, Credentials::time);
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(time))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PatientServerVerifier { inner, time }));
    Ok(match credentials {
        Some(credentials) => builder.with_client_cert_resolver(single(credentials)),
        None => builder.with_no_client_auth(),
    })
}

fn single(credentials: &Credentials) -> Arc<rustls::sign::SingleCertAndKey> {
    Arc::new(rustls::sign::SingleCertAndKey::from(credentials.key.clone()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn name_of(path: &Path) -> String {
    path.display().to_string()
}

fn read_pem(what: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    let read_error = |source| TlsError::Read { what, file: file.to_owned(), source };
    let len = std::fs::metadata(file).map_err(read_error)?.len();
    if len > PEM_LEN_MAX {
        return Err(TlsError::TooLong { what, file: file.to_owned(), len });
    }
    std::fs::read(file).map_err(read_error)
}

/// All certificates in a PEM text; at least one.
fn certificates(what: &'static str, name: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(TlsError::WrongContent {
            what,
            name: name.to_owned(),
            found: content_of(pem),
            expected: "a certificate in PEM",
        }),
        Err(err) => Err(malformed(name, &err)),
    }
}

fn malformed(name: &str, reason: &impl fmt::Display) -> TlsError {
    TlsError::Malformed { name: name.to_owned(), reason: reason.to_string() }
}

fn content_of(pem: &[u8]) -> &'static str {
    let text = String::from_utf8_lossy(pem);
    if text.trim().is_empty() {
        "nothing"
    } else if text.contains("ENCRYPTED") {
        "an encrypted key"
    } else if text.contains("PRIVATE KEY-----") {
        "a private key"
    } else if text.contains("-----BEGIN CERTIFICATE-----") {
        "a certificate"
    } else {
        "something that is not PEM"
    }
}

/// Start and end of validity, in seconds since 1970.
fn validity_of(name: &str, cert: &CertificateDer<'_>) -> Result<(u64, u64), TlsError> {
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(cert.as_ref()).map_err(|err| malformed(name, &err))?;
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Ok((seconds(cert.validity().not_before), seconds(cert.validity().not_after)))
}

#[cfg(test)]
pub(crate) mod tests;
