//! Every setting of a node, once: name, default, meaning, and what it accepts.
//!
//! [`TABLE`] is the list; `--help`, the parser and the tests are made from it. A
//! value comes from a flag, else from an environment variable, else from the
//! default. Nothing is guessed: a value that does not parse or is out of range, a
//! flag or a `HYPERCACHE_` variable that does not exist, stop the start with one
//! line that names the setting, the value and what was expected. Values of
//! secrets are never repeated. The standard `OTEL_` variables are read besides, from the
//! environment only, by [`otlp::Config`].

pub mod security;
mod table;
mod value;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

pub use table::{Setting, TABLE};
pub use value::{ByteSize, ListenAddr, MemoryLimit, Seed};

use crate::cluster::Consistency;
use crate::runtime::DriverChoice;
use crate::store::EvictionPolicy;
use crate::telemetry::otlp;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To run a node.
    Run(Box<Settings>),
    /// To check the settings only.
    CheckConfig(Box<Settings>),
    /// This text, the help.
    Help(String),
    /// This text, the version.
    Version(String),
}

/// Why the settings are refused, in one line: control characters in what was given are
/// shown as escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError(String);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|char| {
            if char.is_control() {
                write!(f, "{}", char.escape_default())
            } else {
                f.write_char(char)
            }
        })
    }
}

impl std::error::Error for SettingsError {}

/// The settings of a node, checked. Fields are named like their settings.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Settings {
    pub node_id: String,
    pub api_addr: ListenAddr,
    pub mgmt_addr: ListenAddr,
    pub dist_addr: ListenAddr,
    pub replication: u32,
    pub capacity: usize,
    pub log_level: tracing::Level,
    /// `None` follows the affinity mask and the quota.
    pub cores: Option<usize>,
    /// `None` is what the quota says.
    pub cpu_limit: Option<u32>,
    pub require_exclusive_cpus: bool,
    pub io_driver: DriverChoice,
    pub memory_limit: MemoryLimit,
    pub eviction: EvictionPolicy,
    pub value_limit: ByteSize,
    pub body_limit: ByteSize,
    pub head_limit: ByteSize,
    pub target_limit: ByteSize,
    pub headers_limit: usize,
    pub batch_limit: usize,
    pub connections: usize,
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    pub idle_timeout: Duration,
    pub shutdown_timeout: Duration,
    pub mailbox_depth: usize,
    pub hot_copies: ByteSize,
    pub pipeline_depth: usize,
    pub tombstone_ttl: Duration,
    pub tombstones: usize,
    pub seeds: Vec<Seed>,
    pub heartbeat: Duration,
    pub indirect_probe_k: usize,
    pub gossip_interval: Duration,
    pub hint_ttl: Duration,
    pub hint_replay: Duration,
    pub hints: usize,
    pub hints_per_node: usize,
    pub hint_bytes: ByteSize,
    pub hint_bytes_per_node: ByteSize,
    pub read_consistency: Consistency,
    pub write_consistency: Consistency,
    pub peer_timeout: Duration,
    pub clock_skew: Duration,
    pub dead_grace: Duration,
    pub drop_grace: Duration,
    pub transfer_rate: ByteSize,
    pub join_timeout: Duration,
    pub bootstrap_timeout: Duration,
    pub sync_interval: Duration,
    pub rebalance_interval: Duration,
    pub buffer_limit: ByteSize,
    /// Zero for none.
    pub slow_request: Duration,
    pub slow_request_logs: u32,
    /// Every setting that is no secret, by its variable, as it was given or as its default
    /// is.
    pub effective: Vec<(&'static str, String)>,
    pub security: security::Security,
    /// What the standard `OTEL_` variables ask for.
    pub telemetry: otlp::Config,
}

