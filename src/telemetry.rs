//! Log lines on stderr, as JSON or as text, and on request the same in the node's journal.
//!
//! What other crates log is cut here, in code, so that no setting can turn it on: kube-client logs whole reply bodies
//! when they do not decode, the AWS SDK whole requests and answers, and a new version or a new crate may log anything.

use std::{io, str::FromStr};

use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::journald::Journal;

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(()),
        }
    }
}

/// To be held until the program ends: then the journal gets the last lines.
#[must_use]
#[derive(Debug)]
pub struct Logs(Option<Journal>);

impl Drop for Logs {
    fn drop(&mut self) {
        if let Some(journal) = &self.0 {
            journal.flush();
        }
    }
}

/// What is logged at all: the agent's own lines, and the warnings of the watch. Every other crate is silent; what fails in
/// one comes back as an error, and the agent tells that in its own words.
fn filter(level: Level) -> Targets {
    Targets::new()
        .with_default(LevelFilter::OFF)
        .with_target("jasm", level)
        .with_target("jasm_agent", level)
        .with_target("kube_runtime", LevelFilter::WARN.min(level.into()))
}

/// Starts logging, once per program.
pub fn start(format: LogFormat, level: Level, journal: Option<Journal>) -> Logs {
    let lines = match format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(io::stderr)
            .boxed(),
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(io::stderr).boxed(),
    };
    // One filter before both.
    tracing_subscriber::registry().with(lines.and_then(journal.clone()).with_filter(filter(level))).init();
    Logs(journal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_crate_is_heard_at_any_level() {
        let filter = filter(Level::TRACE);
        let crates = include_str!("../Cargo.lock").lines().filter_map(|line| line.strip_prefix("name = \""));
        let crates = crates.filter_map(|name| name.strip_suffix('"')).map(|name| name.replace('-', "_"));
        let heard = crates.filter(|name| filter.would_enable(&format!("{name}::client"), &Level::ERROR));
        assert_eq!(heard.collect::<Vec<_>>(), ["jasm", "kube_runtime"]);
        assert!(filter.would_enable("jasm::reconcile", &Level::TRACE));
        assert!(filter.would_enable("kube_runtime::watcher", &Level::WARN));
        assert!(!filter.would_enable("kube_runtime::watcher", &Level::INFO));
    }
}
