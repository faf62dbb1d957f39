//! Whether the kernel killed a worker for its memory: the counts that memory control groups keep of such kills.
//!
//! A process that the out-of-memory killer ends dies of SIGKILL, as one that anybody else kills. Nothing in its exit
//! status tells the two apart; but its memory control group counts those kills, and counts one before it sends the
//! signal. So a count that has grown at a death by somebody else's SIGKILL is the explanation.
//!
//! The two versions of control groups count differently (version 1 was tried; version 2 is from its documentation). Version 2 (`memory.events`, the field
//! `oom_kill`) counts a kill in the group of the victim and in all groups above it; version 1 (`memory.oom_control`, the
//! field `oom_kill`) in the victim's own alone. In version 1 a zombie is shown in the root group, whichever it was in;
//! so the group of a worker is looked up when it has said hello, and once more at its death in version 2.
//!
//! A count does not say who was killed. The victim may have been another process of the group, a child that a job had
//! started, say; then the next worker that dies of a foreign SIGKILL is taken for it, unless another look came between.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a kill that was counted may wait for the death that goes with it: waiters of workers that die together look
/// one after another.
const BELATED: Duration = Duration::from_secs(2);

/// The counts of the groups in which there are, or were, workers.
#[derive(Default)]
pub(super) struct OomKills {
    /// The first is that of the host, where it has one. Held while small files are read, and nothing else is locked then.
    groups: Mutex<Vec<Group>>,
}

/// One group's count.
struct Group {
    /// What the kernel said of the process by which it was found: of one in the same group it says the same.
    name: String,
    /// Where it is read.
    file: PathBuf,
    seen: u64,
    /// Kills that no death was put down to yet, and until when one may be.
    open: u64,
    until: Instant,
}

impl OomKills {
    /// Begins to look at the group of a process (`None`: of this one), and says where that is.
    pub(super) fn watch(&self, pid: Option<u32>) -> Option<PathBuf> {
        let name = group_of(&process(pid))?;
        let mut groups = self.groups.lock();
        if let Some(known) = groups.iter().find(|group| group.name == name) {
            return Some(known.file.clone());
        }
        let file = count_of(&name, Version::Any)?;
        if !groups.iter().any(|group| group.file == file) {
            groups.retain(|group| group.file.exists());
            groups.push(Group::new(name, file.clone(), Instant::now())?);
        }
        Some(file)
    }

    /// A worker died of a SIGKILL that was not ours: whether the group that counts at `file` has counted a kill that no
    /// other death explains. (`None`: it is not known, and taken to be the host's.)
    pub(super) fn take(&self, file: Option<PathBuf>) -> bool {
        let mut groups = self.groups.lock();
        let now = Instant::now();
        groups
            .iter_mut()
            .for_each(|group| group.look(read(&group.file), now));
        let group = match file {
            // A group into which it came later is not here, but one above it may be.
            Some(file) => groups
                .iter_mut()
                .filter(|group| {
                    let above = group.file.parent();
                    above.is_some_and(|above| file.starts_with(above))
                })
                .max_by_key(|group| group.file.as_os_str().len()),
            None => groups.first_mut(),
        };
        group.is_some_and(Group::take)
    }
}

impl Group {
    fn new(name: String, file: PathBuf, now: Instant) -> Option<Self> {
        let seen = read(&file)?;
        Some(Group {
            name,
            file,
            seen,
            open: 0,
            until: now,
        })
    }

    /// Notes what the count is now.
    fn look(&mut self, count: Option<u64>, now: Instant) {
        if self.until < now {
            self.open = 0;
        }
        let count = count.unwrap_or(self.seen);
        if count > self.seen {
            self.open += count - self.seen;
            self.until = now + BELATED;
        }
        self.seen = count;
    }

    fn take(&mut self) -> bool {
        let any = self.open > 0;
        self.open -= u64::from(any);
        any
    }
}

/// Where the kills of a zombie's group are counted, if the kernel still says which group that was.
pub(super) fn oom_count_of_zombie(pid: u32) -> Option<PathBuf> {
    count_of(&group_of(&process(Some(pid)))?, Version::Two)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Two,
    Any,
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "/proc/self".to_string(), |pid| format!("/proc/{pid}"))
}

/// The groups of a process, one a line.
fn group_of(process: &str) -> Option<String> {
    text_of(Path::new(&format!("{process}/cgroup")))
}

fn count_of(groups: &str, version: Version) -> Option<PathBuf> {
    // Our own, not the process': what we are to read is mounted here.
    let mounts = text_of(Path::new("/proc/self/mountinfo"))?;
    find(groups, &mounts, version, |file| read(file).is_some())
}

fn read(file: &Path) -> Option<u64> {
    count(&text_of(file)?)
}

