//! `cargo bench --bench https -- COMMAND`: a client that measures a gateway over HTTPS, one figure
//! per line. `scripts/bench_gateway.sh` starts the gateway and runs it.
//!
//! Every time is the client's: from sending the request to having the whole answer, on connections
//! that are already open.

#[path = "support/guests.rs"]
mod guests;
#[path = "support/report.rs"]
mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use report::{Samples, figure};
use reqwest::multipart::{Form, Part};
use reqwest::{Client, RequestBuilder, StatusCode};

const USAGE: &str = "\
usage: https COMMAND     with the gateway's address in BASE (https://host:port) and an API key in KEY

  upload NAME COUNT MS         a never-seen module each time, so long after the last: upload, and the guest's output
  again NAME COUNT             the same bytes each time, beside the stored module with as large a body
  kill COUNT MS PATH           how far answers are behind a deadline, one guest at a time
  crowd SPINNERS MS PATH PROBE...   latency of each PROBE while SPINNERS guests spin on PATH";

/// What the guests are given to read.
const INPUT: &str = "one 2 three 4.5";

fn main() -> ExitCode {
    // Cargo says `--bench` to every benchmark. Without a gateway there is nothing to measure.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words.is_empty() {
        return ExitCode::SUCCESS;
    }
    let gateway = Gateway::from_environment();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let done = match words.as_slice() {
        ["upload", name, count, ms] => number(count)
            .zip(number(ms))
            .map(|(n, ms)| runtime.block_on(gateway.upload(name, n, ms))),
        ["again", name, count] => number(count).map(|n| runtime.block_on(gateway.again(name, n))),
        ["kill", count, ms, path] => number(count)
            .zip(number(ms))
            .map(|(n, ms)| runtime.block_on(gateway.kill(n, Duration::from_millis(ms), path))),
        ["crowd", spinners, ms, path, probes @ ..] => {
            number(spinners).zip(number(ms)).map(|(n, ms)| {
                runtime.block_on(gateway.crowd(n, Duration::from_millis(ms), path, probes));
            })
        }
        _ => None,
    };
    if done.is_none() {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok()
}

#[derive(Clone)]
struct Gateway {
    client: Client,
    base: String,
    key: String,
}

impl Gateway {
    fn from_environment() -> Gateway {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let variable = |name| std::env::var(name).unwrap_or_default();
        Gateway {
            client: client(),
            base: variable("BASE"),
            key: variable("KEY"),
        }
    }

