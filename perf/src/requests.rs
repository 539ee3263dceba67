//! The requests of one connection, built before the clock starts.

use std::io;
use std::ops::Range;

use crate::checked::Random;
use crate::load::Load;
use crate::popularity::{Popularity, Sampler};

/// Rounds of requests of a connection that asks for one key after the other.
const ROUNDS_IN_TURN: usize = 32;

/// Requests drawn by chance, at least, over all connections: so many, and this many for each
/// key. They repeat after that.
const DRAWN_MIN: usize = 1 << 16;
const DRAWN_PER_KEY: usize = 2;

/// Bytes of the requests of all connections. Of larger ones fewer are drawn; one round
/// for each connection must fit.
const BYTES_MAX: usize = 512 << 20;

/// Bytes of a request but for its value, about.
const HEAD_BYTES: usize = 80;

/// Requests that are sent one after the other, and from the start again.
#[derive(Debug, Default)]
pub struct Requests {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    /// Whether each stores a value.
    puts: Vec<bool>,
}

impl Requests {
    /// Draws those of the connection with this number, which uses these keys, as many as the
    /// sampler has.
    ///
    /// # Errors
    ///
    /// When they would take too much memory, or there are no keys.
    pub fn draw(
        load: &Load,
        connection: usize,
        keys: &[usize],
        sampler: &Sampler,
    ) -> io::Result<Self> {
        if keys.is_empty() {
            return Err(io::Error::other("no key to ask for"));
        }
        let count = rounds(load)? * load.pipeline;
        let mut random = Random::new(connection as u64);
        // Connections that ask in turn begin at different keys.
        let mut turn = connection * 7919;
        let mut requests = Self::default();
        for _ in 0..count {
            let key = keys[sampler.draw(&mut turn, &mut random)];
            let put = match load.put_percent {
                0 => false,
                100.. => true,
                percent => random.below(100) < percent as usize,
            };
            match put {
                true => {
                    let out = &mut requests.bytes;
                    load.protocol.write_put(key, load.value_bytes, out);
                }
                false => load.protocol.write_get(key, &mut requests.bytes),
            }
            requests.ends.push(requests.bytes.len());
            requests.puts.push(put);
        }
        Ok(requests)
    }

    /// How many there are before they repeat.
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Where the bytes of these lie.
    pub fn place(&self, requests: Range<usize>) -> Range<usize> {
        let end_of = |count: usize| match count {
            0 => 0,
            _ => self.ends[count - 1],
        };
        end_of(requests.start)..end_of(requests.end)
    }

    /// The bytes of a place.
    pub fn bytes(&self, place: Range<usize>) -> &[u8] {
        &self.bytes[place]
    }

    /// Whether the request with this number stores a value.
    #[inline]
    pub fn is_put(&self, request: usize) -> bool {
        self.puts[request]
    }
}

/// How many rounds of requests each connection has.
fn rounds(load: &Load) -> io::Result<usize> {
    let per_round = load.connections * load.pipeline;
    let value_bytes = load.value_bytes * load.put_percent as usize / 100;
    let round_bytes = per_round * (HEAD_BYTES + value_bytes);
    if round_bytes > BYTES_MAX {
        return Err(io::Error::other(format!(
            "one round of requests takes {round_bytes} bytes; at most {BYTES_MAX}"
        )));
    }
    Ok(match load.popularity {
        Popularity::InTurn => ROUNDS_IN_TURN,
        Popularity::Uniform | Popularity::Zipf(_) => {
            let wanted = DRAWN_MIN.max(DRAWN_PER_KEY * load.keys.len());
            wanted.div_ceil(per_round).min(BYTES_MAX / round_bytes)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(load: &Load, connection: usize) -> io::Result<Requests> {
        let sampler = Sampler::new(load.popularity, load.keys.len());
        Requests::draw(load, connection, &load.keys, &sampler)
    }

    #[test]
    fn a_mix_has_its_share_of_puts_and_each_request_its_bytes() {
        let load = Load {
            connections: 4,
            pipeline: 16,
            put_percent: 10,
            value_bytes: 33,
            popularity: Popularity::Uniform,
            keys: (0..1000).collect(),
            ..Load::default()
        };
        let requests = draw(&load, 0).unwrap();
        assert_eq!(requests.count(), DRAWN_MIN / 4);
        let puts = (0..requests.count()).filter(|&index| requests.is_put(index));
        let share = puts.count() as f64 / requests.count() as f64;
        assert!((0.08..0.12).contains(&share), "{share}");
        for index in 0..requests.count() {
            let bytes = requests.bytes(requests.place(index..index + 1));
            let (start, end): (&[u8], &[u8]) = match requests.is_put(index) {
                true => (b"PUT ", b"v"),
                false => (b"GET ", b"\r\n\r\n"),
            };
            assert!(bytes.starts_with(start) && bytes.ends_with(end));
        }
    }

    #[test]
    fn every_connection_draws_others_and_the_same_again() {
        let load = Load {
            popularity: Popularity::Zipf(0.99),
            ..Load::default()
        };
        let bytes = |connection| {
            let requests = draw(&load, connection).unwrap();
            requests.bytes(requests.place(0..requests.count())).to_vec()
        };
        assert_eq!(bytes(3), bytes(3));
        assert_ne!(bytes(3), bytes(4));
    }

    #[test]
    fn requests_that_do_not_fit_in_memory_are_refused() {
        let load = Load {
            connections: 1000,
            pipeline: 16,
            put_percent: 100,
            value_bytes: 64 << 10,
            ..Load::default()
        };
        assert!(draw(&load, 0).is_err());
    }
}
