//! Records outlive the gateway, however it ends, and the database's absence.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, gateway};
use crate::support::postgres;

/// Requests at the same time.
const CLIENTS: usize = 4;

/// What clients sent, and what was answered whole.
#[derive(Default)]
struct Seen {
    sent: AtomicU64,
    answered: Mutex<HashSet<String>>,
    /// Answers of a status that must not be.
    failed: Mutex<Vec<String>>,
    /// How long answers took, in microseconds.
    took: Mutex<Vec<u64>>,
}

impl Seen {
    fn answered(&self) -> usize {
        self.answered.lock().unwrap().len()
    }

    /// Says how long answers have taken since it was last asked.
    fn print_latency(&self, when: &str) {
        let mut took = std::mem::take(&mut *self.took.lock().unwrap());
        took.sort_unstable();
        let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or(0);
        println!(
            "{when}: {} answers, p50 {} us, p99 {} us",
            took.len(),
            at(50),
            at(99)
        );
    }
}

/// Clients that send requests, each with an id of its own, until they are told to stop or, where the gateway
/// may be killed, find it gone.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Load {
    fn start(gateway: &Gateway, key: &str, seen: &Arc<Seen>) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(seen));
            let (client, url, key) = (gateway.client(), gateway.url("/fn/echo"), key.to_owned());
            clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let id = format!("q-{}", seen.sent.fetch_add(1, Ordering::Relaxed));
                    let request = client.post(&url).bearer_auth(&key);
                    let request = request.header("x-request-id", &id).body("ping");
                    let begun = Instant::now();
                    let Ok(answer) = request.send().await else {
                        return;
                    };
                    let status = answer.status();
                    let Ok(body) = answer.text().await else {
                        return;
                    };
                    let took = begun.elapsed().as_micros() as u64;
                    seen.took.lock().unwrap().push(took);
                    if status == 200 && body == "ping" {
                        seen.answered.lock().unwrap().insert(id);
                    } else {
                        seen.failed.lock().unwrap().push(format!("{status} {body}"));
                    }
                }
            });
        }
        Load { stop, clients }
    }

    async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
    }
}

fn on(database: &str) -> Builder {
    gateway()
        .set("server.trusted_proxies", json!(["127.0.0.0/8", "::1/128"]))
        .set("logging.access", json!(false))
        .env("DATABASE_URL", database)
}

/// How often each request is in the database.
async fn recorded(database: &str) -> HashMap<String, i64> {
    let mut connection = PgConnection::connect(database).await.unwrap();
    let rows: Vec<(String, i64)> =
        sqlx::query_as("SELECT request_id, COUNT(*) FROM usage GROUP BY request_id")
            .fetch_all(&mut connection)
            .await
            .unwrap();
    rows.into_iter().collect()
}

