//! When the issuer's keys are fetched.
//!
//! At start, then at every interval; sooner when a token names a key that is not known,
//! because the issuer may have begun to sign with a new one. Such asks are a stranger's to
//! make, so they share a budget: a burst, then one fetch per period. An ask over the
//! budget waits for it, and any number of asks that wait are one. After a failure the
//! next fetch waits for a pause that doubles up to a limit, whoever asks.
//!
//! Time and chance are arguments.

use crate::clock::SteadyMs;

/// How many fetches in a row may be asked for.
const ASKED_BURST: u64 = 3;
/// How long until one more may be.
const ASKED_PERIOD_MS: u64 = 10_000;
/// The pause after the first failure.
const PAUSE_MIN_MS: u64 = 1_000;
/// The longest pause between attempts.
const PAUSE_MAX_MS: u64 = 30_000;

/// The schedule of one issuer's keys.
#[derive(Clone, Debug)]
pub struct Refresh {
    interval_ms: u64,
    /// When the next fetch is due that nobody asks for.
    next: SteadyMs,
    /// How many fetches have failed since one succeeded.
    failures: u32,
    /// Whether someone has asked since the last fetch began.
    asked: bool,
    /// When the budget of asks is whole again.
    whole: SteadyMs,
}

impl Refresh {
    /// A schedule whose first fetch is due at `now`.
    pub fn new(interval_ms: u64, now: SteadyMs) -> Self {
        Self {
            interval_ms,
            next: now,
            failures: 0,
            asked: false,
            whole: now,
        }
    }

    /// Asks for a fetch before its time.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// When the next fetch is due; at once when that is past.
    pub fn due(&self) -> SteadyMs {
        if self.asked && self.failures == 0 {
            self.next.min(self.budget_from())
        } else {
            self.next
        }
    }

    /// A fetch begins. It answers everyone who has asked.
    pub fn begin(&mut self, now: SteadyMs) {
        if now < self.next {
            self.whole = self.whole.max(now).later(ASKED_PERIOD_MS);
        }
        self.asked = false;
    }

    /// It has brought the keys.
    pub fn succeed(&mut self, now: SteadyMs) {
        self.failures = 0;
        self.next = now.later(self.interval_ms);
    }

    /// It has failed. `random` spreads the next attempts of nodes that failed together.
    pub fn fail(&mut self, now: SteadyMs, random: u64) {
        let pause = (PAUSE_MIN_MS << self.failures).min(PAUSE_MAX_MS);
        self.failures = (self.failures + 1).min(PAUSE_MAX_MS.ilog2());
        self.next = now.later(pause - random % (pause / 2));
    }

    /// From when the budget has room for one more.
    fn budget_from(&self) -> SteadyMs {
        let burst = (ASKED_BURST - 1) * ASKED_PERIOD_MS;
        SteadyMs(self.whole.0.saturating_sub(burst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL_MS: u64 = 300_000;
    const START: SteadyMs = SteadyMs(1_000_000);

    fn fetched_at_start() -> Refresh {
        let mut refresh = Refresh::new(INTERVAL_MS, START);
        refresh.begin(START);
        refresh.succeed(START);
        refresh
    }

    fn at(ms: u64) -> SteadyMs {
        START.later(ms)
    }

    #[test]
    fn keys_are_fetched_at_start_and_then_every_interval() {
        let mut refresh = Refresh::new(INTERVAL_MS, START);
        assert_eq!(refresh.due(), START);
        refresh.begin(START);
        refresh.succeed(at(50));
        assert_eq!(refresh.due(), at(INTERVAL_MS + 50));
    }

    #[test]
    fn a_fetch_that_is_asked_for_is_due_at_once_three_times_and_then_every_ten_seconds() {
        let mut refresh = fetched_at_start();
        let mut begun = Vec::new();
        for ms in 0..35_000 {
            refresh.ask();
            if refresh.due() <= at(ms) {
                refresh.begin(at(ms));
                refresh.succeed(at(ms));
                begun.push(ms);
            }
        }
        assert_eq!(begun, [0, 1, 2, 10_000, 20_000, 30_000]);
    }

    #[test]
    fn the_budget_of_asks_fills_up_again_and_no_further() {
        let mut refresh = fetched_at_start();
        for begun in [100_000, 100_001, 100_002] {
            refresh.ask();
            assert!(refresh.due() <= at(begun));
            refresh.begin(at(begun));
            refresh.succeed(at(begun));
        }
        refresh.ask();
        assert_eq!(refresh.due(), at(110_000));
    }

    #[test]
    fn an_ask_over_the_budget_is_kept_until_there_is_room() {
        let mut refresh = fetched_at_start();
        for _ in 0..3 {
            refresh.ask();
            refresh.begin(START);
            refresh.succeed(START);
        }
        refresh.ask();
        assert_eq!(refresh.due(), at(10_000));
    }

    #[test]
    fn a_fetch_whose_time_has_come_answers_who_asked_and_costs_none_of_the_budget() {
        let mut refresh = fetched_at_start();
        refresh.ask();
        refresh.begin(at(INTERVAL_MS));
        refresh.succeed(at(INTERVAL_MS));
        assert_eq!(refresh.due(), at(2 * INTERVAL_MS));
        assert_eq!(refresh.whole, START);
    }

    #[test]
    fn pauses_after_failures_double_up_to_a_limit_and_end_with_a_success() {
        let mut refresh = Refresh::new(INTERVAL_MS, START);
        let mut now = START;
        let mut pauses = Vec::new();
        for _ in 0..100 {
            refresh.begin(now);
            refresh.fail(now, 0);
            pauses.push(refresh.due().since(now));
            now = refresh.due();
        }
        assert_eq!(pauses[..6], [1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
        assert!(pauses[6..].iter().all(|&pause| pause == PAUSE_MAX_MS));
        refresh.begin(now);
        refresh.succeed(now);
        assert_eq!(refresh.due(), now.later(INTERVAL_MS));
        refresh.fail(now, 0);
        assert_eq!(refresh.due(), now.later(PAUSE_MIN_MS));
    }

    #[test]
    fn chance_shortens_a_pause_by_less_than_half() {
        for random in [0, 1, 499, 500, 12_345, u64::MAX] {
            let mut refresh = fetched_at_start();
            refresh.fail(START, random);
            let pause = refresh.due().since(START);
            assert!((501..=1_000).contains(&pause), "{pause}");
        }
    }

    #[test]
    fn nobody_hurries_an_issuer_that_does_not_answer() {
        let mut refresh = fetched_at_start();
        refresh.ask();
        refresh.begin(at(0));
        refresh.fail(at(0), 0);
        refresh.ask();
        assert_eq!(refresh.due(), at(PAUSE_MIN_MS));
    }

    #[test]
    fn an_ask_while_a_fetch_is_under_way_leads_to_another() {
        let mut refresh = fetched_at_start();
        refresh.ask();
        refresh.begin(at(5));
        refresh.ask();
        refresh.succeed(at(9));
        assert!(refresh.due() <= at(9));
    }
}
