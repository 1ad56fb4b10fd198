//! A file that is no library: in a process of its own, because a process loads one library for good.

use std::path::Path;

use weir_infer::{Backend, LibraryError, LoadError, Model, RuntimeLibrary};

#[test]
fn a_broken_library_is_an_error_for_ort_and_a_reason_for_auto() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/watch-small.toml");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libonnxruntime.so");
    std::fs::write(&path, "not a library").unwrap();
    let mut candidates = vec![path];
    // A real library that is another one.
    candidates.extend(
        ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"]
            .map(Into::into)
            .into_iter()
            .filter(|p: &std::path::PathBuf| p.exists()),
    );
    for path in candidates {
        let library = RuntimeLibrary::at(path);
        let error = Model::load(&model, Backend::Ort, &library).unwrap_err();
        assert!(matches!(&error, LoadError::Library(LibraryError::Broken { .. })), "{error}");
        let loaded = Model::load(&model, Backend::Auto, &library).unwrap();
        assert_eq!(loaded.backend(), Backend::Rten);
        assert!(matches!(loaded.fallback(), Some(LibraryError::Broken { .. })));
    }
}
