//! The answers to HTTP-01 challenges, by which an authority (ACME) sees that a name leads here (RFC 8555
//! section 8.3).

use std::io::{self, Read as _};
use std::path::PathBuf;

use bytes::Bytes;

/// A token with the thumbprint of an account's key has about 90 bytes.
const ANSWER_BYTES_MAX: u64 = 4 * 1024;
const TOKEN_BYTES_MAX: usize = 256;

/// Who knows the answers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Challenges {
    /// Nobody.
    #[default]
    None,
    /// A client of the authority such as certbot, which writes them into files below this directory:
    /// `.well-known/acme-challenge/TOKEN`.
    Webroot(PathBuf),
}

impl Challenges {
    /// The answer to a token, which is `None` where there is none. Reads a small file.
    pub fn answer(&self, token: &str) -> io::Result<Option<Bytes>> {
        let is_token = (1..=TOKEN_BYTES_MAX).contains(&token.len())
            && token
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let webroot = match self {
            Challenges::Webroot(webroot) if is_token => webroot,
            Challenges::Webroot(_) | Challenges::None => return Ok(None),
        };
        let path = webroot.join(".well-known/acme-challenge").join(token);
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let mut answer = Vec::new();
        let file = std::fs::File::open(&path)?;
        file.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut answer)?;
        if answer.len() as u64 > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(Some(Bytes::from(answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_lead_to_files() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = dir.path().join(".well-known/acme-challenge");
        std::fs::create_dir_all(tokens.join("directory")).unwrap();
        std::fs::write(tokens.join("a-token_1"), "a-token_1.thumbprint").unwrap();
        std::fs::write(tokens.join("large"), vec![b'x'; 5000]).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        let challenges = Challenges::Webroot(dir.path().to_owned());
        let answer = challenges.answer("a-token_1").unwrap();
        assert_eq!(answer.as_deref(), Some(&b"a-token_1.thumbprint"[..]));
        for token in [
            "",
            "unknown",
            "directory",
            "..",
            "../../secret",
            "/etc/passwd",
            "a-token_1/",
            "a%2dtoken_1",
            "a\0b",
            &"x".repeat(300),
        ] {
            assert_eq!(challenges.answer(token).unwrap(), None, "{token}");
        }
        assert!(challenges.answer("large").is_err());
        assert_eq!(Challenges::None.answer("a-token_1").unwrap(), None);
    }
}
