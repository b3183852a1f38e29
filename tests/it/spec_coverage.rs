//! docs/spec-coverage.md names every item of the specification; it and docs/security.md name only tests that exist.

use std::path::PathBuf;

use crate::support::control_plane::project;

const PAGE: &str = include_str!("../../docs/spec-coverage.md");
const SECURITY: &str = include_str!("../../docs/security.md");

/// The items of the specification, in its order.
fn items() -> impl Iterator<Item = String> {
    let scenarios = [("US1", 3), ("US2", 2), ("US3", 3), ("US4", 2), ("US5", 2)];
    let stories = scenarios.into_iter().flat_map(|(story, count)| (1..=count).map(move |n| format!("{story}.{n}")));
    let requirements = (1..=18).map(|n| format!("FR-{n:03}"));
    let criteria = (1..=9).map(|n| format!("SC-{n:03}"));
    stories
        .chain(requirements)
        .chain(criteria)
        .chain((1..=8).map(|n| format!("EC-{n}")))
        .chain((1..=8).map(|n| format!("ADR-{n}")))
}

/// The file of a test as the page names it.
fn file(name: &str) -> PathBuf {
    let folder = if name.starts_with("src/") { project().to_owned() } else { project().join("tests/it") };
    folder.join(format!("{name}.rs"))
}

#[test]
fn every_item_has_one_line_and_each_names_tests_that_exist_or_says_that_it_is_open() {
    let mut problems = Vec::new();
    for item in items() {
        let lines: Vec<&str> = PAGE.lines().filter(|line| line.starts_with(&format!("| {item} |"))).collect();
        match lines[..] {
            [line] if line.contains('`') || line.contains("| open") => {}
            [_] => problems.push(format!("{item} names no test")),
            _ => problems.push(format!("{item} has {} lines", lines.len())),
        }
    }
    problems.extend(missing_tests(PAGE));
    assert!(problems.is_empty(), "docs/spec-coverage.md: {problems:#?}");
}

#[test]
fn what_the_page_on_security_says_is_shown_by_tests_that_exist() {
    assert_eq!(missing_tests(SECURITY), Vec::<String>::new());
    let rows = SECURITY.lines().filter(|line| line.starts_with("| to "));
    let bare: Vec<&str> = rows.filter(|line| !line.contains("::")).collect();
    assert!(bare.is_empty(), "these name no test: {bare:#?}");
    assert_eq!(missing_tests("`stolen_token::no_such_test`, `no_such/file::x` and `src/agent::y`").len(), 3);
}

/// Tests that a page names and that are not there.
fn missing_tests(page: &str) -> Vec<String> {
    let named = page.split('`').skip(1).step_by(2).filter_map(|text| text.split_once("::"));
    let is_missing = |(name, test): &(&str, &str)| {
        let text = std::fs::read_to_string(file(name)).unwrap_or_default();
        !text.contains(&format!("fn {test}("))
    };
    let missing = named.filter(|(name, _)| *name != "file").filter(is_missing);
    missing.map(|(name, test)| format!("there is no {name}::{test}")).collect()
}
