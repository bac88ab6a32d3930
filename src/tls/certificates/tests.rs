use super::*;

const ALL: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::ED25519,
];

fn pair_of(
    dir: &Path,
    stem: &str,
    names: &[&str],
    kind: &'static rcgen::SignatureAlgorithm,
) -> CertificateFiles {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let params = rcgen::CertificateParams::new(names).unwrap();
    let key = rcgen::KeyPair::generate_for(kind).unwrap();
    let cert = params.self_signed(&key).unwrap();
    let files = CertificateFiles {
        cert: dir.join(format!("{stem}.crt")),
        key: dir.join(format!("{stem}.key")),
        ocsp: None,
        development: false,
    };
    std::fs::write(&files.cert, cert.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

fn pair(dir: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
    pair_of(dir, stem, names, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn load(certificates: &[CertificateFiles]) -> Result<Certificates, TlsError> {
    let files = TlsFiles {
        certificates: certificates.to_vec(),
        clients: None,
    };
    Ok(Certificates {
        set: ArcSwap::from_pointee(Set::load(Arc::new(files))?),
    })
}

fn leaf(all: &Certificates, name: Option<&str>, schemes: &[SignatureScheme]) -> Vec<u8> {
    all.find(name, schemes).unwrap().cert[0].to_vec()
}

#[test]
fn the_name_chooses_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let first = pair(dir.path(), "a", &["a.example.com"]);
    let second = pair(dir.path(), "b", &["b.example.com", "*.b.example.com"]);
    let all = load(&[first, second]).unwrap();
    let a = leaf(&all, Some("a.example.com"), ALL);
    let b = leaf(&all, Some("B.example.com"), ALL);
    assert_ne!(a, b);
    assert_eq!(leaf(&all, Some("x.b.example.com"), ALL), b);
    assert_eq!(
        leaf(&all, Some("x.y.b.example.com"), ALL),
        a,
        "a wildcard is one label"
    );
    assert_eq!(
        leaf(&all, Some("unknown.test"), ALL),
        a,
        "the first is the default"
    );
    assert_eq!(leaf(&all, None, ALL), a);
}

#[test]
fn the_kind_of_key_is_what_the_client_understands() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["a.test", "*.a.test"];
    let ecdsa = pair(dir.path(), "ecdsa", &names);
    let other = pair_of(dir.path(), "ed25519", &names, &rcgen::PKCS_ED25519);
    let all = load(&[ecdsa, other]).unwrap();
    let by = |name, scheme| leaf(&all, name, &[scheme]);
    let (ecdsa, ed25519) = (
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ED25519,
    );
    for name in [Some("a.test"), Some("x.a.test"), Some("unknown.test"), None] {
        assert_ne!(by(name, ecdsa), by(name, ed25519), "{name:?}");
        assert_eq!(
            leaf(&all, name, ALL),
            by(name, ecdsa),
            "the first that fits"
        );
        assert_eq!(by(name, SignatureScheme::RSA_PKCS1_SHA256), by(name, ecdsa));
    }
}

#[test]
fn a_broken_pair_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let good = pair(dir.path(), "good", &["good.test"]);
    let other = pair(dir.path(), "other", &["other.test"]);
    let mixed = CertificateFiles {
        key: other.key.clone(),
        ..good.clone()
    };
    assert!(matches!(load(&[mixed]), Err(TlsError::KeyMismatch { .. })));
    let swapped = CertificateFiles {
        cert: good.key.clone(),
        key: good.cert.clone(),
        ..good.clone()
    };
    let error = load(&[swapped]).unwrap_err().to_string();
    assert!(error.contains("holds no certificate"), "{error}");
    let missing = CertificateFiles {
        cert: dir.path().join("no"),
        ..other
    };
    assert!(matches!(load(&[missing]), Err(TlsError::Read { .. })));
    assert!(matches!(load(&[]), Err(TlsError::None)));
    std::fs::write(&good.cert, b"-----BEGIN CERTIFICATE-----\nAAAA").unwrap();
    assert!(matches!(
        load(std::slice::from_ref(&good)),
        Err(TlsError::Content { .. })
    ));
    std::fs::write(&good.cert, vec![b'x'; 2 << 20]).unwrap();
    assert!(matches!(load(&[good]), Err(TlsError::Read { .. })));
}

#[test]
fn a_staple_must_be_one_of_this_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let good = pair(dir.path(), "good", &["good.test"]);
    let with = |bytes: &[u8]| {
        let ocsp = dir.path().join("staple");
        std::fs::write(&ocsp, bytes).unwrap();
        load(&[CertificateFiles {
            ocsp: Some(ocsp),
            ..good.clone()
        }])
    };
    let chain = chain(&good.cert, &read(&good.cert).unwrap()).unwrap();
    let (_, certificate) = X509Certificate::from_der(&chain[0]).unwrap();
    let mut fine = vec![0x30, 0x81, 0x80, 0x0a, 1, 0, 7, 7];
    fine.extend(certificate.raw_serial());
    let loaded = with(&fine).unwrap();
    assert_eq!(
        loaded.find(None, ALL).unwrap().ocsp.as_deref(),
        Some(&fine[..])
    );
    for (bytes, said) in [
        (&b""[..], "no OCSP response"),
        (b"-----BEGIN", "no OCSP response"),
        (&[0x30, 3, 0x0a, 1, 6], "failed"),
        (&[0x30, 0xff], "failed"),
        (&[0x30, 5, 0x0a, 1, 0, 9, 9], "another certificate"),
    ] {
        let error = with(bytes).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
