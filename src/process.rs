//! What the process keeps to itself from its first moment on: its memory, and the messages of panics.

use std::{
    io::{self, Write, stderr},
    panic,
};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// A protection that the system refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Unprotected {
    what: &'static str,
    source: io::Error,
}

/// Begins to protect the process; to be called before anything secret is read.
///
/// A crash writes no core file, and who is not root neither reads the memory nor attaches a debugger, also with the same
/// user id. A panic is told by its place alone, since a payload can stand in its message. No child is ever started that
/// could inherit anything else.
///
/// Returns what could not be done. That is no reason to end: a system that forbids these calls has its own protection, and
/// pods wait for their Secrets.
pub fn protect() -> Vec<Unprotected> {
    panic::set_hook(Box::new(|panicked| tell(&panicked.location().map(ToString::to_string).unwrap_or_default())));
    // A hard limit: nobody can raise it again.
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let not_dumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let outcomes = [
        ("a crash of the agent may write its memory into a core file", no_core),
        ("processes of the agent's user may read its memory", not_dumpable),
    ];
    let refused = |(what, outcome): (_, Result<(), rustix::io::Errno>)| {
        outcome.err().map(|error| Unprotected { what, source: error.into() })
    };
    outcomes.into_iter().filter_map(refused).collect()
}

/// Into the log, or to stderr where there is none yet.
fn tell(place: &str) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!(place, "a bug: the program panicked");
    } else {
        let _ = writeln!(stderr(), "jasm-agent: a bug: the program panicked at {place}");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        panic::catch_unwind,
        process::{Command, Output},
        thread,
    };

    use futures::FutureExt;
    use jiff::Timestamp;
    use tracing::Level;

    use super::*;
    use crate::{
        provider::{FetchError, FetchKey, Identity, InFlight, ProviderName},
        request::RemoteRef,
        secret_value::SecretPayload,
        telemetry::{self, LogFormat},
    };

    /// What this test's own program does when it is started once more: nothing but panic, in that state.
    const STATE: &str = "JASM_TEST_PANICS";
    const VALUE: &str = "JASM_TEST_VALUE";

    #[test]
    fn a_panic_tells_its_place_and_never_its_message() {
        if let (Ok(state), Ok(value)) = (env::var(STATE), env::var(VALUE)) {
            return panic_everywhere(&state, &value);
        }
        let value: String = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();
        let said = |state: &str| {
            let Output { status, stdout, stderr } = again(state, &value);
            assert!(status.success(), "{state}: every panic was caught");
            [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
        };
        assert!(said("unprotected").contains(&value), "the search would find it");
        for (state, want) in [
            ("protected", "jasm-agent: a bug: the program panicked at src/process.rs:"),
            ("logging", "\"place\":\"src/process.rs:"),
        ] {
            let said = said(state);
            assert_eq!(said.matches(want).count(), 4, "{state}: one line for each panic");
            assert!(!said.contains(&value), "{state}: the value of a panic's message was printed");
        }
    }

    fn again(state: &str, value: &str) -> Output {
        let own = env::current_exe().expect("this program has a file");
        let test = "process::tests::a_panic_tells_its_place_and_never_its_message";
        let mut command = Command::new(own);
        command
            .args(["--exact", test, "--nocapture"])
            .env(STATE, state)
            .env(VALUE, value)
            .env("RUST_BACKTRACE", "full");
        command.output().expect("this program can be started")
    }

    /// With a value in the message: where a fetch is caught, on a task, on a thread, and anywhere else.
    fn panic_everywhere(state: &str, value: &str) {
        let _logs = match state {
            "unprotected" => None,
            _ => {
                protect();
                (state == "logging").then(|| telemetry::start(LogFormat::Json, Level::TRACE, None))
            }
        };
        let payload = SecretPayload::new(value.as_bytes().to_vec(), "v");
        let text = || String::from_utf8_lossy(payload.expose()).into_owned();
        let (fetched, tasks, threads) = (text(), text(), text());
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let remote = RemoteRef { provider: ProviderName::for_test("aws"), path: "a".to_owned(), version: None };
            let key = FetchKey { identity: Identity::Agent, remote };
            let start = || {
                (Timestamp::UNIX_EPOCH, {
                    let fetched = fetched.clone();
                    async move { panic!("{fetched}") }.boxed()
                })
            };
            assert!(InFlight::<FetchError>::default().fetch(&key, Timestamp::UNIX_EPOCH, start).await.is_err());
            assert!(tokio::spawn(async move { panic!("{tasks}") }).await.is_err());
        });
        assert!(thread::spawn(move || panic!("{threads}")).join().is_err());
        assert!(catch_unwind(|| panic!("{}", text())).is_err());
    }
}