    /// The same gateway over connections of its own.
    fn apart(&self) -> Gateway {
        Gateway {
            client: client(),
            ..self.clone()
        }
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.base))
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.client
            .post(format!("{}{path}", self.base))
            .bearer_auth(&self.key)
    }

    /// `POST /api/wasm/execute` with this module.
    fn execute(&self, wasm: bytes::Bytes) -> RequestBuilder {
        let form = Form::new()
            .part("wasm", Part::stream(wasm))
            .text("input", INPUT);
        self.post("/api/wasm/execute").multipart(form)
    }

    async fn upload(&self, name: &str, count: u64, pause_ms: u64) {
        let wasm = guests::guest(name);
        self.execute(wasm.clone()).send().await.expect("an answer");
        let mut times = Vec::new();
        for number in 0..count {
            let number = number | u64::from(std::process::id()) << 32;
            let request = self.execute(guests::never_seen(&wasm, number));
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            times.push(answered(request, StatusCode::OK).await);
        }
        let when = match pause_ms {
            0 => "one after the other".to_owned(),
            _ => format!("{pause_ms} ms apart"),
        };
        Samples::new(times).print_ms(&format!("https never-seen {name} {when}"));
    }

    async fn again(&self, name: &str, count: u64) {
        let wasm = guests::guest(name);
        let form = Form::new()
            .part("wasm", Part::stream(wasm.clone()))
            .text("name", "again");
        let stored = self
            .post("/api/wasm/upload")
            .multipart(form)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .expect("a module that is stored");
        let stored: serde_json::Value = stored.json().await.expect("JSON");
        let id = stored["id"].as_str().expect("an id").to_owned();
        let path = format!("/api/wasm/modules/{id}/execute");
        // The guest is given as many bytes as the upload has, so that both carry the same load.
        let large = vec![b' '; wasm.len()];
        let (mut again, mut with_body, mut small) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count + 20 {
            let times = [
                answered(self.execute(wasm.clone()), StatusCode::OK).await,
                answered(self.post(&path).body(large.clone()), StatusCode::OK).await,
                answered(self.post(&path).body(INPUT), StatusCode::OK).await,
            ];
            // The first ones meet code that is about to be replaced by better code.
            if number >= 20 {
                again.push(times[0]);
                with_body.push(times[1]);
                small.push(times[2]);
            }
        }
        let removed = self
            .client
            .delete(format!("{}/api/wasm/modules/{id}", self.base));
        removed
            .bearer_auth(&self.key)
            .send()
            .await
            .expect("an answer");
        let (again, with_body) = (Samples::new(again), Samples::new(with_body));
        again.print_ms(&format!("https same-again {name}"));
        with_body.print_ms(&format!("https stored-with-body {name}"));
        Samples::new(small).print_ms(&format!("https stored {name}"));
        let ratio = again.quantile(0.5).as_secs_f64() / with_body.quantile(0.5).as_secs_f64();
        figure(
            &format!("https same-again:stored-with-body {name}"),
            ratio,
            "x",
        );
    }

    async fn kill(&self, count: u64, deadline: Duration, path: &str) {
        answered(self.get("/health"), StatusCode::OK).await;
        let mut times = Vec::new();
        for _ in 0..count {
            let time = answered(self.get(path), StatusCode::GATEWAY_TIMEOUT).await;
            times.push(
                time.checked_sub(deadline)
                    .expect("a guest that has all of its time"),
            );
        }
        Samples::new(times).print_ms(&format!("https overrun {} ms", deadline.as_millis()));
    }

    async fn crowd(&self, spinners: u64, deadline: Duration, path: &str, probes: &[&str]) {
        for probe in probes {
            self.probe(probe, Duration::from_millis(500), "idle").await;
        }
        // Connections of their own, so that the probes keep those that are open.
        let spinner = self.apart();
        let spinning: Vec<_> = (0..spinners)
            .map(|_| {
                let (gateway, path) = (spinner.clone(), path.to_owned());
                tokio::spawn(async move { answer(gateway.get(&path)).await })
            })
            .collect();
        // Until all of them spin; and the probes end before the first of them does.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let time = deadline.saturating_sub(Duration::from_millis(1500));
        let probing = probes
            .iter()
            .map(|probe| self.probe(probe, time, "crowded"));
        futures_util::future::join_all(probing).await;
        let mut times = Vec::new();
        for guest in spinning {
            let (time, status, _) = guest.await.expect("an answer");
            if status == StatusCode::GATEWAY_TIMEOUT {
                times.push(time.saturating_sub(deadline));
            }
        }
        figure(
            "https crowd ended at their deadline",
            times.len() as f64,
            "guests",
        );
        Samples::new(times).print_ms("https crowd overrun");
    }

    /// One request after the other with a little rest between, so that the client loads nothing.
    async fn probe(&self, path: &str, time: Duration, state: &str) {
        let end = Instant::now() + time;
        let mut times = Vec::new();
        while Instant::now() < end {
            times.push(answered(self.get(path), StatusCode::OK).await);
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        Samples::new(times).print_ms(&format!("https {path} {state}"));
    }
}

fn client() -> Client {
    Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .http1_only()
        .pool_idle_timeout(None)
        .timeout(Duration::from_secs(60))
        .no_proxy()
        .build()
        .expect("a client")
}

/// The time until the whole answer is there, which must have this status.
async fn answered(request: RequestBuilder, expected: StatusCode) -> Duration {
    let (time, status, body) = answer(request).await;
    assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body));
    time
}

async fn answer(request: RequestBuilder) -> (Duration, StatusCode, bytes::Bytes) {
    let begun = Instant::now();
    let response = request.send().await.expect("an answer");
    let status = response.status();
    let body = response.bytes().await.expect("a whole answer");
    (begun.elapsed(), status, body)
}
