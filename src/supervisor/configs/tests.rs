use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Box_ {
    dir: tempfile::TempDir,
    configs: Configs,
}

impl Box_ {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("provision")).unwrap();
        let configs = Configs::new(&dir.path().join("configs"), None);
        Box_ { dir, configs }
    }

    fn provision(&self, files: &[(&str, &str)]) {
        let folder = self.dir.path().join("provision");
        fs::remove_dir_all(&folder).unwrap();
        for (name, content) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn take_in(&self) -> Result<Provisioned, ProvisionError> {
        self.configs.take_in(&self.dir.path().join("provision"))
    }

    fn take_in_new(&self) -> ConfigId {
        let Ok(Provisioned::New(id)) = self.take_in() else { panic!("it is new") };
        id
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.dir.path().join("configs")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn what_is_provisioned_is_taken_in_once_and_known_by_its_content() {
    let box_ = Box_::new();
    fs::remove_dir_all(box_.dir.path().join("configs")).unwrap_err();
    assert_eq!(box_.take_in().unwrap(), Provisioned::Nothing);
    let files = [("edge.toml", "a"), ("pki/box.key", "secret"), ("models/a/b.onnx", "model")];
    box_.provision(&files);
    let id = box_.take_in_new();
    assert_eq!(box_.configs.good_id(), None, "it has not proved itself");
    box_.configs.promote(&id).unwrap();
    assert_eq!(box_.configs.good_id(), Some(id.clone()));
    for (name, content) in files {
        let path = box_.configs.file(&id).with_file_name("").join(name);
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    // The same content again, written later, among what a desktop leaves.
    box_.provision(&files);
    for other in [".DS_Store", "readme.txt", "network.conf"] {
        fs::write(box_.dir.path().join("provision").join(other), "x").unwrap();
    }
    assert_eq!(box_.take_in().unwrap(), Provisioned::Known(id));
    box_.provision(&[("README.TXT", "put edge.toml here")]);
    assert_eq!(box_.take_in().unwrap(), Provisioned::Nothing);
}

#[test]
fn only_the_good_one_is_kept() {
    let box_ = Box_::new();
    box_.provision(&[("edge.toml", "one")]);
    let first = box_.take_in_new();
    box_.configs.promote(&first).unwrap();
    box_.provision(&[("edge.toml", "two")]);
    let second = box_.take_in_new();
    assert_eq!(
        box_.names(),
        ["good".to_owned(), first.to_string(), second.to_string()].into(),
        "both until it has proved itself"
    );
    box_.configs.promote(&second).unwrap();
    assert_eq!(box_.names(), ["good".to_owned(), second.to_string()].into());
    assert_eq!(fs::read_to_string(box_.configs.file(&second)).unwrap(), "two");
}

#[test]
fn a_refused_one_leaves_the_good_one_and_is_tried_again_at_the_next_start() {
    let box_ = Box_::new();
    box_.provision(&[("edge.toml", "good")]);
    let good = box_.take_in_new();
    box_.configs.promote(&good).unwrap();
    box_.provision(&[("edge.toml", "bad")]);
    let bad = box_.take_in_new();
    box_.configs.discard(&bad).unwrap();
    assert_eq!(box_.names(), ["good".to_owned(), good.to_string()].into());
    assert_eq!(box_.configs.good_id(), Some(good));
    assert_eq!(box_.take_in_new(), bad);
}

#[test]
fn what_a_cut_left_half_written_is_written_again() {
    let box_ = Box_::new();
    box_.provision(&[("edge.toml", "whole"), ("ca.pem", "ca")]);
    let id = box_.take_in_new();
    // As after a cut before its last rename.
    let (folder, fresh) = (box_.configs.root.join(&id.0), box_.configs.root.join(format!("{id}.new")));
    fs::rename(&folder, &fresh).unwrap();
    fs::remove_file(fresh.join("ca.pem")).unwrap();
    assert_eq!(box_.take_in_new(), id);
    assert!(folder.join("ca.pem").is_file() && !fresh.exists());
    // And after one before it was promoted: it is tried again.
    assert_eq!(box_.take_in_new(), id);
}

#[test]
fn what_is_no_configuration_or_too_large_is_said() {
    let box_ = Box_::new();
    box_.provision(&[("edge.tml", "typo")]);
    let error = box_.take_in().unwrap_err().to_string();
    assert!(error.contains("no edge.toml among the 1 files"), "{error}");
    box_.provision(&[("edge.toml", "")]);
    let large = File::create(box_.dir.path().join("provision/large.onnx")).unwrap();
    large.set_len(BYTES_MAX + 1).unwrap();
    assert!(matches!(box_.take_in(), Err(ProvisionError::TooLarge { .. })));
    assert!(!box_.configs.root.exists(), "nothing was written");
    let deep = "d/".repeat(DEPTH_MAX + 1) + "x";
    box_.provision(&[("edge.toml", ""), (&deep, "x")]);
    assert!(matches!(box_.take_in(), Err(ProvisionError::TooLarge { .. })));
}

#[test]
fn a_good_one_whose_file_is_gone_is_none() {
    let box_ = Box_::new();
    box_.provision(&[("edge.toml", "a")]);
    let id = box_.take_in_new();
    box_.configs.promote(&id).unwrap();
    fs::remove_file(box_.configs.file(&id)).unwrap();
    assert_eq!(box_.configs.good_id(), None);
    assert_eq!(box_.take_in().unwrap(), Provisioned::New(id), "the provisioned one brings it back");
}
