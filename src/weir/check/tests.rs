use std::fs;

use rcgen::{CertificateParams, KeyPair, SanType};
use tempfile::TempDir;

use super::*;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn args(file: PathBuf) -> CheckArgs {
    CheckArgs { file, edge: false, cloud: false, ignore_files: false, strict: false }
}

fn reported(args: &CheckArgs) -> (bool, String) {
    let mut out = Vec::new();
    let is_good = report(args, &mut out).unwrap();
    (is_good, String::from_utf8(out).unwrap())
}

fn file(folder: &TempDir, text: &str) -> CheckArgs {
    let path = folder.path().join("weir.toml");
    fs::write(&path, text).unwrap();
    args(path)
}

/// Writes a self-signed certificate and its key, `NAME.crt` and `NAME.key`.
fn issue(folder: &Path, name: &str, uri: &str, years: std::ops::RangeInclusive<i32>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.not_before = rcgen::date_time_ymd(*years.start(), 1, 1);
    params.not_after = rcgen::date_time_ymd(*years.end(), 1, 1);
    let cert = params.self_signed(&key).unwrap();
    fs::write(folder.join(format!("{name}.crt")), cert.pem()).unwrap();
    fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

const UPLINK: &str = "[[uplink]]\nname = \"lan\"\naddress = \"localhost:4433\"\n[tls]\ncert = \"box.crt\"\nkey = \"box.key\"\nca = \"box.crt\"\n";

#[test]
fn the_profiles_are_good_away_from_their_box() {
    for entry in fs::read_dir(root().join("config/profiles")).unwrap() {
        let path = entry.unwrap().path();
        let (is_good, shown) = reported(&CheckArgs { ignore_files: true, strict: true, ..args(path) });
        assert!(is_good && shown.ends_with("good (0 warnings)\n"), "{shown}");
    }
}

#[test]
fn the_shipped_files_are_told_apart_and_good() {
    for (name, part) in [
        ("edge.toml", "lane      safe by"),
        ("cloud.toml", "listens on 0.0.0.0:4433 (QUIC)"),
        ("pool.toml", "listens on 0.0.0.0:4434 (QUIC), for the clouds nobody"),
    ] {
        let (is_good, shown) = reported(&args(root().join("config").join(name)));
        assert!(is_good && shown.contains(part), "{name}: {shown}");
    }
    let (is_good, shown) = reported(&CheckArgs { cloud: true, ..args(root().join("config/edge.toml")) });
    assert!(!is_good && shown.contains("unknown key"), "{shown}");
}

#[test]
fn mistakes_of_either_side_are_shown_with_their_lines_and_exit_with_64() {
    let folder = tempfile::tempdir().unwrap();
    for (text, place) in
        [("[mqtt]\nclients = 1\n[buffer]\nmemory = 5\n", "weir.toml:4:10"), ("[store]\n\npaths = \"x\"\n", "weir.toml:3:1")]
    {
        let args = file(&folder, text);
        let (is_good, shown) = reported(&args);
        assert!(!is_good && shown.contains(place), "{shown}");
        assert_eq!(format!("{:?}", run(&args).unwrap()), format!("{:?}", ExitCode::from(64)));
    }
}

#[test]
fn a_file_that_is_not_there_is_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let (is_good, shown) = reported(&args(folder.path().join("none.toml")));
    assert!(!is_good && shown.contains("the file cannot be read") && shown.contains("check the path"), "{shown}");
}

#[test]
fn warnings_fail_a_strict_check_only() {
    let folder = tempfile::tempdir().unwrap();
    let lenient = file(&folder, "");
    assert!(reported(&lenient).0);
    let (is_good, shown) = reported(&CheckArgs { strict: true, ..lenient });
    assert!(!is_good && shown.contains("warning: there is no stream"), "{shown}");
}

#[test]
fn certificates_of_this_box_pass() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path(), "box", "weir://gateway/box-1", 2025..=2099);
    let text = format!(
        "{UPLINK}[[listen]]\nbind = \"0.0.0.0:8883\"\ntls = {{ cert = \"box.crt\", key = \"box.key\", client_ca = \"box.crt\" }}\n"
    );
    let (is_good, shown) = reported(&file(&folder, &text));
    assert!(is_good && shown.contains("0.0.0.0:8883 (TLS, client certificates)"), "{shown}");
}

#[test]
fn certificates_that_do_not_fit_are_mistakes_at_their_key() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path(), "box", "weir://gateway/box-1", 2025..=2099);
    issue(folder.path(), "other", "weir://cloud/node-1", 2025..=2099);
    for (from, to, place, part) in [
        ("box.key", "other.key", "weir.toml:6:7", "does not belong to the certificate"),
        ("box.key", "box.crt", "weir.toml:6:7", "expected a private key in PEM"),
        ("ca = \"box.crt\"", "ca = \"box.key\"", "weir.toml:7:6", "holds"),
        (
            "cert = \"box.crt\"\nkey = \"box.key\"",
            "cert = \"other.crt\"\nkey = \"other.key\"",
            "weir.toml:5:8",
            "is for weir://cloud/node-1",
        ),
        ("cert = \"box.crt\"", "cert = \"none.crt\"", "weir.toml:5:8", "cannot be read"),
    ] {
        let (is_good, shown) = reported(&file(&folder, &UPLINK.replace(from, to)));
        assert!(!is_good && shown.contains(place) && shown.contains(part), "{part}\n{shown}");
        assert!(shown.contains("weir pki issue"), "{shown}");
    }
}

#[test]
fn an_expired_certificate_and_another_name_are_warnings() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path(), "box", "weir://gateway/box-1", 2020..=2021);
    let (is_good, shown) = reported(&file(&folder, &format!("[gateway]\nname = \"box-2\"\n{UPLINK}")));
    assert!(is_good && shown.contains("expired") && shown.contains("weir.toml:7:8"), "{shown}");
    assert!(shown.contains("the certificate says `box-1`") && shown.contains("weir.toml:2:8"), "{shown}");
}
