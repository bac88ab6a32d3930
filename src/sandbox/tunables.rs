//! How Wasmer makes memories, tables and globals for a guest: from our pool and within its limits.

#![expect(unsafe_code, reason = "implements Wasmer's unsafe trait methods")]

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use wasmer::sys::vm::VMConfig;
use wasmer::sys::{BaseTunables, Tunables};
use wasmer::{GlobalType, MemoryError, MemoryType, TableType};
use wasmer_types::{MemoryStyle, TableStyle};
use wasmer_vm::{
    VMGlobal, VMGlobalDefinition, VMMemory, VMMemoryDefinition, VMTable, VMTableDefinition,
};

use super::memory::{Data, GuestMemory, MemoryPool, PAGES_MAX};

/// Tunables of one module's engine.
pub(super) struct SandboxTunables {
    base: BaseTunables,
    memories: MemoryPool,
    table_elements_max: u32,
    vm: VMConfig,
}

/// What one guest's instance may have.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Room {
    pub pages_max: u32,
    pub table_elements_max: u32,
}

/// What instantiation made.
#[derive(Debug, Default)]
pub(super) struct Made {
    room: Room,
    data: Data,
    pub memory: Option<Arc<GuestMemory>>,
    /// The memory was larger from the start than the guest may have.
    pub memory_over_limit: bool,
    /// All globals, in order. The last is the hidden one of [`super::instrument`] that stops the guest.
    pub globals: Vec<(NonNull<VMGlobalDefinition>, GlobalType)>,
}

thread_local! {
    /// The guest that this thread instantiates: Wasmer hands no context to the tunables.
    static MAKING: RefCell<Option<Made>> = const { RefCell::new(None) };
}

/// Runs `instantiate`, with as much `room` and with data segments as `data` says, and tells what it
/// made.
pub(super) fn making<R>(room: Room, data: Data, instantiate: impl FnOnce() -> R) -> (R, Made) {
    MAKING.set(Some(Made {
        room,
        data,
        ..Made::default()
    }));
    let result = instantiate();
    (result, MAKING.take().unwrap_or_default())
}

impl SandboxTunables {
    pub(super) fn new(
        memories: MemoryPool,
        table_elements_max: u32,
        stack_bytes_max: u64,
    ) -> SandboxTunables {
        SandboxTunables {
            base: BaseTunables::new(),
            memories,
            table_elements_max,
            vm: VMConfig {
                wasm_stack_size: Some(usize::try_from(stack_bytes_max).unwrap_or(usize::MAX)),
            },
        }
    }

    /// What an instance may have at most.
    pub(super) fn room(&self) -> Room {
        Room {
            pages_max: PAGES_MAX,
            table_elements_max: self.table_elements_max,
        }
    }

    /// What a guest's stack has at most, in bytes.
    pub(super) fn stack_bytes_max(&self) -> u64 {
        self.vm.wasm_stack_size.unwrap_or(0) as u64
    }
}

impl Tunables for SandboxTunables {
    fn memory_style(&self, _: &MemoryType) -> MemoryStyle {
        MemoryStyle::Static
    }

    fn table_style(&self, table: &TableType) -> TableStyle {
        self.base.table_style(table)
    }

    fn create_host_memory(&self, _: &MemoryType, _: &MemoryStyle) -> Result<VMMemory, MemoryError> {
        Err(MemoryError::Generic("the host makes no memories".into()))
    }

    unsafe fn create_vm_memory(
        &self,
        ty: &MemoryType,
        _: &MemoryStyle,
        definition: NonNull<VMMemoryDefinition>,
    ) -> Result<VMMemory, MemoryError> {
        MAKING.with_borrow_mut(|making| {
            let making = making
                .as_mut()
                .ok_or_else(|| MemoryError::Generic("no guest is being made".into()))?;
            if ty.shared || making.memory.is_some() {
                return Err(MemoryError::Generic("only one memory, not shared".into()));
            }
            if ty.minimum.0 > making.room.pages_max {
                making.memory_over_limit = true;
                return Err(MemoryError::Generic(
                    "the memory is over the guest's limit".into(),
                ));
            }
            // SAFETY: Wasmer vouches for the definition, which is in the instance: it is valid now, and
            // whenever Wasmer calls the memory. A memory whose instantiation failed may outlive it,
            // but is only dropped, which does not touch the definition.
            let (memory, guest) = unsafe {
                self.memories
                    .memory(*ty, making.room.pages_max, &making.data, definition)?
            };
            making.memory = Some(guest);
            Ok(memory)
        })
    }

    fn create_host_table(&self, _: &TableType, _: &TableStyle) -> Result<VMTable, String> {
        Err("the host makes no tables".into())
    }

    unsafe fn create_vm_table(
        &self,
        ty: &TableType,
        style: &TableStyle,
        definition: NonNull<VMTableDefinition>,
    ) -> Result<VMTable, String> {
        let guest_max = MAKING.with_borrow(|making| {
            let making = making.as_ref();
            making.map_or(0, |making| making.room.table_elements_max)
        });
        let elements_max = guest_max.min(self.table_elements_max);
        if ty.minimum > elements_max {
            return Err("the table is over the limit".into());
        }
        let maximum = ty.maximum.unwrap_or(u32::MAX).min(elements_max);
        let bounded = TableType {
            maximum: Some(maximum),
            ..*ty
        };
        // SAFETY: passed on from the caller.
        unsafe { self.base.create_vm_table(&bounded, style, definition) }
    }

    unsafe fn create_vm_global(
        &self,
        ty: GlobalType,
        definition: NonNull<VMGlobalDefinition>,
    ) -> Result<VMGlobal, String> {
        MAKING.with_borrow_mut(|making| {
            if let Some(making) = making.as_mut() {
                making.globals.push((definition, ty));
            }
        });
        // SAFETY: passed on from the caller.
        Ok(unsafe { VMGlobal::new_instance(ty, definition) })
    }

    fn vmconfig(&self) -> &VMConfig {
        &self.vm
    }
}
