//! What is read back, and all that must not be.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use super::super::ModuleHash;
use super::super::check::{Facts, Limits};
use super::super::settings::ArtifactSettings;
use super::{ASIDE, ASIDE_KEPT, ArtifactKey, ArtifactStore, BLOCK_BYTES, HEAD_BYTES, SUFFIX};

const LIMITS: Limits = Limits {
    wasm_bytes_max: 1 << 20,
    table_elements_max: 1000,
};
const FACTS: Facts = Facts {
    resettable: true,
    singlepass: false,
};
const MOST: u64 = 1 << 20;

struct Case {
    folder: TempDir,
    settings: ArtifactSettings,
}

fn case() -> Case {
    let folder = tempfile::tempdir().unwrap();
    let settings = ArtifactSettings {
        directory: folder.path().join("data/artifacts"),
        bytes_max: MOST,
        key: None,
    };
    Case { folder, settings }
}

fn hash(number: u64) -> ModuleHash {
    ModuleHash::of(&number.to_le_bytes())
}

impl Case {
    fn open(&self) -> ArtifactStore {
        ArtifactStore::open(Some(&self.settings), LIMITS)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.settings.directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_string_lossy().ends_with(SUFFIX))
            .collect();
        files.sort();
        files
    }

    fn key(&self) -> PathBuf {
        self.settings.directory.join("key")
    }
}

fn read(store: &ArtifactStore, number: u64) -> Option<Vec<u8>> {
    let compiled = store.read(&hash(number), MOST)?;
    assert_eq!(compiled.facts, FACTS);
    Some(compiled.artifact.to_vec())
}

fn mode(path: &PathBuf) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_was_written_is_read_by_the_next_and_is_private() {
    let case = case();
    let store = case.open();
    assert_eq!(read(&store, 1), None);
    store.write(&hash(1), FACTS, b"code");
    store.write(&hash(2), FACTS, b"");
    assert_eq!(read(&store, 1), Some(b"code".to_vec()));
    let next = case.open();
    assert_eq!(read(&next, 1), Some(b"code".to_vec()));
    assert_eq!(read(&next, 2), Some(Vec::new()));
    assert_eq!(mode(&case.settings.directory), 0o700);
    assert_eq!(mode(&case.key()), 0o600);
    assert!(case.files().iter().all(|file| mode(file) == 0o600));
    // Written again, it is replaced.
    next.write(&hash(1), FACTS, b"other code");
    assert_eq!(read(&store, 1), Some(b"other code".to_vec()));
}

#[test]
fn a_file_that_was_changed_anywhere_is_deleted_and_not_read() {
    let case = case();
    let store = case.open();
    store.write(&hash(1), FACTS, b"code that is run");
    let file = case.files().remove(0);
    let whole = fs::read(&file).unwrap();
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&file, changed).unwrap();
        assert_eq!(read(&store, 1), None, "byte {at}");
        assert!(!file.exists(), "byte {at}");
    }
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        assert_eq!(read(&store, 1), None, "{length} bytes");
        assert!(!file.exists(), "{length} bytes");
    }
    fs::write(&file, [&whole[..], b"x"].concat()).unwrap();
    assert_eq!(read(&store, 1), None);
    fs::write(&file, &whole).unwrap();
    assert!(read(&store, 1).is_some());
    // One that is larger than what is loaded is not read at all.
    assert!(store.read(&hash(1), 3).is_none());
}

#[test]
fn a_file_under_another_name_or_key_or_for_another_sandbox_is_not_read() {
    let case = case();
    let store = case.open();
    store.write(&hash(1), FACTS, b"one");
    let one = case.files().remove(0);
    store.write(&hash(2), FACTS, b"two");
    let two = case.files().into_iter().find(|file| *file != one).unwrap();
    fs::rename(&one, &two).unwrap();
    assert_eq!(read(&store, 2), None);
    assert!(case.files().is_empty());

    store.write(&hash(1), FACTS, b"one");
    let other_limits = Limits {
        table_elements_max: 1001,
        ..LIMITS
    };
    let other = ArtifactStore::open(Some(&case.settings), other_limits);
    assert_eq!(read(&other, 1), None);
    // That one was not ours to delete: it is another's, under its own name.
    assert_eq!(read(&store, 1), Some(b"one".to_vec()));

    let foreign = ArtifactSettings {
        key: Some(ArtifactKey::new(&"k".repeat(32))),
        ..case.settings.clone()
    };
    let foreign = ArtifactStore::open(Some(&foreign), LIMITS);
    assert_eq!(read(&foreign, 1), None);
    assert!(case.files().is_empty());
}

#[test]
fn what_is_no_file_of_ours_is_not_read() {
    let case = case();
    let store = case.open();
    store.write(&hash(1), FACTS, b"code");
    let file = case.files().remove(0);
    let aside = case.folder.path().join("elsewhere");
    fs::rename(&file, &aside).unwrap();
    symlink(&aside, &file).unwrap();
    assert_eq!(read(&store, 1), None);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    fs::write(file.join("something"), "x").unwrap();
    assert_eq!(read(&store, 1), None);
    assert!(!file.exists(), "it is in nobody's way any more");
    fs::rename(&aside, &file).unwrap();
    assert_eq!(read(&store, 1), Some(b"code".to_vec()));
}

