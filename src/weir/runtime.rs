//! `weir runtime`: the native ONNX library, which is not part of the binary.

use std::io::{self, Write as _};

use anyhow::Context as _;
use weir_infer::{LIBRARY_VERSION, RuntimeLibrary, Target, fetch};

/// What to do with the native library.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum RuntimeCommand {
    /// Download the ONNX Runtime library, verify its checksum and install it for this user; needs Python with pip
    Fetch {
        /// The machine it is for: aarch64 or x86_64, or its target triple; this one without it
        #[arg(long)]
        target: Option<String>,
    },
}

/// Does it.
///
/// # Errors
/// If there is no such target, no home to install to, or the download fails or is not what it should be.
pub fn run(command: &RuntimeCommand) -> anyhow::Result<()> {
    let RuntimeCommand::Fetch { target } = command;
    let target = match target {
        Some(text) => Target::parse(text)?,
        None => Target::host().context("this binary cannot load the library; name the machine it is for with --target")?,
    };
    let folder =
        RuntimeLibrary::data_folder(target).context("there is no home folder to install to: set HOME or XDG_DATA_HOME")?;
    let path = fetch(target, &folder)?;
    writeln!(io::stdout(), "ONNX Runtime {LIBRARY_VERSION} for {} is in {}", target.triple(), path.display())?;
    if Some(target) != Target::host() {
        writeln!(io::stdout(), "copy it to /usr/lib/weir on the box, or name it there in infer.library")?;
    }
    Ok(())
}
