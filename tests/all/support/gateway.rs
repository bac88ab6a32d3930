//! The real gateway as a child process, on free ports, in a directory of its own.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{PATIENCE, free_port, root};

/// A gateway to be started.
pub struct Builder {
    dir: Option<Arc<tempfile::TempDir>>,
    config: Value,
    env: BTreeMap<String, String>,
    /// What the plain HTTP listener serves.
    plain: &'static str,
    program: PathBuf,
    /// More keys of the listeners `https`, `http` and `admin`; `second` adds one with TLS.
    listeners: BTreeMap<&'static str, Value>,
}

/// A running gateway. Dropping it kills the process.
pub struct Gateway {
    child: Option<Child>,
    dir: Arc<tempfile::TempDir>,
    file: PathBuf,
    pub https: u16,
    pub http: u16,
    pub admin: u16,
    /// A second HTTPS listener, where there is one.
    pub second: u16,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
}

/// A gateway on the defaults, its routes included, but for its ports.
pub fn gateway() -> Builder {
    let built_in: Value = serde_yaml::from_str(wasm_wizard::config::BUILT_IN).unwrap();
    Builder {
        dir: None,
        config: json!({ "routes": built_in["routes"] }),
        env: BTreeMap::new(),
        plain: "redirect",
        program: env!("CARGO_BIN_EXE_wasm-wizard").into(),
        listeners: BTreeMap::new(),
    }
}

/// Runs the program to its end.
pub fn run(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> std::process::Output {
    let mut command = command(Path::new(env!("CARGO_BIN_EXE_wasm-wizard")), dir);
    command
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null());
    command.output().unwrap()
}

/// The program, in `dir`, with none of this process's own settings.
fn command(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// A directory with what the default configuration names, as the repository's root has it.
pub fn workdir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root().join("examples"), dir.path().join("examples")).unwrap();
    dir
}

impl Builder {
    /// Starts in the directory of another gateway, so with its database and certificates.
    pub fn in_dir_of(mut self, other: &Gateway) -> Builder {
        self.dir = Some(Arc::clone(&other.dir));
        self
    }

    /// Starts in this directory.
    pub fn in_dir(mut self, dir: tempfile::TempDir) -> Builder {
        self.dir = Some(Arc::new(dir));
        self
    }

    /// Starts this copy of the program.
    pub fn program(mut self, program: &Path) -> Builder {
        self.program = program.to_owned();
        self
    }

    /// Sets one value, by a path like `sandbox.guests_max`.
    pub fn set(mut self, path: &str, value: Value) -> Builder {
        let mut at = &mut self.config;
        for key in path.split('.') {
            at = &mut at[key];
        }
        *at = value;
        self
    }

    pub fn route(mut self, route: Value) -> Builder {
        self.config["routes"].as_array_mut().unwrap().push(route);
        self
    }

    /// Gives the listener `https`, `second`, `http` or `admin` these keys, besides its address.
    pub fn listener(mut self, name: &'static str, keys: Value) -> Builder {
        self.listeners.insert(name, keys);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Builder {
        self.env.insert(name.into(), value.into());
        self
    }

    /// As [`Builder::start`], with the plain HTTP listener serving the routes.
    pub fn start_plain(mut self) -> Gateway {
        self.plain = "routes";
        self.start()
    }

    /// Starts it and waits until it is ready. A port that was free may be taken by the time it is
    /// bound; then it is tried again with others.
    pub fn start(self) -> Gateway {
        const TRIES: usize = 5;
        for left in (0..TRIES).rev() {
            let mut gateway = self.spawn();
            match gateway.become_ready() {
                Ok(()) => return gateway,
                Err(log) if left > 0 && log.contains("can't listen on") => {}
                Err(log) => panic!("the gateway did not become ready:\n{log}"),
            }
        }
        unreachable!("the last try returns or panics");
    }

    /// Starts it without waiting.
    fn spawn(&self) -> Gateway {
        let dir = self.dir.clone().unwrap_or_else(|| Arc::new(workdir()));
        let mut ports = Vec::new();
        while ports.len() < 4 {
            // The system may offer one that it has offered just before.
            let port = free_port();
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let (https, http, admin, second) = (ports[0], ports[1], ports[2], ports[3]);
        let mut config = self.config.clone();
        let server = &mut config["server"];
        server["https"] = json!([{ "address": format!("127.0.0.1:{https}"), "certificates":
            [{ "cert": "certs/development.crt", "key": "certs/development.key", "development": true }] }]);
        server["http"] = json!([{ "address": format!("127.0.0.1:{http}"), "serve": self.plain }]);
        server["admin"] = json!({ "address": format!("127.0.0.1:{admin}") });
        if self.listeners.contains_key("second") {
            let address = json!({ "address": format!("127.0.0.1:{second}") });
            server["https"].as_array_mut().unwrap().push(address);
        }
        for (name, keys) in &self.listeners {
            let listener = match *name {
                "admin" => &mut server["admin"],
                "second" => &mut server["https"][1],
                name => &mut server[name][0],
            };
            for (key, value) in keys.as_object().unwrap() {
                listener[key] = value.clone();
            }
        }
        if server["threads"].is_null() {
            server["threads"] = json!(2);
        }
        let file = dir.path().join(format!("config-{https}.yaml"));
        std::fs::write(&file, serde_yaml::to_string(&config).unwrap()).unwrap();
        let mut child = command(&self.program, dir.path())
            .args(["serve", "--config"])
            .arg(&file)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = collect(child.stdout.take().unwrap());
        let stderr = collect(child.stderr.take().unwrap());
        Gateway {
            child: Some(child),
            dir,
            file,
            https,
            http,
            admin,
            second,
            stdout,
            stderr,
        }
    }
}

impl Gateway {
    /// Waits until it says that it is; fails with its log when it ended instead.
    fn become_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.stderr().contains("the gateway is ready") {
            if self.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                // The threads that collect its output may be a moment behind.
                std::thread::sleep(Duration::from_millis(50));
                return Err(self.stderr());
            }
            if Instant::now() >= deadline {
                return Err(self.stderr());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// A URL on the HTTPS listener.
    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.https)
    }

    pub fn http_url(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.http)
    }

