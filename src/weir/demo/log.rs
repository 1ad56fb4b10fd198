//! Logs of box, cloud and link go to a file: on the terminal they would garble the picture.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber, span};

/// Writes the process's log to a file from now on; does nothing if the process logs elsewhere already.
///
/// # Errors
/// The system's, if there can be no such file.
pub(super) fn start(path: &Path) -> io::Result<()> {
    let file = Mutex::new(BufWriter::new(File::create(path)?));
    // An error means that a subscriber was there before, as in tests.
    let _ = tracing::subscriber::set_global_default(FileLog { file, start: Instant::now() });
    Ok(())
}

/// Lines of level INFO and above of Weir's own crates, and of WARN and above of all others.
struct FileLog {
    file: Mutex<BufWriter<File>>,
    start: Instant,
}

impl Subscriber for FileLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let most = if metadata.target().starts_with("weir") { Level::INFO } else { Level::WARN };
        metadata.is_event() && *metadata.level() <= most
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let mut line = Line { message: String::new(), fields: String::new() };
        event.record(&mut line);
        let seconds = self.start.elapsed().as_secs_f64();
        let text = format!("{seconds:9.3} {:>5} {}: {}{}\n", metadata.level(), metadata.target(), line.message, line.fields);
        let Ok(mut file) = self.file.lock() else { return };
        // A full disk must not end the run.
        let _ = file.write_all(text.as_bytes()).and_then(|()| file.flush());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.fields, " {}={value}", field.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_level_message_and_fields() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = Mutex::new(BufWriter::new(File::create(&path).unwrap()));
        let log = FileLog { file, start: Instant::now() };
        tracing::subscriber::with_default(log, || {
            tracing::warn!(uplink = "lte", count = 3, "uplink is down");
            tracing::debug!("not written");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("WARN weir::demo::log") && text.ends_with("uplink is down uplink=lte count=3\n"), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}
