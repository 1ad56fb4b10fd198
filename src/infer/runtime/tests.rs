//! A shell script stands in for Python: it records nothing and downloads nothing.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// What the stand-in does when asked to download or to unpack; `$d` is the folder after `-d`.
fn stand_in(root: &Path, pip: &str, download: &str, unpack: &str) -> PathBuf {
    let script = format!(
        "#!/bin/sh\ncase \"$2 $3\" in\n\"pip --version\") {pip} ;;\n\"pip download\")\n\
         while [ \"$1\" != -d ]; do shift; done; d=\"$2\"; {download} ;;\n\"zipfile -e\") wheel=\"$4\"; to=\"$5\"; {unpack} ;;\n*) exit 9 ;;\nesac\n"
    );
    let path = root.join("python");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

const WHEEL: &str = "printf content > \"$d/onnxruntime-1.whl\"";
/// `printf content | sha256sum`
const WHEEL_SHA256: &str = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
const UNPACK: &str = "mkdir -p \"$to/onnxruntime/capi\"; cd \"$to/onnxruntime\"; touch LICENSE ThirdPartyNotices.txt; \
                      printf library > capi/libonnxruntime.so.1.23.2";

fn fetched(pip: &str, download: &str, unpack: &str, sha256: &'static str) -> (tempfile::TempDir, Result<PathBuf, FetchError>) {
    let root = tempfile::tempdir().unwrap();
    let python = stand_in(root.path(), pip, download, unpack);
    let result = fetch_with(python.as_os_str(), Target::Aarch64, &root.path().join("to"), sha256);
    (root, result)
}

fn left_in(root: &tempfile::TempDir) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(root.path().join("to")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_verified_library_is_installed_with_its_licences_and_nothing_else() {
    let (root, result) = fetched("true", WHEEL, UNPACK, WHEEL_SHA256);
    let library = result.unwrap();
    assert_eq!(fs::read_to_string(&library).unwrap(), "library");
    assert_eq!(left_in(&root), ["LICENSE", "ThirdPartyNotices.txt", LIBRARY_FILE]);
}

#[test]
fn a_wheel_with_another_sum_is_never_opened() {
    let (root, result) = fetched("true", "printf other > \"$d/onnxruntime-1.whl\"", UNPACK, WHEEL_SHA256);
    assert!(matches!(result, Err(FetchError::Checksum { .. })), "{result:?}");
    assert_eq!(left_in(&root), [""; 0]);
}

#[test]
fn each_thing_that_is_missing_has_its_own_error() {
    let (_root, result) = fetched("exit 1", WHEEL, UNPACK, WHEEL_SHA256);
    assert!(matches!(result, Err(FetchError::NoPip)), "{result:?}");
    let (_root, result) = fetched("true", "echo no network >&2; exit 1", UNPACK, WHEEL_SHA256);
    assert!(matches!(&result, Err(FetchError::Download { message }) if message == "no network"), "{result:?}");
    let (_root, result) = fetched("true", "true", UNPACK, WHEEL_SHA256);
    assert!(matches!(result, Err(FetchError::Download { .. })), "{result:?}");
    let (_root, result) = fetched("true", WHEEL, "mkdir -p \"$to\"", WHEEL_SHA256);
    assert!(matches!(result, Err(FetchError::Unpack { .. })), "{result:?}");
    let root = tempfile::tempdir().unwrap();
    let result = fetch_with(OsStr::new("/nowhere/python3"), Target::X86_64, root.path(), WHEEL_SHA256);
    assert!(matches!(result, Err(FetchError::NoPython { .. })), "{result:?}");
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(fetch(Target::X86_64, &file), Err(FetchError::Write { .. })));
}

#[test]
fn targets_are_known_by_triple_and_by_architecture_and_armv7_is_told_what_to_do() {
    for target in [Target::X86_64, Target::Aarch64] {
        assert_eq!(Target::parse(target.triple()).unwrap(), target);
        assert_eq!(Target::parse(target.arch()).unwrap(), target);
    }
    let error = Target::parse("armv7-unknown-linux-gnueabihf").unwrap_err().to_string();
    assert!(error.contains("rten"), "{error}");
}

#[test]
fn the_file_name_and_the_version_agree() {
    assert!(LIBRARY_FILE.ends_with(LIBRARY_VERSION));
    assert!(CONTENTS.iter().any(|(from, to)| from.ends_with(LIBRARY_VERSION) && *to == LIBRARY_FILE));
}
