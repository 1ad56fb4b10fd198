//! Keys and signatures of policies: `weir policy keygen` and `weir policy sign`.
//!
//! A policy changes what boxes do, so it is signed by whoever writes it, on a machine that is neither a box nor the cloud. The
//! signature goes into a file beside it, so that the policy stays as it was written and can be reviewed as text.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use weir_host::sign::{SecretKey, SignError, signature_to_text};

/// `weir policy`: make keys for policies, and sign them.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Make a key: DIR/policy.key signs and stays where policies are written, DIR/policy.pub is for the boxes
    Keygen(KeygenArgs),
    /// Sign a policy; the signature goes into FILE.sig
    Sign(SignArgs),
}

/// Arguments of `weir policy keygen`.
#[derive(Debug, Clone, Args)]
pub struct KeygenArgs {
    /// Where the files go.
    #[arg(long, default_value = "policy")]
    pub dir: PathBuf,
}

/// Arguments of `weir policy sign`.
#[derive(Debug, Clone, Args)]
pub struct SignArgs {
    /// The policy.
    pub file: PathBuf,
    /// The secret key.
    #[arg(long)]
    pub key: PathBuf,
}

/// Why a key cannot be made or a policy not be signed.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A key is there already.
    #[error("{path} is there already, and boxes may know it; choose another directory with --dir")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A policy over the limit.
    #[error("{path} has {len} bytes, more than the {TEXT_LEN_MAX} that a box takes")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// A file that is no secret key.
    #[error("{path} is no secret key for policies")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: SignError,
    },
    /// A key could not be made.
    #[error("no key could be made")]
    Generate(#[source] SignError),
    /// A file could not be read or written.
    #[error("{path} cannot be read or written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard output is closed.
    #[error("the result cannot be printed")]
    Print(#[from] io::Error),
}

/// Longest policy that is signed, in bytes: it goes to boxes in one control message.
pub const TEXT_LEN_MAX: usize = 64 * 1024;

impl PolicyCommand {
    /// Carries it out and says what it did.
    ///
    /// # Errors
    /// See [`PolicyError`]; a key that is there is never replaced.
    pub fn run(&self, out: &mut impl Write) -> Result<(), PolicyError> {
        match self {
            PolicyCommand::Keygen(args) => keygen(&args.dir, out),
            PolicyCommand::Sign(args) => sign(args, out),
        }
    }
}

fn keygen(dir: &Path, out: &mut impl Write) -> Result<(), PolicyError> {
    let key = SecretKey::generate().map_err(PolicyError::Generate)?;
    fs::create_dir_all(dir).map_err(|source| PolicyError::File { path: dir.to_owned(), source })?;
    let (secret, public) = (dir.join("policy.key"), dir.join("policy.pub"));
    create(&secret, &key.to_secret_text(), 0o600)?;
    create(&public, &key.public().to_string(), 0o644)?;
    writeln!(out, "{}  signs policies; keep it off boxes and cloud", secret.display())?;
    writeln!(out, "{}  is for each box: {}", public.display(), key.public())?;
    Ok(())
}

fn sign(args: &SignArgs, out: &mut impl Write) -> Result<(), PolicyError> {
    let file_error = |path: &Path| {
        let path = path.to_owned();
        |source| PolicyError::File { path, source }
    };
    let text = fs::read(&args.file).map_err(file_error(&args.file))?;
    if text.len() > TEXT_LEN_MAX {
        return Err(PolicyError::TooLong { path: args.file.clone(), len: text.len() });
    }
    let key = fs::read_to_string(&args.key).map_err(file_error(&args.key))?;
    let key: SecretKey = key.parse().map_err(|source| PolicyError::Key { path: args.key.clone(), source })?;
    let mut path = args.file.clone().into_os_string();
    path.push(".sig");
    let path = PathBuf::from(path);
    fs::write(&path, signature_to_text(&key.sign(&text)) + "\n").map_err(file_error(&path))?;
    writeln!(out, "{}  is the signature, for boxes with the key {}", path.display(), key.public())?;
    Ok(())
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), PolicyError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| writeln!(file, "{text}")).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PolicyError::Exists { path: path.to_owned() },
        _ => PolicyError::File { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use weir_host::sign::{PublicKey, signature_from_text};

    use super::*;

    fn made_key() -> (tempfile::TempDir, SignArgs) {
        let dir = tempfile::tempdir().unwrap();
        keygen(dir.path(), &mut Vec::new()).unwrap();
        let args = SignArgs { file: dir.path().join("seven.toml"), key: dir.path().join("policy.key") };
        (dir, args)
    }

    #[test]
    fn what_is_signed_is_accepted_with_the_public_key() {
        let (dir, args) = made_key();
        fs::write(&args.file, "version = 7\n").unwrap();
        PolicyCommand::Sign(args).run(&mut Vec::new()).unwrap();
        let public: PublicKey = fs::read_to_string(dir.path().join("policy.pub")).unwrap().parse().unwrap();
        let signature = signature_from_text(&fs::read_to_string(dir.path().join("seven.toml.sig")).unwrap()).unwrap();
        assert_eq!(public.verify(b"version = 7\n", &signature), Ok(()));
        let mode = fs::metadata(dir.path().join("policy.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_is_there_is_never_replaced() {
        let (dir, args) = made_key();
        let before = fs::read(&args.key).unwrap();
        assert!(matches!(keygen(dir.path(), &mut Vec::new()), Err(PolicyError::Exists { .. })));
        assert_eq!(fs::read(&args.key).unwrap(), before);
    }

    #[test]
    fn long_policies_and_public_keys_are_refused_and_nothing_is_written() {
        let (dir, mut args) = made_key();
        fs::write(&args.file, vec![b'#'; TEXT_LEN_MAX + 1]).unwrap();
        assert!(matches!(sign(&args, &mut Vec::new()), Err(PolicyError::TooLong { len: 65_537, .. })));
        fs::write(&args.file, "version = 7\n").unwrap();
        args.key = dir.path().join("policy.pub");
        assert!(matches!(sign(&args, &mut Vec::new()), Err(PolicyError::Key { .. })));
        assert!(!dir.path().join("seven.toml.sig").exists());
    }
}