#[test]
fn a_key_that_is_not_private_is_replaced_and_voids_all_files() {
    for spoil in [
        (|path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap())
            as fn(&PathBuf),
        |path| fs::write(path, "short").unwrap(),
        |path| fs::write(path, [7; 33]).unwrap(),
        |path| {
            let aside = path.with_extension("moved");
            fs::rename(path, &aside).unwrap();
            symlink(&aside, path).unwrap();
        },
    ] {
        let case = case();
        case.open().write(&hash(1), FACTS, b"code");
        let before = fs::read(case.key()).unwrap();
        assert_eq!(before.len(), 32);
        spoil(&case.key());
        let store = case.open();
        assert_eq!(mode(&case.key()), 0o600);
        assert!(fs::symlink_metadata(case.key()).unwrap().is_file());
        let after = fs::read(case.key()).unwrap();
        assert_eq!(after.len(), 32);
        assert_ne!(after, before);
        assert_eq!(read(&store, 1), None);
        store.write(&hash(1), FACTS, b"code");
        assert_eq!(read(&case.open(), 1), Some(b"code".to_vec()));
    }
}

#[test]
fn the_longest_unused_go_when_there_is_no_room() {
    let mut case = case();
    // Room for ten files of two blocks each.
    case.settings.bytes_max = 20 * BLOCK_BYTES;
    let artifact = vec![1; 2 * BLOCK_BYTES as usize - HEAD_BYTES - 32];
    let store = case.open();
    for number in 0..10 {
        store.write(&hash(number), FACTS, &artifact);
        // As if it had been a while ago, the first the longest.
        let age = Duration::from_secs(1000 - number);
        let file = store.open.as_ref().unwrap();
        File::open(file.file(&file.name(&hash(number))))
            .unwrap()
            .set_modified(SystemTime::now() - age)
            .unwrap();
    }
    assert_eq!(case.files().len(), 10);
    // Read, so it is not the longest unused any more.
    assert!(read(&store, 0).is_some());
    store.write(&hash(10), FACTS, &artifact);
    assert!(read(&store, 0).is_some());
    assert!(read(&store, 10).is_some());
    assert_eq!(read(&store, 1), None);
    assert!(read(&store, 9).is_some());
    // What is larger than all there may be is not written, and moves nothing.
    let files = case.files();
    store.write(&hash(11), FACTS, &vec![1; MOST as usize]);
    assert_eq!(case.files(), files);
    // A smaller bound holds from the next start.
    case.settings.bytes_max = 8 * BLOCK_BYTES;
    case.open();
    assert_eq!(case.files().len(), 3);
}

#[test]
fn a_foreign_file_that_is_or_claims_to_be_huge_costs_no_other() {
    let mut case = case();
    case.settings.bytes_max = 20 * BLOCK_BYTES;
    let store = case.open();
    for number in 0..3 {
        store.write(&hash(number), FACTS, b"code");
    }
    let holes = case.settings.directory.join(format!("holes{SUFFIX}"));
    File::create(&holes).unwrap().set_len(1 << 38).unwrap();
    let whole = case.settings.directory.join(format!("whole{SUFFIX}"));
    fs::write(&whole, vec![1; 21 * BLOCK_BYTES as usize]).unwrap();
    // On the disk, so that what it takes there is known whatever the filesystem.
    File::open(&whole).unwrap().sync_all().unwrap();
    let next = case.open();
    assert!((0..3).all(|number| read(&next, number).is_some()));
    assert!(!whole.exists(), "it leaves no room for ours");
}

#[test]
fn what_was_never_finished_is_removed_when_it_is_old() {
    let case = case();
    case.open();
    let (old, young) = (
        case.settings.directory.join(format!("{ASIDE}old")),
        case.settings.directory.join(format!("{ASIDE}young")),
    );
    for path in [&old, &young] {
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(path)
            .unwrap();
    }
    File::open(&old)
        .unwrap()
        .set_modified(SystemTime::now() - 2 * ASIDE_KEPT)
        .unwrap();
    // Foreign, and no reason to do without the folder.
    fs::create_dir(case.settings.directory.join(format!("{ASIDE}directory"))).unwrap();
    assert!(case.open().open.is_some());
    assert!(!old.exists() && young.exists());
}

#[test]
fn a_folder_that_can_not_be_used_is_done_without() {
    let off = ArtifactStore::open(None, LIMITS);
    off.write(&hash(1), FACTS, b"code");
    assert_eq!(read(&off, 1), None);

    let mut case = case();
    // A file where the folder should be.
    fs::write(case.folder.path().join("data"), "x").unwrap();
    let none = case.open();
    none.write(&hash(1), FACTS, b"code");
    assert_eq!(read(&none, 1), None);

    case.settings.directory = case.folder.path().join("gone");
    let store = case.open();
    fs::remove_dir_all(&case.settings.directory).unwrap();
    store.write(&hash(1), FACTS, b"code");
    assert_eq!(read(&store, 1), None);
}

#[test]
fn several_gateways_share_a_folder() {
    let mut case = case();
    // So small that they are always in each other's way.
    case.settings.bytes_max = 12 * BLOCK_BYTES;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each makes the key, or finds another's.
                let store = case.open();
                for round in 0..200_u64 {
                    let number = round % 16;
                    let artifact = vec![number as u8; 5000];
                    store.write(&hash(number), FACTS, &artifact);
                    if let Some(found) = read(&store, (round * 7) % 16) {
                        assert_eq!(found, vec![((round * 7) % 16) as u8; 5000]);
                    }
                }
            });
        }
    });
    // Nothing was taken for forged, so something is left, and it is right.
    let store = case.open();
    assert!(!case.files().is_empty());
    assert!((0..16).any(|number| read(&store, number).is_some()));
    assert!(case.files().len() <= 6 + 4);
}
