//! CPU quotas by control group, version 2 (`cpu.max`) or 1 (`cpu.cfs_quota_us`).
//!
//! A quota is a group of its own below the controller's, made by the controller before the node
//! is moved into it, and removed when the guard is dropped, after the node has ended. The nodes die
//! with their controller, however it ends; what a `kill -9` of the controller can leave is an
//! empty group, which takes no resources, and which the next start and `celslm doctor` remove.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::clock;

/// Period over which the quota is granted. Short, so that a token's step is stretched rather than
/// now run at full speed and now stalled; the kernel's least is 1 ms of quota and of period.
const PERIOD_US: u64 = 20_000;
/// How long a group may take to become empty when its processes have been killed.
const EMPTY_TIMEOUT: Duration = Duration::from_millis(500);
/// How every group's name begins; the process id of its controller follows.
const PREFIX: &str = "celslm-";

/// Why no quota can be set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaError {
    /// No controller is mounted, or none that this process may use.
    #[error("no CPU controller of control groups can be used here ({0})")]
    NoController(String),
    /// A file of the group was refused.
    #[error("{what} {}", path.display())]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The place where groups with a CPU quota are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuController {
    version: Version,
    parent: PathBuf,
}

impl CpuController {
    /// Finds the controller of this process's group. Nothing is made yet.
    ///
    /// # Errors
    /// [`QuotaError::NoController`].
    pub fn find() -> Result<Self, QuotaError> {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::find_in(
            &text("/proc/self/mountinfo"),
            &text("/proc/self/cgroup"),
            Path::new("/"),
        )
    }

    /// As [`Self::find`], from the kernel's tables; `root` is put before every mount point.
    fn find_in(mounts: &str, membership: &str, root: &Path) -> Result<Self, QuotaError> {
        let mut reasons = Vec::new();
        for mount in mounts.lines().filter_map(Mount::parse) {
            let point = root.join(mount.point.trim_start_matches('/'));
            match mount.kind {
                "cgroup" if mount.options.split(',').any(|option| option == "cpu") => {
                    let own = membership.lines().find_map(|line| {
                        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                        controllers.split(',').any(|c| c == "cpu").then_some(path)
                    });
                    return Ok(Self {
                        version: Version::One,
                        parent: existing(&point, mount.root, own.unwrap_or("/")),
                    });
                }
                "cgroup2" => {
                    let own = membership.lines().find_map(|line| line.strip_prefix("0::"));
                    let start = existing(&point, mount.root, own.unwrap_or("/"));
                    match delegating(&start, &point) {
                        Ok(parent) => {
                            return Ok(Self {
                                version: Version::Two,
                                parent,
                            });
                        }
                        Err(reason) => reasons.push(reason),
                    }
                }
                _ => {}
            }
        }
        if reasons.is_empty() {
            reasons.push("none is mounted".to_owned());
        }
        Err(QuotaError::NoController(reasons.join("; ")))
    }

    /// `1` or `2`.
    #[must_use]
    pub fn version(&self) -> u32 {
        match self.version {
            Version::One => 1,
            Version::Two => 2,
        }
    }

    /// The folder in which groups are made.
    #[must_use]
    pub fn parent(&self) -> &Path {
        &self.parent
    }

    /// Makes a group with a quota and removes it again.
    ///
    /// # Errors
    /// [`QuotaError::Refused`].
    pub fn probe(&self) -> Result<(), QuotaError> {
        self.create("probe", 0.5).map(drop)
    }

