//! The JSON of a receipt, written piece by piece while it is sent: a guest's output may be megabytes,
//! and JSON makes up to six bytes of each of them.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

/// Bytes of output in one piece: a multiple of three, so that base64 pieces join without padding.
const PIECE_BYTES: usize = 48 * 1024;

/// A guest's output as a JSON string can hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    Text(String),
    /// Not UTF-8.
    Binary(Vec<u8>),
}

/// How bytes became a JSON string.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Encoding {
    #[serde(rename = "utf-8")]
    Utf8,
    /// RFC 4648 §4, with padding.
    #[serde(rename = "base64")]
    Base64,
}

/// The object `{"output": …}` with the fields of `rest` after it. Output that fits in one piece
/// gives a body of known length.
pub(super) fn body(output: Option<Output>, rest: &impl Serialize) -> serde_json::Result<Body> {
    let mut tail = serde_json::to_vec(rest)?;
    let Some(output) = output else {
        return Ok(Body::from(joined(
            &[Bytes::from_static(b"null")],
            &mut tail,
        )));
    };
    let pieces = Pieces { output, at: 0 };
    if pieces.output.len() <= PIECE_BYTES {
        let pieces = pieces.collect::<serde_json::Result<Vec<_>>>()?;
        let quoted = [&[QUOTE], pieces.as_slice(), &[QUOTE]].concat();
        return Ok(Body::from(joined(&quoted, &mut tail)));
    }
    open(&mut tail);
    let head = Bytes::from_static(b"{\"output\":\"");
    let chunks = std::iter::once(Ok(head))
        .chain(pieces)
        .chain([Ok(QUOTE), Ok(Bytes::from(tail))]);
    Ok(Body::from_stream(stream::iter(chunks)))
}

const QUOTE: Bytes = Bytes::from_static(b"\"");

fn joined(output: &[Bytes], tail: &mut Vec<u8>) -> Vec<u8> {
    open(tail);
    let mut whole = b"{\"output\":".to_vec();
    output
        .iter()
        .for_each(|piece| whole.extend_from_slice(piece));
    whole.append(tail);
    whole
}

/// Turns an object that stands alone into one that goes on after a first field.
fn open(object: &mut [u8]) {
    if let Some(brace) = object.first_mut() {
        *brace = b',';
    }
}

/// The inside of the JSON string, piece by piece.
struct Pieces {
    output: Output,
    at: usize,
}

impl Iterator for Pieces {
    type Item = serde_json::Result<Bytes>;

    fn next(&mut self) -> Option<serde_json::Result<Bytes>> {
        let len = self.output.len();
        if self.at >= len {
            return None;
        }
        let start = self.at;
        let end = start.saturating_add(PIECE_BYTES).min(len);
        Some(match &self.output {
            Output::Text(text) => {
                let end = text.floor_char_boundary(end);
                self.at = end;
                serde_json::to_vec(&text[start..end]).map(|quoted| {
                    let inside = 1..quoted.len().saturating_sub(1);
                    Bytes::from(quoted).slice(inside)
                })
            }
            Output::Binary(bytes) => {
                self.at = end;
                Ok(Bytes::from(BASE64.encode(&bytes[start..end])))
            }
        })
    }
}

impl Output {
    pub(super) fn encoding(&self) -> Encoding {
        match self {
            Output::Text(_) => Encoding::Utf8,
            Output::Binary(_) => Encoding::Base64,
        }
    }

    /// All of it as one string, for output that is known to be short.
    pub(super) fn into_string(self) -> String {
        match self {
            Output::Text(text) => text,
            Output::Binary(bytes) => BASE64.encode(bytes),
        }
    }

    fn len(&self) -> usize {
        match self {
            Output::Text(text) => text.len(),
            Output::Binary(bytes) => bytes.len(),
        }
    }
}

impl From<Vec<u8>> for Output {
    fn from(bytes: Vec<u8>) -> Output {
        match String::from_utf8(bytes) {
            Ok(text) => Output::Text(text),
            Err(error) => Output::Binary(error.into_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use serde_json::{Value, json};

    use super::*;

    /// The parsed body, and its largest chunk.
    async fn parsed(output: Option<Output>) -> (Value, usize) {
        let mut chunks = body(output, &json!({ "error": null }))
            .unwrap()
            .into_data_stream();
        let (mut whole, mut largest) = (Vec::new(), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.unwrap();
            largest = largest.max(chunk.len());
            whole.extend_from_slice(&chunk);
        }
        (serde_json::from_slice(&whole).unwrap(), largest)
    }

    #[tokio::test]
    async fn output_of_any_length_is_one_string() {
        for length in [
            0,
            1,
            2,
            PIECE_BYTES - 1,
            PIECE_BYTES,
            PIECE_BYTES + 1,
            5 * PIECE_BYTES + 2,
        ] {
            // Two-byte characters at odd places, so that pieces can't end where they like.
            let text: String = "a"
                .chars()
                .chain("é\"\\\n\u{1}".chars().cycle())
                .take(length)
                .collect();
            let (value, _) = parsed(Some(text.clone().into_bytes().into())).await;
            assert_eq!(
                value,
                json!({ "output": text, "error": null }),
                "{length} characters"
            );

            let bytes: Vec<u8> = std::iter::repeat_n(0xff, length).collect();
            let (value, _) = parsed(Some(Output::Binary(bytes.clone()))).await;
            assert_eq!(value["output"], BASE64.encode(bytes), "{length} bytes");
        }
        assert_eq!(
            parsed(None).await.0,
            json!({ "output": null, "error": null })
        );
    }

    #[tokio::test]
    async fn large_output_that_grows_in_json_is_never_there_as_a_whole() {
        let text = "\u{1}".repeat(8 << 20);
        let (value, largest) = parsed(Some(Output::Text(text.clone()))).await;
        assert!(value["output"] == text);
        assert!(largest <= 6 * PIECE_BYTES, "{largest}");
    }

    #[test]
    fn short_output_has_a_known_length() {
        use axum::body::HttpBody;
        let short = body(Some(Output::Text("x".into())), &json!({ "e": 1 })).unwrap();
        assert_eq!(
            short.size_hint().exact(),
            Some(br#"{"output":"x","e":1}"#.len() as u64)
        );
    }
}
