//! The limits a container runtime sets through cgroups, version 1 and 2.
//!
//! Promises: a process's own cgroup and all its ancestors that are visible are asked,
//! and the tightest limit wins. Never fails: a file that is absent, unreadable or
//! strange is no limit. All reading goes through [`Files`], so that tests bring theirs.

use std::path::{Path, PathBuf};

use super::process::Throttling;

/// Reads a whole small file, or nothing.
pub(super) type Files<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// The real files.
pub(super) fn real_files(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Limits this large mean none: version 1 writes 2^63 rounded down to a page.
const MEMORY_NO_LIMIT: u64 = 1 << 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The CPU quota in whole CPUs (1.5 is one and a half), the smallest over all ancestors.
pub(super) fn quota_cores(files: Files<'_>) -> Option<f64> {
    let v2 = directories(files, Version::V2, "cpu")
        .into_iter()
        .filter_map(|dir| cpu_max(&files(&dir.join("cpu.max"))?));
    let v1 = directories(files, Version::V1, "cpu")
        .into_iter()
        .filter_map(|dir| {
            let quota = files(&dir.join("cpu.cfs_quota_us"))?;
            cpu_quota(quota.trim(), files(&dir.join("cpu.cfs_period_us"))?.trim())
        });
    v2.chain(v1).reduce(f64::min)
}

/// The CPUs the nearest cgroup that says so may run on.
pub(super) fn cpuset_effective(files: Files<'_>) -> Option<Vec<usize>> {
    let v2 = directories(files, Version::V2, "cpuset")
        .into_iter()
        .map(|dir| dir.join("cpuset.cpus.effective"));
    let v1 = directories(files, Version::V1, "cpuset")
        .into_iter()
        .map(|dir| dir.join("cpuset.effective_cpus"));
    v2.chain(v1)
        .find_map(|file| cpu_list(files(&file)?.trim()))
        .filter(|cpus| !cpus.is_empty())
}

/// The memory limit in bytes, the smallest over all ancestors.
pub(super) fn memory_limit_bytes(files: Files<'_>) -> Option<u64> {
    let v2 = directories(files, Version::V2, "memory")
        .into_iter()
        .map(|dir| dir.join("memory.max"));
    let v1 = directories(files, Version::V1, "memory")
        .into_iter()
        .map(|dir| dir.join("memory.limit_in_bytes"));
    v2.chain(v1)
        .filter_map(|file| files(&file)?.trim().parse::<u64>().ok())
        .filter(|&bytes| bytes < MEMORY_NO_LIMIT)
        .min()
}

/// How the quota of the nearest cgroup that has one has held this process up.
pub(super) fn throttling(files: Files<'_>) -> Throttling {
    let all = [Version::V2, Version::V1]
        .into_iter()
        .flat_map(|version| directories(files, version, "cpu"));
    let stats = all.filter_map(|dir| throttled(&files(&dir.join("cpu.stat"))?));
    stats.into_iter().next().unwrap_or_default()
}

/// `cpu.stat`: lines such as `nr_throttled 3`; time in microseconds, or, in version 1, in
/// nanoseconds.
fn throttled(text: &str) -> Option<Throttling> {
    let number = |name: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let (_, value) = lines.find(|(found, _)| *found == name)?;
        value.trim().parse::<u64>().ok()
    };
    Some(Throttling {
        periods: number("nr_throttled")?,
        stopped_us: number("throttled_usec")
            .or_else(|| Some(number("throttled_time")? / 1000))
            .unwrap_or(0),
    })
}

/// `cpu.max`: "max 100000" or "150000 100000"; the period may be left out.
fn cpu_max(text: &str) -> Option<f64> {
    let mut words = text.split_whitespace();
    let quota = words.next()?;
    cpu_quota(quota, words.next().unwrap_or("100000"))
}

/// A quota of "max" or -1 is none, as is a period of 0.
fn cpu_quota(quota: &str, period: &str) -> Option<f64> {
    let quota = quota.parse::<u32>().ok().filter(|&us| us > 0)?;
    let period = period.parse::<u32>().ok().filter(|&us| us > 0)?;
    Some(f64::from(quota) / f64::from(period))
}

