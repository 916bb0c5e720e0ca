//! What a dependency may be: the rules of `deny.toml` that need neither the network nor another tool.
//!
//! cargo-deny reads the same file and knows more (advisories, duplicates, clarifications). Compiling it takes minutes, so CI runs it where it
//! is installed, and this everywhere.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{adapters, output, workspace};

/// The lists of `deny.toml` that are checked here.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    /// Licences, each of which is enough.
    licences: Vec<String>,
    /// Licences that are enough for one crate, with its name.
    exceptions: Vec<[String; 2]>,
    /// Crates that nobody may depend on.
    denied: Vec<String>,
}

/// Checks every dependency of the workspace, of the kernels and of the adapters, for all targets and features.
pub(crate) fn check() -> Result<()> {
    let path = workspace::root().join("deny.toml");
    let rules = rules(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
    let manifests = [workspace::root().to_owned(), workspace::kernels(), adapters::root()];
    let mut findings = Vec::new();
    for manifest in manifests.map(|folder| folder.join("Cargo.toml")) {
        let mut cargo = workspace::cargo();
        cargo.args(["metadata", "--format-version", "1", "--all-features", "--manifest-path"]);
        let metadata: Value = serde_json::from_str(&workspace::output(cargo.arg(&manifest))?)?;
        findings.extend(violations(&metadata, &rules)?);
    }
    findings.sort();
    findings.dedup();
    if !findings.is_empty() {
        bail!("dependencies against deny.toml:\n  {}", findings.join("\n  "));
    }
    cargo_deny(&path)
}

/// Has cargo-deny check the same, where it is installed.
fn cargo_deny(config: &Path) -> Result<()> {
    let mut version = workspace::cargo();
    let is_there = version.args(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    if !is_there {
        let note = "licences, sources and denied crates are checked; duplicates and advisories are NOT";
        output::note(format_args!("warning: cargo-deny is not installed: {note}"));
        return Ok(());
    }
    for folder in [workspace::root().to_owned(), adapters::root()] {
        let mut deny: Command = workspace::cargo();
        deny.args(["deny", "--offline", "--log-level", "error", "--manifest-path"]).arg(folder.join("Cargo.toml"));
        workspace::run(deny.arg("--config").arg(config).args(["check", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}

/// Reads the lists; what is written otherwise than they are is an error, not a rule that is not kept.
fn rules(text: &str) -> Result<Rules> {
    let lines = || text.lines().map(str::trim);
    let licences =
        lines().find_map(|line| line.strip_prefix("allow = [")).context("deny.toml has no line `allow = [`")?;
    let denied = lines().filter_map(|line| line.strip_prefix("{ crate = ")).map(quoted).collect::<Result<_>>()?;
    let licences = licences.strip_suffix(']').context("the licences are on more than one line")?;
    let exceptions = lines().find_map(|line| line.strip_prefix("exceptions = [")).unwrap_or_default();
    // { allow = ["LICENCE"], crate = "NAME" }: two texts each.
    let exceptions = exceptions.split_terminator('}').filter(|exception| exception.contains('{'));
    let exceptions = exceptions.map(|exception| Ok([quoted(exception)?, last_quoted(exception)?]));
    let exceptions = exceptions.collect::<Result<_>>()?;
    let licences = licences.split(',').map(quoted).collect::<Result<_>>()?;
    let rules = Rules { licences, exceptions, denied };
    if rules.denied.is_empty() {
        bail!("deny.toml denies no crate by a line `{{ crate = `");
    }
    Ok(rules)
}

/// The text between the first two quotation marks.
fn quoted(text: &str) -> Result<String> {
    Ok(text.split('"').nth(1).with_context(|| format!("no text in quotation marks: {text}"))?.to_owned())
}

/// The text between the last two quotation marks.
fn last_quoted(text: &str) -> Result<String> {
    Ok(text.rsplit('"').nth(1).with_context(|| format!("no text in quotation marks: {text}"))?.to_owned())
}

/// What others wrote, and the rules do not let in.
fn violations(metadata: &Value, rules: &Rules) -> Result<Vec<String>> {
    let packages = metadata["packages"].as_array().context("`cargo metadata` names no packages")?;
    let mut findings = Vec::new();
    // Packages without a source are ours.
    for package in packages.iter().filter(|package| !package["source"].is_null()) {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = text("name");
        if !text("source").starts_with("registry+") {
            findings.push(format!("{name}: from {}, no registry", text("source")));
        }
        if rules.denied.iter().any(|denied| denied == name) {
            findings.push(format!("{name}: denied"));
        }
        let own = rules.exceptions.iter().filter(|[_, of]| of == name).map(|[licence, _]| licence);
        let licences: Vec<String> = rules.licences.iter().chain(own).cloned().collect();
        if !is_satisfied(text("license"), &licences) {
            findings.push(format!("{name}: no licence that is accepted in `{}`", text("license")));
        }
    }
    Ok(findings)
}

/// Whether an SPDX expression can be kept with these licences alone. AND binds before OR, and `/` is an OR of old packages; an identifier
/// with an exception (`WITH`) is another one than without. An expression that is not understood is not kept.
fn is_satisfied(expression: &str, licences: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let satisfied = any(&mut words, licences);
    satisfied == Some(true) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, licences: &[String]) -> Option<bool> {
    let mut found = all(words, licences)?;
    while words.next_if_eq(&"OR").is_some() {
        found |= all(words, licences)?;
    }
    Some(found)
}

fn all(words: &mut Words<'_>, licences: &[String]) -> Option<bool> {
    let mut found = one(words, licences)?;
    while words.next_if_eq(&"AND").is_some() {
        found &= one(words, licences)?;
    }
    Some(found)
}

fn one(words: &mut Words<'_>, licences: &[String]) -> Option<bool> {
    match words.next()? {
        "(" => any(words, licences).filter(|_| words.next() == Some(")")),
        ")" | "OR" | "AND" | "WITH" => None,
        licence => {
            let exception = words.next_if_eq(&"WITH").map(|_| words.next());
            Some(match exception {
                None => licences.iter().any(|allowed| allowed == licence),
                Some(exception) => licences.contains(&format!("{licence} WITH {}", exception?)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_read_and_kept() {
        let text = fs::read_to_string(workspace::root().join("deny.toml")).unwrap();
        let rules = rules(&text).unwrap();
        assert!(
            rules.licences.iter().any(|licence| licence == "MIT") && rules.denied.iter().any(|name| name == "cust")
        );
        let exception = ["Apache-2.0 WITH LLVM-exception", "target-lexicon"].map(str::to_owned);
        assert_eq!(rules.exceptions, [exception]);
        assert!(super::rules(&text.replace("allow = [", "allow = [\n")).is_err());
        assert!(super::rules(&text.replace("{ crate", "{crate")).is_err());
    }

    #[test]
    fn expressions_of_licences() {
        let licences = ["MIT", "Apache-2.0", "Zlib"].map(str::to_owned);
        for (expression, expected) in [
            ("MIT", true),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("GPL-3.0 AND MIT OR Zlib", true),
            ("GPL-3.0 AND (MIT OR Zlib)", false),
            ("(MIT OR Apache-2.0) AND Zlib", true),
            ("Apache-2.0 WITH LLVM-exception", false),
            ("Apache-2.0 WITH LLVM-exception OR MIT", true),
            ("", false),
            ("MIT OR", false),
            ("MIT Zlib", false),
            ("(MIT", false),
            ("MIT)", false),
            ("MIT WITH", false),
        ] {
            assert_eq!(is_satisfied(expression, &licences), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_not_let_in_is_found() {
        let rules = Rules {
            licences: vec!["MIT".to_owned()],
            exceptions: vec![["GPL-3.0", "excepted"].map(str::to_owned)],
            denied: vec!["bad".to_owned()],
        };
        let metadata = serde_json::json!({ "packages": [
            { "name": "ours", "source": null, "license": "none" },
            { "name": "fine", "source": "registry+https://x", "license": "MIT OR GPL-3.0" },
            { "name": "bad", "source": "registry+https://x", "license": "MIT" },
            { "name": "excepted", "source": "registry+https://x", "license": "GPL-3.0" },
            { "name": "not excepted", "source": "registry+https://x", "license": "GPL-3.0" },
            { "name": "theirs", "source": "git+https://x", "license": null },
        ] });
        let findings = violations(&metadata, &rules).unwrap();
        assert_eq!(
            findings,
            [
                "bad: denied",
                "not excepted: no licence that is accepted in `GPL-3.0`",
                "theirs: from git+https://x, no registry",
                "theirs: no licence that is accepted in ``",
            ]
        );
    }
}
