//! The real download, for both architectures: 32 MB, so only when asked for.

use std::path::{Path, PathBuf};

use weir_infer::{Target, fetch};

#[test]
fn the_pinned_library_is_fetched_for_every_target() {
    let Some(folder) = std::env::var_os("WEIR_TEST_FETCH").map(PathBuf::from) else {
        crate::skip("downloading the library; set WEIR_TEST_FETCH to a folder to run this");
        return;
    };
    for (target, elf_machine) in [(Target::X86_64, 62), (Target::Aarch64, 183)] {
        let folder = folder.join(target.triple());
        let library = fetch(target, &folder).unwrap();
        let bytes = std::fs::read(&library).unwrap();
        assert_eq!(&bytes[..4], b"\x7fELF");
        assert_eq!(u16::from_le_bytes([bytes[18], bytes[19]]), elf_machine, "the machine in the ELF header");
        assert!(["LICENSE", "ThirdPartyNotices.txt"].iter().all(|name| Path::new(&folder).join(name).is_file()));
    }
}
