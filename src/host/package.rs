//! A model on its way: one file with a signed head, a manifest and an ONNX file.
//!
//! Three lines of text (what it is, the head, the signature), a fourth with two lengths, and then the bytes of manifest and
//! model, one after the other. The signature is of the second line as it stands.

use ring::digest;
use serde::{Deserialize, Serialize};

use crate::sign::{PublicKey, SecretKey, SignError, signature_from_text, signature_to_text};

/// What is signed of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The task that it answers.
    pub task: String,
    /// Of one task, each is above the one before; at least 1.
    pub version: u64,
    /// Gateways that it is for: names, or patterns with `*`.
    pub gateways: Vec<String>,
    /// Processor time that a window takes at most on such a box, in microseconds.
    pub window_us_max: u64,
    /// SHA-256 of the manifest, in hexadecimal.
    pub manifest: String,
    /// SHA-256 of the ONNX file, in hexadecimal.
    pub model: String,
}

/// A package whose lengths and sums are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// What it says of itself.
    pub head: Head,
    /// The head as it was signed.
    pub head_text: String,
    /// Of the head.
    pub signature: String,
    /// The TOML text.
    pub manifest: Vec<u8>,
    /// The ONNX file.
    pub model: Vec<u8>,
}

/// Why a package is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackageError {
    /// Something else than a package.
    #[error("it is no package of a model: {0}; make one with `weir model sign`")]
    Form(&'static str),
    /// Not all of it, or more.
    #[error("it has {found} bytes where its head says {expected}: it was cut off or damaged on the way; copy it again")]
    Length {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// Other bytes than were signed.
    #[error("its {part} has sha256 {found}, its head says {expected}: it was changed or damaged on the way; copy it again")]
    Sum {
        /// `manifest` or `model`.
        part: &'static str,
        /// Of the bytes.
        found: String,
        /// In the head.
        expected: String,
    },
    /// The signature.
    #[error("{source} (the box's key is {key}): sign it with `weir model sign` and the key that belongs to infer.updates.key")]
    Signature {
        /// The key of the box.
        key: String,
        /// What is wrong with it.
        source: SignError,
    },
    /// For other boxes.
    #[error("it is for {}, and this is {gateway}: sign it for this gateway, or take the right package", gateways.join(", "))]
    Target {
        /// Those it is for.
        gateways: Vec<String>,
        /// The box.
        gateway: String,
    },
}

/// What files of packages are called.
pub const PACKAGE_EXTENSION: &str = "weir-model";
/// Longest package: a model of 64 MiB, and what belongs to it.
pub const PACKAGE_LEN_MAX: u64 = 65 << 20;
/// What a package begins with.
const WORD: &str = "weir-model 1";
/// Longest line before the bytes: some dozens of gateways.
const LINE_LEN_MAX: usize = 8 << 10;
/// Longest manifest, as `weir_infer` reads it.
const MANIFEST_LEN_MAX: u64 = 64 << 10;

impl Package {
    /// Signs a model; the sums in `head` are filled in.
    pub fn sign(mut head: Head, manifest: Vec<u8>, model: Vec<u8>, key: &SecretKey) -> Package {
        (head.manifest, head.model) = (sha256(&manifest), sha256(&model));
        let head_text = serde_json::to_string(&head).unwrap_or_default();
        let signature = signature_to_text(&key.sign_model(head_text.as_bytes()));
        Package { head, head_text, signature, manifest, model }
    }

    /// Its bytes; the inverse of [`Package::read`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let lengths = format!("{} {}", self.manifest.len(), self.model.len());
        let text = [WORD, &self.head_text, &self.signature, &lengths].map(|line| format!("{line}\n")).concat();
        [text.as_bytes(), &self.manifest, &self.model].concat()
    }

    /// Reads a package, and checks its lengths and sums. Who signed it is not looked at: see [`Head::verify`].
    ///
    /// # Errors
    /// `Form`, `Length` or `Sum`.
    pub fn read(bytes: &[u8]) -> Result<Package, PackageError> {
        let (word, rest) = line(bytes)?;
        if word != WORD {
            return Err(PackageError::Form("it does not begin with `weir-model 1`"));
        }
        let (head_text, rest) = line(rest)?;
        let (signature, rest) = line(rest)?;
        let (lengths, rest) = line(rest)?;
        let head = Head::read(head_text)?;
        let lengths = lengths.split_once(' ').and_then(|(one, other)| Some((one.parse().ok()?, other.parse().ok()?)));
        let (manifest_len, model_len): (u64, u64) = lengths.ok_or(PackageError::Form("its lengths are no two numbers"))?;
        let expected = manifest_len.saturating_add(model_len);
        if manifest_len > MANIFEST_LEN_MAX || expected > PACKAGE_LEN_MAX {
            return Err(PackageError::Form("its manifest or its model is too long"));
        }
        if rest.len() as u64 != expected {
            return Err(PackageError::Length { found: rest.len() as u64, expected });
        }
        let (manifest, model) = rest.split_at(manifest_len as usize);
        for (part, bytes, expected) in [("manifest", manifest, &head.manifest), ("model", model, &head.model)] {
            let (found, expected) = (sha256(bytes), expected.clone());
            if found != expected {
                return Err(PackageError::Sum { part, found, expected });
            }
        }
        let (head_text, signature) = (head_text.to_owned(), signature.to_owned());
        Ok(Package { head, head_text, signature, manifest: manifest.to_vec(), model: model.to_vec() })
    }

    /// SHA-256 of a part, as heads name it: lower-case hexadecimal.
    pub fn sum(bytes: &[u8]) -> String {
        sha256(bytes)
    }

    /// The same as bytes, as offers name a whole package.
    pub fn sum_bytes(bytes: &[u8]) -> Vec<u8> {
        digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
    }

    /// SHA-256 of the head, in hexadecimal: what the package is known by.
    pub fn id(&self) -> String {
        sha256(self.head_text.as_bytes())
    }
}

