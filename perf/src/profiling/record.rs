//! `perf record` on a process, and what it has recorded as flamegraphs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use inferno::flamegraph::{self, Options, Palette};

use super::stacks::{FIELDS, Stacks};

/// Samples in a second of each CPU. Not a round number: it must not keep step with what the
/// node does at fixed intervals.
const SAMPLES_PER_SECOND: &str = "997";

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Where processor time goes.
    Cpu,
    /// Where threads leave their CPUs, how often, and for how long.
    OffCpu,
}

/// A recording that is under way.
pub struct Profile {
    view: View,
    event: &'static str,
    perf: Child,
    data: PathBuf,
}

impl Profile {
    /// Begins to record a process for so long. What is recorded goes into this directory.
    ///
    /// # Errors
    ///
    /// When perf cannot be run.
    pub fn start(view: View, pid: u32, duration: Duration, directory: &Path) -> io::Result<Self> {
        let data = directory.join("perf.data");
        let mut command = Command::new("perf");
        command.args(["record", "--quiet", "--call-graph", "fp"]);
        let event = match view {
            View::Cpu => {
                let event = if counts_cycles()? {
                    "cycles"
                } else {
                    "cpu-clock"
                };
                command.args(["-e", event, "-F", SAMPLES_PER_SECOND]);
                event
            }
            View::OffCpu => {
                // A software event and records of switches: neither takes tracefs, which
                // sched:sched_switch would.
                command.args(["-e", "context-switches", "-c", "1", "--switch-events"]);
                "context-switches"
            }
        };
        command.arg("-o").arg(&data);
        command.args(["-p", &pid.to_string(), "--"]);
        command.args(["sleep", &duration.as_secs_f64().to_string()]);
        let perf = command.stderr(Stdio::piped()).spawn().map_err(absent)?;
        Ok(Self {
            view,
            event,
            perf,
            data,
        })
    }

    /// What is sampled.
    pub fn event(&self) -> &'static str {
        self.event
    }

    /// Waits for the end of the recording, and draws it into the directory, as files that
    /// begin with this name; the files, with what each shows.
    ///
    /// # Errors
    ///
    /// With what perf says, when it may not record, or when it has recorded nothing.
    pub fn draw(self, name: &str, subtitle: &str) -> io::Result<Vec<(PathBuf, String)>> {
        let output = self.perf.wait_with_output()?;
        if !output.status.success() {
            return Err(refused(&String::from_utf8_lossy(&output.stderr)));
        }
        let mut command = Command::new("perf");
        command.args(["script", "--show-switch-events", "-F", FIELDS, "-i"]);
        let output = command.arg(&self.data).output().map_err(absent)?;
        if !output.status.success() {
            return Err(refused(&String::from_utf8_lossy(&output.stderr)));
        }
        let script = String::from_utf8_lossy(&output.stdout);
        let draw = |view: &str, title: &str, unit: &str, stacks: &Stacks| {
            if stacks.is_empty() {
                return Err(refused(&format!("{title}: nothing was recorded")));
            }
            let path = self.data.with_file_name(format!("{name}{view}.svg"));
            fs::write(&path, svg(stacks, title, subtitle, unit)?)?;
            let what = format!("{title}, {} {unit}", stacks.total());
            Ok((path, what))
        };
        match self.view {
            View::Cpu => {
                let stacks = Stacks::on_cpu(&script);
                Ok(vec![draw("", "Processor time", "samples", &stacks)?])
            }
            View::OffCpu => {
                let off = Stacks::off_cpu(&script);
                Ok(vec![
                    draw("-time", "Time off the CPU", "us", &off.waited_us)?,
                    draw("-switches", "Switches", "switches", &off.left)?,
                ])
            }
        }
    }
}

/// Whether the machine counts cycles: many virtual ones do not.
fn counts_cycles() -> io::Result<bool> {
    let mut command = Command::new("perf");
    command.args(["stat", "-x,", "-e", "cycles", "--", "true"]);
    let output = command.output().map_err(absent)?;
    Ok(has_count(&String::from_utf8_lossy(&output.stderr)))
}

/// Whether `perf stat -x,` has counted something.
fn has_count(said: &str) -> bool {
    let counts = said.lines().filter_map(|line| line.split(',').next());
    counts.flat_map(str::parse::<u64>).any(|count| count > 0)
}

fn absent(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::other("perf is not installed (linux-perf in Debian)"),
        _ => error,
    }
}

fn refused(said: &str) -> io::Error {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    io::Error::other(format!(
        "perf: {}\n(perf_event_paranoid is {})",
        said.trim(),
        paranoid.trim()
    ))
}

/// A flamegraph of these stacks.
fn svg(stacks: &Stacks, title: &str, subtitle: &str, unit: &str) -> io::Result<Vec<u8>> {
    let mut options = Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle.to_owned());
    options.count_name = unit.to_owned();
    // Equal names have equal colours in two pictures that are compared.
    options.deterministic = true;
    options.colors = "rust".parse::<Palette>().unwrap_or_default();
    let lines: Vec<String> = stacks.lines().collect();
    let mut picture = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut picture)?;
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_counters_is_known() {
        assert!(has_count("1234567,,cycles,806000,100.00,,\n"));
        assert!(!has_count("<not supported>,,cycles,0,100.00,,\n"));
        assert!(!has_count("0,,cycles,0,100.00,,\n"));
        assert!(!has_count("Error:\nNo permission\n"));
    }

    #[test]
    fn a_picture_has_the_names_and_the_unit() {
        let script = "core-0 1 1.000001: cpu-clock: \n\t 1 inner<u8>\n\t 2 outer\n";
        let picture = svg(&Stacks::on_cpu(script), "Processor time", "get", "samples");
        let picture = String::from_utf8(picture.unwrap()).unwrap();
        for part in [
            "<svg",
            "Processor time",
            "outer",
            "inner&lt;u8&gt; (1 samples",
        ] {
            assert!(picture.contains(part), "{part}");
        }
    }
}
