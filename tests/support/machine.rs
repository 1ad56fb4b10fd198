//! A box as a whole machine: the flashable image in QEMU, with the power switch in our hand.
//!
//! The machine sees the host as 10.0.2.2, and its MQTT listener is forwarded from a loopback port. A power cut is a killed QEMU: what
//! the machine had not written to its disk is gone. What it had written is there, since the host's page cache outlives QEMU; a
//! disk that lies about flushes is not emulated.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{self, free_addr, tail};

/// Port of the MQTT listener in the machine; its configuration must say the same.
pub const MQTT_PORT: u16 = 1883;
/// The host, as the machine sees it.
pub const HOST: &str = "10.0.2.2";
/// For a tool that works on the image.
const TOOL_LIMIT: Duration = Duration::from_secs(60);

/// A disk with the image on it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

/// Names of partitions, as `cross/image.sh` gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partition {
    /// GRUB and its note of slots.
    Boot,
    /// The second slot.
    SlotB,
    /// What is provisioned.
    Config,
    /// What the box keeps.
    Data,
}

impl Partition {
    fn name(self) -> &'static str {
        match self {
            Partition::Boot => "weir-boot",
            Partition::SlotB => "weir-b",
            Partition::Config => "weir-config",
            Partition::Data => "weir-data",
        }
    }
}

impl Disk {
    /// A copy of an image, in a folder.
    ///
    /// # Panics
    /// If there is no room.
    pub fn copy(image: &Path, dir: &Path) -> Disk {
        let path = dir.join("disk.img");
        tool("cp", &["--sparse=always", text(image), text(&path)]);
        Disk { path }
    }

    /// Makes the disk larger than the image, as a card is.
    ///
    /// # Panics
    /// If the file cannot be changed.
    pub fn enlarge(&self, mib: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.path).expect("it was just copied");
        let len = file.metadata().expect("it has a length").len();
        file.set_len(len + (mib << 20)).expect("there is room for a hole");
    }

    /// Puts the files of a folder on the provisioning partition, over those that have the same names.
    ///
    /// # Panics
    /// If that fails.
    pub fn provision(&self, folder: &Path) {
        let at = self.at(Partition::Config, "@@");
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            tool("mcopy", &["-s", "-o", "-Q", "-i", &at, text(&entry.expect("it can be read").path()), "::/"]);
        }
    }

    /// Takes all but so many KiB of the data partition.
    ///
    /// # Panics
    /// If that fails.
    pub fn fill_data(&self, free_kib: u64, dir: &Path) {
        let at = self.at(Partition::Data, "?offset=");
        let stats = tool("debugfs", &["-R", "show_super_stats -h", &at]);
        let number = |key: &str| -> u64 {
            let line = stats.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {stats}"));
            line.rsplit(' ').next().and_then(|number| number.parse().ok()).expect("a number")
        };
        let len = number("Free blocks:") * number("Block size:") - (free_kib << 10);
        let filler = dir.join("filler");
        // Not a hole: debugfs keeps those.
        std::fs::write(&filler, vec![7; usize::try_from(len).expect("it is a small partition")]).expect("there is room");
        tool("debugfs", &["-w", "-R", &format!("write {} filler", text(&filler)), &at]);
        std::fs::remove_file(filler).expect("it was just written");
    }

    /// Sets values in GRUB's note: `trial=b`.
    ///
    /// # Panics
    /// If that fails.
    pub fn set_grub(&self, value: &str, dir: &Path) {
        let (at, file) = (self.at(Partition::Boot, "@@"), dir.join("grubenv"));
        tool("mcopy", &["-o", "-i", &at, "::/weir/grubenv", text(&file)]);
        tool("grub-editenv", &[text(&file), "set", value]);
        tool("mcopy", &["-o", "-i", &at, text(&file), "::/weir/grubenv"]);
    }

    /// Overwrites the start of a partition with what is no file system.
    ///
    /// # Panics
    /// If that fails.
    pub fn ruin(&self, partition: Partition) {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::OpenOptions::new().write(true).open(&self.path).expect("it was just copied");
        file.write_all_at(&[0xa5; 1 << 20], self.start(partition)).expect("it is large enough");
    }

    /// The file and a place in it, as mtools (`@@`) or e2fsprogs (`?offset=`) want it.
    fn at(&self, partition: Partition, mark: &str) -> String {
        format!("{}{mark}{}", text(&self.path), self.start(partition))
    }

    /// Where a partition begins, in bytes.
    fn start(&self, partition: Partition) -> u64 {
        let table: serde_json::Value =
            serde_json::from_str(&tool("sfdisk", &["--json", text(&self.path)])).expect("it is JSON");
        let parts = table["partitiontable"]["partitions"].as_array().expect("a list");
        let part = parts.iter().find(|part| part["name"] == partition.name()).expect("cross/image.sh makes it");
        part["start"].as_u64().expect("a number") * 512
    }
}