/// A file of the kernel's, whose length is not known before. Each read makes it anew, so one is to do.
fn text_of(file: &Path) -> Option<String> {
    let mut text = String::with_capacity(4096);
    fs::File::open(file).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The field of either file: `oom_kill 3`.
fn count(text: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    value.trim().parse().ok()
}

/// The file for the group that `/proc/PID/cgroup` names, below one of the mounts of `/proc/self/mountinfo`.
fn find(
    groups: &str,
    mounts: &str,
    version: Version,
    is_there: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    // `number:controllers:path`. Where both versions are mounted, memory belongs to the one that names it.
    let lines = || groups.lines().filter_map(fields_of_group);
    if let Some((_, path)) = lines().find(|(controllers, _)| has(controllers, "memory")) {
        let directories = below_mounts(mounts, path, |kind, options| {
            kind == "cgroup" && has(options, "memory")
        });
        return match version {
            Version::Two => None,
            Version::Any => directories
                .map(|(_, directory)| directory.join("memory.oom_control"))
                .find(|file| is_there(file)),
        };
    }
    let (_, path) = lines().find(|(controllers, _)| controllers.is_empty())?;
    below_mounts(mounts, path, |kind, _| kind == "cgroup2").find_map(|(mount, directory)| {
        // A group without the memory controller is charged to the next one above that has it.
        directory
            .ancestors()
            .take_while(|group| group.starts_with(mount))
            .map(|group| group.join("memory.events"))
            .find(|file| is_there(file))
    })
}

fn fields_of_group(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

fn has(list: &str, word: &str) -> bool {
    list.split(',').any(|it| it == word)
}

/// Where the group `path` is to be seen: each mount point of that kind, and the directory. A mount may show a part of the
/// hierarchy only, as a container's does: then it begins at a group further down, and others are not to be seen in it.
fn below_mounts<'a>(
    mounts: &'a str,
    path: &'a str,
    is_wanted: impl Fn(&str, &str) -> bool + 'a,
) -> impl Iterator<Item = (&'a Path, PathBuf)> + 'a {
    mounts.lines().filter_map(move |line| {
        // `id parent device root mount-point options … - kind source options`
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, Path::new(left.next()?));
        let inside = Path::new(path).strip_prefix(root).ok()?;
        let directory = match inside.as_os_str().is_empty() {
            true => mount.to_path_buf(),
            false => mount.join(inside),
        };
        is_wanted(kind, options).then_some((mount, directory))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
    const HYBRID: &str = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
    const V2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    fn found(groups: &str, mounts: &str, files: &[&str]) -> Option<String> {
        let is_there = |file: &Path| files.iter().any(|it| Path::new(it) == file);
        let file = find(groups, mounts, Version::Any, is_there)?;
        Some(file.to_str().expect("ASCII").to_string())
    }

    #[test]
    fn the_memory_controller_of_version_1_is_found_beside_version_2() {
        let file = "/sys/fs/cgroup/memory/jobs/a/memory.oom_control";
        let mounts = format!("{HYBRID}\n{V1}\n");
        let groups = "8:pids:/\n4:memory:/jobs/a\n0::/\n";
        assert_eq!(found(groups, &mounts, &[file]).as_deref(), Some(file));
        assert!(find(groups, &mounts, Version::Two, |_| true).is_none());
        assert_eq!(found(groups, HYBRID, &[file]), None);
    }

    #[test]
    fn version_2_looks_above_where_a_group_has_no_memory_controller() {
        let file = "/sys/fs/cgroup/user.slice/memory.events";
        let groups = "0::/user.slice/session-2.scope\n";
        assert_eq!(found(groups, V2, &[file]).as_deref(), Some(file));
        let own = "/sys/fs/cgroup/user.slice/session-2.scope/memory.events";
        assert_eq!(found(groups, V2, &[own, file]).as_deref(), Some(own));
        assert_eq!(found("0::/\n", V2, &[]), None, "the root has no such file");
    }

    #[test]
    fn a_container_sees_its_own_part() {
        // Version 1 without a namespace: the mount begins at the container's group, whose path is that of the machine.
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let own = "/sys/fs/cgroup/memory/memory.oom_control";
        let below = "/sys/fs/cgroup/memory/sub/memory.oom_control";
        assert_eq!(
            found("4:memory:/docker/abc\n", mounts, &[own]).as_deref(),
            Some(own)
        );
        assert_eq!(
            found("4:memory:/docker/abc/sub\n", mounts, &[below]).as_deref(),
            Some(below)
        );
        assert_eq!(found("4:memory:/docker/other\n", mounts, &[own]), None);
        // A mount that was made outside of the namespace in which we are.
        let mounts = "30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        let sibling = "/sys/fs/cgroup/other/memory.events";
        assert_eq!(
            found("0::/../other\n", mounts, &[sibling]).as_deref(),
            Some(sibling)
        );
    }

    #[test]
    fn the_count_is_read_from_either_file() {
        assert_eq!(
            count("low 0\nhigh 0\nmax 14\noom 1\noom_kill 2\noom_group_kill 0\n"),
            Some(2)
        );
        assert_eq!(
            count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            Some(3)
        );
        assert_eq!(
            count("oom_kill_disable 0\nunder_oom 0\n"),
            None,
            "before Linux 4.13"
        );
    }

    #[test]
    fn each_kill_explains_one_death_and_not_a_much_later_one() {
        let now = Instant::now();
        let mut group = Group {
            name: String::new(),
            file: PathBuf::new(),
            seen: 5,
            open: 0,
            until: now,
        };
        group.look(Some(5), now);
        assert!(!group.take(), "nobody was killed since");
        group.look(Some(7), now);
        assert!(group.take());
        group.look(Some(7), now + BELATED / 2);
        assert!(group.take(), "the other of two that died together");
        assert!(!group.take());
        group.look(Some(9), now);
        assert!(group.take());
        group.look(None, now + 2 * BELATED);
        assert!(!group.take(), "that one was not ours");
    }
}
