//! What the standard `OTEL_` variables ask for.
//!
//! Read from the environment and from nowhere else, as every program that speaks OTLP reads
//! them. [`VARIABLES`] lists those that are. One of them with a value that it cannot have
//! stops the start, as ours do; `OTEL_SDK_DISABLED=true` has all others passed over.
//! Variables that say more than is done here (client certificates, other aggregations) are
//! in the list too, so that nobody believes they were heeded.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::{HeaderName, HeaderValue, Uri};

use crate::http::percent_decode;
use crate::telemetry::trace::Sampler;

/// A variable that is read.
#[derive(Debug)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// Its default, as one would write it; empty for none.
    pub default: &'static str,
    /// What it accepts, to follow "expected".
    pub expected: &'static str,
    /// Whether its value must never be shown.
    pub secret: bool,
}

const fn variable(name: &'static str, default: &'static str, expected: &'static str) -> Variable {
    Variable {
        name,
        default,
        expected,
        secret: false,
    }
}

const fn secret(name: &'static str, expected: &'static str) -> Variable {
    Variable {
        name,
        default: "",
        expected,
        secret: true,
    }
}

const URL: &str = "an http or https URL without user, query and fragment";
const EXPORTER: &str = "otlp or none";
const PROTOCOL: &str = "http/protobuf, which is the only protocol spoken";
const HEADERS: &str = "name=value pairs with commas between them, values percent-encoded";
const COMPRESSION: &str = "none, which is the only compression offered";
const MILLISECONDS: &str = "whole milliseconds, from 1 to 86400000";
const FILE: &str = "the path of a file of PEM certificates";
const NOTHING: &str = "nothing: client certificates are not shown to collectors";

