//! `weir passwd`: turns a password into what `edge.toml` holds.

use std::io::{self, BufRead, IsTerminal as _, Read as _, Write};

use anyhow::Context as _;
use weir_edge::config::hash_password;

/// Longest line that is read; far above what a password may be.
const LINE_LEN_MAX: u64 = 64 * 1024;

/// Reads one line from standard input and prints its argon2id hash.
///
/// # Errors
/// If the password is empty or too long, or nothing can be read or written.
pub fn run() -> anyhow::Result<()> {
    if io::stdin().is_terminal() {
        // The hash alone goes to standard output, for scripts.
        writeln!(io::stderr(), "Password (it is shown as you type; `weir passwd < FILE` reads it from a file):")?;
    }
    hash_line(&mut io::stdin().lock(), &mut io::stdout().lock())
}

fn hash_line(input: &mut dyn BufRead, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut line = Vec::new();
    input.take(LINE_LEN_MAX).read_until(b'\n', &mut line).context("the password cannot be read from standard input")?;
    let password = line.strip_suffix(b"\n").unwrap_or(&line);
    let password = password.strip_suffix(b"\r").unwrap_or(password);
    writeln!(out, "{}", hash_password(password)?.as_str())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_edge::config::{PasswordHash, verify};

    #[test]
    fn the_hash_of_a_line_is_that_of_the_password_without_its_end() {
        for input in ["open sesame", "open sesame\n", "open sesame\r\nnext line\n"] {
            let mut out = Vec::new();
            hash_line(&mut input.as_bytes(), &mut out).unwrap();
            let hash = PasswordHash::parse(std::str::from_utf8(&out).unwrap().trim_end()).unwrap();
            assert!(verify(Some(&hash), b"open sesame") && !verify(Some(&hash), b"open sesame\n"));
        }
    }

    #[test]
    fn an_empty_password_is_refused() {
        assert!(hash_line(&mut "\n".as_bytes(), &mut Vec::new()).is_err());
    }
}
