//! API keys: `ww_` and 43 characters of base64url, which are 32 random bytes.
//!
//! A key is stored as its HMAC-SHA-256 under the salt. With 256 random bits there is nothing to
//! guess, so no slow hash is needed; the salt makes a stolen database useless for testing keys.
//!
//! Keys that were imported from the earlier service are `ww_` and 32 letters and digits, 190 random bits.
//! That service kept their SHA-256, so they are stored as the HMAC of that.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// What every key starts with.
pub const KEY_MARK: &str = "ww_";

/// Length of a key: the mark and 32 bytes in base64url.
pub const KEY_BYTES: usize = KEY_MARK.len() + 43;

/// Length of a key of the earlier service.
const LEGACY_KEY_BYTES: usize = KEY_MARK.len() + 32;

/// Characters of a key that are stored in the clear, the mark included. They give away 48 of its
/// 256 bits.
pub const PREFIX_BYTES: usize = 11;

/// Fewest bytes of a salt.
pub const SALT_BYTES_MIN: usize = 32;

/// The secret under which keys are hashed. Never shown.
#[derive(Clone)]
pub struct Salt {
    bytes: Vec<u8>,
    /// The state after the salt went in: a request starts from a copy of it.
    mac: Hmac<Sha256>,
}

/// The salt is too short to protect the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the salt must have at least {SALT_BYTES_MIN} characters")]
pub struct SaltTooShort;

/// The operating system gave no random bytes.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the operating system gave no random bytes: {0}")]
pub struct NoRandomness(String);

/// A key just made.
pub struct NewKey {
    /// `ww_…`, shown once.
    pub secret: String,
    /// The first characters, stored in the clear so that people can tell keys apart.
    pub prefix: String,
    /// HMAC-SHA-256 of the secret under the salt.
    pub hash: [u8; 32],
}

impl Salt {
    /// A salt of at least [`SALT_BYTES_MIN`] bytes, taken as they are.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Salt, SaltTooShort> {
        let bytes = bytes.into();
        if bytes.len() < SALT_BYTES_MIN {
            return Err(SaltTooShort);
        }
        // HMAC takes a key of any length, so this fails never; the short salt is the nearest error.
        let mac = Hmac::new_from_slice(&bytes).map_err(|_| SaltTooShort)?;
        Ok(Salt { bytes, mac })
    }

    /// A new random salt: 32 bytes as 64 hexadecimal digits.
    pub fn generate() -> Result<Salt, NoRandomness> {
        let digits: String = random()?.iter().map(|byte| format!("{byte:02x}")).collect();
        Salt::new(digits).map_err(|error| NoRandomness(error.to_string()))
    }

    /// The salt itself, for writing a generated one to a file. Keep it out of logs.
    pub fn reveal(&self) -> &[u8] {
        &self.bytes
    }

    /// The hash under which a key is stored.
    pub(super) fn hash(&self, key: &str) -> [u8; 32] {
        if is_legacy(key) {
            return self.legacy_hash(&Sha256::digest(key).into());
        }
        let mut mac = self.mac.clone();
        mac.update(key.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// The hash under which a key of the earlier service is stored, of which only the SHA-256 is known.
    /// What goes in begins unlike any key, so no key has the hash of another's digest.
    pub(super) fn legacy_hash(&self, sha256: &[u8; 32]) -> [u8; 32] {
        let mut mac = self.mac.clone();
        mac.update(b"sha256\0");
        mac.update(sha256);
        mac.finalize().into_bytes().into()
    }
}

impl PartialEq for Salt {
    fn eq(&self, other: &Salt) -> bool {
        self.bytes.ct_eq(&other.bytes).into()
    }
}

impl Eq for Salt {}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(…)")
    }
}

