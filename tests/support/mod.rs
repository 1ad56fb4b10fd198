//! What the tests are made of.

pub mod broker;
pub mod client;
pub mod machine;
pub mod netns;
pub mod onnx;
pub mod oracle;
pub mod process;
pub mod proxy;
pub mod publisher;
pub mod random;
pub mod script;
pub mod site;
pub mod wrist;

use std::io::Write as _;
use std::time::{Duration, Instant};

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Says that a test cannot run here. Written past the test runner, which hides what passing tests print.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

/// Asks until there is an answer.
///
/// # Panics
/// If there is none within `limit`; the message names `what`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {} s in vain for {what}", limit.as_secs());
        std::thread::sleep(POLL);
    }
}
