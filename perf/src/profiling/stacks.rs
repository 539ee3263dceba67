//! What `perf script` prints, as stacks with a weight each.
//!
//! ```text
//! core-0 28428 32510.604892: context-switches:      a sample: thread, its number, seconds, event
//!         ffffffff821fb643 schedule                  its frames, the innermost first
//!                   41e81f monoio::…::park
//!
//! core-0 28428 32510.604920: PERF_RECORD_SWITCH OUT          the thread leaves its CPU,
//! core-0 28428 32510.613911: PERF_RECORD_SWITCH IN           and is back
//! ```
//!
//! Lines that are of neither form are passed over.

use std::collections::{BTreeMap, HashMap};

/// The fields that [`Stacks::on_cpu`] and [`Stacks::off_cpu`] read.
pub const FIELDS: &str = "comm,tid,time,event,ip,sym";

/// A frame without a name.
const UNKNOWN: &str = "[unknown]";

/// The frame below which a thread stands that was not done but had to make room for another.
const PREEMPTED: &str = "[preempted]";

/// Stacks with how much each weighs: frames from the outermost to the innermost, joined by `;`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stacks(BTreeMap<String, u64>);

/// What there is of threads that were off their CPUs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct OffCpu {
    /// For how many microseconds, by where they left.
    pub waited_us: Stacks,
    /// How many times they left.
    pub left: Stacks,
}

/// A line that begins a sample, or tells of a switch.
struct Head<'a> {
    thread: &'a str,
    tid: u32,
    time_us: u64,
    what: &'a str,
}

impl Stacks {
    /// Counts samples.
    pub fn on_cpu(script: &str) -> Self {
        let mut stacks = Self::default();
        for (_, stack) in samples(script) {
            stacks.add(stack, 1);
        }
        stacks
    }

    /// Adds up for how long threads were away from their CPUs. What was never left, or not
    /// come back to, while it was recorded has no length and does not count.
    pub fn off_cpu(script: &str) -> OffCpu {
        let mut off = OffCpu::default();
        let mut stacks: HashMap<u32, String> = HashMap::new();
        let mut left: HashMap<u32, (u64, String)> = HashMap::new();
        for entry in entries(script) {
            match entry {
                Entry::Sample(head, stack) => {
                    stacks.insert(head.tid, stack);
                }
                Entry::Switch(head) if head.what.contains("SWITCH OUT") => {
                    // The event comes before the switch that it is of.
                    let Some(mut stack) = stacks.remove(&head.tid) else {
                        continue;
                    };
                    if head.what.contains("preempt") {
                        stack.push(';');
                        stack.push_str(PREEMPTED);
                    }
                    off.left.add(stack.clone(), 1);
                    left.insert(head.tid, (head.time_us, stack));
                }
                Entry::Switch(head) => {
                    if let Some((since, stack)) = left.remove(&head.tid) {
                        off.waited_us.add(stack, head.time_us.saturating_sub(since));
                    }
                }
            }
        }
        off
    }

    fn add(&mut self, stack: String, weight: u64) {
        *self.0.entry(stack).or_default() += weight;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The weight of all together.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// A line for each, with its weight behind it, as flamegraphs are drawn from.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .map(|(stack, weight)| format!("{stack} {weight}"))
    }
}

enum Entry<'a> {
    Sample(Head<'a>, String),
    Switch(Head<'a>),
}

fn samples(script: &str) -> impl Iterator<Item = (Head<'_>, String)> {
    entries(script).filter_map(|entry| match entry {
        Entry::Sample(head, stack) => Some((head, stack)),
        Entry::Switch(_) => None,
    })
}

fn entries(script: &str) -> impl Iterator<Item = Entry<'_>> {
    let mut lines = script.lines().peekable();
    std::iter::from_fn(move || {
        loop {
            let Some(head) = Head::parse(lines.next()?) else {
                continue;
            };
            if head.what.starts_with("PERF_RECORD_SWITCH") {
                return Some(Entry::Switch(head));
            }
            let mut frames = Vec::new();
            while let Some(frame) = lines.next_if(|line| line.starts_with('\t')) {
                frames.push(name(frame));
            }
            frames.push(head.thread.replace(';', ","));
            frames.reverse();
            return Some(Entry::Sample(head, frames.join(";")));
        }
    })
}

