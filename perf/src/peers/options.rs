//! What was chosen on the command line.

use std::path::PathBuf;
use std::time::Duration;

use super::fleet::Peer;
use super::scenarios::{SCENARIOS, Scenario};

/// Seconds a round may take, and rounds there may be.
const SECONDS_MAX: f64 = 3600.0;
const ROUNDS_MAX: u32 = 1000;

/// Each option: name, what it takes, what it does.
const OPTIONS: [(&str, &str, &str); 10] = [
    ("--servers", "a,b", "measure only these"),
    ("--scenarios", "a,b", "run only these"),
    ("--long", "", "run all scenarios, not the short set"),
    ("--rounds", "n", "rounds, interleaved over the servers [3]"),
    ("--seconds", "s", "how long to measure in each round [1]"),
    (
        "--json",
        "file",
        "where to write all figures [beside this program]",
    ),
    (
        "--svg",
        "file",
        "where to draw throughput against p99 [beside this program]",
    ),
    (
        "--no-build",
        "",
        "measure the binaries beside this program as they are",
    ),
    ("--list", "", "print servers and scenarios"),
    ("--help", "", "print this"),
];

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// The servers.
    pub peers: Vec<Peer>,
    /// The scenarios, in the order of their list.
    pub scenarios: Vec<&'static Scenario>,
    /// Rounds over all of them.
    pub rounds: u32,
    /// How long each measurement takes.
    pub duration: Duration,
    /// Where the figures go, unless beside this program.
    pub json: Option<PathBuf>,
    /// Where the picture goes, unless beside this program.
    pub svg: Option<PathBuf>,
    /// Whether to build release binaries first.
    pub build: bool,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To print this.
    Print(String),
    /// To measure.
    Run(Options),
}

impl Invocation {
    /// Reads a command line, without the program's name.
    ///
    /// # Errors
    ///
    /// With what is wrong with it.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut options = Options {
            peers: Peer::ALL.to_vec(),
            scenarios: Vec::new(),
            rounds: 3,
            duration: Duration::from_secs(1),
            json: None,
            svg: None,
            build: true,
        };
        let mut long = false;
        let mut arguments = arguments.into_iter();
        while let Some(option) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{option} takes a value"))
            };
            match option.as_str() {
                "--servers" => options.peers = peers(&value()?)?,
                "--scenarios" => options.scenarios = scenarios(&value()?)?,
                "--long" => long = true,
                "--rounds" => options.rounds = rounds(&value()?)?,
                "--seconds" => options.duration = duration(&value()?)?,
                "--json" => options.json = Some(value()?.into()),
                "--svg" => options.svg = Some(value()?.into()),
                "--no-build" => options.build = false,
                "--list" => return Ok(Self::Print(list())),
                "--help" => return Ok(Self::Print(help())),
                _ => return Err(format!("{option} is no option\n\n{}", help())),
            }
        }
        if options.scenarios.is_empty() {
            let chosen = SCENARIOS.iter().filter(|scenario| long || !scenario.long);
            options.scenarios = chosen.collect();
        }
        Ok(Self::Run(options))
    }
}

fn peers(names: &str) -> Result<Vec<Peer>, String> {
    let peers = names
        .split(',')
        .map(|name| Peer::named(name).ok_or_else(|| format!("{name} is no server\n\n{}", list())));
    let mut peers: Vec<Peer> = peers.collect::<Result<_, _>>()?;
    peers.sort();
    peers.dedup();
    Ok(peers)
}

fn scenarios(names: &str) -> Result<Vec<&'static Scenario>, String> {
    let unknown = unknown(names, |name| {
        SCENARIOS.iter().any(|scenario| scenario.name == name)
    });
    match unknown {
        Some(name) => Err(format!("{name} is no scenario\n\n{}", list())),
        None => Ok(SCENARIOS
            .iter()
            .filter(|scenario| names.split(',').any(|name| name == scenario.name))
            .collect()),
    }
}

