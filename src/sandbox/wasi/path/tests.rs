use std::fs;

use proptest::prelude::*;

use super::*;

/// `a/`, `a/b/`, `a/b/file`, `a/ü`, `top`.
fn files() -> Files {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir_all(directory.path().join("a/b")).unwrap();
    for path in ["a/b/file", "a/ü", "top"] {
        fs::write(directory.path().join(path), path).unwrap();
    }
    Files::load(directory.path()).unwrap()
}

fn look(files: &Files, from: NodeId, path: &[u8]) -> Result<NodeId, Errno> {
    RelativePath::parse(path)?.resolve(files, from)
}

/// The path that leads from the root to a node.
fn path_of(files: &Files, node: NodeId) -> String {
    let parent = files.node(node).parent;
    if parent == node {
        return String::new();
    }
    let Content::Directory(entries) = &files.node(parent).content else {
        panic!("a parent is a directory");
    };
    let entry = entries.iter().find(|entry| entry.node == node).unwrap();
    format!("{}/{}", path_of(files, parent), entry.name)
}

#[test]
fn paths_lead_where_they_say() {
    let files = files();
    for (path, target) in [
        (".", ""),
        ("./", ""),
        (".//.", ""),
        ("a", "/a"),
        ("a///", "/a"),
        ("a/b/../b/./file", "/a/b/file"),
        ("a/.//b/../../a/b/../b///./file", "/a/b/file"),
        ("a/ü", "/a/ü"),
        ("a/..", ""),
        ("a/b/../..", ""),
        ("top", "/top"),
    ] {
        let node = look(&files, files.root(), path.as_bytes());
        assert_eq!(
            node.map(|node| path_of(&files, node)),
            Ok(target.into()),
            "{path}"
        );
    }
}

#[test]
fn what_leads_nowhere_says_why() {
    let files = files();
    let long_name = "x".repeat(256);
    let just_long_name = "x".repeat(255);
    let long_path = "./".repeat(2049);
    let just_long_path = "./".repeat(2048);
    for (path, errno) in [
        (&b""[..], Errno::Noent),
        (b"missing", Errno::Noent),
        (b"A", Errno::Noent),
        (b"missing/..", Errno::Noent),
        (b"a/missing/../b", Errno::Noent),
        (b"top/", Errno::Notdir),
        (b"top/.", Errno::Notdir),
        (b"top/..", Errno::Notdir),
        (b"top/x", Errno::Notdir),
        (b"/", Errno::Notcapable),
        (b"/top", Errno::Notcapable),
        (b"..", Errno::Notcapable),
        (b"../top", Errno::Notcapable),
        (b"a/../..", Errno::Notcapable),
        (b"a/../../a", Errno::Notcapable),
        (b"top\0", Errno::Inval),
        (b"\0", Errno::Inval),
        (b"caf\xe9", Errno::Ilseq),
        (b"\xed\xa0\x80", Errno::Ilseq),
        (just_long_name.as_bytes(), Errno::Noent),
        (long_name.as_bytes(), Errno::Nametoolong),
        (long_path.as_bytes(), Errno::Nametoolong),
    ] {
        let path_shown = String::from_utf8_lossy(path);
        assert_eq!(look(&files, files.root(), path), Err(errno), "{path_shown}");
    }
    assert_eq!(
        look(&files, files.root(), just_long_path.as_bytes()),
        Ok(files.root())
    );
}

#[test]
fn a_directory_gives_nothing_above_it() {
    let files = files();
    let a = look(&files, files.root(), b"a").unwrap();
    assert_eq!(look(&files, a, b".."), Err(Errno::Notcapable));
    assert_eq!(look(&files, a, b"b/../../top"), Err(Errno::Notcapable));
    assert_eq!(look(&files, a, b"b/.."), Ok(a));
}

#[test]
fn the_parent_is_where_a_name_would_be_made() {
    for (path, parent) in [
        ("x", None),
        ("x/", None),
        ("a/x", Some("a")),
        ("a/b/x//", Some("a/b")),
    ] {
        let path = RelativePath::parse(path.as_bytes()).unwrap();
        assert_eq!(path.parent().map(|parent| parent.0), parent);
    }
}

proptest! {
    /// Whatever a path is made of, it leads below where it began or nowhere.
    #[test]
    fn no_path_escapes(path in "(a|b|file|top|missing|\\.\\.|\\.|/|ü){0,12}") {
        let files = files();
        let a = look(&files, files.root(), b"a").unwrap();
        for from in [files.root(), a] {
            if let Ok(node) = look(&files, from, path.as_bytes()) {
                let below = path_of(&files, from);
                prop_assert!(path_of(&files, node).starts_with(&below), "{}", path);
            }
        }
    }
}
