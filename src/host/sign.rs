//! Signatures of policies and models: who may change what a box does.
//!
//! The cloud hands policies on, and whoever breaks into it must not be able to write one. So a policy is signed where it is
//! written, with a key that the cloud never has, and a box takes only what was signed with the key of its own configuration.
//! What is signed starts with [`CONTEXT`]: a signature for anything else, made with the same key, is none for a policy.
//!
//! Keys and signatures are text, a word and hex digits, so that they can be pasted into a configuration or a ticket.

use std::fmt;
use std::str::FromStr;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// What precedes the text of a policy when it is signed.
pub const CONTEXT: &[u8] = b"weir policy 1\n";
/// What precedes the head of a model.
const MODEL_CONTEXT: &[u8] = b"weir model 1\n";
/// Length of a signature in bytes. Source: RFC 8032, 5.1.6.
pub const SIGNATURE_LEN: usize = 64;
/// Length of a public key in bytes. Source: RFC 8032, 5.1.5.
const PUBLIC_LEN: usize = 32;
/// Longest secret key, a PKCS#8 document, in bytes: with the public key in it, one takes 83 to 85.
const SECRET_LEN_MAX: usize = 128;

const PUBLIC_WORD: &str = "ed25519";
const SECRET_WORD: &str = "ed25519-secret";
const SIGNATURE_WORD: &str = "ed25519-signature";

/// Why a key or a signature is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// Text of another form.
    #[error("it is not of the form {word}:HEX with {expected} hex digits")]
    Form {
        /// The word that it must start with.
        word: &'static str,
        /// How many digits follow, in words.
        expected: &'static str,
    },
    /// Right in form, but no key.
    #[error("it is damaged: it holds no Ed25519 key; restore it, or make another with `weir policy keygen`")]
    Damaged,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// Signed with another key, or changed since.
    #[error("the signature is not of this text and this key: the text was changed after it was signed, or the key is another")]
    Mismatch,
}

/// What a box checks policies with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; PUBLIC_LEN]);

impl PublicKey {
    /// Checks that `text` was signed with the secret key that belongs to this one.
    ///
    /// # Errors
    /// `Mismatch` if it was not.
    pub fn verify(&self, text: &[u8], signature: &[u8]) -> Result<(), SignError> {
        self.verify_in(CONTEXT, text, signature)
    }

    /// The same of the head of a model.
    ///
    /// # Errors
    /// `Mismatch` if it was not.
    pub fn verify_model(&self, head: &[u8], signature: &[u8]) -> Result<(), SignError> {
        self.verify_in(MODEL_CONTEXT, head, signature)
    }

    fn verify_in(&self, context: &[u8], text: &[u8], signature: &[u8]) -> Result<(), SignError> {
        let signed = [context, text].concat();
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&signed, signature).map_err(|_| SignError::Mismatch)
    }
}

impl FromStr for PublicKey {
    type Err = SignError;

    fn from_str(text: &str) -> Result<PublicKey, SignError> {
        let bytes = from_text(PUBLIC_WORD, text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(PublicKey).ok_or(SignError::Form { word: PUBLIC_WORD, expected: "64" })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_text(PUBLIC_WORD, &self.0))
    }
}

/// What policies are signed with; it shows nothing of itself in logs.
pub struct SecretKey {
    pair: Ed25519KeyPair,
    document: Vec<u8>,
}

