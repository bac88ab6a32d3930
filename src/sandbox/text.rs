//! The text format (WAT): translated to binary before anything else looks at it.

use bytes::Bytes;

use super::ModuleError;

/// Longest text translated, in bytes. A syntax tree takes some forty times its text, so this is
/// far below the limit of a binary; whoever has more text has the tools to translate it.
pub const TEXT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// How a core module starts in binary; a component has another version (component model, Binary.md,
/// "Component Definitions").
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// Longest excerpt of a parser's message that is passed on.
const MESSAGE_CHARS_MAX: usize = 400;

/// What is said of text that can't be translated within the limits.
pub(super) const TOO_HARD: &str = "WebAssembly text: this takes too long or too much memory to \
     translate; translate it yourself (wat2wasm, wasm-tools parse) and send the binary";

/// WebAssembly binary from what an operator gave: the text format (WAT) is translated, binary is
/// passed on as it is. Text starts with white space, `(` or `;`.
///
/// The longest ordinary text takes a quarter of a second, so async callers should run this on a
/// blocking thread. Text that means harm takes minutes (the translator looks for each label among
/// all that enclose it): what a client sent goes to [`super::Sandbox::to_binary`].
pub fn to_binary(bytes: Bytes) -> Result<Bytes, ModuleError> {
    if !is_text(&bytes)? {
        return Ok(bytes);
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        ModuleError::Invalid(format!(
            "the module looks like WebAssembly text, but is not UTF-8 after byte {}",
            error.valid_up_to()
        ))
    })?;
    match wat::parse_str(text) {
        // The parser knows components, or not, by how it was built.
        Ok(binary) if !binary.starts_with(CORE_MODULE) => Err(ModuleError::Invalid(
            "WebAssembly text: this is not a core module; start it with \"(module\"".into(),
        )),
        Ok(binary) => Ok(binary.into()),
        Err(error) => Err(ModuleError::Invalid(first_lines(&error.to_string()))),
    }
}

/// Whether this is text, and not too long, rather than binary.
pub(super) fn is_text(bytes: &[u8]) -> Result<bool, ModuleError> {
    let Some(first) = bytes.first() else {
        return Err(ModuleError::Invalid("the module is empty".into()));
    };
    let is_text = matches!(first, b'(' | b';' | b' ' | b'\t' | b'\r' | b'\n');
    if is_text && bytes.len() > TEXT_BYTES_MAX {
        return Err(ModuleError::Invalid(format!(
            "the module is WebAssembly text of {} bytes, and at most {TEXT_BYTES_MAX} are \
             translated; translate it yourself (wat2wasm, wasm-tools parse) and send the binary",
            bytes.len()
        )));
    }
    Ok(is_text)
}

/// The parser's message (what, then `file:line:column`, then the line itself), shortened.
fn first_lines(message: &str) -> String {
    let mut text = String::from("WebAssembly text: ");
    let printable = message.replace("<anon>:", "line ");
    for character in printable.chars().take(MESSAGE_CHARS_MAX) {
        if character == '\n' || !character.is_control() {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use bytes::Bytes;

    use super::{TEXT_BYTES_MAX, to_binary};

    fn refused(text: impl Into<Bytes>) -> String {
        to_binary(text.into()).unwrap_err().to_string()
    }

    #[test]
    fn binary_passes_untouched_whatever_it_holds() {
        let bytes = Bytes::from_static(b"\0asm\x01\0\0\0");
        assert_eq!(to_binary(bytes.clone()).unwrap(), bytes);
        assert_eq!(
            to_binary(Bytes::from_static(b"\x7fELF")).unwrap(),
            &b"\x7fELF"[..]
        );
    }

    #[test]
    fn text_is_translated_also_after_space_and_comments() {
        for text in [
            "(module)",
            " \n(module)",
            ";; hello\n(module)",
            "(; a ;)(module)",
        ] {
            assert_eq!(
                to_binary(text.into()).unwrap(),
                &b"\0asm\x01\0\0\0"[..],
                "{text}"
            );
        }
    }

    #[test]
    fn an_error_names_its_line() {
        let message = refused("(module\n  (func\n    i32.nonsense))");
        assert!(message.contains("line 3:"), "{message}");
        assert!(message.contains("i32.nonsense"), "{message}");
    }

    #[test]
    fn empty_wrong_encoding_and_too_long_are_refused() {
        assert_eq!(refused(""), "the module is empty");
        assert!(refused(&b"(module \xff)"[..]).contains("not UTF-8 after byte 8"));
        assert!(refused(vec![b' '; TEXT_BYTES_MAX + 1]).contains("wat2wasm"));
        assert!(refused("(component)").contains("WebAssembly text"));
    }

    #[test]
    fn hostile_text_ends_soon_and_keeps_the_stack() {
        let blocks = format!(
            "(module (func {}{}))",
            "(block ".repeat(100_000),
            ")".repeat(100_000)
        );
        let parens = "(".repeat(1_000_000);
        let comments = "(;".repeat(500_000);
        let folded = format!("(module (func {}", "(i32.add ".repeat(100_000));
        let types = format!("(module {})", "(type (func (param (ref ".repeat(50_000));
        let quote = format!("(module quote {}", "\"(module quote \" ".repeat(50_000));
        let names = format!("(module {})", "(func $f)".repeat(100_000));
        let string = format!("(module (data \"{}\"", "\\u{10ffff}".repeat(100_000));
        for text in [
            blocks, parens, comments, folded, types, quote, names, string,
        ] {
            let start = Instant::now();
            let _ = to_binary(text.into());
            assert!(start.elapsed() < Duration::from_secs(60));
        }
    }
}
