//! Modules: who sees them, what is refused, and where sizes are bounded.

use axum::http::Method;
use chrono::DateTime;
use serde_json::json;
use uuid::Uuid;

use super::{MULTIPART, World, form};
use crate::limits::Tier;

#[tokio::test]
async fn a_list_has_pages() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let other = world.user("b@example.com", Tier::Free).await;
    for number in 0..5 {
        world.module(&user, &format!("m{number}"), false).await;
    }
    world.module(&other, "public", true).await;
    world.module(&other, "private", false).await;

    let page = world
        .call(&user, Method::GET, "/api/wasm/modules?page=2&limit=2")
        .await
        .json();
    let names: Vec<_> = page["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|module| &module["name"])
        .collect();
    assert_eq!(names, ["m2", "m1"]);
    assert_eq!(
        (
            &page["page"],
            &page["limit"],
            &page["total"],
            &page["has_next"]
        ),
        (&json!(2), &json!(2), &json!(5), &json!(true))
    );
    let last = world
        .call(&user, Method::GET, "/api/wasm/modules?page=3&limit=2")
        .await
        .json();
    assert_eq!(
        (&last["has_next"], last["modules"].as_array().unwrap().len()),
        (&json!(false), 1)
    );
    let far = world
        .call(
            &user,
            Method::GET,
            "/api/wasm/modules?page=4294967295&limit=100",
        )
        .await;
    assert_eq!((far.status, &far.json()["modules"]), (200, &json!([])));
    let all = world
        .call(&user, Method::GET, "/api/wasm/modules?include_public=true")
        .await
        .json();
    assert_eq!((&all["total"], &all["limit"]), (&json!(6), &json!(20)));

    let module = &all["modules"][0];
    let mut keys: Vec<_> = module
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "description",
            "execution_count",
            "id",
            "is_public",
            "last_executed",
            "name",
            "sha256_hash",
            "size_bytes",
            "upload_time",
            "version"
        ]
    );
    let time = module["upload_time"].as_str().unwrap();
    assert!(
        time.ends_with('Z') && DateTime::parse_from_rfc3339(time).is_ok(),
        "{time}"
    );
}

#[tokio::test]
async fn a_list_names_the_bound_that_is_broken() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    for (query, word) in [
        ("limit=0", "from 1 to 100"),
        ("limit=101", "from 1 to 100"),
        ("page=0", "`page`"),
        ("page=-1", "`page`"),
        ("page=1&page=2", "more than once"),
        ("include_public=maybe", "`include_public`"),
        ("limit=%zz", "hexadecimal"),
    ] {
        let answer = world
            .call(&user, Method::GET, &format!("/api/wasm/modules?{query}"))
            .await;
        assert_eq!(answer.failed(), (400, "bad_request"), "{query}");
        assert!(answer.failure.unwrap().message.contains(word), "{query}");
    }
}

#[tokio::test]
async fn a_module_is_its_owners_to_see_and_to_delete() {
    let world = World::new().await;
    let owner = world.user("a@example.com", Tier::Free).await;
    let other = world.user("b@example.com", Tier::Free).await;
    let path = |id: Uuid| format!("/api/wasm/modules/{id}");
    let public = path(world.module(&owner, "public", true).await);
    let private = path(world.module(&owner, "private", false).await);
    let unknown = path(Uuid::now_v7());

    assert_eq!(
        world.call(&owner, Method::GET, &private).await.json()["name"],
        "private"
    );
    assert_eq!(
        world.call(&other, Method::GET, &public).await.json()["name"],
        "public"
    );
    // Another's private module and one that is not there give the same answer in all ways.
    for method in [Method::GET, Method::DELETE] {
        let hidden = world.call(&other, method.clone(), &private).await;
        let missing = world.call(&other, method, &unknown).await;
        assert_eq!(hidden.failed(), (404, "not_found"));
        assert_eq!(hidden.failure, missing.failure);
    }
    let run = format!("{private}/execute");
    assert_eq!(
        world.call(&other, Method::POST, &run).await.failed(),
        (404, "not_found")
    );
    assert_eq!(
        world.call(&other, Method::DELETE, &public).await.failed(),
        (403, "forbidden")
    );

    assert_eq!(
        world.call(&owner, Method::DELETE, &private).await.status,
        204
    );
    assert_eq!(
        world.call(&owner, Method::DELETE, &private).await.failed(),
        (404, "not_found")
    );
    assert_eq!(world.call(&owner, Method::GET, &public).await.status, 200);
}

