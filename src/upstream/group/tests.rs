use std::collections::{HashMap, HashSet};

use super::*;
use crate::upstream::{Capacity, Ejection, HashOn, Protocol, Retries, Server, Tls};

fn settings(servers: &[&str], balance: Balance) -> Settings {
    Settings {
        servers: servers
            .iter()
            .map(|text| {
                let (url, weight) = text.split_once('*').unwrap_or((text, "1"));
                Weighted {
                    server: Server::parse(url).unwrap(),
                    weight: weight.parse().unwrap(),
                }
            })
            .collect(),
        balance,
        protocol: Protocol::Http1,
        tls: Tls::default(),
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        write_timeout: Duration::from_secs(1),
        keepalive_timeout: Duration::from_secs(1),
        preserve_host: false,
        capacity: Capacity {
            requests_max: None,
            pending_max: 2,
            pending_timeout: Duration::from_secs(60),
        },
        retries: Retries {
            tries_max: 3,
            statuses: Vec::new(),
            budget_percent: 100,
            budget_per_second: 10,
        },
        ejection: Some(Ejection {
            failures: 2,
            statuses: Vec::new(),
            time: Duration::from_secs(3600),
            time_max: Duration::from_secs(3600),
            percent_max: 50,
        }),
        health_check: None,
    }
}

fn group(servers: &[&str], balance: Balance) -> Group {
    Group::new(settings(servers, balance), &Registry::default()).unwrap()
}

fn take(group: &Group, tries: &mut Tries) -> Result<Lease, NoServer> {
    let acquire = group.acquire(tries);
    futures_util::FutureExt::now_or_never(acquire).expect("there is nothing to wait for")
}

/// The port of a new request's server; its place is free again.
fn port(group: &Group, value: Option<&[u8]>) -> u16 {
    take(group, &mut group.begin(value))
        .unwrap()
        .state()
        .server()
        .port
}

fn fail(group: &Group, port: u16, failed: Failed) {
    for _ in 0..200 {
        let mut lease = take(group, &mut group.begin(None)).unwrap();
        if lease.state().server().port == port {
            group.failed(&mut lease, failed);
            return;
        }
    }
    panic!("{port} never had its turn");
}

const THREE: [&str; 3] = ["http://a:1", "http://a:2", "http://a:3"];

#[test]
fn requests_take_turns_by_weight() {
    let even = group(&THREE, Balance::RoundRobin);
    let ports: Vec<u16> = (0..7).map(|_| port(&even, None)).collect();
    assert_eq!(ports, [1, 2, 3, 1, 2, 3, 1]);
    let uneven = group(&["http://a:1*3", "http://a:2"], Balance::RoundRobin);
    let ports: Vec<u16> = (0..8).map(|_| port(&uneven, None)).collect();
    assert_eq!(ports, [1, 1, 2, 1, 1, 1, 2, 1]);
    even.next.store(usize::MAX, Ordering::Relaxed);
    port(&even, None);
    port(&even, None);
}

#[test]
fn tries_go_to_each_server_before_any_twice() {
    for balance in [
        Balance::RoundRobin,
        Balance::LeastConnections,
        Balance::Hash(HashOn::Address),
    ] {
        let group = group(
            &["http://a:1", "http://a:2", "http://a:1", "http://a:3"],
            balance,
        );
        let mut tries = group.begin(Some(b"x"));
        let mut try_one = || take(&group, &mut tries).unwrap().state().server().port;
        let tried: HashSet<u16> = (0..3).map(|_| try_one()).collect();
        assert_eq!(tried, HashSet::from([1, 2, 3]));
        assert!(tried.contains(&try_one()));
    }
}

#[test]
fn the_least_loaded_server_is_next() {
    let group = group(&["http://a:1*2", "http://a:2"], Balance::LeastConnections);
    let leases: Vec<Lease> = (0..6)
        .map(|_| take(&group, &mut group.begin(None)).unwrap())
        .collect();
    let on_one = leases
        .iter()
        .filter(|lease| lease.state().server().port == 1);
    assert_eq!(on_one.count(), 4);
    drop(leases);
    let idle: HashSet<u16> = (0..4).map(|_| port(&group, None)).collect();
    assert!(idle.contains(&1));
}

#[test]
fn a_value_keeps_its_server_while_others_come_and_go() {
    let hash = || Balance::Hash(HashOn::Address);
    let all = group(&THREE, hash());
    let fewer = group(&THREE[..2], hash());
    let reordered = group(&["http://a:3", "http://a:1", "http://a:2"], hash());
    let mut counts: HashMap<u16, u32> = HashMap::new();
    for i in 0..600 {
        let value = format!("client-{i}");
        let value = Some(value.as_bytes());
        let at = port(&all, value);
        *counts.entry(at).or_default() += 1;
        assert_eq!(at, port(&all, value));
        assert_eq!(
            at,
            port(&reordered, value),
            "the order of the file is no part of it"
        );
        assert!(at == 3 || at == port(&fewer, value));
    }
    assert!(counts.values().all(|&count| count > 120), "{counts:?}");
}

