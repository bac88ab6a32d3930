use super::*;

fn pair(dir: &Path, stem: &str, names: &[&str]) -> CertificateFiles {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let params = rcgen::CertificateParams::new(names).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
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

fn load(certificates: &[CertificateFiles]) -> Result<Vec<Supplied>, TlsError> {
    Files(certificates.to_vec()).supply()
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
    let error = load(&[swapped]).err().unwrap().to_string();
    assert!(error.contains("holds no certificate"), "{error}");
    let missing = CertificateFiles {
        cert: dir.path().join("no"),
        ..other
    };
    assert!(matches!(load(&[missing]), Err(TlsError::Read { .. })));
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
    assert_eq!(loaded[0].key.ocsp.as_deref(), Some(&fine[..]));
    for (bytes, said) in [
        (&b""[..], "no OCSP response"),
        (b"-----BEGIN", "no OCSP response"),
        (&[0x30, 3, 0x0a, 1, 6], "failed"),
        (&[0x30, 0xff], "failed"),
        (&[0x30, 5, 0x0a, 1, 0, 9, 9], "another certificate"),
    ] {
        let error = with(bytes).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}