/// All variables that are read. See the module's comment.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    variable("OTEL_SDK_DISABLED", "false", "true or false"),
    variable("OTEL_EXPORTER_OTLP_ENDPOINT", "", URL),
    variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "", URL),
    variable("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "", URL),
    variable("OTEL_TRACES_EXPORTER", "otlp", EXPORTER),
    variable("OTEL_METRICS_EXPORTER", "otlp", EXPORTER),
    variable("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", PROTOCOL),
    variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf", PROTOCOL),
    variable("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/protobuf", PROTOCOL),
    secret("OTEL_EXPORTER_OTLP_HEADERS", HEADERS),
    secret("OTEL_EXPORTER_OTLP_TRACES_HEADERS", HEADERS),
    secret("OTEL_EXPORTER_OTLP_METRICS_HEADERS", HEADERS),
    variable("OTEL_EXPORTER_OTLP_TIMEOUT", "10000", MILLISECONDS),
    variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "10000", MILLISECONDS),
    variable("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "10000", MILLISECONDS),
    variable("OTEL_EXPORTER_OTLP_COMPRESSION", "none", COMPRESSION),
    variable("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none", COMPRESSION),
    variable("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none", COMPRESSION),
    variable("OTEL_EXPORTER_OTLP_CERTIFICATE", "", FILE),
    variable("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "", FILE),
    variable("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "", FILE),
    variable("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "", NOTHING),
    variable("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "", NOTHING),
    variable("OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE", "", NOTHING),
    variable("OTEL_EXPORTER_OTLP_CLIENT_KEY", "", NOTHING),
    variable("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "", NOTHING),
    variable("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "", NOTHING),
    variable("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative", "cumulative"),
    variable("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "explicit_bucket_histogram", "explicit_bucket_histogram"),
    variable("OTEL_SERVICE_NAME", "hypercache", "a name"),
    variable("OTEL_RESOURCE_ATTRIBUTES", "", HEADERS),
    variable("OTEL_TRACES_SAMPLER", "parentbased_traceidratio", "always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or parentbased_traceidratio"),
    variable("OTEL_TRACES_SAMPLER_ARG", "0.01", "a number from 0 to 1"),
    variable("OTEL_METRIC_EXPORT_INTERVAL", "60000", MILLISECONDS),
    variable("OTEL_METRIC_EXPORT_TIMEOUT", "30000", MILLISECONDS),
    variable("OTEL_BSP_SCHEDULE_DELAY", "5000", MILLISECONDS),
    variable("OTEL_BSP_EXPORT_TIMEOUT", "30000", MILLISECONDS),
    variable("OTEL_BSP_MAX_QUEUE_SIZE", "2048", "a whole number from 1 to 65536"),
    variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "512", "a whole number from 1 to OTEL_BSP_MAX_QUEUE_SIZE"),
];

/// As many spans as may wait.
const SPANS_MAX: usize = 65_536;

/// Header fields that requests have anyway.
const OWN_HEADERS: &[&str] = &[
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
];

/// What is exported, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where spans go, if anywhere.
    pub traces: Option<Target>,
    /// Where metrics go, if anywhere.
    pub metrics: Option<Target>,
    /// Whose they are; an attribute that the node has too is as it is here.
    pub attributes: Vec<(String, String)>,
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// From one export of metrics to the next.
    pub metrics_interval: Duration,
    /// How long spans may wait.
    pub spans_delay: Duration,
    /// How many may wait.
    pub spans_queue: usize,
    /// How many go into one request.
    pub spans_batch: usize,
}

/// Where one kind of telemetry goes.
#[derive(Clone, Debug)]
pub struct Target {
    /// The whole URL.
    pub url: Uri,
    /// Header fields that requests have besides.
    pub headers: Headers,
    /// How long one request may take.
    pub timeout: Duration,
    /// The authorities of its certificate, if not the public ones, and the variable that
    /// names them.
    pub certificate: Option<(&'static str, PathBuf)>,
}

/// Header fields whose values are not shown.
#[derive(Clone, Default)]
pub struct Headers(pub Vec<(HeaderName, HeaderValue)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Why what the variables say is refused: variable, value, expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the variables of an environment; others are passed over.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub fn from_env<'a>(
        env: impl IntoIterator<Item = (&'a OsString, &'a OsString)>,
    ) -> Result<Self, ConfigError> {
        let env = env.into_iter().filter_map(|(name, value)| {
            let variable = VARIABLES.iter().find(|known| *name == *known.name)?;
            // An empty one is like none, as the specification has it.
            (!value.is_empty()).then(|| (variable.name, value.clone()))
        });
        Given(env.collect()).config()
    }

    /// Whether nothing is exported.
    pub fn is_off(&self) -> bool {
        self.traces.is_none() && self.metrics.is_none()
    }
}

/// One of the kinds of telemetry.
#[derive(Clone, Copy)]
struct Signal {
    /// As it stands in variables.
    word: &'static str,
    /// What is put behind the endpoint of all.
    path: &'static str,
}

const TRACES: Signal = Signal {
    word: "TRACES",
    path: "v1/traces",
};
const METRICS: Signal = Signal {
    word: "METRICS",
    path: "v1/metrics",
};

/// The variables that were given.
struct Given(HashMap<&'static str, OsString>);

impl Given {
    fn config(&self) -> Result<Config, ConfigError> {
        if self.get("OTEL_SDK_DISABLED", boolean)? == Some(true) {
            // As if nothing was given: then there is nowhere to export to.
            return Self(HashMap::new()).config();
        }
        let interval = |name| self.or_default(name, milliseconds);
        self.refuse_what_is_not_offered()?;
        let size = |text: &str| number(text, SPANS_MAX);
        let spans_queue = self.or_default("OTEL_BSP_MAX_QUEUE_SIZE", size)?;
        let batch = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE";
        let spans_batch = match self.get(batch, |text| number(text, spans_queue))? {
            Some(given) => given,
            None => self.or_default(batch, size)?.min(spans_queue),
        };
        let metrics_most = interval("OTEL_METRIC_EXPORT_TIMEOUT")?;
        let spans_most = interval("OTEL_BSP_EXPORT_TIMEOUT")?;
        Ok(Config {
            traces: self.target(TRACES, spans_most)?,
            metrics: self.target(METRICS, metrics_most)?,
            attributes: self.attributes()?,
            sampler: self.sampler()?,
            metrics_interval: interval("OTEL_METRIC_EXPORT_INTERVAL")?,
            spans_delay: interval("OTEL_BSP_SCHEDULE_DELAY")?,
            spans_queue,
            spans_batch,
        })
    }

    /// One variable, parsed by `parse`; nothing where it is not given.
    fn get<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        let parsed = value.to_str().map(str::trim).and_then(parse);
        parsed
            .map(Some)
            .ok_or_else(|| refused(name, &value.to_string_lossy()))
    }

    /// The same, or its default where it is not given.
    fn or_default<T>(
        &self,
        name: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        match self.get(name, &parse)? {
            Some(value) => Ok(value),
            None => {
                let default = find(name).default;
                parse(default).ok_or_else(|| refused(name, default))
            }
        }
    }

    /// The variable of one kind of telemetry, or else that of all, and which it was.
    fn either<T>(
        &self,
        signal: Signal,
        what: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<(&'static str, T)>, ConfigError> {
        let own = named(&format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.word));
        let of_all = named(&format!("OTEL_EXPORTER_OTLP_{what}"));
        // Both must be right, whichever counts.
        let of_all = self.get(of_all, &parse)?.map(|value| (of_all, value));
        let own = self.get(own, &parse)?.map(|value| (own, value));
        Ok(own.or(of_all))
    }

    fn target(&self, signal: Signal, most: Duration) -> Result<Option<Target>, ConfigError> {
        let own = named(&format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.word));
        let own = self.get(own, endpoint)?;
        let of_all = self.get("OTEL_EXPORTER_OTLP_ENDPOINT", |text| {
            endpoint(text)?;
            let gap = if text.ends_with('/') { "" } else { "/" };
            endpoint(&format!("{text}{gap}{}", signal.path))
        })?;
        let exporter = named(&format!("OTEL_{}_EXPORTER", signal.word));
        let wanted = self.get(exporter, |text| choice(text, &["none", "otlp"]))?;
        self.either(signal, "PROTOCOL", |text| choice(text, &["http/protobuf"]))?;
        self.either(signal, "COMPRESSION", |text| choice(text, &["none"]))?;
        let timeout = match self.either(signal, "TIMEOUT", milliseconds)? {
            Some((_, timeout)) => timeout,
            None => self.or_default("OTEL_EXPORTER_OTLP_TIMEOUT", milliseconds)?,
        };
        let headers = self.either(signal, "HEADERS", headers)?;
        let path = |text: &str| Some(PathBuf::from(text));
        let certificate = self.either(signal, "CERTIFICATE", path)?;
        let url = own.or(of_all).filter(|_| wanted != Some("none"));
        Ok(url.map(|url| Target {
            url,
            headers: headers.map(|(_, headers)| headers).unwrap_or_default(),
            timeout: timeout.min(most),
            certificate,
        }))
    }

    fn refuse_what_is_not_offered(&self) -> Result<(), ConfigError> {
        for variable in VARIABLES {
            let parts = variable.name.rsplit_once("_CLIENT_");
            if parts.is_some() && self.0.contains_key(variable.name) {
                return Err(refused(variable.name, "…"));
            }
        }
        for name in [
            "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE",
            "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION",
        ] {
            let offered = [find(name).default];
            self.get(name, |text| choice(&text.to_ascii_lowercase(), &offered))?;
        }
        Ok(())
    }

    fn sampler(&self) -> Result<Sampler, ConfigError> {
        let share = |text: &str| {
            let ratio: f64 = text.parse().ok()?;
            (0.0..=1.0).contains(&ratio).then_some(ratio)
        };
        let ratio = self.get("OTEL_TRACES_SAMPLER_ARG", share)?;
        let asked = self.get("OTEL_TRACES_SAMPLER", |text| {
            let own = text.strip_prefix("parentbased_");
            let root = match own.unwrap_or(text) {
                "always_on" => 1.0,
                "always_off" => 0.0,
                // What the specification has for a ratio that is not said.
                "traceidratio" => ratio.unwrap_or(1.0),
                _ => return None,
            };
            Some(Sampler::ratio(own.is_some(), root))
        })?;
        match asked {
            Some(asked) => Ok(asked),
            // A cache serves far too many requests to record each when nobody says so.
            None => {
                let ratio = self.or_default("OTEL_TRACES_SAMPLER_ARG", share)?;
                Ok(Sampler::ratio(true, ratio))
            }
        }
    }

    fn attributes(&self) -> Result<Vec<(String, String)>, ConfigError> {
        let given = self.get("OTEL_RESOURCE_ATTRIBUTES", pairs)?;
        let mut attributes = given.unwrap_or_default();
        let name = self.get("OTEL_SERVICE_NAME", |text| Some(text.to_owned()))?;
        if let Some(name) = name {
            attributes.retain(|(known, _)| known != "service.name");
            attributes.push(("service.name".to_owned(), name));
        }
        Ok(attributes)
    }
}

fn find(name: &str) -> &'static Variable {
    let mut variables = VARIABLES.iter();
    variables
        .find(|variable| variable.name == name)
        .unwrap_or_else(|| unreachable!("{name} is in the list; a test reads them all"))
}

fn named(name: &str) -> &'static str {
    find(name).name
}

fn refused(name: &'static str, value: &str) -> ConfigError {
    let variable = find(name);
    // In a URL that is refused there may be a password.
    let shown = match variable.secret || value.contains('@') {
        true => "…",
        false => value,
    };
    ConfigError(format!("{name}={shown}: expected {}", variable.expected))
}

fn boolean(text: &str) -> Option<bool> {
    // Capitals do not matter, says the specification.
    match &*text.to_ascii_lowercase() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn choice<'a>(text: &str, of: &[&'a str]) -> Option<&'a str> {
    of.iter().copied().find(|one| *one == text)
}

