//! `weir-logic` is pure: no runtime, no sockets, files, threads, clocks, randomness or logging. Here that is enforced.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that a pure file has no use for, alone or as a part of a path.
const FORBIDDEN: [&str; 24] = [
    "tokio",
    "std::net",
    "std::fs",
    "std::thread",
    "std::process",
    "std::io",
    "std::os",
    "Instant",
    "SystemTime",
    "rand",
    "getrandom",
    "thread_rng",
    "RandomState",
    "HashMap::new",
    "HashSet::new",
    "tracing",
    "log",
    "print!",
    "println!",
    "eprint!",
    "eprintln!",
    "dbg!",
    "static mut",
    "Mutex",
];

/// What `weir-logic` may depend on. None of these does anything but compute.
const DEPENDENCIES: [&str; 9] =
    ["bytes", "crc32fast", "foldhash", "petgraph", "prost", "serde", "serde_json", "thiserror", "zstd"];

#[test]
fn nothing_in_logic_knows_the_world_outside() {
    let mut files = Vec::new();
    list(&logic(), &mut files);
    assert!(files.len() > 40, "only {} files found: has the crate moved?", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source file");
        found.extend(offences(&text).into_iter().map(|(line, word)| format!("{}:{line}: {word}", file.display())));
    }
    assert!(found.is_empty(), "weir-logic must stay pure; pass it what it needs as an argument:\n{}", found.join("\n"));
}

#[test]
fn logic_depends_on_nothing_but_what_is_listed_here() {
    let manifest = fs::read_to_string(logic().join("Cargo.toml")).expect("the manifest");
    let found = dependencies(&manifest);
    assert_eq!(found, DEPENDENCIES, "a new dependency of weir-logic must be as pure: check it, then list it here");
}

#[test]
fn the_search_finds_what_it_is_for() {
    let text = "use std::{\n    fmt,\n    net::TcpStream,\n};\nlet now = Instant::now(); // Instant\n// tokio\nlet s = \"\\\\\";\n\
                rand::random();\nlet operand = brand;\nprintln!(\"x\");\nuse std::{collections::BTreeMap, fs};\n/* std::fs */\n";
    let found: Vec<_> = offences(text).into_iter().map(|(line, word)| format!("{line} {word}")).collect();
    assert_eq!(found, ["1 std::net", "5 Instant", "8 rand", "10 println!", "11 std::fs"]);
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nbytes.workspace = true\ntokio = { version = \"1\" }\n\n[dev-dependencies]\nproptest = \"1\"\n\
                    [target.'cfg(unix)'.dependencies]\nnix = \"1\"\n[dependencies.rand]\nversion = \"1\"\n";
    assert_eq!(dependencies(manifest), ["bytes", "tokio", "nix", "rand"]);
}

fn logic() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/logic")
}

/// All Rust files below a folder; examples are no part of the crate.
fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).expect("a folder of the crate");
    for entry in entries {
        let path = entry.expect("an entry of the folder").path();
        if path.is_dir() && !path.ends_with("examples") {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Forbidden words outside comments, with their lines, in order; each once a line.
fn offences(text: &str) -> Vec<(usize, &'static str)> {
    let code = without_comments(text);
    let mut found = Vec::new();
    for (at, line) in code.lines().enumerate() {
        found.extend(FORBIDDEN.iter().filter(|word| has_word(line, word)).map(|&word| (at + 1, word)));
    }
    // `use std::{net::..}` hides the path from the lines.
    for (start, group) in code.match_indices("std::{").map(|(start, head)| (start, &code[start + head.len()..])) {
        let group = &group[..group.find(';').unwrap_or(group.len())];
        let line = code[..start].matches('\n').count() + 1;
        for word in FORBIDDEN.iter().filter(|word| word.starts_with("std::")) {
            if has_word(group, &word["std::".len()..]) {
                found.push((line, word));
            }
        }
    }
    found.sort_unstable();
    found
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        !before.is_some_and(part) && (word.ends_with('!') || !after.is_some_and(part))
    })
}

/// The text with comments blanked; line breaks stay. A `//` inside a string counts as a comment, which hides no code of ours.
fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("//").into_iter().chain(rest.find("/*")).min() {
        code.push_str(&rest[..at]);
        let block = rest[at..].starts_with("/*");
        let end = if block { rest[at..].find("*/").map(|end| at + end + 2) } else { rest[at..].find('\n').map(|end| at + end) };
        let end = end.unwrap_or(rest.len());
        code.extend(rest[at..end].chars().filter(|&c| c == '\n'));
        rest = &rest[end..];
    }
    code + rest
}

/// Names in all tables of dependencies that end up in the crate itself.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(table) = line.strip_prefix('[') {
            let table = table.trim_end_matches(']');
            inside = table == "dependencies" || table.ends_with(".dependencies");
            names.extend(
                table
                    .rsplit_once("dependencies.")
                    .filter(|(before, _)| !before.ends_with('-'))
                    .map(|(_, name)| name.to_owned()),
            );
        } else if inside {
            names.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    names
}
