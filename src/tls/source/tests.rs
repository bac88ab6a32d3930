//! A source for tests.

use std::sync::Mutex;

use super::*;

/// A source without files.
pub struct Made(Mutex<(u64, Vec<Supplied>)>);

impl Made {
    pub fn new(supplied: Vec<Supplied>) -> Made {
        Made(Mutex::new((0, supplied)))
    }

    pub fn change(&self, supplied: Vec<Supplied>) {
        let mut held = self.0.lock().unwrap();
        *held = (held.0 + 1, supplied);
    }
}

impl Source for Made {
    fn supply(&self) -> Result<Vec<Supplied>, TlsError> {
        Ok(self.0.lock().unwrap().1.clone())
    }

    fn version(&self) -> Version {
        Version::of(&self.0.lock().unwrap().0)
    }
}

/// A certificate for these names.
pub fn made(names: &[&str], kind: &'static rcgen::SignatureAlgorithm) -> Supplied {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let key = rcgen::KeyPair::generate_for(kind).unwrap();
    let params = rcgen::CertificateParams::new(names.clone()).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let certified = CertifiedKey::from_der(
        vec![certificate.der().clone()],
        key.serialize_der().try_into().unwrap(),
        &rustls::crypto::ring::default_provider(),
    );
    Supplied {
        key: Arc::new(certified.unwrap()),
        facts: CertificateFacts {
            names,
            not_before: 0,
            not_after: 4_000_000_000,
            development: false,
        },
        origin: "made".to_owned(),
    }
}
