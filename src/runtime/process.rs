//! What this process takes of the machine, as the kernel accounts for it.
//!
//! Reading `/proc` can fail in strange sandboxes; what cannot be read is 0.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cgroup::{self, Files};

/// One reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Bytes of memory that are in RAM.
    pub resident_bytes: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Time that its threads ran, in milliseconds.
    pub cpu_ms: u64,
    /// Threads.
    pub threads: u64,
    /// Descriptors that are open.
    pub open_descriptors: u64,
    /// Descriptors that may be open.
    pub descriptors_max: u64,
    /// When it started, in seconds since 1970.
    pub started_s: u64,
}

/// How a CPU quota has held the container up, since its cgroup was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// Periods in which it was stopped because its quota was used up.
    pub periods: u64,
    /// For how long in all, in microseconds.
    pub stopped_us: u64,
}

/// What this process takes now.
pub fn process_usage() -> ProcessUsage {
    let descriptors = open_descriptors();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let mut usage = read(&cgroup::real_files);
    usage.open_descriptors = descriptors;
    // By the clock as it was when this was first asked: it does not change.
    usage.started_s = *STARTED_S.get_or_init(|| usage.started_s);
    usage.descriptors_max = limit.current.unwrap_or(u64::MAX);
    usage
}

/// How many descriptors are open. Since version 6.2 the kernel tells without listing them.
fn open_descriptors() -> u64 {
    const DIRECTORY: &str = "/proc/self/fd";
    let told = std::fs::metadata(DIRECTORY).map_or(0, |directory| directory.len());
    if told > 0 {
        return told;
    }
    let listed = std::fs::read_dir(DIRECTORY).map_or(0, Iterator::count);
    // The directory itself is open while it is read.
    (listed as u64).saturating_sub(1)
}

/// How this process's container was held up so far.
pub fn throttling() -> Throttling {
    cgroup::throttling(&cgroup::real_files)
}

/// For how long the calling thread has run on a CPU.
pub fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// For how long the calling thread was ready to run and had to wait for a CPU.
pub fn thread_waited() -> Duration {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(waited_ns(&schedstat).unwrap_or(0))
}

fn waited_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The unit of times in `/proc/self/stat`, which Linux has fixed for user space.
const TICKS_PER_SECOND: u64 = 100;

fn read(files: Files<'_>) -> ProcessUsage {
    let page = rustix::param::page_size() as u64;
    let statm = files(Path::new("/proc/self/statm")).unwrap_or_default();
    let mut sizes = statm.split_whitespace().map(|word| word.parse().ok());
    let mut pages = || sizes.next().flatten().unwrap_or(0_u64) * page;
    let (virtual_bytes, resident_bytes) = (pages(), pages());
    let stat = files(Path::new("/proc/self/stat")).unwrap_or_default();
    // Behind the name, which may hold anything; the first field there is the third.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let fields: Vec<&str> = behind.split_whitespace().collect();
    let field = |number: usize| -> u64 {
        let text = fields.get(number - 3);
        text.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let (user, system, threads, started) = (field(14), field(15), field(20), field(22));
    ProcessUsage {
        resident_bytes,
        virtual_bytes,
        cpu_ms: (user + system) * 1000 / TICKS_PER_SECOND,
        threads,
        started_s: booted_s(files).map_or(0, |booted| booted + started / TICKS_PER_SECOND),
        ..ProcessUsage::default()
    }
}

static STARTED_S: OnceLock<u64> = OnceLock::new();

/// When the machine started, in seconds since 1970.
fn booted_s(files: Files<'_>) -> Option<u64> {
    let uptime = files(Path::new("/proc/uptime"))?;
    let seconds: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let since = Duration::try_from_secs_f64(seconds).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(now.checked_sub(since)?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_accounted_for() {
        let usage = process_usage();
        assert!(usage.resident_bytes > 1 << 20, "{usage:?}");
        assert!(usage.virtual_bytes >= usage.resident_bytes, "{usage:?}");
        assert!(usage.threads > 0 && usage.open_descriptors > 2, "{usage:?}");
        assert!(usage.started_s > 1_500_000_000, "{usage:?}");
    }

    #[test]
    fn what_a_thread_waited_is_the_second_number() {
        assert_eq!(waited_ns("5000 321 7\n"), Some(321));
        assert_eq!(waited_ns(""), None);
    }

    #[test]
    fn a_name_with_parentheses_shifts_nothing() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let stat = format!("1 (a) b) {}", fields.join(" "));
        let files = |path: &Path| (path == Path::new("/proc/self/stat")).then(|| stat.clone());
        let usage = read(&files);
        assert_eq!((usage.cpu_ms, usage.threads), ((14 + 15) * 10, 20));
    }

    #[test]
    fn nothing_is_assumed_where_nothing_can_be_read() {
        assert_eq!(read(&|_| None), ProcessUsage::default());
    }
}
