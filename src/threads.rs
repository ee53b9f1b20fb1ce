//! How many threads a call may use.
//!
//! ```text
//! the caller's number > QUANTIZE_NUM_THREADS > RAYON_NUM_THREADS > OMP_NUM_THREADS > min(CPU affinity, cgroup quota)
//! ```
//!
//! The environment is read at every call, since frameworks that share a machine among workers set it after the import.
//! The machine is looked at again after a second, since a container's quota can change under a running process.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// The variables that are read, strongest first.
pub const VARIABLES: [&str; 3] = ["QUANTIZE_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// No call uses more, whatever it asks for: more threads than any machine has CPUs only cost memory.
pub const MOST: usize = 1024;

/// The number of threads for a call: `requested`, or what the environment and the machine give. At least 1, at most [`MOST`].
pub fn count(requested: Option<usize>) -> usize {
    let environment = || VARIABLES.iter().find_map(|name| parse(&std::env::var(name).ok()?));
    requested.or_else(environment).unwrap_or_else(machine_cached).clamp(1, MOST)
}

/// The number in a variable. `OMP_NUM_THREADS` may be a list, one number a nesting level; 0 and nonsense count as unset.
fn parse(value: &str) -> Option<usize> {
    let first = value.split(',').next()?;
    first.trim().parse().ok().filter(|&threads| threads > 0)
}

/// [`machine`] of the running system, not older than a second.
fn machine_cached() -> usize {
    /// Milliseconds of the wall clock in the upper 48 bits, threads in the lower 16. One atomic, as a fork may strike at any time.
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64);
    let seen = SEEN.load(Ordering::Relaxed);
    if seen != 0 && now.abs_diff(seen >> 16) < 1000 {
        return (seen & 0xffff) as usize;
    }
    let threads = machine(Path::new("/")).min(MOST);
    SEEN.store(now << 16 | threads as u64, Ordering::Relaxed);
    threads
}

/// CPUs that this process may run on, and no more than its quota of CPU time pays for. `root` holds `proc` and `sys`.
#[cfg(target_os = "linux")]
fn machine(root: &Path) -> usize {
    linux::affinity(root).unwrap_or_else(available).min(linux::quota(root).unwrap_or(usize::MAX)).max(1)
}

#[cfg(not(target_os = "linux"))]
fn machine(_root: &Path) -> usize {
    available()
}

fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What Linux says in its files.
#[cfg(target_os = "linux")]
mod linux {
    use std::fs::read_to_string;
    use std::path::Path;

    /// Number of CPUs in `Cpus_allowed_list: 0-3,8` of `/proc/self/status`.
    pub(super) fn affinity(root: &Path) -> Option<usize> {
        let status = read_to_string(root.join("proc/self/status")).ok()?;
        let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        list.split(',').map(|range| cpus(range.trim())).sum()
    }

