//! Reload: a new configuration takes the place of the old one as a whole, and loses no request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::support::eventually;
use crate::support::gateway::{Gateway, gateway};

fn respond(name: &str, path: &str, body: &str) -> Value {
    json!({ "name": name, "match": { "path": path }, "auth": "none", "respond": { "body": body } })
}

async fn get(gateway: &Gateway, path: &str) -> (u16, String) {
    let answer = gateway.client().get(gateway.url(path)).send().await;
    let answer = answer.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn operators_health(gateway: &Gateway) -> Value {
    let url = gateway.admin_url("/health");
    let answer = gateway.client().get(url).send().await.unwrap();
    assert_eq!(
        answer.status(),
        200,
        "a refused reload makes nothing unhealthy"
    );
    answer.json().await.unwrap()
}

#[tokio::test]
async fn sighup_swaps_routes_headers_and_limits() {
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .route(respond("old", "/old", "old"))
        .route(respond("same", "/same", "before"))
        .start();
    assert_eq!(get(&gateway, "/old").await, (200, "old".into()));
    gateway.edit(|config| {
        config["routes"] = json!([
            respond("new", "/new", "new"),
            respond("same", "/same", "after"),
        ]);
        config["routes"][0]["limits"] = json!({ "per_minute": 1 });
        config["headers"]["set"]["X-Generation"] = json!("2");
    });
    gateway.signal("HUP");
    gateway.reloaded("ok", 1).await;
    assert_eq!(get(&gateway, "/old").await.0, 404);
    assert_eq!(get(&gateway, "/same").await, (200, "after".into()));
    let answer = gateway
        .client()
        .get(gateway.url("/new"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.headers()["x-generation"], "2");
    assert_eq!(answer.status(), 200);
    assert_eq!(get(&gateway, "/new").await.0, 429);
    // What was counted for a route that is no more is gone.
    let page = gateway
        .client()
        .get(gateway.admin_url("/metrics"))
        .send()
        .await
        .unwrap();
    let page = page.text().await.unwrap();
    assert!(!page.contains(r#"route="old""#), "{page}");
    assert!(page.contains(r#"route="same""#), "{page}");
}

#[tokio::test]
async fn a_change_of_the_file_is_taken_over_by_itself() {
    let gateway = gateway().start();
    assert_eq!(get(&gateway, "/new").await.0, 404);
    gateway.edit(|config| config["routes"] = json!([respond("new", "/new", "new")]));
    gateway.reloaded("ok", 1).await;
    assert_eq!(get(&gateway, "/new").await, (200, "new".into()));
    // The file itself may say that it is not watched any more.
    gateway.edit(|config| config["server"]["reload_on_change"] = json!(false));
    gateway.reloaded("ok", 2).await;
    gateway.edit(|config| config["routes"] = json!([]));
    gateway.signal("HUP");
    gateway.reloaded("ok", 3).await;
    assert_eq!(get(&gateway, "/new").await.0, 404);
}

#[tokio::test]
async fn a_file_that_can_not_be_used_changes_nothing_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let broken = dir.path().join("broken.wat");
    std::fs::write(&broken, "(module (func (i32.add)))").unwrap();
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .route(respond("here", "/here", "still"))
        .start();
    assert!(operators_health(&gateway).await["config"]["refused"].is_null());
    let with_route = |route: Value| {
        move |config: &mut Value| config["routes"] = json!([respond("new", "/new", "new"), route])
    };
    let execute = |file: &std::path::Path| json!({ "name": "x", "match": { "path": "/x" }, "auth": "none", "execute": { "file": file } });
    let good = std::fs::read_to_string(gateway.file()).unwrap();
    let mut refused = 0;
    let mut refuse = async |reason: &str| {
        refused += 1;
        gateway.signal("HUP");
        gateway.reloaded("refused", refused).await;
        let health = operators_health(&gateway).await;
        let said = health["config"]["refused"]["reason"].as_str().unwrap();
        assert!(said.contains(reason), "{said}");
        crate::support::eventually("it is in the log", async || {
            gateway
                .stderr()
                .contains("the one in use stays")
                .then_some(())
        })
        .await;
        assert_eq!(get(&gateway, "/here").await, (200, "still".into()));
        assert_eq!(get(&gateway, "/new").await.0, 404);
        gateway.write(&good);
    };
    gateway.write("routes: [");
    refuse("config-").await;
    gateway.write("");
    refuse("the file is empty").await;
    gateway.write("routs: []");
    refuse("did you mean 'routes'?").await;
    gateway.edit(with_route(execute(&broken)));
    refuse("route `x`").await;
    gateway.edit(with_route(execute(&dir.path().join("missing.wasm"))));
    refuse("missing.wasm").await;
    gateway.edit(with_route(respond("new", "/other", "a name that is taken")));
    refuse("is the name of routes[0] too").await;
    gateway.edit(|config| {
        config["routes"] = json!([respond("new", "/new", "new")]);
        config["server"]["https"][0]["certificates"][0]["cert"] = json!("nowhere.crt");
        config["server"]["https"][0]["certificates"][0]["development"] = json!(false);
    });
    refuse("nowhere.crt").await;
    // Keys that are bound to the process are named, all of them, and the rest is refused with them.
    gateway.edit(|config| {
        config["routes"] = json!([respond("new", "/new", "new")]);
        config["server"]["threads"] = json!(3);
        config["server"]["admin"]["address"] = json!("127.0.0.1:1");
        config["database"] = json!({ "url": "sqlite://data/other.db" });
    });
    refuse("a restart is needed to change server.admin.address, server.threads, database.url")
        .await;
    // And the public page keeps it to itself.
    let public: Value = serde_json::from_str(&get(&gateway, "/health").await.1).unwrap();
    assert!(public.get("config").is_none(), "{public}");
    gateway.signal("HUP");
    gateway.reloaded("ok", 1).await;
    assert!(operators_health(&gateway).await["config"]["refused"].is_null());
}

#[tokio::test]
async fn rate_limits_stay_with_their_route() {
    let limited = json!({ "name": "limited", "match": { "path": "/limited" }, "auth": "none",
        "limits": { "per_minute": 2 }, "respond": { "body": "ok" } });
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .route(limited.clone())
        .start();
    for _ in 0..2 {
        assert_eq!(get(&gateway, "/limited").await.0, 200);
    }
    assert_eq!(get(&gateway, "/limited").await.0, 429);
    // The same route at another place in the list, and another one at its old place.
    let mut other = limited.clone();
    other["name"] = json!("other");
    other["match"]["path"] = json!("/other");
    gateway.edit(|config| {
        let routes = config["routes"].as_array_mut().unwrap();
        routes.pop();
        routes.insert(0, limited);
        routes.push(other);
    });
    gateway.signal("HUP");
    gateway.reloaded("ok", 1).await;
    assert_eq!(get(&gateway, "/limited").await.0, 429);
    assert_eq!(get(&gateway, "/other").await.0, 200);
}

#[tokio::test]
async fn a_new_version_of_a_module_is_run_and_a_running_request_ends_on_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let guest = dir.path().join("guest.wat");
    std::fs::write(&guest, crate::shutdown::sleeper(2_000)).unwrap();
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .route(
            json!({ "name": "guest", "match": { "path": "/guest" }, "auth": "none",
            "execute": { "file": guest } }),
        )
        .start();
    let running = tokio::spawn(gateway.client().get(gateway.url("/guest")).send());
    gateway.guests_running(1).await;
    let text = crate::shutdown::sleeper(0).replace("\"done\"", "\"news\"");
    std::fs::write(&guest, text).unwrap();
    gateway.edit(|config| config["headers"]["set"]["X-Generation"] = json!("2"));
    gateway.signal("HUP");
    gateway.reloaded("ok", 1).await;
    assert_eq!(get(&gateway, "/guest").await, (200, "news".into()));
    let old = running.await.unwrap().unwrap();
    assert!(old.headers().get("x-generation").is_none());
    assert_eq!(old.text().await.unwrap(), "done");
}

/// The certificate's subject alternative names, as the server on this port shows it.
async fn served_certificate(port: u16) -> Vec<u8> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates([]);
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything))
        .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port))
        .await
        .unwrap();
    let name = "localhost".try_into().unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tls.connect(name, tcp).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Trusts every certificate: these tests look at them.
