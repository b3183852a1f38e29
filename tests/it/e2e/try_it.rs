//! docs/try-it.md, run as it stands.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::PATIENCE;
use super::cluster::{Cluster, OVERLAY, kubectl, run};
use crate::support::wait::try_within;

/// A command of a `console` block, and the lines that the page shows after it.
#[derive(Debug)]
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The `console` blocks of a page: `$ ` begins a command, which goes on while a quote is open.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut console, mut open) = (false, false);
    for line in page.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => console = line == "```console",
            _ if !console => {}
            Some(command) if !open => {
                open = quote_open(command, false);
                steps.push(Step { command: command.to_owned(), shown: Vec::new() });
            }
            _ => {
                let step = steps.last_mut().expect("a block begins with a command");
                if open {
                    step.command += "\n";
                    step.command += line;
                    open = quote_open(line, true);
                } else {
                    step.shown.push(line.to_owned());
                }
            }
        }
    }
    steps
}

fn quote_open(line: &str, before: bool) -> bool {
    (line.matches('\'').count() % 2 == 1) != before
}

/// What stands between `...` has to be in one line of the output, in that order; spaces count as one.
fn shows(output: &str, wanted: &str) -> bool {
    let normal = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let wanted = normal(wanted);
    output.lines().map(normal).any(|line| {
        let mut rest = line.as_str();
        wanted.split("...").map(str::trim).all(|part| match rest.find(part) {
            Some(place) => {
                rest = &rest[place + part.len()..];
                true
            }
            None => false,
        })
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a node: make e2e"]
async fn the_page_does_what_it_says() {
    Cluster::prepared().await;
    kubectl(&["delete", "-k", OVERLAY, "--ignore-not-found"]);
    kubectl(&["delete", "namespace", "emulator", "team-a", "--ignore-not-found"]);
    let page =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/try-it.md")).expect("the page is there");
    let mut functions = String::new();
    for step in steps(&page) {
        if step.command.contains("() {") {
            functions = step.command;
            continue;
        }
        // What is only looked at may come a moment later; nothing else is done twice.
        let looks = ["kubectl get", "kubectl logs"].iter().any(|verb| step.command.starts_with(verb));
        let limit = if looks { PATIENCE } else { std::time::Duration::ZERO };
        try_within(limit, &format!("`{}` to do what the page says", step.command), async || {
            let mut bash = Command::new("bash");
            bash.args(["-euo", "pipefail", "-c", &format!("{functions}\n{}", step.command)]);
            let (output, _) = run(bash, "")?;
            match step.shown.iter().find(|line| !shows(&output, line)) {
                None => Ok(()),
                // Not the output: a pod's log holds values.
                Some(line) => Err(format!("no {:?} in {} lines", line.split('=').next(), output.lines().count())),
            }
        })
        .await
        .unwrap_or_else(|message| panic!("{message}"));
    }
    // For the tests that come after.
    kubectl(&["apply", "-f", "docs/try-it/emulator.yaml"]);
    kubectl(&["rollout", "status", "-n", "emulator", "deployment/aws", "--timeout=300s"]);
}

#[test]
fn a_page_is_read_as_its_reader_does() {
    let page = "```sh\nnot run\n```\n```console\n$ one 'a\nb' c\nshown  ...\n$ two\n```\ntext\n";
    let steps = steps(page);
    let commands: Vec<&str> = steps.iter().map(|step| step.command.as_str()).collect();
    assert_eq!(commands, ["one 'a\nb' c", "two"]);
    assert_eq!(steps[0].shown, ["shown  ..."]);
    assert!(shows("x\na  2   b c", "a 2 ... c"));
    assert!(!shows("a\nc", "a ... c"));
}
