//! One module on its way, and those who wait for it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::super::check::Facts;
use super::super::{ModuleError, ModuleHash, Prepared, ShareKey};

pub(super) type Prepare = Result<Arc<Prepared>, ModuleError>;

/// A turn with Cranelift. Most modules take less.
const TURN: Duration = Duration::from_secs(2);

/// What kind of code is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::sandbox) enum Quality {
    /// Whatever is there first.
    Soon,
    /// Cranelift's.
    Best,
}

/// How far a flight is.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Waiting,
    InTheAir,
    Landed(Prepare),
}

pub(super) struct Flight {
    pub hash: ModuleHash,
    pub wasm: Bytes,
    pub quality: Quality,
    /// Whom it counts for: who asked first.
    pub share: ShareKey,
    /// The order of boarding.
    pub number: u64,
    /// It goes on though nobody waits.
    pub background: AtomicBool,
    /// The module will be run again: its best code is worth a place on the disk, and the time to make
    /// it.
    pub kept: AtomicBool,
    /// Known once it has been checked.
    pub facts: OnceLock<Facts>,
    /// Singlepass could not compile what it should be able to.
    pub singlepass_failed: AtomicBool,
    /// How often it gave way to others.
    pub yields: AtomicU32,
    /// Its worker stands still, and it waits for its next turn with Cranelift.
    pub held: AtomicBool,
    /// How often its worker was killed at the end of a turn, because too many stood still.
    pub turns: AtomicU32,
    /// Its receivers are the callers.
    pub phase: watch::Sender<Phase>,
}

impl Flight {
    pub(super) fn new(
        hash: ModuleHash,
        wasm: Bytes,
        quality: Quality,
        share: ShareKey,
        number: u64,
    ) -> Flight {
        Flight {
            hash,
            wasm,
            quality,
            share,
            number,
            background: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            facts: OnceLock::new(),
            singlepass_failed: AtomicBool::new(false),
            yields: AtomicU32::new(0),
            held: AtomicBool::new(false),
            turns: AtomicU32::new(0),
            phase: watch::Sender::new(Phase::Waiting),
        }
    }

    pub(super) fn key(&self) -> (ModuleHash, Quality) {
        (self.hash, self.quality)
    }

    pub(super) fn is_background(&self) -> bool {
        self.background.load(Ordering::Acquire)
    }

    pub(super) fn is_kept(&self) -> bool {
        self.kept.load(Ordering::Acquire)
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Whether it need go on.
    pub(super) fn is_wanted(&self) -> bool {
        self.phase.receiver_count() > 0 || self.is_background()
    }

    /// How long it may keep a worker that others wait for. After it was killed and has to start anew, twice
    /// as long: so what takes longer than a turn does come to its end, at the cost of one more compile.
    pub(super) fn turn(&self) -> Duration {
        let turns = self.turns.load(Ordering::Acquire);
        TURN.saturating_mul(1_u32.checked_shl(turns).unwrap_or(u32::MAX))
    }

    /// Tells those who wait that there is nothing to wait for, unless they know.
    pub(super) fn fail(&self) {
        self.phase.send_if_modified(|phase| {
            let is_lost = !matches!(phase, Phase::Landed(_));
            if is_lost {
                let text = "the compile's thread failed".to_owned();
                *phase = Phase::Landed(Err(ModuleError::Internal(text)));
            }
            is_lost
        });
    }
}
