//! The terminal while the demo draws on it: a screen of its own, given back at the end, whatever the end is.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Own screen on, cursor off.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[2J";
/// Cursor on, own screen off.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Where the size cannot be had.
const SIZE_DEFAULT: (usize, usize) = (80, 24);
/// Looks between two questions for the size.
const SIZE_EVERY: u32 = 4;

static IS_OURS: AtomicBool = AtomicBool::new(false);

/// Our screen; dropping it gives the terminal back.
#[derive(Debug)]
pub(super) struct Screen {
    size: (usize, usize),
    drawn: u32,
}

impl Screen {
    /// Takes the terminal, if standard output is one.
    pub(super) fn open() -> Option<Screen> {
        if !io::stdout().is_terminal() {
            return None;
        }
        IS_OURS.store(true, Ordering::SeqCst);
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
        write(ENTER);
        Some(Screen { size: SIZE_DEFAULT, drawn: 0 })
    }

    /// Columns and lines.
    pub(super) fn size(&mut self) -> (usize, usize) {
        if self.drawn.is_multiple_of(SIZE_EVERY) {
            self.size = ask_size().unwrap_or(SIZE_DEFAULT);
        }
        self.size
    }

    /// Draws lines over what was there, without a flicker.
    pub(super) fn draw(&mut self, lines: &[String]) {
        self.drawn = self.drawn.wrapping_add(1);
        // Home, then each line with the rest of it cleared, then all below.
        let picture = format!("\x1b[?2026h\x1b[H{}\x1b[K\x1b[J\x1b[?2026l", lines.join("\x1b[K\r\n"));
        write(&picture);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back if it was taken; safe to call at any time.
pub(crate) fn give_back() {
    if IS_OURS.swap(false, Ordering::SeqCst) {
        write(LEAVE);
    }
}

fn write(text: &str) {
    let mut out = io::stdout().lock();
    // A terminal that is gone is no reason to end a run.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `stty` knows the size of the terminal that is its standard input.
fn ask_size() -> Option<(usize, usize)> {
    let output = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (lines, columns) = text.trim().split_once(' ')?;
    let size = (columns.parse().ok()?, lines.parse().ok()?);
    (size.0 > 0 && size.1 > 0).then_some(size)
}