    /// Makes a group that may use `cores` cores' worth of CPU time.
    ///
    /// # Errors
    /// [`QuotaError::Refused`].
    pub fn create(&self, name: &str, cores: f64) -> Result<CpuQuota, QuotaError> {
        let dir = self
            .parent
            .join(format!("{PREFIX}{}-{name}", std::process::id()));
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(refused("make the control group", &dir, error));
            }
            _ => {}
        }
        // From here on the guard removes the folder, whatever fails.
        let quota = CpuQuota { dir, cores };
        let granted = (cores * PERIOD_US as f64).round().max(1000.0) as u64;
        match self.version {
            Version::One => {
                quota.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
                quota.write("cpu.cfs_quota_us", &granted.to_string())?;
            }
            Version::Two => quota.write("cpu.max", &format!("{granted} {PERIOD_US}"))?,
        }
        Ok(quota)
    }

    /// Removes groups whose controller is gone. Says how many.
    fn sweep(&self, alive: impl Fn(u32) -> bool) -> usize {
        fs::read_dir(&self.parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let owner = name
                    .to_str()
                    .and_then(|name| name.strip_prefix(PREFIX))
                    .and_then(|rest| rest.split('-').next())
                    .and_then(|pid| pid.parse().ok());
                // A group with processes in it cannot be removed, so nobody is disturbed.
                owner.is_some_and(|pid| !alive(pid)) && fs::remove_dir(entry.path()).is_ok()
            })
            .count()
    }
}

/// Removes the empty groups that killed controllers left, and says how many.
pub fn sweep() -> usize {
    CpuController::find().map_or(0, |controller| {
        controller.sweep(|pid| Path::new(&format!("/proc/{pid}")).exists())
    })
}

/// A group with a quota. Dropping it removes the group; drop it after its processes have ended.
#[derive(Debug)]
#[must_use = "the quota ends when this is dropped"]
pub struct CpuQuota {
    dir: PathBuf,
    cores: f64,
}

impl CpuQuota {
    /// Moves a process with all its threads into the group.
    ///
    /// # Errors
    /// [`QuotaError::Refused`].
    pub fn add(&self, process: u32) -> Result<(), QuotaError> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// The cores that it grants.
    #[must_use]
    pub fn cores(&self) -> f64 {
        self.cores
    }

    fn write(&self, file: &str, text: &str) -> Result<(), QuotaError> {
        let path = self.dir.join(file);
        fs::write(&path, text).map_err(|error| refused("write to", &path, error))
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        let give_up = clock::now() + EMPTY_TIMEOUT;
        // Killed processes take a moment to leave.
        while fs::remove_dir(&self.dir)
            .is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
            && clock::now() < give_up
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn refused(what: &'static str, path: &Path, source: io::Error) -> QuotaError {
    QuotaError::Refused {
        what,
        path: path.to_owned(),
        source,
    }
}

/// The folder of the group `own` below a mount of `shown`, or the mount itself where a container
/// sees another part of the tree than the kernel names.
fn existing(point: &Path, shown: &str, own: &str) -> PathBuf {
    let below = match shown {
        "/" => own,
        shown => own.strip_prefix(shown).unwrap_or("/"),
    };
    let folder = point.join(below.trim_start_matches('/'));
    match folder.is_dir() {
        true => folder,
        false => point.to_owned(),
    }
}

/// The closest group from `start` up to `top` whose children have the CPU controller, or can be
/// given it. A group with processes of its own can give none, but its parent may.
fn delegating(start: &Path, top: &Path) -> Result<PathBuf, String> {
    let lists_cpu = |path: &Path| {
        fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|name| name == "cpu"))
    };
    let mut reason = format!("{} has no cpu controller", start.display());
    for group in start.ancestors().take_while(|group| group.starts_with(top)) {
        if !lists_cpu(&group.join("cgroup.controllers")) {
            continue;
        }
        let control = group.join("cgroup.subtree_control");
        if lists_cpu(&control) {
            return Ok(group.to_owned());
        }
        match fs::write(&control, "+cpu") {
            Ok(()) => return Ok(group.to_owned()),
            Err(error) => reason = format!("{}: {error}", control.display()),
        }
    }
    Err(reason)
}

