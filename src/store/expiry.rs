//! When items expire: a hierarchical timing wheel.
//!
//! Varghese and Lauck, "Hashed and hierarchical timing wheels" (SOSP 1987), scheme 7.
//! Time is cut into ticks of 256 ms. Level 0 has a slot for each of the next 64 ticks,
//! level 1 for each of the next 64 blocks of 64 ticks, and so on. Ten levels cover all of
//! `u64`, so there is no "too far" case. Slots are lists threaded through the items, so
//! adding and removing one is O(1) and allocates nothing.
//!
//! The wheel promises: an item is handed out only after it has expired, at most one
//! tick (plus whatever steps are outstanding) late. Each [`Wheel::step`] moves or hands
//! out one item; empty slots are skipped by bit masks, so a jump of the clock by years
//! costs no more than the items it made due. A clock that steps back delays reaping,
//! which readers do not notice: they compare times themselves.
//!
//! Invariant: with `current` the tick reached, an item of tick `t` stands at the level
//! of the highest 6-bit digit in which `t` and `current` differ, in the slot of `t`'s
//! digit. Hence at level 0 no slot below `current`'s digit is in use; above level 0 no
//! slot at or below it, except one: the slot being emptied to lower levels.

use super::item::ItemId;
use super::slab::Slab;
use crate::clock::UnixMs;

const TICK_BITS: u32 = 8;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 56 bits of ticks, 6 bits a level.
const LEVELS: usize = (u64::BITS - TICK_BITS).div_ceil(SLOT_BITS) as usize;

/// In the previous link of a slot's first item: this bit, and the slot.
const FIRST_IN_SLOT: u32 = ItemId::LIMIT;

/// What one step of the wheel did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This item has expired and is no longer in the wheel.
    Due(ItemId),
    /// An item was moved to a lower level.
    Moved,
    /// Nothing is left to do at this time.
    Idle,
}

/// Expiring items, ordered roughly by time.
pub(super) struct Wheel {
    /// Every tick before this one has been handed out.
    current: u64,
    /// One bit per slot of a level, set when the slot has items.
    occupied: [u64; LEVELS],
    first: [[ItemId; SLOTS]; LEVELS],
    len: usize,
}

