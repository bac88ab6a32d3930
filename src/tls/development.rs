//! The certificate made at the first start in development: self-signed, for this machine only.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, KeyPair};

use super::{CertificateFiles, TlsError, inspect};

/// The subject of every development certificate: production refuses it by this name.
pub const DEVELOPMENT_COMMON_NAME: &str = "Wasm Wizard development certificate";

const VALID_FOR: Duration = Duration::from_secs(365 * 24 * 3600);
/// A certificate this close to its end is made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes the pair unless it is there and still valid; says whether it did. A pair that is there but
/// was not made here is never overwritten.
pub fn ensure_development(files: &CertificateFiles) -> Result<bool, TlsError> {
    if files.cert.exists() || files.key.exists() {
        let facts = inspect(files)?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let ends = Duration::from_secs(u64::try_from(facts.not_after).unwrap_or(0));
        if !facts.development || now + RENEW_BEFORE < ends {
            return Ok(false);
        }
    }
    let (cert, key) = make()?;
    for file in [&files.cert, &files.key] {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir).map_err(|error| read_error(dir, error))?;
        }
    }
    write(&files.key, 0o600, &key)?;
    write(&files.cert, 0o644, &cert)?;
    Ok(true)
}

fn make() -> Result<(String, String), TlsError> {
    let failed = |e: rcgen::Error| TlsError::Rustls(rustls::Error::General(e.to_string()));
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params
        .distinguished_name
        .push(DnType::CommonName, DEVELOPMENT_COMMON_NAME);
    let now = SystemTime::now();
    // A day back, for clients whose clock is behind.
    params.not_before = (now - Duration::from_secs(24 * 3600)).into();
    params.not_after = (now + VALID_FOR).into();
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.self_signed(&key).map_err(failed)?;
    Ok((cert.pem(), key.serialize_pem()))
}

/// Writes through a temporary file, so that a crash leaves the old file or the new one.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    let temporary = path.with_extension("tmp");
    let attempt = || -> std::io::Result<()> {
        match std::fs::remove_file(&temporary) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    attempt().map_err(|error| read_error(path, error))
}

fn read_error(path: &Path, error: std::io::Error) -> TlsError {
    TlsError::Read {
        path: path.to_owned(),
        error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_once_private_and_for_this_machine() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles {
            cert: dir.path().join("certs/development.crt"),
            key: dir.path().join("certs/development.key"),
            ocsp: None,
            development: true,
        };
        assert!(ensure_development(&files).unwrap());
        let facts = inspect(&files).unwrap();
        assert_eq!(facts.names, ["localhost", "127.0.0.1", "::1"]);
        assert!(facts.development);
        let mode = std::fs::metadata(&files.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let before = std::fs::read(&files.cert).unwrap();
        assert!(
            !ensure_development(&files).unwrap(),
            "a second start makes none"
        );
        assert_eq!(std::fs::read(&files.cert).unwrap(), before);
    }

    #[test]
    fn half_a_pair_is_an_error_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let files = CertificateFiles {
            cert: dir.path().join("d.crt"),
            key: dir.path().join("d.key"),
            ocsp: None,
            development: true,
        };
        std::fs::write(&files.key, "mine").unwrap();
        assert!(ensure_development(&files).is_err());
        assert_eq!(std::fs::read_to_string(&files.key).unwrap(), "mine");
    }
}
