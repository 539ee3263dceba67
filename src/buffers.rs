//! What requests and answers may take while they are under way.
//!
//! ```text
//!   Pool (the node's clients)                     limit
//!    |-- Buffers (a core's client listener) --- Account (a connection), Account, ...
//!    |-- Buffers (another core's)           --- ...
//!    `-- Allotment (a batch request) --- Ration: what a message between cores copies
//!   Pool (a core's peers), Pool (the management listener): apart, so that clients cannot
//!   keep peers and operators out
//! ```
//!
//! **Who counts.** A connection measures what it holds whenever it is about to wait, and
//! says so to its [`Account`]; dropped, the account gives everything back. A core's
//! [`Buffers`] are their sum, in plain cells. They take from the node's [`Pool`] in
//! chunks, so a core may use whatever the others do not, and the atomic of the pool is
//! changed only when a chunk is taken or given back. What the small allowance of an idle
//! connection holds ([`crate::node::connection`]) is not counted: it is there for all of
//! them at any time.
//!
//! **Full.** Who needs more asks first, and is refused: nothing here ever waits. There are
//! three levels. *Roomy*: everything goes. *Tight*, when seven eighths are taken: only
//! small needs, at most [`SMALL_BYTES_MAX`]. *Full*: no request may grow beyond the idle
//! allowance, and answers only to [`ANSWER_BYTES_ALWAYS`], so that small requests are
//! still served.
//!
//! **Invariants.** A pool's `taken` is at least what is held of it. It is beyond the limit
//! at most by what was built between two looks: one answer of each core, a chunk of each
//! core, and [`ANSWER_BYTES_ALWAYS`] of each connection.
//!
//! Values that the store has dropped while answers still carry them count too
//! ([`Buffers::set_lent`]); while the store has them, they are the store's.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is still granted when an eighth is left: the largest head, the largest value
/// that is copied.
pub const SMALL_BYTES_MAX: usize = 16 << 10;

/// How large an answer may be at any time.
pub const ANSWER_BYTES_ALWAYS: usize = 4 << 10;

/// What the answers of one turn may take, intermediate forms included: the largest answer
/// to a batch, twice.
pub const ANSWER_BYTES_MAX: usize = 128 << 20;

/// A pool keeps one part in this many for small needs.
const RESERVE_SHARE: usize = 8;

/// Connections keep larger buffers for their next request while no more than one part in
/// this many is taken.
const KEEPING_SHARE: usize = 4;

/// Cores take at most this much from their pool at once, and one part in
/// [`CHUNK_SHARE`] of a smaller pool.
const CHUNK_BYTES_MAX: usize = 256 << 10;
const CHUNK_SHARE: usize = 256;

/// What a ration takes from its pool at once.
const RATION_BYTES: usize = 64 << 10;

/// A limit that several cores share.
#[derive(Debug)]
pub struct Pool {
    limit: usize,
    taken: AtomicUsize,
    refused: AtomicUsize,
}

