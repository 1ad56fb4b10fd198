//! A certificate authority small enough to understand: `weir pki init` and `weir pki issue`.
//!
//! One CA, one certificate for each box and each ingest node; the holder's identity is the URI in it
//! (`weir://gateway/NAME`, `weir://cloud/NAME`). A box's certificate may only act as a TLS client, so that
//! a stolen one cannot pose as the cloud; it may also act as a server if it is given host names, for
//! MQTT over TLS. Revoking is not done here: the cloud denies identities that are not enrolled, which
//! works at once and without lists. Certificates begin a day in the past, for clocks that are behind.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use weir_host::{
    clock::{WALL_FLOOR_US, unix_us},
    tls::{Credentials, Identity, IdentityError, TlsError, common_name},
};

/// Life of a CA. Replacing one means visiting every box, so it outlives the hardware.
const CA_DAYS: u64 = 20 * 365;
/// Life of a certificate unless told otherwise.
const LEAF_DAYS: u64 = 3 * 365;
/// How far in the past a certificate begins.
const BACKDATED: Duration = Duration::from_secs(DAY_S);
const DAY_S: u64 = 86_400;

/// `weir pki`: make a certificate authority and issue certificates.
#[derive(Debug, Clone, Subcommand)]
pub enum PkiCommand {
    /// Make a certificate authority: DIR/ca.pem and DIR/ca.key. Keep the key off the boxes.
    Init(InitArgs),
    /// Issue a certificate: DIR/NAME.pem and DIR/NAME.key.
    Issue(IssueArgs),
}

/// Arguments of `weir pki init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Where the files go.
    #[arg(long, default_value = "pki")]
    pub dir: PathBuf,
    /// Replace a CA that is there; everything it issued becomes worthless.
    #[arg(long)]
    pub force: bool,
}

/// Arguments of `weir pki issue`.
#[derive(Debug, Clone, Args)]
pub struct IssueArgs {
    /// Who the certificate is for.
    pub role: Role,
    /// Its name, unique within its role: a-z, 0-9, `-`, `_` and `.`.
    pub name: String,
    /// Where the CA is and the files go.
    #[arg(long, default_value = "pki")]
    pub dir: PathBuf,
    /// A host name under which others reach it; may be repeated.
    #[arg(long = "dns", value_name = "HOST")]
    pub dns: Vec<String>,
    /// An address under which others reach it; may be repeated.
    #[arg(long = "ip", value_name = "ADDRESS")]
    pub ip: Vec<IpAddr>,
    /// Days until it expires.
    #[arg(long, default_value_t = LEAF_DAYS)]
    pub days: u64,
    /// Replace files that are there.
    #[arg(long)]
    pub force: bool,
}

/// Who a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// A box.
    Gateway,
    /// An ingest node; needs a host name or an address.
    Cloud,
}

impl From<Role> for weir_host::tls::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Gateway => Self::Gateway,
            Role::Cloud => Self::Cloud,
        }
    }
}

/// What to issue.
#[derive(Debug, Clone)]
pub struct Request {
    /// Who it is for.
    pub role: Role,
    /// Its name, unique within its role.
    pub name: String,
    /// Host names under which others reach it.
    pub dns: Vec<String>,
    /// Addresses under which others reach it.
    pub ip: Vec<IpAddr>,
    /// Days until it expires.
    pub days: u64,
}

impl Request {
    /// A certificate for a box.
    pub fn gateway(name: &str) -> Self {
        Self { role: Role::Gateway, name: name.to_owned(), dns: Vec::new(), ip: Vec::new(), days: LEAF_DAYS }
    }

    /// A certificate for an ingest node on this machine.
    pub fn local_cloud(name: &str) -> Self {
        let ip = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        Self { role: Role::Cloud, dns: vec!["localhost".to_owned()], ip, ..Self::gateway(name) }
    }
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
}

