//! The registry: from a name or an id to a prepared guest.

mod file;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::lives::{Ended, Lives};
use crate::route::ModuleSource;
use crate::sandbox::{self, ModuleError, Preparation, Prepared, Sandbox, ShareKey};
use crate::store::Store;
use crate::store::modules::Module;
use crate::telemetry::seldom::Seldom;

/// Turns stored modules and files into prepared guests. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    sandbox: Sandbox,
    /// Largest file read as a module, in bytes.
    wasm_bytes_max: u64,
    /// Modules that nobody may run.
    stopped: Arc<ArcSwap<HashSet<Uuid>>>,
    /// Held while those are read, so that what was read before does not take the place of what was read after.
    reading: Arc<Mutex<()>>,
    /// Whether something began to run of a module of which it is not sure that it may.
    doubt: Arc<AtomicBool>,
    /// Of reading that again.
    rechecks: Arc<Seldom>,
    /// What runs, by its module.
    lives: Arc<Lives<Uuid>>,
}

/// Why there is no prepared guest.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("there is no module {0}")]
    NotFound(String),
    #[error("{path}: {source}", path = .path.display())]
    File {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

impl Registry {
    /// `wasm_bytes_max` bounds the files that routes name.
    pub fn new(store: Store, sandbox: Sandbox, wasm_bytes_max: u64) -> Registry {
        Registry {
            store,
            sandbox,
            wasm_bytes_max,
            stopped: Arc::default(),
            reading: Arc::default(),
            doubt: Arc::default(),
            rechecks: Arc::default(),
            lives: Arc::default(),
        }
    }

    /// The prepared guest of a stored module: from the sandbox's cache, else from its blob, compiled on
    /// behalf of `share`.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`] when the module was deleted meanwhile.
    pub async fn prepare(
        &self,
        module: &Module,
        share: ShareKey,
    ) -> Result<Arc<Prepared>, RegistryError> {
        if let Some(prepared) = self.sandbox.prepared(&module.hash) {
            return Ok(prepared);
        }
        let wasm = self.blob(module).await?;
        let preparation = Preparation::FastThenOptimised;
        let prepared = self.sandbox.prepare_for(share, wasm, preparation);
        Ok(prepared.await?)
    }

    /// The prepared guest of a route, with the best code: a route holds it until the next reload, and
    /// would not see a better one that is made later. Reads the file or the module's row each time: for start and
    /// reload, not for each request.
    ///
    /// # Errors
    /// [`RegistryError::File`] also when the file is not a regular one, or too large.
    pub async fn prepare_source(
        &self,
        source: &ModuleSource,
    ) -> Result<Arc<Prepared>, RegistryError> {
        match source {
            ModuleSource::File(path) => {
                let wasm = self.read_module(path).await?;
                Ok(self.sandbox.prepare(wasm, Preparation::Optimised).await?)
            }
            ModuleSource::Stored(id) => {
                let not_found = || RegistryError::NotFound(id.to_string());
                let module = self.store.module(*id).await?.ok_or_else(not_found)?;
                let wasm = self.blob(&module).await?;
                Ok(self.sandbox.prepare(wasm, Preparation::Optimised).await?)
            }
        }
    }

    /// Reads again which modules nobody may run, and ends what runs of them.
    pub async fn changed(&self) -> Result<(), RegistryError> {
        let _reading = self.reading.lock().await;
        let stopped: HashSet<Uuid> = self.store.modules_stopped().await?.into_iter().collect();
        let stopped = Arc::new(stopped);
        self.stopped.store(Arc::clone(&stopped));
        for module_id in self.lives.names() {
            if stopped.contains(&module_id) {
                self.lives.end(module_id);
            }
        }
        Ok(())
    }

    /// [`Registry::changed`], if something runs of a module of which it is not sure that it may. When that can't be
    /// read now, the doubt stays.
    pub async fn recheck(&self) {
        if !self.doubt.swap(false, Ordering::Relaxed) {
            return;
        }
        match self.changed().await {
            Ok(()) => {
                if self.rechecks.went_well() {
                    tracing::info!("which modules are stopped can be read again");
                }
            }
            Err(error) => {
                if let Some(failures) = self.rechecks.failed(1, Instant::now()) {
                    tracing::warn!(%error, failures, "which modules are stopped can't be read now");
                }
                self.doubt.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether nobody may run this module, as far as is known in memory.
    pub fn is_stopped(&self, module_id: Uuid) -> bool {
        self.stopped.load().contains(&module_id)
    }

    /// Runs something of a stored module, and ends it when the module is stopped.
    pub async fn while_running<T>(
        &self,
        module_id: Uuid,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        // It may have been stopped after somebody looked and before this was noted; or it was resumed, and
        // only what is in memory is late.
        let noted = || {
            if self.is_stopped(module_id) {
                self.doubt.store(true, Ordering::Relaxed);
            }
        };
        self.lives.run(module_id, noted, work).await
    }

    async fn blob(&self, module: &Module) -> Result<Bytes, RegistryError> {
        let not_found = || RegistryError::NotFound(module.id.to_string());
        self.store.blob(&module.hash).await?.ok_or_else(not_found)
    }

    async fn read_module(&self, path: &Path) -> Result<Bytes, RegistryError> {
        let failed = |source| RegistryError::File {
            path: path.to_owned(),
            source,
        };
        let bytes = file::read_bounded(path, self.wasm_bytes_max)
            .await
            .map_err(failed)?;
        if !file::is_text(path) {
            return Ok(bytes);
        }
        // Translating a large text takes a while, which no connection's thread should spend.
        let translated = tokio::task::spawn_blocking(move || sandbox::to_binary(bytes)).await;
        Ok(translated.unwrap_or_else(|error| Err(ModuleError::Internal(error.to_string())))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The futures are spawned; that they can be is held here, where they are written.
    #[test]
    fn the_futures_may_move_between_threads() {
        fn sendable<T: Send>(_: T) {}
        fn check(registry: &Registry, module: &Module, source: &ModuleSource) {
            sendable(registry.prepare(module, ShareKey::default()));
            sendable(registry.prepare_source(source));
        }
        let _: fn(&Registry, &Module, &ModuleSource) = check;
    }
}
