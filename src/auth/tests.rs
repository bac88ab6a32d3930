//! Authentication against a real database.

use http::{HeaderMap, HeaderValue};
use tempfile::TempDir;

use super::*;
use crate::store;
use crate::store::keys::NewKeyRow;

struct Fixture {
    store: Store,
    auth: Authenticator,
    _directory: TempDir,
}

async fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/test.db", directory.path().display());
    let store = open(&url).await;
    store.migrate().await.unwrap();
    let auth = authenticator(&store);
    Fixture {
        store,
        auth,
        _directory: directory,
    }
}

async fn open(url: &str) -> Store {
    let acquire_timeout = Duration::from_secs(10);
    let settings = store::Settings {
        url: url.to_owned(),
        connections_max: 4,
        acquire_timeout,
    };
    Store::connect(&settings).await.unwrap()
}

fn authenticator(store: &Store) -> Authenticator {
    let settings = Settings {
        salt: Salt::new("0123456789abcdef0123456789abcdef").unwrap(),
        cache_ttl: Duration::from_secs(60),
        negative_ttl: Duration::from_secs(10),
        outage_grace: Duration::from_secs(600),
        cache_keys_max: 1_000,
    };
    Authenticator::new(settings, store.clone())
}

impl Fixture {
    /// A new key of a new user: its headers and its id.
    async fn key(&self, expires_at: Option<DateTime<Utc>>) -> (HeaderMap, Uuid) {
        let email = format!("{}@example.org", Uuid::now_v7());
        let user = self.store.user_create(&email, Role::Support).await.unwrap();
        let key = self.auth.new_key().unwrap();
        let row = NewKeyRow {
            user_id: user.id,
            name: "test",
            prefix: &key.prefix,
            hash: key.hash,
            tier: Tier::Basic,
            scopes: Scopes::of_role(Role::Support),
            expires_at,
        };
        let stored = self.store.key_create(row).await.unwrap();
        (headers(&key.secret), stored.id)
    }
}

fn headers(secret: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        "authorization",
        HeaderValue::try_from(format!("Bearer {secret}")).unwrap(),
    );
    headers
}

fn later(now: DateTime<Utc>, seconds: u64) -> DateTime<Utc> {
    now + Duration::from_secs(seconds)
}

fn key_of(answer: Result<Principal, AuthError>) -> Arc<KeyPrincipal> {
    match answer {
        Ok(Principal::Key(key)) => key,
        other => panic!("no key: {other:?}"),
    }
}

#[tokio::test]
async fn a_good_key_is_asked_for_once() {
    let fixture = fixture().await;
    let (headers, id) = fixture.key(None).await;
    let now = Utc::now();
    assert_eq!(fixture.auth.authenticate_cached(&headers, now), None);
    let key = key_of(fixture.auth.authenticate_at(&headers, now).await);
    assert_eq!(
        (key.key_id, key.role, key.tier),
        (id, Role::Support, Tier::Basic)
    );
    let cached = fixture
        .auth
        .authenticate_cached(&headers, later(now, 59))
        .unwrap();
    assert_eq!(key_of(cached), key);
    assert_eq!(
        fixture.auth.authenticate_cached(&headers, later(now, 60)),
        None
    );
    assert_eq!(
        fixture.auth.authenticate(&HeaderMap::new()).await,
        Ok(Principal::Anonymous)
    );
}

#[tokio::test]
async fn a_key_under_another_salt_is_unknown() {
    let fixture = fixture().await;
    let (headers, _) = fixture.key(None).await;
    let settings = Settings {
        salt: Salt::generate().unwrap(),
        cache_ttl: Duration::ZERO,
        negative_ttl: Duration::ZERO,
        outage_grace: Duration::ZERO,
        cache_keys_max: 0,
    };
    let other = Authenticator::new(settings, fixture.store.clone());
    assert_eq!(other.authenticate(&headers).await, Err(AuthError::Invalid));
}

