//! Waiting for what must happen.
use std::time::Duration;

/// Long enough for a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Looks again and again until there is an answer.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        let late = tokio::time::Instant::now() >= deadline;
        assert!(!late, "not within {} s: {what}", LIMIT.as_secs());
        tokio::time::sleep(POLL).await;
    }
}
