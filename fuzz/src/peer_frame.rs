//! Frames of peers, operations and answers in them, and listings of keys.
//!
//! * What is decoded, encoded and decoded again is the same.
//! * A frame that is cut up for several cores gives every core what is its own, all of
//!   it and nothing else, and takes no more memory than twice the frame.
//! * The answers to the parts make one answer, in order.
//! * A listing of keys comes back as it was.

use hypercache::cluster::membership::Terms;
use hypercache::cluster::message::{
    Answer, FORMAT, Frames, PeerOp, Place, Split, answers, begin_answers, join, pack_verdicts,
    split, verdicts,
};
use hypercache::hash::CoreCount;
use hypercache::peer::keys;

/// See the module's comment.
pub fn law(bytes: &[u8]) {
    listing(bytes);
    if let Ok((_, bodies)) = answers(bytes) {
        for body in bodies.map_while(Result::ok) {
            answer(body);
        }
    }
    let Ok(bodies) = Frames::new(bytes) else {
        for cores in [1, 3] {
            assert!(split(bytes, core_count(cores)).is_err());
        }
        return;
    };
    let bodies: Vec<_> = bodies.collect();
    for body in bodies.iter().flatten() {
        operation(body);
        answer(body);
    }
    let whole: Result<Vec<&[u8]>, _> = bodies.into_iter().collect();
    for cores in [1, 2, 7] {
        let cores = core_count(cores);
        match (&whole, split(bytes, cores)) {
            (Ok(bodies), Ok(cut)) => cut_up(bytes, bodies, &cut, cores),
            (Err(_), Err(_)) => {}
            (whole, cut) => panic!("{whole:?}, but {cut:?}"),
        }
    }
}

fn core_count(cores: usize) -> CoreCount {
    CoreCount::new(cores).expect("a number of cores")
}

/// The one body of what was encoded.
fn body_of(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut frame = vec![FORMAT];
    encode(&mut frame);
    let mut bodies = Frames::new(&frame).expect("a frame");
    let body = bodies.next().expect("one").expect("whole").to_vec();
    assert!(bodies.next().is_none());
    body
}

fn operation(body: &[u8]) {
    let Ok(op) = PeerOp::decode(body) else {
        return;
    };
    let again = body_of(|frame| op.encode(frame));
    assert_eq!(PeerOp::decode(&again), Ok(op));
    match op {
        PeerOp::Write(write) | PeerOp::Apply(write) | PeerOp::Offer(write) => {
            assert!(!write.key.is_empty());
            assert!(write.value.is_some() || write.expires_at.is_some());
            let _ = write.content();
        }
        PeerOp::CompareMany { digests } => {
            let partitions: Vec<_> = digests
                .iter()
                .map(|(partition, _)| partition.index())
                .collect();
            assert!(!partitions.is_empty() && partitions.is_sorted_by(|a, b| a < b));
            assert!(partitions.len() * 9 <= body.len());
        }
        PeerOp::Exchange { entries, .. } => assert!(entries.iter().count() * 20 <= body.len()),
        PeerOp::Fetch { hashes, .. } => assert!(hashes.iter().count() * 8 <= body.len()),
        PeerOp::Read { .. } | PeerOp::Compare { .. } => {}
    }
}

fn answer(body: &[u8]) {
    let Ok(answer) = Answer::decode(body) else {
        return;
    };
    let again = body_of(|frame| answer.encode(frame));
    assert_eq!(Answer::decode(&again), Ok(answer));
    match answer {
        Answer::Exchanged {
            wanted,
            left,
            items,
            ..
        } => {
            let hashes = wanted.iter().count() + left.iter().count();
            assert!(hashes * 8 + items.len() <= body.len());
            assert!(items.iter().count() <= items.len());
        }
        Answer::Fetched { items, .. } => assert!(items.iter().count() <= items.len()),
        Answer::Compared { verdicts } => {
            let read = verdicts.iter().take(4 * body.len());
            let packed = pack_verdicts(read);
            assert_eq!(&packed[..body.len() - 1], &body[1..]);
        }
        Answer::Differs { leaves, .. } => {
            let own = [hypercache::store::Digest(0); hypercache::cluster::message::LEAVES];
            let _ = leaves.differing(&own);
        }
        _ => {}
    }
}

fn cut_up(frame: &[u8], bodies: &[&[u8]], cut: &Split, cores: CoreCount) {
    assert_eq!(cut.order.len(), bodies.len());
    let bytes: usize = cut.parts.iter().map(|(_, part)| part.len()).sum();
    assert!(bytes <= 2 * frame.len() + cores.get(), "{bytes}");
    let mut digests = 0;
    for (core, part) in &cut.parts {
        for body in Frames::new(part).expect("a frame") {
            match PeerOp::decode(body.expect("whole")) {
                Ok(PeerOp::CompareMany { digests: named }) => {
                    for (partition, _) in named.iter() {
                        assert_eq!(partition.core(cores), *core);
                        digests += 1;
                    }
                }
                Ok(op) => assert_eq!(op.partition().core(cores), *core),
                Err(_) => assert_eq!(core.index(), 0),
            }
        }
    }
    let places = cut.order.iter().map(|place| match place {
        Place::Whole(_) => 0,
        Place::Cut(cores) => cores.len(),
    });
    assert_eq!(places.sum::<usize>(), digests);

    let parts: Vec<_> = cut
        .parts
        .iter()
        .map(|(core, part)| (*core, echo(part)))
        .collect();
    let joined = join(&cut.order, &parts).expect("every part was answered");
    assert_eq!(joined, echo(frame));
    // An answer that is missing is missed.
    if let Some((_, rest)) = parts.split_first() {
        assert!(join(&cut.order, rest).is_err());
    }
}

/// An answer to each operation that says which it was: its own bytes, or its digests.
fn echo(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    begin_answers(&mut out, Terms::default());
    for body in Frames::new(frame).expect("a frame") {
        let body = body.expect("whole");
        match PeerOp::decode(body) {
            Ok(PeerOp::CompareMany { digests }) => {
                let told = digests.iter().map(|(_, digest)| match digest.0 % 3 {
                    0 => hypercache::cluster::message::Verdict::Refused,
                    1 => hypercache::cluster::message::Verdict::Differs,
                    _ => hypercache::cluster::message::Verdict::Same { holding: true },
                });
                let packed = pack_verdicts(told);
                let verdicts = verdicts(&packed);
                Answer::Compared { verdicts }.encode(&mut out);
            }
            _ => {
                let mut length = body.len();
                while length >= 0x80 {
                    out.push(length as u8 | 0x80);
                    length >>= 7;
                }
                out.push(length as u8);
                out.extend_from_slice(body);
            }
        }
    }
    out
}

fn listing(bytes: &[u8]) {
    let Some((truncated, listed)) = keys::decode(bytes) else {
        return;
    };
    let mut again = Vec::new();
    let borrowed = listed.iter().map(|key| &**key);
    keys::encode(truncated, borrowed, usize::MAX, &mut again);
    assert_eq!(again[1..], bytes[1..]);
    assert_eq!(keys::decode(&again), Some((truncated, listed)));
}
