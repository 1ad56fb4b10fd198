//! `weir-supervisor`: runs `weir-edge` on the flashable image, where there is no systemd.
//!
//! It takes configurations in from the provisioning partition and keeps the last good one (`configs.rs`), starts the program as a
//! user of its own, starts it again when it ends, kills it when it makes no progress (`supervision.rs`), and feeds the
//! machine's watchdog as long as that helps. What it says goes to standard error, which is the serial console.
#![expect(clippy::print_stderr, reason = "standard error is the serial console, and all the log there is")]

pub mod configs;
pub mod program;
pub mod supervision;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use configs::{ConfigId, Configs, ProvisionError, Provisioned};
use program::{Launcher, Running, Watchdog, words};
use supervision::{Action, Choice, Ending, Event, Hang, Limits, Supervision};

/// What a supervisor is told.
#[derive(Debug)]
pub struct Options {
    /// The program, `weir-edge`.
    pub program: PathBuf,
    /// Folder of the configurations.
    pub configs: PathBuf,
    /// Folder that may hold a new one.
    pub provision: Option<PathBuf>,
    /// The configuration to run with when there is no other.
    pub fallback: PathBuf,
    /// Folder for the socket that the program talks to.
    pub run_dir: PathBuf,
    /// User and group of the program; ours if there are none.
    pub owner: Option<(u32, u32)>,
    /// The machine's watchdog.
    pub watchdog: Option<PathBuf>,
    /// Times and counts.
    pub limits: Limits,
}

/// Why there is no supervision.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The socket for the program's words.
    #[error("cannot make a socket in {}", run_dir.display())]
    Socket {
        /// Where.
        run_dir: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Memory is told so long after the program got ready, when it has settled, and then each hour.
const MEMORY_FIRST: Duration = Duration::from_secs(20);
const MEMORY_EVERY: Duration = Duration::from_secs(3_600);

/// Supervises until it is killed.
///
/// # Errors
/// `Socket`.
pub fn run(options: &Options) -> Result<Infallible, SuperviseError> {
    let failed = |source| SuperviseError::Socket { run_dir: options.run_dir.clone(), source };
    let launcher = Launcher::new(&options.program, options.owner, options.limits.progress, &options.run_dir).map_err(failed)?;
    let configs = Configs::new(&options.configs, options.owner);
    let candidate = options.provision.as_deref().and_then(|folder| take_in(&configs, folder));
    let supervision = Supervision::new(options.limits, candidate.is_some(), configs.good_id().is_some());
    let watchdog = Watchdog::open(options.watchdog.as_deref()).unwrap_or_else(|err| {
        say(&format!("the machine's watchdog cannot be opened, so it is not fed: {err}"));
        Watchdog::open(None).expect("no device cannot fail")
    });
    if watchdog.is_there() {
        say("the machine's watchdog is fed from here on");
    }
    let mut shell =
        Shell { options, launcher, configs, candidate, supervision, watchdog, began: Instant::now(), running: None };
    loop {
        shell.step();
    }
}

/// Everything around the pure [`Supervision`].
struct Shell<'o> {
    options: &'o Options,
    launcher: Launcher,
    configs: Configs,
    candidate: Option<ConfigId>,
    supervision: Supervision,
    watchdog: Watchdog,
    began: Instant,
    running: Option<(Running, Option<Duration>)>,
}

