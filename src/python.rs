//! Functions that stay in Python: named here, run by a pool of Python workers.
//!
//! A [`PythonTask`] is a task that has a name and types, and no function in this program. What Python makes of the
//! arguments and Rust of the result is in `docs/python-workers.md`; how the workers are started is the pool's business
//! ([`Builder::python`](crate::Builder::python)).

use std::any::type_name;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::task::{RemoteError, Task, TaskEntry};
use crate::wire::{self, DecodeError, RemoteErrorBody};

/// A function of a Python module, by its name, with the types of its arguments and of its result; see [`python`].
pub struct PythonTask<Args, Out> {
    name: &'static str,
    /// A function's types, so that a task is `Send` and `Sync` whatever they are.
    types: PhantomData<fn(Args) -> Out>,
}

/// Names a function of a Python module, and says its types: one line for each function.
///
/// The name is `module:function`, both dotted where need be: `"images.resize:Thumbnail.make"`. `Args` is the tuple of
/// the arguments, `Out` what the function returns. Nobody checks them before the first call: a wrong number of
/// arguments is a [`NotSerialisable`](crate::NotSerialisable), a wrong type what the function raises
/// ([`RemoteError`](crate::RemoteError)), another result than `Out` a [`DecodeError`](crate::DecodeError).
///
/// ```no_run
/// use errback::{Pool, PythonTask, python};
///
/// const FIB: PythonTask<(u64,), u64> = python("fib:fib");
///
/// let pool = Pool::builder().python("fib").build()?; // fib.py, in the current directory
/// assert_eq!(pool.apply_async(FIB, (20,)).get()?, 6765);
/// # Ok::<(), errback::Failure>(())
/// ```
///
/// A constant with another form of name does not compile:
///
/// ```compile_fail,E0080
/// const FIB: errback::PythonTask<(u64,), u64> = errback::python("fib.fib");
/// # let _ = FIB;
/// ```
///
/// # Panics
/// When the name has another form. For a name that is known only when the program runs there is
/// [`PythonTask::named`].
pub const fn python<Args, Out>(name: &'static str) -> PythonTask<Args, Out> {
    assert!(
        is_python_name(name),
        "the name of a Python function is `module:function`"
    );
    PythonTask {
        name,
        types: PhantomData,
    }
}

impl<Args, Out> PythonTask<Args, Out> {
    /// As [`python`], for a name that is known only when the program runs.
    ///
    /// Each different name is kept for as long as the program runs.
    ///
    /// ```
    /// use errback::PythonTask;
    ///
    /// let function = "fib".to_string();
    /// let task = PythonTask::<(u64,), u64>::named(format!("fib:{function}"))?;
    /// # use errback::Task;
    /// # assert_eq!(task.name(), "fib:fib");
    /// assert!(PythonTask::<(u64,), u64>::named("fib").is_err());
    /// # Ok::<(), errback::NotAPythonName>(())
    /// ```
    ///
    /// # Errors
    /// The name is not `module:function`.
    pub fn named(name: impl AsRef<str>) -> Result<PythonTask<Args, Out>, NotAPythonName> {
        /// The names so far. Each is there once, so that a loop over a hundred names keeps a hundred.
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let name = name.as_ref();
        if !is_python_name(name) {
            return Err(NotAPythonName { name: name.into() });
        }
        let mut names = NAMES.lock();
        let kept = names.get(name).copied().unwrap_or_else(|| {
            let kept = &*name.to_owned().leak();
            names.insert(kept);
            kept
        });
        Ok(python(kept))
    }
}

/// A name is not `module:function`; see [`PythonTask::named`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NotAPythonName {
    /// The name.
    pub name: String,
}

impl fmt::Display for NotAPythonName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not the name of a Python function: that is `module:function`",
            self.name
        )
    }
}

impl std::error::Error for NotAPythonName {}

/// Whether a name is `module:function`: two dotted names, no part of which is empty. Which characters Python allows in
/// a name is left to Python.
pub(crate) const fn is_python_name(name: &str) -> bool {
    let name = name.as_bytes();
    let (mut at, mut colons, mut empty) = (0, 0, true);
    while at < name.len() {
        match name[at] {
            b'.' | b':' if empty => return false,
            b'.' => empty = true,
            b':' => {
                empty = true;
                colons += 1;
            }
            b' ' | b'/' => return false,
            _ => empty = false,
        }
        at += 1;
    }
    colons == 1 && !empty
}

// Not derived: that would ask the same of the types.
impl<Args, Out> Clone for PythonTask<Args, Out> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Args, Out> Copy for PythonTask<Args, Out> {}

impl<Args, Out> fmt::Debug for PythonTask<Args, Out> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (args, out) = (type_name::<Args>(), type_name::<Out>());
        write!(f, "{}{args} -> {out}", self.name)
    }
}

impl<Args, Out> Task for PythonTask<Args, Out>
where
    Args: Serialize + 'static,
    Out: DeserializeOwned + Send + 'static,
{
    type Args = Args;
    type Output = Out;

    fn name(&self) -> &'static str {
        self.name
    }

    fn entry(&self) -> Option<&'static TaskEntry> {
        None
    }

    fn decode_result(bytes: &[u8]) -> Result<Out, DecodeError> {
        wire::decode_value(bytes).map_err(is_no::<Out>)
    }

    fn decode_next(values: &mut wire::ValueReader<'_>) -> Result<Out, DecodeError> {
        values.read().map_err(is_no::<Out>)
    }

    fn decode_error(body: RemoteErrorBody) -> anyhow::Error {
        RemoteError::from(body).into()
    }
}

#[cold]
fn is_no<Out>(error: DecodeError) -> DecodeError {
    error.at(format_args!("the result is no {}", type_name::<Out>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_module_and_a_function() {
        for good in ["fib:fib", "a.b:C.d", "größe:maß", "m:_f"] {
            assert!(is_python_name(good), "{good}");
        }
        for bad in [
            "", ":", "fib", "fib:", ":fib", "a::b", "a:b:c", "a.:b", "a:.b", "a..b:c", "a/b:c",
            "a b:c",
        ] {
            assert!(!is_python_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_name_that_is_made_is_kept_once() {
        let one = PythonTask::<(), ()>::named("kept:once").unwrap();
        let two = PythonTask::<(u8,), u8>::named(String::from("kept:once")).unwrap();
        assert!(std::ptr::eq(one.name(), two.name()));
        let refused = PythonTask::<(), ()>::named("kept.once").unwrap_err();
        assert!(refused.to_string().contains("`kept.once`"), "{refused}");
    }

    #[test]
    #[should_panic(expected = "`module:function`")]
    fn a_name_of_another_form_panics() {
        let _ = python::<(u64,), u64>(std::hint::black_box("fib.fib"));
    }

    #[test]
    fn a_task_may_cross_threads_whatever_its_types() {
        fn crosses<T: Copy + Send + Sync>(_: T) {}
        crosses(python::<(std::rc::Rc<u8>,), std::cell::Cell<u8>>("m:f"));
        assert_eq!(
            format!("{:?}", python::<(u64,), u8>("m:f")),
            "m:f(u64,) -> u8"
        );
    }
}
