//! A server process that cannot outlive its test.
//!
//! Each process leads its own process group, writes to a log file, is killed
//! on drop by its own id, and is killed by the kernel when the test process
//! dies without dropping anything.
//!
//! HAZARD: the kernel's death signal is sent when the *thread* that spawned the
//! process ends, not its process. An async test may spawn from a pool thread
//! that is retired ten seconds later. Every spawn therefore goes through one
//! thread that lives as long as the test process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a process that should end is looked at.
const POLL: Duration = Duration::from_millis(2);

/// After the parting signal a process has this long before it is killed.
const PARTING: Duration = Duration::from_secs(5);

/// A killed process is gone at once, unless it waits for a disk that is busy: that wait is not interrupted.
const DEATH: Duration = Duration::from_secs(60);

/// The signals the testbed sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGKILL: nothing is tidied up.
    Kill,
    /// SIGTERM.
    Terminate,
    /// SIGINT: a fast shutdown, to Postgres.
    Interrupt,
    /// SIGQUIT: an immediate shutdown, to Postgres.
    Quit,
    /// SIGHUP: read the settings again, to Postgres.
    Hangup,
    /// SIGSTOP: freeze.
    Stop,
    /// SIGCONT: thaw.
    Continue,
}

impl Signal {
    fn number(self) -> libc::c_int {
        match self {
            Signal::Kill => libc::SIGKILL,
            Signal::Terminate => libc::SIGTERM,
            Signal::Interrupt => libc::SIGINT,
            Signal::Quit => libc::SIGQUIT,
            Signal::Hangup => libc::SIGHUP,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
        }
    }
}

/// Sends a signal to one process by its id.
///
/// The caller must know that the id still belongs to what it means: a child
/// not yet waited for, or a child of such a one.
pub(crate) fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // 0 and negative ids address groups, and every process there is.
    if pid <= 1 {
        return Err(io::Error::other(format!("not one process: {pid}")));
    }
    #[allow(unsafe_code, reason = "the standard library sends no signal but SIGKILL")]
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    let outcome = unsafe { libc::kill(pid, signal.number()) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The ids of the direct children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&candidate| parent(candidate) == Some(pid))
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "pid (name) state ppid …", where the name may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

/// The user a server runs as when the test is root.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// The numeric user id.
    pub uid: u32,
    /// The numeric group id.
    pub gid: u32,
}

impl User {
    /// Who Postgres should run as: None means as ourselves, who are not root.
    pub fn unprivileged() -> Result<Option<User>> {
        if !running_as_root() {
            return Ok(None);
        }
        let accounts = std::fs::read_to_string("/etc/passwd").context("read the accounts")?;
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| {
                accounts.lines().find_map(|line| {
                    let fields: Vec<&str> = line.split(':').collect();
                    (fields.first() == Some(name)).then_some(())?;
                    Some(User { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
                })
            })
            .map(Some)
            .context("find the account postgres or nobody")
    }
}

fn running_as_root() -> bool {
    own_uid() == 0
}

/// The numeric user id of the test.
pub(crate) fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map_or(u32::MAX, |me| me.uid())
}

/// What to run, and how it should part.
pub struct Recipe {
    command: Command,
    name: String,
    log: PathBuf,
    parting: Signal,
}

impl Recipe {
    /// A program whose output goes to the end of a log file.
    pub fn new(name: &str, program: &Path, log: &Path) -> Recipe {
        Recipe {
            command: Command::new(program),
            name: name.to_owned(),
            log: log.to_owned(),
            parting: Signal::Kill,
        }
    }

    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Recipe {
        self.command.arg(arg);
        self
    }

    /// One environment variable.
    pub fn env(mut self, key: impl AsRef<std::ffi::OsStr>, value: impl AsRef<std::ffi::OsStr>) -> Recipe {
        self.command.env(key, value);
        self
    }

    /// The directory it runs in.
    pub fn current_dir(mut self, dir: &Path) -> Recipe {
        self.command.current_dir(dir);
        self
    }

    /// Runs as somebody else; needs root.
    pub fn user(mut self, user: Option<User>) -> Recipe {
        if let Some(user) = user {
            self.command.uid(user.uid).gid(user.gid);
        }
        self
    }

    /// The signal sent on drop and when the test dies; SIGKILL unless set.
    pub fn parting(mut self, signal: Signal) -> Recipe {
        self.parting = signal;
        self
    }

