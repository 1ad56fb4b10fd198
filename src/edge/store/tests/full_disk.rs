use std::process::Command;

use super::*;

const DIR: &str = "WEIR_TEST_SMALL_DISK";
const SIZE: u64 = 16 << 20;

/// Runs itself again on a file system of its own, where the process may make one.
#[test]
fn full_file_system_can_be_emptied_and_filled_again() {
    if let Some(dir) = std::env::var_os(DIR) {
        return on_a_full_file_system(Path::new(&dir));
    }
    let dir = TempDir::new().expect("a directory");
    let exe = std::env::current_exe().expect("known");
    let script = format!(
        "mount -t tmpfs -o size={SIZE} tmpfs '{dir}' || exit 99; \
         {DIR}='{dir}' exec '{exe}' --exact {name} --nocapture",
        dir = dir.path().display(),
        exe = exe.display(),
        name = "store::tests::full_disk::full_file_system_can_be_emptied_and_filled_again",
    );
    // Root makes a mount namespace of its own; others become root in a user namespace first, where that is allowed.
    let mut reason = String::new();
    for args in [&["--mount"][..], &["--map-root-user", "--mount"]] {
        let output = match Command::new("unshare").args(args).args(["sh", "-c", &script]).output() {
            Ok(output) => output,
            Err(err) => return skip(&format!("no `unshare` here: {err}")),
        };
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if said.contains("running 1 test") {
            assert!(output.status.success() && said.contains("1 passed"), "{said}{complained}");
            return;
        }
        assert!(!said.contains("running 0 tests"), "the inner run tested nothing: {said}");
        reason = complained.trim().to_owned();
    }
    skip(&format!("no private mount here: {reason}"));
}

fn on_a_full_file_system(dir: &Path) {
    let path = dir.join("buffer.redb");
    let options = StoreOptions { reserve_bytes: 1 << 20, ..StoreOptions::default() };
    let open = || Store::open(&path, options).expect("the file opens, full disk or not");
    full_disk_takes_deletions(open, || dir.join("buffer.redb.reserve").exists());
    // And with the rest taken by somebody else.
    let (mut store, opened) = open();
    let others = dir.join("others");
    let mut size = SIZE;
    while size > 4096 {
        let _ = std::fs::write(&others, vec![1; size as usize]);
        size /= 2;
        if FileMedium::new(&path, 0).free_bytes() == Some(0) {
            break;
        }
    }
    let mut lane = Lane::new(Class::High, 7);
    fill(&mut store, &mut lane);
    for held in &opened.held {
        store.commit(&deletes(vec![range(&held.header)]), now(2)).expect("a full disk can be emptied");
    }
    store.commit(&puts(vec![lane.next_block(12_000)]), now(2)).expect("there is room in the file");
    drop(store);
    let (_, opened) = open();
    assert_eq!(opened.quarantined, None);
    assert!(opened.held.iter().all(|held| held.header.key.epoch == Epoch(7)));
}

/// Written past the test runner, which hides what passing tests print.
fn skip(why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