/// A line of `/proc/self/mountinfo`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (own, filesystem) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(3);
        let mut filesystem = filesystem.split(' ');
        Some(Self {
            root: own.next()?,
            point: own.next()?,
            kind: filesystem.next()?,
            options: filesystem.nth(1)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "31 25 0:27 / /cg/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                       32 25 0:28 / /cg/cpuset rw,relatime - cgroup cgroup rw,cpuset\n";
    const TWO: &str = "31 25 0:27 / /cg rw,relatime shared:4 - cgroup2 cgroup2 rw\n";

    fn folder(root: &Path, path: &str) -> PathBuf {
        let path = root.join(path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn version_1_gets_period_and_quota_below_the_own_group() {
        let root = tempfile::tempdir().unwrap();
        let own = folder(root.path(), "cg/cpu/job");
        let found = CpuController::find_in(ONE, "3:cpuset:/\n2:cpu:/job\n", root.path()).unwrap();
        assert_eq!((found.version(), found.parent()), (1, own.as_path()));
        let quota = found.create("edge", 0.5).unwrap();
        let dir = own.join(format!("celslm-{}-edge", std::process::id()));
        let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap();
        assert_eq!(read("cpu.cfs_period_us"), "20000");
        assert_eq!(read("cpu.cfs_quota_us"), "10000");
        quota.add(42).unwrap();
        assert_eq!(read("cgroup.procs"), "42");
        assert!((quota.cores() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_group_that_the_container_does_not_see_is_the_mount_itself() {
        let root = tempfile::tempdir().unwrap();
        let mount = folder(root.path(), "cg/cpu");
        let found = CpuController::find_in(ONE, "2:cpu:/pod/7\n", root.path()).unwrap();
        assert_eq!(found.parent(), mount);
    }

    #[test]
    fn version_2_gets_one_line_where_the_controller_is_delegated() {
        let root = tempfile::tempdir().unwrap();
        let own = folder(root.path(), "cg/user/job");
        let user = root.path().join("cg/user");
        // The own group has processes and no controller; its parent hands the controller down.
        fs::write(own.join("cgroup.controllers"), "memory\n").unwrap();
        fs::write(user.join("cgroup.controllers"), "cpu memory\n").unwrap();
        fs::write(user.join("cgroup.subtree_control"), "cpu\n").unwrap();
        let found = CpuController::find_in(TWO, "0::/user/job\n", root.path()).unwrap();
        assert_eq!((found.version(), found.parent()), (2, user.as_path()));
        let _quota = found.create("edge", 1.5).unwrap();
        let dir = user.join(format!("celslm-{}-edge", std::process::id()));
        assert_eq!(
            fs::read_to_string(dir.join("cpu.max")).unwrap(),
            "30000 20000"
        );
    }

    #[test]
    fn a_missing_controller_is_said() {
        let root = tempfile::tempdir().unwrap();
        folder(root.path(), "cg");
        let error = CpuController::find_in(TWO, "0::/\n", root.path()).unwrap_err();
        assert!(
            error.to_string().contains("has no cpu controller"),
            "{error}"
        );
        let error = CpuController::find_in("", "", root.path()).unwrap_err();
        assert!(error.to_string().contains("none is mounted"), "{error}");
    }

    #[test]
    fn groups_of_dead_controllers_are_swept_and_no_others() {
        let root = tempfile::tempdir().unwrap();
        let parent = folder(root.path(), "cg/cpu");
        for name in ["celslm-17-edge", "celslm-18-edge", "celslm-x", "other"] {
            folder(&parent, name);
        }
        let controller = CpuController {
            version: Version::One,
            parent: parent.clone(),
        };
        assert_eq!(controller.sweep(|pid| pid == 18), 1);
        let mut left: Vec<String> = fs::read_dir(&parent)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["celslm-18-edge", "celslm-x", "other"]);
    }

    #[test]
    fn a_real_quota_slows_a_real_process_down() {
        let controller = match CpuController::find().and_then(|found| {
            found.probe()?;
            Ok(found)
        }) {
            Ok(controller) => controller,
            Err(error) => {
                eprintln!("skipped: {error}");
                return;
            }
        };
        let quota = controller.create("test", 0.25).unwrap();
        let dir = quota.dir.clone();
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        quota.add(child.id()).unwrap();
        let ticks = |pid: u32| -> u64 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
            // User time, in ticks of 10 ms; system time beside it.
            fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
        };
        let (before, start) = (ticks(child.id()), clock::now());
        std::thread::sleep(Duration::from_millis(1500));
        let used = (ticks(child.id()) - before) as f64 / 100.0;
        let share = used / start.elapsed().as_secs_f64();
        child.kill().unwrap();
        child.wait().unwrap();
        drop(quota);
        assert!(share < 0.4, "a quarter of a core became {share}");
        assert!(!dir.exists(), "{} is left over", dir.display());
    }
}
