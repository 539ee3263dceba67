//! Time as the cache sees it: wall milliseconds, versions, and who stamped them.
//!
//! Nothing here reads a clock: callers in the shell read it and pass it down.
//!
//! A [`Version`] is a hybrid logical clock reading (Kulkarni et al., "Logical
//! Physical Clocks", 2014): milliseconds since 2020-01-01 UTC in the high bits, a
//! counter below, all within 53 bits because JavaScript clients parse it as a
//! number. [`HybridClock`] promises: each stamp is greater than every stamp it
//! gave and every version it observed, and the clock is never ahead of the wall
//! by more than the writes (or the accepted skew of peers) pushed it.
//!
//! [`SteadyClock`] is for what takes time (timeouts, intervals) as opposed to what
//! happens at a time: the wall may step.

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMs(pub u64);

/// 2020-01-01T00:00:00Z, where versions start counting.
const VERSION_EPOCH: UnixMs = UnixMs(1_577_836_800_000);
const COUNTER_BITS: u32 = 12;

/// When a value was written, comparable across nodes: larger is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// Older than every stamp.
    pub const ZERO: Self = Self(0);

    /// The largest version: the largest integer a JavaScript number holds exactly.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The version `raw`, or `None` when it does not fit 53 bits.
    pub fn new(raw: u64) -> Option<Self> {
        (raw <= Self::MAX.0).then_some(Self(raw))
    }

    /// The version after `ms` milliseconds more.
    pub fn later(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms << COUNTER_BITS).min(Self::MAX.0))
    }

    /// The first version of the millisecond `at`, clamped to what 53 bits hold.
    pub fn at(at: UnixMs) -> Self {
        let ms =
            at.0.saturating_sub(VERSION_EPOCH.0)
                .min(Self::MAX.0 >> COUNTER_BITS);
        Self(ms << COUNTER_BITS)
    }

    /// The integer itself.
    #[inline]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The millisecond in which the version was stamped.
    pub fn stamped_at(self) -> UnixMs {
        UnixMs(VERSION_EPOCH.0 + (self.0 >> COUNTER_BITS))
    }

    /// The one after it; the largest is followed by itself.
    pub fn next(self) -> Self {
        Self((self.0 + 1).min(Self::MAX.0))
    }
}

/// The node that stamped a version, in one of its lives; breaks ties between equal
/// versions.
///
/// 24 bits are a hash of the node's id, so that every node of a cluster orders two
/// origins alike without having to agree on a numbering first. The lowest 8 tell one
/// start of a node from the next: after a restart its clock may step back to a
/// version it stamped before, and the same (version, origin) must never name two
/// writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub u32);

const BOOT_BITS: u32 = 8;

impl Origin {
    /// The origin of the node called `node_id` in the life numbered `boot`.
    pub fn of(node_id: &str, boot: u8) -> Self {
        Self(NodeHash::of(node_id).0 << BOOT_BITS | u32::from(boot))
    }

    /// The node, in any of its lives.
    pub fn node(self) -> NodeHash {
        NodeHash(self.0 >> BOOT_BITS)
    }
}

/// The 24 bits of an [`Origin`] that stand for a node's id. Shown in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeHash(u32);

impl NodeHash {
    /// The hash of the node called `node_id`.
    pub fn of(node_id: &str) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(node_id.as_bytes()) as u32;
        Self(hash & (u32::MAX >> BOOT_BITS))
    }
}

impl std::fmt::Display for NodeHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

/// Stamps versions for one core.
///
/// The core that owns a partition stamps all its writes, so no two stamps of one
/// key on one node are ever equal, and cores need not share this clock. Nodes begin
/// to count at different places within a millisecond: two that write one key in the
/// same one seldom stamp the same version.
#[derive(Debug)]
pub struct HybridClock {
    last: Version,
    /// Where the counter begins in each millisecond.
    first: u64,
}

impl HybridClock {
    /// The clock of a node: the counter begins anywhere in the lower quarter.
    pub fn new(origin: Origin) -> Self {
        Self {
            last: Version::default(),
            first: u64::from(origin.0 >> BOOT_BITS) % (1 << (COUNTER_BITS - 2)),
        }
    }

    /// A version greater than all it gave or observed, and not before `now`.
    #[inline]
    pub fn stamp(&mut self, now: UnixMs) -> Version {
        let first = Version((Version::at(now).0 + self.first).min(Version::MAX.0));
        self.last = self.last.next().max(first);
        self.last
    }

