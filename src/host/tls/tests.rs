use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::time_provider::TimeProvider as _;

use super::*;

/// A certificate authority for tests.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate to be.
pub(crate) struct Leaf {
    pub(crate) uris: Vec<String>,
    pub(crate) years: (i32, i32),
}

impl Leaf {
    pub(crate) fn of(uri: &str) -> Self {
        Self { uris: vec![uri.to_owned()], years: (2025, 2090) }
    }
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = format!("test CA {:02x?}", &key.public_key_raw()[1..9]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, leaf: &Leaf) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())));
        params.not_before = date_time_ymd(leaf.years.0, 1, 1);
        params.not_after = date_time_ymd(leaf.years.1, 1, 1);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        (cert.pem(), key.serialize_pem())
    }

    pub(crate) fn credentials(&self, leaf: &Leaf) -> Credentials {
        let (cert, key) = self.issue(leaf);
        Credentials::from_pem(cert.as_bytes(), key.as_bytes()).unwrap()
    }

    pub(crate) fn roots(&self) -> TrustRoots {
        TrustRoots::from_pem(self.pem.as_bytes()).unwrap()
    }
}

const BOX: &str = "weir://gateway/box-1";

fn wall(year: u64) -> Wall {
    Wall { unix_us: (year - 1970) * 31_557_600_000_000, trusted: true }
}

#[test]
fn the_identity_is_the_only_weir_uri() {
    let ca = Ca::new();
    let identity_of = |uris: &[&str]| {
        let uris = uris.iter().map(ToString::to_string).collect();
        ca.credentials(&Leaf { uris, years: (2025, 2090) }).identity()
    };
    let identity = identity_of(&["https://example.com", BOX]).unwrap();
    assert_eq!((identity.role(), identity.name()), (Role::Gateway, "box-1"));
    assert_eq!(identity.to_string(), BOX);
    assert_eq!(identity_of(&[]), Err(IdentityError::Count { count: 0 }));
    assert_eq!(identity_of(&[BOX, "weir://cloud/a"]), Err(IdentityError::Count { count: 2 }));
    assert!(matches!(identity_of(&["weir://sensor/a"]), Err(IdentityError::Form { .. })));
    assert_eq!(super::identity(b"nonsense"), Err(IdentityError::Malformed));
}

#[test]
fn names_have_a_form() {
    for good in ["a", "site-7.box_2", &"x".repeat(63)] {
        let identity = Identity::new(Role::Cloud, good).unwrap();
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
    for bad in ["", "A", "a/b", ".a", "a b", "ü", &"x".repeat(64)] {
        assert!(Identity::new(Role::Cloud, bad).is_err(), "{bad}");
        assert!(format!("weir://cloud/{bad}").parse::<Identity>().is_err(), "{bad}");
    }
}

#[test]
fn files_load_and_errors_name_the_file_and_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let ca = Ca::new();
    let (cert, key) = ca.issue(&Leaf::of(BOX));
    let (_, other_key) = ca.issue(&Leaf::of(BOX));
    std::fs::write(path("c.pem"), &cert).unwrap();
    std::fs::write(path("k.pem"), &key).unwrap();
    std::fs::write(path("other.pem"), &other_key).unwrap();
    std::fs::write(path("empty.pem"), "").unwrap();
    std::fs::write(path("long.pem"), vec![b'a'; 2 << 20]).unwrap();
    let damaged = cert.replacen("MII", "!!!", 1);
    std::fs::write(path("damaged.pem"), damaged).unwrap();

    assert!(Credentials::load(&path("c.pem"), &path("k.pem")).is_ok());
    let error = |cert: &str, key: &str| Credentials::load(&path(cert), &path(key)).unwrap_err().to_string();
    assert!(error("none.pem", "k.pem").contains("none.pem cannot be read (`weir pki init`"));
    assert!(error("k.pem", "k.pem").ends_with("k.pem holds a private key, expected a certificate in PEM"));
    assert!(error("c.pem", "c.pem").ends_with("c.pem holds a certificate, expected a private key in PEM"));
    assert!(error("empty.pem", "k.pem").contains("holds nothing"));
    assert!(error("long.pem", "k.pem").contains("has 2097152 bytes, more than 1048576"));
    assert!(error("damaged.pem", "k.pem").contains("damaged.pem is malformed"));
    let mismatch = error("c.pem", "other.pem");
    assert!(mismatch.contains("does not belong to the certificate"), "{mismatch}");
    let roots = TrustRoots::load(&path("k.pem")).unwrap_err().to_string();
    assert!(roots.contains("the CA certificate") && roots.contains("holds a private key"));
}

#[test]
fn validity_is_judged_by_a_clock_that_can_be_trusted_only() {
    let ca = Ca::new();
    let credentials = ca.credentials(&Leaf { uris: vec![BOX.to_owned()], years: (2030, 2040) });
    assert!(credentials.check_validity(wall(2035)).is_ok());
    assert!(matches!(credentials.check_validity(wall(2041)), Err(TlsError::Expired { .. })));
    assert!(matches!(credentials.check_validity(wall(2027)), Err(TlsError::NotYetValid { .. })));
    assert!(credentials.check_validity(Wall { unix_us: 0, trusted: false }).is_ok());
    assert_eq!(credentials.not_before_s(), 1_893_456_000);
    assert_eq!(credentials.not_after_s(), 2_208_988_800);
}

#[test]
fn tls_time_never_goes_below_the_own_certificate() {
    let ca = Ca::new();
    let credentials = ca.credentials(&Leaf::of(BOX)).with_wall_clock(|| 0);
    let time = credentials.time();
    assert_eq!(time.current_time().unwrap().as_secs(), credentials.not_before_s());
    assert!(time.is_unset());
    let credentials = credentials.with_wall_clock(|| 1_800_000_000_000_000);
    assert_eq!(credentials.time().current_time().unwrap().as_secs(), 1_800_000_000);
    assert!(!credentials.time().is_unset());
}
