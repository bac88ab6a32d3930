use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, RwLock};

use super::*;

/// What a look-up answers, in turn; the last answer repeats.
#[derive(Clone)]
struct Script {
    answers: Arc<Vec<io::Result<Vec<SocketAddr>>>>,
    asked: Arc<AtomicUsize>,
}

impl Script {
    fn new(answers: Vec<io::Result<Vec<SocketAddr>>>) -> Script {
        Script {
            answers: Arc::new(answers),
            asked: Arc::default(),
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn lookup(
        &self,
    ) -> impl Fn(String, u16) -> std::future::Ready<io::Result<Vec<SocketAddr>>> + Send + 'static
    {
        let script = self.clone();
        move |_, _| {
            let at = script
                .asked
                .fetch_add(1, Ordering::SeqCst)
                .min(script.answers.len() - 1);
            std::future::ready(match &script.answers[at] {
                Ok(addresses) => Ok(addresses.clone()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            })
        }
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
static ELAPSED: RwLock<Duration> = RwLock::new(Duration::ZERO);

fn clock() -> Instant {
    *START + *ELAPSED.read().unwrap()
}

fn set_seconds(seconds: u64) {
    *ELAPSED.write().unwrap() = Duration::from_secs(seconds);
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], 80))
}

fn name() -> Arc<Name> {
    Arc::new(Name::new("backend".to_owned(), 80))
}

fn failure() -> io::Result<Vec<SocketAddr>> {
    Err(io::Error::other("no answer"))
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition never came true");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_address_is_itself() {
    for (text, expected) in [
        ("http://127.0.0.1:9000", "127.0.0.1:9000"),
        ("https://[::1]", "[::1]:443"),
    ] {
        let resolver = Resolver::new(&Server::parse(text).unwrap());
        assert!(matches!(resolver, Resolver::Literal(_)));
        assert_eq!(
            resolver.resolve().await.unwrap(),
            expected.parse::<SocketAddr>().unwrap()
        );
        resolver.connect_failed(expected.parse::<SocketAddr>().unwrap());
        assert_eq!(
            resolver.resolve().await.unwrap(),
            expected.parse::<SocketAddr>().unwrap()
        );
    }
}

#[tokio::test]
async fn the_system_knows_localhost() {
    let resolver = Resolver::new(&Server::parse("http://localhost:1234").unwrap());
    let address = resolver.resolve().await.unwrap();
    assert!(address.ip().is_loopback() && address.port() == 1234);
}

#[tokio::test]
async fn an_answer_is_used_until_it_is_old_and_then_renewed_beside() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let script = Script::new(vec![Ok(vec![address(1)]), Ok(vec![address(2)])]);
    let name = name();
    for seconds in [0, 1, 9] {
        set_seconds(seconds);
        assert_eq!(
            name.resolve(clock, script.lookup()).await.unwrap(),
            address(1)
        );
    }
    assert_eq!(script.asked(), 1);

    set_seconds(10);
    assert_eq!(
        name.resolve(clock, script.lookup()).await.unwrap(),
        address(1)
    );
    until(|| matches!(name.cached(clock()), Cached::Fresh(_))).await;
    assert_eq!(
        name.resolve(clock, script.lookup()).await.unwrap(),
        address(2)
    );
    assert_eq!(script.asked(), 2);
}

#[tokio::test]
async fn a_failing_resolver_leaves_the_last_answer_for_a_while() {
    let _alone = ONE_AT_A_TIME.lock().await;
    set_seconds(0);
    let script = Script::new(vec![Ok(vec![address(1)]), failure()]);
    let name = name();
    assert_eq!(
        name.resolve(clock, script.lookup()).await.unwrap(),
        address(1)
    );

    set_seconds(299);
    assert_eq!(
        name.resolve(clock, script.lookup()).await.unwrap(),
        address(1)
    );
    until(|| name.known().failure.is_some()).await;
    assert_eq!(
        name.resolve(clock, script.lookup()).await.unwrap(),
        address(1)
    );
    assert_eq!(script.asked(), 2);

    set_seconds(300);
    let error = name.resolve(clock, script.lookup()).await.unwrap_err();
    assert!(error.to_string().contains("backend: no answer"), "{error}");
}

#[tokio::test]
async fn a_failure_is_the_answer_for_a_second() {
    let _alone = ONE_AT_A_TIME.lock().await;
    set_seconds(0);
    let script = Script::new(vec![failure(), Ok(Vec::new()), Ok(vec![address(3)])]);
    let name = name();
    for _ in 0..10 {
        assert!(name.resolve(clock, script.lookup()).await.is_err());
    }
    assert_eq!(script.asked(), 1);
    set_seconds(1);
    let error = name.resolve(clock, script.lookup()).await.unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
    set_seconds(2);
    assert_eq!(
        name.resolve(clock, script.lookup()).await.unwrap(),
        address(3)
    );
}

#[tokio::test]
async fn requests_that_come_together_ask_once() {
    let _alone = ONE_AT_A_TIME.lock().await;
    set_seconds(0);
    let script = Script::new(vec![Ok(vec![address(1)])]);
    let name = name();
    let slow = script.clone();
    let lookup = move |host: String, port: u16| {
        let answer = slow.lookup()(host, port);
        async move {
            tokio::task::yield_now().await;
            answer.await
        }
    };
    let requests = (0..50).map(|_| name.resolve(clock, lookup.clone()));
    for found in futures_util::future::join_all(requests).await {
        assert_eq!(found.unwrap(), address(1));
    }
    assert_eq!(script.asked(), 1);
}

#[test]
fn addresses_take_turns_and_one_that_failed_is_passed_over_for_a_while() {
    let start = Instant::now();
    let name = name();
    name.connect_failed(address(1), start);
    name.note(Ok(vec![address(1), address(2), address(3)]), start);
    let next = |now| match name.cached(now) {
        Cached::Fresh(address) => address,
        _ => panic!("nothing is known"),
    };
    let three = |now| [next(now), next(now), next(now)];
    assert_eq!(three(start), [address(1), address(2), address(3)]);
    name.connect_failed(address(2), start);
    for _ in 0..10 {
        assert_ne!(next(start), address(2));
    }
    // A new answer forgets nothing of an address that is still there.
    name.note(Ok(vec![address(3), address(2)]), start);
    assert_eq!(three(start), [address(3); 3]);
    // Where all failed there is no use in waiting.
    name.connect_failed(address(3), start);
    let both = three(start);
    assert!(both.contains(&address(2)) && both.contains(&address(3)));
    let later = start + PASSED_OVER;
    name.note(Ok(vec![address(3), address(2)]), later);
    let both = three(later);
    assert!(both.contains(&address(2)) && both.contains(&address(3)));
    name.note(Ok(vec![address(9)]), later);
    assert_eq!(three(later), [address(9); 3]);
}
