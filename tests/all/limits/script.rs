//! The script in Redis does what the model does, and Redis forgets what nobody needs any more.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use uuid::Uuid;
use wasm_wizard::limits::store::leases::{Answer, Call, LEASE, Leases, Taken};
use wasm_wizard::limits::{Rate, RouteKey, Subject, Tier};

use super::model::Store;
use crate::support::redis::Redis;
use crate::support::root;

const SECOND: u64 = 1_000_000;

type Said = (i64, String, String, u32, bool, u32);

/// The script with a clock of the test's.
fn script() -> String {
    let path = root().join("src/limits/store/lease.lua");
    let script = std::fs::read_to_string(path).unwrap();
    let clock = "local clock = redis.call('TIME')\nlocal now = clock[1] * 1000000 + clock[2]\n";
    assert!(script.contains(clock));
    script.replace(clock, "local now = tonumber(ARGV[18])\n")
}

async fn connect(redis: &Redis) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

async fn ask(
    connection: &mut MultiplexedConnection,
    script: &str,
    key: &str,
    gateway: &str,
    call: &Call,
    now: u64,
) -> Option<Answer> {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(1).arg(key).arg(gateway);
    command.arg(call.sequence);
    for (limit, window) in call.windows() {
        command.arg(limit).arg(window);
    }
    command
        .arg(call.owes_limits())
        .arg(call.held)
        .arg(call.back)
        .arg(call.need)
        .arg(call.ahead)
        .arg(call.owed)
        .arg(LEASE.as_micros() as u64)
        .arg(call.seed[0].to_string())
        .arg(call.seed[1].to_string())
        .arg(i32::from(call.restores))
        .arg(call.idle)
        .arg(now);
    let (granted, minute, day, idle_elsewhere, is_wanted, excess): Said =
        command.query_async(connection).await.unwrap();
    let granted = u32::try_from(granted).ok()?;
    let debts = [minute.parse().unwrap(), day.parse().unwrap()];
    Some(Answer {
        granted,
        debts,
        idle_elsewhere,
        is_wanted,
        excess,
    })
}

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[tokio::test]
async fn the_script_agrees_with_the_model() {
    let redis = Redis::forgetful();
    let mut connection = connect(&redis).await;
    let script = script();
    let user = Uuid::from_u128(1);
    let rate = |per_minute, per_day| Rate {
        per_minute,
        per_day,
    };
    let subjects = [
        (
            Subject::User(user, Tier::Basic),
            rate(Some(100), Some(10_000)),
        ),
        (Subject::User(user, Tier::Free), rate(Some(7), None)),
        (
            Subject::RouteUser(RouteKey::of("r"), user),
            rate(None, Some(50)),
        ),
        (
            Subject::RouteAddress(RouteKey::of("r"), "192.0.2.1".parse().unwrap()),
            rate(Some(1), Some(3)),
        ),
        (
            Subject::Cpu(user, Tier::Free),
            rate(Some(1_000), Some(50_000)),
        ),
        (Subject::Guests(user, Tier::Free), rate(Some(5), None)),
    ];
    let mut all_granted = 0;
    for (number, (subject, rate)) in subjects.into_iter().enumerate() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 + number as u64);
        let mut model = Store::default();
        let origin = Instant::now();
        let mut gateways: Vec<Leases> = (0..3).map(|_| Leases::new(100, origin)).collect();
        let (mut now, mut granted) = (1_700_000_000 * SECOND, 0);
        let (begun, mut waiting) = (now, Vec::new());
        for step in 0..400 {
            now += [0, 13, 5_000, SECOND, 7 * SECOND][random.below(5) as usize];
            let index = random.below(3) as usize;
            if random.below(60) == 0 {
                gateways[index] = Leases::new(100, origin);
            }
            let leases = &mut gateways[index];
            leases.set_up(true);
            let at = origin + Duration::from_micros(now - begun);
            for _ in 0..random.below(20) {
                match random.below(8) {
                    0 => leases.charge(&subject, rate, random.below(3_000), at),
                    1 => leases.release(&subject, at),
                    2 if matches!(subject, Subject::Guests(..)) => {
                        leases.occupy(&subject, rate, at);
                    }
                    _ => {
                        if let Taken::Asked(asked) = leases.take(&subject, rate, at) {
                            waiting.push(asked);
                        }
                    }
                }
            }
            leases.sweep(at);
            if random.below(100) == 0 {
                leases.store_has_lost(Duration::from_secs(random.below(50)), at);
            }
            for call in leases.collect(10, at) {
                let name = format!("gateway{index}");
                let expected = model.call(&name, &call, now);
                let answer = ask(&mut connection, &script, "k", &name, &call, now).await;
                assert_eq!(answer, expected, "step {step}: {call:?}");
                granted += answer.map_or(0, |answer| answer.granted);
                if random.below(10) > 0 {
                    leases.settle(&call, answer, at);
                } else {
                    leases.fail(&call);
                }
                // Old news is no news.
                if call.held + answer.map_or(0, |a| a.granted) > 0 {
                    let again = ask(&mut connection, &script, "k", &name, &call, now).await;
                    assert_eq!(again, None);
                    assert_eq!(model.call(&name, &call, now), None);
                }
            }
        }
        all_granted += granted;
        redis.command("FLUSHALL");
    }
    // What is charged besides may leave nothing of the smallest limits.
    assert!(all_granted > 0);
}