impl Pool {
    /// Nothing taken yet of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            taken: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        })
    }

    /// A pool that is never full.
    pub fn unlimited() -> Arc<Self> {
        Self::new(usize::MAX / 2)
    }

    /// How much may be taken.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How much is taken now, in whole chunks.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// How often a batch was refused a ration.
    pub fn rations_refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Up to where needs of this kind are granted.
    fn bound(&self, small: bool) -> usize {
        if small {
            self.limit
        } else {
            self.limit - self.limit / RESERVE_SHARE
        }
    }

    fn chunk(&self) -> usize {
        (self.limit / CHUNK_SHARE).clamp(1, CHUNK_BYTES_MAX)
    }

    fn take(&self, bytes: usize) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: usize) {
        self.taken.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes what is no small need, if it is there.
    fn try_take(&self, bytes: usize) -> bool {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        let granted = before.saturating_add(bytes) <= self.bound(false);
        if !granted {
            self.give_back(bytes);
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        granted
    }
}

/// What one batch request of one connection may copy, from whatever core or node.
#[derive(Debug)]
pub struct Allotment {
    pool: Arc<Pool>,
    left: AtomicUsize,
}

impl Allotment {
    /// At most `limit` bytes, of a pool.
    pub fn new(pool: Arc<Pool>, limit: usize) -> Arc<Self> {
        Arc::new(Self {
            pool,
            left: AtomicUsize::new(limit),
        })
    }

    /// Without a bound of its own.
    pub fn of(pool: Arc<Pool>) -> Arc<Self> {
        Self::new(pool, usize::MAX / 2)
    }

    /// Where it comes from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

/// Why nothing more may be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RationRefused {
    /// The request has had what one request may have.
    Spent,
    /// Others have taken what there is.
    Full,
}

/// What one message between cores has taken of an allotment; goes back when dropped.
#[derive(Debug)]
pub struct Ration {
    allotment: Arc<Allotment>,
    taken: usize,
    used: usize,
}

impl Ration {
    /// Nothing taken yet.
    pub fn new(allotment: Arc<Allotment>) -> Self {
        Self {
            allotment,
            taken: 0,
            used: 0,
        }
    }

    /// Starts again with another allotment, or the same.
    pub fn renew(&mut self, allotment: &Arc<Allotment>) {
        self.release();
        if !Arc::ptr_eq(&self.allotment, allotment) {
            self.allotment = Arc::clone(allotment);
        }
    }

    /// Asks for `bytes` more. The first few of a message, [`SMALL_BYTES_MAX`], are free.
    ///
    /// # Errors
    ///
    /// When they may not be copied.
    #[inline]
    pub fn ask(&mut self, bytes: usize) -> Result<(), RationRefused> {
        let used = self.used + bytes;
        if used > self.taken + SMALL_BYTES_MAX {
            self.take(used - self.taken - SMALL_BYTES_MAX)?;
        }
        self.used = used;
        Ok(())
    }

    #[cold]
    fn take(&mut self, needed: usize) -> Result<(), RationRefused> {
        let bytes = needed.max(RATION_BYTES);
        let left = &self.allotment.left;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes)
        })
        .map_err(|_| RationRefused::Spent)?;
        if !self.allotment.pool.try_take(bytes) {
            left.fetch_add(bytes, Ordering::Relaxed);
            return Err(RationRefused::Full);
        }
        self.taken += bytes;
        Ok(())
    }

    /// What it has taken of the pool.
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Gives everything back.
    pub fn release(&mut self) {
        if self.taken > 0 {
            self.allotment.pool.give_back(self.taken);
            self.allotment.left.fetch_add(self.taken, Ordering::Relaxed);
        }
        self.taken = 0;
        self.used = 0;
    }
}

impl Drop for Ration {
    fn drop(&mut self) {
        self.release();
    }
}

/// What the connections of one listener on one core hold.
#[derive(Debug)]
pub struct Buffers {
    pool: Arc<Pool>,
    granted: Cell<usize>,
    held: Cell<usize>,
    lent: Cell<usize>,
    refused: Cell<u64>,
}

impl Buffers {
    /// Nothing held yet.
    pub fn new(pool: Arc<Pool>) -> Self {
        Self {
            pool,
            granted: Cell::new(0),
            held: Cell::new(0),
            lent: Cell::new(0),
            refused: Cell::new(0),
        }
    }

    /// Where they come from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// How much is held, what is lent included.
    pub fn held(&self) -> usize {
        self.held.get() + self.lent.get()
    }

    /// How many requests were refused for want of room.
    pub fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Counts requests that were refused for want of room.
    pub fn count_refused(&self, requests: u64) {
        self.refused.set(self.refused.get() + requests);
    }

    /// Replaces what is held of the store's former values.
    pub fn set_lent(&self, bytes: usize) {
        if self.lent.replace(bytes) != bytes {
            self.settle();
        }
    }

    /// How much a turn's answers may take now: never less than [`ANSWER_BYTES_ALWAYS`],
    /// never more than [`ANSWER_BYTES_MAX`].
    #[inline]
    pub fn answer_room(&self) -> usize {
        self.room(false)
            .min(ANSWER_BYTES_MAX)
            .max(self.room(true).min(SMALL_BYTES_MAX))
            .max(ANSWER_BYTES_ALWAYS)
    }

    /// Whether connections may keep more than the least for their next request.
    #[inline]
    pub fn keeps(&self) -> bool {
        self.pool.taken() <= self.pool.limit / KEEPING_SHARE
    }

    #[inline]
    fn room(&self, small: bool) -> usize {
        let spare = self.granted.get().saturating_sub(self.held());
        let bound = self.pool.bound(small);
        (bound + spare).saturating_sub(self.pool.taken())
    }

    /// Makes the grant fit what is held.
    #[inline]
    fn settle(&self) {
        let (held, granted) = (self.held(), self.granted.get());
        let chunk = self.pool.chunk();
        if held > granted || granted - held > 2 * chunk {
            self.resettle(held.next_multiple_of(chunk));
        }
    }

    #[cold]
    fn resettle(&self, wanted: usize) {
        let granted = self.granted.replace(wanted);
        if wanted > granted {
            self.pool.take(wanted - granted);
        } else {
            self.pool.give_back(granted - wanted);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.pool.give_back(self.granted.get());
    }
}

/// What one connection holds.
#[derive(Debug)]
pub struct Account {
    buffers: Rc<Buffers>,
    held: usize,
}

impl Account {
    /// Nothing held yet.
    pub fn new(buffers: Rc<Buffers>) -> Self {
        Self { buffers, held: 0 }
    }

