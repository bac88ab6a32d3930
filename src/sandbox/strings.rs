//! Strings that a guest finds when it starts: its arguments, or its environment.

/// C strings, in the order and the form in which a guest gets them: each ended by a NUL, without gaps, so
/// that they are made and handed over as one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    count: usize,
}

impl Strings {
    /// None so far, with room for so many bytes.
    pub fn with_room(bytes: usize) -> Strings {
        Strings {
            bytes: Vec::with_capacity(bytes),
            count: 0,
        }
    }

    /// These arguments.
    pub fn arguments<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Strings {
        let mut strings = Strings::default();
        for argument in arguments {
            strings.add_argument(argument);
        }
        strings
    }

    /// These variables, names and values.
    pub fn variables<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Strings {
        let mut strings = Strings::default();
        for (name, value) in variables {
            strings.add_variable(name, value);
        }
        strings
    }

    /// Adds an argument. It keeps its place, so one with a NUL byte is cut there rather than left out.
    pub fn add_argument(&mut self, argument: &str) {
        let until_nul = argument.split('\0').next().unwrap_or_default();
        self.add(&[until_nul]);
    }

    /// Adds a variable, as `NAME=value`. A C string can't hold a NUL, nor a name a `=`: such variables are left
    /// out, and those without a name.
    pub fn add_variable(&mut self, name: &str, value: &str) {
        if !name.is_empty() && !name.contains(['\0', '=']) && !value.contains('\0') {
            self.add(&[name, "=", value]);
        }
    }

    fn add(&mut self, pieces: &[&str]) {
        for piece in pieces {
            self.bytes.extend_from_slice(piece.as_bytes());
        }
        self.bytes.push(0);
        self.count += 1;
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// All of them, each with its NUL.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Each without its NUL.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes
            .split_inclusive(|byte| *byte == 0)
            .map(|string| string.strip_suffix(&[0]).unwrap_or(string))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_stand_one_after_the_other() {
        let mut strings = Strings::arguments(["a", "", "cut\0off"]);
        strings.add_argument("b");
        assert_eq!(strings.as_bytes(), b"a\0\0cut\0b\0");
        assert_eq!(strings.count(), 4);
        let each: Vec<_> = strings.iter().collect();
        assert_eq!(each, [&b"a"[..], b"", b"cut", b"b"]);
    }

    #[test]
    fn what_can_be_no_variable_is_left_out() {
        let strings = Strings::variables([
            ("A", "1=2"),
            ("", "x"),
            ("N\0", "x"),
            ("N", "x\0y"),
            ("A=B", "x"),
            ("EMPTY", ""),
        ]);
        assert_eq!(strings.as_bytes(), b"A=1=2\0EMPTY=\0");
        assert_eq!(strings.count(), 2);
        assert_eq!(Strings::default().iter().count(), 0);
    }
}
