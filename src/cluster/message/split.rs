//! Cutting a frame up for a node with another number of cores than its sender, and
//! putting the answers together again.

use super::comparison::{Verdicts, pack_verdicts, verdicts};
use super::{
    Answer, FORMAT, Frames, PeerOp, Terms, begin_answers, partition_digests, put_length,
    put_partition_digests,
};
use crate::bytes::Malformed;
use crate::hash::{CoreCount, CoreId, PartitionId};
use crate::store::Digest;

/// Where an operation of a frame went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To one core.
    Whole(CoreId),
    /// To the cores of the partitions it names: one for each of these, in order.
    Cut(Vec<CoreId>),
}

/// A frame cut up by the cores its operations belong to.
#[derive(Debug, Default)]
pub struct Split {
    /// Where each operation went, in order.
    pub order: Vec<Place>,
    /// For each core with operations, its own frame.
    pub parts: Vec<(CoreId, Vec<u8>)>,
}

impl Split {
    /// The frame of a core, to append to.
    fn part(&mut self, core: CoreId) -> &mut Vec<u8> {
        let at = match self.parts.iter().position(|(owner, _)| *owner == core) {
            Some(at) => at,
            None => {
                self.parts.push((core, vec![FORMAT]));
                self.parts.len() - 1
            }
        };
        &mut self.parts[at].1
    }

    fn cut_compare(&mut self, digests: super::PartitionDigests<'_>, cores: CoreCount) {
        let mut shares: Vec<(CoreId, Vec<(PartitionId, Digest)>)> = Vec::new();
        let mut place = Vec::new();
        for (partition, digest) in digests.iter() {
            let core = partition.core(cores);
            place.push(core);
            match shares.iter_mut().find(|(owner, _)| *owner == core) {
                Some((_, share)) => share.push((partition, digest)),
                None => shares.push((core, vec![(partition, digest)])),
            }
        }
        let mut bytes = Vec::new();
        for (core, share) in shares {
            bytes.clear();
            put_partition_digests(&mut bytes, &share);
            if let Some(digests) = partition_digests(&bytes) {
                PeerOp::CompareMany { digests }.encode(self.part(core));
            }
        }
        self.order.push(Place::Cut(place));
    }
}

/// Cuts a frame up for a node of `cores` cores. An operation of no known kind goes
/// to core 0, which refuses it.
///
/// # Errors
///
/// [`Malformed`] when it is no frame.
pub fn split(frame: &[u8], cores: CoreCount) -> Result<Split, Malformed> {
    let mut split = Split::default();
    for body in Frames::new(frame)? {
        let body = body?;
        let core = match PeerOp::decode(body) {
            Ok(PeerOp::CompareMany { digests }) => {
                split.cut_compare(digests, cores);
                continue;
            }
            Ok(op) => op.partition().core(cores),
            Err(Malformed) => CoreId::new(0),
        };
        let out = split.part(core);
        put_length(out, body.len());
        out.extend_from_slice(body);
        split.order.push(Place::Whole(core));
    }
    Ok(split)
}

/// Puts the answers of the cores into the order of the operations. Cores that go by
/// different rosters answer together by none.
///
/// # Errors
///
/// [`Malformed`] when an answer is missing or is none to its operation.
pub fn join(order: &[Place], answers: &[(CoreId, Vec<u8>)]) -> Result<Vec<u8>, Malformed> {
    let mut readers = Vec::new();
    let mut terms = None;
    for (core, answer) in answers {
        let (theirs, frames) = super::answers(answer)?;
        let common = *terms.get_or_insert(theirs) == theirs;
        terms = Some(if common { theirs } else { Terms::default() });
        readers.push((*core, frames));
    }
    let mut next_of = |core: CoreId| {
        let reader = readers.iter_mut().find(|(owner, _)| *owner == core);
        reader
            .and_then(|(_, frames)| frames.next())
            .ok_or(Malformed)?
    };
    let mut out = Vec::new();
    begin_answers(&mut out, terms.unwrap_or_default());
    for place in order {
        match place {
            Place::Whole(core) => {
                let body = next_of(*core)?;
                put_length(&mut out, body.len());
                out.extend_from_slice(body);
            }
            Place::Cut(cores) => {
                let packed = join_verdicts(cores, &mut next_of)?;
                let verdicts = verdicts(&packed);
                Answer::Compared { verdicts }.encode(&mut out);
            }
        }
    }
    Ok(out)
}

/// Takes the next answer of each of these cores apart and puts the verdicts in order.
fn join_verdicts<'a>(
    cores: &[CoreId],
    mut next_of: impl FnMut(CoreId) -> Result<&'a [u8], Malformed>,
) -> Result<Vec<u8>, Malformed> {
    let mut shares = Vec::new();
    let mut joined = Vec::with_capacity(cores.len());
    for &core in cores {
        let at = match shares.iter().position(|(owner, _)| *owner == core) {
            Some(at) => at,
            None => {
                let Answer::Compared { verdicts } = Answer::decode(next_of(core)?)? else {
                    return Err(Malformed);
                };
                shares.push((core, Verdicts::iter(verdicts)));
                shares.len() - 1
            }
        };
        joined.extend(shares[at].1.next());
    }
    Ok(pack_verdicts(joined.into_iter()))
}