/// A slot and the first tick it stands for.
struct Slot {
    level: usize,
    slot: usize,
    start: u64,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self {
            current: 0,
            occupied: [0; LEVELS],
            first: [[ItemId::NONE; SLOTS]; LEVELS],
            len: 0,
        }
    }

    /// Adds an item that is not in the wheel; nothing if it never expires.
    pub(super) fn insert(&mut self, slab: &mut Slab, id: ItemId, now: UnixMs) {
        let Some(at) = slab[id].expires_at() else {
            return;
        };
        if self.len == 0 {
            // An empty wheel may stand anywhere: start at the present.
            self.current = now.0 >> TICK_BITS;
        }
        self.len += 1;
        self.link(slab, id, at);
    }

    /// Takes out an item that is in the wheel; nothing if it never expires.
    pub(super) fn remove(&mut self, slab: &mut Slab, id: ItemId) {
        if slab[id].expires_at().is_some() {
            self.len -= 1;
            self.unlink(slab, id);
        }
    }

    /// Does one bounded piece of work, if there is any at `now`.
    pub(super) fn step(&mut self, slab: &mut Slab, now: UnixMs) -> Step {
        let Some(next) = self.next(now) else {
            return Step::Idle;
        };
        self.current = next.start;
        let id = self.first[next.level][next.slot];
        self.unlink(slab, id);
        match slab[id].expires_at() {
            Some(at) if next.level > 0 => {
                self.link(slab, id, at);
                Step::Moved
            }
            _ => {
                self.len -= 1;
                Step::Due(id)
            }
        }
    }

    /// Whether a step at `now` would do something.
    pub(super) fn has_work(&self, now: UnixMs) -> bool {
        self.next(now).is_some()
    }

    /// The slot to work on at `now`: one being emptied, else the earliest.
    fn next(&self, now: UnixMs) -> Option<Slot> {
        let now_tick = now.0 >> TICK_BITS;
        for level in (1..LEVELS).rev() {
            let slot = digit(self.current, level);
            if self.occupied[level] >> slot & 1 == 1 {
                return Some(Slot {
                    level,
                    slot,
                    start: self.current,
                });
            }
        }
        // A higher level's slots all start after those of the lower: the first hit is
        // the earliest. It is due once its first tick has passed.
        for level in 0..LEVELS {
            let ahead = self.occupied[level] & (u64::MAX << digit(self.current, level));
            if ahead == 0 {
                continue;
            }
            let slot = ahead.trailing_zeros() as usize;
            let above = SLOT_BITS * (level as u32 + 1);
            let start = self.current >> above << above | (slot as u64) << (above - SLOT_BITS);
            return (start < now_tick).then_some(Slot { level, slot, start });
        }
        None
    }

    fn link(&mut self, slab: &mut Slab, id: ItemId, at: UnixMs) {
        // What is past already goes to the tick at hand.
        let tick = (at.0 >> TICK_BITS).max(self.current);
        let differing = tick ^ self.current;
        let level = if differing == 0 {
            0
        } else {
            (differing.ilog2() / SLOT_BITS) as usize
        };
        let slot = digit(tick, level);
        let next = self.first[level][slot];
        if let Some(next) = next.some() {
            slab[next].set_wheel_prev(id);
        }
        let item = &mut slab[id];
        item.set_wheel_prev(ItemId(FIRST_IN_SLOT | (level * SLOTS + slot) as u32));
        item.set_wheel_next(next);
        self.first[level][slot] = id;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, slab: &mut Slab, id: ItemId) {
        let (prev, next) = slab[id].wheel_links();
        if let Some(next) = next.some() {
            slab[next].set_wheel_prev(prev);
        }
        if prev.0 & FIRST_IN_SLOT == 0 {
            slab[prev].set_wheel_next(next);
            return;
        }
        let place = (prev.0 & !FIRST_IN_SLOT) as usize;
        let (level, slot) = (place / SLOTS, place % SLOTS);
        self.first[level][slot] = next;
        if next == ItemId::NONE {
            self.occupied[level] &= !(1 << slot);
        }
    }
}

