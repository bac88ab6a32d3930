use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

/// A directory with a configuration and what it names.
struct Site {
    directory: TempDir,
    now: SystemTime,
}

impl Site {
    fn new() -> Site {
        Site {
            directory: tempfile::tempdir().unwrap(),
            now: SystemTime::now(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_string()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), contents).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
        self.path(name)
    }

    /// A certificate that is valid from now for this many days, and its key.
    fn certificate(&self, name: &str, days: u32) -> (String, String) {
        let mut params = CertificateParams::new(vec!["example.com".to_string()]).unwrap();
        params.not_before = (self.now - DAY).into();
        params.not_after = (self.now + DAY * days).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let cert = self.write(&format!("{name}.crt"), certificate.pem());
        (
            cert,
            self.write(&format!("{name}.key"), key.serialize_pem()),
        )
    }

    fn listener(&self, cert: &str, key: &str) -> String {
        format!(
            "server:\n  https:\n    - address: 127.0.0.1:0\n      certificates: [{{ cert: {cert}, key: {key} }}]\n"
        )
    }

    /// Runs `check`; the exit code, and the output without the directory.
    fn check_with(&self, yaml: &str, print: bool, probes: &Probes<'_>) -> (u8, String) {
        let config = self.write("c.yaml", yaml);
        let args = Args {
            config: Some(config.into()),
            print,
            schema: false,
        };
        let mut out = Vec::new();
        let code = run(&args, &BTreeMap::new(), probes, &mut out);
        let text = String::from_utf8(out).unwrap();
        (
            code,
            text.replace(&format!("{}/", self.directory.path().display()), ""),
        )
    }

    fn check(&self, yaml: &str) -> (u8, String) {
        self.check_with(
            yaml,
            false,
            &Probes {
                module: &|_, _| Ok(()),
                table: &|_| Ok(Vec::new()),
                now: self.now,
            },
        )
    }
}

fn route(name: &str, file: &str) -> String {
    format!("  - {{ name: {name}, match: {{ path: /{name} }}, execute: {{ file: {file} }} }}\n")
}

#[test]
fn a_good_configuration_is_valid() {
    let site = Site::new();
    let (cert, key) = site.certificate("site", 90);
    let module = site.write("a.wasm", b"\0asm");
    let yaml = site.listener(&cert, &key) + "routes:\n" + &route("a", &module);
    assert_eq!(site.check(&yaml), (0, "c.yaml: valid\n".to_string()));
}

#[test]
fn problems_are_listed_and_counted() {
    let site = Site::new();
    let (code, text) = site.check("metrics: { pth: /x }\nlogging: { level: inof }\n");
    assert_eq!(code, 1);
    assert_eq!(
        text,
        "c.yaml:1:12: metrics: unknown key 'pth' — did you mean 'path'?\n\
         c.yaml:2:12: logging.level: 'inof' is not a level — did you mean 'info'?\n\
         c.yaml: 2 problems\n"
    );
}

#[test]
fn a_development_certificate_need_not_be_there_yet() {
    let site = Site::new();
    let (cert, key) = (site.path("dev.crt"), site.path("dev.key"));
    let yaml = site
        .listener(&cert, &key)
        .replace("key: ", "development: true, key: ");
    assert_eq!(site.check(&yaml).0, 0);
    let (code, text) = site.check(&site.listener(&cert, &key));
    assert_eq!(code, 1);
    assert!(
        text.contains("c.yaml:4:24: server.https[0].certificates[0].cert: dev.crt: No such file"),
        "{text}"
    );
    assert!(
        text.contains("server.https[0].certificates[0].key: dev.key: No such file"),
        "{text}"
    );
    // One without the other is a mistake; the start would not make it.
    site.write("dev.crt", "");
    assert_eq!(site.check(&yaml).0, 1);
}

#[test]
fn certificates_and_keys_belong_together() {
    let site = Site::new();
    let (cert, key) = site.certificate("one", 90);
    let (_, other) = site.certificate("two", 90);
    let (code, text) = site.check(&site.listener(&cert, &other));
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("certificates[0].key: two.key is not the key of one.crt"),
        "{text}"
    );
    let swapped = site.check(&site.listener(&key, &cert));
    assert!(
        swapped.1.contains("one.key holds no certificate")
            && swapped.1.contains("one.crt holds no private key"),
        "{swapped:?}"
    );
}