/// Waits until everything that was answered is recorded, and holds that nothing is twice. Returns how many
/// rows there are.
async fn all_arrive(database: &str, seen: &Seen) -> usize {
    let answered = seen.answered.lock().unwrap().clone();
    let rows = eventually("every answered execution is recorded", async || {
        let rows = recorded(database).await;
        answered
            .iter()
            .all(|id| rows.contains_key(id))
            .then_some(rows)
    })
    .await;
    let twice: Vec<_> = rows.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    let strange: Vec<_> = rows.keys().filter(|id| !id.starts_with("q-")).collect();
    assert!(strange.is_empty(), "{strange:?}");
    rows.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answered_execution_is_lost_when_the_gateway_is_killed() {
    const KILLS: usize = 20;
    let database = postgres::database().await;
    let seen = Arc::new(Seen::default());
    let mut gateway = on(&database).start();
    let key = gateway.admin_key();
    for round in 0..KILLS {
        let load = Load::start(&gateway, &key, &seen);
        // Early and late in what the delivery does.
        let until = seen.answered() + 20 + (round * 53) % 400;
        eventually("requests are answered", async || {
            (seen.answered() >= until).then_some(())
        })
        .await;
        gateway.signal("KILL");
        gateway.wait();
        load.end().await;
        gateway = on(&database).in_dir_of(&gateway).start();
    }
    let rows = all_arrive(&database, &seen).await;
    let answered = seen.answered();
    assert_eq!(*seen.failed.lock().unwrap(), [""; 0]);
    // Those that were recorded when the kill kept their answer from leaving.
    let unanswered = rows - answered;
    assert!(
        unanswered <= KILLS * CLIENTS,
        "{rows} rows, {answered} answers"
    );
    println!(
        "{KILLS} kills: {answered} executions answered, {rows} rows, {unanswered} cut off after they were recorded"
    );
    eventually("the journals of the killed are gone", async || {
        let left = std::fs::read_dir(gateway.dir().join("data/usage")).unwrap();
        (left.count() == 1).then_some(())
    })
    .await;
    // The sums agree with the rows.
    let mut connection = PgConnection::connect(&database).await.unwrap();
    let sum: i64 = sqlx::query_scalar("SELECT CAST(SUM(executions) AS BIGINT) FROM usage_daily")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(sum as usize, rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn executions_go_on_while_the_database_is_away_and_all_records_arrive() {
    let mut server = postgres::Server::start_new().await;
    let database = server.database().await;
    let gateway = on(&database).start();
    let key = gateway.admin_key();
    let seen = Arc::new(Seen::default());
    let load = Load::start(&gateway, &key, &seen);
    eventually("requests are answered", async || {
        (seen.answered() >= 50).then_some(())
    })
    .await;
    seen.print_latency("with the database");
    let (gone, away) = (Instant::now(), outage());
    server.kill();
    eventually("the gateway sees that the database is gone", async || {
        (gateway.metric("wasmwiz_database_up").await? == 0.0).then_some(())
    })
    .await;
    let until = seen.answered() + 1000;
    eventually("requests are answered all the same", async || {
        (seen.answered() >= until).then_some(())
    })
    .await;
    eventually("what was executed waits", async || {
        (gateway.metric("wasmwiz_usage_journal_rows").await? >= 1000.0).then_some(())
    })
    .await;
    while gone.elapsed() < away {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    seen.print_latency("without the database");
    server.start().await;
    eventually("the gateway sees that the database is back", async || {
        (gateway.metric("wasmwiz_database_up").await? == 1.0).then_some(())
    })
    .await;
    load.end().await;
    assert_eq!(*seen.failed.lock().unwrap(), [""; 0], "no request failed");
    seen.print_latency("with the database again");
    let rows = all_arrive(&database, &seen).await;
    assert_eq!(rows, seen.answered());
    println!("{rows} executions answered, {rows} rows");
}

/// How long the database is away at least: `scripts/soak_outage.sh` makes it long.
fn outage() -> Duration {
    let seconds = std::env::var("WW_SOAK_OUTAGE_SECONDS");
    Duration::from_secs(seconds.map_or(0, |seconds| seconds.parse().unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_delivered_before_the_end_is_delivered_by_the_next() {
    let mut server = postgres::Server::start_new().await;
    let database = server.database().await;
    let mut first = on(&database).start();
    let key = first.admin_key();
    let seen = Arc::new(Seen::default());
    let load = Load::start(&first, &key, &seen);
    eventually("requests are answered", async || {
        (seen.answered() >= 20).then_some(())
    })
    .await;
    server.kill();
    let until = seen.answered() + 50;
    eventually("requests are answered without the database", async || {
        (seen.answered() >= until).then_some(())
    })
    .await;
    load.end().await;
    first.terminate();
    assert_eq!(first.wait().code(), Some(0), "{}", first.stderr());
    // What a machine that lost power might leave, beside it.
    let journal = std::fs::read_dir(first.dir().join("data/usage"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .next()
        .expect("the journal stays");
    std::fs::write(journal.join("000000099999.segment"), [0xa5; 70_000]).unwrap();
    std::fs::write(journal.join("000000099998.segment"), b"wwusage1 torn").unwrap();
    server.start().await;
    let next = on(&database).in_dir_of(&first).start();
    let rows = all_arrive(&database, &seen).await;
    assert_eq!(rows, seen.answered());
    assert!(
        next.stderr().contains("is not one of ours"),
        "{}",
        next.stderr()
    );
    drop(next);
}