#[tokio::test]
async fn a_cache_of_no_size_and_no_time_still_works() {
    let fixture = fixture().await;
    let (headers, _) = fixture.key(None).await;
    let settings = Settings {
        salt: Salt::new("0123456789abcdef0123456789abcdef").unwrap(),
        cache_ttl: Duration::ZERO,
        negative_ttl: Duration::MAX,
        outage_grace: Duration::MAX,
        cache_keys_max: 0,
    };
    let auth = Authenticator::new(settings, fixture.store.clone());
    for _ in 0..3 {
        key_of(auth.authenticate(&headers).await);
    }
}

#[tokio::test]
async fn expiry_holds_at_the_instant_in_memory_too() {
    let fixture = fixture().await;
    let now = Utc::now();
    let expires_at = later(now, 30);
    let (headers, _) = fixture.key(Some(expires_at)).await;
    let expires_at = key_of(fixture.auth.authenticate_at(&headers, now).await)
        .expires_at
        .unwrap();
    let instant_before = expires_at - chrono::TimeDelta::microseconds(1);
    key_of(
        fixture
            .auth
            .authenticate_cached(&headers, instant_before)
            .unwrap(),
    );
    let refused = Some(Err(AuthError::Invalid));
    assert_eq!(
        fixture.auth.authenticate_cached(&headers, expires_at),
        refused
    );
    let (headers, _) = fixture.key(Some(now)).await;
    assert_eq!(
        fixture.auth.authenticate_at(&headers, now).await,
        Err(AuthError::Invalid)
    );
}