#[inline]
fn digit(tick: u64, level: usize) -> usize {
    (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::super::slab::tests::add;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const TICK_MS: u64 = 1 << TICK_BITS;
    const NOW: u64 = 1_800_000_000_000;

    struct Timed {
        wheel: Wheel,
        slab: Slab,
    }

    impl Timed {
        fn new() -> Self {
            Self {
                wheel: Wheel::new(),
                slab: Slab::default(),
            }
        }

        fn add(&mut self, expires_at: u64, now: u64) -> ItemId {
            let id = add(&mut self.slab, expires_at, Some(UnixMs(expires_at)));
            self.wheel.insert(&mut self.slab, id, UnixMs(now));
            id
        }

        fn take_out(&mut self, id: ItemId) {
            self.wheel.remove(&mut self.slab, id);
            self.slab.remove(id);
        }

        /// The expiries handed out at `now`, and how many steps that took.
        fn reap(&mut self, now: u64) -> (Vec<u64>, usize) {
            let mut due = Vec::new();
            for steps in 0.. {
                match self.wheel.step(&mut self.slab, UnixMs(now)) {
                    Step::Due(id) => {
                        due.push(self.slab.remove(id).expires_at().unwrap().0);
                    }
                    Step::Moved => {}
                    Step::Idle => return (due, steps),
                }
            }
            unreachable!()
        }
    }

    #[test]
    fn nothing_is_handed_out_early_and_everything_within_a_tick() {
        for delay in [
            0,
            1,
            255,
            256,
            16_383,
            16_384,
            1 << 20,
            1 << 32,
            1 << 45,
            u64::MAX - NOW,
        ] {
            let mut timed = Timed::new();
            timed.add(NOW + delay, NOW);
            let early = timed.reap((NOW + delay).saturating_sub(1)).0;
            assert!(early.is_empty(), "after {delay} ms");
            let late = (NOW + delay).saturating_add(TICK_MS);
            if late < u64::MAX {
                assert_eq!(timed.reap(late).0, [NOW + delay], "after {delay} ms");
            }
        }
    }

    #[test]
    fn what_is_past_on_arrival_is_due_with_the_present_tick() {
        let mut timed = Timed::new();
        timed.add(NOW + 10 * TICK_MS, NOW);
        timed.add(0, NOW);
        assert_eq!(timed.reap(NOW + TICK_MS).0, [0]);
    }

    #[test]
    fn a_jump_of_centuries_costs_steps_by_items_not_by_ticks() {
        let mut timed = Timed::new();
        for n in 0..1000 {
            timed.add(NOW + n * 86_400_000, NOW);
        }
        let (due, steps) = timed.reap(NOW + (1 << 43));
        assert_eq!(due.len(), 1000);
        assert!(steps <= 1000 * LEVELS, "{steps} steps");
    }

    #[test]
    fn a_clock_that_steps_back_hands_out_nothing_early() {
        let mut timed = Timed::new();
        timed.add(NOW + 1000, NOW);
        timed.reap(NOW + 500);
        timed.add(NOW - 50_000, NOW - 60_000);
        assert!(timed.reap(NOW - 55_000).0.is_empty());
        assert_eq!(timed.reap(NOW + 1000 + TICK_MS).0.len(), 2);
    }

    #[test]
    fn an_item_taken_out_is_not_handed_out() {
        let mut timed = Timed::new();
        let ids: Vec<_> = (0..10).map(|_| timed.add(NOW + 1000, NOW)).collect();
        for id in [ids[0], ids[9], ids[5]] {
            timed.take_out(id);
        }
        assert_eq!(timed.reap(NOW + 2000).0.len(), 7);
        assert_eq!(timed.wheel.len, 0);
        assert_eq!(timed.wheel.occupied, [0; LEVELS]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Add { delay: i64 },
        TakeOut { nth: usize },
        Steps { count: usize },
        Pass { ms: u64 },
    }

    fn op() -> impl Strategy<Value = Op> {
        let exponent = 0_u32..46;
        prop_oneof![
            4 => (exponent.clone(), any::<u64>())
                .prop_map(|(bits, any)| Op::Add { delay: (any % (1 << bits)) as i64 }),
            1 => (0_i64..100_000).prop_map(|past| Op::Add { delay: -past }),
            2 => any::<usize>().prop_map(|nth| Op::TakeOut { nth }),
            3 => (0_usize..6).prop_map(|count| Op::Steps { count }),
            3 => (0_u32..44, any::<u64>()).prop_map(|(bits, any)| Op::Pass { ms: any % (1 << bits) }),
        ]
    }

    proptest! {
        #[test]
        fn the_wheel_agrees_with_a_sorted_map(ops in vec(op(), 1..200)) {
            let mut timed = Timed::new();
            let mut model: BTreeMap<(u64, u32), ItemId> = BTreeMap::new();
            let mut now = NOW;
            for op in ops {
                match op {
                    Op::Add { delay } => {
                        let at = now.saturating_add_signed(delay);
                        let id = timed.add(at, now);
                        model.insert((at, id.0), id);
                    }
                    Op::TakeOut { nth } if !model.is_empty() => {
                        let key = *model.keys().nth(nth % model.len()).unwrap();
                        timed.take_out(model.remove(&key).unwrap());
                    }
                    Op::TakeOut { .. } => {}
                    Op::Steps { count } => for _ in 0..count {
                        if let Step::Due(id) = timed.wheel.step(&mut timed.slab, UnixMs(now)) {
                            let at = timed.slab.remove(id).expires_at().unwrap().0;
                            prop_assert!(at <= now, "{at} handed out at {now}");
                            prop_assert!(model.remove(&(at, id.0)).is_some());
                        }
                    },
                    Op::Pass { ms } => now = now.saturating_add(ms),
                }
                prop_assert_eq!(timed.wheel.len, model.len());
            }
            // What was past when it came waits for the tick it came in to pass.
            now = now.saturating_add(TICK_MS);
            let (due, _) = timed.reap(now);
            prop_assert!(due.iter().all(|&at| at <= now));
            let left = model.len() - due.len();
            let not_yet = model.keys().filter(|(at, _)| *at >> TICK_BITS >= now >> TICK_BITS).count();
            prop_assert_eq!(left, not_yet, "all of the passed ticks, and only those");
        }
    }
}