impl Head {
    /// Reads a head.
    ///
    /// # Errors
    /// `Form`.
    pub fn read(text: &str) -> Result<Head, PackageError> {
        let head: Head =
            serde_json::from_str(text).map_err(|_| PackageError::Form("its head is not as this version knows it"))?;
        let is_sum =
            |sum: &str| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if head.version == 0 || head.window_us_max == 0 || !is_sum(&head.manifest) || !is_sum(&head.model) {
            return Err(PackageError::Form("its head has a version or a time of 0, or no sums"));
        }
        Ok(head)
    }

    /// Checks that a head was signed. Whom it is for is for whoever knows what patterns of names mean.
    ///
    /// # Errors
    /// `Signature`.
    pub fn verify(text: &str, signature: &str, key: &PublicKey) -> Result<(), PackageError> {
        signature_from_text(signature)
            .and_then(|signature| key.verify_model(text.as_bytes(), &signature))
            .map_err(|source| PackageError::Signature { key: key.to_string(), source })
    }
}

/// Lower-case hexadecimal SHA-256.
fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    digest::digest(&digest::SHA256, bytes).as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

fn line(bytes: &[u8]) -> Result<(&str, &[u8]), PackageError> {
    let end = bytes.iter().take(LINE_LEN_MAX).position(|&byte| byte == b'\n');
    let (line, rest) = bytes.split_at(end.ok_or(PackageError::Form("its first four lines are not there"))?);
    let line = std::str::from_utf8(line).map_err(|_| PackageError::Form("its first four lines are no text"))?;
    Ok((line, &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(version: u64) -> Head {
        let gateways = vec!["box-*".to_owned()];
        let (manifest, model) = (String::new(), String::new());
        Head { task: "activity".to_owned(), version, gateways, window_us_max: 500, manifest, model }
    }

    fn package(key: &SecretKey) -> Package {
        Package::sign(head(7), b"name = 'm'\n".to_vec(), vec![1, 2, 3, 250], key)
    }

    #[test]
    fn a_package_survives_as_bytes_and_is_verified() {
        let key = SecretKey::generate().unwrap();
        let package = package(&key);
        let again = Package::read(&package.to_bytes()).unwrap();
        assert_eq!(again, package);
        assert_eq!(Head::verify(&again.head_text, &again.signature, &key.public()), Ok(()));
    }

    #[test]
    fn no_cut_and_no_changed_byte_passes() {
        let key = SecretKey::generate().unwrap();
        let package = package(&key);
        let bytes = package.to_bytes();
        for len in 0..bytes.len() {
            assert!(Package::read(&bytes[..len]).is_err(), "cut to {len}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x04;
            let read = Package::read(&changed);
            let verified = read.and_then(|read| Head::verify(&read.head_text, &read.signature, &key.public()));
            assert!(verified.is_err(), "byte {at}");
        }
        let cut = Package::read(&bytes[..bytes.len() - 1]).unwrap_err();
        assert!(cut.to_string().contains("has 14 bytes where its head says 15: it was cut off"), "{cut}");
    }

    #[test]
    fn a_signature_of_another_key_or_of_a_policy_is_none() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let mut package = package(&key);
        let wrong = Head::verify(&package.head_text, &package.signature, &other.public()).unwrap_err();
        assert!(matches!(wrong, PackageError::Signature { .. }), "{wrong}");
        package.signature = signature_to_text(&key.sign(package.head_text.as_bytes()));
        assert!(Head::verify(&package.head_text, &package.signature, &key.public()).is_err());
    }
}
