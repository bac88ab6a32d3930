//! Compiled modules on disk, so that a restart need not compile what it had compiled.
//!
//! To load an artifact is to run its bytes as machine code. So each file ends with an HMAC-SHA-256 of
//! all before it, under a key that only this installation has ([`key`]). What does not verify, or is
//! not what its name says (the name is in the file), is deleted and compiled again: a file that was
//! changed, cut short, made elsewhere, or renamed. It is verified in memory of our own, after it was
//! read and before anything else looks at it.
//!
//! The name is made from everything the machine code depends on: the module, this sandbox's own
//! sources and Wasmer's version, the CPU, and the limits that the module was checked under. Any number
//! of gateways may share a folder: files are written aside and renamed, and never changed.

mod key;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::check::{Facts, Limits};
use super::engine::{Compiled, Compiler};
use super::settings::ArtifactSettings;
use super::{ModuleHash, engine};
use crate::telemetry::metrics::{Found, metrics};

pub use self::key::ArtifactKey;

/// Says that a file is ours, and in which format. With a new one, all files get new names.
const MAGIC: [u8; 8] = *b"wwartf01";
/// Magic, name, flags, and length of the artifact.
const HEAD_BYTES: usize = 56;
const MAC_BYTES: usize = 32;
/// What a file takes at least on a disk, in bytes.
const BLOCK_BYTES: u64 = 4096;
const SUFFIX: &str = ".artifact";
/// Files that are being written. What is older than this was given up.
const ASIDE: &str = ".aside-";
const ASIDE_KEPT: Duration = Duration::from_secs(3600);
/// How often it is said that the folder can't be used.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The folder, if there is one that can be used.
pub(super) struct ArtifactStore {
    open: Option<Folder>,
}

struct Folder {
    path: PathBuf,
    mac: Hmac<Sha256>,
    /// All that machine code depends on but the module.
    identity: [u8; 32],
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the folder holds, as far as is known: other gateways may write too.
    bytes: u64,
    complained: Option<Instant>,
}

/// Why a file is no artifact.
enum Rejected {
    Missing,
    Unreadable(io::Error),
    /// It is not one that we wrote, or not any more.
    Forged,
}

impl From<io::Error> for Rejected {
    fn from(error: io::Error) -> Rejected {
        match error.kind() {
            io::ErrorKind::NotFound => Rejected::Missing,
            io::ErrorKind::UnexpectedEof => Rejected::Forged,
            _ => Rejected::Unreadable(error),
        }
    }
}

impl ArtifactStore {
    /// Opens the folder; makes it, and its key, if need be. One that can't be used is said once, and
    /// the gateway goes on without.
    pub(super) fn open(settings: Option<&ArtifactSettings>, limits: Limits) -> ArtifactStore {
        let open = settings.and_then(|settings| {
            Folder::open(settings, limits)
                .inspect_err(|error| {
                    tracing::warn!(
                        directory = %settings.directory.display(),
                        %error,
                        "compiled modules are not kept on disk"
                    );
                })
                .ok()
        });
        ArtifactStore { open }
    }

    /// The module's artifact by Cranelift, authenticated.
    pub(super) fn read(&self, hash: &ModuleHash, artifact_bytes_max: u64) -> Option<Compiled> {
        let folder = self.open.as_ref()?;
        match folder.read(hash, artifact_bytes_max) {
            Ok(compiled) => {
                metrics().artifact("hit");
                metrics().module_lookup(Found::Disk);
                Some(compiled)
            }
            Err(Rejected::Missing) => {
                metrics().artifact("miss");
                None
            }
            Err(Rejected::Unreadable(error)) => {
                metrics().artifact("failed");
                folder.complain("a compiled module can't be read", &error);
                None
            }
            Err(Rejected::Forged) => {
                tracing::warn!(
                    module = %hash,
                    "a compiled module on disk is damaged or not ours; it is compiled again"
                );
                self.reject(hash);
                None
            }
        }
    }