    /// Learns of a version stamped elsewhere: later stamps will be greater.
    pub fn observe(&mut self, seen: Version) {
        self.last = self.last.max(seen);
    }
}

/// Milliseconds that have passed, by a [`SteadyClock`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SteadyMs(pub u64);

impl SteadyMs {
    /// The time after `ms` milliseconds more.
    #[must_use]
    pub fn later(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// How long ago `earlier` was.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Time that passes evenly, made of readings of the wall clock. Steps of the wall back
/// count for nothing and leaps for `step_max_ms`: neither a corrected clock nor a
/// process that was stopped makes every timeout run out at once, or none.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    told: UnixMs,
    passed: SteadyMs,
    step_max_ms: u64,
}

impl SteadyClock {
    /// A clock that reads zero at `now`.
    pub fn new(now: UnixMs, step_max_ms: u64) -> Self {
        Self {
            told: now,
            passed: SteadyMs(0),
            step_max_ms,
        }
    }

    /// Moves on to what the wall reads now.
    pub fn advance(&mut self, now: UnixMs) -> SteadyMs {
        let passed = now.0.saturating_sub(self.told.0).min(self.step_max_ms);
        self.told = now;
        self.passed = self.passed.later(passed);
        self.passed
    }

    /// What the wall read when this clock was last moved on.
    pub fn told(&self) -> UnixMs {
        self.told
    }

    /// What it read last.
    #[inline]
    pub fn now(&self) -> SteadyMs {
        self.passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin(0x0123_4567);

    #[test]
    fn steps_back_and_leaps_of_the_wall_do_not_count() {
        let mut clock = SteadyClock::new(UnixMs(1_000), 100);
        assert_eq!(clock.advance(UnixMs(1_020)), SteadyMs(20));
        assert_eq!(clock.advance(UnixMs(500)), SteadyMs(20));
        assert_eq!(clock.advance(UnixMs(510)), SteadyMs(30));
        assert_eq!(clock.advance(UnixMs(90_000)), SteadyMs(130));
    }

    #[test]
    fn nodes_count_from_different_places_and_never_leave_the_millisecond() {
        let now = UnixMs(1_800_000_000_123);
        let stamps = [1, 2, 3].map(|boot| {
            let id = format!("node-{boot}");
            HybridClock::new(Origin::of(&id, boot)).stamp(now)
        });
        assert!(stamps.iter().all(|stamp| stamp.stamped_at() == now));
        assert_ne!(stamps[0], stamps[1]);
        assert_ne!(stamps[1], stamps[2]);
    }

    #[test]
    fn stamps_grow_when_the_wall_stands_still_or_steps_back() {
        let mut clock = HybridClock::new(ORIGIN);
        let first = clock.stamp(UnixMs(1_800_000_000_000));
        let second = clock.stamp(UnixMs(1_800_000_000_000));
        let third = clock.stamp(UnixMs(1_700_000_000_000));
        assert!(first < second && second < third);
    }

    #[test]
    fn a_stamp_is_greater_than_anything_observed() {
        let mut clock = HybridClock::new(ORIGIN);
        let seen = Version::at(UnixMs(1_900_000_000_000));
        clock.observe(seen);
        assert!(clock.stamp(UnixMs(1_800_000_000_000)) > seen);
    }

    #[test]
    fn a_version_tells_its_millisecond() {
        let now = UnixMs(1_800_000_000_123);
        assert_eq!(HybridClock::new(ORIGIN).stamp(now).stamped_at(), now);
    }

    #[test]
    fn an_origin_names_its_node_in_each_of_its_lives() {
        let node = NodeHash::of("node-1");
        assert_eq!(Origin::of("node-1", 0).node(), node);
        assert_eq!(Origin::of("node-1", 255).node(), node);
        assert_ne!(Origin::of("node-2", 0).node(), node);
        assert_eq!(Origin(0x0012_AB07).node().to_string(), "0012ab");
    }

    #[test]
    fn versions_fit_a_javascript_number() {
        assert!(Version::at(UnixMs(u64::MAX)) <= Version::MAX);
        assert_eq!(Version::MAX.next(), Version::MAX);
        assert_eq!(Version::new(1 << 53), None);
    }
}