    pub fn admin_url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin)
    }

    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// The configuration file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Changes the configuration file, by replacing it as a whole.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let text = std::fs::read_to_string(&self.file).unwrap();
        let mut config = serde_yaml::from_str(&text).unwrap();
        change(&mut config);
        self.write(&serde_yaml::to_string(&config).unwrap());
    }

    /// As [`Gateway::edit`], with any text.
    pub fn write(&self, text: &str) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }

    /// The value of a metric that is there, by its name with labels.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = self.admin_url("/metrics");
        let page = reqwest::Client::builder()
            .tls_certs_only([])
            .timeout(PATIENCE)
            .build()
            .unwrap()
            .get(url)
            .send()
            .await
            .ok()?
            .text()
            .await
            .ok()?;
        let line = page.lines().find_map(|line| line.strip_prefix(name))?;
        line.strip_prefix(' ')?.parse().ok()
    }

    /// Waits until so many reloads have ended with this result, since the start.
    pub async fn reloaded(&self, result: &str, count: u32) {
        let name = format!("wasmwiz_config_reloads_total{{result=\"{result}\"}}");
        super::eventually(&name, async || {
            let now = self.metric(&name).await?;
            assert!(now <= f64::from(count), "{name} is {now} already");
            (now == f64::from(count)).then_some(())
        })
        .await;
    }

    pub fn stdout(&self) -> String {
        self.stdout.lock().unwrap().clone()
    }

    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    /// The API key that the first start printed.
    pub fn admin_key(&self) -> String {
        // Another thread reads what was printed, and may be a moment late.
        let deadline = std::time::Instant::now() + PATIENCE;
        while !self.stdout().contains("ww_") && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let out = self.stdout();
        let at = out
            .find("ww_")
            .unwrap_or_else(|| panic!("no key was printed:\n{out}"));
        out[at..].split_whitespace().next().unwrap().to_owned()
    }

    /// A client that trusts this gateway's certificate, and nothing else.
    pub fn client(&self) -> reqwest::Client {
        self.client_builder().build().unwrap()
    }

    pub fn client_builder(&self) -> reqwest::ClientBuilder {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let pem = std::fs::read(self.dir.path().join("certs/development.crt")).unwrap();
        reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
    }

    /// TLS over a connection that is there already, with what the client offers by ALPN.
    pub async fn tls_over(
        &self,
        tcp: tokio::net::TcpStream,
        protocols: &[&[u8]],
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let trusted = self.dir.path().join("certs/development.crt");
        self.tls_trusting(tcp, &trusted, protocols).await
    }

    /// The same, with another certificate.
    pub async fn tls_trusting(
        &self,
        tcp: tokio::net::TcpStream,
        trusted: &Path,
        protocols: &[&[u8]],
    ) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        use rustls::pki_types::pem::PemObject;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(trusted).unwrap();
        for cert in rustls::pki_types::CertificateDer::pem_slice_iter(&pem) {
            roots.add(cert.unwrap()).unwrap();
        }
        let mut config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = "localhost".try_into().unwrap();
        connector.connect(name, tcp).await.unwrap()
    }

    /// Waits until this many guests run.
    pub async fn guests_running(&self, count: u32) {
        let line = format!("wasmwiz_guests_running {count}\n");
        let client = self.client();
        super::eventually(&line, async || {
            let page = client.get(self.admin_url("/metrics")).send().await.ok()?;
            page.text().await.ok()?.contains(&line).then_some(())
        })
        .await;
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for(PATIENCE)
    }

    /// Waits for the end of the process, which must come sooner than some other event would.
    pub fn wait_for(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        let child = self.child.as_mut().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the gateway did not end within {within:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the gateway's log:\n{}", self.stderr());
        }
    }
}

fn collect(pipe: impl std::io::Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&text);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { break };
            let mut into = into.lock().unwrap();
            into.push_str(&line);
            into.push('\n');
        }
    });
    text
}
