use std::sync::atomic::AtomicUsize;

use futures_util::stream;
use proptest::prelude::*;

use super::super::body::BodyError;
use super::*;

const WASM: Field = Field {
    names: &["wasm", "wasm_file"],
    limit: FieldLimit::Payload(Bound {
        what: "the module",
        bytes_max: 100_000,
        setting: Some("MAX_WASM_SIZE"),
    }),
};
const NAME: Field = Field {
    names: &["name"],
    limit: FieldLimit::Value { bytes_max: 255 },
};
const BOUNDARY: &str = "XyZ";

fn part(head: &str, value: &[u8]) -> Vec<u8> {
    [
        format!("--{BOUNDARY}\r\n{head}\r\n\r\n").as_bytes(),
        value,
        b"\r\n",
    ]
    .concat()
}

fn field(name: &str, value: &[u8]) -> Vec<u8> {
    part(
        &format!("Content-Disposition: form-data; name=\"{name}\""),
        value,
    )
}

fn form(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), format!("--{BOUNDARY}--\r\n").into_bytes()].concat()
}

fn chunked(bytes: &[u8], size: usize) -> Body {
    let chunks: Vec<_> = bytes
        .chunks(size)
        .map(Bytes::copy_from_slice)
        .map(Ok::<_, BodyError>)
        .collect();
    Body::from_stream(stream::iter(chunks))
}

async fn read_chunked(bytes: &[u8], size: usize) -> Result<[Option<Bytes>; 2], Failure> {
    read(chunked(bytes, size), BOUNDARY.into(), &[WASM, NAME])
        .await
        .map_err(|problem| problem.failure)
}

/// The failure of a form, the same in whatever chunks it comes.
async fn failure(bytes: &[u8]) -> Failure {
    let whole = read_chunked(bytes, usize::MAX).await.unwrap_err();
    assert_eq!(read_chunked(bytes, 7).await.unwrap_err(), whole);
    whole
}

async fn malformed_form(bytes: &[u8]) -> String {
    let failure = failure(bytes).await;
    assert_eq!(
        (failure.status.as_u16(), failure.code),
        (400, "malformed_multipart")
    );
    failure.message.into_owned()
}

#[tokio::test]
async fn values_come_in_the_order_asked_for() {
    let bytes = form(&[
        field("name", b"n"),
        field("extra", b"x"),
        field("wasm_file", b"\0asm\r\n--Xy\r"),
    ]);
    for size in [1, 2, 3, 5, 64, usize::MAX] {
        let [wasm, name] = read_chunked(&bytes, size).await.unwrap();
        assert_eq!(wasm.unwrap(), &b"\0asm\r\n--Xy\r"[..], "chunks of {size}");
        assert_eq!(name.unwrap(), &b"n"[..], "chunks of {size}");
    }
    assert_eq!(read_chunked(&form(&[]), 1).await.unwrap(), [None, None]);
}

#[tokio::test]
async fn a_field_may_be_as_large_as_its_limit() {
    let [wasm, _] = read_chunked(&form(&[field("wasm", &[7; 100_000])]), 8192)
        .await
        .unwrap();
    assert_eq!(wasm.unwrap().len(), 100_000);
    let over = failure(&form(&[field("wasm", &[7; 100_001])])).await;
    assert_eq!(
        (over.status.as_u16(), over.code),
        (413, "payload_too_large")
    );
    assert_eq!(
        over.message,
        "the module is larger than the limit of 100000 bytes (MAX_WASM_SIZE)"
    );
    let over = failure(&form(&[field("name", &[b'n'; 256])])).await;
    assert_eq!((over.status.as_u16(), over.code), (400, "bad_request"));
    assert_eq!(over.message, "`name` is longer than 255 bytes");
}

#[tokio::test]
async fn a_field_is_given_once_under_any_of_its_names() {
    for (first, second) in [("wasm", "wasm"), ("wasm", "wasm_file"), ("name", "name")] {
        let failure = failure(&form(&[field(first, b"1"), field(second, b"")])).await;
        assert_eq!(
            (failure.status.as_u16(), failure.code),
            (400, "bad_request")
        );
        assert!(
            failure.message.contains("more than once"),
            "{}",
            failure.message
        );
    }
}

#[tokio::test]
async fn fields_are_counted_and_unknown_ones_bounded() {
    let sixteen = vec![field("x", b""); FIELDS_MAX - 1];
    assert!(read_chunked(&form(&sixteen), 64).await.is_ok());
    let many = vec![field("x", b""); FIELDS_MAX + 1];
    assert!(
        malformed_form(&form(&many))
            .await
            .contains("more than 16 fields")
    );
    let large = vec![field("x", &[0; 22_000]); 3];
    assert_eq!(failure(&form(&large)).await.status.as_u16(), 413);
    let long = "n".repeat(FIELD_NAME_BYTES_MAX + 1);
    assert!(
        malformed_form(&form(&[field(&long, b"")]))
            .await
            .contains("name is longer")
    );
}