/// A machine that runs. It is killed when dropped.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    serial: PathBuf,
    /// When its power came.
    pub began: Instant,
    /// Length of the serial log before that.
    before: usize,
}

/// What a machine is made of; started again after a power cut, it is the same.
#[derive(Debug)]
pub struct Hardware {
    /// UEFI's firmware.
    pub firmware: PathBuf,
    /// Its disk.
    pub disk: Disk,
    /// File that the serial console is appended to.
    pub serial: PathBuf,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Where its MQTT listener is, on the host.
    pub mqtt: SocketAddr,
}

impl Hardware {
    /// With a disk, and the 256 MiB.
    pub fn new(firmware: &Path, disk: Disk, dir: &Path) -> Self {
        Hardware { firmware: firmware.to_owned(), disk, serial: dir.join("serial.log"), memory_mib: 256, mqtt: free_addr() }
    }

    /// Switches it on.
    ///
    /// # Panics
    /// If QEMU cannot be started.
    pub fn start(&self) -> Machine {
        let before = self.serial_text().len();
        let (disk, serial, memory) = (text(&self.disk.path), text(&self.serial), self.memory_mib.to_string());
        let mut command = Command::new("qemu-system-aarch64");
        command.args(["-machine", "virt", "-cpu", "cortex-a72", "-smp", "2", "-accel", "tcg,thread=multi", "-m", &memory]);
        command.args(["-nodefaults", "-display", "none", "-bios", text(&self.firmware)]);
        command.args([
            "-drive",
            &format!("if=none,id=disk,format=raw,file={disk}"),
            "-device",
            "virtio-blk-pci,drive=disk,bootindex=0",
        ]);
        let forward = format!("user,id=net,hostfwd=tcp:{}-:{MQTT_PORT}", self.mqtt);
        command.args(["-netdev", &forward, "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.args(["-device", "i6300esb", "-action", "watchdog=reset"]);
        command.args(["-chardev", &format!("file,id=serial,path={serial},append=on"), "-serial", "chardev:serial"]);
        let log = std::fs::File::create(self.serial.with_extension("qemu")).expect("there is room");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let child = child.unwrap_or_else(|err| panic!("{command:?}: {err} (cross/setup.sh image installs it)"));
        Machine { child, serial: self.serial.clone(), began: Instant::now(), before }
    }

    /// All that the serial console has said since the first start.
    pub fn serial_text(&self) -> String {
        read(&self.serial)
    }
}

impl Machine {
    /// Cuts the power.
    pub fn cut(self) {
        drop(self);
    }

    /// What the serial console has said since this start.
    pub fn serial(&self) -> String {
        read(&self.serial).get(self.before..).unwrap_or_default().to_owned()
    }

    /// Waits until the console says something.
    ///
    /// # Panics
    /// If it does not, or the machine has gone.
    pub fn wait_serial(&mut self, what: &str, limit: Duration) {
        super::wait_for(&format!("`{what}` on the serial console"), limit, || {
            if let Some(status) = self.child.try_wait().expect("the child is ours") {
                panic!("QEMU has ended ({status}): {}", read(&self.serial.with_extension("qemu")));
            }
            self.serial().contains(what).then_some(())
        });
    }
}

impl Drop for Machine {
    #[expect(clippy::print_stderr, reason = "a failed test shows what the machine said")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- end of the serial console\n{}", tail(&self.serial));
        }
    }
}

/// Consoles are not always text: firmware draws.
fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// Runs a tool to its end, and returns what it said.
fn tool(name: &str, args: &[&str]) -> String {
    let mut command = Command::new(name);
    // The tools of file systems are not on every user's path.
    let path = std::env::var("PATH").unwrap_or_default();
    command.args(args).env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let (code, stdout, stderr) = process::run(command, TOOL_LIMIT);
    assert_eq!(code, Some(0), "{name} {args:?}: {stderr}");
    stdout
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are text")
}
