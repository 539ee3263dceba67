//! Which members own which partition: a pure function of the set of member ids.
//!
//! Every node computes this table for itself and must come to the same answer,
//! whatever its release and whatever order it learned the members in. So all
//! arithmetic is on integers, ties fall to the smaller id, and nothing is drawn
//! at random. To change any constant below is to move data in a running
//! cluster: the golden test guards them.
//!
//! 1. *Consistent hashing* (Karger et al., 1997). Each member has its virtual
//!    nodes, points on a ring of 2^64. They depend on its own id alone, so that
//!    a member that comes or goes leaves the others where they are.
//! 2. *Multi-probe lookup* (Appleton and O'Reilly, 2015). Each partition has
//!    `PROBE_COUNT` points on the same ring. A member's distance to a partition
//!    is the least clockwise distance from any of these to any of the member's
//!    virtual nodes; the nearest members own it, the very nearest as primary.
//! 3. *Bounded loads* (Mirrokni, Thorup and Zadimoghaddam, 2018). No member is
//!    primary, or owner, of more partitions than the mean and a slack: the next
//!    nearest takes its place. And since a cap for the others promises little to
//!    the least loaded, members that are short of the mean by more than the slack
//!    then take partitions that they are next in line for from members above it.
//!
//! With 5 members of 64 virtual nodes, whatever their ids, this keeps primaries and owned partitions
//! of each within 10 % of the mean. Without the third step, adding a member moves
//! to it exactly the places it wins and no others; the bounds add a little to
//! that, which the tests limit.

use crate::hash::{PARTITION_COUNT, PartitionId, SPLITMIX64_STEP, splitmix64};

/// The most owners a partition can have.
pub const OWNERS_MAX: usize = 16;

/// Points each partition has on the ring. More of them even out the shares
/// before any bound applies, and cost time to look up.
const PROBE_COUNT: usize = 12;

/// How far from the mean a member's load may be, in thousandths of the mean:
/// 80 for 5 members. It grows with the number of members, for so does the
/// relative spread of what falls to each by chance, and holding many members to
/// tight bounds would move more than a change of members needs to.
fn slack_permille(members: usize) -> usize {
    (75 + members).min(130)
}

/// How many members past the owners are known, in order, for each partition:
/// the ones that step in when the bounds rule out the nearest.
const SPARES_MAX: usize = 8;

/// Keeps the partitions' points apart from the members'.
const PROBE_SEED: u64 = 0x7072_6f62_6573_2d31;

/// An odd number: multiplying by it visits each partition once, out of order.
const ORDER_STEP: usize = 2531;

/// The virtual nodes of all members, in ring order.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Sorted by point, then by the rank of the member whose virtual node it is.
    points: Box<[(u64, u16)]>,
    /// From a member's rank, its place in the order of ids, to its index in the
    /// slice the ring was made from. Placement deals in ranks only, so that the
    /// order of that slice cannot matter.
    index_of: Box<[u16]>,
}

impl Ring {
    /// Places `virtual_nodes` (at least one) points for each of `members`, which
    /// are distinct ids. What lies beyond the first 65,535 of them is ignored.
    pub fn new(members: &[&str], virtual_nodes: u32) -> Self {
        let mut sorted: Vec<(&str, u16)> = members.iter().copied().zip(0..u16::MAX).collect();
        sorted.sort_unstable();
        let mut points = Vec::with_capacity(sorted.len() * virtual_nodes.max(1) as usize);
        for (&(id, _), rank) in sorted.iter().zip(0..) {
            let base = xxhash_rust::xxh3::xxh3_64(id.as_bytes());
            points.extend((0..virtual_nodes.max(1)).map(|n| (scramble(base, u64::from(n)), rank)));
        }
        points.sort_unstable();
        let index_of = sorted.iter().map(|&(_, index)| index).collect();
        Self {
            points: points.into(),
            index_of,
        }
    }

    /// Every virtual node in ring order: its point, and the index of its member
    /// in the slice the ring was made from.
    pub fn points(&self) -> impl Iterator<Item = (u64, usize)> {
        self.points
            .iter()
            .map(|&(point, rank)| (point, usize::from(self.index_of[usize::from(rank)])))
    }

    fn member_count(&self) -> usize {
        self.index_of.len()
    }
}

/// The owners of every partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `replication` owners for each partition in turn, primary first.
    owners: Box<[u16]>,
    replication: usize,
}

