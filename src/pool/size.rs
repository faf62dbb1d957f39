//! How many workers a pool has by default: as many as may really run at once.
//!
//! That is neither the machine's count of cores (a container may have a share of them) nor what the process was started
//! on: the CPUs of the process's affinity mask, and no more than the quota of its control group, in either version of
//! control groups. Half a CPU is rounded up: a worker that waits for input leaves its share to another.

use std::fs;
use std::path::{Path, PathBuf};

/// The default size of a pool.
pub(super) fn default_size() -> usize {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let quota = quota(&groups, |path| fs::read_to_string(path).ok());
    size(affinity(), quota)
}

/// How many CPUs this thread may run on.
fn affinity() -> usize {
    match rustix::thread::sched_getaffinity(None) {
        Ok(cpus) => cpus.count() as usize,
        // More CPUs than the fixed mask holds.
        Err(_) => std::thread::available_parallelism().map_or(1, usize::from),
    }
}

fn size(cpus: usize, quota: Option<f64>) -> usize {
    let quota = quota.map_or(usize::MAX, |quota| quota.ceil() as usize);
    cpus.min(quota).max(1)
}

/// The smallest quota, in CPUs, of the control groups that `/proc/self/cgroup` names and of those above them.
fn quota(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<f64> {
    groups
        .lines()
        .filter_map(|line| group_quota(line, &read))
        .reduce(f64::min)
}

/// The quota of one line, `number:controllers:path`. An empty list of controllers means version 2.
fn group_quota(line: &str, read: &impl Fn(&Path) -> Option<String>) -> Option<f64> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let path = path.trim_start_matches('/');
    if controllers.is_empty() {
        return smallest(Path::new("/sys/fs/cgroup"), path, |group| {
            version_2(&read(&group.join("cpu.max"))?)
        });
    }
    let mounts = controllers
        .split(',')
        .any(|name| name == "cpu")
        .then_some(["cpu", "cpu,cpuacct"])?;
    let version_1 = |group: &Path| {
        version_1(
            &read(&group.join("cpu.cfs_quota_us"))?,
            &read(&group.join("cpu.cfs_period_us"))?,
        )
    };
    mounts
        .iter()
        .filter_map(|mount| smallest(&Path::new("/sys/fs/cgroup").join(mount), path, version_1))
        .reduce(f64::min)
}

/// The smallest of a group and those above it. Inside of a container the path may name what cannot be seen there; the
/// root of the mount is the container's own group then.
fn smallest(root: &Path, path: &str, limit: impl Fn(&Path) -> Option<f64>) -> Option<f64> {
    let groups: Vec<PathBuf> = Path::new(path)
        .ancestors()
        .map(|group| root.join(group))
        .collect();
    groups
        .iter()
        .filter_map(|group| limit(group))
        .reduce(f64::min)
}

/// `cpu.max`: `max 100000` or `150000 100000`.
fn version_2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

fn version_1(quota: &str, period: &str) -> Option<f64> {
    ratio(quota.trim(), period.trim())
}

/// Quota over period, where the quota is a limit at all (`max` and -1 are none).
fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota_of(groups: &str, files: &[(&str, &str)]) -> Option<f64> {
        quota(groups, |path| {
            let file = files.iter().find(|(name, _)| Path::new(name) == path)?;
            Some(file.1.to_string())
        })
    }

    #[test]
    fn a_pool_has_at_least_one_worker_and_at_most_what_may_run() {
        assert_eq!(size(8, None), 8);
        assert_eq!(size(8, Some(2.0)), 2);
        assert_eq!(size(8, Some(1.5)), 2);
        assert_eq!(size(8, Some(0.1)), 1);
        assert_eq!(size(0, None), 1);
        assert!(default_size() >= 1);
    }

    #[test]
    fn version_2_takes_the_smallest_quota_on_the_way_up() {
        let files = [
            ("/sys/fs/cgroup/a/cpu.max", "200000 100000\n"),
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
        ];
        assert_eq!(quota_of("0::/a/b\n", &files), Some(2.0));
        assert_eq!(quota_of("0::/\n", &files), None);
        assert_eq!(
            quota_of(
                "0::/unseen\n",
                &[("/sys/fs/cgroup/cpu.max", "50000 100000")]
            ),
            Some(0.5)
        );
    }

    #[test]
    fn version_1_reads_quota_and_period() {
        let groups = "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n";
        let files = [
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_of(groups, &files), Some(3.0));
        let unlimited = [
            ("/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(quota_of(groups, &unlimited), None);
    }

    #[test]
    fn nonsense_is_no_quota() {
        for text in ["", "max", "a b", "100000 0", "-5 100000", "100000"] {
            assert_eq!(version_2(text), None, "{text:?}");
        }
        assert_eq!(quota_of("nonsense\n\n1:cpu\n", &[]), None);
    }
}