impl SecretKey {
    /// A new one.
    ///
    /// # Errors
    /// `Random` if the system gives no random numbers.
    pub fn generate() -> Result<SecretKey, SignError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| SignError::Random)?;
        SecretKey::from_document(document.as_ref().to_vec())
    }

    /// The key that boxes get.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; PUBLIC_LEN];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signs the text of a policy.
    pub fn sign(&self, text: &[u8]) -> Vec<u8> {
        self.pair.sign(&[CONTEXT, text].concat()).as_ref().to_vec()
    }

    /// Signs the head of a model.
    pub fn sign_model(&self, head: &[u8]) -> Vec<u8> {
        self.pair.sign(&[MODEL_CONTEXT, head].concat()).as_ref().to_vec()
    }

    /// Its text, for a file that only its owner reads; the inverse of `from_str`.
    pub fn to_secret_text(&self) -> String {
        to_text(SECRET_WORD, &self.document)
    }

    fn from_document(document: Vec<u8>) -> Result<SecretKey, SignError> {
        let pair = Ed25519KeyPair::from_pkcs8(&document).map_err(|_| SignError::Damaged)?;
        Ok(SecretKey { pair, document })
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl FromStr for SecretKey {
    type Err = SignError;

    fn from_str(text: &str) -> Result<SecretKey, SignError> {
        let document = from_text(SECRET_WORD, text).filter(|document| document.len() <= SECRET_LEN_MAX);
        SecretKey::from_document(document.ok_or(SignError::Form { word: SECRET_WORD, expected: "at most 256" })?)
    }
}

/// The text of a `.sig` file.
pub fn signature_to_text(signature: &[u8]) -> String {
    to_text(SIGNATURE_WORD, signature)
}

/// The inverse of [`signature_to_text`]; space around it does not count.
///
/// # Errors
/// `Form` if it is anything else.
pub fn signature_from_text(text: &str) -> Result<[u8; SIGNATURE_LEN], SignError> {
    let bytes = from_text(SIGNATURE_WORD, text).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or(SignError::Form { word: SIGNATURE_WORD, expected: "128" })
}

fn to_text(word: &str, bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(format!("{word}:"), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all");
        text
    })
}

fn from_text(word: &str, text: &str) -> Option<Vec<u8>> {
    let digits = text.trim().strip_prefix(word)?.strip_prefix(':')?.as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| Some(((digit(pair[0])? << 4) | digit(pair[1])?) as u8);
    digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2).map(byte).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"version = 7\n";

    #[test]
    fn a_signature_is_of_one_text_and_one_key() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let signature = key.sign(TEXT);
        assert_eq!(key.public().verify(TEXT, &signature), Ok(()));
        assert_eq!(key.public().verify(b"version = 8\n", &signature), Err(SignError::Mismatch));
        assert_eq!(other.public().verify(TEXT, &signature), Err(SignError::Mismatch));
        for at in 0..SIGNATURE_LEN {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert_eq!(key.public().verify(TEXT, &changed), Err(SignError::Mismatch), "byte {at}");
        }
        assert_eq!(key.public().verify(TEXT, b""), Err(SignError::Mismatch));
        assert_eq!(key.public().verify_model(TEXT, &signature), Err(SignError::Mismatch), "a policy is no model");
        assert_eq!(key.public().verify_model(TEXT, &key.sign_model(TEXT)), Ok(()));
        assert_eq!(key.public().verify(TEXT, &key.sign_model(TEXT)), Err(SignError::Mismatch), "nor a model a policy");
    }

    #[test]
    fn a_signature_of_the_bare_text_is_none_of_a_policy() {
        let key = SecretKey::generate().unwrap();
        let bare = key.pair.sign(TEXT);
        assert_eq!(key.public().verify(TEXT, bare.as_ref()), Err(SignError::Mismatch));
    }

    #[test]
    fn keys_and_signatures_survive_as_text() {
        let key = SecretKey::generate().unwrap();
        let again: SecretKey = format!("{}\n", key.to_secret_text()).parse().unwrap();
        let public: PublicKey = key.public().to_string().parse().unwrap();
        let signature = signature_from_text(&format!(" {}\n", signature_to_text(&again.sign(TEXT)))).unwrap();
        assert_eq!(public.verify(TEXT, &signature), Ok(()));
    }

    #[test]
    fn other_text_is_refused_with_its_form() {
        let form = Err(SignError::Form { word: PUBLIC_WORD, expected: "64" });
        for text in ["", "ed25519", "ed25519:", "ed25519:abc", "ed25519:zz", "ed25519:00", "rsa:00", "ed25519:ä"] {
            assert_eq!(text.parse::<PublicKey>(), form, "{text}");
        }
        let public = SecretKey::generate().unwrap().public().to_string();
        assert!(matches!(public.parse::<SecretKey>(), Err(SignError::Form { .. })), "a public key signs nothing");
        assert_eq!("ed25519-secret:0011".parse::<SecretKey>().err(), Some(SignError::Damaged));
        assert!(signature_from_text("ed25519-signature:00").is_err());
    }

    #[test]
    fn a_secret_key_shows_nothing_of_itself() {
        let key = SecretKey::generate().unwrap();
        let secret = key.to_secret_text();
        let (_, digits) = secret.split_once(':').unwrap();
        // The seed starts after 16 bytes of PKCS#8.
        assert!(!format!("{key:?}").contains(&digits[32..96]));
    }
}
