//! What is wrong with a model shows when it is loaded, with a text that helps, and never as a panic.

use std::path::Path;

use weir_infer::{Backend, LibraryError, LoadError, Manifest, ManifestError, Model, RuntimeLibrary};

use super::{Noise, backends, library, load_changed, manifest_path};

type Damage = fn(&mut Vec<u8>);
type Change = fn(&mut Manifest);

fn refused(backend: Backend, change: impl FnOnce(&mut Manifest, &mut Vec<u8>)) -> String {
    match load_changed("watch-small", backend, change) {
        Ok(_) => panic!("{backend} took a bad model"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn damaged_files_are_refused_by_every_engine() {
    for backend in backends() {
        let cases: [(&str, Damage); 5] = [
            ("empty", Vec::clear),
            ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
            ("cut at the end", |bytes| bytes.truncate(bytes.len() - 3)),
            ("zeros", |bytes| bytes.fill(0)),
            ("text", |bytes| *bytes = b"<html>404 not found</html>".to_vec()),
        ];
        for (what, damage) in cases {
            let text = refused(backend, |_, bytes| damage(bytes));
            assert!(text.contains(&backend.to_string()) || text.contains("disagree"), "{what}: {text}");
        }
    }
}

#[test]
fn no_flipped_byte_and_no_cut_panics_and_what_loads_answers() {
    for backend in backends() {
        let mut noise = Noise(3);
        for round in 0..300 {
            let loaded = load_changed("watch-small", backend, |_, bytes| {
                let at = ((noise.next() + 1.0) / 2.0 * bytes.len() as f32) as usize;
                if round % 3 == 0 { bytes.truncate(at) } else { bytes[at] ^= 1 << (round % 8) }
            });
            if let Ok(mut model) = loaded {
                let window = noise.window(model.manifest());
                assert_eq!(model.score(&[&window]).len(), 1);
            }
        }
    }
}

#[test]
fn a_graph_that_differs_from_its_manifest_is_refused_with_both_sides() {
    for backend in backends() {
        let cases: [(Change, &str); 5] = [
            (|m| m.input.name = "signal".to_owned(), "no input is called \"signal\"; the graph has \"window\""),
            (|m| m.output.name = "scores".to_owned(), "no output is called \"scores\"; the graph has \"probabilities\""),
            (|m| m.input.channels.truncate(5), "input \"window\" is [?, 6, 128], the manifest says [batch, 5, 128]"),
            (|m| m.input.window = 100, "the manifest says [batch, 6, 100] or [batch, 600]"),
            (|m| m.output.labels.truncate(6), "output \"probabilities\" is [?, 7], the manifest's labels make it [batch, 6]"),
        ];
        for (change, expected) in cases {
            let text = refused(backend, |manifest, _| change(manifest));
            assert!(text.contains(expected), "{backend}: {text}");
        }
    }
}

#[test]
fn a_fixed_batch_is_refused() {
    // dim_param "batch" becomes dim_value 1, as a varint padded to the same length.
    let (dynamic, fixed) = (b"\x12\x05batch", b"\x08\x81\x80\x80\x80\x80\x00");
    for backend in backends() {
        let text = refused(backend, |_, bytes| {
            let at = bytes.windows(dynamic.len()).position(|part| part == dynamic).expect("a dynamic batch");
            bytes[at..at + fixed.len()].copy_from_slice(fixed);
        });
        assert!(text.contains("dynamic batch dimension"), "{backend}: {text}");
    }
}

#[test]
fn files_that_are_missing_changed_or_too_large_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("watch-small.toml");
    let load = || Model::load(&path, Backend::Rten, &library());
    assert!(matches!(load(), Err(LoadError::Manifest(ManifestError::Read { .. }))));
    std::fs::copy(manifest_path("watch-small"), &path).unwrap();
    assert!(matches!(load(), Err(LoadError::File { .. })));
    let model = folder.path().join("watch-small.onnx");
    let mut bytes = std::fs::read(manifest_path("watch-small").with_extension("onnx")).unwrap();
    bytes[500] ^= 1;
    std::fs::write(&model, &bytes).unwrap();
    let error = load().unwrap_err();
    assert!(matches!(&error, LoadError::Checksum { found, expected, .. } if found != expected), "{error}");
    std::fs::File::create(&model).unwrap().set_len(65 << 20).unwrap();
    assert!(matches!(load(), Err(LoadError::FileTooLarge { limit_bytes: 67_108_864, .. })));
}

#[test]
fn without_a_library_ort_fails_and_auto_goes_on_embedded_and_says_why() {
    let nothing = RuntimeLibrary::in_folders(vec![Path::new("/nowhere").to_owned()]);
    let path = manifest_path("watch-small");
    let error = Model::load(&path, Backend::Ort, &nothing).unwrap_err();
    assert!(matches!(&error, LoadError::Library(LibraryError::Missing { .. })));
    assert!(error.to_string().contains("weir runtime fetch"), "{error}");
    let model = Model::load(&path, Backend::Auto, &nothing).unwrap();
    assert_eq!(model.backend(), Backend::Rten);
    assert!(matches!(model.fallback(), Some(LibraryError::Missing { .. })));
}

#[test]
fn auto_takes_the_library_when_it_is_there() {
    if super::has_ort() {
        let model = Model::load(&manifest_path("watch-small"), Backend::Auto, &library()).unwrap();
        assert_eq!((model.backend(), model.fallback()), (Backend::Ort, None));
    }
}
