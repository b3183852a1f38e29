//! Log lines on stderr, as JSON or as text, and on request the same in the node's journal.
//!
//! What other crates log is cut here, in code, so that no setting can turn it on: kube-client logs whole reply bodies
//! when they do not decode, and the AWS SDK whole requests.

use std::{io, panic, str::FromStr};

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

/// Starts logging, once per program. A panic is logged by its place alone, since a payload can stand in its message.
pub fn start(format: LogFormat, level: Level, journal: Option<Journal>) -> Logs {
    let filter = Targets::new()
        .with_target("jasm", level)
        .with_target("jasm_agent", level)
        .with_target("kube_runtime", LevelFilter::WARN.min(level.into()))
        .with_default(LevelFilter::ERROR)
        // kube-client writes bodies of replies.
        .with_target("kube_client", LevelFilter::OFF)
        .with_target("aws", LevelFilter::OFF);
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
    tracing_subscriber::registry().with(lines.and_then(journal.clone()).with_filter(filter)).init();
    panic::set_hook(Box::new(|panicked| {
        let place = panicked.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "a bug: the program panicked");
    }));
    Logs(journal)
}