#[test]
fn certificates_near_their_end_are_warned_of() {
    let site = Site::new();
    let (cert, key) = site.certificate("site", 40);
    let yaml = site.listener(&cert, &key);
    let at = |now: SystemTime| {
        site.check_with(
            &yaml,
            false,
            &Probes {
                module: &|_, _| Ok(()),
                table: &|_| Ok(Vec::new()),
                now,
            },
        )
    };
    assert_eq!(at(site.now).1, "c.yaml: valid\n");
    let (code, text) = at(site.now + 11 * DAY);
    assert!(
        code == 0 && text.contains("warning: ") && text.contains("site.crt expires on 20"),
        "{text}"
    );
    assert!(text.ends_with("c.yaml: valid, 1 warning\n"), "{text}");
    assert!(at(site.now + 41 * DAY).1.contains("site.crt expired on 20"));
    assert!(
        at(site.now - 2 * DAY)
            .1
            .contains("site.crt is not valid before 20")
    );
    assert!(at(SystemTime::UNIX_EPOCH - DAY).1.contains("site.crt"));
}

#[test]
fn odd_files_are_refused_without_being_shown() {
    let site = Site::new();
    let (cert, key) = site.certificate("site", 90);
    let half = fs::read_to_string(&key).unwrap();
    let half = site.write("half.key", &half[..half.len() / 2]);
    let secret = site.write("secret", "hunter2 hunter2 hunter2");
    let huge = site.write("huge", vec![b'x'; (PEM_BYTES_MAX + 1) as usize]);
    let odd = site.write(
        "odd.crt",
        "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
    );
    let empty = site.write("empty", "");
    let directory = site.path("");
    for (cert, key) in [
        (&cert, &half),
        (&cert, &secret),
        (&cert, &empty),
        (&cert, &directory),
        (&secret, &key),
        (&huge, &key),
        (&odd, &key),
        (&empty, &key),
        (&directory, &key),
    ] {
        let (code, text) = site.check(&site.listener(cert, key));
        assert_eq!(code, 1, "{cert} {key} {text}");
        assert!(
            !text.contains("hunter2") && !text.contains("PRIVATE"),
            "{text}"
        );
    }
}

#[test]
fn a_key_that_everyone_can_read_is_warned_of() {
    let site = Site::new();
    let (cert, key) = site.certificate("site", 90);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = site.check(&site.listener(&cert, &key));
    assert!(
        code == 0 && text.contains("every user of this machine can read site.key"),
        "{text}"
    );
}