#[tokio::test]
async fn an_upload_that_is_not_whole_is_refused_before_it_is_looked_at() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let wasm: (&str, &[u8]) = ("wasm", b"\0asm\x01\0\0\0");
    let name: (&str, &[u8]) = ("name", b"n");
    let long = vec![b'x'; 4097];
    for (fields, word) in [
        (vec![name], "`wasm` is missing"),
        (vec![("wasm", &b""[..]), name], "`wasm` is empty"),
        (vec![wasm], "`name` is missing"),
        (vec![wasm, ("name", b"")], "`name` is empty"),
        (vec![wasm, ("name", b"a\nb")], "must not hold control"),
        (vec![wasm, ("name", &long[..256])], "longer than 255 bytes"),
        (
            vec![wasm, name, ("description", &long)],
            "longer than 4096 bytes",
        ),
        (vec![wasm, name, ("is_public", b"yes")], "`is_public`"),
        (vec![wasm, name, name], "more than once"),
    ] {
        let answer = world
            .post(&user, "/api/wasm/upload", MULTIPART, form(&fields))
            .await;
        assert_eq!(answer.failed(), (400, "bad_request"), "{word}");
        let message = answer.failure.unwrap().message;
        assert!(message.contains(word), "{message}");
    }
    let answer = world
        .post(&user, "/api/wasm/upload", "application/wasm", "\0asm")
        .await;
    assert_eq!(answer.failed(), (415, "unsupported_media_type"));
    let list = world
        .call(&user, Method::GET, "/api/wasm/modules")
        .await
        .json();
    assert_eq!(list["total"], 0);
}

#[tokio::test]
async fn what_is_no_module_is_refused_with_its_reason() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    for bytes in [
        &b"\0asm"[..],
        b"\0asm\x01\0\0\0\xff",
        b"MZ",
        b"hello",
        &[0; 100],
    ] {
        let execute = world
            .post(
                &user,
                "/api/wasm/execute",
                MULTIPART,
                form(&[("wasm", bytes)]),
            )
            .await;
        assert_eq!(execute.failed(), (422, "invalid_module"), "{bytes:?}");
        let fields = [("wasm", bytes), ("name", b"n")];
        let upload = world
            .post(&user, "/api/wasm/upload", MULTIPART, form(&fields))
            .await;
        assert_eq!(upload.failed(), (422, "invalid_module"), "{bytes:?}");
        assert_eq!(execute.failure, upload.failure);
        let raw = world
            .post(&user, "/api/execute", "application/wasm", bytes.to_vec())
            .await;
        assert_eq!(raw.failure, execute.failure);
    }
}

#[tokio::test]
async fn sizes_are_bounded_where_they_are_read() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    let large = vec![b'x'; 10_001];
    let path = "/api/wasm/execute";
    let over_module = "the module is larger than the limit of 10000 bytes (MAX_WASM_SIZE)";
    let over_input = "the input is larger than the limit of 1000 bytes (MAX_INPUT_SIZE)";
    let raw_input = format!("{path}?input={}", "x".repeat(1001));
    let stored = world.module(&user, "m", false).await;
    let stored = format!("/api/wasm/modules/{stored}/execute");
    for (path, kind, body, message) in [
        (path, MULTIPART, form(&[("wasm_file", &large)]), over_module),
        (path, "application/wasm", large.clone(), over_module),
        (
            path,
            MULTIPART,
            form(&[("input_data", &large[..1001])]),
            over_input,
        ),
        (&raw_input, "text/wat", b"x".to_vec(), over_input),
        (
            &stored,
            "application/octet-stream",
            large[..1001].to_vec(),
            over_input,
        ),
        (
            &stored,
            MULTIPART,
            form(&[("input", &large[..1001])]),
            over_input,
        ),
    ] {
        let answer = world.post(&user, path, kind, body).await;
        assert_eq!(answer.failed(), (413, "payload_too_large"), "{path} {kind}");
        assert_eq!(answer.failure.unwrap().message, message);
    }
}

#[tokio::test]
async fn a_body_of_the_wrong_kind_is_refused() {
    let world = World::new().await;
    let user = world.user("a@example.com", Tier::Free).await;
    for kind in [
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "?",
    ] {
        let answer = world.post(&user, "/api/wasm/execute", kind, "x").await;
        assert_eq!(answer.failed(), (415, "unsupported_media_type"), "{kind}");
    }
    let answer = world.call(&user, Method::POST, "/api/wasm/execute").await;
    assert_eq!(answer.failed(), (415, "unsupported_media_type"));
    let answer = world
        .post(&user, "/api/wasm/execute", "application/wasm", "")
        .await;
    assert_eq!(answer.failed(), (400, "bad_request"));
    let answer = world.post(&user, "/api/wasm/execute", MULTIPART, "x").await;
    assert_eq!(answer.failed(), (400, "malformed_multipart"));
    let answer = world
        .post(&user, "/api/wasm/execute", "multipart/form-data", form(&[]))
        .await;
    assert_eq!(answer.failed(), (400, "bad_request"));
}
