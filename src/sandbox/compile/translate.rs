//! Text on its way to binary.
//!
//! The translator takes super-linear time on some texts and can't be cancelled from inside, just as
//! a compiler, so what a client sent is translated in a compile worker. Few are translated at a
//! time, beside the compiles: whoever has many, or large ones, can send binary, which passes here
//! at once whatever the texts do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::super::ModuleError;
use super::super::settings::CompileSettings;
use super::super::text::{self, TEXT_BYTES_MAX};
use super::super::worker::{Job, Task};
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
    queue_timeout: Duration,
}

/// A text's place and turn. They are its translation's, so that no client that leaves frees them
/// before its child is dead.
struct Turn {
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

impl Translations {
    pub(super) fn new(settings: &CompileSettings) -> Translations {
        let at_a_time = settings.workers_max.clamp(1, AT_A_TIME_MAX);
        let places = settings.queue_max.saturating_add(at_a_time);
        Translations {
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            turns: Arc::new(Semaphore::new(at_a_time)),
            queue_timeout: settings.queue_timeout,
        }
    }

    async fn turn(&self) -> Result<Turn, ModuleError> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| ModuleError::Busy)?;
        let turn = Arc::clone(&self.turns).acquire_owned();
        match tokio::time::timeout(self.queue_timeout, turn).await {
            Ok(Ok(turn)) => Ok(Turn {
                _place: place,
                _turn: turn,
            }),
            // Too late, or closed, which it never is.
            Err(_) | Ok(Err(_)) => Err(ModuleError::Busy),
        }
    }
}

impl Compilers {
    /// Binary from binary or text. Dropping the future kills the worker.
    pub(in crate::sandbox) async fn to_binary(&self, bytes: Bytes) -> Result<Bytes, ModuleError> {
        if !text::is_text(&bytes)? {
            return Ok(bytes);
        }
        let turn = self.shared.translations.turn().await?;
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
            worker.run(settings, &job, bounds, is_abandoned)
        });
        match translated {
            Ok(binary) => Ok(binary.into()),
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
