//! A real PostgreSQL for tests, thrown away afterwards.
//!
//! [`database`] gives a fresh database on a server that all tests of this process share; a test
//! that stops or kills its server starts one of its own with [`Server::start_new`].

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

const DEFAULT_BIN: &str = "/usr/lib/postgresql/15/bin";

/// Longest wait for a server to accept connections: other tests may hold the machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// The URL of a new, empty database on the shared server.
pub async fn database() -> String {
    static SHARED: OnceCell<Server> = OnceCell::const_new();
    let server = SHARED
        .get_or_init(|| async { Server::start_new().await })
        .await;
    server.database().await
}

/// A server with its own data directory and port.
pub struct Server {
    directory: TempDir,
    port: u16,
    password: String,
    owner: Option<Owner>,
    process: Option<Child>,
    databases: AtomicU32,
    /// Cleans up when this process ends without dropping the server, as it does with the shared
    /// one: it waits for the end of its standard input, which the kernel closes in any case.
    janitor: Child,
}

/// Who runs the server when we are root, which PostgreSQL refuses to be.
#[derive(Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Server {
    pub async fn start_new() -> Server {
        let directory = tempfile::Builder::new()
            .prefix("wasm-wizard-pg-")
            .tempdir()
            .unwrap();
        let owner = owner(directory.path());
        let password = uuid::Uuid::new_v4().simple().to_string();
        init(directory.path(), owner, &password);
        let janitor = janitor(directory.path());
        let mut server = Server {
            directory,
            port: free_port(),
            password,
            owner,
            process: None,
            databases: AtomicU32::new(0),
            janitor,
        };
        server.start().await;
        server
    }

    /// The URL of the database `postgres`, with the superuser's name and password.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// Makes a new, empty database.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create)
            .execute(&mut connection)
            .await
            .unwrap();
        connection.close().await.unwrap();
        self.url_of(&name)
    }

    /// Starts the server again, with this certificate for TLS.
    pub async fn speak_tls(&mut self, certificate: &str, key: &str) {
        for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
            let path = self.data().join(name);
            fs::write(&path, pem).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some(Owner { uid, gid }) = self.owner {
                chown(&path, Some(uid), Some(gid)).unwrap();
            }
        }
        let settings = self.data().join("postgresql.auto.conf");
        let mut text = fs::read_to_string(&settings).unwrap();
        text.push_str("ssl = on\n");
        fs::write(&settings, text).unwrap();
        self.stop();
        self.start().await;
    }

    /// Starts the server again on the same port and data, after `stop` or `kill`.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        let log = fs::File::create(self.directory.path().join("log")).unwrap();
        let mut command = command("postgres", self.owner);
        command.arg("-D").arg(self.data());
        for setting in [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={}", self.port),
            format!(
                "unix_socket_directories={}",
                self.directory.path().display()
            ),
            "fsync=off".to_owned(),
            "max_connections=200".to_owned(),
        ] {
            command.arg("-c").arg(setting);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.process = Some(command.spawn().unwrap());
        self.wait_until_it_answers().await;
    }

    /// Ends the server as an operator would: transactions are rolled back, clients are told.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            signal(process.id(), "-INT");
            process.wait().unwrap();
        }
    }

    /// Ends the server as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGQUIT makes the children exit at once, without a checkpoint; SIGKILL would leave
            // them behind, and with them the shared memory that keeps a new server from starting.
            signal(process.id(), "-QUIT");
            process.wait().unwrap();
        }
    }

    /// Stops the server's processes where they are: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal_all("-STOP");
    }

    /// Lets the server go on after `freeze`.
    pub fn thaw(&self) {
        self.signal_all("-CONT");
    }

    fn signal_all(&self, name: &str) {
        let Some(process) = &self.process else { return };
        let pid = process.id();
        for child in children(pid) {
            signal(child, name);
        }
        signal(pid, name);
    }

    async fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let error = match PgConnection::connect(&self.url()).await {
                Ok(connection) => {
                    connection.close().await.unwrap();
                    return;
                }
                Err(error) => error,
            };
            let ended = self
                .process
                .as_mut()
                .and_then(|process| process.try_wait().unwrap());
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "postgres ended with {ended:?}:\n{}", log());
            assert!(
                Instant::now() < deadline,
                "postgres does not answer: {error}\n{}",
                log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn url_of(&self, database: &str) -> String {
        format!(
            "postgres://postgres:{}@127.0.0.1:{}/{database}",
            self.password, self.port
        )
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.thaw();
        self.kill();
        // Closing its input ends it.
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// Makes the data directory. The superuser is `postgres`, by password only, so that tests see a
/// server that checks it.
fn init(directory: &Path, owner: Option<Owner>, password: &str) {
    let password_file = directory.join("password");
    fs::write(&password_file, password).unwrap();
    if let Some(Owner { uid, gid }) = owner {
        chown(&password_file, Some(uid), Some(gid)).unwrap();
    }
    let output = command("initdb", owner)
        .arg("-D")
        .arg(directory.join("data"))
        .args([
            "--username=postgres",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--no-sync",
        ])
        .arg("--locale=C.UTF-8")
        .arg("--pwfile")
        .arg(&password_file)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "initdb: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::remove_file(password_file).unwrap();
}

/// Who is to run the server, who then owns the directory.
fn owner(directory: &Path) -> Option<Owner> {
    use std::os::unix::fs::MetadataExt;
    let we_are_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !we_are_root {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line
        .unwrap_or_else(|| missing("the user postgres"))
        .split(':')
        .collect();
    let owner = Owner {
        uid: fields[2].parse().unwrap(),
        gid: fields[3].parse().unwrap(),
    };
    chown(directory, Some(owner.uid), Some(owner.gid)).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    Some(owner)
}

fn command(program: &str, owner: Option<Owner>) -> Command {
    let directory =
        std::env::var_os("PG_BIN").map_or_else(|| PathBuf::from(DEFAULT_BIN), PathBuf::from);
    let path = directory.join(program);
    if !path.exists() {
        missing(&path.display().to_string());
    }
    let mut command = Command::new(path);
    // Out of the caller's directory, which the other user may not enter.
    command.current_dir("/").env("LC_ALL", "C");
    if let Some(Owner { uid, gid }) = owner {
        command.uid(uid).gid(gid);
    }
    command
}

fn missing(what: &str) -> ! {
    panic!("{what} is missing: apt-get install postgresql, or set PG_BIN to where its programs are")
}

fn janitor(directory: &Path) -> Child {
    const SCRIPT: &str = r#"
        trap '' INT TERM HUP
        cat > /dev/null
        if pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null); then
            kill -CONT "$pid"; kill -QUIT "$pid"
            while kill -0 "$pid" 2> /dev/null; do sleep 0.1; done
        fi
        rm -rf "$1"
    "#;
    Command::new("/bin/sh")
        .args(["-c", SCRIPT, "janitor"])
        .arg(directory)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn children(pid: u32) -> Vec<u32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn signal(pid: u32, name: &str) {
    // It fails when the process has ended by itself, which is what the caller waits for anyway.
    Command::new("/bin/kill")
        .arg(name)
        .arg(pid.to_string())
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
