//! A real Redis for tests, thrown away afterwards.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PATIENCE, free_port};

/// A server with its own directory, port and password.
pub struct Redis {
    directory: TempDir,
    port: u16,
    password: String,
    /// Whether it keeps what it holds when it ends.
    keeps: bool,
    /// Certificate and key, where it speaks TLS.
    tls: Option<(PathBuf, PathBuf)>,
    running: Option<Running>,
}

struct Running {
    server: Child,
    /// Ends the server when this process ends without doing so: it waits for the end of its standard
    /// input, which the kernel closes in any case.
    janitor: Child,
}

impl Redis {
    /// One that loses everything when it ends.
    pub fn forgetful() -> Redis {
        Redis::new(false, None)
    }

    /// One that writes down every change before it answers.
    pub fn keeping() -> Redis {
        Redis::new(true, None)
    }

    /// One that speaks nothing but TLS.
    pub fn with_tls(certificate: &Path, key: &Path) -> Redis {
        Redis::new(false, Some((certificate.to_owned(), key.to_owned())))
    }

    fn new(keeps: bool, tls: Option<(PathBuf, PathBuf)>) -> Redis {
        let prefix = "wasm-wizard-redis-";
        let mut redis = Redis {
            directory: tempfile::Builder::new().prefix(prefix).tempdir().unwrap(),
            port: free_port(),
            password: uuid::Uuid::new_v4().simple().to_string(),
            keeps,
            tls,
            running: None,
        };
        redis.start();
        redis
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() {
            "rediss"
        } else {
            "redis"
        };
        format!("{scheme}://:{}@localhost:{}", self.password, self.port)
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// Starts it again on the same port, after [`Redis::kill`].
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let port = self.port.to_string();
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--save", ""])
            .args(["--requirepass", &self.password])
            .arg("--dir")
            .arg(self.directory.path())
            .args(["--appendonly", if self.keeps { "yes" } else { "no" }])
            .args(["--appendfsync", "always"]);
        match &self.tls {
            None => command.args(["--port", &port]),
            Some((certificate, key)) => command
                .args([
                    "--port",
                    "0",
                    "--tls-port",
                    &port,
                    "--tls-auth-clients",
                    "no",
                ])
                .arg("--tls-cert-file")
                .arg(certificate)
                .arg("--tls-key-file")
                .arg(key),
        };
        self.run(command);
    }

    fn run(&mut self, mut command: Command) {
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let server = started.unwrap_or_else(|error| {
            panic!("redis-server can't be started ({error}): apt-get install redis-server")
        });
        let janitor = Command::new("/bin/sh")
            .args(["-c", "cat > /dev/null; kill -KILL \"$1\"", "janitor"])
            .arg(server.id().to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.running = Some(Running { server, janitor });
        self.wait_until_it_answers();
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            // First, so that it does not end another process that has the number by then.
            running.janitor.kill().unwrap();
            running.janitor.wait().unwrap();
            running.server.kill().unwrap();
            running.server.wait().unwrap();
        }
    }

    /// Stops it where it is: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`Redis::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// One that is started as an operator's would be, by a configuration file `redis.conf` in this directory, which says
    /// this port and password.
    pub fn with_configuration(directory: TempDir, port: u16, password: &str) -> Redis {
        let mut redis = Redis {
            directory,
            port,
            password: password.to_owned(),
            keeps: true,
            tls: None,
            running: None,
        };
        let mut command = Command::new("redis-server");
        command.arg(redis.directory.path().join("redis.conf"));
        redis.run(command);
        redis
    }

    /// What `CONFIG GET` says of one setting.
    pub fn setting(&self, name: &str) -> String {
        let lines = self.lines(&format!("CONFIG GET {name}"), 6).unwrap();
        // The answer to AUTH, then an array of two texts, each after its length.
        lines[5].clone()
    }

    /// Runs one command and returns the first line of its answer.
    pub fn command(&self, command: &str) -> String {
        self.try_command(command).unwrap()
    }

    fn try_command(&self, command: &str) -> std::io::Result<String> {
        let mut lines = self.lines(command, 2)?;
        lines
            .pop()
            .filter(|_| lines.len() == 1)
            .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }

    /// So many lines of the answers to AUTH and a command.
    fn lines(&self, command: &str, count: usize) -> std::io::Result<Vec<String>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "AUTH {}\r\n{command}\r\n", self.password)?;
        BufReader::new(stream).lines().take(count).collect()
    }

    fn signal(&self, name: &str) {
        let pid = self.running.as_ref().unwrap().server.id().to_string();
        let status = Command::new("kill").args([name, &pid]).status();
        assert!(status.unwrap().success());
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        let answers = || match &self.tls {
            None => self.try_command("PING").is_ok_and(|line| line == "+PONG"),
            Some(_) => TcpStream::connect(("127.0.0.1", self.port)).is_ok(),
        };
        while !answers() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}