    /// Number of CPUs in `8` or `0-3`.
    fn cpus(range: &str) -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first)?.checked_add(1)
    }

    /// Whole CPUs that the smallest quota of our control groups pays for, at least 1; `None` without a quota.
    ///
    /// `/proc/self/cgroup` names the group, `0::/a/b` in version 2 and `4:cpu,cpuacct:/a/b` in version 1. A quota on any of its
    /// ancestors holds too. Inside a container the name may be the host's, which is not below the container's mount; the
    /// search upwards then ends at the mount itself, which is the container's own group.
    pub(super) fn quota(root: &Path) -> Option<usize> {
        let groups = read_to_string(root.join("proc/self/cgroup")).ok()?;
        let mount = root.join("sys/fs/cgroup");
        let quotas = groups.lines().filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            if controllers.is_empty() {
                smallest(&mount, group, quota_v2)
            } else if controllers.split(',').any(|name| name == "cpu") {
                // The directory carries the controllers' names; distributions link it as `cpu` alone.
                [controllers, "cpu"].iter().find_map(|name| smallest(&mount.join(name), group, quota_v1))
            } else {
                None
            }
        });
        let cpus = quotas.reduce(f64::min)?;
        Some((cpus as usize).max(1))
    }

    /// The smallest quota of `group` and its ancestors below `mount`.
    fn smallest(mount: &Path, group: &str, quota: fn(&Path) -> Option<f64>) -> Option<f64> {
        let group = Path::new(group.trim_start_matches('/'));
        group.ancestors().filter_map(|ancestor| quota(&mount.join(ancestor))).reduce(f64::min)
    }

    /// `cpu.max`: `150000 100000`, or `max 100000`.
    fn quota_v2(directory: &Path) -> Option<f64> {
        let text = read_to_string(directory.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        ratio(quota, period)
    }

    /// `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a quota of -1 is none.
    fn quota_v1(directory: &Path) -> Option<f64> {
        let read = |name| read_to_string(directory.join(name)).ok();
        ratio(&read("cpu.cfs_quota_us")?, &read("cpu.cfs_period_us")?)
    }

    fn ratio(quota: &str, period: &str) -> Option<f64> {
        let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
        (quota > 0.0 && period > 0.0).then(|| quota / period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_wins_and_is_kept_in_bounds() {
        assert_eq!(count(Some(3)), 3);
        assert_eq!(count(Some(0)), 1);
        assert_eq!(count(Some(usize::MAX)), MOST);
        assert!((1..=MOST).contains(&count(None)));
    }

    #[test]
    fn variables_hold_a_number_or_a_list() {
        assert_eq!(parse("4"), Some(4));
        assert_eq!(parse(" 8 "), Some(8));
        assert_eq!(parse("4,3,2"), Some(4));
        for unset in ["", "0", "-2", "many", "1.5", ",4"] {
            assert_eq!(parse(unset), None, "{unset:?}");
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod linux_tests {
    use super::machine;
    use std::fs;
    use tempfile::TempDir;

    /// A root with these files in it.
    fn machine_with(files: &[(&str, &str)]) -> usize {
        let root = TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        machine(root.path())
    }

    fn status(list: &str) -> String {
        format!("Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t{list}\nMems_allowed_list:\t0\n")
    }

    #[test]
    fn affinity_counts_ranges() {
        for (list, expected) in [("0", 1), ("0-1", 2), ("0-3,8,10-11", 7), ("0-255", 256), ("5,7", 2)] {
            assert_eq!(machine_with(&[("proc/self/status", &status(list))]), expected, "{list}");
        }
    }

    #[test]
    fn without_files_the_standard_library_knows() {
        assert_eq!(machine_with(&[]), super::available());
        assert_eq!(machine_with(&[("proc/self/status", "Name: x\n")]), super::available());
        assert_eq!(machine_with(&[("proc/self/status", &status("3-1"))]), super::available());
    }

    #[test]
    fn a_quota_of_version_2() {
        for (quota, expected) in [("50000 100000", 1), ("100000 100000", 1), ("350000 100000", 3), ("max 100000", 8), ("9000000 100000", 8)]
        {
            let files = [
                ("proc/self/status", &*status("0-7")),
                ("proc/self/cgroup", "0::/system.slice/service\n"),
                ("sys/fs/cgroup/system.slice/service/cpu.max", quota),
            ];
            assert_eq!(machine_with(&files), expected, "{quota}");
        }
    }

    #[test]
    fn the_smallest_quota_of_all_ancestors_holds() {
        let files = [
            ("proc/self/status", &*status("0-15")),
            ("proc/self/cgroup", "0::/a/b/c\n"),
            ("sys/fs/cgroup/a/b/c/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "600000 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "400000 100000\n"),
        ];
        assert_eq!(machine_with(&files), 4);
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_mount() {
        let files = [
            ("proc/self/status", &*status("0-15")),
            ("proc/self/cgroup", "0::/docker/0123456789\n"),
            ("sys/fs/cgroup/cpu.max", "200000 100000\n"),
        ];
        assert_eq!(machine_with(&files), 2);
    }

    #[test]
    fn a_quota_of_version_1() {
        for (directory, quota, expected) in
            [("cpu,cpuacct", "300000\n", 3), ("cpu", "50000\n", 1), ("cpu", "-1\n", 16), ("cpuset", "100000\n", 16)]
        {
            let files = [
                ("proc/self/status", &*status("0-15")),
                ("proc/self/cgroup", "11:memory:/job\n4:cpu,cpuacct:/job\n3:cpuset:/job\n"),
                (&*format!("sys/fs/cgroup/{directory}/job/cpu.cfs_quota_us"), quota),
                (&*format!("sys/fs/cgroup/{directory}/job/cpu.cfs_period_us"), "100000\n"),
            ];
            assert_eq!(machine_with(&files), expected, "{directory} {quota}");
        }
    }
}