fn unknown(names: &str, known: impl Fn(&str) -> bool) -> Option<&str> {
    names.split(',').find(|name| !known(name))
}

fn rounds(text: &str) -> Result<u32, String> {
    let rounds = text.parse().ok();
    rounds
        .filter(|rounds| (1..=ROUNDS_MAX).contains(rounds))
        .ok_or_else(|| format!("{text}: rounds are a number from 1 to {ROUNDS_MAX}"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok();
    seconds
        .filter(|seconds| (0.01..=SECONDS_MAX).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{text}: seconds are a number from 0.01 to {SECONDS_MAX}"))
}

fn help() -> String {
    let mut text = "Measures hypercache beside its peers.\n\n".to_owned();
    for (name, value, help) in OPTIONS {
        let option = format!("{name} {value}");
        text.push_str(&format!("  {option:<18} {help}\n"));
    }
    text
}

fn list() -> String {
    let servers: Vec<&str> = Peer::ALL.iter().map(|peer| peer.name()).collect();
    let mut text = format!("servers: {}\n", servers.join(", "));
    text.push_str("only if named: ring:VARIANT+VARIANT, as `ring` itself lists them\n");
    for (title, long) in [("short set", false), ("with --long", true)] {
        text.push_str(&format!("\n{title}:\n"));
        for scenario in SCENARIOS.iter().filter(|scenario| scenario.long == long) {
            let (name, what) = (scenario.name, scenario.describe());
            let rates: Vec<String> = scenario
                .rates
                .iter()
                .flatten()
                .map(u32::to_string)
                .collect();
            let drive = match rates.is_empty() {
                true => String::new(),
                false => format!("; {} requests/s", rates.join(", ")),
            };
            text.push_str(&format!("  {name:<18} {what}{drive}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Invocation, String> {
        Invocation::parse(arguments.iter().map(|&argument| argument.to_owned()))
    }

    fn options(arguments: &[&str]) -> Options {
        match parse(arguments) {
            Ok(Invocation::Run(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_short_set_runs_unless_told_otherwise() {
        let short = options(&[]);
        assert_eq!(short.peers, Peer::ALL);
        assert!(short.scenarios.iter().all(|scenario| !scenario.long));
        assert_eq!(options(&["--long"]).scenarios.len(), SCENARIOS.len());
    }

    #[test]
    fn servers_and_scenarios_are_chosen_by_name() {
        let chosen = options(&[
            "--servers",
            "redis,hypercache",
            "--scenarios",
            "put,get",
            "--rounds",
            "7",
            "--seconds",
            "0.25",
            "--no-build",
        ]);
        assert_eq!(chosen.peers, [Peer::Hypercache, Peer::Redis]);
        let names: Vec<&str> = chosen
            .scenarios
            .iter()
            .map(|scenario| scenario.name)
            .collect();
        assert_eq!(names, ["get", "put"]);
        assert_eq!((chosen.rounds, chosen.build), (7, false));
        assert_eq!(chosen.duration, Duration::from_millis(250));
    }

    #[test]
    fn variants_of_the_floor_run_only_when_they_are_named() {
        let is_variant = |peer: &Peer| matches!(peer, Peer::Ring(_));
        assert!(!options(&["--long"]).peers.iter().any(is_variant));
        let chosen = options(&["--servers", "ring:multishot+files,floor,ring:plain"]);
        let names: Vec<&str> = chosen.peers.iter().map(|peer| peer.name()).collect();
        assert_eq!(names, ["floor", "ring:multishot+files", "ring:plain"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for arguments in [
            &["--servers", "postgres"][..],
            &["--servers", ""],
            &["--scenarios", "got"],
            &["--rounds", "0"],
            &["--seconds", "0"],
            &["--seconds", "NaN"],
            &["--seconds"],
            &["seven"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn every_option_of_the_help_is_understood() {
        for (name, value, _) in OPTIONS {
            let refused = parse(&[name]).err();
            let expected = (!value.is_empty()).then(|| format!("{name} takes a value"));
            assert_eq!(refused, expected);
        }
    }
}
