//! Membership messages as bytes: a version, the kind, the sender, its updates. Strings
//! stand behind their length (two bytes), numbers are little endian.

use std::sync::Arc;

use super::{Identity, Kind, Message, State, UPDATES_MAX, Update};

const FORMAT: u8 = 1;
const TEXT_BYTES_MAX: usize = 512;

/// The bytes are no membership message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl Message {
    /// Appends the message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, target) = match &self.kind {
            Kind::Ping => (0, None),
            Kind::Ack => (1, None),
            Kind::PingRequest { target } => (2, Some(target)),
            Kind::IndirectAck { target } => (3, Some(target)),
            Kind::Gossip => (4, None),
            Kind::GossipReply => (5, None),
            Kind::Leave => (6, None),
        };
        out.extend_from_slice(&[FORMAT, kind]);
        put_text(out, target.map_or("", |target| target));
        put_identity(out, &self.from);
        out.extend_from_slice(&self.incarnation.to_le_bytes());
        let updates = &self.updates[..self.updates.len().min(UPDATES_MAX)];
        out.extend_from_slice(&(updates.len() as u16).to_le_bytes());
        for update in updates {
            put_identity(out, &update.identity);
            out.push(update.state.rank());
            out.extend_from_slice(&update.incarnation.to_le_bytes());
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    ///
    /// [`Malformed`], also when something follows it.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(bytes);
        let [format, kind] = reader.array()?;
        if format != FORMAT {
            return Err(Malformed);
        }
        let target = reader.text()?;
        let kind = match kind {
            0 => Kind::Ping,
            1 => Kind::Ack,
            2 => Kind::PingRequest { target },
            3 => Kind::IndirectAck { target },
            4 => Kind::Gossip,
            5 => Kind::GossipReply,
            6 => Kind::Leave,
            _ => return Err(Malformed),
        };
        let from = reader.identity()?;
        let incarnation = reader.incarnation()?;
        let count = usize::from(u16::from_le_bytes(reader.array()?));
        if count > UPDATES_MAX {
            return Err(Malformed);
        }
        let mut updates = Vec::new();
        for _ in 0..count {
            let identity = reader.identity()?;
            let [state] = reader.array()?;
            updates.push(Update {
                identity,
                state: match state {
                    0 => State::Alive,
                    1 => State::Suspect,
                    2 => State::Dead,
                    3 => State::Left,
                    _ => return Err(Malformed),
                },
                incarnation: reader.incarnation()?,
            });
        }
        if !reader.0.is_empty() {
            return Err(Malformed);
        }
        Ok(Self {
            from,
            incarnation,
            kind,
            updates,
        })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    put_text(out, &identity.id);
    put_text(out, &identity.peer_address);
    put_text(out, &identity.client_address);
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// An incarnation that can still be exceeded.
    fn incarnation(&mut self) -> Result<u64, Malformed> {
        let incarnation = u64::from_le_bytes(self.array()?);
        (incarnation < 1 << 53)
            .then_some(incarnation)
            .ok_or(Malformed)
    }

    fn text(&mut self) -> Result<Arc<str>, Malformed> {
        let length = usize::from(u16::from_le_bytes(self.array()?));
        if length > TEXT_BYTES_MAX {
            return Err(Malformed);
        }
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        std::str::from_utf8(taken)
            .map(Arc::from)
            .map_err(|_| Malformed)
    }

    fn identity(&mut self) -> Result<Identity, Malformed> {
        Ok(Identity {
            id: self.text()?,
            peer_address: self.text()?,
            client_address: self.text()?,
        })
    }
}
