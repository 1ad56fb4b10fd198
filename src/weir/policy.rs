//! Policies before they ship: `weir policy keygen`, `weir policy check` and `weir policy sign`.
//!
//! A policy changes what boxes do, so it is signed by whoever writes it, on a machine that is neither a box nor the cloud. The
//! signature goes into a file beside it, so that the policy stays as it was written and can be reviewed as text.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use weir_edge::config::{Config, Files, check_policy_form};
use weir_host::config::ConfigErrors;
use weir_host::policy::PolicyHead;
use weir_host::sign::{SecretKey, SignError, signature_to_text};
use weir_logic::policy::Policy;
use weir_logic::wire::POLICY_LEN_MAX;

use crate::check::EXIT_MISTAKES;

/// `weir policy`: make keys for policies, check them, and sign them.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Make a key: DIR/policy.key signs and stays where policies are written, DIR/policy.pub is for the boxes
    Keygen(KeygenArgs),
    /// Find every mistake in a policy, and with --config show what it changes on a box
    Check(PolicyCheckArgs),
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

/// Arguments of `weir policy check`.
#[derive(Debug, Clone, Args)]
pub struct PolicyCheckArgs {
    /// The policy.
    pub file: PathBuf,
    /// The configuration of a box that it is for.
    #[arg(long)]
    pub config: Option<PathBuf>,
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
    #[error("{path} has {len} bytes, more than the {POLICY_LEN_MAX} that a box takes")]
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
    /// A policy with mistakes.
    #[error("{path} is not signed: a box would refuse it\n{errors}")]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All of them.
        errors: ConfigErrors,
    },
    /// Standard output is closed.
    #[error("the result cannot be printed")]
    Print(#[from] io::Error),
}

