//! What is asked of the servers, by name.

use serde::Serialize;

use crate::load::Load;
use crate::popularity::Popularity;

/// Bytes of all values together, at most: of large ones there are fewer keys.
const VALUES_BYTES_MAX: usize = 128 << 20;

/// One way to load a server.
#[derive(Debug, Serialize)]
pub struct Scenario {
    /// By which it is chosen.
    pub name: &'static str,
    /// Whether only `--long` runs it unasked.
    pub long: bool,
    /// How many of a hundred requests write.
    pub put_percent: u32,
    /// The exponent of Zipf's law, or uniform.
    pub zipf: Option<f64>,
    /// Bytes of each value.
    pub value_bytes: usize,
    /// Keys, if their values are small enough.
    pub keys: usize,
    /// Connections.
    pub connections: usize,
    /// Requests outstanding on each, at most.
    pub pipeline: usize,
    /// Requests per second; none means a closed loop.
    pub rates: &'static [Option<u32>],
}

const GET: Scenario = Scenario {
    name: "get",
    long: false,
    put_percent: 0,
    zipf: None,
    value_bytes: 100,
    keys: 10_000,
    connections: 64,
    pipeline: 1,
    rates: &[],
};

const PUT: Scenario = Scenario {
    name: "put",
    put_percent: 100,
    ..GET
};

/// 90 reads to 10 writes of keys of very different popularity.
const MIX_ZIPF: Scenario = Scenario {
    name: "mix-zipf",
    put_percent: 10,
    zipf: Some(0.99),
    ..GET
};

const RATES: &[Option<u32>] = &[
    Some(20_000),
    Some(50_000),
    Some(80_000),
    Some(110_000),
    Some(140_000),
];

const RATES_PIPELINED: &[Option<u32>] = &[
    Some(100_000),
    Some(200_000),
    Some(400_000),
    Some(600_000),
    Some(800_000),
];

/// All of them, in the order they are run in.
#[rustfmt::skip]
pub const SCENARIOS: &[Scenario] = &[
    GET,
    Scenario { name: "get-p16", pipeline: 16, ..GET },
    PUT,
    Scenario { name: "put-p16", pipeline: 16, ..PUT },
    MIX_ZIPF,
    Scenario { name: "get-16k", value_bytes: 16 << 10, ..GET },
    Scenario { name: "get-c1", connections: 1, ..GET },
    Scenario { name: "get-c1000", connections: 1000, ..GET },
    Scenario { name: "rate-get", rates: RATES, ..GET },

    Scenario { name: "get-16b", long: true, value_bytes: 16, ..GET },
    Scenario { name: "get-1k", long: true, value_bytes: 1 << 10, ..GET },
    Scenario { name: "get-4k", long: true, value_bytes: 4 << 10, ..GET },
    Scenario { name: "get-8k", long: true, value_bytes: 8 << 10, ..GET },
    Scenario { name: "get-64k", long: true, value_bytes: 64 << 10, ..GET },
    Scenario { name: "put-16b", long: true, value_bytes: 16, ..PUT },
    Scenario { name: "put-1k", long: true, value_bytes: 1 << 10, ..PUT },
    Scenario { name: "put-16k", long: true, value_bytes: 16 << 10, ..PUT },
    Scenario { name: "put-64k", long: true, value_bytes: 64 << 10, ..PUT },
    Scenario { name: "get-zipf", long: true, zipf: Some(0.99), ..GET },
    Scenario { name: "get-zipf-p16", long: true, zipf: Some(0.99), pipeline: 16, ..GET },
    Scenario { name: "get-million", long: true, keys: 1_000_000, ..GET },
    Scenario { name: "get-million-zipf", long: true, keys: 1_000_000, zipf: Some(0.99), ..GET },
    Scenario { name: "get-million-p16", long: true, keys: 1_000_000, pipeline: 16, ..GET },
    Scenario { name: "mix", long: true, put_percent: 10, ..GET },
    Scenario { name: "mix-half", long: true, put_percent: 50, ..GET },
    Scenario { name: "mix-zipf-p16", long: true, pipeline: 16, ..MIX_ZIPF },
    Scenario { name: "mix-zipf-64k-p16", long: true, pipeline: 16, value_bytes: 64 << 10, ..MIX_ZIPF },
    Scenario { name: "mix-zipf-c1000", long: true, connections: 1000, ..MIX_ZIPF },
    Scenario { name: "get-c8", long: true, connections: 8, ..GET },
    Scenario { name: "get-c256", long: true, connections: 256, ..GET },
    Scenario { name: "get-c1-p16", long: true, connections: 1, pipeline: 16, ..GET },
    Scenario { name: "get-c1000-p16", long: true, connections: 1000, pipeline: 16, ..GET },
    Scenario { name: "put-c1000", long: true, connections: 1000, ..PUT },
    Scenario { name: "rate-put", long: true, rates: RATES, ..PUT },
    Scenario { name: "rate-mix-zipf", long: true, rates: RATES, ..MIX_ZIPF },
    Scenario { name: "rate-get-c1000", long: true, rates: RATES, connections: 1000, ..GET },
    Scenario { name: "rate-get-p16", long: true, rates: RATES_PIPELINED, pipeline: 16, ..GET },
];

