//! What one node says to another, and its binary form.

use std::sync::Arc;

use super::placing::{MARKS, RosterId, Stage, Standing};
use super::{ADDRESS_BYTES_MAX, ID_BYTES_MAX, Identity, State, UPDATES_MAX};
use crate::bytes::Reader;
use crate::clock::Version;

pub use crate::bytes::Malformed;

/// One piece of news: what somebody believes of a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Update {
    /// Whom it is about.
    pub identity: Identity,
    /// What is believed.
    pub state: State,
    /// Of which incarnation.
    pub incarnation: u64,
    /// The last that was heard of where it stands.
    pub standing: Standing,
    /// To which of the teller's rosters it belongs.
    pub marks: u8,
}

/// What one node says to another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// The sender.
    pub from: Identity,
    /// The sender's incarnation.
    pub incarnation: u64,
    /// Whether the sender knows its cluster.
    pub joined: bool,
    /// What the sender says of where it stands.
    pub standing: Standing,
    /// The cluster the sender belongs to.
    pub founding: RosterId,
    /// How many rosters were settled before the sender's old one.
    pub epoch: u64,
    /// The sender's old roster.
    pub roster: RosterId,
    /// To which of its own rosters the sender belongs, and whether it is ready or has switched.
    pub marks: u8,
    /// Up to which version the sender knows everything to be cleared.
    pub cleared: Version,
    /// What it wants or answers.
    pub kind: Kind,
    /// News that ride along.
    pub updates: Vec<Update>,
}

/// What a message is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Are you there?
    Ping,
    /// The answer to a ping.
    Ack,
    /// Ping this member for me.
    PingRequest {
        /// The member's id.
        target: Arc<str>,
    },
    /// The member you asked about answered me.
    IndirectAck {
        /// The member's id.
        target: Arc<str>,
        /// The incarnation it answered with.
        incarnation: u64,
    },
    /// Here is all I know.
    Gossip,
    /// The answer to gossip: here is all I know.
    GossipReply,
    /// This is new with me; no answer is needed.
    News,
    /// I am going for good.
    Leave,
    /// I am going, and may be back.
    Away,
}

/// The binary form. All numbers are little endian, a text is behind its length:
///
/// ```text
/// message   version u8 = 3, kind u8, joined u8, from identity, incarnation u64,
///           standing, founding u64, epoch u64, roster u64, marks u8, cleared u64,
///           [target text (ping request, indirect ack), incarnation u64 (indirect ack)],
///           count u16, update ×count
/// update    identity, state u8, incarnation u64, standing, marks u8
/// standing  life u64, sequence u32, epoch u64, target u64, attempt u32, copying u64, leavers u64,
///           stage (2 bits), holding, draining, gone (1 bit each) in u8
/// identity  id text, peer address text, client address text
/// text      length u16, UTF-8
/// ```
impl Message {
    /// Appends the message. Texts longer than allowed, which settings refuse, give a message
    /// that every receiver refuses; updates beyond [`UPDATES_MAX`] are left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([FORMAT, self.kind.code(), u8::from(self.joined)]);
        self.from.encode(out);
        out.extend(self.incarnation.to_le_bytes());
        self.standing.encode(out);
        out.extend(self.founding.0.to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.roster.0.to_le_bytes());
        out.push(self.marks);
        out.extend(self.cleared.get().to_le_bytes());
        match &self.kind {
            Kind::PingRequest { target } => put_text(out, target),
            Kind::IndirectAck {
                target,
                incarnation,
            } => {
                put_text(out, target);
                out.extend(incarnation.to_le_bytes());
            }
            Kind::Ping
            | Kind::Ack
            | Kind::Gossip
            | Kind::GossipReply
            | Kind::News
            | Kind::Leave
            | Kind::Away => {}
        }
        let count = self.updates.len().min(UPDATES_MAX);
        out.extend((count as u16).to_le_bytes());
        for update in &self.updates[..count] {
            update.identity.encode(out);
            out.push(update.state.code());
            out.extend(update.incarnation.to_le_bytes());
            update.standing.encode(out);
            out.push(update.marks);
        }
    }

    /// Reads a message that takes up all of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        if reader.u8()? != FORMAT {
            return Err(Malformed);
        }
        let code = reader.u8()?;
        let joined = reader.flag()?;
        let from = reader.identity()?;
        let incarnation = reader.u64()?;
        let standing = reader.standing()?;
        let founding = RosterId(reader.u64()?);
        let epoch = reader.u64()?;
        let roster = RosterId(reader.u64()?);
        let marks = reader.marks()?;
        let cleared = Version::new(reader.u64()?).ok_or(Malformed)?;
        let kind = reader.kind(code)?;
        let count = usize::from(reader.u16()?);
        if count > UPDATES_MAX {
            return Err(Malformed);
        }
        let mut updates = Vec::with_capacity(count.min(reader.0.len() / UPDATE_BYTES_MIN));
        for _ in 0..count {
            updates.push(reader.update()?);
        }
        reader.end()?;
        Ok(Self {
            from,
            incarnation,
            joined,
            standing,
            founding,
            epoch,
            roster,
            marks,
            cleared,
            kind,
            updates,
        })
    }
}

