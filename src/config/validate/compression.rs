//! Which answers are compressed.

use crate::config::context::Context;
use crate::config::file;
use crate::config::problem::{Path, shown};
use crate::config::values::Size;
use crate::gateway::Compression;

const TYPES_MAX: usize = 64;

pub fn compression(compression: &file::Compression, cx: &mut Context) -> Option<Compression> {
    let at = Path::from("compression");
    cx.size(
        &at.key("size_min"),
        compression.size_min,
        Size(0),
        Size::gib(1),
    );
    let path = at.key("types");
    if compression.types.len() > TYPES_MAX {
        cx.problem(
            &path,
            format_args!("has more than {TYPES_MAX} types"),
            "use patterns such as text/*",
        );
    }
    let mut types = Vec::with_capacity(compression.types.len());
    for (index, text) in compression.types.iter().enumerate() {
        let is_type = text.split_once('/').is_some_and(|(kind, subtype)| {
            let is_part = |part: &str| {
                !part.is_empty()
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+*".contains(&b))
            };
            is_part(kind) && is_part(subtype)
        });
        if is_type && text.matches('*').count() <= 1 {
            types.push(text.to_ascii_lowercase());
        } else {
            cx.problem(
                &path.index(index),
                format_args!("'{}' is not a content type", shown(text)),
                "use text/html, text/* or application/*+json, without parameters",
            );
        }
    }
    (types.len() == compression.types.len()).then_some(Compression {
        enabled: compression.enabled,
        bytes_min: compression.size_min.0,
        types,
    })
}
