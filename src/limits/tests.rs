use super::*;

fn limiter() -> Limiter {
    Limiter::new(&Settings::default())
}

const TWO: Rate = Rate {
    per_minute: Some(2),
    per_day: None,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_default_tiers_are_the_documented_ones() {
    let tiers = Tiers::default();
    let row = |tier: Tier| {
        let limits = tiers.get(tier);
        (
            limits.rate.per_minute,
            limits.rate.per_day,
            limits.memory_bytes_max / MIB,
            limits.deadline.as_secs(),
        )
    };
    assert_eq!(row(Tier::Free), (Some(10), Some(500), 128, 5));
    assert_eq!(row(Tier::Basic), (Some(100), Some(10_000), 256, 10));
    assert_eq!(row(Tier::Pro), (Some(500), Some(50_000), 512, 30));
    assert_eq!(row(Tier::Enterprise), (None, None, 1024, 60));
}

#[test]
fn global_limits_are_ceilings_for_anonymous_and_free_only() {
    let global = GuestLimits {
        deadline: Duration::from_secs(2),
        memory_bytes_max: 64 * MIB,
        stdout_bytes_max: 8 * MIB,
        stderr_bytes_max: 1024,
        stack_bytes_max: 1 << 20,
        table_elements_max: 100_000,
    };
    let tiers = Tiers::default();
    assert_eq!(tiers.guest_limits(None, global), global);
    assert_eq!(tiers.guest_limits(Some(Tier::Free), global), global);
    let pro = tiers.guest_limits(Some(Tier::Pro), global);
    assert_eq!(
        (pro.deadline.as_secs(), pro.memory_bytes_max),
        (30, 512 * MIB)
    );
    assert_eq!(
        (pro.stdout_bytes_max, pro.stderr_bytes_max),
        (8 * MIB, 1024)
    );

    let roomy = GuestLimits {
        deadline: Duration::from_secs(90),
        memory_bytes_max: u64::MAX,
        ..global
    };
    let free = tiers.guest_limits(Some(Tier::Free), roomy);
    assert_eq!(
        (free.deadline.as_secs(), free.memory_bytes_max),
        (5, 128 * MIB)
    );
}

#[test]
fn a_tier_may_have_output_stack_and_tables_of_its_own() {
    let global = GuestLimits {
        deadline: Duration::from_secs(2),
        memory_bytes_max: 64 * MIB,
        stdout_bytes_max: 100,
        stderr_bytes_max: 100,
        stack_bytes_max: 100,
        table_elements_max: 100,
    };
    let mut tiers = Tiers::default();
    for row in [&mut tiers.free, &mut tiers.pro] {
        row.stdout_bytes_max = Some(200);
        row.stderr_bytes_max = Some(50);
        row.stack_bytes_max = Some(300);
        row.table_elements_max = Some(400);
    }
    let four = |tier| {
        let limits = tiers.guest_limits(tier, global);
        (
            limits.stdout_bytes_max,
            limits.stderr_bytes_max,
            limits.stack_bytes_max,
            limits.table_elements_max,
        )
    };
    assert_eq!(four(None), (100, 100, 100, 100));
    assert_eq!(four(Some(Tier::Free)), (100, 50, 100, 100));
    assert_eq!(four(Some(Tier::Basic)), (100, 100, 100, 100));
    assert_eq!(four(Some(Tier::Pro)), (200, 50, 300, 400));
}

#[test]
fn tier_names_are_read_back() {
    for tier in [Tier::Free, Tier::Basic, Tier::Pro, Tier::Enterprise] {
        assert_eq!(tier.to_string().parse(), Ok(tier));
        assert_eq!(serde_json::to_string(&tier).unwrap(), format!("\"{tier}\""));
    }
    for wrong in ["", "Free", "gold", "free "] {
        assert!(
            wrong
                .parse::<Tier>()
                .unwrap_err()
                .to_string()
                .contains("enterprise")
        );
    }
}

#[test]
fn addresses_of_one_ipv6_network_share_a_bucket() {
    let (limiter, now) = (limiter(), Instant::now());
    let take = |text: &str| {
        limiter
            .take(&Subject::RouteAddress(RouteKey(1), address(text)), TWO, now)
            .allowed
    };
    assert!(take("2001:db8:0:1::1"));
    assert!(take("2001:db8:0:1:ffff:ffff:ffff:ffff"));
    assert!(!take("2001:db8:0:1:abcd::"));
    assert!(take("2001:db8:0:2::1"));
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address() {
    let (limiter, now) = (limiter(), Instant::now());
    let take = |text: &str| {
        limiter
            .take(&Subject::AuthFailure(address(text)), TWO, now)
            .allowed
    };
    assert!(take("192.0.2.1"));
    assert!(take("::ffff:192.0.2.1"));
    assert!(!take("192.0.2.1"));
    assert!(take("::ffff:192.0.2.2"));
}

#[test]
fn subjects_of_different_kinds_and_routes_are_apart() {
    let (limiter, now) = (limiter(), Instant::now());
    let one = Rate {
        per_minute: Some(1),
        per_day: None,
    };
    let (id, ip) = (Uuid::from_u128(7), address("192.0.2.1"));
    for subject in [
        Subject::User(id, Tier::Free),
        Subject::RouteUser(RouteKey(1), id),
        Subject::RouteUser(RouteKey(2), id),
        Subject::RouteAddress(RouteKey(1), ip),
        Subject::RouteAddress(RouteKey(2), ip),
        Subject::AuthFailure(ip),
    ] {
        assert!(limiter.take(&subject, one, now).allowed, "{subject:?}");
        assert!(!limiter.take(&subject, one, now).allowed, "{subject:?}");
    }
}

#[test]
fn without_a_limit_nothing_is_remembered() {
    let (limiter, now) = (limiter(), Instant::now());
    for id in 0..1000 {
        let decision = limiter.take(
            &Subject::User(Uuid::from_u128(id), Tier::Free),
            Rate::default(),
            now,
        );
        assert_eq!(
            decision,
            Decision {
                allowed: true,
                window: None
            }
        );
    }
    assert_eq!(limiter.stats().subjects, 0);
}

#[test]
fn clones_share_the_buckets() {
    let (limiter, now) = (limiter(), Instant::now());
    let subject = Subject::User(Uuid::from_u128(1), Tier::Free);
    assert!(limiter.clone().take(&subject, TWO, now).allowed);
    assert!(limiter.clone().take(&subject, TWO, now).allowed);
    assert!(!limiter.peek(&subject, TWO, now).allowed);
    assert!(!limiter.take(&subject, TWO, now).allowed);
}
