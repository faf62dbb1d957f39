//! The attribute, as a program sees it that denies every lint it can: functions that can still be called, and what
//! becomes of each kind of result and error on the way through a real worker.

#![deny(missing_docs, warnings, unsafe_code)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use errback::{Failure, Pool, RemoteError, Task};
use serde::{Deserialize, Serialize};

/// Runs a task in a worker and waits for it.
fn remotely<F: Task>(task: F, args: F::Args) -> Result<F::Output, Failure> {
    let pool = Pool::builder().size(1).build().expect("a pool");
    let result = pool.apply_async(task, args).get();
    pool.close();
    result
}

/// Adds, by calling itself.
#[errback::task]
#[must_use]
pub fn add(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { add(a + 1, b - 1) }
}

#[test]
fn a_task_is_called_like_the_function_it_was() {
    assert_eq!(add(1, 2), 3);
    let as_pointer: fn(u64, u64) -> u64 = *add;
    assert_eq!(as_pointer(1, 2), 3);
    assert_eq!(remotely(add, (1, 2)).unwrap(), 3);
}

#[errback::task]
fn nothing() {}

#[errback::task]
fn one_tuple(pair: (u8, u8)) -> (u8,) {
    (pair.0 + pair.1,)
}

#[errback::task]
fn changed(mut bytes: Vec<u8>, _: [u8; 3], (a, b): (u8, i8)) -> Vec<u8> {
    bytes.push(a.wrapping_add_signed(b));
    bytes
}

#[errback::task]
fn borrows(text: &str, numbers: &[i64], path: &Path, one: &u8) -> String {
    format!("{text} {numbers:?} {} {one}", path.display())
}

#[errback::task]
fn count_words(text: Cow<'static, str>) -> HashMap<String, usize> {
    text.split(' ')
        .map(|word| (word.to_owned(), word.len()))
        .collect()
}

#[test]
fn arguments_and_results_of_all_shapes_travel() {
    assert_eq!(remotely(nothing, ()).unwrap(), ());
    assert_eq!(remotely(one_tuple, ((200, 55),)).unwrap(), (255,));
    assert_eq!(
        remotely(changed, (vec![0, 255], [1, 2, 200], (1, -1))).unwrap(),
        [0, 255, 0]
    );
    let args = ("a".into(), vec![-1, i64::MIN], PathBuf::from("/x"), 1);
    assert_eq!(
        remotely(borrows, args).unwrap(),
        "a [-1, -9223372036854775808] /x 1"
    );
    assert_eq!(
        remotely(count_words, ("one three".into(),)).unwrap()["three"],
        5
    );
}

mod inner {
    /// Visible where the function was.
    #[errback::task]
    pub(super) fn visible(of: super::Local) -> String {
        super::private_to_the_test(&of)
    }
}

/// A type of this file.
#[derive(Serialize, Deserialize)]
struct Local {
    name: String,
}

fn private_to_the_test(of: &Local) -> String {
    of.name.to_uppercase()
}

#[errback::task(name = "another name")]
fn named() -> u8 {
    7
}

#[errback::task]
fn r#match(r#type: u8) -> u8 {
    r#type + 1
}

#[test]
fn a_task_is_found_by_its_path_or_by_the_name_it_was_given() {
    assert_eq!(inner::visible.name(), "tasks::inner::visible");
    assert_eq!(
        remotely(inner::visible, (Local { name: "x".into() },)).unwrap(),
        "X"
    );
    assert_eq!(named.name(), "another name");
    assert_eq!(remotely(named, ()).unwrap(), 7);
    assert_eq!(r#match.name(), "tasks::match");
    assert_eq!(remotely(r#match, (1,)).unwrap(), 2);
}

#[test]
fn a_task_may_be_defined_inside_of_a_function() {
    #[errback::task]
    fn local(n: u8) -> u8 {
        n * 2
    }
    assert_eq!(remotely(local, (4,)).unwrap(), 8);
}

/// An alias, in which the attribute sees no `Result`.
type Fetched<T> = Result<T, std::io::Error>;

#[errback::task]
fn alias(path: String) -> Fetched<usize> {
    Ok(std::fs::read(path)?.len())
}

#[test]
fn a_result_behind_an_alias_is_a_result() {
    let length: usize = remotely(alias, ("/proc/self/status".into(),)).unwrap_or(1);
    assert!(length > 0);
    let failure = remotely(alias, ("/nowhere".into(),)).unwrap_err();
    let error = failure.check::<RemoteError>().expect("a remote error");
    assert_eq!(error.type_name, "std::io::error::Error");
    assert!(error.message.contains("No such file"));
}

/// An error that travels as itself.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
enum BankError {
    Overdrawn { by: u64 },
}

impl fmt::Display for BankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BankError::Overdrawn { by } = self;
        write!(f, "overdrawn by {by}")
    }
}

impl std::error::Error for BankError {}

#[errback::task]
fn typed(by: u64) -> Result<(), BankError> {
    Err(BankError::Overdrawn { by })
}

#[test]
fn an_error_that_can_be_encoded_comes_back_as_itself() {
    let failure = remotely(typed, (5,)).unwrap_err();
    assert_eq!(
        failure.check::<BankError>(),
        Some(&BankError::Overdrawn { by: 5 })
    );
    assert_eq!(failure.to_string(), "overdrawn by 5");
}

/// An error that is long.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Long(Vec<u8>);

impl fmt::Display for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl std::error::Error for Long {}

#[errback::task]
fn long(length: usize) -> Result<(), Long> {
    Err(Long(vec![7; length]))
}

#[test]
fn an_error_of_hundreds_of_kilobytes_comes_back_as_itself() {
    let failure = remotely(long, (300_000,)).unwrap_err();
    assert_eq!(failure.check::<Long>(), Some(&Long(vec![7; 300_000])));
}

/// An error that cannot travel, with a cause.
#[derive(Debug)]
struct Caused(BankError);

impl fmt::Display for Caused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no coffee")
    }
}

