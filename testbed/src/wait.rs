//! Waiting for a condition, instead of for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Returns once the condition holds. After the timeout the error says what was
/// awaited and how things stood at the last look; until then an error counts
/// as "not yet".
pub async fn eventually(
    timeout: Duration,
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let started = Instant::now();
    let mut last = String::from("it was never looked at");
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        match tokio::time::timeout(left.max(POLL), holds()).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => last = String::from("it does not hold"),
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => last = format!("no answer; before that: {last}"),
        }
        if started.elapsed() >= timeout {
            bail!("waited {timeout:?} until {what}: {last}");
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_error_says_what_was_awaited() {
        let error =
            eventually(Duration::from_millis(60), "the moon is full", async || bail!("it is a crescent"))
                .await
                .unwrap_err()
                .to_string();
        assert!(error.contains("the moon is full"), "{error}");
        assert!(error.contains("crescent"), "{error}");
    }

    #[tokio::test]
    async fn it_returns_as_soon_as_it_holds() {
        let mut looks = 0;
        eventually(Duration::from_secs(5), "the third look", async || {
            looks += 1;
            Ok(looks == 3)
        })
        .await
        .unwrap();
        assert_eq!(looks, 3);
    }
}
