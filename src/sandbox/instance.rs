//! An instance that serves one guest after another, each as if it were new.
//!
//! What a guest can change is its memory, its globals, its tables and its segments. Memory and
//! globals are put back after each guest. A module whose code can change the others, and whatever
//! else is not known to be put back, gets a new instance for each guest (see [`Instance::reset`]).

#![expect(
    unsafe_code,
    reason = "reads and writes globals inside an instance, which Wasmer gives no other way to"
)]

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use wasmer::{Extern, FunctionEnv, InstantiationError, LinkError, Store, Type, TypedFunction};
use wasmer_vm::VMGlobalDefinition;

use super::engine::{Prepared, START_EXPORT};
use super::memory::faults::Faults;
use super::memory::image::Image;
use super::memory::{Data, GuestMemory};
use super::tunables::{self, Room};
use super::wasi::link::{self, GuestEnv};

/// A module's instance with all that belongs to it, between two guests or with one.
pub(super) struct Instance {
    /// The start section's function, if there is one.
    pub start: Option<TypedFunction<(), ()>>,
    pub main: TypedFunction<(), ()>,
    pub env: FunctionEnv<GuestEnv>,
    pub memory: Option<Arc<GuestMemory>>,
    /// The hidden global of [`super::instrument`].
    pub stop: NonNull<AtomicI64>,
    /// The hidden global in which refused growth of tables is noted, if there may be any.
    refused: Option<NonNull<u32>>,
    globals: Box<[Global]>,
    pub store: Store,
}

/// A global inside the instance and what it held at first.
struct Global {
    place: NonNull<GlobalBytes>,
    first: GlobalBytes,
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare by it"))]
    ty: Type,
}

/// Not all of them need be initialised: an `i32` has four.
type GlobalBytes = [MaybeUninit<u8>; size_of::<VMGlobalDefinition>()];

// SAFETY: the pointers are into the instance, which `store` owns and which therefore moves to the
// other thread along with them; the store itself may be sent.
unsafe impl Send for Instance {}

/// Why there is no instance.
pub(super) enum NoInstance {
    /// The memory is larger from the start than the guest may have.
    MemoryOverLimit,
    /// The module's own doing: a data or element segment that does not fit.
    Trapped(wasmer::RuntimeError),
    /// Ours.
    Failed(String),
}

impl Instance {
    /// A new one.
    pub(super) fn new(module: &Prepared, room: Room, data: Data) -> Result<Instance, NoInstance> {
        let mut store = Store::new(module.engine().clone());
        let env = FunctionEnv::new(&mut store, GuestEnv::default());
        let imports = imports(&mut store, module, &env)?;
        #[expect(
            clippy::result_large_err,
            reason = "the error is Wasmer's, and passed on once"
        )]
        let (instance, made) = tunables::making(room, data, || {
            wasmer::Instance::new_by_index(&mut store, module.module(), &imports)
        });
        let instance = match instance {
            Ok(instance) => instance,
            Err(_) if made.memory_over_limit => return Err(NoInstance::MemoryOverLimit),
            Err(InstantiationError::Start(error)) => return Err(NoInstance::Trapped(error)),
            Err(error) => return Err(failed(&error)),
        };
        if let Some(memory) = &made.memory {
            memory.instantiated();
        }
        env.as_mut(&mut store).memory = instance.exports.get_memory("memory").ok().cloned();
        let function = |name: &str| {
            instance
                .exports
                .get_typed_function::<(), ()>(&store, name)
                .map_err(|error| {
                    NoInstance::Failed(format!("the module has no callable {name}: {error}"))
                })
        };
        let start = match module.has_start() {
            true => Some(function(START_EXPORT)?),
            false => None,
        };
        let main = function("_start")?;
        let Some((stop, _)) = made.globals.last().copied() else {
            return Err(NoInstance::Failed("the module has no stop global".into()));
        };
        let refused = module
            .tables_grow()
            .then(|| made.globals.iter().rev().nth(1));
        let refused = refused.flatten().map(|(place, _)| place.cast());
        let globals = made.globals.iter().map(|(place, ty)| Global {
            place: place.cast(),
            // SAFETY: the instance was made and lives in the store. A global has sixteen bytes, as
            // many of them initialised as its type needs.
            first: unsafe { place.cast::<GlobalBytes>().read() },
            ty: ty.ty,
        });
        Ok(Instance {
            start,
            main,
            env,
            memory: made.memory,
            stop: stop.cast(),
            refused,
            globals: globals.collect(),
            store,
        })
    }

    /// Makes the instance as new. False if it must be thrown away.
    ///
    /// To be called only if the module is known to change nothing but memory and globals, and only
    /// after a guest that ended by itself: not after one that was stopped from outside, nor after a
    /// failure of the host. `faults` were asked for on this thread before that guest began on it.
    pub(super) fn reset(&mut self, faults: Faults) -> bool {
        self.env.as_mut(&mut self.store).wasi = None;
        for global in &self.globals {
            // SAFETY: the instance lives in our store, and no guest runs, since we have the store.
            unsafe { global.place.write(global.first) };
        }
        match &self.memory {
            // SAFETY: the same.
            Some(memory) => unsafe { memory.reset(faults) }
                .inspect_err(|error| tracing::warn!(%error, "a guest's memory can't be reset"))
                .is_ok(),
            None => true,
        }
    }

    /// The tables that were refused growth, a bit for each.
    pub(super) fn tables_refused(&self) -> u32 {
        // SAFETY: the global is an `i32` in the instance, which lives in our store, and no guest runs,
        // since we have the store.
        self.refused.map_or(0, |refused| unsafe { refused.read() })
    }

    /// The first bytes of what the module's segments put into memory, as an image for others.
    pub(super) fn image(&self) -> std::io::Result<Option<Image>> {
        match &self.memory {
            Some(memory) => memory.image(),
            None => Ok(None),
        }
    }

    /// What the next guest would find: memory and globals. (References are addresses, which differ
    /// from instance to instance: only whether there is one counts.)
    #[cfg(test)]
    pub(super) fn state(&self) -> (Vec<u8>, Vec<u128>) {
        let memory = self.memory.as_ref();
        let globals = self.globals.iter().map(|global| {
            // SAFETY: the instance lives in our store, no guest runs, and what is read is as long as
            // the global's type.
            unsafe {
                match global.ty {
                    Type::I32 | Type::F32 => u128::from(global.place.cast::<u32>().read()),
                    Type::I64 | Type::F64 => u128::from(global.place.cast::<u64>().read()),
                    Type::V128 => global.place.cast::<u128>().read_unaligned(),
                    Type::FuncRef | Type::ExternRef | Type::ExceptionRef => {
                        u128::from(global.place.cast::<usize>().read() != 0)
                    }
                }
            }
        });
        (
            memory.map_or_else(Vec::new, |memory| memory.bytes()),
            globals.collect(),
        )
    }
}

fn failed(error: &InstantiationError) -> NoInstance {
    NoInstance::Failed(format!("the guest could not be instantiated: {error}"))
}

fn imports(
    store: &mut Store,
    module: &Prepared,
    env: &FunctionEnv<GuestEnv>,
) -> Result<Vec<Extern>, NoInstance> {
    let found = module.imports().iter().map(|(from, name)| {
        link::import(store, env, from, name)
            .map(Extern::from)
            .ok_or_else(|| {
                let missing = LinkError::Resource(format!("no function {from}.{name}"));
                failed(&InstantiationError::Link(missing))
            })
    });
    found.collect()
}

#[cfg(test)]
mod tests;
