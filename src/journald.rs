//! The log lines once more, in the journal of the node (systemd-journald), where they can be asked for by field.
//!
//! journald is sent to through a socket, and a send waits while journald does not read: one that hangs would stop the
//! agent after a few lines. So a thread of its own sends, from a queue. A line that finds the queue full, or that the
//! socket refuses, is counted and dropped; stderr has every line.

use std::{
    fmt, io,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender, SyncSender},
    },
    thread,
    time::Duration,
};

use jiff::Timestamp;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry,
};

use crate::metrics::Metrics;

/// Many times what the start of a full node logs; a full queue holds 1 to 2 MB.
const QUEUE: usize = 1024;
/// How long the last lines may take when the agent ends. journald needs well under a millisecond for each.
const FLUSH: Duration = Duration::from_millis(200);
/// What `journalctl -t` looks for.
const IDENTIFIER: &str = "jasm";

/// Hands log lines to the thread that sends them: events alone, without their spans, as the JSON lines on stderr are.
#[derive(Debug, Clone)]
pub struct Journal {
    node: Arc<str>,
    queue: SyncSender<Entry>,
    metrics: Arc<Metrics>,
}

/// A log line: where it stands in the code, and what it says.
struct Line {
    metadata: &'static Metadata<'static>,
    fields: Vec<(&'static str, String)>,
}

enum Entry {
    Line(Line),
    /// Dropped when all before it is sent.
    Mark(Sender<()>),
}

impl Journal {
    /// The journal of `node`, and the thread that sends to it; whether journald is there shows with the first line.
    ///
    /// # Errors
    /// The system starts no thread.
    pub fn start(node: &str, metrics: &Arc<Metrics>) -> io::Result<Self> {
        let (journal, queue) = Self::with_queue(QUEUE, node, metrics);
        let metrics = Arc::clone(metrics);
        thread::Builder::new().name("journald".to_owned()).spawn(move || deliver(queue, send, &metrics))?;
        Ok(journal)
    }

    fn with_queue(length: usize, node: &str, metrics: &Arc<Metrics>) -> (Self, Receiver<Entry>) {
        let (sender, queue) = mpsc::sync_channel(length);
        (Self { node: node.into(), queue: sender, metrics: Arc::clone(metrics) }, queue)
    }

    /// Waits until what was logged is sent, for 200 ms at most: a journald that hangs holds nobody up.
    pub(crate) fn flush(&self) {
        self.flush_within(FLUSH);
    }

    fn flush_within(&self, patience: Duration) {
        let (mark, sent) = mpsc::channel();
        let queued = self.queue.try_send(Entry::Mark(mark));
        if queued.is_err() || sent.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("ending with log lines that the journal of the node did not take");
        }
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // The journal's own time is that of the arrival, which a journald that hung can be late with.
        let fields = vec![("timestamp", Timestamp::now().to_string()), ("node", self.node.to_string())];
        let mut line = Line { metadata: event.metadata(), fields };
        event.record(&mut line);
        if self.queue.try_send(Entry::Line(line)).is_err() {
            self.metrics.journald_dropped();
        }
    }
}

