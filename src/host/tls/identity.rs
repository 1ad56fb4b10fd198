//! Who holds a certificate: one URI in it, and nothing in a message can change that.

use std::{fmt, str::FromStr};

use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

/// Longest name of a gateway or cloud. Source: a DNS label.
pub const NAME_LEN_MAX: usize = 63;

/// Which side a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A box.
    Gateway,
    /// An ingest node.
    Cloud,
}

impl Role {
    /// The word in URIs and on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Cloud => "cloud",
        }
    }
}

/// Who holds a certificate; prints as its URI.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    role: Role,
    name: String,
}

impl Identity {
    /// An identity by role and name.
    ///
    /// # Errors
    /// `Form` for a name that is empty, too long or has other characters.
    pub fn new(role: Role, name: &str) -> Result<Self, IdentityError> {
        let is_known = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_.".contains(&c);
        let is_good = (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(is_known) && !name.starts_with('.');
        if is_good {
            Ok(Self { role, name: name.to_owned() })
        } else {
            Err(IdentityError::Form { uri: format!("weir://{}/{name}", role.as_str()) })
        }
    }

    /// Which side it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its name, unique within its role.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weir://{}/{}", self.role.as_str(), self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form { uri: uri.to_owned() };
        let (role, name) = uri.strip_prefix("weir://").and_then(|rest| rest.split_once('/')).ok_or_else(form)?;
        let role = match role {
            "gateway" => Role::Gateway,
            "cloud" => Role::Cloud,
            _ => return Err(form()),
        };
        Self::new(role, name).map_err(|_| form())
    }
}

/// The identity in a certificate (DER): its only `weir://` URI.
///
/// # Errors
/// `Malformed`, `Count` unless there is exactly one such URI, `Form` if it is not an identity.
pub fn identity(cert_der: &[u8]) -> Result<Identity, IdentityError> {
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(cert_der).map_err(|_| IdentityError::Malformed)?;
    let names = cert.subject_alternative_name().map_err(|_| IdentityError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("weir:") => Some(*uri),
            _ => None,
        })
        .collect();
    match uris[..] {
        [uri] => uri.parse(),
        _ => Err(IdentityError::Count { count: uris.len() }),
    }
}

/// The common name in a certificate (DER), as a client showed it; `None` if it has none.
pub fn subject_name(cert_der: &[u8]) -> Option<String> {
    let (_, cert) = x509_parser::certificate::X509Certificate::from_der(cert_der).ok()?;
    cert.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// Why a certificate does not say who holds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not a certificate.
    #[error("the certificate is malformed")]
    Malformed,
    /// There are none or several `weir:` URIs where exactly one is wanted.
    #[error("{count} weir:// URIs in the certificate's alternative names, expected exactly 1")]
    Count {
        /// How many there are.
        count: usize,
    },
    /// The URI has another form.
    #[error(
        "`{uri}` is not weir://gateway/NAME or weir://cloud/NAME with a NAME of 1 to {NAME_LEN_MAX} \
         characters from a-z, 0-9, `-`, `_` and `.`"
    )]
    Form {
        /// The URI as given.
        uri: String,
    },
}