/// A CPU list as the kernel writes it: "0-3,8,10-11".
pub(super) fn cpu_list(text: &str) -> Option<Vec<usize>> {
    /// More CPUs than any kernel counts; keeps a strange file from taking all memory.
    const CPU_INDEX_MAX: usize = 1 << 16;
    let mut cpus = Vec::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if last >= CPU_INDEX_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The directories of this process's cgroup and its ancestors, nearest first.
fn directories(files: Files<'_>, version: Version, controller: &str) -> Vec<PathBuf> {
    let find = || {
        let cgroups = files(Path::new("/proc/self/cgroup"))?;
        let mounts = files(Path::new("/proc/self/mountinfo"))?;
        let path = own_path(&cgroups, version, controller)?;
        let mount = mounts
            .lines()
            .find_map(|line| mount(line, version, controller))?;
        // Where the mount shows another part of the tree (another namespace), its top is
        // all that can be known.
        let below = Path::new(path)
            .strip_prefix(&mount.root)
            .unwrap_or(Path::new(""));
        let below = if below.components().all(|part| part.as_os_str() != "..") {
            below
        } else {
            Path::new("")
        };
        let leaf = mount.point.join(below);
        Some(
            leaf.ancestors()
                .take_while(|dir| dir.starts_with(&mount.point))
                .map(Path::to_path_buf)
                .collect(),
        )
    };
    find().unwrap_or_default()
}

/// Our path in a line of `/proc/self/cgroup`: `4:memory:/a/b`, or `0::/a/b` for version 2.
fn own_path<'a>(cgroups: &'a str, version: Version, controller: &str) -> Option<&'a str> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match version {
            Version::V2 => controllers.is_empty(),
            Version::V1 => controllers.split(',').any(|name| name == controller),
        };
        ours.then_some(path)
    })
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// A line of `/proc/self/mountinfo` (proc(5)), when it mounts what we look for.
fn mount(line: &str, version: Version, controller: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let ours = match version {
        Version::V2 => kind == "cgroup2",
        Version::V1 => kind == "cgroup" && options.split(',').any(|name| name == controller),
    };
    ours.then(|| Mount {
        root: unescape(root),
        point: unescape(point),
    })
}

/// Spaces and the like are written in octal there: `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        out.push_str(plain);
        match escaped
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &escaped[3..];
            }
            None => {
                out.push('\\');
                rest = escaped;
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn files(pairs: &[(&str, &str)]) -> impl Fn(&Path) -> Option<String> + use<> {
        let map: HashMap<PathBuf, String> = pairs
            .iter()
            .map(|(path, text)| (path.into(), (*text).into()))
            .collect();
        move |path| map.get(path).cloned()
    }

    #[test]
    fn throttling_is_read_in_both_versions() {
        let v2 = "usage_usec 5\nnr_periods 9\nnr_throttled 3\nthrottled_usec 1500\n";
        let v1 = "nr_periods 9\nnr_throttled 3\nthrottled_time 1500000\n";
        let expected = Throttling {
            periods: 3,
            stopped_us: 1500,
        };
        assert_eq!(throttled(v2), Some(expected));
        assert_eq!(throttled(v1), Some(expected));
        assert_eq!(throttled("usage_usec 5\n"), None, "no quota here");
    }

    const V2_MOUNT: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_smallest_quota_over_the_ancestors_wins() {
        let files = files(&[
            ("/proc/self/cgroup", "0::/pods/pod1/box\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/pods/pod1/box/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/pods/pod1/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/pods/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/pods/pod1/cpuset.cpus.effective", "0-1,4\n"),
            ("/sys/fs/cgroup/pods/cpuset.cpus.effective", "0-7\n"),
            ("/sys/fs/cgroup/pods/pod1/box/memory.max", "max\n"),
            ("/sys/fs/cgroup/pods/pod1/memory.max", "1073741824\n"),
        ]);
        assert_eq!(quota_cores(&files), Some(1.5));
        assert_eq!(cpuset_effective(&files), Some(vec![0, 1, 4]));
        assert_eq!(memory_limit_bytes(&files), Some(1 << 30));
    }

    #[test]
    fn version_one_controllers_have_their_own_mounts() {
        let files = files(&[
            (
                "/proc/self/cgroup",
                "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:cpuset:/docker/abc\n0::/\n",
            ),
            (
                "/proc/self/mountinfo",
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                 32 31 0:29 /docker/abc /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                 33 31 0:30 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n\
                 34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n",
            ),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            (
                "/sys/fs/cgroup/my memory/docker/abc/memory.limit_in_bytes",
                "268435456\n",
            ),
            (
                "/sys/fs/cgroup/my memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "/sys/fs/cgroup/cpuset/docker/abc/cpuset.effective_cpus",
                "2\n",
            ),
        ]);
        assert_eq!(quota_cores(&files), Some(0.5));
        assert_eq!(memory_limit_bytes(&files), Some(1 << 28));
        assert_eq!(cpuset_effective(&files), Some(vec![2]));
    }

    #[test]
    fn another_namespace_shows_only_the_top() {
        let files = files(&[
            ("/proc/self/cgroup", "0::/../../elsewhere\n"),
            ("/proc/self/mountinfo", V2_MOUNT),
            ("/sys/fs/cgroup/cpu.max", "200000 100000\n"),
        ]);
        assert_eq!(quota_cores(&files), Some(2.0));
    }

    #[test]
    fn strange_files_are_no_limits() {
        for text in ["", "max", "-1 100000", "0 100000", "100000 0", "x y", "\0"] {
            assert_eq!(cpu_max(text), None, "{text:?}");
        }
        assert_eq!(cpu_quota("-1", "100000"), None);
        assert_eq!(cpu_list("0-x"), None);
        assert_eq!(cpu_list("0-99999999999"), None);
        assert_eq!(cpu_list("3-1"), Some(vec![]));
        let nothing = files(&[]);
        assert_eq!(quota_cores(&nothing), None);
        assert_eq!(cpuset_effective(&nothing), None);
        assert_eq!(memory_limit_bytes(&nothing), None);
        let torn = files(&[
            ("/proc/self/cgroup", "0:\n:::\n"),
            ("/proc/self/mountinfo", "1 2 - \n"),
        ]);
        assert_eq!(quota_cores(&torn), None);
    }
}
