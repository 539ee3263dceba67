//! Which core serves a client connection.
//!
//! The kernel chooses by a hash of the addresses, without knowing how many connections a core
//! has: of 64 on two cores it is quite likely to put 40 on one. So the core that accepts
//! a connection looks at how many each has, and passes it on to the one with the
//! least when it has clearly more itself ([`Spread::place`]). A connection moves once at most, before
//! anything of it was read.
//!
//! A client that wants a certain core chooses its source port
//! ([`CHOSEN_PORTS`](crate::runtime::CHOSEN_PORTS)): the kernel then leads it there, and it stays.
//!
//! What cores have is counted in one cell each, by whoever places or ends a connection there: two cores
//! that place at the same time may differ by one from the best choice, no more. Connections that end
//! leave the others where they are.
//!
//! A core that passes a connection on needs room in the other's mailbox: there are at most
//! [`MOVING_MAX`] on their way to each core. When there are that many, the connection stays.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::hash::CoreId;

/// How many connections may be on their way to one core.
pub(super) const MOVING_MAX: usize = 64;

/// A core keeps a connection unless it has more than the least by this part of that.
const TOLERATED_SHARE: usize = 8;

/// Connections of each core. See the module's comment.
#[derive(Debug)]
pub struct Spread {
    cores: Vec<Cells>,
}

/// Apart from other cores' cells by as much as processors fetch at once.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cells {
    open: AtomicUsize,
    moving: AtomicUsize,
}

impl Spread {
    /// No connections on any core.
    pub(super) fn new(cores: usize) -> Self {
        Self {
            cores: (0..cores).map(|_| Cells::default()).collect(),
        }
    }

    /// Counts a connection that `here` has accepted to the core that is to have it, and says
    /// which. If that is another, it is on its way until [`Spread::arrived`].
    pub(super) fn place(&self, here: CoreId, chosen: bool) -> CoreId {
        let target = match chosen {
            true => here,
            false => self.choose(here),
        };
        self.cells(target).open.fetch_add(1, Ordering::Relaxed);
        target
    }

    fn choose(&self, here: CoreId) -> CoreId {
        let own = self.cells(here).open.load(Ordering::Relaxed);
        let count = self.cores.len();
        // From the next core on, so that equals are not all sent to the same.
        let others = (1..count).map(|step| (here.index() + step) % count);
        let open = |core: usize| self.cores[core].open.load(Ordering::Relaxed);
        let Some((least, target)) = others.map(|core| (open(core), core)).min() else {
            return here;
        };
        if own <= least + least / TOLERATED_SHARE {
            return here;
        }
        let moving = &self.cores[target].moving;
        if moving.fetch_add(1, Ordering::Relaxed) >= MOVING_MAX {
            moving.fetch_sub(1, Ordering::Relaxed);
            return here;
        }
        CoreId::new(target as u16)
    }

    /// A connection is not on its way to this core any more.
    pub(super) fn arrived(&self, core: CoreId) {
        self.cells(core).moving.fetch_sub(1, Ordering::Relaxed);
    }

    /// A connection of this core has ended.
    pub(super) fn ended(&self, core: CoreId) {
        self.cells(core).open.fetch_sub(1, Ordering::Relaxed);
    }

    fn cells(&self, core: CoreId) -> &Cells {
        &self.cores[core.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::splitmix64;

    /// What each core has after the kernel gave it as many as that of `arrivals`.
    fn spread(cores: usize, arrivals: impl Iterator<Item = u64>) -> Vec<usize> {
        let spread = Spread::new(cores);
        for arrival in arrivals {
            let here = CoreId::new((arrival % cores as u64) as u16);
            let target = spread.place(here, false);
            if target != here {
                spread.arrived(target);
            }
        }
        let open = spread.cores.iter();
        open.map(|cells| cells.open.load(Ordering::Relaxed))
            .collect()
    }

    #[test]
    fn no_core_has_more_than_a_quarter_above_the_mean() {
        for cores in [2, 3, 4, 8] {
            for seed in 0..100 {
                let random = (0..64).map(|n| splitmix64(seed << 32 | n) >> 7);
                let open = spread(cores, random);
                assert_eq!(open.iter().sum::<usize>(), 64);
                let most = open.iter().max().unwrap();
                assert!(most * cores * 4 <= 64 * 5, "{open:?}");
            }
            // However badly the kernel spreads them.
            let open = spread(cores, std::iter::repeat_n(0, 64));
            assert!(open.iter().max().unwrap() * cores * 4 <= 64 * 5, "{open:?}");
        }
    }

    #[test]
    fn a_chosen_core_keeps_what_it_gets() {
        let spread = Spread::new(2);
        let here = CoreId::new(1);
        for _ in 0..10 {
            assert_eq!(spread.place(here, true), here);
        }
        assert_eq!(spread.place(here, false), CoreId::new(0));
        spread.ended(here);
    }

    #[test]
    fn connections_stay_when_too_many_are_on_their_way() {
        let spread = Spread::new(2);
        let (here, other) = (CoreId::new(0), CoreId::new(1));
        for _ in 0..200 {
            spread.place(here, true);
        }
        let placed: Vec<_> = (0..100).map(|_| spread.place(here, false)).collect();
        let moved = placed.iter().filter(|&&core| core == other).count();
        assert_eq!(moved, MOVING_MAX);
        spread.arrived(other);
        assert_eq!(spread.place(here, false), other);
    }

    #[test]
    fn a_core_alone_keeps_everything() {
        assert_eq!(spread(1, 0..10), [10]);
    }
}