/// What other gateways, of another version perhaps, read. Where this has to be changed, `FORMAT` in
/// `limits/store/redis.rs` has to be raised, which is part of the keys.
#[tokio::test]
async fn what_is_stored_is_of_format_2() {
    let redis = Redis::forgetful();
    let mut connection = connect(&redis).await;
    let script = script();
    let (origin, now) = (Instant::now(), 1_700_000_000 * SECOND);
    let user = Uuid::from_u128(1);
    let rate = Rate {
        per_minute: Some(3),
        per_day: None,
    };
    let mut stored = Vec::new();
    for subject in [
        Subject::Guests(user, Tier::Free),
        Subject::User(user, Tier::Free),
    ] {
        for gateway in ["g1", "g2"] {
            let leases = Leases::new(100, origin);
            leases.set_up(true);
            let waiting: Vec<Taken> = (0..2)
                .map(|_| leases.take(&subject, rate, origin))
                .collect();
            let call = leases.collect(1, origin).remove(0);
            ask(&mut connection, &script, "k", gateway, &call, now).await;
            drop(waiting);
        }
        let mut all = redis::cmd("HGETALL");
        let fields: std::collections::BTreeMap<String, String> =
            all.arg("k").query_async(&mut connection).await.unwrap();
        stored.push(fields);
        redis.command("FLUSHALL");
    }
    let expected = [
        &[
            ("a", "3"),
            ("b", "0"),
            ("g1", "2 1700000005000000 1 0"),
            ("g2", "1 1700000005000000 1 0"),
            ("t", "1700000000000000"),
            ("w", "g2 1700000001000000"),
        ][..],
        &[
            ("a", "120000000"),
            ("b", "0"),
            ("g1", "2 1700000005000000 1 0"),
            ("t", "1700000000000000"),
        ],
    ];
    for (stored, expected) in stored.iter().zip(expected) {
        let stored: Vec<(&str, &str)> = stored.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(stored, expected);
    }
}

#[tokio::test]
async fn large_limits_lose_less_than_a_token() {
    let redis = Redis::forgetful();
    let mut connection = connect(&redis).await;
    let subject = Subject::User(Uuid::from_u128(1), Tier::Enterprise);
    let rate = Rate {
        per_minute: Some(u32::MAX),
        per_day: Some(u32::MAX),
    };
    let origin = Instant::now();
    let leases = Leases::new(100, origin);
    leases.set_up(true);
    let (script, mut now) = (script(), 1_700_000_000 * SECOND);
    let mut last = None;
    for _ in 0..200 {
        now += 1;
        let _asked = leases.take(&subject, rate, origin);
        leases.charge(&subject, rate, 1_000_000_000, origin);
        leases.sweep(origin);
        for call in leases.collect(10, origin) {
            last = ask(&mut connection, &script, "k", "g", &call, now).await;
            leases.settle(&call, last, origin);
        }
    }
    // 200 million were charged, and hardly any time has passed for the day.
    let tokens = last.unwrap().debts[1] as f64 / (86_400.0 * SECOND as f64);
    let granted = tokens - 200_000_000.0;
    assert!(granted > -20.0 && granted < 2_000_000.0, "{granted}");
}

#[tokio::test]
async fn keys_end_by_themselves() {
    let redis = Redis::forgetful();
    let mut connection = connect(&redis).await;
    let path = root().join("src/limits/store/lease.lua");
    let script = std::fs::read_to_string(path).unwrap();
    let now = Instant::now();
    let leases = Leases::new(100, now);
    leases.set_up(true);
    for (user, rate) in [
        (
            1,
            Rate {
                per_minute: Some(60),
                per_day: None,
            },
        ),
        (
            2,
            Rate {
                per_minute: Some(60),
                per_day: Some(86_400),
            },
        ),
    ] {
        let subject = Subject::User(Uuid::from_u128(user), Tier::Free);
        let _asked = leases.take(&subject, rate, now);
        for call in leases.collect(10, now) {
            let key = format!("k{user}");
            ask(&mut connection, &script, &key, "g", &call, 0).await;
            // A token is back after a second, the lease ends after five.
            let left: i64 = redis::cmd("PTTL")
                .arg(&key)
                .query_async(&mut connection)
                .await
                .unwrap();
            assert!((5_000..=6_100).contains(&left), "{left}");
        }
    }
}