    /// Says how much this connection holds from now on.
    #[inline]
    pub fn hold(&mut self, bytes: usize) {
        if bytes == self.held {
            return;
        }
        let buffers = &self.buffers;
        buffers.held.set(buffers.held.get() - self.held + bytes);
        self.held = bytes;
        buffers.settle();
    }

    /// Whether this connection may hold `more` than it does.
    #[inline]
    pub fn may_grow(&self, more: usize) -> bool {
        let small = self.held + more <= SMALL_BYTES_MAX;
        more <= self.buffers.room(small)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;

    fn core(pool: &Arc<Pool>) -> Rc<Buffers> {
        Rc::new(Buffers::new(Arc::clone(pool)))
    }

    #[test]
    fn what_connections_hold_is_taken_and_comes_back_with_them() {
        let pool = Pool::new(16 * MIB);
        let (one, other) = (core(&pool), core(&pool));
        let mut first = Account::new(Rc::clone(&one));
        let mut second = Account::new(Rc::clone(&other));
        first.hold(3 * MIB);
        second.hold(MIB);
        first.hold(2 * MIB);
        assert_eq!((one.held(), other.held()), (2 * MIB, MIB));
        assert!((3 * MIB..4 * MIB).contains(&pool.taken()), "{pool:?}");
        drop((first, second));
        assert_eq!((one.held(), other.held()), (0, 0));
        assert!(pool.taken() <= 4 * pool.chunk());
        drop((one, other));
        assert_eq!(pool.taken(), 0);
    }

    #[test]
    fn one_core_may_use_what_the_others_do_not() {
        let pool = Pool::new(16 * MIB);
        let (one, _idle) = (core(&pool), core(&pool));
        let account = Account::new(one);
        assert!(account.may_grow(14 * MIB));
        assert!(
            !account.may_grow(14 * MIB + 1),
            "the rest is for small needs"
        );
    }

    #[test]
    fn the_last_eighth_is_for_small_needs_and_small_answers_always_go() {
        let pool = Pool::new(16 * MIB);
        let buffers = core(&pool);
        let mut large = Account::new(Rc::clone(&buffers));
        let mut small = Account::new(Rc::clone(&buffers));
        large.hold(14 * MIB);
        assert!(!large.may_grow(1) && !small.may_grow(SMALL_BYTES_MAX + 1));
        assert!(small.may_grow(SMALL_BYTES_MAX));
        assert_eq!(buffers.answer_room(), SMALL_BYTES_MAX);
        small.hold(1);
        assert!(!small.may_grow(SMALL_BYTES_MAX), "together it is not small");
        large.hold(16 * MIB);
        assert!(!small.may_grow(KIB));
        assert_eq!(buffers.answer_room(), ANSWER_BYTES_ALWAYS);
        large.hold(0);
        assert!(small.may_grow(8 * MIB));
        assert!(buffers.answer_room() > 8 * MIB);
    }

    #[test]
    fn values_that_only_answers_carry_count() {
        let pool = Pool::new(16 * MIB);
        let buffers = core(&pool);
        let account = Account::new(Rc::clone(&buffers));
        buffers.set_lent(14 * MIB);
        assert_eq!(buffers.held(), 14 * MIB);
        assert!(!account.may_grow(MIB));
        buffers.set_lent(0);
        assert!(account.may_grow(MIB));
    }

    #[test]
    fn idle_connections_keep_no_large_buffers_once_a_quarter_is_taken() {
        let pool = Pool::new(16 * MIB);
        let buffers = core(&pool);
        let mut account = Account::new(Rc::clone(&buffers));
        account.hold(3 * MIB);
        assert!(buffers.keeps());
        account.hold(5 * MIB);
        assert!(!buffers.keeps());
    }

    #[test]
    fn a_request_is_refused_when_its_allotment_is_spent_and_when_the_pool_is_full() {
        let pool = Pool::new(16 * MIB);
        let allotment = Allotment::new(Arc::clone(&pool), 2 * MIB);
        let mut ration = Ration::new(Arc::clone(&allotment));
        ration.ask(SMALL_BYTES_MAX).unwrap();
        assert_eq!(pool.taken(), 0, "the first few are free");
        ration.ask(2 * MIB).unwrap();
        assert_eq!(ration.ask(1), Err(RationRefused::Spent));

        let mut other = Ration::new(Allotment::of(Arc::clone(&pool)));
        other.ask(11 * MIB).unwrap();
        assert_eq!(other.ask(4 * MIB), Err(RationRefused::Full));
        assert_eq!(pool.rations_refused(), 1);
        drop(other);
        ration.release();
        assert_eq!(pool.taken(), 0);
        ration.ask(2 * MIB).unwrap();
    }
}