impl std::error::Error for Caused {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[errback::task]
fn untyped() -> Result<u8, Caused> {
    Err(Caused(BankError::Overdrawn { by: 1 }))
}

#[errback::task]
fn anyhows(context: bool) -> anyhow::Result<u8> {
    let error = anyhow::Error::new(Caused(BankError::Overdrawn { by: 1 }));
    Err(if context {
        error.context("at breakfast")
    } else {
        error
    })
}

#[errback::task]
fn boxed() -> Result<u8, Box<dyn std::error::Error>> {
    Err(Box::new(Caused(BankError::Overdrawn { by: 1 })))
}

#[errback::task]
fn boxed_and_sent() -> Result<u8, Box<dyn std::error::Error + Send + Sync>> {
    Err(Box::new(Caused(BankError::Overdrawn { by: 1 })))
}

#[errback::task]
fn fails() -> Result<u8, Failure> {
    Err(Caused(BankError::Overdrawn { by: 1 }).into())
}

#[track_caller]
fn remote_error(failure: &Failure) -> &RemoteError {
    failure.check::<RemoteError>().expect("a remote error")
}

#[test]
fn any_other_error_comes_back_as_what_it_said_and_what_its_causes_said() {
    for (failure, type_name) in [
        (remotely(untyped, ()).unwrap_err(), "tasks::Caused"),
        (remotely(anyhows, (false,)).unwrap_err(), "anyhow::Error"),
        (
            remotely(boxed, ()).unwrap_err(),
            "alloc::boxed::Box<dyn core::error::Error>",
        ),
        (
            remotely(boxed_and_sent, ()).unwrap_err(),
            "alloc::boxed::Box<dyn core::error::Error + core::marker::Send + core::marker::Sync>",
        ),
        (
            remotely(fails, ()).unwrap_err(),
            "errback_deferred::failure::Failure",
        ),
    ] {
        let error = remote_error(&failure);
        assert_eq!(error.type_name, type_name);
        assert_eq!(
            (error.message.as_str(), &error.chain[..]),
            ("no coffee", &["overdrawn by 1".to_owned()][..]),
            "{type_name}"
        );
        assert_eq!(
            std::error::Error::source(error).unwrap().to_string(),
            "overdrawn by 1"
        );
    }
    let failure = remotely(anyhows, (true,)).unwrap_err();
    assert_eq!(
        remote_error(&failure).chain,
        ["no coffee", "overdrawn by 1"]
    );
}

#[errback::task]
fn in_words() -> Result<u8, String> {
    Err("in words".into())
}

#[errback::task]
fn static_text() -> Result<u8, &'static str> {
    Err("in words")
}

/// It can only be debugged.
#[derive(Debug)]
struct Mute;

#[errback::task]
fn mute() -> Result<u8, Mute> {
    Err(Mute)
}

/// Not even that.
struct Nothing;

#[errback::task]
fn nothing_at_all() -> Result<u8, Nothing> {
    Err(Nothing)
}

#[test]
fn what_is_not_an_error_is_one_all_the_same() {
    let failure = remotely(in_words, ()).unwrap_err();
    assert_eq!(
        failure.error().downcast_ref::<String>().unwrap(),
        "in words"
    );
    let failure = remotely(static_text, ()).unwrap_err();
    assert_eq!(remote_error(&failure).message, "in words");
    let failure = remotely(mute, ()).unwrap_err();
    assert_eq!(remote_error(&failure).message, "Mute");
    let failure = remotely(nothing_at_all, ()).unwrap_err();
    assert_eq!(remote_error(&failure).message, "tasks::Nothing");
}

/// Old.
#[deprecated = "only to see that the expansion does not mind"]
#[errback::task]
pub fn old() {}

#[cfg(any())]
#[errback::task]
fn not_there(what: Missing) {}

#[errback::task]
#[cfg(any())]
fn not_there_either(what: Missing) {}

#[errback::task]
#[allow(
    clippy::too_many_arguments,
    clippy::many_single_char_names,
    non_snake_case
)]
fn Sixteen(
    a: u8,
    b: u8,
    c: u8,
    d: u8,
    e: u8,
    f: u8,
    g: u8,
    h: u8,
    i: u8,
    j: u8,
    k: u8,
    l: u8,
    m: u8,
    n: u8,
    o: u8,
    p: u8,
) -> u8 {
    a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p
}

#[test]
fn sixteen_arguments_are_not_too_many() {
    assert_eq!(
        remotely(Sixteen, (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)).unwrap(),
        16
    );
}

#[test]
#[ignore = "builds the crate anew, and reads what one version of the compiler prints; .ci/run asks for it"]
fn what_the_attribute_refuses_is_refused_at_the_right_place() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
