//! Waiting for a condition with a deadline. Nothing in the tests sleeps for luck.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// How long a test waits for anything before it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(20);

/// Tries until `attempt` gives a value and returns that. An attempt that failed says what it found instead.
///
/// # Panics
/// After [`DEADLINE`], with what was awaited and what the last attempt found.
pub(crate) async fn eventually<T>(awaited: &str, attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    try_within(DEADLINE, awaited, attempt).await.unwrap_or_else(|message| panic!("{message}"))
}

/// As [`eventually`], with a limit of its own and an error in place of a panic.
pub(crate) async fn try_within<T>(
    limit: Duration,
    awaited: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + limit;
    let mut found = "nothing yet".to_owned();
    loop {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(instead)) => found = instead,
            Err(_) => found.push_str(" (and the last attempt got no answer)"),
        }
        if Instant::now() >= deadline {
            return Err(format!("waited {limit:?} for {awaited}; found {found}"));
        }
        sleep(PAUSE).await;
    }
}
