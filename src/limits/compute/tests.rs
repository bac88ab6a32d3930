use super::*;
use crate::limits::Settings;

const QUOTA: Compute = Compute {
    cpu_ms: Rate {
        per_minute: Some(1_000),
        per_day: None,
    },
    guests_max: Some(2),
};

const LONG: Duration = Duration::from_secs(5);

fn limiter() -> Limiter {
    Limiter::new(&Settings::default())
}

async fn seat(limiter: &Limiter, user: u128) -> Result<Seat, NoSeat> {
    let user = Uuid::from_u128(user);
    limiter
        .seat(user, Tier::Free, QUOTA, LONG, OnLoss::Local)
        .await
}

#[tokio::test]
async fn places_are_counted_by_user_and_given_back() {
    let limiter = limiter();
    let first = seat(&limiter, 1).await.ok().unwrap();
    let second = seat(&limiter, 1).await.ok().unwrap();
    assert_eq!(
        seat(&limiter, 1).await.err(),
        Some(NoSeat::TooManyGuests(2))
    );
    assert!(seat(&limiter, 2).await.is_ok());
    first.ended(Duration::ZERO);
    second.unused();
    assert!(seat(&limiter, 1).await.is_ok());
    assert!(limiter.running.locked().is_empty());
}

#[tokio::test]
async fn cpu_time_is_charged_to_the_microsecond_and_what_is_left_is_told() {
    let limiter = limiter();
    let mut left = None;
    for _ in 0..5 {
        let used = Duration::from_micros(100_300);
        left = seat(&limiter, 1).await.ok().unwrap().ended(used);
    }
    // A little comes back while the test runs.
    let window = left.unwrap().window.unwrap();
    assert!((498..=520).contains(&window.remaining), "{window:?}");
    assert_eq!((window.limit, window.seconds), (1_000, 60));
}

#[tokio::test]
async fn who_has_used_up_the_cpu_time_waits_for_what_is_owed_too() {
    let limiter = limiter();
    let left = seat(&limiter, 1)
        .await
        .ok()
        .unwrap()
        .ended(Duration::from_millis(1_500));
    assert!(!left.unwrap().allowed);
    let Some(NoSeat::CpuUsedUp(left)) = seat(&limiter, 1).await.err() else {
        panic!("all is used up")
    };
    // 501 ms come back in half a minute.
    let retry_after = left.window.unwrap().retry_after;
    assert!(retry_after > Duration::from_secs(29) && retry_after < Duration::from_secs(31));
    assert!(seat(&limiter, 2).await.is_ok(), "others have their own");
    // More than one window is not owed.
    let left = seat(&limiter, 3)
        .await
        .ok()
        .unwrap()
        .ended(Duration::from_secs(3_600));
    assert!(left.unwrap().window.unwrap().retry_after <= Duration::from_secs(61));
}

#[tokio::test]
async fn leaving_early_is_not_free() {
    let limiter = limiter();
    let left = || {
        let subject = Subject::Cpu(Uuid::from_u128(1), Tier::Free);
        limiter
            .peek(&subject, QUOTA.cpu_ms, Instant::now())
            .window
            .unwrap()
            .remaining
    };
    let mut leaver = seat(&limiter, 1).await.ok().unwrap();
    leaver.began = Instant::now() - Duration::from_millis(400);
    drop(leaver);
    assert!(left() <= 610, "{}", left());
    let mut sleeper = seat(&limiter, 1).await.ok().unwrap();
    // What a guest waited for after its deadline is not its own.
    sleeper.deadline = Duration::from_millis(100);
    sleeper.began = Instant::now() - Duration::from_secs(60);
    drop(sleeper);
    assert!((400..=520).contains(&left()), "{}", left());
    let unused = seat(&limiter, 2).await.ok().unwrap();
    unused.unused();
    assert!(seat(&limiter, 2).await.is_ok());
}

#[tokio::test]
async fn without_a_quota_nothing_is_counted() {
    let limiter = limiter();
    let user = Uuid::from_u128(1);
    for _ in 0..100 {
        let seat = limiter.seat(
            user,
            Tier::Enterprise,
            Compute::default(),
            LONG,
            OnLoss::Closed,
        );
        assert_eq!(seat.await.ok().unwrap().ended(LONG), None);
    }
    assert_eq!(limiter.stats().subjects, 0);
}
