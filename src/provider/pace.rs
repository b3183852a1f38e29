//! How fast one instance asks: a token bucket, which is emptied when the store asks for patience.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// The first pause after a refusal, doubled by each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A token bucket that holds what the rate gives in one second.
#[derive(Debug)]
pub(super) struct Pace {
    per_second: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    /// When the tokens were counted; later than now during a pause.
    counted: Instant,
    pause: Duration,
    refused: Option<Instant>,
}

/// A request that was made at a time; tells a refusal that is news from one that was under way at the last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn(Instant);

impl Pace {
    /// A full bucket; at least one request a second.
    pub(super) fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second.max(1));
        let state = State { tokens: per_second, counted: Instant::now(), pause: FIRST_PAUSE, refused: None };
        Self { per_second, state: Mutex::new(state) }
    }

    /// Waits until a request may be made.
    pub(super) async fn turn(&self) -> Turn {
        loop {
            let wait = {
                let mut state = self.state();
                let now = Instant::now();
                let gained = now.saturating_duration_since(state.counted).as_secs_f64() * self.per_second;
                state.tokens = (state.tokens + gained).min(self.per_second);
                state.counted = state.counted.max(now);
                if state.tokens >= 1.0 && state.counted <= now {
                    state.tokens -= 1.0;
                    return Turn(now);
                }
                let missing = (1.0 - state.tokens).max(0.0) / self.per_second;
                state.counted + Duration::from_secs_f64(missing)
            };
            sleep_until(wait).await;
        }
    }

    /// The store refused a request for its number: nobody asks for a while, and then from an empty bucket.
    pub(super) fn refused(&self, turn: Turn) {
        let mut state = self.state();
        let now = Instant::now();
        // Those that were under way with it are the same news.
        if state.refused.is_some_and(|last| turn.0 <= last) {
            return;
        }
        let pause = state.pause.mul_f64(0.5 + 0.5 * fastrand::f64());
        let next = (state.pause * 2).min(LONGEST_PAUSE);
        *state = State { tokens: 0.0, counted: now + pause, pause: next, refused: Some(now) };
    }

    /// The store answered.
    pub(super) fn answered(&self) {
        self.state().pause = FIRST_PAUSE;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn holds_its_rate_and_a_refusal_stops_it_for_a_while() {
        let pace = Pace::new(10);
        let start = Instant::now();
        for _ in 0..10 {
            pace.turn().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO, "a full bucket");
        for _ in 0..10 {
            pace.turn().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(990), "{:?}", start.elapsed());
        let (one, other) = (pace.turn().await, pace.turn().await);
        let refused = Instant::now();
        pace.refused(one);
        pace.refused(other);
        let again = pace.turn().await;
        let waited = refused.elapsed();
        assert!(waited >= FIRST_PAUSE / 2 && waited <= FIRST_PAUSE + Duration::from_millis(101), "once: {waited:?}");
        pace.refused(again);
        let refused = Instant::now();
        pace.turn().await;
        assert!(refused.elapsed() >= FIRST_PAUSE, "a second refusal doubles the pause: {:?}", refused.elapsed());
        pace.answered();
        assert_eq!(pace.state().pause, FIRST_PAUSE);
    }
}
