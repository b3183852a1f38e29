//! Which requests meet which trouble.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::request::Parts;
use tokio::sync::watch;

use super::Refusal;

/// One request, as far as rules tell requests apart.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// `GET`, `POST`, `PUT` ...
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    query: String,
}

impl Asked {
    pub(super) fn read(head: &Parts) -> Self {
        Self {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
        }
    }

    /// Whether it says `KEY` with any value, or with this one.
    fn says(&self, key: &str, value: Option<&str>) -> bool {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().any(|(name, said)| name == key && value.is_none_or(|value| said == value))
    }

    pub(super) fn is_dry_run(&self) -> bool {
        self.says("dryRun", Some("All"))
    }

    pub(super) fn is_watch(&self) -> bool {
        self.says("watch", None)
    }
}

/// Which requests, and which of those in turn.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    method: &'static str,
    path: String,
    dry_run: Option<bool>,
    watch: Option<Watch>,
    after: usize,
    times: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    Any,
    Resumed,
}

impl Match {
    /// By method and any part of the path (the query is no part of it), as in `("PUT", "/secrets/")`.
    pub(crate) fn new(method: &'static str, path: &str) -> Self {
        Self { method, ..Self::path(path) }
    }

    /// By any part of the path, whatever is done there. The empty path fits everything.
    pub(crate) fn path(path: &str) -> Self {
        Self { method: "", path: path.to_owned(), dry_run: None, watch: None, after: 0, times: usize::MAX }
    }

    /// Watches of pods.
    pub(crate) fn watch() -> Self {
        Self { watch: Some(Watch::Any), ..Self::new("GET", "/pods") }
    }

    /// Watches of pods that go on from a state that the client has, in contrast to those that begin with a list.
    pub(crate) fn resumed_watch() -> Self {
        Self { watch: Some(Watch::Resumed), ..Self::watch() }
    }

    /// Only dry runs, or only what is none.
    pub(crate) fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = Some(dry_run);
        self
    }

    /// Not the first so many.
    pub(crate) fn after(mut self, passed: usize) -> Self {
        self.after = passed;
        self
    }

    /// Only so many.
    pub(crate) fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Whether a request is of this kind, the turn aside.
    pub(super) fn fits(&self, asked: &Asked) -> bool {
        let method = self.method.is_empty() || asked.method == self.method;
        let watch = match self.watch {
            None => true,
            Some(Watch::Any) => asked.is_watch(),
            Some(Watch::Resumed) => asked.is_watch() && !asked.says("sendInitialEvents", None),
        };
        let dry_run = self.dry_run.is_none_or(|wanted| wanted == asked.is_dry_run());
        method && watch && dry_run && asked.path.contains(&self.path)
    }
}

/// What befalls a request.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// The connection ends; the API server never hears of the request.
    Cut,
    /// The API server does what it is asked; then the connection ends in place of the answer.
    LostReply,
    /// Silence. The request goes on when the trouble ends, as packets do in a network that comes back, unless the
    /// client has given it up by then: then the API server never hears of it.
    BlackHole,
    /// The API server does what it is asked; its answer comes when the trouble ends.
    HeldReply,
    /// The request goes on so much later.
    Delay(Duration),
    /// The API server never hears of the request, and this is what the client is told.
    Refused(Refusal),
    /// A watch that begins well, and at once tells in an event that the state it was to go on from is gone (410).
    ExpiredInStream,
}

/// Trouble for some requests.
#[derive(Debug)]
pub(super) struct Rule {
    matches: Match,
    pub(super) trouble: Trouble,
    seen: AtomicUsize,
    /// How many requests it has befallen.
    pub(super) hits: watch::Sender<usize>,
    /// Whether it is over.
    pub(super) healed: watch::Sender<bool>,
}

impl Rule {
    pub(super) fn new(matches: Match, trouble: Trouble) -> Self {
        let (hits, healed) = (watch::Sender::new(0), watch::Sender::new(false));
        Self { matches, trouble, seen: AtomicUsize::new(0), hits, healed }
    }

    /// Counts a request that fits; says whether it is one of those in turn.
    pub(super) fn is_due(&self, asked: &Asked) -> bool {
        if !self.matches.fits(asked) {
            return false;
        }
        let passed = self.seen.fetch_add(1, Ordering::Relaxed);
        passed.checked_sub(self.matches.after).is_some_and(|taken| taken < self.matches.times)
    }

    pub(super) fn hit(&self) {
        self.hits.send_modify(|hits| *hits += 1);
    }

    /// Returns when it is over.
    pub(super) async fn over(&self) {
        let _ = self.healed.subscribe().wait_for(|healed| *healed).await;
    }
}