    /// Deletes the module's artifact: it does not verify, or does not load.
    pub(super) fn reject(&self, hash: &ModuleHash) {
        let Some(folder) = &self.open else { return };
        metrics().artifact("rejected");
        let path = folder.file(&folder.name(hash));
        // A directory would be in the way of each file that comes.
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(&path),
            removed => removed,
        };
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            folder.complain("a compiled module can't be deleted", &error);
        }
    }

    /// Keeps an artifact by Cranelift. What can't be kept is no failure.
    pub(super) fn write(&self, hash: &ModuleHash, facts: Facts, artifact: &[u8]) {
        let Some(folder) = &self.open else { return };
        match folder.write(hash, facts, artifact) {
            Ok(true) => metrics().artifact("written"),
            Ok(false) => {}
            Err(error) => {
                metrics().artifact("failed");
                folder.complain("a compiled module can't be kept on disk", &error);
            }
        }
    }
}

impl Folder {
    fn open(settings: &ArtifactSettings, limits: Limits) -> io::Result<Folder> {
        let path = &settings.directory;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let metadata = fs::metadata(path)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it belongs to another user"));
        }
        if metadata.mode() & 0o077 != 0 {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
        }
        let key = match &settings.key {
            Some(key) => key.clone(),
            None => key::read_or_create(path)?,
        };
        let folder = Folder {
            path: path.clone(),
            mac: Hmac::new_from_slice(key.reveal())
                .map_err(|_| io::Error::other("the key can't be used"))?,
            identity: identity(limits),
            bytes_max: settings.bytes_max,
            state: Mutex::default(),
        };
        folder.evict(0)?;
        Ok(folder)
    }

    /// What the file is called, and says that it is called.
    fn name(&self, hash: &ModuleHash) -> [u8; 32] {
        Sha256::new()
            .chain_update(self.identity)
            .chain_update(hash.0)
            .finalize()
            .into()
    }

    fn file(&self, name: &[u8; 32]) -> PathBuf {
        self.path.join(format!("{}{SUFFIX}", ModuleHash(*name)))
    }

    fn read(&self, hash: &ModuleHash, artifact_bytes_max: u64) -> Result<Compiled, Rejected> {
        let name = self.name(hash);
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.file(&name))?;
        let metadata = file.metadata()?;
        let overhead = (HEAD_BYTES + MAC_BYTES) as u64;
        let artifact_bytes = metadata.len().checked_sub(overhead);
        let artifact_bytes = artifact_bytes
            .filter(|bytes| metadata.is_file() && *bytes <= artifact_bytes_max)
            .ok_or(Rejected::Forged)?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head)?;
        let mut artifact = vec![0; usize::try_from(artifact_bytes).map_err(|_| Rejected::Forged)?];
        file.read_exact(&mut artifact)?;
        let mut mac = [0; MAC_BYTES];
        file.read_exact(&mut mac)?;
        // In constant time, and before anything in the file is believed.
        self.mac
            .clone()
            .chain_update(head)
            .chain_update(&artifact)
            .verify_slice(&mac)
            .map_err(|_| Rejected::Forged)?;
        let facts = decode(&head, &name, artifact_bytes).ok_or(Rejected::Forged)?;
        // The longest unused goes first when there is no room. A failure only makes it go sooner.
        let _ = file.set_modified(SystemTime::now());
        Ok(Compiled {
            artifact: Bytes::from(artifact),
            facts,
            compiler: Compiler::Cranelift,
        })
    }

    /// Whether there is room for it at all.
    fn write(&self, hash: &ModuleHash, facts: Facts, artifact: &[u8]) -> io::Result<bool> {
        let bytes = on_disk((HEAD_BYTES + artifact.len() + MAC_BYTES) as u64);
        if bytes > self.bytes_max {
            return Ok(false);
        }
        if self.lock().bytes.saturating_add(bytes) > self.bytes_max {
            self.evict(bytes)?;
        }
        let name = self.name(hash);
        let head = encode(&name, facts, artifact.len() as u64);
        let mac = self
            .mac
            .clone()
            .chain_update(head)
            .chain_update(artifact)
            .finalize()
            .into_bytes();
        let aside = self.path.join(format!("{ASIDE}{}", random_hex()?));
        // Not forced to the disk: what a crash leaves half written does not verify.
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)
            .and_then(|mut file| {
                file.write_all(&head)?;
                file.write_all(artifact)?;
                file.write_all(&mac)
            })
            .and_then(|()| fs::rename(&aside, self.file(&name)));
        if let Err(error) = written {
            // What is left behind is found by a later start.
            let _ = fs::remove_file(&aside);
            return Err(error);
        }
        let mut state = self.lock();
        state.bytes += bytes;
        metrics().artifacts_bytes.set(gauge(state.bytes));
        Ok(true)
    }

    /// Counts what there is, and deletes the longest unused until there is room for `wanted` more.
    fn evict(&self, wanted: u64) -> io::Result<()> {
        let mut files = Vec::new();
        let mut bytes = 0_u64;
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            // Another gateway may have deleted it by now.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            if metadata.is_dir() {
                // Not ours, and not counted. One in the way of a file goes when that is asked for.
            } else if name.starts_with(ASIDE) {
                if used.elapsed().is_ok_and(|age| age > ASIDE_KEPT) {
                    remove_if_there(&entry.path())?;
                }
            } else if name.ends_with(SUFFIX) && metadata.is_file() {
                // A foreign file may have holes, and then says that it is larger than it is.
                let size = on_disk(metadata.len()).min(metadata.blocks().saturating_mul(512));
                bytes = bytes.saturating_add(size);
                // What is larger than all there may be is not ours. It goes first, and alone.
                files.push((size <= self.bytes_max, used, size, entry.path()));
            }
        }
        // Some more than is needed, so that not each file that is written asks for this again.
        let most = if bytes.saturating_add(wanted) > self.bytes_max {
            (self.bytes_max / 8 * 7).min(self.bytes_max - wanted)
        } else {
            self.bytes_max
        };
        files.sort_unstable();
        for (_, _, size, path) in files {
            if bytes <= most {
                break;
            }
            remove_if_there(&path)?;
            bytes = bytes.saturating_sub(size);
        }
        self.lock().bytes = bytes;
        metrics().artifacts_bytes.set(gauge(bytes));
        Ok(())
    }

    fn complain(&self, what: &str, error: &io::Error) {
        let mut state = self.lock();
        let now = Instant::now();
        if state
            .complained
            .is_some_and(|last| now.duration_since(last) < COMPLAIN_EVERY)
        {
            return;
        }
        state.complained = Some(now);
        drop(state);
        tracing::warn!(directory = %self.path.display(), %error, "{what}");
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that the machine code of a module depends on, besides its bytes.
fn identity(limits: Limits) -> [u8; 32] {
    let mut hash = Sha256::new();
    for field in [
        env!("CARGO_PKG_VERSION"),
        env!("SANDBOX_FINGERPRINT"),
        wasmer_types::VERSION,
        "cranelift",
        std::env::consts::ARCH,
        std::env::consts::OS,
        &engine::host_cpu(),
        // What was accepted under other limits might not be under these.
        &format!("{limits:?}"),
    ] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    hash.chain_update(MAGIC).finalize().into()
}

fn encode(name: &[u8; 32], facts: Facts, artifact_bytes: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..40].copy_from_slice(name);
    head[40] = u8::from(facts.resettable);
    head[41] = u8::from(facts.singlepass);
    head[48..].copy_from_slice(&artifact_bytes.to_le_bytes());
    head
}

/// The facts, if the head is of a file with this name and length.
fn decode(head: &[u8; HEAD_BYTES], name: &[u8; 32], artifact_bytes: u64) -> Option<Facts> {
    let facts = Facts {
        resettable: head[40] == 1,
        singlepass: head[41] == 1,
    };
    (*head == encode(name, facts, artifact_bytes)).then_some(facts)
}

/// Removes a file that another gateway may remove too.
fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn on_disk(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

fn gauge(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Part of a file's name.
fn random_hex() -> io::Result<String> {
    Ok(random::<16>()?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Puts a file with these bytes at `path`, unless there is one: then that one stays.
fn create_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let aside = folder.join(format!("{ASIDE}{}", random_hex()?));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file: File| {
            file.write_all(bytes)?;
            file.sync_all()
        });
    let linked = written.and_then(|()| match fs::hard_link(&aside, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    });
    let removed = fs::remove_file(&aside);
    linked.and(removed)
}

#[cfg(test)]
mod tests;