/// Why a certificate cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The name has a form that identities do not have.
    #[error(transparent)]
    Name(#[from] IdentityError),
    /// The name is that of the CA's own files.
    #[error("the name `ca` is that of the CA's own files; choose another")]
    ReservedName,
    /// Nobody could verify this server.
    #[error("a cloud certificate needs a host name or an address: add --dns HOST or --ip ADDRESS")]
    NoAddress,
    /// The life is none, or ends after the CA's.
    #[error("{days} days is not a life for a certificate; between 1 and {CA_DAYS} are")]
    Days {
        /// Days asked for.
        days: u64,
    },
    /// This machine's clock is not set.
    #[error("this machine's clock is not set (it says {unix_s} s since 1970): certificates would be wrong")]
    ClockUnset {
        /// What it says.
        unix_s: u64,
    },
    /// Files would be lost.
    #[error("{} is there already; use --force to replace it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is no CA.
    #[error("there is no certificate authority in {}; make one with `weir pki init`", dir.display())]
    NoAuthority {
        /// Where it was sought.
        dir: PathBuf,
    },
    /// The CA's files do not fit each other or are damaged.
    #[error("the certificate authority cannot be used")]
    Authority(#[from] TlsError),
    /// A file cannot be read or written.
    #[error("{} cannot be read or written", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The library refuses.
    #[error("the certificate cannot be made")]
    Library(#[from] rcgen::Error),
    /// What was done cannot be told.
    #[error("the output cannot be written")]
    Output(#[source] io::Error),
}

impl PkiCommand {
    /// Does it, and says what was written.
    ///
    /// # Errors
    /// As for [`init`] and [`issue`].
    pub fn run(&self, out: &mut dyn Write) -> Result<(), PkiError> {
        match self {
            Self::Init(args) => {
                init(&args.dir, args.force)?;
                let dir = args.dir.display();
                writeln!(out, "wrote {dir}/ca.pem (give it to every box and cloud) and {dir}/ca.key (keep it here)")
            }
            Self::Issue(args) => {
                let request = Request {
                    role: args.role,
                    name: args.name.clone(),
                    dns: args.dns.clone(),
                    ip: args.ip.clone(),
                    days: args.days,
                };
                let identity = issue(&args.dir, &request, args.force)?;
                let (dir, name) = (args.dir.display(), &args.name);
                writeln!(out, "wrote {dir}/{name}.pem and {dir}/{name}.key for {identity}")
            }
        }
        .map_err(PkiError::Output)
    }
}

/// Makes a certificate authority in `dir`: `ca.pem`, and `ca.key` readable by its owner alone.
///
/// # Errors
/// `Exists` unless `force`; `ClockUnset`; `File`.
pub fn init(dir: &Path, force: bool) -> Result<(), PkiError> {
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    refuse_to_replace(&[&cert, &key], force)?;
    let authority = Authority::new()?;
    fs::create_dir_all(dir).map_err(|source| PkiError::File { path: dir.to_owned(), source })?;
    write_file(&key, authority.issuer.key().serialize_pem().as_bytes(), 0o600)?;
    write_file(&cert, authority.cert_pem.as_bytes(), 0o644)
}

/// Issues a certificate with the authority in `dir`: `NAME.pem`, and `NAME.key` readable by its owner alone.
///
/// # Errors
/// `NoAuthority`, `Exists` unless `force`, `File`, and what [`Authority::issue`] refuses.
pub fn issue(dir: &Path, request: &Request, force: bool) -> Result<Identity, PkiError> {
    if request.name == "ca" {
        return Err(PkiError::ReservedName);
    }
    let identity = Identity::new(request.role.into(), &request.name)?;
    let (cert, key) = (dir.join(format!("{}.pem", request.name)), dir.join(format!("{}.key", request.name)));
    refuse_to_replace(&[&cert, &key], force)?;
    let issued = Authority::load(dir)?.issue(request)?;
    write_file(&key, issued.key_pem.as_bytes(), 0o600)?;
    write_file(&cert, issued.cert_pem.as_bytes(), 0o644)?;
    Ok(identity)
}

/// A certificate authority in memory.
#[derive(Debug)]
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one, with an EC P-256 key and a life of 20 years.
    ///
    /// # Errors
    /// `ClockUnset` on a machine that does not know the time.
    pub fn new() -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        // Two CAs of one name would confuse those who must tell which of them signed.
        let tag: String = key.public_key_raw().iter().skip(1).take(4).map(|byte| format!("{byte:02x}")).collect();
        let mut params = authority_params(&format!("Weir CA {tag}"));
        set_life(&mut params, CA_DAYS)?;
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    /// Loads the one in `dir`.
    ///
    /// # Errors
    /// `NoAuthority` if there is none, `Authority` or `Library` if its files are damaged or do not fit each other.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !cert_path.exists() || !key_path.exists() {
            return Err(PkiError::NoAuthority { dir: dir.to_owned() });
        }
        // Checks that the two belong together.
        Credentials::load(&cert_path, &key_path)?;
        let read = |path: PathBuf| fs::read_to_string(&path).map_err(|source| PkiError::File { path, source });
        let cert_pem = read(cert_path)?;
        let key = KeyPair::from_pem(&read(key_path)?)?;
        let params = authority_params(&common_name(cert_pem.as_bytes())?);
        Ok(Self { cert_pem, issuer: Issuer::new(params, key) })
    }

    /// Its certificate, PEM: what boxes and clouds trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues a certificate.
    ///
    /// # Errors
    /// `Name`, `NoAddress` (cloud without host name and address), `Days`, `ClockUnset`, `Library` (bad host name).
    pub fn issue(&self, request: &Request) -> Result<Issued, PkiError> {
        let identity = Identity::new(request.role.into(), &request.name)?;
        let has_address = !request.dns.is_empty() || !request.ip.is_empty();
        if request.role == Role::Cloud && !has_address {
            return Err(PkiError::NoAddress);
        }
        if !(1..=CA_DAYS).contains(&request.days) {
            return Err(PkiError::Days { days: request.days });
        }
        let mut params = CertificateParams::new(request.dns.clone())?;
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
        params.subject_alt_names.extend(request.ip.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name = named(&request.name);
        set_life(&mut params, request.days)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if has_address {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Lets a certificate live from yesterday until `days` from now.
fn set_life(params: &mut CertificateParams, days: u64) -> Result<(), PkiError> {
    let now_us = unix_us();
    if now_us < WALL_FLOOR_US {
        return Err(PkiError::ClockUnset { unix_s: now_us / 1_000_000 });
    }
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(now_us / 1_000_000);
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::from_secs(days * DAY_S);
    Ok(())
}

fn refuse_to_replace(paths: &[&Path], force: bool) -> Result<(), PkiError> {
    match paths.iter().find(|path| path.exists()) {
        Some(path) if !force => Err(PkiError::Exists { path: path.to_path_buf() }),
        _ => Ok(()),
    }
}

/// Writes a file as a whole or not at all; the mode holds from the first byte.
fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || {
        // A leftover of an interrupted run may have another mode.
        match fs::remove_file(&partial) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|source| PkiError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