impl PolicyCommand {
    /// Carries it out and says what it did; the exit code is 64 for a policy with mistakes.
    ///
    /// # Errors
    /// See [`PolicyError`]; a key that is there is never replaced.
    pub fn run(&self, out: &mut impl Write) -> Result<ExitCode, PolicyError> {
        match self {
            PolicyCommand::Keygen(args) => keygen(&args.dir, out)?,
            PolicyCommand::Sign(args) => sign(args, out)?,
            PolicyCommand::Check(args) if !check(args, out)? => return Ok(ExitCode::from(EXIT_MISTAKES)),
            PolicyCommand::Check(_) => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints what was found; true if nothing speaks against the policy.
fn check(args: &PolicyCheckArgs, out: &mut impl Write) -> Result<bool, PolicyError> {
    let file = args.file.display().to_string();
    let text = read_text(&args.file)?;
    let Some(path) = &args.config else {
        return match check_policy_form(&file, &text) {
            Ok(head) => {
                writeln!(
                    out,
                    "{file}: version {} for {}; --config FILE shows whether it fits a box",
                    head.version,
                    audience(&head)
                )?;
                Ok(true)
            }
            Err(errors) => Ok(writeln!(out, "{errors}").map(|()| false)?),
        };
    };
    // Certificates and models are on the box.
    let checked = Config::check(path, Files::Ignored).config;
    let checked = checked.and_then(|config| config.check_policy(&[], &file, &text).map(|checked| (config, checked)));
    let (config, checked) = match checked {
        Ok(checked) => checked,
        Err(errors) => return Ok(writeln!(out, "{errors}").map(|()| false)?),
    };
    for warning in &checked.warnings {
        writeln!(out, "{warning}\n")?;
    }
    let own = config.policy(&[]).map(|own| changes(&own, &checked.policy)).unwrap_or_default();
    for change in &own {
        writeln!(out, "{change}")?;
    }
    if config.policy.key.is_none() {
        writeln!(out, "the box takes no policies: its configuration has no `key` in [policy]")?;
    }
    let (version, audience, warnings) = (checked.head.version, audience(&checked.head), checked.warnings.len());
    writeln!(out, "{file}: good ({warnings} warnings), version {version} for {audience}, {} changes", own.len())?;
    Ok(true)
}

fn audience(head: &PolicyHead) -> String {
    if head.gateways.is_empty() { "all gateways".to_owned() } else { head.gateways.join(", ") }
}

/// What a policy changes of a box, a line for each stream and uplink, and for the plan.
fn changes(own: &Policy, next: &Policy) -> Vec<String> {
    let line = |what: &str, name: &str, parts: &[(&str, bool)]| {
        let changed: Vec<&str> = parts.iter().filter(|(_, is_changed)| *is_changed).map(|(part, _)| *part).collect();
        (!changed.is_empty()).then(|| format!("{what} {name}: {}", changed.join(", ")))
    };
    let streams = own.streams.iter().zip(&next.streams).filter_map(|(own, next)| {
        let class = format!("class {} to {}", own.class.name(), next.class.name());
        let fidelity = format!("fidelity {} to {}", own.fidelity.name(), next.fidelity.name());
        let parts = [
            (class.as_str(), own.class != next.class),
            (fidelity.as_str(), own.fidelity != next.fidelity),
            ("keep", own.keep != next.keep),
            ("zones", own.zones != next.zones),
            ("value", own.value != next.value),
        ];
        line("stream", &own.name, &parts)
    });
    let uplinks = own.uplinks.iter().zip(&next.uplinks).filter_map(|(own, next)| {
        let parts = [
            ("classes", own.classes != next.classes),
            ("price and month", own.meter != next.meter),
            ("warm", own.warm != next.warm),
        ];
        line("uplink", &own.name, &parts)
    });
    let is_planned = own.price != next.price || own.critical_copies != next.critical_copies;
    streams.chain(uplinks).chain(is_planned.then(|| "plan".to_owned())).collect()
}

fn read_text(path: &Path) -> Result<String, PolicyError> {
    let file_error = |source| PolicyError::File { path: path.to_owned(), source };
    let len = fs::metadata(path).map_err(file_error)?.len() as usize;
    if len > POLICY_LEN_MAX {
        return Err(PolicyError::TooLong { path: path.to_owned(), len });
    }
    fs::read_to_string(path).map_err(file_error)
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
    let text = read_text(&args.file)?;
    let head = check_policy_form(&args.file.display().to_string(), &text)
        .map_err(|errors| PolicyError::Mistakes { path: args.file.clone(), errors })?;
    let key = fs::read_to_string(&args.key).map_err(file_error(&args.key))?;
    let key: SecretKey = key.parse().map_err(|source| PolicyError::Key { path: args.key.clone(), source })?;
    let mut path = args.file.clone().into_os_string();
    path.push(".sig");
    let path = PathBuf::from(path);
    fs::write(&path, signature_to_text(&key.sign(text.as_bytes())) + "\n").map_err(file_error(&path))?;
    let (version, audience, public) = (head.version, audience(&head), key.public());
    writeln!(out, "{}  signs version {version} for {audience} with the key {public}", path.display())?;
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

    const TEXT: &str = "[policy]\nversion = 7\n[[stream]]\nname = 's'\nclass = 'bulk'\n";

    fn made_key() -> (tempfile::TempDir, SignArgs) {
        let dir = tempfile::tempdir().unwrap();
        keygen(dir.path(), &mut Vec::new()).unwrap();
        let args = SignArgs { file: dir.path().join("seven.toml"), key: dir.path().join("policy.key") };
        (dir, args)
    }

    #[test]
    fn what_is_signed_is_accepted_with_the_public_key() {
        let (dir, args) = made_key();
        fs::write(&args.file, TEXT).unwrap();
        PolicyCommand::Sign(args).run(&mut Vec::new()).unwrap();
        let public: PublicKey = fs::read_to_string(dir.path().join("policy.pub")).unwrap().parse().unwrap();
        let signature = signature_from_text(&fs::read_to_string(dir.path().join("seven.toml.sig")).unwrap()).unwrap();
        assert_eq!(public.verify(TEXT.as_bytes(), &signature), Ok(()));
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
        fs::write(&args.file, vec![b'#'; POLICY_LEN_MAX + 1]).unwrap();
        assert!(matches!(sign(&args, &mut Vec::new()), Err(PolicyError::TooLong { len: 65_537, .. })));
        fs::write(&args.file, TEXT).unwrap();
        args.key = dir.path().join("policy.pub");
        assert!(matches!(sign(&args, &mut Vec::new()), Err(PolicyError::Key { .. })));
        assert!(!dir.path().join("seven.toml.sig").exists());
    }

    #[test]
    fn a_policy_is_checked_against_a_box_and_shows_what_it_changes() {
        let (dir, args) = made_key();
        let config = dir.path().join("edge.toml");
        fs::write(&config, "[[stream]]\nname = 's'\ntopics = ['s']\n[[stream]]\nname = 't'\ntopics = ['t']\n").unwrap();
        let checked = |text: &str, config: Option<PathBuf>| {
            fs::write(&args.file, text).unwrap();
            let mut out = Vec::new();
            let is_good = check(&PolicyCheckArgs { file: args.file.clone(), config }, &mut out).unwrap();
            (is_good, String::from_utf8(out).unwrap())
        };
        let (is_good, shown) = checked(TEXT, Some(config.clone()));
        assert!(is_good && shown.contains("stream s: class normal to bulk\n") && shown.contains("1 changes"), "{shown}");
        assert!(shown.contains("has no `key`"), "{shown}");
        assert!(checked(TEXT, None).1.contains("version 7 for all gateways"));
        let wrong = "[policy]\nversion = 0\n[[stream]]\nname = 'u'\n[[stream]]\nname = 't'\ntopics = ['t']\n";
        let (is_good, shown) = checked(wrong, Some(config));
        assert!(!is_good && shown.contains("3 mistakes"), "{shown}");
        assert!(
            shown.contains("seven.toml:2:11") && shown.contains("no stream `u`") && shown.contains("key `topics`"),
            "{shown}"
        );
        // Nor is it signed, as far as that can be seen without a box.
        assert!(matches!(sign(&args, &mut Vec::new()), Err(PolicyError::Mistakes { .. })));
    }
}
