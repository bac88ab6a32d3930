//! Modules on the gateway's disk.

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// Whether a file holds the text format, by its name.
pub(super) fn is_text(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("wat"))
}

/// Reads a regular file of at most `bytes_max` bytes. A file that grows while it is read is bounded
/// too.
pub(super) async fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Bytes> {
    // Opening a pipe would wait for its writer, so the kind is asked first.
    if !tokio::fs::metadata(path).await?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "this is not a regular file",
        ));
    }
    let mut bytes = Vec::new();
    File::open(path)
        .await?
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .await?;
    if bytes.len() as u64 > bytes_max {
        let message = format!("the file is larger than the {bytes_max} bytes a module may have");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_up_to_the_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("module.wasm");
        for length in [0, 1, 4096] {
            std::fs::write(&path, vec![7u8; length]).unwrap();
            assert_eq!(read_bounded(&path, 4096).await.unwrap(), vec![7u8; length]);
        }
        std::fs::write(&path, vec![7u8; 4097]).unwrap();
        let error = read_bounded(&path, 4096).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("4096"), "{error}");
        assert_eq!(read_bounded(&path, u64::MAX).await.unwrap().len(), 4097);
    }

    #[tokio::test]
    async fn what_is_not_a_file_is_refused_without_reading_it() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path(), Path::new("/dev/zero")] {
            let error = read_bounded(path, 10).await.unwrap_err();
            assert_eq!(
                error.kind(),
                io::ErrorKind::InvalidInput,
                "{}",
                path.display()
            );
        }
        let missing = read_bounded(&directory.path().join("missing"), 10)
            .await
            .unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn text_is_known_by_its_extension() {
        for (name, text) in [
            ("a.wat", true),
            ("a.WAT", true),
            ("a.wasm", false),
            ("wat", false),
            ("a.wat.wasm", false),
        ] {
            assert_eq!(is_text(Path::new(name)), text, "{name}");
        }
    }
}