#[test]
fn an_ejected_server_is_left_out_but_never_more_than_half() {
    let group = group(
        &["http://a:1", "http://a:2", "http://a:3", "http://a:4"],
        Balance::RoundRobin,
    );
    for dead in [1, 2] {
        fail(&group, dead, Failed::Answering);
        fail(&group, dead, Failed::Answering);
    }
    let left: HashSet<u16> = (0..20).map(|_| port(&group, None)).collect();
    assert_eq!(left, HashSet::from([3, 4]));
    for _ in 0..5 {
        fail(&group, 3, Failed::Answering);
    }
    let left: HashSet<u16> = (0..20).map(|_| port(&group, None)).collect();
    assert_eq!(
        left,
        HashSet::from([3, 4]),
        "half is the most that answers may bring about"
    );
    // Connections that fail have no such bound; then there is an answer at once.
    for _ in 0..10 {
        if let Ok(mut lease) = take(&group, &mut group.begin(None)) {
            group.failed(&mut lease, Failed::Connecting);
        }
    }
    let none = take(&group, &mut group.begin(None)).err().unwrap();
    let NoServer::Down(wait) = none else {
        panic!("{none:?}");
    };
    assert!(wait > Duration::from_secs(3000));
}

#[test]
fn what_is_known_of_a_server_outlives_its_group() {
    let registry = Registry::default();
    let of =
        |servers: &[&str]| Group::new(settings(servers, Balance::RoundRobin), &registry).unwrap();
    let before = of(&["http://a:1", "http://a:2"]);
    fail(&before, 1, Failed::Connecting);
    fail(&before, 1, Failed::Connecting);
    let after = of(&["http://a:3", "http://a:1"]);
    drop(before);
    let left: HashSet<u16> = (0..10).map(|_| port(&after, None)).collect();
    assert_eq!(left, HashSet::from([3]), "1 is still out");
    drop(after);
    // With nobody left who knew, it begins anew.
    let anew = of(&["http://a:3", "http://a:1"]);
    let left: HashSet<u16> = (0..10).map(|_| port(&anew, None)).collect();
    assert_eq!(left, HashSet::from([1, 3]));
}

#[tokio::test]
async fn a_full_server_lets_a_few_wait_and_refuses_the_rest() {
    let mut settings = settings(&["http://a:1"], Balance::RoundRobin);
    settings.capacity.requests_max = Some(1);
    let group = Arc::new(Group::new(settings, &Registry::default()).unwrap());
    let first = take(&group, &mut group.begin(None)).unwrap();
    let wait = |group: Arc<Group>| async move {
        let mut tries = group.begin(None);
        group.acquire(&mut tries).await.map(drop)
    };
    let waiting = [
        tokio::spawn(wait(Arc::clone(&group))),
        tokio::spawn(wait(Arc::clone(&group))),
    ];
    tokio::task::yield_now().await;
    assert_eq!(wait(Arc::clone(&group)).await, Err(NoServer::Busy));
    drop(first);
    for one in waiting {
        assert_eq!(one.await.unwrap(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_in_time() {
    let mut settings = settings(&["http://a:1"], Balance::RoundRobin);
    settings.capacity.requests_max = Some(1);
    let group = Group::new(settings, &Registry::default()).unwrap();
    let first = take(&group, &mut group.begin(None)).unwrap();
    let start = tokio::time::Instant::now();
    let refused = group.acquire(&mut group.begin(None)).await.err();
    assert_eq!(refused, Some(NoServer::Busy));
    assert_eq!(start.elapsed().as_secs(), 60);
    drop(first);
    assert!(take(&group, &mut group.begin(None)).is_ok());
}

#[test]
fn places_are_never_lost() {
    let mut settings = settings(&THREE, Balance::LeastConnections);
    settings.capacity.requests_max = Some(4);
    settings.capacity.pending_max = 0;
    let group = Group::new(settings, &Registry::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let mut tries = group.begin(None);
                    let leases: Vec<_> = (0..5).map(|_| take(&group, &mut tries)).collect();
                    assert!(leases.iter().flatten().count() <= 12);
                }
            });
        }
    });
    assert!(
        group
            .members
            .iter()
            .all(|member| member.state.active() == 0)
    );
}

#[test]
fn a_group_needs_servers() {
    let none = Group::new(settings(&[], Balance::RoundRobin), &Registry::default());
    assert!(matches!(none, Err(GroupError::Servers)));
}

#[test]
fn files_that_can_not_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    let mut settings = settings(&["https://a"], Balance::RoundRobin);
    settings.tls.ca = Some(ca.clone());
    let problem = |content: Option<&str>| {
        if let Some(content) = content {
            std::fs::write(&ca, content).unwrap();
        }
        let made = Group::new(settings.clone(), &Registry::default());
        let problem = made.err().unwrap().to_string();
        assert!(problem.contains("ca.pem"), "{problem}");
        problem
    };
    assert!(problem(None).contains("No such file"));
    assert!(problem(Some("hello")).contains("no certificate"));
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(problem(Some(nonsense)).contains("not an X.509"));
}
