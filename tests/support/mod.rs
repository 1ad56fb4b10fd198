//! What the tests are made of.

pub mod client;
pub mod oracle;
pub mod process;
pub mod publisher;
pub mod random;
pub mod script;
pub mod site;

use std::time::{Duration, Instant};

/// How often something that is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

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