    /// Starts it.
    pub fn spawn(self) -> Result<Process> {
        let Recipe { mut command, name, log, parting } = self;
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open the log {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the log")?)
            .stderr(output)
            .process_group(0);
        die_with_us(&mut command, parting);
        let child = spawn_from_lasting_thread(command).with_context(|| format!("start {name}"))?;
        Ok(Process { child, name, log, parting })
    }
}

fn die_with_us(command: &mut Command, parting: Signal) {
    let us = std::process::id();
    let signal = parting.number();
    #[allow(unsafe_code, reason = "the death signal can only be set by the child itself")]
    // SAFETY: between fork and exec the closure makes two system calls that are
    // safe there, and allocates nothing unless it fails.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above.
            if u32::try_from(libc::getppid()) != Ok(us) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

type Order = (Command, mpsc::SyncSender<io::Result<Child>>);

fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("testbed-spawner".into())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("start the spawner thread");
        orders
    });
    let (answer, outcome) = mpsc::sync_channel(1);
    spawner.send((command, answer)).map_err(|_| io::Error::other("the spawner thread is gone"))?;
    outcome.recv().map_err(|_| io::Error::other("the spawner thread is gone"))?
}

/// A running process, or one that has ended and is remembered.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    parting: Signal,
}

impl Process {
    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its log file.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The most memory it has held at once, in KiB; an error once it has ended.
    pub fn vm_hwm_kib(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// The memory it holds now, in KiB; an error once it has ended.
    pub fn vm_rss_kib(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .with_context(|| format!("read the memory of {}", self.name))?;
        status
            .lines()
            .find_map(|line| {
                let value = line.strip_prefix(field)?;
                value.trim().strip_suffix("kB")?.trim().parse().ok()
            })
            .with_context(|| format!("no {field} of {}", self.name))
    }

    /// How it ended, or None while it runs.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends a signal, unless the process has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited().is_some() {
            return Ok(());
        }
        send(self.pid(), signal).with_context(|| format!("send {signal:?} to {} ({})", self.name, self.pid()))
    }

    /// Waits for the end; None if it has not come in time.
    pub async fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                return Some(status);
            }
            if started.elapsed() >= timeout {
                return None;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills it and all its children at once and waits until none is left.
    ///
    /// The process is frozen first, so that it starts no further child and has
    /// no chance to say farewell to those it has.
    pub fn kill_tree(&mut self) -> Result<()> {
        if self.exited().is_some() {
            return Ok(());
        }
        self.signal(Signal::Stop)?;
        let children = children(self.pid());
        self.signal(Signal::Kill)?;
        for &child in &children {
            // A child may have ended by itself meanwhile.
            let _ = send(child, Signal::Kill);
        }
        self.child.wait().context("wait for the killed process")?;
        let deadline = Instant::now() + DEATH;
        for child in children {
            // An orphan's entry may linger as a zombie where init is slow to
            // reap; a zombie holds nothing.
            while alive(child) {
                anyhow::ensure!(Instant::now() < deadline, "{child} does not die");
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Freezes it and all its children.
    pub fn freeze_tree(&mut self) -> Result<()> {
        // The parent first, so that it starts no further child.
        self.signal(Signal::Stop)?;
        for child in children(self.pid()) {
            let _ = send(child, Signal::Stop);
        }
        Ok(())
    }

    /// Thaws what [`Process::freeze_tree`] froze.
    pub fn thaw_tree(&mut self) -> Result<()> {
        // The children first: the parent may wait for them.
        for child in children(self.pid()) {
            let _ = send(child, Signal::Continue);
        }
        self.signal(Signal::Continue)
    }

    fn part(&mut self) {
        if self.exited().is_some() {
            return;
        }
        if self.parting != Signal::Kill {
            // A frozen process would not see the signal.
            let _ = self.signal(self.parting);
            let _ = self.thaw_tree();
            let started = Instant::now();
            while started.elapsed() < PARTING {
                if self.exited().is_some() {
                    return;
                }
                std::thread::sleep(POLL);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.part();
    }
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// The last lines of a log, enough to see why a server did not start.
pub fn tail(log: &Path, lines: usize) -> String {
    /// 64 KiB: more than the lines anybody asks for.
    const WINDOW: u64 = 64 * 1024;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(no log {}: {error})", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path) -> Process {
        Recipe::new("sleeper", Path::new("/bin/sh"), &dir.join("log"))
            .arg("-c")
            .arg("echo here; sleep 1000 & wait")
            .spawn()
            .unwrap()
    }

    #[tokio::test]
    async fn a_process_and_its_children_are_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = sleeper(dir.path());
        let started = Instant::now();
        let child = loop {
            if let Some(&child) = children(process.pid()).first() {
                break child;
            }
            assert!(started.elapsed() < DEATH);
            tokio::time::sleep(POLL).await;
        };
        process.kill_tree().unwrap();
        assert!(process.exited().is_some());
        assert!(!alive(child));
        assert_eq!(tail(&dir.path().join("log"), 5), "here");
    }

    #[tokio::test]
    async fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process = Recipe::new("sleeper", Path::new("/bin/sleep"), &dir.path().join("log"))
            .arg("1000")
            .spawn()
            .unwrap();
        let pid = process.pid();
        assert!(alive(pid));
        drop(process);
        assert!(!alive(pid));
    }
}
