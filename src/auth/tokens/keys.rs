//! The keys that sign access tokens, and the page that publishes them.
//!
//! Operators give secrets, not keys: each is stretched to an Ed25519 seed, so that all gateways with
//! the same secret sign alike, and verify what the others signed.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, EncodingKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Keys of one gateway at the same time: the one that signs, and those that still verify.
pub const TOKEN_SECRETS_MAX: usize = 8;

/// HKDF's salt and info (RFC 5869 section 3.1): what the secret is stretched for. A change of either
/// voids all tokens.
const HKDF_SALT: &[u8] = b"wasm-wizard access tokens";
const HKDF_INFO: &[u8] = b"Ed25519 seed, version 1";

/// A secret that an Ed25519 key is derived from. Never shown.
#[derive(Clone)]
pub struct TokenSecret(Vec<u8>);

/// A key pair with its name.
pub(super) struct Key {
    /// The `kid`: the key's thumbprint (RFC 7638).
    pub(super) id: String,
    pub(super) encoding: EncodingKey,
    pub(super) decoding: DecodingKey,
    /// The public key in base64url.
    x: String,
}

/// Why a secret gives no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key can be derived from the secret of access tokens")]
pub struct NoTokenKey;

impl TokenSecret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> TokenSecret {
        TokenSecret(bytes.into())
    }

    pub(super) fn key(&self) -> Result<Key, NoTokenKey> {
        struct Seed;
        impl KeyType for Seed {
            fn len(&self) -> usize {
                32
            }
        }
        let mut seed = [0; 32];
        Salt::new(HKDF_SHA256, HKDF_SALT)
            .extract(&self.0)
            .expand(&[HKDF_INFO], Seed)
            .and_then(|okm| okm.fill(&mut seed))
            .map_err(|_| NoTokenKey)?;
        Key::from_seed(&seed)
    }
}

impl PartialEq for TokenSecret {
    fn eq(&self, other: &TokenSecret) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenSecret {}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(…)")
    }
}

impl Key {
    pub(super) fn from_seed(seed: &[u8; 32]) -> Result<Key, NoTokenKey> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoTokenKey)?;
        let public = pair.public_key().as_ref();
        let x = URL_SAFE_NO_PAD.encode(public);
        // RFC 7638 section 3.2 with the members of RFC 8037 section 2, in this order and spelling.
        let thumbprint = Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#));
        Ok(Key {
            id: URL_SAFE_NO_PAD.encode(thumbprint),
            encoding: EncodingKey::from_ed_der(seed),
            decoding: DecodingKey::from_ed_der(public),
            x,
        })
    }
}

/// The public keys as a JWK Set (RFC 7517 section 5, RFC 8037 section 2).
pub(super) fn jwks(keys: &[Key]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            json!({ "kty": "OKP", "crv": "Ed25519", "x": key.x, "kid": key.id, "alg": "EdDSA", "use": "sig" })
        })
        .collect();
    let mut text = json!({ "keys": keys }).to_string();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_the_specification() {
        // RFC 8037 appendix A: the key of A.1, its thumbprint in A.3.
        let seed = URL_SAFE_NO_PAD
            .decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
            .unwrap();
        let key = Key::from_seed(&seed.try_into().unwrap()).unwrap();
        assert_eq!(key.x, "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        assert_eq!(key.id, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
        // The signature of A.4, by the library with our cryptography.
        super::super::provider::install();
        let message = b"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
        let signed =
            jsonwebtoken::crypto::sign(message, &key.encoding, jsonwebtoken::Algorithm::EdDSA);
        assert_eq!(
            signed.unwrap(),
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
        );
    }

    #[test]
    fn a_secret_gives_the_same_key_each_time_and_another_secret_another() {
        let secret = |text: &str| TokenSecret::new(text).key().unwrap();
        let one = secret("2f8a61c09d3be4475a1c6e0b97d2483f");
        assert_eq!(one.id, secret("2f8a61c09d3be4475a1c6e0b97d2483f").id);
        assert_ne!(one.id, secret("3f8a61c09d3be4475a1c6e0b97d2483f").id);
        assert_eq!(
            format!("{:?}", TokenSecret::new("hunter2")),
            "TokenSecret(…)"
        );
    }

    #[test]
    fn only_what_is_public_is_published() {
        let secret = TokenSecret::new("2f8a61c09d3be4475a1c6e0b97d2483f");
        let page = jwks(&[secret.key().unwrap(), TokenSecret::new("x").key().unwrap()]);
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        let keys = page["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 2);
        for key in keys {
            let mut names: Vec<_> = key.as_object().unwrap().keys().cloned().collect();
            names.sort();
            assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x"]);
        }
    }
}
