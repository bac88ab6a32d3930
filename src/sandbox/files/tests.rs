use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use tempfile::TempDir;

use super::*;

fn tree(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    directory
}

fn refused(directory: &Path) -> String {
    Files::load(directory).unwrap_err().to_string()
}

/// Paths and contents, in the order of the tree.
fn listed(files: &Files, at: NodeId, path: &str, list: &mut Vec<(String, String, u64)>) {
    match &files.node(at).content {
        Content::File(bytes) => {
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            list.push((path.to_owned(), text, at.inode()));
        }
        Content::Directory(entries) => {
            list.push((format!("{path}/"), String::new(), at.inode()));
            for entry in entries {
                assert_eq!(files.node(entry.node).parent, at);
                assert_eq!(files.child(entries, &entry.name), Some(entry.node));
                let path = format!("{path}/{}", entry.name);
                listed(files, entry.node, &path, list);
            }
        }
    }
}

fn list(files: &Files) -> Vec<(String, String, u64)> {
    let mut list = Vec::new();
    listed(files, files.root(), "", &mut list);
    list
}

#[test]
fn a_tree_holds_what_its_directory_holds_sorted() {
    let written = [
        ("z", "last"),
        ("a/b/c", "deep"),
        ("a/B", ""),
        ("größe", "1"),
    ];
    let directory = tree(&written);
    fs::create_dir(directory.path().join("empty")).unwrap();
    let files = Files::load(directory.path()).unwrap();
    let entry = |path: &str, text: &str, inode| (path.to_owned(), text.to_owned(), inode);
    let expected = [
        entry("/", "", 1),
        entry("/a/", "", 2),
        entry("/a/B", "", 3),
        entry("/a/b/", "", 4),
        entry("/a/b/c", "deep", 5),
        entry("/empty/", "", 6),
        entry("/größe", "1", 7),
        entry("/z", "last", 8),
    ];
    assert_eq!(list(&files), expected);
    assert_eq!(files.bytes(), 9);
    assert_eq!(files.node(files.root()).parent, files.root());
    let Content::Directory(entries) = &files.node(files.root()).content else {
        panic!("the root is a directory");
    };
    assert_eq!(files.child(entries, "A"), None);

    // What is loaded stays, and reading it again gives the same numbers.
    let again = Files::load(tree(&written).path()).unwrap();
    fs::remove_dir_all(directory.path()).unwrap();
    assert_eq!(list(&files), expected);
    assert_eq!(list(&again).len(), expected.len() - 1);
}

#[test]
fn a_link_leads_to_a_file_of_the_same_tree_or_nowhere() {
    let directory = tree(&[("a/file", "content"), ("..2026_01/hidden", "h")]);
    let at = |name: &str| directory.path().join(name);
    symlink("a/file", at("relative")).unwrap();
    symlink(at("a/file"), at("absolute")).unwrap();
    symlink("../relative", at("a/twice")).unwrap();
    symlink("..2026_01", at("..data")).unwrap();
    symlink("..data/hidden", at("mounted")).unwrap();
    let names: Vec<_> = list(&Files::load(directory.path()).unwrap())
        .into_iter()
        .map(|(path, content, _)| format!("{path}={content}"))
        .collect();
    assert_eq!(
        names,
        [
            "/=",
            "/a/=",
            "/a/file=content",
            "/a/twice=content",
            "/absolute=content",
            "/mounted=h",
            "/relative=content"
        ]
    );

    let outside = tree(&[("secret", "s")]);
    for target in [
        outside.path().join("secret"),
        PathBuf::from("/etc/passwd"),
        PathBuf::from("../../../../../../etc/passwd"),
        PathBuf::from("missing"),
        PathBuf::from("a"),
        PathBuf::from("."),
        PathBuf::from("bad"),
    ] {
        symlink(&target, at("bad")).unwrap();
        let message = refused(directory.path());
        assert!(
            message.contains("/bad: is a link"),
            "{}: {message}",
            target.display()
        );
        fs::remove_file(at("bad")).unwrap();
    }
    // The directory itself may be reached through one.
    let link = outside.path().join("link");
    symlink(directory.path(), &link).unwrap();
    assert_eq!(list(&Files::load(&link).unwrap()).len(), 7);
}

#[test]
fn what_is_no_file_and_no_directory_is_refused() {
    let directory = tree(&[("file", "")]);
    assert!(refused(&directory.path().join("file")).contains("file: is not a directory"));
    assert!(refused(&directory.path().join("missing")).contains("missing: "));
    let _socket = UnixListener::bind(directory.path().join("socket")).unwrap();
    assert!(refused(directory.path()).contains("socket: is neither a file nor a directory"));
}

#[test]
fn names_must_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let directory = tree(&[]);
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    fs::write(directory.path().join(name), "").unwrap();
    assert!(refused(directory.path()).contains("not UTF-8"));
}

#[test]
fn a_tree_is_bounded_in_depth_size_and_number() {
    let directory = tree(&[]);
    let mut deep = directory.path().to_owned();
    for _ in 0..FILES_DEPTH_MAX {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "").unwrap();
    Files::load(directory.path()).unwrap();
    fs::create_dir(deep.join("one_more")).unwrap();
    assert!(refused(directory.path()).contains("one_more: is nested too deeply"));

    // Files with holes take no room on the disk.
    let directory = tree(&[]);
    let half = FILES_BYTES_MAX / 2;
    for (name, bytes) in [("a", half), ("b", half), ("c", 0)] {
        let file = File::create(directory.path().join(name)).unwrap();
        file.set_len(bytes).unwrap();
    }
    assert_eq!(
        Files::load(directory.path()).unwrap().bytes(),
        FILES_BYTES_MAX
    );
    fs::write(directory.path().join("c"), "1").unwrap();
    assert!(refused(directory.path()).contains("c: is too large"));

    let directory = tree(&[("d/file", "")]);
    for n in 2..FILES_ENTRIES_MAX {
        File::create(directory.path().join(n.to_string())).unwrap();
    }
    assert_eq!(
        list(&Files::load(directory.path()).unwrap()).len(),
        FILES_ENTRIES_MAX + 1
    );
    fs::write(directory.path().join("d/more"), "").unwrap();
    assert!(refused(directory.path()).contains("is one too many"));
}