#[tokio::test]
async fn what_is_no_form_is_refused() {
    let whole = form(&[field("wasm", b"1234")]);
    for end in [0, 1, 5, 20, 60, whole.len() - 5] {
        malformed_form(&whole[..end]).await;
    }
    malformed_form(b"no boundary here").await;
    malformed_form(&form(&[part("Content-Disposition: form-data", b"")])).await;
    malformed_form(&form(&[part("X: y", b"")])).await;
    malformed_form(&form(&[part("no colon", b"")])).await;
    malformed_form(&form(&[part(
        "Content-Disposition: form-data; name=\"\u{1}\"",
        b"",
    )]))
    .await;
    malformed_form(format!("--{BOUNDARY}garbage\r\n").as_bytes()).await;
    let heads = "X: y\r\n".repeat(40) + "Content-Disposition: form-data; name=\"wasm\"";
    malformed_form(&form(&[part(&heads, b"")])).await;
}

#[tokio::test]
async fn messages_do_not_quote_the_body() {
    let secret = "hunter2".repeat(3);
    let cut = &form(&[field(&secret, b"1234")]);
    assert!(
        !malformed_form(&cut[..cut.len() - 8])
            .await
            .contains("hunter2")
    );
}

/// An endless body of one chunk over and over, and how many of them were taken.
fn endless(first: Vec<u8>, then: &'static [u8]) -> (Body, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    let chunks = stream::once(async move { Ok::<_, BodyError>(Bytes::from(first)) }).chain(
        stream::repeat_with(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from_static(then))
        }),
    );
    (Body::from_stream(chunks), taken)
}

#[tokio::test]
async fn an_endless_body_that_is_always_ready_is_left_early() {
    const KIBIBYTE: &[u8] = &[b'x'; 1024];
    let open = |head: &str| format!("--{BOUNDARY}\r\n{head}").into_bytes();
    let in_head = open("Content-Disposition: form-data; name=\"wasm\"; x=");
    let in_wasm = open("Content-Disposition: form-data; name=\"wasm\"\r\n\r\n");
    let in_other = open("Content-Disposition: form-data; name=\"other\"\r\n\r\n");
    for (first, status, kibibytes_max) in [
        (b"x".to_vec(), 400, 10),
        (in_head, 400, 10),
        (in_wasm, 413, 100),
        (in_other, 413, 66),
    ] {
        let (body, taken) = endless(first, KIBIBYTE);
        let problem = read(body, BOUNDARY.into(), &[WASM, NAME])
            .await
            .unwrap_err();
        assert_eq!(problem.failure.status.as_u16(), status);
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken <= kibibytes_max, "{taken} KiB taken");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_told_by_its_reason() {
    for (error, status, code) in [
        (BodyError::Gone, 400, "incomplete_body"),
        (BodyError::TimedOut, 408, "request_timeout"),
        (
            BodyError::TooLarge { bytes_max: 9 },
            413,
            "payload_too_large",
        ),
    ] {
        let start = Bytes::from(field("wasm", b"1234"));
        let body = Body::from_stream(stream::iter([Ok(start), Err(error)]));
        let failure = read(body, BOUNDARY.into(), &[WASM, NAME])
            .await
            .unwrap_err()
            .failure;
        assert_eq!((failure.status.as_u16(), failure.code), (status, code));
    }
}

#[test]
fn a_required_value_is_there_and_not_empty() {
    assert_eq!(
        required(Some(Bytes::from_static(b"x")), "wasm"),
        Ok(Bytes::from_static(b"x"))
    );
    assert_eq!(
        required(None, "wasm").unwrap_err().message,
        "the field `wasm` is missing"
    );
    let empty = required(Some(Bytes::new()), "wasm").unwrap_err();
    assert_eq!(empty.message, "the field `wasm` is empty");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_value_survives_any_chunking(value in prop::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'X'), any::<u8>()], 0..400), size in 1_usize..40) {
        let marker = format!("\r\n--{BOUNDARY}").into_bytes();
        prop_assume!(!value.windows(marker.len()).any(|window| window == marker));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = form(&[field("wasm", &value)]);
        let [wasm, _] = runtime.block_on(read_chunked(&bytes, size)).unwrap();
        prop_assert_eq!(wasm.unwrap().to_vec(), value);
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..400), size in 1_usize..40) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = [format!("--{BOUNDARY}\r\n").into_bytes(), bytes].concat();
        if let Err(failure) = runtime.block_on(read_chunked(&bytes, size)) {
            prop_assert!(failure.status.is_client_error());
        }
    }
}
