//! R: workers that cannot start, and what their jobs are told.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use errback::{Builder, Exit, Pool, SpawnFailed, SpawnFailure, python};

use crate::suite::{interpreter, rows};
use crate::support::{Belongings, Gate, close, failure_of, succeeds, value};
use crate::tasks::*;

/// What jobs of such a pool are told, soon and after few starts.
#[track_caller]
fn refused(builder: Builder, starts: u64) -> SpawnFailed {
    let before = Belongings::now();
    let pool = builder.size(2).build().expect("a pool");
    let jobs: Vec<_> = (0..5).map(|n| pool.apply_async(add, (n, 1))).collect();
    let mut failures: Vec<SpawnFailed> = jobs.into_iter().map(failure_of).collect();
    assert!(pool.stats().spawned <= starts, "{:?}", pool.stats());
    close(pool, &before);
    let failed = failures.pop().expect("five");
    assert!(!failed.to_string().contains("run_if_worker"), "{failed}");
    failed
}

/// A program that cannot be a worker and says so, in these words. It is started once.
#[track_caller]
fn says(builder: Builder, words: &[&str]) {
    let failed = refused(builder, 1);
    assert!(
        matches!(failed.reason, SpawnFailure::Ended(Exit::Status(78))),
        "{failed:?}"
    );
    let text = failed.to_string();
    assert!(
        words.iter().all(|word| text.contains(word)),
        "{text}\n{}",
        failed.stderr
    );
}

fn serving(module: &str) -> Builder {
    builder().python(module)
}

/// A directory of its own in which there is one file.
struct Directory(PathBuf);

impl Directory {
    fn with(file: &str, text: &str) -> Directory {
        let path = PathBuf::from(Gate::new().path.clone() + ".d");
        std::fs::create_dir(&path).expect("a directory");
        std::fs::write(path.join(file), text).expect("a file");
        Directory(path)
    }

