//! Text on its way to binary.
//!
//! The translator takes super-linear time on some texts and can't be cancelled from inside, just as
//! a compiler, so what a client sent is translated in a compile worker. Few are translated at a
//! time, beside the compiles, and of one caller one after the other: whoever has many, or large ones,
//! can send binary, which passes here at once whatever the texts do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};

use super::super::settings::CompileSettings;
use super::super::text::{self, TEXT_BYTES_MAX};
use super::super::worker::{Job, Task};
use super::super::{ModuleError, ShareKey};
use super::child::{Bounds, Failure};
use super::{Compilers, Shared};

/// Texts translated at the same time.
const AT_A_TIME_MAX: usize = 2;
/// Wall-clock time for one text. The longest ordinary one takes a quarter of a second.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest binary taken from a worker. No operator is as much longer in binary as this allows.
const BINARY_BYTES_MAX: u64 = 4 * TEXT_BYTES_MAX as u64;

/// Who may translate, and who may wait for it.
pub(super) struct Translations {
    /// A permit for each text that is translated or waits.
    places: Arc<Semaphore>,
    /// A permit for each text that is translated.
    turns: Arc<Semaphore>,
    /// Those that have a text here.
    callers: Mutex<HashMap<ShareKey, Weak<Caller>>>,
    places_each: usize,
    queue_timeout: Duration,
}

/// One caller's share of places and turns.
struct Caller {
    places: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

/// A text's place and turn. They are its translation's, so that no client that leaves frees them
/// before its child is dead.
struct Turn {
    _places: [OwnedSemaphorePermit; 2],
    _turns: [OwnedSemaphorePermit; 2],
    _caller: Arc<Caller>,
}

impl Translations {
    pub(super) fn new(settings: &CompileSettings) -> Translations {
        let at_a_time = settings.workers_max.clamp(1, AT_A_TIME_MAX);
        let places = settings.queue_max.saturating_add(at_a_time);
        Translations {
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            turns: Arc::new(Semaphore::new(at_a_time)),
            callers: Mutex::default(),
            places_each: settings.queue_max.div_ceil(2).saturating_add(1),
            queue_timeout: settings.queue_timeout,
        }
    }

    async fn turn(&self, share: ShareKey) -> Result<Turn, ModuleError> {
        let caller = self.caller(share);
        let place = |places: &Arc<Semaphore>| {
            let place = Arc::clone(places).try_acquire_owned();
            place.map_err(|_| ModuleError::Busy)
        };
        let places = [place(&caller.places)?, place(&self.places)?];
        let turns = async {
            let own = Arc::clone(&caller.turn).acquire_owned().await?;
            let turn = Arc::clone(&self.turns).acquire_owned().await?;
            Ok::<_, AcquireError>([own, turn])
        };
        match tokio::time::timeout(self.queue_timeout, turns).await {
            Ok(Ok(turns)) => Ok(Turn {
                _places: places,
                _turns: turns,
                _caller: caller,
            }),
            // Too late, or closed, which it never is.
            Err(_) | Ok(Err(_)) => Err(ModuleError::Busy),
        }
    }
}

impl Translations {
    fn caller(&self, share: ShareKey) -> Arc<Caller> {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        // As many stay as have a text here, which `places` bounds.
        callers.retain(|_, caller| caller.strong_count() > 0);
        if let Some(caller) = callers.get(&share).and_then(Weak::upgrade) {
            return caller;
        }
        let caller = Arc::new(Caller {
            places: Arc::new(Semaphore::new(self.places_each.min(Semaphore::MAX_PERMITS))),
            turn: Arc::new(Semaphore::new(1)),
        });
        callers.insert(share, Arc::downgrade(&caller));
        caller
    }
}

impl Compilers {
    /// Binary from binary or text. Dropping the future kills the worker.
    pub(in crate::sandbox) async fn to_binary(
        &self,
        bytes: Bytes,
        share: ShareKey,
    ) -> Result<Bytes, ModuleError> {
        if !text::is_text(&bytes)? {
            return Ok(bytes);
        }
        let turn = self.shared.translations.turn(share).await?;
        let shared = Arc::clone(&self.shared);
        let (answer, answered) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let translated = shared.translate(&bytes, || answer.is_closed());
            drop(turn);
            // Nobody may wait for it any more.
            let _ = answer.send(translated);
        });
        answered.await.unwrap_or_else(|_| {
            let text = "the translation's thread failed".to_owned();
            Err(ModuleError::Internal(text))
        })
    }
}

impl Shared {
    /// Has a worker translate a text.
    fn translate(
        &self,
        text: &[u8],
        is_abandoned: impl Fn() -> bool,
    ) -> Result<Bytes, ModuleError> {
        let settings = &self.settings.compile;
        let job = Job {
            task: Task::Translate,
            input: text,
        };
        let translated = self.worker().and_then(|worker| {
            let bounds = Bounds {
                deadline: Instant::now() + TIMEOUT.min(settings.timeout),
                made_bytes_max: BINARY_BYTES_MAX,
                is_background: false,
            };
            worker
                .begin(&job)?
                .finish(settings, bounds, |_| is_abandoned())
        });
        match translated {
            Ok(binary) => Ok(binary.made),
            // The words are about compiling.
            Err(
                Failure::Refused(ModuleError::CompileLimit(_))
                | Failure::Failed(ModuleError::CompileLimit(_)),
            ) => Err(ModuleError::CompileLimit(text::TOO_HARD.into())),
            Err(Failure::Refused(error) | Failure::Failed(error)) => Err(error),
            Err(Failure::Abandoned) => Err(ModuleError::Internal("nobody waits for it".into())),
        }
    }
}
