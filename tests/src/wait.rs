//! Waiting for other processes: the one place that sleeps. A condition is
//! polled until it holds or a deadline passes; the deadline is only there so
//! that a broken system fails a test instead of hanging it.

use std::future::Future;
use std::time::{Duration, Instant};

/// Deadline for anything a healthy system does within a second or two.
pub const PATIENCE: Duration = Duration::from_secs(45);
/// Deadline for bulk work on a loaded machine.
pub const LONG_PATIENCE: Duration = Duration::from_secs(180);

/// Polls `condition` every 20 ms until it gives a value.
///
/// # Panics
/// After `within`, naming `what` was waited for.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut condition: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Awaits `work`, at most `within`.
///
/// # Panics
/// After `within`, naming `what` did not finish.
pub async fn bounded<T>(what: &str, within: Duration, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(within, work).await {
        Ok(value) => value,
        Err(_) => panic!("not finished within {within:?}: {what}"),
    }
}
