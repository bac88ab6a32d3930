//! What a batch of rows adds to the sums and to the counts of modules.

use std::collections::BTreeMap;

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

use super::{Execution, Status, used};
use crate::sandbox::ModuleHash;

/// What rows are summed by. Its order is that in which sums are changed, so that two gateways don't wait
/// for each other's rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub user_id: Uuid,
    pub day: NaiveDate,
    pub key_id: Uuid,
    pub module: Option<ModuleHash>,
    pub status: Status,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub executions: i64,
    pub wall_us: i64,
    pub cpu_us: i64,
    pub memory_peak_bytes: i64,
    pub bytes_in: i64,
    pub bytes_out: i64,
}

/// Executions to add to a stored module's count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub executions: i64,
    pub last_at: DateTime<Utc>,
}

pub(super) type Days = BTreeMap<Group, Sum>;

#[derive(Debug, Default)]
pub(super) struct Sums {
    /// How many rows there are in all.
    pub rows: u64,
    pub days: Days,
    /// Of rows with an exact status, whose sums stand in a table of their own.
    pub exact_days: Days,
    pub modules: BTreeMap<Uuid, Count>,
}

/// The module that an execution is summed under. One that came with its request has no sum of its own: who sends
/// another with each request would fill the table, which is kept for long.
fn kept_module(execution: &Execution) -> Option<ModuleHash> {
    let is_kept = execution.module_id.is_some() || execution.route.is_some();
    execution.module.filter(|_| is_kept)
}

impl Group {
    /// The module as the tables have it, where parts of a primary key can't be null: empty for none.
    pub(super) fn module(&self) -> &[u8] {
        self.module.as_ref().map_or(&[], |module| &module.0)
    }
}

impl Sums {
    pub(super) fn of<'a>(executions: impl Iterator<Item = &'a Execution>) -> Sums {
        let mut sums = Sums::default();
        for execution in executions {
            sums.add(execution);
        }
        sums
    }

    pub(super) fn add(&mut self, execution: &Execution) {
        self.rows += 1;
        let caller = execution.caller;
        let group = Group {
            user_id: caller.map_or(Uuid::nil(), |caller| caller.user_id),
            day: execution.at.date_naive(),
            key_id: caller.map_or(Uuid::nil(), |caller| caller.key_id),
            module: kept_module(execution),
            status: execution.status,
        };
        let days = match execution.status.exact() {
            Some(_) => &mut self.exact_days,
            None => &mut self.days,
        };
        let sum = days.entry(group).or_default();
        sum.executions += 1;
        sum.wall_us += used(execution.wall_us);
        sum.cpu_us += used(execution.cpu_us);
        sum.memory_peak_bytes = sum.memory_peak_bytes.max(used(execution.memory_peak_bytes));
        sum.bytes_in += used(execution.bytes_in);
        sum.bytes_out += used(execution.bytes_out);
        if let Some(module_id) = execution.module_id
            && execution.status.is_run()
        {
            let count = self.modules.entry(module_id).or_insert(Count {
                executions: 0,
                last_at: execution.at,
            });
            count.executions += 1;
            count.last_at = count.last_at.max(execution.at);
        }
    }
}