impl<'a> Head<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('\t') {
            return None;
        }
        // A thread's name may have spaces and colons: the time is the first that looks so.
        line.match_indices(": ").find_map(|(end, _)| {
            let (before, what) = (&line[..end], line[end + 1..].trim());
            let (before, time) = before.rsplit_once(' ')?;
            let (seconds, micros) = time.split_once('.')?;
            let (thread, tid) = before.trim().rsplit_once(' ')?;
            Some(Self {
                thread: thread.trim(),
                tid: tid.parse().ok()?,
                time_us: seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?,
                what,
            })
        })
    }
}

/// The name in a line that has an address before it.
fn name(frame: &str) -> String {
    let name = frame.trim().split_once(' ').map_or("", |(_, name)| name);
    match name.trim() {
        "" => UNKNOWN.to_owned(),
        // What stands between two of them is a frame of its own.
        name => name.replace(';', ","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
core-0 10 100.000100: cpu-clock: \n\
\tffffffff81000130 entry_SYSCALL\n\
\t          41e81f <[u8; 4] as T>::park (inlined)\n\
\t           891f5 start_thread\n\
\n\
my thread: 1 11 100.000200:          1 cpu-clock: \n\
\t               0 [unknown]\n\
\t               1\n\
\n\
core-0 10 100.000300: cpu-clock: \n\
\tffffffff81000130 entry_SYSCALL\n\
\t          41e81f <[u8; 4] as T>::park (inlined)\n\
\t           891f5 start_thread\n";

    #[test]
    fn equal_stacks_are_counted_together_from_the_outermost_frame() {
        let stacks = Stacks::on_cpu(SCRIPT);
        let lines: Vec<String> = stacks.lines().collect();
        assert_eq!(
            lines,
            [
                "core-0;start_thread;<[u8, 4] as T>::park (inlined);entry_SYSCALL 2",
                "my thread: 1;[unknown];[unknown] 1",
            ]
        );
        assert_eq!(stacks.total(), 3);
    }

    #[test]
    fn time_off_a_cpu_goes_to_where_its_thread_left() {
        let script = "\
core-0 10 100.000000: PERF_RECORD_SWITCH IN         \n\
core-0 10 100.000100: context-switches: \n\
\tffffffff81000130 schedule\n\
\n\
core-1 11 100.000150: context-switches: \n\
\tffffffff81000130 schedule\n\
\n\
core-0 10 100.000200: PERF_RECORD_SWITCH OUT        \n\
core-1 11 100.000300: PERF_RECORD_SWITCH OUT preempt\n\
core-1 11 100.000307: PERF_RECORD_SWITCH IN         \n\
core-0 10 101.000000: PERF_RECORD_SWITCH IN         \n\
core-0 10 101.000100: context-switches: \n\
\tffffffff81000130 schedule\n\
\n\
core-0 10 101.000200: PERF_RECORD_SWITCH OUT        \n";
        let off = Stacks::off_cpu(script);
        let lines = |stacks: &Stacks| stacks.lines().collect::<Vec<_>>();
        assert_eq!(
            lines(&off.waited_us),
            ["core-0;schedule 999800", "core-1;schedule;[preempted] 7"]
        );
        assert_eq!(
            lines(&off.left),
            ["core-0;schedule 2", "core-1;schedule;[preempted] 1"]
        );
    }

    #[test]
    fn what_is_no_sample_is_passed_over() {
        let noise = "\n# a comment\nWarning: 3 events lost\n\t 12 alone\ncore 1 x.y: z: \n";
        assert!(Stacks::on_cpu(noise).is_empty());
        assert_eq!(Stacks::off_cpu(noise), OffCpu::default());
    }
}
