//! The credential in a request's headers: `Authorization: Bearer …` (RFC 6750 §2.1) or `X-API-Key`.

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use super::AuthError;
use super::key::{KEY_MARK, has_key_form};
use super::tokens::ACCESS_TOKEN_BYTES_MAX;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Longest value of either header, in bytes: room for an access token.
const VALUE_BYTES_MAX: usize = 4096;

/// What a caller shows, by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    Key(&'a str),
    /// Three parts of base64url, as a signed JWT has (RFC 7515 section 7.1).
    Token(&'a str),
}

/// The API key or access token of a request; `None` when it shows no credential at all.
///
/// Malformed: a header that is repeated, empty, too long or not of its form, another scheme than
/// Bearer, or two headers that differ (whichever were taken, someone in between may have taken the
/// other). Invalid: well-formed, but neither a key nor, as Bearer, a token.
pub(super) fn credential(headers: &HeaderMap) -> Result<Option<Credential<'_>>, AuthError> {
    let bearer = single(headers, &AUTHORIZATION)?
        .map(bearer_token)
        .transpose()?;
    let plain = single(headers, &X_API_KEY)?.map(text).transpose()?;
    let credential = match (bearer, plain) {
        (None, None) => return Ok(None),
        (Some(one), None) | (None, Some(one)) => one,
        (Some(one), Some(other)) if one == other => one,
        (Some(_), Some(_)) => return Err(AuthError::Malformed),
    };
    if !credential.starts_with(KEY_MARK) {
        return if plain.is_none() && has_token_form(credential) {
            Ok(Some(Credential::Token(credential)))
        } else {
            Err(AuthError::Invalid)
        };
    }
    if has_key_form(credential) {
        Ok(Some(Credential::Key(credential)))
    } else {
        Err(AuthError::Malformed)
    }
}

/// Whether a text may be a signed JWT. Others are not worth a hash, let alone a signature.
fn has_token_form(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    text.len() <= ACCESS_TOKEN_BYTES_MAX
        && text.split('.').count() == 3
        && text.split('.').all(is_part)
}

fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        Err(AuthError::Malformed)
    } else {
        Ok(first)
    }
}

/// The value without the optional white space around it (RFC 9110 §5.5).
fn text(value: &HeaderValue) -> Result<&str, AuthError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(AuthError::Malformed);
    }
    let text = value
        .to_str()
        .map_err(|_| AuthError::Malformed)?
        .trim_matches([' ', '\t']);
    if text.is_empty() {
        Err(AuthError::Malformed)
    } else {
        Ok(text)
    }
}