    fn file(&self, name: &str) -> OsString {
        self.0.join(name).into()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn may_be_run(path: &OsString) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("a file");
}

rows! {
    fn r9_an_interpreter_that_is_not_there_is_told_at_once() {
        let failed = refused(builder().python_interpreter("/no/such/python3"), 0);
        assert_eq!(failed.attempts, 1);
        assert!(matches!(failed.reason, SpawnFailure::Refused(_)));
        let text = failed.to_string();
        assert!(text.contains("/no/such/python3 (faulty)") && text.contains("Python 3.9"), "{text}");
        let venv = Pool::builder().python("faulty").python_venv("/no/such/venv");
        assert!(refused(venv, 0).program.contains("/no/such/venv/bin/python"));
    }

    fn r9_an_interpreter_without_msgpack_says_how_to_get_it() {
        // A module of that name which is not it.
        let directory = Directory::with("msgpack.py", "raise ImportError('No module named msgpack')");
        // Directories are searched in the order in which they are given: this one has to be the first.
        let first = Pool::builder()
            .python("faulty")
            .python_interpreter(interpreter())
            .python_path(&directory.0)
            .python_path(modules());
        says(first, &["msgpack", "pip install"]);
    }

    fn r9_an_interpreter_that_is_too_old_says_so() {
        // It runs what comes after -c as an older Python would.
        let directory = Directory::with(
            "python3",
            &format!(
                "#!/bin/sh\nshift\ncode=$1\nshift\nexec {} -c \"import sys\nsys.version_info = (3, 8, 1)\nexec(sys.argv.pop(1))\" \"$code\" \"$@\"\n",
                interpreter()
            ),
        );
        let python3 = directory.file("python3");
        may_be_run(&python3);
        says(builder().python_interpreter(python3), &["Python 3.9 or later is needed"]);
    }

    fn r1_a_module_that_is_not_there_is_told_once() {
        says(serving("no_such_module"), &["no_such_module"]);
    }

    fn r1_a_module_that_raises_is_told_with_what_it_raised() {
        says(serving("raises"), &["raises"]);
        let failed = refused(serving("raises"), 1);
        assert!(failed.stderr.contains("RuntimeError: the library is not there"), "{}", failed.stderr);
        assert!(failed.stderr.contains("raises.py"), "{}", failed.stderr);
    }

    fn r1_a_module_that_ends_the_process_is_tried_again_but_not_without_end() {
        let failed = refused(serving("leaves"), 6);
        assert!(matches!(failed.reason, SpawnFailure::Ended(Exit::Status(3))), "{failed:?}");
        assert_eq!(failed.attempts, 5);
        assert!(failed.to_string().contains("imported"), "{failed}");
    }

    fn r1_r2_a_module_that_hangs_has_until_the_boot_deadline() {
        let builder = serving("hangs").boot_deadline(Duration::from_secs(1));
        let failed = refused(builder, 1);
        assert!(matches!(failed.reason, SpawnFailure::Silent(_)), "{failed:?}");
        assert!(failed.to_string().contains("boot_deadline"), "{failed}");
    }

    fn r1_a_limit_that_leaves_no_room_is_told() {
        let failed = refused(builder().memory_limit(16 << 20), 6);
        assert!(matches!(failed.reason, SpawnFailure::Ended(_)), "{failed:?}");
        assert!(!failed.stderr.is_empty());
    }

    fn r7_a_worker_needs_no_environment_but_says_when_its_interpreter_is_not_found() {
        let python = which(interpreter());
        let builder = builder().python_interpreter(&python).env_clear().env("SAID", "so").current_dir("/").size(1);
        let pool = builder.build().expect("a pool");
        assert_eq!(value(pool.apply_async(environment, ("SAID".into(),))).as_deref(), Some("so"));
        for gone in ["PATH", "HOME", "ERRBACK_WORKER", "ERRBACK_WORKER_SOURCE"] {
            assert_eq!(value(pool.apply_async(environment, (gone.into(),))), None, "{gone}");
        }
        assert_eq!(value(pool.apply_async(working_directory, ())), "/");
        let failed = refused(serving("faulty").python_interpreter("no-such-python").env("PATH", "/nowhere"), 0);
        assert!(failed.to_string().contains("no-such-python"), "{failed}");
    }

    fn a_module_in_the_directory_of_the_worker_is_found() {
        let directory = Directory::with("here.py", "def which():\n    return __file__\n");
        let builder = Pool::builder().python("here").python_interpreter(interpreter()).current_dir(&directory.0);
        let pool = builder.size(1).build().expect("a pool");
        let path = value(pool.apply_async(python::<(), String>("here:which"), ()));
        assert!(path.ends_with("here.py"), "{path}");
    }

    fn the_interpreter_gets_its_options() {
        let pool = builder().python_args(["-O", "-B"]).size(1).build().expect("a pool");
        assert_eq!(value(pool.apply_async(python::<(), [u8; 2]>("faulty:flags"), ())), [1, 1]);
    }

    fn k7_a_worker_that_dies_at_its_start_is_replaced_and_its_job_waits() {
        let mark = Gate::new().path.clone() + ".n";
        let directory = Directory::with(
            "python3",
            &format!("#!/bin/sh\nif mkdir {mark} 2>/dev/null; then kill -9 $$; fi\nexec {} \"$@\"\n", interpreter()),
        );
        let python3 = directory.file("python3");
        may_be_run(&python3);
        let pool = builder().python_interpreter(python3).size(2).build().expect("a pool");
        succeeds(pool.apply_async(add, (1, 1)));
        assert_eq!(pool.stats().failed_starts, 0);
        std::fs::remove_dir(mark).expect("its mark");
    }
}

/// The path of a command.
fn which(command: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(command));
    found
        .chain([PathBuf::from(command)])
        .find(|path| path.is_absolute() && path.exists())
        .expect("the interpreter is somewhere")
}
