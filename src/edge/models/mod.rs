//! Models that come to a box while it runs: signed packages, and the store that keeps them.
//!
//! A package says in its head which task its model answers, on which boxes, in which version and how fast; the head is signed,
//! and names manifest and model by their sums. Nothing of a package is believed before signature, sums and target are
//! right, and they are looked at again at each load: whoever can write to the store cannot change a model.
//!
//! `models/` in the data directory holds each part under its SHA-256, `state.json` (the slots of `weir_logic::models`),
//! `runs.json`, `inbox/`, where packages and an operator's wishes are laid, and `fetch/`, where the cloud's packages grow. Each file is written under another name,
//! synced, and renamed; a release is named in `state.json` only once all its parts are there. What no slot names is removed.

pub mod child;
mod disk;
mod store;

use weir_host::sign::PublicKey;
use weir_logic::rollout::is_for;

pub use store::{Kept, ModelStore, StoreError};
pub use weir_host::package::{Head, PACKAGE_EXTENSION, PACKAGE_LEN_MAX, Package, PackageError};

/// The folder of the store in a data directory.
pub const FOLDER: &str = "models";
/// Where packages and wishes are laid, in the store's folder.
pub const INBOX: &str = "inbox";
/// Where the cloud's packages grow, in the store's folder.
pub const FETCH: &str = "fetch";

/// Checks that a head was signed, and for this gateway.
///
/// # Errors
/// `Signature` or `Target`.
pub(crate) fn verify(head: &Head, text: &str, signature: &str, key: &PublicKey, gateway: &str) -> Result<(), PackageError> {
    Head::verify(text, signature, key)?;
    if !is_for(&head.gateways, gateway) {
        return Err(PackageError::Target { gateways: head.gateways.clone(), gateway: gateway.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use weir_host::sign::SecretKey;

    use super::*;

    #[test]
    fn a_head_is_verified_for_its_gateways_only() {
        let key = SecretKey::generate().unwrap();
        let (gateways, manifest, model) = (vec!["box-*".to_owned()], String::new(), String::new());
        let head = Head { task: "activity".to_owned(), version: 1, gateways, window_us_max: 500, manifest, model };
        let package = Package::sign(head, b"name = 'm'\n".to_vec(), vec![1, 2, 3], &key);
        let of = |gateway| verify(&package.head, &package.head_text, &package.signature, &key.public(), gateway);
        assert_eq!(of("box-1"), Ok(()));
        let other = of("hall-1").unwrap_err();
        assert!(other.to_string().contains("it is for box-*, and this is hall-1"), "{other}");
    }
}