#[derive(Debug)]
struct Anything;

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn certificates_come_along() {
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .start();
    let client = gateway.client();
    assert_eq!(
        client
            .get(gateway.url("/health"))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
    let before = served_certificate(gateway.https).await;
    let made = rcgen::generate_simple_self_signed(["new.test".to_owned()]).unwrap();
    std::fs::write(gateway.dir().join("new.crt"), made.cert.pem()).unwrap();
    std::fs::write(
        gateway.dir().join("new.key"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    gateway.edit(|config| {
        config["server"]["https"][0]["certificates"] =
            json!([{ "cert": "new.crt", "key": "new.key" }]);
    });
    gateway.signal("HUP");
    gateway.reloaded("ok", 1).await;
    let after = served_certificate(gateway.https).await;
    assert_ne!(before, after);
    assert_eq!(after, made.cert.der().to_vec());
    // The connection from before goes on.
    assert_eq!(
        client
            .get(gateway.url("/health"))
            .send()
            .await
            .unwrap()
            .status(),
        200
    );
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `scripts/soak_reload.sh` runs this for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_swaps_under_load_lose_no_request_and_no_memory() {
    let swaps: u32 = match std::env::var("WW_SOAK_SWAPS") {
        Ok(number) => number.parse().unwrap(),
        Err(_) => 300,
    };
    let gateway = gateway()
        .set("server.reload_on_change", json!(false))
        .set("logging.access", json!(false))
        // Guests give way to all else on a machine that is busy; that is not what is tested.
        .set("sandbox.queue_timeout", json!("1m"))
        .set("sandbox.execution_timeout", json!("1h"))
        .route(respond("fixed", "/fixed", "a"))
        .start();
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::new();
    for path in ["/fixed", "/fn/hello", "/fixed", "/fn/hello"] {
        let (client, url) = (gateway.client(), gateway.url(path));
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
        clients.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = client.get(&url).send().await.expect("no request fails");
                let status = answer.status();
                let body = answer.text().await.expect("no answer is cut off");
                assert_eq!(status, 200, "{url}: {body}");
                assert!(!body.is_empty());
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let warm = swaps / 3;
    let mut resident = 0;
    for swap in 1..=swaps {
        gateway.edit(|config| {
            let routes = config["routes"].as_array_mut().unwrap();
            let last = routes.len() - 1;
            // The route that is asked for changes its body; another comes and goes under new names.
            routes.retain(|route| !route["name"].as_str().unwrap().starts_with("gone-"));
            let fixed = routes
                .iter_mut()
                .find(|route| route["name"] == "fixed")
                .unwrap();
            fixed["respond"]["body"] = json!("x".repeat(1 + (swap as usize % 1000)));
            let name = format!("gone-{swap}");
            routes.insert(
                swap as usize % last.max(1),
                respond(&name, &format!("/{name}"), "!"),
            );
        });
        gateway.signal("HUP");
        gateway.reloaded("ok", swap).await;
        if swap == warm {
            resident = resident_kib(gateway.pid());
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) > u64::from(swaps));
    let after = resident_kib(gateway.pid());
    println!(
        "{swaps} swaps, {} requests, resident {resident} KiB, then {after} KiB",
        answered.load(Ordering::Relaxed)
    );
    // What the allocator keeps at hand goes up and down; a plan that is never freed adds up.
    assert!(
        after < resident + 16 * 1024,
        "resident {resident} KiB, then {after} KiB"
    );
    let page = gateway
        .client()
        .get(gateway.admin_url("/metrics"))
        .send()
        .await
        .unwrap();
    let page = page.text().await.unwrap();
    assert!(page.matches("gone-").count() < 100, "{page}");
    eventually("the last route answers", async || {
        let (status, _) = get(&gateway, &format!("/gone-{swaps}")).await;
        (status == 200).then_some(())
    })
    .await;
}