impl Table {
    /// Places every partition on `replication` of `members`, which are distinct
    /// ids with `virtual_nodes` points each. The table names owners by their
    /// index in `members`. There are never more owners than members, nor than
    /// [`OWNERS_MAX`]; and at least one where there are members.
    pub fn new(members: &[&str], virtual_nodes: u32, replication: usize) -> Self {
        let ring = Ring::new(members, virtual_nodes);
        let replication = replication.clamp(1, OWNERS_MAX).min(ring.member_count());
        if replication == 0 {
            return Self {
                owners: Box::default(),
                replication,
            };
        }
        let mut placement = Placement::new(&ring, replication);
        placement.place_under_caps();
        placement.raise_owned_to_floor();
        placement.raise_primaries_to_floor();
        let owners = placement
            .owners
            .iter()
            .map(|&rank| ring.index_of[usize::from(rank)]);
        Self {
            owners: owners.collect(),
            replication,
        }
    }

    /// The owners of `partition`, primary first, all distinct, as indices into
    /// the members the table was made from. Empty where there were none.
    #[inline]
    pub fn owners(&self, partition: PartitionId) -> &[u16] {
        let start = partition.index() * self.replication;
        &self.owners[start..start + self.replication]
    }

    /// How many owners each partition has.
    #[inline]
    pub fn replication(&self) -> usize {
        self.replication
    }
}

/// The table in the making. Members go by rank.
struct Placement {
    replication: usize,
    /// How many members are known in order of distance for each partition.
    reach: usize,
    /// `reach` members for each partition in turn, nearest first.
    nearest: Vec<u16>,
    /// `replication` members for each partition in turn, primary first.
    owners: Vec<u16>,
    owned: Load,
    primaries: Load,
}

impl Placement {
    fn new(ring: &Ring, replication: usize) -> Self {
        let members = ring.member_count();
        let reach = members.min(replication + SPARES_MAX);
        Self {
            replication,
            reach,
            nearest: nearest_members(ring, reach),
            owners: vec![0; PARTITION_COUNT * replication],
            owned: Load::new(PARTITION_COUNT * replication, members),
            primaries: Load::new(PARTITION_COUNT, members),
        }
    }

    /// Gives each partition its nearest members that are below the caps. Where
    /// too few within reach are, the nearest of the others, caps or not.
    fn place_under_caps(&mut self) {
        for partition in scrambled_partitions() {
            let nearest = &self.nearest[partition * self.reach..][..self.reach];
            let owners = &mut self.owners[partition * self.replication..][..self.replication];
            let (owned, primaries) = (&self.owned, &self.primaries);
            let primary = nearest
                .iter()
                .find(|&&member| owned.has_room(member) && primaries.has_room(member))
                .unwrap_or(&nearest[0]);
            let others = nearest.iter().filter(|&member| member != primary);
            let chosen = (std::iter::once(primary))
                .chain(others.clone().filter(|&&member| owned.has_room(member)))
                .chain(others.filter(|&&member| !owned.has_room(member)));
            for (owner, &member) in owners.iter_mut().zip(chosen) {
                *owner = member;
            }
            owners.iter().for_each(|&member| self.owned.add(member));
            self.primaries.add(owners[0]);
        }
    }

    /// Lets members short of partitions replace the last owner that can spare
    /// the place, beginning with the partitions they are nearest to. Being
    /// farther than those that stay, they join as the last.
    fn raise_owned_to_floor(&mut self) {
        for rank in 1..self.reach {
            if !self.owned.anyone_is_short() {
                return;
            }
            for partition in scrambled_partitions() {
                let member = self.nearest[partition * self.reach + rank];
                let owners = &mut self.owners[partition * self.replication..][..self.replication];
                if !self.owned.is_short(member) || owners.contains(&member) {
                    continue;
                }
                let heir = owners.get(1).copied().unwrap_or(member);
                let first = usize::from(!self.primaries.has_room(heir));
                let spare = owners[first..]
                    .iter()
                    .rposition(|&owner| self.owned.can_spare(owner));
                let Some(place) = spare.map(|offset| first + offset) else {
                    continue;
                };
                let replaced = owners[place];
                owners[place..].rotate_left(1);
                owners[self.replication - 1] = member;
                self.owned.remove(replaced);
                self.owned.add(member);
                if place == 0 {
                    self.primaries.remove(replaced);
                    self.primaries.add(heir);
                }
            }
        }
    }

