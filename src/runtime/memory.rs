//! How much memory this process may use: its cgroup's limit, else the machine's memory.

use std::path::Path;

use super::cgroup::{self, Files};

/// The bytes of memory this process may use: the tightest cgroup limit, never more than
/// the machine has. `None` when neither can be read.
pub fn memory_limit_bytes() -> Option<u64> {
    limit_bytes(&cgroup::real_files)
}

fn limit_bytes(files: Files<'_>) -> Option<u64> {
    let machine = files(Path::new("/proc/meminfo")).and_then(|text| total_bytes(&text));
    let limit = cgroup::memory_limit_bytes(files);
    machine.into_iter().chain(limit).min()
}

/// `MemTotal:       16384000 kB`
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_cgroup_limit_the_machine_is_the_limit() {
        let files = |path: &Path| {
            (path == Path::new("/proc/meminfo")).then(|| "MemTotal:  2048 kB\n".to_owned())
        };
        assert_eq!(limit_bytes(&files), Some(2 << 20));
        assert_eq!(limit_bytes(&|_| None), None);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_limit_bytes().unwrap() > 1 << 20);
    }
}
