//! Records of executions: their journal, and how long they are kept.

use super::server::file_path;
use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::Path;
use crate::config::values::{Period, Size};
use crate::usage::{Retention, Settings};

/// From an hour to ten years.
const RETENTION: (Period, Period) = (Period::secs(3_600), Period::secs(3_650 * 86_400));

pub fn usage(usage: &file::Usage, cx: &mut Context) -> Option<Settings> {
    let (at, journal) = (Path::from("usage"), &usage.journal);
    let (least, most) = RETENTION;
    cx.period(&at.key("retention"), usage.retention, least, most);
    cx.period(
        &at.key("daily_retention"),
        usage.daily_retention,
        least,
        most,
    );
    let at = at.key("journal");
    cx.size(
        &at.key("size_max"),
        journal.size_max,
        Size::mib(64),
        Size::gib(1024),
    );
    if let Some(interval) = journal.sync_interval {
        let path = at.key("sync_interval");
        cx.period(&path, interval, Period::ms(500), Period::secs(3_600));
    }
    Some(Settings {
        directory: file_path(Some(&journal.directory), &at.key("directory"), cx)?,
        bytes_max: journal.size_max.0,
        when_full: journal.when_full,
        sync_interval: journal.sync_interval.map(|interval| interval.0),
        retention: Retention {
            executions: usage.retention.0,
            days: usage.daily_retention.0,
        },
    })
}