#[test]
fn modules_are_opened_and_checked_once_each() {
    let site = Site::new();
    let module = site.write("a.wasm", b"\0asm");
    let large = site.write("large.wasm", vec![0; 2_000]);
    let mut yaml = "sandbox: { wasm_size_max: 1000 }\nroutes:\n".to_string();
    for (name, file) in [
        ("a", &module),
        ("b", &module),
        ("c", &site.path("none.wasm")),
        ("d", &large),
        ("e", &site.path("")),
    ] {
        yaml.push_str(&route(name, file));
    }
    let calls = std::cell::Cell::new(0);
    let refuse = |bytes: &[u8], settings: &sandbox::Settings| {
        assert_eq!(settings.wasm_bytes_max, 1_000);
        calls.set(calls.get() + 1);
        assert_eq!(bytes, b"\0asm");
        Err("imports env.exec, which is not offered".to_string())
    };
    let probes = Probes {
        module: &refuse,
        table: &|_| Ok(Vec::new()),
        now: site.now,
    };
    let (code, text) = site.check_with(&yaml, false, &probes);
    assert_eq!((code, calls.get()), (1, 1), "{text}");
    for line in [
        "c.yaml:3:48: routes[0].execute.file: a.wasm: imports env.exec",
        "c.yaml:4:48: routes[1].execute.file: a.wasm: imports env.exec",
        "c.yaml:5:48: routes[2].execute.file: none.wasm: No such file",
        "c.yaml:6:48: routes[3].execute.file: large.wasm: has more than 1000 bytes",
        "c.yaml:7:48: routes[4].execute.file: ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn files_are_read() {
    let site = Site::new();
    let module = site.write("a.wasm", b"\0asm");
    fs::create_dir(site.path("good")).unwrap();
    fs::create_dir(site.path("bad")).unwrap();
    fs::write(site.path("good/file"), "x").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", site.path("bad/link")).unwrap();
    let yaml = |folders: &[&str]| {
        let mut yaml = "routes:\n".to_string();
        for folder in folders {
            yaml.push_str(&format!(
                "  - {{ name: {folder}, match: {{ path: /{folder} }}, execute: {{ file: {}, files: {} }} }}\n",
                module,
                site.path(folder),
            ));
        }
        yaml
    };
    let (code, text) = site.check(&yaml(&["good"]));
    assert_eq!(code, 0, "{text}");
    let (code, text) = site.check(&yaml(&["good", "bad", "none"]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("c.yaml:3:"), "{text}");
    for part in [
        "routes[1].execute.files: bad/link: is a link",
        "routes[2].execute.files: none: No such file",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

#[test]
fn routes_that_clash_or_never_match_are_told() {
    let site = Site::new();
    let yaml = "routes:\n  - { name: a, match: { path: /a }, respond: {} }\n  - { name: b, match: { path: /a }, respond: {} }\n";
    let finding = |message: &str| {
        vec![RouteFinding {
            route: "b".to_string(),
            message: message.to_string(),
        }]
    };
    let unreachable = |_: &[Route]| Ok(finding("can never match: 'a' takes all of it"));
    let probes = Probes {
        module: &|_, _| Ok(()),
        table: &unreachable,
        now: site.now,
    };
    let (code, text) = site.check_with(yaml, false, &probes);
    assert_eq!(code, 0);
    assert!(
        text.contains(
            "warning: c.yaml:3:16: routes[1].match: can never match: 'a' takes all of it"
        ),
        "{text}"
    );
    let clash = |_: &[Route]| Err(finding("matches the same as 'a'"));
    let (code, text) = site.check_with(
        yaml,
        false,
        &Probes {
            table: &clash,
            ..probes
        },
    );
    assert_eq!(code, 1);
    assert!(
        text.contains("c.yaml:3:16: routes[1].match: matches the same as 'a'\nc.yaml: 1 problem\n"),
        "{text}"
    );
}

#[test]
fn what_is_printed_can_be_used_again() {
    let site = Site::new();
    let (cert, key) = site.certificate("site", 90);
    let yaml = site.listener(&cert, &key)
        + "  admin: { address: 0.0.0.0:9091 }\nsandbox: { memory_max: 64MiB }\n";
    let probes = Probes {
        module: &|_, _| Ok(()),
        table: &|_| Ok(Vec::new()),
        now: site.now,
    };
    let (code, printed) = site.check_with(&yaml, true, &probes);
    assert_eq!(code, 0);
    assert!(
        printed.contains("memory_max: 64MiB") && printed.contains("# warning: "),
        "{printed}"
    );
    let printed = printed
        .replace("cert: ", &format!("cert: {}", site.path("")))
        .replace("key: site", &format!("key: {}", site.path("site")));
    let (code, again) = site.check(&printed);
    assert_eq!(code, 0, "{again}\n{printed}");
}

#[test]
fn a_full_output_is_no_success() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let probes = Probes {
        module: &|_, _| Ok(()),
        table: &|_| Ok(Vec::new()),
        now: SystemTime::now(),
    };
    assert_eq!(
        run(&Args::default(), &BTreeMap::new(), &probes, &mut Full),
        1
    );
}

#[test]
fn the_schema_is_json() {
    let probes = Probes {
        module: &|_, _| Ok(()),
        table: &|_| Ok(Vec::new()),
        now: SystemTime::now(),
    };
    let mut out = Vec::new();
    assert_eq!(
        run(
            &Args {
                schema: true,
                ..Args::default()
            },
            &BTreeMap::new(),
            &probes,
            &mut out
        ),
        0
    );
    let schema: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn the_tls_files_of_upstreams_are_read() {
    let site = Site::new();
    let (cert, key) = site.certificate("gateway", 90);
    let (_, other) = site.certificate("other", 90);
    let yaml = |tls: &str| {
        let proxy = format!("{{ upstreams: ['https://a'], tls: {{ {tls} }} }}");
        format!("routes:\n  - {{ name: a, match: {{ path: /a }}, proxy: {proxy} }}\n")
    };
    let good = format!("ca: {cert}, client_cert: {cert}, client_key: {key}");
    assert_eq!(site.check(&yaml(&good)).0, 0);
    for (tls, part) in [
        (
            format!("ca: {}", site.path("none.pem")),
            "routes[0].proxy.tls: none.pem: No such file",
        ),
        (format!("ca: {key}"), "gateway.key: holds no certificate"),
        (
            format!("client_cert: {cert}, client_key: {other}"),
            "other.key: is not the key of the certificate",
        ),
    ] {
        let (code, text) = site.check(&yaml(&tls));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(part), "{text}");
    }
}
