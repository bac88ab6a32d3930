//! Limits that gateways share, and what happens while they can't.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::store::leases::{ASK_AGAIN_AFTER, Leases, Taken};
use super::store::memory::MemoryStore;
use super::store::redis::{Courier, SettingsError};
use super::store::{LimitStore, Stats};
use super::{Decision, Rate, SharedSettings, Subject};
use crate::telemetry::health::Health;
use crate::telemetry::metrics::metrics;

/// What Redis said is believed so long of what is charged after the fact.
const FRESH_FOR: Duration = Duration::from_secs(2);

/// What happens to a request while Redis does not answer, and no token is held for it.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// It is held to a share of its limits, which each gateway counts for itself.
    #[default]
    Local,
    /// It is admitted.
    Open,
    /// It is refused with 503.
    Closed,
}

/// Nobody can say whether a request may go on, and it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limits can't be checked now")]
pub struct Unavailable;

/// Buckets in Redis.
pub(super) struct Shared {
    leases: Arc<Leases>,
    /// The buckets of [`OnLoss::Local`].
    own: MemoryStore,
    local_share_percent: u8,
    /// Longest wait of a request: for the answer that is on its way, and for its own.
    wait_max: Duration,
    courier: Mutex<Option<Running>>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Shared {
    pub async fn start(
        settings: &SharedSettings,
        subjects_max: usize,
        health: &Health,
    ) -> Result<Shared, SettingsError> {
        let leases = Arc::new(Leases::new(subjects_max, Instant::now()));
        let courier = Courier::new(
            settings.redis.clone(),
            settings.is_vital,
            Arc::clone(&leases),
            health.clone(),
        )?;
        let (stop, stopped) = oneshot::channel();
        let (tried, answered) = oneshot::channel();
        let task = tokio::spawn(courier.run(stopped, tried));
        // An error says that the task is gone, in which case Redis stays lost.
        let _ = answered.await;
        Ok(Shared {
            leases,
            own: MemoryStore::new(subjects_max),
            local_share_percent: settings.local_share_percent,
            wait_max: settings.redis.timeout * 2,
            courier: Mutex::new(Some(Running { stop, task })),
        })
    }

    pub async fn close(&self) {
        let running = self
            .courier
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Running { stop, task }) = running {
            // Each of the two may have ended before.
            let _ = stop.send(());
            let _ = task.await;
        }
    }

    pub async fn acquire(
        &self,
        subject: &Subject,
        rate: Rate,
        on_loss: OnLoss,
    ) -> Result<Decision, Unavailable> {
        match self.ask(subject, rate).await {
            Some(decision) => Ok(decision),
            None => self.without(subject, rate, on_loss, Instant::now()),
        }
    }

    /// Takes a token; `None` when Redis is lost.
    pub async fn ask(&self, subject: &Subject, rate: Rate) -> Option<Decision> {
        self.wait_for(|now| self.leases.take(subject, rate, now))
            .await
    }

    /// What is left of what is charged after the fact.
    pub async fn look(
        &self,
        subject: &Subject,
        rate: Rate,
        on_loss: OnLoss,
    ) -> Result<Decision, Unavailable> {
        let looked = self.wait_for(|now| {
            let seen = self.leases.peek(subject, rate, FRESH_FOR, now);
            seen.map_or_else(|| self.leases.ask(subject, rate, now), Taken::Decided)
        });
        if let Some(decision) = looked.await {
            return Ok(decision);
        }
        match self.lost(on_loss) {
            OnLoss::Local => Ok(self.own.peek(subject, self.share(rate), Instant::now())),
            OnLoss::Open => Ok(Decision {
                allowed: true,
                window: None,
            }),
            OnLoss::Closed => Err(Unavailable),
        }
    }

    /// What was last known to be left, if anything was.
    pub fn glance(&self, subject: &Subject, rate: Rate, now: Instant) -> Option<Decision> {
        self.leases.peek(subject, rate, Duration::MAX, now)
    }

    /// Charges thousandths of a token.
    pub fn charge(&self, subject: &Subject, rate: Rate, thousandths: u64, now: Instant) {
        if !self.leases.is_up() {
            self.own.charge(subject, self.share(rate), thousandths, now);
        }
        self.leases.charge(subject, rate, thousandths, now);
    }

    /// Notes a borrowed token that is used without Redis.
    pub fn occupy(&self, subject: &Subject, rate: Rate) {
        self.leases.occupy(subject, rate, Instant::now());
    }

    pub fn release(&self, subject: &Subject) {
        self.leases.release(subject, Instant::now());
    }

    /// What a gateway admits by itself while Redis is lost.
    pub fn share(&self, rate: Rate) -> Rate {
        rate.percent(self.local_share_percent)
    }

    /// Counts a decision that is made without Redis.
    pub fn lost(&self, on_loss: OnLoss) -> OnLoss {
        metrics().limit_fallback(match on_loss {
            OnLoss::Local => "local",
            OnLoss::Open => "open",
            OnLoss::Closed => "closed",
        });
        on_loss
    }

    /// Asks again and again until there is an answer; `None` when Redis is lost, or has no answer in
    /// time.
    async fn wait_for(&self, mut ask: impl FnMut(Instant) -> Taken) -> Option<Decision> {
        let begun = Instant::now();
        let mut now = begun;
        let mut refused = None;
        loop {
            let left = self.wait_max.saturating_sub(now - begun);
            let taken = ask(now);
            if now == begun && matches!(taken, Taken::Asked(_) | Taken::Soon(_)) {
                metrics().limit_waits.inc();
            }
            match taken {
                Taken::Decided(decision) => return Some(decision),
                Taken::Lost => return None,
                // An error within is a question that was dropped, and is asked again.
                Taken::Asked(asked) => {
                    if tokio::time::timeout(left, asked).await.is_err() {
                        // Where Redis has said no within this wait, that is the answer, and Redis is not lost.
                        return refused;
                    }
                }
                Taken::Soon(decision) if left > ASK_AGAIN_AFTER => {
                    refused = Some(decision);
                    tokio::time::sleep(ASK_AGAIN_AFTER).await;
                }
                Taken::Soon(decision) => return Some(decision),
            }
            now = Instant::now();
        }
    }

    /// The answer without Redis.
    fn without(
        &self,
        subject: &Subject,
        rate: Rate,
        on_loss: OnLoss,
        now: Instant,
    ) -> Result<Decision, Unavailable> {
        match self.lost(on_loss) {
            OnLoss::Local => {
                let decision = self.own.take(subject, self.share(rate), now);
                if decision.allowed {
                    // Redis hears of it when it is back.
                    self.leases.charge(subject, rate, 1_000, now);
                }
                Ok(decision)
            }
            OnLoss::Open => Ok(Decision {
                allowed: true,
                window: None,
            }),
            OnLoss::Closed => Err(Unavailable),
        }
    }

    pub fn stats(&self) -> Stats {
        self.leases.stats()
    }
}
