//! The salt that development makes for itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::super::secret::SaltSource;
use super::load;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_first_start_makes_a_salt_and_the_next_ones_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/api_salt");
    let source = SaltSource::File(path.clone());
    let first = source.read_or_create().unwrap();
    assert!(first == source.read_or_create().unwrap());
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let other = SaltSource::File(directory.path().join("other/api_salt"))
        .read_or_create()
        .unwrap();
    assert!(first != other);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.trim_end().len(), 64);
    assert_eq!(
        fs::read_dir(path.parent().unwrap()).unwrap().count(),
        1,
        "nothing is left aside"
    );
}

#[test]
fn concurrent_first_starts_agree() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/api_salt");
    let barrier = std::sync::Barrier::new(16);
    let salts: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    SaltSource::File(path.clone()).read_or_create().unwrap()
                })
            })
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert!(salts.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn a_salt_file_that_is_open_short_or_odd_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api_salt");
    let refused = |mode: u32, bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        SaltSource::File(path.clone())
            .read_or_create()
            .err()
            .map(|error| error.to_string())
    };
    let good = b"2f8a61c09d3be4475a1c6e0b97d2483f\n";
    assert_eq!(refused(0o600, good), None);
    assert!(refused(0o640, good).unwrap().contains("chmod 600"));
    assert!(refused(0o600, b"").unwrap().contains("holds no salt"));
    assert!(refused(0o600, b"hunter2").is_some_and(|text| !text.contains("hunter2")));
    assert!(refused(0o600, &[0xff; 64]).is_some());
}

#[test]
fn reading_the_configuration_makes_nothing() {
    // A gateway that ran in this directory may have left its salt: what counts is the change.
    let made = || {
        std::fs::metadata("data/api_salt")
            .and_then(|file| file.modified())
            .ok()
    };
    let before = made();
    let loaded = load("").unwrap();
    let SaltSource::File(path) = &loaded.config.auth.salt else {
        panic!("development makes its own salt")
    };
    assert_eq!(path.to_str(), Some("data/api_salt"));
    assert_eq!(made(), before);
}
