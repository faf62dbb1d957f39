//! The functions of `modules/faulty.py`, one line each, and pools that serve them.

#![allow(non_upper_case_globals)] // they stand where the names of functions stand

use std::path::PathBuf;

use errback::{Builder, Pool, PythonTask, python};

/// A task that waits where one can see that it has begun, and never ends by itself.
pub(crate) type Endless = PythonTask<(String,), ()>;

pub(crate) const add: PythonTask<(i64, i64), i64> = python("faulty:add");
pub(crate) const hold: PythonTask<(String,), u32> = python("faulty:hold");
pub(crate) const echo: PythonTask<(Vec<u8>,), Vec<u8>> = python("faulty:echo");
pub(crate) const evaluated: PythonTask<(String,), i64> = python("faulty:evaluated");

pub(crate) const leave: PythonTask<(i32,), ()> = python("faulty:leave");
pub(crate) const system_exit: PythonTask<(i32,), ()> = python("faulty:system_exit");
pub(crate) const interrupt: PythonTask<(), ()> = python("faulty:interrupt");
pub(crate) const signal_oneself: PythonTask<(i32,), u32> = python("faulty:signal_oneself");
pub(crate) const recurse: PythonTask<(), u64> = python("faulty:recurse");
pub(crate) const allocate: PythonTask<(u64,), u64> = python("faulty:allocate");
pub(crate) const leave_after_the_answer: PythonTask<(), u32> =
    python("faulty:leave_after_the_answer");

pub(crate) const spin: Endless = python("faulty:spin");
pub(crate) const sleep: Endless = python("faulty:sleep");
pub(crate) const hold_the_gil: Endless = python("faulty:hold_the_gil");
pub(crate) const compute_with_the_gil: Endless = python("faulty:compute_with_the_gil");
pub(crate) const ignore_everything: Endless = python("faulty:ignore_everything");

pub(crate) const close_descriptors: PythonTask<(i32, i32), u32> =
    python("faulty:close_descriptors");
pub(crate) const take_standard_descriptors: PythonTask<(String,), Vec<i32>> =
    python("faulty:take_standard_descriptors");
pub(crate) const print_much: PythonTask<(usize,), usize> = python("faulty:print_much");
pub(crate) const leave_a_child: PythonTask<(String, String), u32> = python("faulty:leave_a_child");
pub(crate) const fork_many: PythonTask<(String, u32), ()> = python("faulty:fork_many");
pub(crate) const environment: PythonTask<(String,), Option<String>> = python("faulty:environment");
pub(crate) const working_directory: PythonTask<(), String> = python("faulty:working_directory");

/// Where the modules are.
pub(crate) fn modules() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/modules"))
}

/// A pool of the interpreter that was found, to be described further.
pub(crate) fn builder() -> Builder {
    Pool::builder()
        .python("faulty")
        .python_interpreter(crate::suite::interpreter())
        .python_path(modules())
}

pub(crate) fn pool(size: usize) -> Pool {
    builder().size(size).build().expect("a pool")
}