#[tokio::test]
async fn revocation_holds_at_once_when_forgotten_and_soon_when_not() {
    let fixture = fixture().await;
    let now = Utc::now();
    let (here, here_id) = fixture.key(None).await;
    let (elsewhere, elsewhere_id) = fixture.key(None).await;
    key_of(fixture.auth.authenticate_at(&here, now).await);
    key_of(fixture.auth.authenticate_at(&elsewhere, now).await);
    fixture.store.key_revoke(here_id, None, now).await.unwrap();
    fixture.auth.forget(here_id);
    assert_eq!(
        fixture.auth.authenticate_at(&here, now).await,
        Err(AuthError::Invalid)
    );
    // As if another gateway had revoked it.
    fixture
        .store
        .key_revoke(elsewhere_id, None, now)
        .await
        .unwrap();
    key_of(
        fixture
            .auth
            .authenticate_at(&elsewhere, later(now, 59))
            .await,
    );
    let refused = fixture
        .auth
        .authenticate_at(&elsewhere, later(now, 60))
        .await;
    assert_eq!(refused, Err(AuthError::Invalid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_after_forget_gets_through() {
    let fixture = fixture().await;
    for _ in 0..50 {
        let (headers, id) = fixture.key(None).await;
        let racing: Vec<_> = (0..8)
            .map(|_| {
                let (auth, headers) = (fixture.auth.clone(), headers.clone());
                tokio::spawn(async move { auth.authenticate(&headers).await })
            })
            .collect();
        fixture
            .store
            .key_revoke(id, None, Utc::now())
            .await
            .unwrap();
        fixture.auth.forget(id);
        assert_eq!(
            fixture.auth.authenticate(&headers).await,
            Err(AuthError::Invalid)
        );
        for racer in racing {
            racer
                .await
                .unwrap()
                .map_or_else(|error| assert_eq!(error, AuthError::Invalid), |_| ());
        }
        assert_eq!(
            fixture.auth.authenticate(&headers).await,
            Err(AuthError::Invalid)
        );
    }
}

#[tokio::test]
async fn an_unknown_key_is_refused_from_memory_for_a_while() {
    let fixture = fixture().await;
    let now = Utc::now();
    let unknown = headers(&NewKey::generate(&Salt::generate().unwrap()).unwrap().secret);
    assert_eq!(
        fixture.auth.authenticate_at(&unknown, now).await,
        Err(AuthError::Invalid)
    );
    let refused = Some(Err(AuthError::Invalid));
    assert_eq!(
        fixture.auth.authenticate_cached(&unknown, later(now, 9)),
        refused
    );
    assert_eq!(
        fixture.auth.authenticate_cached(&unknown, later(now, 10)),
        None
    );
}

#[tokio::test]
async fn without_a_database_keys_in_memory_work_for_the_grace() {
    let fixture = fixture().await;
    let now = Utc::now();
    let (known, id) = fixture.key(None).await;
    let (new, _) = fixture.key(None).await;
    key_of(fixture.auth.authenticate_at(&known, now).await);
    fixture.store.close().await;
    key_of(fixture.auth.authenticate_at(&known, later(now, 30)).await);
    assert_eq!(
        fixture.auth.authenticate_at(&new, later(now, 30)).await,
        Err(AuthError::Unavailable)
    );
    // Past its time to live: the database is asked, in vain, and then left alone for a second.
    let stale = later(now, 120);
    assert_eq!(fixture.auth.authenticate_cached(&known, stale), None);
    key_of(fixture.auth.authenticate_at(&known, stale).await);
    key_of(fixture.auth.authenticate_cached(&known, stale).unwrap());
    let unavailable = Some(Err(AuthError::Unavailable));
    assert_eq!(fixture.auth.authenticate_cached(&new, stale), unavailable);
    assert_eq!(
        fixture.auth.authenticate_cached(&known, later(now, 125)),
        None
    );
    // Past the grace, and forgotten.
    let end = later(now, 660);
    assert_eq!(
        fixture.auth.authenticate_at(&known, end).await,
        Err(AuthError::Unavailable)
    );
    key_of(fixture.auth.authenticate_at(&known, later(now, 600)).await);
    fixture.auth.forget(id);
    assert_eq!(
        fixture.auth.authenticate_at(&known, stale).await,
        Err(AuthError::Unavailable)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_with_one_new_key_all_pass() {
    let fixture = fixture().await;
    let (headers, _) = fixture.key(None).await;
    let requests: Vec<_> = (0..1_000)
        .map(|_| {
            let (auth, headers) = (fixture.auth.clone(), headers.clone());
            tokio::spawn(async move { auth.authenticate(&headers).await })
        })
        .collect();
    for request in requests {
        key_of(request.await.unwrap());
    }
}

#[tokio::test]
async fn last_uses_are_written_by_flush() {
    let fixture = fixture().await;
    let now = Utc::now();
    let (headers, _) = fixture.key(None).await;
    let user = key_of(fixture.auth.authenticate_at(&headers, now).await).user_id;
    for second in 1..30 {
        key_of(
            fixture
                .auth
                .authenticate_at(&headers, later(now, second))
                .await,
        );
    }
    let last = async || fixture.store.keys_of_user(user).await.unwrap()[0].last_used_at;
    assert_eq!(last().await, None);
    fixture.auth.flush().await.unwrap();
    let noted = last().await.unwrap();
    assert_eq!(noted.timestamp_micros(), later(now, 29).timestamp_micros());
    fixture.auth.flush().await.unwrap();
    assert_eq!(last().await, Some(noted));
}

#[tokio::test]
async fn the_first_admin_is_made_once() {
    let fixture = fixture().await;
    let secret = first_admin(&fixture.store, &fixture.auth)
        .await
        .unwrap()
        .unwrap();
    let key = key_of(fixture.auth.authenticate(&headers(&secret)).await);
    assert_eq!(
        (key.role, key.tier, key.expires_at),
        (Role::Admin, Tier::Enterprise, None)
    );
    assert!(
        first_admin(&fixture.store, &fixture.auth)
            .await
            .unwrap()
            .is_none()
    );
    let keys = fixture.store.keys_all().await.unwrap();
    assert_eq!(keys.len(), 1);
    assert_eq!(
        (keys[0].0.name.as_str(), keys[0].1.as_str()),
        ("first admin key", FIRST_ADMIN_EMAIL)
    );
}

#[tokio::test]
async fn no_first_admin_where_there_is_a_user() {
    let fixture = fixture().await;
    fixture
        .store
        .user_create("a@b.c", Role::User)
        .await
        .unwrap();
    assert!(
        first_admin(&fixture.store, &fixture.auth)
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(fixture.store.users_count().await.unwrap(), 1);
}

#[test]
fn nothing_shows_the_salt() {
    let settings = Settings {
        salt: Salt::new("correct horse battery staple correct").unwrap(),
        cache_ttl: Duration::ZERO,
        negative_ttl: Duration::ZERO,
        outage_grace: Duration::ZERO,
        cache_keys_max: 0,
    };
    assert!(!format!("{settings:?}").contains("horse"));
}
