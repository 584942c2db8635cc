//! How long a watch waits after a message before its next one. A message costs the server the same
//! whatever it carries, so under load messages are made fuller instead of more: all watches of a
//! server together send about `limits::WATCH_MESSAGES_PER_SECOND`.
//! They send together, on ticks of the pause, so that one burst of wake-ups does for all of them.
//! Always true: a watch that was quiet for the pause sends its next event at once.
//! Absent on purpose: a clock; callers pass `now`.
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::limits;

/// How often the pause is set anew.
const WINDOW: Duration = Duration::from_millis(50);
/// Shorter pauses are none, as timers tick in milliseconds.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// How fast the pause follows the load, in either direction, per window.
const STEP_MAX: f64 = 4.0;

/// The pause of all watches of a server.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    /// The first message, from which ticks are counted.
    epoch: Option<Instant>,
    began: Option<Instant>,
    messages: u32,
    pause: Duration,
}

impl Pace {
    /// Counts a message and returns how long its watch waits before the next.
    pub(super) fn sent(&self, now: Instant) -> Duration {
        // Plain numbers: there is nothing half done that a panic could leave behind.
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let epoch = *window.epoch.get_or_insert(now);
        window.messages += 1;
        let began = *window.began.get_or_insert(now);
        let elapsed = now.saturating_duration_since(began);
        if elapsed >= WINDOW {
            let allowed = limits::WATCH_MESSAGES_PER_SECOND * elapsed.as_secs_f64();
            let load = f64::from(window.messages) / allowed;
            let pause = window.pause.max(PAUSE_MIN);
            let pause = pause.mul_f64(load.clamp(1.0 / STEP_MAX, STEP_MAX));
            window.pause = if pause < PAUSE_MIN {
                Duration::ZERO
            } else {
                pause.min(limits::WATCH_PAUSE_MAX)
            };
            (window.began, window.messages) = (Some(now), 0);
        }
        until_tick(now.saturating_duration_since(epoch), window.pause)
    }
}

/// From `time` to the next multiple of `pause`.
fn until_tick(time: Duration, pause: Duration) -> Duration {
    match time.as_nanos().checked_rem(pause.as_nanos()) {
        Some(into) => pause.saturating_sub(Duration::from_nanos(
            u64::try_from(into).unwrap_or(u64::MAX),
        )),
        None => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `watches` that always have something to send for a second; returns how much they sent
    /// in its last half, and the longest pause there.
    fn run(pace: &Pace, start: Instant, watches: usize) -> (u32, Duration) {
        let mut due = vec![start; watches];
        let (mut sent, mut pause) = (0, Duration::ZERO);
        for ms in 0..1_000 {
            let now = start + Duration::from_millis(ms);
            for due in due.iter_mut().filter(|due| **due <= now) {
                let wait = pace.sent(now);
                *due = now + wait;
                if ms >= 500 {
                    sent += 1;
                    pause = pause.max(wait);
                }
            }
        }
        (sent, pause)
    }

    #[test]
    fn many_busy_watches_share_the_budget() {
        let (sent, pause) = run(&Pace::default(), Instant::now(), 1_000);
        let budget = limits::WATCH_MESSAGES_PER_SECOND / 2.0;
        let share = f64::from(sent) / budget;
        assert!(
            (0.7..1.3).contains(&share),
            "{sent} messages in half a second"
        );
        assert!(pause > Duration::from_millis(20), "{pause:?}");
    }

    #[test]
    fn few_watches_never_wait_and_a_pause_ends_with_its_load() {
        let (pace, start) = (Pace::default(), Instant::now());
        assert_eq!(run(&pace, start, 5).1, Duration::ZERO);
        run(&pace, start + Duration::from_secs(1), 1_000);
        let (_, pause) = run(&pace, start + Duration::from_secs(2), 5);
        assert_eq!(pause, Duration::ZERO);
    }

    #[test]
    fn watches_send_on_common_ticks() {
        let ms = Duration::from_millis;
        assert_eq!(until_tick(ms(20), ms(6)), ms(4));
        assert_eq!(until_tick(ms(18), ms(6)), ms(6));
        assert_eq!(until_tick(ms(18), Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn the_pause_is_bounded() {
        let (_, pause) = run(&Pace::default(), Instant::now(), 20_000);
        assert!(pause <= limits::WATCH_PAUSE_MAX);
    }
}
