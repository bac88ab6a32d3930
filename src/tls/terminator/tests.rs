use std::path::Path;

use super::super::source::tests::{Made, made};
use super::super::{CertificateFiles, ClientCertificateMode, TlsFiles};
use super::*;

/// Makes a certificate of its own authority at these paths.
fn make(files: &CertificateFiles) {
    let made = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).unwrap();
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
}

fn files(dir: &Path) -> TlsFiles {
    let pair = CertificateFiles {
        cert: dir.join("a.crt"),
        key: dir.join("a.key"),
        ocsp: None,
        development: false,
    };
    make(&pair);
    let ca = dir.join("ca.crt");
    std::fs::copy(&pair.cert, &ca).unwrap();
    TlsFiles {
        certificates: vec![pair],
        clients: Some(ClientCertificates {
            ca,
            mode: ClientCertificateMode::Required,
        }),
    }
}

fn set(watched: &Watched) -> Arc<Set> {
    watched.terminator.certificates.set.load_full()
}

#[test]
fn changed_files_are_taken_over_once_they_have_settled() {
    let dir = tempfile::tempdir().unwrap();
    let files = files(dir.path());
    let terminator = Terminator::new("test-watch".into(), files.clone()).unwrap();
    let mut watched = Watched::new(Arc::new(terminator));
    let first = set(&watched);
    let handshakes = watched.terminator.handshakes.load_full();
    watched.look();
    watched.look();
    assert!(Arc::ptr_eq(&set(&watched), &first), "nothing has changed");

    let pair = &files.certificates[0];
    std::fs::write(&pair.cert, "broken").unwrap();
    for _ in 0..4 {
        watched.look();
    }
    assert!(Arc::ptr_eq(&set(&watched), &first), "the old one stays");

    make(pair);
    watched.look();
    assert!(
        Arc::ptr_eq(&set(&watched), &first),
        "it may still be written"
    );
    watched.look();
    let second = set(&watched);
    assert!(!Arc::ptr_eq(&second, &first));
    let same = watched.terminator.handshakes.load_full();
    assert!(Arc::ptr_eq(&same, &handshakes), "tickets stay good");

    let ca = files.clients.as_ref().unwrap();
    std::fs::copy(&pair.cert, &ca.ca).unwrap();
    watched.look();
    watched.look();
    let other = watched.terminator.handshakes.load_full();
    assert!(
        !Arc::ptr_eq(&other, &handshakes),
        "tickets of the old authority are void"
    );
    let page = metrics().render().unwrap();
    let cert = pair.cert.display();
    let line = format!(
        "wasmwiz_tls_certificate_expiry_timestamp_seconds{{file=\"{cert}\",listener=\"test-watch\"}}"
    );
    assert!(page.contains(&line), "{page}");
}

#[test]
fn authorities_must_be_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(dir.path());
    let clients = files.clients.as_mut().unwrap();
    std::fs::write(&clients.ca, "none").unwrap();
    let error = Terminator::new("test".into(), files).err().unwrap();
    assert!(
        error.to_string().contains("holds no certificate"),
        "{error}"
    );
}

#[test]
fn a_source_of_another_kind_is_watched_as_files_are() {
    let one = || vec![made(&["a.test"], &rcgen::PKCS_ECDSA_P256_SHA256)];
    let source = Arc::new(Made::new(one()));
    let tls = Tls {
        source: Arc::clone(&source) as Arc<_>,
        clients: None,
    };
    let terminator = Terminator::new("test-source".into(), tls).unwrap();
    let mut watched = Watched::new(Arc::new(terminator));
    let first = set(&watched);
    watched.look();
    watched.look();
    assert!(Arc::ptr_eq(&set(&watched), &first), "nothing has changed");
    source.change(Vec::new());
    watched.look();
    watched.look();
    assert!(Arc::ptr_eq(&set(&watched), &first), "nothing is no change");
    source.change(one());
    watched.look();
    watched.look();
    assert!(!Arc::ptr_eq(&set(&watched), &first));
}