impl Settings {
    /// Reads the command line (without the program's name) and the environment.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn from(
        args: impl IntoIterator<Item = OsString>,
        env: impl IntoIterator<Item = (OsString, OsString)>,
        hostname: &str,
    ) -> Result<Invocation, SettingsError> {
        let mut given = Given::default();
        let env: Vec<(OsString, OsString)> = env.into_iter().collect();
        let standard = otlp::Config::from_env(env.iter().map(|(name, value)| (name, value)));
        given.read_environment(env)?;
        let settings = |given: Given| {
            let telemetry = standard.map_err(|error| SettingsError(error.to_string()));
            given.settings(hostname, telemetry).map(Box::new)
        };
        match given.read_arguments(args)? {
            Asked::Help => Ok(Invocation::Help(table::help())),
            Asked::Version => Ok(Invocation::Version(format!(
                "hypercache {}\n",
                env!("CARGO_PKG_VERSION")
            ))),
            Asked::Check => settings(given).map(Invocation::CheckConfig),
            Asked::Run => settings(given).map(Invocation::Run),
        }
    }
}

enum Asked {
    Run,
    Check,
    Help,
    Version,
}

/// The values that were given, by the name of the variable, each with the name
/// the user gave it by.
#[derive(Default)]
struct Given(HashMap<&'static str, (String, String)>);

impl Given {
    fn read_environment(
        &mut self,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), SettingsError> {
        for (name, value) in env {
            let Some(name) = name.to_str().filter(|name| name.starts_with("HYPERCACHE_")) else {
                continue;
            };
            match TABLE.iter().find(|setting| setting.variable == name) {
                Some(setting) => self.take(setting, name.to_owned(), value)?,
                None if table::is_service_link(name) => {}
                None => {
                    let nearest = table::nearest(name).variable;
                    return Err(SettingsError(format!(
                        "{name}: there is no such setting; did you mean {nearest}?"
                    )));
                }
            }
        }
        Ok(())
    }

    fn read_arguments(
        &mut self,
        args: impl IntoIterator<Item = OsString>,
    ) -> Result<Asked, SettingsError> {
        let mut asked = Asked::Run;
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy().into_owned();
            match text.as_str() {
                "--help" | "-h" => return Ok(Asked::Help),
                "--version" | "-V" => return Ok(Asked::Version),
                "--check-config" => {
                    asked = Asked::Check;
                    continue;
                }
                _ => {}
            }
            let (flag, inline) = match text.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(OsString::from(value))),
                None => (text, None),
            };
            let Some(setting) = TABLE.iter().find(|setting| setting.flag() == flag) else {
                // What is no flag may be a secret that slipped.
                let shown = if flag.starts_with("--") {
                    &flag
                } else {
                    "an argument"
                };
                return Err(SettingsError(format!(
                    "{shown}: there is no such flag; --help lists them all"
                )));
            };
            // A flag whose value was forgotten must not swallow the next one, which may hold
            // a secret. A value that begins so can be given behind `=`.
            let is_value = |next: &OsString| !next.as_encoded_bytes().starts_with(b"--");
            let Some(value) = inline.or_else(|| args.next().filter(is_value)) else {
                return Err(SettingsError(format!(
                    "{flag}: the value is missing; expected {}",
                    setting.expected
                )));
            };
            self.take(setting, flag, value)?;
        }
        Ok(asked)
    }

    fn take(
        &mut self,
        setting: &'static Setting,
        given_as: String,
        value: OsString,
    ) -> Result<(), SettingsError> {
        let value = value.into_string().map_err(|value| {
            let value = if setting.secret {
                "…".into()
            } else {
                value.to_string_lossy().into_owned()
            };
            SettingsError(format!(
                "{given_as}={value:?}: not UTF-8; expected {}",
                setting.expected
            ))
        })?;
        self.0.insert(setting.variable, (given_as, value));
        Ok(())
    }

    /// One setting, parsed by `parse`.
    fn get<T>(
        &self,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingsError> {
        let setting = table::named(variable);
        let (given_as, value) = match self.0.get(variable) {
            Some((given_as, value)) => (given_as.as_str(), value.as_str()),
            None => (variable, setting.default),
        };
        parse(value).ok_or_else(|| {
            let shown = if setting.secret { "…" } else { value };
            SettingsError(format!("{given_as}={shown}: expected {}", setting.expected))
        })
    }

    /// What is in force, without secrets.
    fn effective(&self) -> Vec<(&'static str, String)> {
        let open = TABLE.iter().filter(|setting| !setting.secret);
        let value = |setting: &Setting| {
            let given = self.0.get(setting.variable).map(|(_, value)| &**value);
            given.unwrap_or(setting.default).to_owned()
        };
        open.map(|setting| (setting.variable, value(setting)))
            .collect()
    }

    /// Whether a setting was given at all.
    fn has(&self, variable: &'static str) -> bool {
        self.0.contains_key(variable)
    }

    fn interval(&self, variable: &'static str) -> Result<Duration, SettingsError> {
        use value::{DAY, MILLISECOND, duration};
        self.get(variable, |value| duration(value, MILLISECOND..=DAY))
    }

    fn text(&self, variable: &'static str) -> Result<String, SettingsError> {
        self.get(variable, |value| Some(value.to_owned()))
    }

    fn settings(
        &self,
        hostname: &str,
        telemetry: Result<otlp::Config, SettingsError>,
    ) -> Result<Settings, SettingsError> {
        use value::*;
        let settings = Settings {
            node_id: self.get("HYPERCACHE_NODE_ID", |value| {
                node_id(if value.is_empty() { hostname } else { value })
            })?,
            api_addr: self.get("HYPERCACHE_API_ADDR", ListenAddr::parse)?,
            mgmt_addr: self.get("HYPERCACHE_MGMT_ADDR", ListenAddr::parse)?,
            dist_addr: self.get("HYPERCACHE_DIST_ADDR", ListenAddr::parse)?,
            replication: self.get("HYPERCACHE_REPLICATION", |v| number(v, 1..=16))? as u32,
            capacity: self.get("HYPERCACHE_CAPACITY", |v| number(v, 0..=1 << 40))? as usize,
            log_level: self.get("HYPERCACHE_LOG_LEVEL", log_level)?,
            cores: self
                .get("HYPERCACHE_CORES", |v| auto(v, |v| number(v, 1..=1024)))?
                .map(|n| n as usize),
            cpu_limit: self
                .get("HYPERCACHE_CPU_LIMIT", |v| auto(v, |v| number(v, 1..=1024)))?
                .map(|n| n as u32),
            require_exclusive_cpus: self.get("HYPERCACHE_REQUIRE_EXCLUSIVE_CPUS", boolean)?,
            io_driver: self.get("HYPERCACHE_IO_DRIVER", io_driver)?,
            memory_limit: self.get("HYPERCACHE_MEMORY_LIMIT", MemoryLimit::parse)?,
            eviction: self.get("HYPERCACHE_EVICTION", |v| v.parse().ok())?,
            value_limit: self.get("HYPERCACHE_VALUE_LIMIT", |v| bytes(v, 1..=1 << 30))?,
            body_limit: self.get("HYPERCACHE_BODY_LIMIT", |v| bytes(v, 1..=1 << 30))?,
            head_limit: self.get("HYPERCACHE_HEAD_LIMIT", |v| bytes(v, 1 << 10..=1 << 20))?,
            target_limit: self.get("HYPERCACHE_TARGET_LIMIT", |v| bytes(v, 256..=1 << 20))?,
            headers_limit: self.get("HYPERCACHE_HEADERS_LIMIT", |v| number(v, 1..=128))? as usize,
            batch_limit: self.get("HYPERCACHE_BATCH_LIMIT", |v| number(v, 1..=1 << 20))? as usize,
            connections: self.get("HYPERCACHE_CONNECTIONS", |v| number(v, 1..=1 << 24))? as usize,
            read_timeout: self.interval("HYPERCACHE_READ_TIMEOUT")?,
            write_timeout: self.interval("HYPERCACHE_WRITE_TIMEOUT")?,
            idle_timeout: self.interval("HYPERCACHE_IDLE_TIMEOUT")?,
            shutdown_timeout: self.interval("HYPERCACHE_SHUTDOWN_TIMEOUT")?,
            mailbox_depth: self.get("HYPERCACHE_MAILBOX_DEPTH", |v| number(v, 1..=1 << 16))?
                as usize,
            hot_copies: self.get("HYPERCACHE_HOT_COPIES", |v| bytes(v, 0..=1 << 30))?,
            pipeline_depth: self.get("HYPERCACHE_PIPELINE_DEPTH", |v| number(v, 1..=4096))?
                as usize,
            tombstone_ttl: self.interval("HYPERCACHE_TOMBSTONE_TTL")?,
            tombstones: self.get("HYPERCACHE_TOMBSTONES", |v| number(v, 1..=1 << 30))? as usize,
            seeds: self.get("HYPERCACHE_SEEDS", seeds)?,
            heartbeat: self.interval("HYPERCACHE_HEARTBEAT")?,
            indirect_probe_k: self.get("HYPERCACHE_INDIRECT_PROBE_K", |v| number(v, 0..=64))?
                as usize,
            gossip_interval: self.interval("HYPERCACHE_GOSSIP_INTERVAL")?,
            hint_ttl: self.interval("HYPERCACHE_HINT_TTL")?,
            hint_replay: self.interval("HYPERCACHE_HINT_REPLAY")?,
            hints: self.get("HYPERCACHE_HINTS", |v| number(v, 1..=1 << 30))? as usize,
            hints_per_node: self.get("HYPERCACHE_HINTS_PER_NODE", |v| number(v, 1..=1 << 30))?
                as usize,
            hint_bytes: self.get("HYPERCACHE_HINT_BYTES", |v| bytes(v, 1..=1 << 40))?,
            hint_bytes_per_node: self
                .get("HYPERCACHE_HINT_BYTES_PER_NODE", |v| bytes(v, 1..=1 << 40))?,
            read_consistency: self.get("HYPERCACHE_READ_CONSISTENCY", |v| {
                Consistency::parse(v.as_bytes())
            })?,
            write_consistency: self.get("HYPERCACHE_WRITE_CONSISTENCY", |v| {
                Consistency::parse(v.as_bytes())
            })?,
            peer_timeout: self.interval("HYPERCACHE_PEER_TIMEOUT")?,
            clock_skew: self.interval("HYPERCACHE_CLOCK_SKEW")?,
            dead_grace: self.interval("HYPERCACHE_DEAD_GRACE")?,
            transfer_rate: self.get("HYPERCACHE_TRANSFER_RATE", |v| bytes(v, 0..=1 << 40))?,
            drop_grace: self.interval("HYPERCACHE_DROP_GRACE")?,
            join_timeout: self.interval("HYPERCACHE_JOIN_TIMEOUT")?,
            bootstrap_timeout: self.interval("HYPERCACHE_BOOTSTRAP_TIMEOUT")?,
            sync_interval: self.interval("HYPERCACHE_SYNC_INTERVAL")?,
            rebalance_interval: self.interval("HYPERCACHE_REBALANCE_INTERVAL")?,
            buffer_limit: self.get("HYPERCACHE_BUFFER_LIMIT", |v| bytes(v, 1 << 20..=1 << 40))?,
            slow_request: self.get("HYPERCACHE_SLOW_REQUEST", |v| {
                duration(v, Duration::ZERO..=DAY)
            })?,
            slow_request_logs: self.get("HYPERCACHE_SLOW_REQUEST_LOGS", |v| number(v, 0..=1000))?
                as u32,
            effective: self.effective(),
            security: security::Security::read(self)?,
            telemetry: telemetry?,
        };
        if settings.tombstone_ttl <= settings.hint_ttl {
            return Err(SettingsError(format!(
                "HYPERCACHE_TOMBSTONE_TTL={}: expected more than HYPERCACHE_HINT_TTL, \
                 or a late hint could bring a deleted key back",
                crate::duration::GoText(settings.tombstone_ttl)
            )));
        }
        let least = BUFFERED_BODIES_MIN * settings.body_limit.0;
        if settings.buffer_limit.0 < least {
            return Err(SettingsError(format!(
                "HYPERCACHE_BUFFER_LIMIT={}: expected at least {BUFFERED_BODIES_MIN} times \
                 HYPERCACHE_BODY_LIMIT, {least} bytes, or large requests could never be served",
                settings.buffer_limit.0
            )));
        }
        Ok(settings)
    }
}

/// How many of the largest bodies must find room: a batch request takes three times its
/// body, and a part of the room is for small requests only.
const BUFFERED_BODIES_MIN: u64 = 4;

#[cfg(test)]
mod tests;
