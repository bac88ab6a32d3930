//! The tasks around the records of executions: their way to the database, and their end.

use anyhow::Context;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::gateway::Shared;
use crate::store::Store;
use crate::usage::{self, Delivery, Recorder, Settings};

/// The running tasks.
pub(super) struct Records {
    end_delivery: watch::Sender<bool>,
    delivery: JoinHandle<()>,
    upkeep: JoinHandle<()>,
}

/// Opens the journal; a gateway that can't record executions must not come up.
pub(super) fn open(settings: &Settings) -> anyhow::Result<Recorder> {
    Recorder::open(settings).with_context(|| {
        let directory = settings.directory.display();
        format!("opening the usage journal in {directory} (usage.journal.directory)")
    })
}

impl Records {
    pub(super) fn start(shared: &Shared, store: &Store, settings: &Settings) -> Records {
        let (recorder, health) = (shared.usage.clone(), shared.health.clone());
        let delivery = Delivery::new(recorder, store.clone(), health, settings);
        let (end_delivery, ended) = watch::channel(false);
        Records {
            end_delivery,
            delivery: tokio::spawn(delivery.run(ended)),
            upkeep: tokio::spawn(usage::upkeep(store.clone(), settings.retention)),
        }
    }

    /// Delivers what there is; to be called when nothing is executed any more.
    pub(super) async fn finish(self) {
        self.upkeep.abort();
        // Whoever receives it lives until it has.
        let _ = self.end_delivery.send(true);
        if let Err(error) = self.delivery.await {
            tracing::error!(%error, "the delivery of usage failed");
        }
    }
}