/// `credentials = "Bearer" 1*SP b64token` (RFC 6750 §2.1); the scheme's case does not matter
/// (RFC 9110 §11.1).
fn bearer_token(value: &HeaderValue) -> Result<&str, AuthError> {
    let (scheme, rest) = text(value)?.split_once(' ').ok_or(AuthError::Malformed)?;
    let token = rest.trim_start_matches(' ');
    let body = token.trim_end_matches('=');
    let b64token = !body.is_empty()
        && body
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
    if scheme.eq_ignore_ascii_case("bearer") && b64token {
        Ok(token)
    } else {
        Err(AuthError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ww_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA-";
    const OTHER: &str = "ww_BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA_";

    fn found(pairs: &[(&str, &[u8])]) -> Result<Option<String>, AuthError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let found = credential(&headers)?;
        Ok(found.map(|found| match found {
            Credential::Key(key) => key.to_owned(),
            Credential::Token(token) => format!("token {token}"),
        }))
    }

    #[test]
    fn keys_that_are_read() {
        let bearer = format!("Bearer {KEY}");
        let key = Ok(Some(KEY.to_owned()));
        assert_eq!(found(&[]), Ok(None));
        assert_eq!(found(&[("cookie", b"ww_x")]), Ok(None));
        assert_eq!(found(&[("authorization", bearer.as_bytes())]), key);
        assert_eq!(
            found(&[("authorization", format!("bEARER   {KEY} ").as_bytes())]),
            key
        );
        assert_eq!(found(&[("x-api-key", KEY.as_bytes())]), key);
        assert_eq!(found(&[("X-API-Key", format!(" {KEY}\t").as_bytes())]), key);
        assert_eq!(
            found(&[
                ("authorization", bearer.as_bytes()),
                ("x-api-key", KEY.as_bytes())
            ]),
            key
        );
    }

    #[test]
    fn malformed_credentials() {
        let bearer = format!("Bearer {KEY}");
        let long = format!("ww_{}", "A".repeat(100_000));
        let (long_bearer, twice) = (format!("Bearer {long}"), format!("{KEY},{KEY}"));
        let cases: &[&[(&str, &[u8])]] = &[
            &[("authorization", b"")],
            &[("authorization", b"   ")],
            &[("authorization", b"Bearer")],
            &[("authorization", b"Bearer ")],
            &[("authorization", KEY.as_bytes())],
            &[("authorization", b"Basic dXNlcjpwYXNz")],
            &[("authorization", b"Digest username=x")],
            &[("authorization", b"Bearer ww_a ww_b")],
            &[("authorization", b"Bearer\tww_a")],
            &[("authorization", b"Bearer a,b")],
            &[("authorization", b"Bearer ==")],
            &[("authorization", b"Bearer a=b")],
            &[("authorization", "Bearer ww_ü".as_bytes())],
            &[("authorization", b"Bearer ww_short")],
            &[("authorization", long_bearer.as_bytes())],
            &[
                ("authorization", bearer.as_bytes()),
                ("authorization", bearer.as_bytes()),
            ],
            &[
                ("authorization", bearer.as_bytes()),
                ("x-api-key", OTHER.as_bytes()),
            ],
            &[
                ("authorization", b"Basic dXNlcjpwYXNz"),
                ("x-api-key", KEY.as_bytes()),
            ],
            &[("x-api-key", KEY.as_bytes()), ("x-api-key", KEY.as_bytes())],
            &[("x-api-key", b"")],
            &[("x-api-key", b"\xff\xfe")],
            &[("x-api-key", long.as_bytes())],
            &[("x-api-key", twice.as_bytes())],
        ];
        for case in cases {
            assert_eq!(found(case), Err(AuthError::Malformed), "{case:?}");
        }
    }

    #[test]
    fn access_tokens_come_as_bearer_only() {
        const JWT: &str = "eyJhbGciOiJFZERTQSJ9.e30.c2ln";
        let bearer = format!("Bearer {JWT}");
        assert_eq!(
            found(&[("authorization", bearer.as_bytes())]),
            Ok(Some(format!("token {JWT}")))
        );
        assert_eq!(
            found(&[("x-api-key", JWT.as_bytes())]),
            Err(AuthError::Invalid)
        );
        let both = [
            ("authorization", bearer.as_bytes()),
            ("x-api-key", JWT.as_bytes()),
        ];
        assert_eq!(found(&both), Err(AuthError::Invalid));
        let with_key = [
            ("authorization", bearer.as_bytes()),
            ("x-api-key", KEY.as_bytes()),
        ];
        assert_eq!(found(&with_key), Err(AuthError::Malformed));
    }

    #[test]
    fn well_formed_but_neither_key_nor_token() {
        let long = format!("Bearer a.b.{}", "c".repeat(ACCESS_TOKEN_BYTES_MAX));
        for value in [
            "Bearer eyJhbGciOiJFZERTQSJ9.e30.",
            "Bearer eyJhbGciOiJFZERTQSJ9..c2ln",
            "Bearer a.b.c.d",
            "Bearer a.b.c=",
            "Bearer a.b+.c",
            &long,
            "Bearer x",
            "Bearer wwr_x",
            "Bearer WW_x",
        ] {
            assert_eq!(
                found(&[("authorization", value.as_bytes())]),
                Err(AuthError::Invalid)
            );
        }
        assert_eq!(found(&[("x-api-key", b"sk-123")]), Err(AuthError::Invalid));
    }
}