impl Shell<'_> {
    fn step(&mut self) {
        let events = self.launcher.listen();
        let now = self.began.elapsed();
        for event in events {
            if event == Event::Ready {
                self.ready(now);
            }
            let action = self.supervision.handle(now, event);
            self.act(action);
        }
        let ended = self.running.as_mut().and_then(|(running, _)| running.ended());
        if let Some((ending, status)) = ended {
            self.running = None;
            self.ended(now, ending, &words(status));
        }
        let due = self.supervision.poll(now);
        self.act(due);
        self.tell_memory(now);
        if self.supervision.is_hopeful() {
            self.watchdog.feed();
        }
    }

    fn act(&mut self, action: Option<Action>) {
        match action {
            None => {}
            Some(Action::Start(choice)) => self.start(choice),
            Some(Action::Kill(hang)) => {
                let (what, after) = match hang {
                    Hang::NotReady => ("is not ready", self.options.limits.start),
                    Hang::NoProgress => ("has made no progress", self.options.limits.progress),
                };
                say(&format!("the program {what} after {} s and is killed", after.as_secs_f64()));
                if let Some((running, _)) = &mut self.running {
                    running.kill();
                }
            }
            Some(Action::Promote) => self.promote(),
            Some(Action::GiveUp(choice, ending)) => self.give_up(choice, ending),
        }
    }

    fn start(&mut self, choice: Choice) {
        let (config, name) = match (choice, &self.candidate, self.configs.good_id()) {
            (Choice::Candidate, Some(id), _) => (self.configs.file(id), format!("new configuration {id}")),
            (Choice::Good, _, Some(id)) => (self.configs.file(&id), format!("configuration {id}")),
            _ => (self.options.fallback.clone(), "the image's own configuration, which takes in and sends nothing".to_owned()),
        };
        say(&format!("starting with {name}"));
        match self.launcher.start(&config) {
            Ok(running) => self.running = Some((running, None)),
            Err(err) => self.ended(self.began.elapsed(), Ending::Other, &format!("it cannot be started: {err}")),
        }
    }

    fn ready(&mut self, now: Duration) {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime_s = uptime.split(' ').next().unwrap_or("?");
        say(&format!("the program is ready, {uptime_s} s after the kernel began"));
        if let Some((_, memory_at)) = &mut self.running {
            *memory_at = Some(now + MEMORY_FIRST);
        }
    }

    fn ended(&mut self, now: Duration, ending: Ending, how: &str) {
        let action = self.supervision.handle(now, Event::Ended(ending));
        let wait_s = self.supervision.wait(now).as_secs_f64();
        say(&format!("the program has ended ({how}); it is started again in {wait_s} s"));
        self.act(action);
        if !self.supervision.is_hopeful() {
            say("starting it again does not help: the watchdog is no longer fed, so the machine starts anew if it has one");
        }
    }

    fn promote(&mut self) {
        let Some(id) = self.candidate.take() else { return };
        match self.configs.promote(&id) {
            Ok(()) => say(&format!("configuration {id} is kept")),
            Err(err) => {
                say(&format!("configuration {id} cannot be kept, it is tried again at the next start: {}", chain(&err)))
            }
        }
    }

    fn give_up(&mut self, choice: Choice, ending: Ending) {
        let why = match ending {
            Ending::ConfigRefused => "the program refuses it, see above",
            Ending::Other => "the program does not get ready with it",
        };
        let next = if self.configs.good_id().is_some() && choice == Choice::Candidate {
            "the last good one"
        } else {
            "the image's own"
        };
        let what = if choice == Choice::Candidate { "provisioned" } else { "last good" };
        say(&format!("the {what} configuration is given up for {next}: {why}"));
        if let Some(id) = self.candidate.take()
            && let Err(err) = self.configs.discard(&id)
        {
            say(&chain(&err));
        }
    }

    fn tell_memory(&mut self, now: Duration) {
        let Some((running, Some(memory_at))) = &mut self.running else { return };
        if now >= *memory_at {
            *memory_at = now + MEMORY_EVERY;
            if let Some(pss_kib) = running.pss_kib() {
                say(&format!("the program uses {pss_kib} KiB (PSS)"));
            }
        }
    }
}

/// A new configuration, if one was provisioned. Whatever is wrong with it must not keep the box from running.
fn take_in(configs: &Configs, folder: &Path) -> Option<ConfigId> {
    match configs.take_in(folder) {
        Ok(Provisioned::New(id)) => {
            say(&format!("configuration {id} was provisioned"));
            Some(id)
        }
        Ok(Provisioned::Known(_)) => None,
        Ok(Provisioned::Nothing) => {
            if configs.good_id().is_none() {
                say(&format!("nothing is provisioned: put edge.toml and what it names into {}", folder.display()));
            }
            None
        }
        Err(err) => {
            say(&format!("what was provisioned cannot be used: {}", chain(&err)));
            None
        }
    }
}

fn chain(err: &ProvisionError) -> String {
    let source = std::error::Error::source(err).map(|source| format!(": {source}"));
    format!("{err}{}", source.unwrap_or_default())
}

fn say(text: &str) {
    eprintln!("weir-supervisor: {text}");
}
