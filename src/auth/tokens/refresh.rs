//! Refresh tokens: `wwr_` and 86 characters of base64url, which are a family's id, 32 random bytes
//! and a tag.
//!
//! The tag is an HMAC under the salt. It tells a token that was issued from one that was made up, so
//! that guesses never reach the database, and so that of a family only the current token's hash is
//! stored: an issued token that is not the current one was replaced, and is shown again.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::auth::key::{NoRandomness, Salt, random};

/// What every refresh token starts with.
pub const REFRESH_TOKEN_MARK: &str = "wwr_";

const ID_BYTES: usize = 16;
const RANDOM_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const BYTES: usize = ID_BYTES + RANDOM_BYTES + TAG_BYTES;

/// Length of a token: the mark and 64 bytes in base64url.
pub const REFRESH_TOKEN_BYTES: usize = REFRESH_TOKEN_MARK.len() + (BYTES * 4).div_ceil(3);

/// What the tag authenticates begins with this, which no API key does.
const TAG_CONTEXT: &str = "refresh token tag:";

/// A token just made.
pub(super) struct New {
    pub(super) secret: String,
    pub(super) hash: [u8; 32],
}

/// A token that was issued by us, once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Issued {
    pub(super) family_id: Uuid,
    pub(super) hash: [u8; 32],
}

pub(super) fn generate(family_id: Uuid, salt: &Salt) -> Result<New, NoRandomness> {
    let mut bytes = [0; BYTES];
    bytes[..ID_BYTES].copy_from_slice(family_id.as_bytes());
    bytes[ID_BYTES..BYTES - TAG_BYTES].copy_from_slice(&random()?);
    let tag = tag(&bytes, salt);
    bytes[BYTES - TAG_BYTES..].copy_from_slice(&tag);
    let secret = format!("{REFRESH_TOKEN_MARK}{}", URL_SAFE_NO_PAD.encode(bytes));
    let hash = salt.hash(&secret);
    Ok(New { secret, hash })
}

/// Reads a token; `None` when it was not issued under this salt.
pub(super) fn read(token: &str, salt: &Salt) -> Option<Issued> {
    let text = token.strip_prefix(REFRESH_TOKEN_MARK)?;
    if token.len() != REFRESH_TOKEN_BYTES {
        return None;
    }
    // One token has one spelling: the decoder refuses bits left over at the end.
    let bytes: [u8; BYTES] = URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?;
    let shown = &bytes[BYTES - TAG_BYTES..];
    if !bool::from(tag(&bytes, salt).ct_eq(shown)) {
        return None;
    }
    Some(Issued {
        family_id: Uuid::from_slice(&bytes[..ID_BYTES]).ok()?,
        hash: salt.hash(token),
    })
}

/// The tag over all that stands before it.
fn tag(bytes: &[u8; BYTES], salt: &Salt) -> [u8; TAG_BYTES] {
    let text = URL_SAFE_NO_PAD.encode(&bytes[..BYTES - TAG_BYTES]);
    let mac = salt.hash(&format!("{TAG_CONTEXT}{text}"));
    let mut tag = [0; TAG_BYTES];
    tag.copy_from_slice(&mac[..TAG_BYTES]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_issued_is_read_and_nothing_else_is() {
        let salt = Salt::new("0123456789abcdef0123456789abcdef").unwrap();
        let family_id = Uuid::now_v7();
        let new = generate(family_id, &salt).unwrap();
        assert_eq!(new.secret.len(), REFRESH_TOKEN_BYTES);
        let issued = Issued {
            family_id,
            hash: new.hash,
        };
        assert_eq!(read(&new.secret, &salt), Some(issued));
        assert_ne!(generate(family_id, &salt).unwrap().secret, new.secret);
        let other = Salt::new("1123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(read(&new.secret, &other), None);
        // Any other character anywhere makes it another token.
        for at in 0..new.secret.len() {
            let mut bytes = new.secret.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert_eq!(read(&changed, &salt), None, "at {at}");
        }
        let longer = format!("{}A", new.secret);
        let padded = format!("{}=", &new.secret[..new.secret.len() - 1]);
        for bad in [
            "",
            "wwr_",
            &new.secret[4..],
            &longer,
            &padded,
            "wwr_ü",
            &"wwr_".repeat(50),
        ] {
            assert_eq!(read(bad, &salt), None, "{bad}");
        }
    }
}