pub(super) const FORMAT: u8 = 3;
/// An identity of one letter without addresses, a state, an incarnation, a standing, marks.
const UPDATE_BYTES_MIN: usize = 3 + 2 + 2 + 1 + 8 + STANDING_BYTES + 1;
const STANDING_BYTES: usize = 8 + 4 + 8 + 8 + 4 + 8 + 8 + 1;

impl Kind {
    fn code(&self) -> u8 {
        match self {
            Self::Ping => 1,
            Self::Ack => 2,
            Self::PingRequest { .. } => 3,
            Self::IndirectAck { .. } => 4,
            Self::Gossip => 5,
            Self::GossipReply => 6,
            Self::Leave => 7,
            Self::News => 8,
            Self::Away => 9,
        }
    }
}

impl State {
    fn code(self) -> u8 {
        match self {
            Self::Alive => 1,
            Self::Suspect => 2,
            Self::Dead => 3,
            Self::Left => 4,
        }
    }

    fn from_code(code: u8) -> Result<Self, Malformed> {
        match code {
            1 => Ok(Self::Alive),
            2 => Ok(Self::Suspect),
            3 => Ok(Self::Dead),
            4 => Ok(Self::Left),
            _ => Err(Malformed),
        }
    }
}

impl Identity {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.id);
        put_text(out, &self.peer_address);
        put_text(out, &self.client_address);
    }
}

const STAGE: u8 = 3;
const HOLDING: u8 = 4;
const DRAINING: u8 = 8;
const GONE: u8 = 16;

impl Standing {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.life.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.extend(self.epoch.to_le_bytes());
        out.extend(self.target.0.to_le_bytes());
        out.extend(self.attempt.to_le_bytes());
        out.extend(self.copying.to_le_bytes());
        out.extend(self.leavers.to_le_bytes());
        let stage = match self.stage {
            Stage::Joint => 0,
            Stage::Switched => 1,
            Stage::Settled => 2,
            Stage::Ready => 3,
        };
        let holding = if self.holding { HOLDING } else { 0 };
        let draining = if self.draining { DRAINING } else { 0 };
        let gone = if self.gone { GONE } else { 0 };
        out.push(stage | holding | draining | gone);
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(text.as_bytes());
}

impl<'a> Reader<'a> {
    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn text(&mut self, bytes_max: usize) -> Result<Arc<str>, Malformed> {
        let length = usize::from(self.u16()?);
        if length > bytes_max {
            return Err(Malformed);
        }
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| Malformed)?;
        Ok(Arc::from(text))
    }

    fn id(&mut self) -> Result<Arc<str>, Malformed> {
        let id = self.text(ID_BYTES_MAX)?;
        if id.is_empty() {
            Err(Malformed)
        } else {
            Ok(id)
        }
    }

    fn identity(&mut self) -> Result<Identity, Malformed> {
        Ok(Identity {
            id: self.id()?,
            peer_address: self.text(ADDRESS_BYTES_MAX)?,
            client_address: self.text(ADDRESS_BYTES_MAX)?,
        })
    }

    fn kind(&mut self, code: u8) -> Result<Kind, Malformed> {
        Ok(match code {
            1 => Kind::Ping,
            2 => Kind::Ack,
            3 => Kind::PingRequest { target: self.id()? },
            4 => Kind::IndirectAck {
                target: self.id()?,
                incarnation: self.u64()?,
            },
            5 => Kind::Gossip,
            6 => Kind::GossipReply,
            7 => Kind::Leave,
            8 => Kind::News,
            9 => Kind::Away,
            _ => return Err(Malformed),
        })
    }

    fn update(&mut self) -> Result<Update, Malformed> {
        Ok(Update {
            identity: self.identity()?,
            state: State::from_code(self.u8()?)?,
            incarnation: self.u64()?,
            standing: self.standing()?,
            marks: self.marks()?,
        })
    }

    fn standing(&mut self) -> Result<Standing, Malformed> {
        let (life, sequence) = (self.u64()?, self.u32()?);
        let (epoch, target) = (self.u64()?, RosterId(self.u64()?));
        let (attempt, copying, leavers) = (self.u32()?, self.u64()?, self.u64()?);
        let flags = self.u8()?;
        let stage = match flags & STAGE {
            0 => Stage::Joint,
            1 => Stage::Switched,
            2 => Stage::Settled,
            _ => Stage::Ready,
        };
        if flags & !(STAGE | HOLDING | DRAINING | GONE) != 0 {
            return Err(Malformed);
        }
        Ok(Standing {
            life,
            sequence,
            epoch,
            target,
            stage,
            attempt,
            copying,
            holding: flags & HOLDING != 0,
            draining: flags & DRAINING != 0,
            gone: flags & GONE != 0,
            leavers,
        })
    }

    fn marks(&mut self) -> Result<u8, Malformed> {
        let marks = self.u8()?;
        (marks & !MARKS == 0).then_some(marks).ok_or(Malformed)
    }
}