impl Scenario {
    /// The one of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Its rates; one `None` for a closed loop.
    pub(super) fn rates_or_none(&self) -> &'static [Option<u32>] {
        match self.rates.is_empty() {
            true => &[None],
            false => self.rates,
        }
    }

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.keys.min(VALUES_BYTES_MAX / self.value_bytes.max(1))
    }

    /// The load, without what depends on the server.
    pub fn load(&self) -> Load {
        Load {
            put_percent: self.put_percent,
            popularity: self.zipf.map_or(Popularity::Uniform, Popularity::Zipf),
            connections: self.connections,
            pipeline: self.pipeline,
            keys: (0..self.keys()).collect(),
            value_bytes: self.value_bytes,
            ..Load::default()
        }
    }

    /// In words.
    pub fn describe(&self) -> String {
        let operations = match self.put_percent {
            0 => "GET".to_owned(),
            100.. => "PUT".to_owned(),
            puts => format!("{} % GET, {puts} % PUT", 100 - puts),
        };
        let popularity = match self.zipf {
            None => "uniform".to_owned(),
            Some(exponent) => format!("Zipf {exponent}"),
        };
        let value = match self.value_bytes {
            bytes if bytes >= 1024 && bytes.is_multiple_of(1024) => format!("{} KiB", bytes >> 10),
            bytes => format!("{bytes} B"),
        };
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            count => format!("{count} connections"),
        };
        format!(
            "{operations} of {value}, {} keys ({popularity}), {connections}, pipelining {}",
            self.keys(),
            self.pipeline
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_is_that_of_one_scenario() {
        let names: BTreeSet<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }

    #[test]
    fn what_the_campaign_asks_for_is_there() {
        let any = |holds: fn(&Scenario) -> bool| assert!(SCENARIOS.iter().any(holds));
        any(|scenario| scenario.value_bytes == 16);
        any(|scenario| scenario.value_bytes == 64 << 10);
        any(|scenario| scenario.connections == 1);
        any(|scenario| scenario.connections == 1000);
        any(|scenario| scenario.put_percent == 10);
        any(|scenario| scenario.zipf == Some(0.99) && scenario.pipeline == 16);
        any(|scenario| !scenario.long && !scenario.rates.is_empty());
    }

    #[test]
    fn large_values_have_fewer_keys() {
        let large = Scenario {
            value_bytes: 64 << 10,
            ..GET
        };
        assert_eq!((GET.keys(), large.keys()), (10_000, 2048));
        assert_eq!(
            large.describe(),
            "GET of 64 KiB, 2048 keys (uniform), 64 connections, pipelining 1"
        );
    }
}
