//! Passwords of MQTT users: argon2id hashes in PHC text, made by `weir passwd`, verified by the listener.
//!
//! A hash names its own cost. One that would take hundreds of megabytes or seconds of a small box is refused in the
//! configuration rather than met at the first CONNECT.

use std::fmt;

use argon2::password_hash::{PasswordHash as PhcHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::Deserialize;

/// A checked argon2id hash in PHC text: `$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH`.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PasswordHash {
    text: String,
}

/// Memory of new hashes, in KiB. Source: OWASP's password storage cheat sheet, argon2id; also the crate's default.
const MEMORY_KIB: u32 = 19_456;
/// Passes of new hashes. Source: as above.
const PASSES: u32 = 2;
/// Lanes of new hashes. Source: as above.
const LANES: u32 = 1;
/// Most memory that a hash may ask for, in KiB: a tenth of the smallest box, 512 MB, and one login at a time.
const MEMORY_KIB_MAX: u32 = 64 * 1024;
/// Most passes that a hash may ask for: about half a second on a Pi 4 with the most memory.
const PASSES_MAX: u32 = 10;
/// Longest password in bytes; MQTT allows 65,535.
const PASSWORD_LEN_MAX: usize = 1024;
/// Salt of new hashes in bytes. Source: RFC 9106, 3.1.
const SALT_LEN: usize = 16;

/// Why a text is not a usable hash, or a password cannot be hashed. A second line, where there is one, is the hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// Not PHC text; perhaps the password itself. The text is not repeated.
    #[error("this is not a password hash\nmake one with `weir passwd`; it begins with $argon2id$")]
    Form,
    /// Another algorithm.
    #[error("the hash is of the kind `{algorithm}`, expected argon2id\nmake a new one with `weir passwd`")]
    Algorithm {
        /// What it names.
        algorithm: String,
    },
    /// It costs more than a small box has.
    #[error(
        "the hash asks for {memory_kib} KiB and {passes} passes, more than {MEMORY_KIB_MAX} KiB and {PASSES_MAX} passes\n\
         make a new one with `weir passwd`"
    )]
    Cost {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes.
        passes: u32,
    },
    /// The password has a length that is not taken.
    #[error("the password has {len} bytes, expected 1 to {PASSWORD_LEN_MAX}")]
    Length {
        /// Its length.
        len: usize,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes for the salt: {reason}")]
    Random {
        /// Its words.
        reason: String,
    },
    /// The hash function refuses.
    #[error("the password cannot be hashed: {reason}")]
    Hash {
        /// Its words.
        reason: String,
    },
}

impl PasswordHash {
    /// Checks a hash.
    ///
    /// # Errors
    /// `Form`, `Algorithm` or `Cost`.
    pub fn parse(text: &str) -> Result<PasswordHash, PasswordError> {
        let hash = PhcHash::new(text).map_err(|_| PasswordError::Form)?;
        if hash.algorithm.as_str() != "argon2id" {
            return Err(PasswordError::Algorithm { algorithm: hash.algorithm.as_str().to_owned() });
        }
        let params = Params::try_from(&hash).map_err(|_| PasswordError::Form)?;
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(PasswordError::Form);
        }
        let (memory_kib, passes) = (params.m_cost(), params.t_cost());
        if memory_kib > MEMORY_KIB_MAX || passes > PASSES_MAX {
            return Err(PasswordError::Cost { memory_kib, passes });
        }
        Ok(PasswordHash { text: text.to_owned() })
    }

    /// The PHC text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for PasswordHash {
    type Error = PasswordError;

    fn try_from(text: String) -> Result<Self, PasswordError> {
        PasswordHash::parse(&text)
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// Hashes a password with a new salt. Takes 19 MiB and tens of milliseconds.
///
/// # Errors
/// `Length`, `Random` or `Hash`.
pub fn hash_password(password: &[u8]) -> Result<PasswordHash, PasswordError> {
    if !(1..=PASSWORD_LEN_MAX).contains(&password.len()) {
        return Err(PasswordError::Length { len: password.len() });
    }
    let mut salt = [0; SALT_LEN];
    getrandom::fill(&mut salt).map_err(|err| PasswordError::Random { reason: err.to_string() })?;
    hash_with(password, &salt)
}

/// Whether `password` is the one of `hash`; without a hash (there is no such user) always false, after the same work, so
/// that an attacker cannot tell users from others by the time it takes.
///
/// Blocks for tens of milliseconds and takes the memory that the hash asks for: never call it on a runtime thread, and
/// call it one at a time.
pub fn verify(hash: Option<&PasswordHash>, password: &[u8]) -> bool {
    if password.len() > PASSWORD_LEN_MAX {
        return false;
    }
    let Some(hash) = hash else {
        // Only for the time it takes.
        let _ = hash_with(password, &[0; SALT_LEN]);
        return false;
    };
    PhcHash::new(&hash.text).is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok())
}

fn hash_with(password: &[u8], salt: &[u8]) -> Result<PasswordHash, PasswordError> {
    let failed = |reason: String| PasswordError::Hash { reason };
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|err| failed(err.to_string()))?;
    let salt = SaltString::encode_b64(salt).map_err(|err| failed(err.to_string()))?;
    let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = hasher.hash_password(password, &salt).map_err(|err| failed(err.to_string()))?;
    Ok(PasswordHash { text: hash.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_verifies_against_its_own_hash_only() {
        let hash = hash_password(b"secret").unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.as_str());
        assert_eq!(PasswordHash::parse(hash.as_str()).unwrap(), hash);
        assert!(verify(Some(&hash), b"secret"));
        assert!(!verify(Some(&hash), b"secret "));
        assert!(!verify(None, b"secret"));
        assert_ne!(hash, hash_password(b"secret").unwrap(), "each hash has its own salt");
    }

    #[test]
    fn what_is_no_hash_or_costs_too_much_is_refused_without_repeating_it() {
        let error = |text: &str| PasswordHash::parse(text).unwrap_err();
        assert_eq!(error("hunter2"), PasswordError::Form);
        assert!(!error("hunter2").to_string().contains("hunter2"));
        assert_eq!(error("$argon2id$v=19$m=19456,t=2,p=1"), PasswordError::Form);
        let algorithm = "argon2i".to_owned();
        let tail = "c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI";
        assert_eq!(error(&format!("$argon2i$v=19$m=19456,t=2,p=1${tail}")), PasswordError::Algorithm { algorithm });
        let cost = PasswordError::Cost { memory_kib: 1_048_576, passes: 2 };
        assert_eq!(error(&format!("$argon2id$v=19$m=1048576,t=2,p=1${tail}")), cost);
        PasswordHash::parse(&format!("$argon2id$v=19$m=65536,t=3,p=4${tail}")).unwrap();
    }

    #[test]
    fn passwords_of_no_or_absurd_length_are_refused() {
        assert_eq!(hash_password(b""), Err(PasswordError::Length { len: 0 }));
        assert_eq!(hash_password(&[b'x'; 1025]), Err(PasswordError::Length { len: 1025 }));
    }

    #[test]
    fn a_hash_does_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", hash_password(b"x").unwrap()), "PasswordHash(..)");
    }
}