    /// Lets members short of primaries change places with the primary of
    /// partitions they own already. No copy of anything moves.
    fn raise_primaries_to_floor(&mut self) {
        for place in 1..self.replication {
            if !self.primaries.anyone_is_short() {
                return;
            }
            for partition in scrambled_partitions() {
                let owners = &mut self.owners[partition * self.replication..][..self.replication];
                let (primary, member) = (owners[0], owners[place]);
                if self.primaries.is_short(member) && self.primaries.can_spare(primary) {
                    owners[..=place].rotate_right(1);
                    self.primaries.remove(primary);
                    self.primaries.add(member);
                }
            }
        }
    }
}

/// How many places each member holds, and the bounds on it.
struct Load {
    held: Vec<usize>,
    cap: usize,
    floor: usize,
    /// The mean, rounded up.
    mean: usize,
}

impl Load {
    /// `members` members that are to share `places` places.
    fn new(places: usize, members: usize) -> Self {
        let slack = slack_permille(members);
        Self {
            held: vec![0; members],
            cap: (places * (1000 + slack)).div_ceil(members * 1000),
            floor: places * (1000 - slack) / (members * 1000),
            mean: places.div_ceil(members),
        }
    }

    fn add(&mut self, member: u16) {
        self.held[usize::from(member)] += 1;
    }

    fn remove(&mut self, member: u16) {
        self.held[usize::from(member)] -= 1;
    }

    fn has_room(&self, member: u16) -> bool {
        self.held[usize::from(member)] < self.cap
    }

    fn is_short(&self, member: u16) -> bool {
        self.held[usize::from(member)] < self.floor
    }

    fn anyone_is_short(&self) -> bool {
        self.held.iter().any(|&held| held < self.floor)
    }

    fn can_spare(&self, member: u16) -> bool {
        self.held[usize::from(member)] > self.mean
    }
}

/// The `reach` members nearest to each partition, nearest first.
///
/// It is enough to walk from each probe until `reach` distinct members are met.
/// Order members by distance, then rank. If a member is not among the first
/// `reach` met after the probe that it is nearest to, then `reach` others come
/// before it there; each one's own least distance is no greater than the one seen
/// there, so they come before it overall, and it is not among the nearest.
/// For the same reason what a walk meets beyond the member's first virtual node
/// is of no interest.
fn nearest_members(ring: &Ring, reach: usize) -> Vec<u16> {
    let mut nearest = Vec::with_capacity(PARTITION_COUNT * reach);
    // For each member the last walk that met it, counted from 1.
    let mut met_in = vec![0_usize; ring.member_count()];
    // For each member met from any probe of the partition, its least distance.
    let mut least: Vec<Option<u64>> = vec![None; ring.member_count()];
    let mut met = Vec::with_capacity(ring.member_count());
    let mut walk = 0;
    for _ in 0..PARTITION_COUNT {
        for _ in 0..PROBE_COUNT {
            let probe = scramble(PROBE_SEED, walk as u64);
            walk += 1;
            let start = ring.points.partition_point(|&(point, _)| point < probe);
            let (before, after) = ring.points.split_at(start);
            let mut met_count = 0;
            for &(point, rank) in after.iter().chain(before) {
                let member = usize::from(rank);
                if met_in[member] == walk {
                    continue;
                }
                met_in[member] = walk;
                let distance = point.wrapping_sub(probe);
                match &mut least[member] {
                    Some(least) => *least = distance.min(*least),
                    unmet => {
                        *unmet = Some(distance);
                        met.push(rank);
                    }
                }
                met_count += 1;
                if met_count == reach {
                    break;
                }
            }
        }
        met.sort_unstable_by_key(|&rank| (least[usize::from(rank)], rank));
        nearest.extend_from_slice(&met[..reach]);
        met.drain(..)
            .for_each(|rank| least[usize::from(rank)] = None);
    }
    nearest
}

/// Every partition once, in a fixed order unrelated to their numbers, so that
/// those for which the bounds apply, being the last, are spread evenly.
fn scrambled_partitions() -> impl Iterator<Item = usize> {
    (0..PARTITION_COUNT).map(|step| step * ORDER_STEP % PARTITION_COUNT)
}

/// The `n`th number of the SplitMix64 sequence that starts at `base`.
fn scramble(base: u64, n: u64) -> u64 {
    splitmix64(base.wrapping_add(n.wrapping_mul(SPLITMIX64_STEP)))
}

#[cfg(test)]
mod tests;