impl Line {
    fn put(&mut self, name: &'static str, value: String) {
        let field = (name, value);
        // The agent's first line names its node by itself, which would make a list of NODE.
        if !self.fields.contains(&field) {
            self.fields.push(field);
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }
}

/// Sends until no [`Journal`] is left. Says once that lines do not arrive; the metric says how many.
fn deliver(queue: Receiver<Entry>, mut send: impl FnMut(&Line) -> io::Result<()>, metrics: &Metrics) {
    let mut told = false;
    for entry in queue {
        let line = match entry {
            Entry::Line(line) => line,
            Entry::Mark(reached) => {
                drop(reached);
                continue;
            }
        };
        let Err(error) = send(&line) else { continue };
        metrics.journald_dropped();
        if !std::mem::replace(&mut told, true) {
            // At the level that no setting hides. It comes back through the queue, and finds that all is told.
            tracing::error!(
                %error,
                "log lines do not reach the journal of the node: mount the node's /run/systemd/journal in the same \
                 place, as daemonset/components/journald does, or take JASM_JOURNALD away; stderr has every line"
            );
        }
    }
}

/// Waits while journald does not read.
fn send(line: &Line) -> io::Result<()> {
    // Made anew for each line, since only here it asks the socket, and what fails later it keeps to itself. So a
    // journald that comes late, or again, gets the lines from then on.
    let layer = tracing_journald::layer()?
        .with_syslog_identifier(IDENTIFIER.to_owned())
        .with_custom_fields(line.fields.iter().map(|(name, value)| (name, value)));
    // The event brings level and place; what it said stands in the fields. `value_set` is what the macros are made of.
    let nothing = line.metadata.fields().value_set(&[]);
    registry().with(layer).event(&Event::new(line.metadata, &nothing));
    Ok(())
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;

    use super::*;

    /// What a line says, but for its time.
    fn said(line: &Line) -> String {
        let fields = line.fields.iter().filter(|(name, _)| *name != "timestamp");
        let fields: Vec<String> = fields.map(|(name, value)| format!("{name}={value}")).collect();
        format!("{} {}", line.metadata.level(), fields.join(" "))
    }

    fn assert_dropped(metrics: &Metrics, count: u64, why: &str) {
        let (text, want) = (metrics.render(), format!("jasm_journald_dropped_total {count}\n"));
        assert!(text.contains(&want), "{why}: {want} is not in {text}");
    }

    #[test]
    fn every_field_is_sent_with_its_level_and_the_node_once_and_a_flush_waits_for_it() {
        let (journal, queue) = Journal::with_queue(8, "n", &Arc::default());
        let (sent, arrived) = mpsc::channel();
        let send = move |line: &Line| sent.send(said(line)).map_err(io::Error::other);
        thread::spawn(move || deliver(queue, send, &Metrics::default()));
        with_default(registry().with(journal.clone()), || {
            let (pod, retry) = ("web", 7_u64);
            tracing::info!(outcome = "created", duration_ms = 12_u64, namespace = %"a", pod, secret = "app", "sync");
            tracing::warn!(outcome = "failed", reason = "PolicyDenied", error = %"no rule:\na", retry, "sync {pod}");
            tracing::error!(node = "n", state = ?Some("x"), ok = false, share = 0.5, "the agent starts");
            journal.flush_within(Duration::from_secs(60));
        });
        let want = [
            "INFO node=n message=sync outcome=created duration_ms=12 namespace=a pod=web secret=app",
            "WARN node=n message=sync web outcome=failed reason=PolicyDenied error=no rule:\na retry=7",
            "ERROR node=n message=the agent starts state=Some(\"x\") ok=false share=0.5",
        ];
        assert_eq!(arrived.try_iter().collect::<Vec<_>>(), want);
    }

    #[test]
    fn a_journald_that_hangs_holds_nobody_up_and_what_is_dropped_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let (journal, queue) = Journal::with_queue(5, "n", &metrics);
        let ((sent, arrived), (wake, woken)) = (mpsc::channel(), mpsc::channel::<()>());
        let hang = move |line: &Line| {
            let _ = sent.send(line.fields.last().map(|(_, value)| value.clone()).unwrap_or_default());
            // Until the test drops its end.
            let _ = woken.recv();
            Ok(())
        };
        let sending = thread::spawn(move || deliver(queue, hang, &Metrics::default()));
        // Were one of these to wait for the journal, the test would not end.
        let first = with_default(registry().with(journal.clone()), || {
            tracing::info!("first");
            let first = arrived.recv();
            (1..=3).for_each(|fits| tracing::info!(fits));
            // Waits in vain; its mark and its warning take the last two places.
            journal.flush_within(Duration::ZERO);
            (0..7).for_each(|fits_not| tracing::info!(fits_not));
            journal.flush_within(Duration::ZERO);
            first
        });
        assert_dropped(&metrics, 8, "seven lines, and the warning of the second flush");
        drop((journal, wake));
        sending.join().expect("it ends with the last journal");
        let warning = "ending with log lines that the journal of the node did not take";
        assert_eq!(first.iter().cloned().chain(arrived).collect::<Vec<_>>(), ["first", "1", "2", "3", warning]);
    }

    #[test]
    fn a_socket_that_is_missing_is_told_once_and_used_once_it_is_there() {
        let metrics = Arc::new(Metrics::default());
        let (journal, queue) = Journal::with_queue(8, "n", &metrics);
        with_default(registry().with(journal), || (1..=5).for_each(|number| tracing::info!(number)));
        let (mut sent, mut missing) = (Vec::new(), 3);
        let send = |line: &Line| {
            if missing > 0 {
                missing -= 1;
                return Err(io::ErrorKind::NotFound.into());
            }
            sent.push(said(line));
            Ok(())
        };
        let (told, telling) = Journal::with_queue(8, "n", &Arc::default());
        with_default(registry().with(told), || deliver(queue, send, &metrics));
        assert_eq!(sent, ["INFO node=n number=4", "INFO node=n number=5"]);
        assert_dropped(&metrics, 3, "while it was missing");
        let mut lines = Vec::new();
        let keep = |line: &Line| {
            lines.push(said(line));
            Ok(())
        };
        deliver(telling, keep, &Metrics::default());
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("ERROR ") && lines[0].contains("daemonset/components/journald"), "{lines:?}");
    }
}
