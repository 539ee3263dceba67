//! Faults that can be planted, one at a time, to see that the simulation finds them.
//!
//! Without the feature `mutations`, which no release has, [`planted`] is always
//! false and costs nothing.

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// No write is kept for an owner that did not take it.
    SkipHints,
    /// A hint is not replaced by a newer write of its key.
    KeepFirstHint,
    /// A replica acknowledges a write it did not apply.
    AckBeforeApply,
    /// A replica acknowledges a delete it did not apply.
    DropTombstones,
    /// Equal versions of different origins: the first to come stays.
    IgnoreOrigin,
    /// A node that is suspected does not defend itself.
    ForgetRefutation,
    /// The absence of a key counts although the replica lacks its partition's data.
    TrustEmptyReplicas,
    /// A write that came too late by the clock counts as acknowledged.
    AcceptStaleWrites,
    /// A hint is replayed as if it had been written just now.
    RestampHints,
    /// Being in step with a replica that lacks data is as good as with any other.
    CountEmptyCoOwners,
    /// Former owners are dropped from writes as soon as the members change.
    SkipJointStage,
    /// A node leaves although not all know of those that leave as well.
    LeaveUnannounced,
    /// A node that was cut off for long goes on as if it had not been.
    IgnoreFence,
    /// Other cores go on reading their copies of an item that was written.
    KeepLeases,
}

impl Mutation {
    /// Those that the simulation finds by chance. The others need circumstances so rare
    /// that a scenario makes them.
    pub const BY_CHANCE: [Self; 11] = [
        Self::SkipHints,
        Self::KeepFirstHint,
        Self::AckBeforeApply,
        Self::DropTombstones,
        Self::IgnoreOrigin,
        Self::ForgetRefutation,
        Self::TrustEmptyReplicas,
        Self::AcceptStaleWrites,
        Self::RestampHints,
        Self::SkipJointStage,
        Self::KeepLeases,
    ];
}

#[cfg(feature = "mutations")]
mod state {
    use std::cell::Cell;

    use super::Mutation;

    thread_local! {
        static PLANTED: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Plants one fault, or none, in this thread.
    pub fn plant(mutation: Option<Mutation>) {
        PLANTED.set(mutation);
    }

    /// Whether this fault is planted in this thread.
    pub fn planted(mutation: Mutation) -> bool {
        PLANTED.get() == Some(mutation)
    }
}

#[cfg(feature = "mutations")]
pub use state::{plant, planted};

/// Whether this fault is planted in this thread: never, in this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub fn planted(_mutation: Mutation) -> bool {
    false
}