impl NewKey {
    /// A new random key, hashed under this salt.
    pub fn generate(salt: &Salt) -> Result<NewKey, NoRandomness> {
        let secret = format!("{KEY_MARK}{}", URL_SAFE_NO_PAD.encode(random()?));
        let prefix = secret.chars().take(PREFIX_BYTES).collect();
        let hash = salt.hash(&secret);
        Ok(NewKey {
            secret,
            prefix,
            hash,
        })
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Whether a text has the form of a key. Others are not worth a hash, let alone a query.
pub(super) fn has_key_form(text: &str) -> bool {
    let Some(random) = text.strip_prefix(KEY_MARK) else {
        return false;
    };
    let is_ours = text.len() == KEY_BYTES
        && random
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    is_ours || is_legacy(text)
}

/// Whether a text has the form of a key of the earlier service.
fn is_legacy(text: &str) -> bool {
    let random = text.strip_prefix(KEY_MARK);
    text.len() == LEGACY_KEY_BYTES
        && random.is_some_and(|random| random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

pub(super) fn random() -> Result<[u8; 32], NoRandomness> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| NoRandomness(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_hmac_sha_256() {
        // RFC 4231 §4.7, test case 6: a key longer than a block.
        let salt = Salt::new(vec![0xaa; 131]).unwrap();
        let hash = salt.hash("Test Using Larger Than Block-Size Key - Hash Key First");
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn keys_have_the_form_and_never_repeat() {
        let salt = Salt::generate().unwrap();
        let keys: Vec<NewKey> = (0..1000)
            .map(|_| NewKey::generate(&salt).unwrap())
            .collect();
        for key in &keys {
            assert!(has_key_form(&key.secret), "{}", key.secret);
            assert_eq!(key.secret.len(), 46);
            assert_eq!(key.prefix, key.secret[..11]);
            assert_eq!(key.hash, salt.hash(&key.secret));
            let debug = format!("{key:?}");
            assert!(
                !debug.contains(&key.secret) && debug.contains(&key.prefix),
                "{debug}"
            );
        }
        let distinct: std::collections::HashSet<_> = keys.iter().map(|key| key.hash).collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn a_key_of_the_earlier_service_is_known_by_its_digest_alone() {
        let salt = Salt::generate().unwrap();
        let key = format!("ww_{}", "Ab0z".repeat(8));
        assert!(has_key_form(&key));
        let digest: [u8; 32] = Sha256::digest(&key).into();
        assert_eq!(salt.hash(&key), salt.legacy_hash(&digest));
        // Whoever has the digest does not have the key, and another salt voids it.
        let other = Salt::generate().unwrap();
        assert_ne!(salt.legacy_hash(&digest), other.legacy_hash(&digest));
        assert_ne!(salt.legacy_hash(&digest), digest);
        for bad in [
            format!("ww_{}-", "A".repeat(31)),
            format!("ww_{}", "A".repeat(31)),
            format!("ww_{}", "A".repeat(33)),
        ] {
            assert!(!has_key_form(&bad), "{bad}");
        }
    }

    #[test]
    fn what_has_no_key_form() {
        let good = format!("ww_{}", "A".repeat(43));
        assert!(has_key_form(&good));
        for bad in [
            "",
            "ww_",
            &good[..45],
            &format!("{good}A"),
            &good.replace("ww_", "WW_"),
            &good.replace("ww_A", "ww_+"),
            &good.replace("ww_A", "ww_="),
            &good.replace("ww_AA", "ww_ü"),
            &good.replace("ww_A", "ww_ "),
        ] {
            assert!(!has_key_form(bad), "{bad}");
        }
    }

    #[test]
    fn a_short_salt_is_refused_and_no_salt_is_shown() {
        assert_eq!(Salt::new("x".repeat(31)), Err(SaltTooShort));
        assert_eq!(Salt::new(""), Err(SaltTooShort));
        let salt = Salt::new("x".repeat(32)).unwrap();
        assert_eq!(format!("{salt:?}"), "Salt(…)");
        assert_ne!(salt, Salt::new("y".repeat(32)).unwrap());
        let generated = Salt::generate().unwrap();
        assert_eq!(generated.reveal().len(), 64);
        assert!(generated.reveal().iter().all(u8::is_ascii_hexdigit));
        assert_ne!(generated, Salt::generate().unwrap());
    }

    #[test]
    fn another_salt_gives_another_hash() {
        let one = Salt::new("x".repeat(32)).unwrap();
        let other = Salt::new("y".repeat(32)).unwrap();
        assert_ne!(one.hash("ww_"), other.hash("ww_"));
    }
}
