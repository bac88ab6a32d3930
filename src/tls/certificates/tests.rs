use super::super::source::tests::{Made, made};
use super::*;

const ALL: &[SignatureScheme] = &[
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::ED25519,
];

fn load(supplied: Vec<Supplied>) -> Result<Certificates, TlsError> {
    let from = Arc::new(Tls {
        source: Arc::new(Made::new(supplied)),
        clients: None,
    });
    Ok(Certificates {
        set: ArcSwap::from_pointee(Set::load(from)?),
    })
}

fn leaf(all: &Certificates, name: Option<&str>, schemes: &[SignatureScheme]) -> Vec<u8> {
    all.find(name, schemes).unwrap().cert[0].to_vec()
}

#[test]
fn the_name_chooses_the_certificate() {
    let first = made(&["a.example.com"], &rcgen::PKCS_ECDSA_P256_SHA256);
    let names = ["b.example.com", "*.b.example.com"];
    let second = made(&names, &rcgen::PKCS_ECDSA_P256_SHA256);
    let all = load(vec![first, second]).unwrap();
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
fn a_listener_has_a_certificate() {
    assert!(matches!(load(Vec::new()), Err(TlsError::None)));
}

#[test]
fn the_kind_of_key_is_what_the_client_understands() {
    let names = ["a.test", "*.a.test"];
    let ecdsa = made(&names, &rcgen::PKCS_ECDSA_P256_SHA256);
    let other = made(&names, &rcgen::PKCS_ED25519);
    let all = load(vec![ecdsa, other]).unwrap();
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