fn digits(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

fn number(text: &str, most: usize) -> Option<usize> {
    let number = usize::try_from(digits(text)?).ok()?;
    (1..=most).contains(&number).then_some(number)
}

fn milliseconds(text: &str) -> Option<Duration> {
    let milliseconds = digits(text)?;
    let range = 1..=86_400_000;
    range
        .contains(&milliseconds)
        .then(|| Duration::from_millis(milliseconds))
}

fn endpoint(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let authority = url.authority()?;
    let known = matches!(url.scheme_str(), Some("http" | "https"));
    let plain = !text.contains(['#', '@']) && url.query().is_none();
    (known && plain && !authority.host().is_empty()).then_some(url)
}

/// `name=value` pairs as in W3C Baggage, without properties.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let parts = text.split(',').map(str::trim);
    let parts = parts.filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=')?;
            let name = decoded(name.trim()).filter(|name| !name.is_empty())?;
            Some((name, decoded(value.trim())?))
        })
        .collect()
}

fn decoded(text: &str) -> Option<String> {
    let bytes = percent_decode(text.as_bytes()).ok()?;
    String::from_utf8(bytes.into_owned()).ok()
}

fn headers(text: &str) -> Option<Headers> {
    let headers = pairs(text)?.into_iter().map(|(name, value)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        (!OWN_HEADERS.contains(&name.as_str())).then_some((name, value))
    });
    headers.collect::<Option<_>>().map(Headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env: Vec<(OsString, OsString)> = env
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Config::from_env(env.iter().map(|(name, value)| (name, value)))
    }

    fn urls(env: &[(&str, &str)]) -> (Option<String>, Option<String>) {
        let config = read(env).unwrap();
        let url = |target: Option<Target>| target.map(|target| target.url.to_string());
        (url(config.traces), url(config.metrics))
    }

    #[test]
    fn without_an_endpoint_nothing_is_exported() {
        assert!(read(&[]).unwrap().is_off());
        assert!(
            read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")])
                .unwrap()
                .is_off()
        );
        assert!(
            read(&[("OTEL_TRACES_SAMPLER", "always_on")])
                .unwrap()
                .is_off()
        );
    }

    #[test]
    fn the_endpoint_of_all_gets_a_path_for_each() {
        let of_all = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let both =
            |traces: &str, metrics: &str| (Some(traces.to_owned()), Some(metrics.to_owned()));
        assert_eq!(
            urls(&[(of_all, "http://c:4318")]),
            both("http://c:4318/v1/traces", "http://c:4318/v1/metrics")
        );
        assert_eq!(
            urls(&[(of_all, "https://c/x/")]),
            both("https://c/x/v1/traces", "https://c/x/v1/metrics")
        );
        assert_eq!(
            urls(&[(of_all, "http://c/x"), (own, "http://t:1/as/is")]),
            both("http://t:1/as/is", "http://c/x/v1/metrics")
        );
        assert_eq!(
            urls(&[(own, "http://t")]),
            (Some("http://t/".to_owned()), None)
        );
    }

    #[test]
    fn each_kind_can_be_left_out_and_all_be_disabled() {
        let of_all = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
        let (traces, metrics) = urls(&[of_all, ("OTEL_TRACES_EXPORTER", "none")]);
        assert!(traces.is_none() && metrics.is_some());
        let (traces, metrics) = urls(&[of_all, ("OTEL_METRICS_EXPORTER", "none")]);
        assert!(traces.is_some() && metrics.is_none());
        let disabled = [
            of_all,
            ("OTEL_SDK_DISABLED", "TRUE"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ];
        assert!(read(&disabled).unwrap().is_off());
    }

    #[test]
    fn what_is_said_of_one_kind_wins() {
        let config = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "7"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "8"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,b=x%20y%2C"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "c=3"),
        ])
        .unwrap();
        let (traces, metrics) = (config.traces.unwrap(), config.metrics.unwrap());
        assert_eq!(traces.timeout, Duration::from_millis(7));
        assert_eq!(metrics.timeout, Duration::from_millis(8));
        assert_eq!(traces.headers.0.len(), 1);
        assert_eq!(metrics.headers.0[1].1, "x y,");
        assert_eq!(format!("{:?}", metrics.headers), "[\"a\", \"b\"]");
    }

    #[test]
    fn samplers_are_as_the_specification_names_them() {
        let sampler = |name: &str, arg: &str| {
            let env = [
                ("OTEL_TRACES_SAMPLER", name),
                ("OTEL_TRACES_SAMPLER_ARG", arg),
            ];
            read(&env).unwrap().sampler
        };
        assert_eq!(sampler("", ""), Sampler::ratio(true, 0.01));
        assert_eq!(sampler("", "0.5"), Sampler::ratio(true, 0.5));
        assert_eq!(sampler("always_on", "0.5"), Sampler::ratio(false, 1.0));
        assert_eq!(sampler("always_off", ""), Sampler::ratio(false, 0.0));
        assert_eq!(sampler("traceidratio", "0.25"), Sampler::ratio(false, 0.25));
        assert_eq!(sampler("traceidratio", ""), Sampler::ratio(false, 1.0));
        assert_eq!(
            sampler("parentbased_always_on", ""),
            Sampler::ratio(true, 1.0)
        );
        assert_eq!(
            sampler("parentbased_always_off", ""),
            Sampler::ratio(true, 0.0)
        );
        assert_eq!(
            sampler("parentbased_traceidratio", "1"),
            Sampler::ratio(true, 1.0)
        );
    }

    #[test]
    fn the_name_of_the_service_wins_over_its_attribute() {
        let config = read(&[
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "service.name=a, k8s.pod.name=p%3D1 ,",
            ),
            ("OTEL_SERVICE_NAME", "b"),
        ]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            config.unwrap().attributes,
            [pair("k8s.pod.name", "p=1"), pair("service.name", "b")]
        );
    }

    #[test]
    fn a_batch_is_no_larger_than_the_queue() {
        let config = read(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100")]).unwrap();
        assert_eq!((config.spans_queue, config.spans_batch), (100, 100));
        let more = [
            ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "101"),
        ];
        assert!(read(&more).is_err());
    }

    #[test]
    fn what_no_variable_can_be_is_refused_in_one_line_that_names_it() {
        for (name, value) in [
            ("OTEL_SDK_DISABLED", "yes"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "c:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://c:4317"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c?x=1"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_TRACES_EXPORTER", "console"),
            ("OTEL_METRICS_EXPORTER", "otlp,console"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a"),
            ("OTEL_RESOURCE_ATTRIBUTES", "a=%zz"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "-1"),
            ("OTEL_BSP_SCHEDULE_DELAY", "1.5"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            let start = format!("{name}={value}: expected ");
            assert!(error.starts_with(&start), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "hush"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hush,content-type=x"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a b=hush"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "a=hush%0a"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hush@c"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "hush"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{name}=…: expected ")),
                "{error}"
            );
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn every_default_in_the_list_is_accepted() {
        for variable in VARIABLES {
            read(&[(variable.name, variable.default)]).unwrap();
        }
    }
}
