//! The codes of failures: what the sources send, the list and the documentation agree.

use crate::failure::code;

/// Every code that the sources send is in the list, and every one of the list is documented.
#[test]
fn every_code_is_documented() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_to_string(root.join("docs/API.md")).unwrap();
    let codes = code::ALL;
    for code in codes {
        assert!(
            docs.contains(&format!("\n| `{code}` | ")),
            "`{code}` has no row in docs/API.md"
        );
    }
    let rows = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let status = |row: &str| {
        row.split(' ')
            .next()
            .is_some_and(|word| word.len() == 3 && word.parse::<u16>().is_ok())
    };
    for (code, _) in rows.filter(|(_, row)| status(row)) {
        assert!(
            codes.contains(&code),
            "docs/API.md has `{code}`, which nothing sends"
        );
    }
    let mut directories = vec![root.join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("tests") {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                for code in literal_codes(&source) {
                    assert!(codes.contains(&code), "{} sends `{code}`", path.display());
                }
            }
        }
    }
    assert_eq!(
        literal_codes("Failure::new(S::X, \n \"a_b\", \"text\")"),
        ["a_b"]
    );
    assert_eq!(literal_codes("Failure::unavailable(\"c\", \"d\")"), ["c"]);
    assert_eq!(
        literal_codes("Failure::new(S::X, code, \"text\") Failure::conflict(code::C, \"text\")"),
        [""; 0]
    );
}

/// The codes that a source file gives to a failure as literals.
fn literal_codes(source: &str) -> Vec<&str> {
    let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
    [
        "Failure::new(",
        "Failure::unprocessable(",
        "Failure::unavailable(",
        "Failure::conflict(",
    ]
    .into_iter()
    .flat_map(|call| {
        source.split(call).skip(1).filter_map(|arguments| {
            let (before, rest) = arguments.split_once('"')?;
            // A code comes first or after the status, so at most one comma stands before it.
            let is_code = !before.contains([';', '(', ')'])
                && !before.contains("code::")
                && before.matches(',').count() <= 1;
            is_code.then(|| rest.split('"').next()).flatten()
        })
    })
    .collect()
}
