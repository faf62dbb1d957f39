//! E, M1, M2, R8: what Python raises, and what it cannot read or write.

use errback::{
    EncodeError, Failure, NotSerialisable, PythonTask, RemoteError, UnknownTask, python,
};
use serde::Serialize;

use crate::suite::rows;
use crate::support::{Belongings, Invariant, failure, succeeds, value};
use crate::tasks::*;

fn invariant() -> Invariant {
    let before = Belongings::now();
    Invariant::of(pool(2), before)
}

/// What a function without arguments raises, in a pool that is none the worse for it.
#[track_caller]
fn raised(name: &'static str) -> (Failure, RemoteError) {
    let invariant = invariant();
    let died = invariant.pool.stats().died;
    let failed = failure(invariant.pool.apply_async(python::<(), ()>(name), ()));
    let error = failed.check::<RemoteError>().cloned();
    assert_eq!(invariant.pool.stats().died, died, "its worker goes on");
    invariant.check();
    let error = error.unwrap_or_else(|| panic!("{failed:?}"));
    (failed, error)
}

/// Which sentence the result of an expression is refused with.
#[track_caller]
fn refusal(invariant: &Invariant, expression: &str) -> String {
    let failed = failure(
        invariant
            .pool
            .apply_async(evaluated, (expression.to_string(),)),
    );
    let refused = failed.check::<NotSerialisable>();
    let refused = refused.unwrap_or_else(|| panic!("{expression}: {failed:?}"));
    assert!(refused.result);
    refused.message.clone()
}

rows! {
    fn e1_an_exception_is_known_by_its_names_and_tells_its_story() {
        let (failed, error) = raised("faulty:raise_two_arguments");
        assert_eq!(failed.type_name(), "faulty.TwoArguments");
        assert!(failed.check_name("builtins.Exception") && !failed.check_name("builtins.ValueError"));
        assert!(failed.trap_name("builtins.BaseException").is_ok());
        assert_eq!(error.to_string(), "1 and 2");
        let story = format!("{error:#}");
        assert!(story.starts_with("Traceback (most recent call last):"), "{story}");
        assert!(story.contains("faulty.py") && story.contains("raise TwoArguments(1, 2)"), "{story}");
        assert!(!story.contains("errback_worker"), "our own frames are no part of it: {story}");
        assert!(story.ends_with("faulty.TwoArguments: 1 and 2"), "{story}");
    }

    fn e1_an_exception_whose_text_cannot_be_had_still_has_a_name() {
        let (failed, error) = raised("faulty:raise_mute");
        assert!(failed.check_name("faulty.Mute") && failed.check_name("builtins.ValueError"));
        assert!(error.message.contains("RuntimeError"), "{error}");
    }

    fn e1_causes_are_told_and_bounded() {
        let invariant = invariant();
        let task = python::<(u32,), ()>("faulty:raise_chain");
        let failed = failure(invariant.pool.apply_async(task, (80,)));
        let error = failed.check::<RemoteError>().expect("an exception");
        assert_eq!(error.to_string(), "number 79");
        assert_eq!(error.chain.len(), 50);
        assert!(error.chain[0].contains("number 78"), "{:?}", error.chain);
        assert_eq!(failed.chain().count(), 51);
        invariant.check();
        let (_, error) = raised("faulty:raise_loop");
        assert!(error.chain.len() <= 2 && error.chain[0].contains("two"), "{:?}", error.chain);
    }

    fn e1_notes_and_long_texts_come_along_as_far_as_they_may() {
        let (_, error) = raised("faulty:raise_noted");
        assert_eq!(error.notes, ["first", "second"]);
        let (_, error) = raised("faulty:raise_long");
        assert!(error.message.len() <= 65_536 && error.message.contains("cut here"));
    }

    fn e1_a_group_has_its_members() {
        let (failed, error) = raised("faulty:raise_group");
        if failed.check_name("builtins.NameError") {
            return println!("this Python has no groups: they came with 3.11");
        }
        assert!(failed.check_name("builtins.ExceptionGroup") && failed.check_name("builtins.BaseExceptionGroup"));
        assert_eq!(error.exceptions[0].type_name, "builtins.ValueError");
        assert_eq!(error.exceptions[1].exceptions[0].message, "'k'");
        assert!(format!("{error:#}").contains("KeyError"), "{error:#}");
    }

    fn e1_an_item_of_a_map_has_its_own_exception() {
        let pool = pool(2);
        let results: Vec<_> = pool.map(evaluated, ["1", "1/0", "{1}", "2"].map(String::from)).chunk_size(4).collect();
        assert_eq!(*results[0].as_ref().expect("a value"), 1);
        assert!(results[1].as_ref().is_err_and(|failure| failure.check_name("builtins.ZeroDivisionError")));
        assert!(results[2].as_ref().is_err_and(|failure| failure.is::<NotSerialisable>()));
        assert_eq!(*results[3].as_ref().expect("a value"), 2);
    }

    fn m1_a_result_that_cannot_be_sent_says_where_and_why() {
        let invariant = invariant();
        let died = invariant.pool.stats().died;
        let says = |expression: &str, words: &[&str]| {
            let sentence = refusal(&invariant, expression);
            assert!(words.iter().all(|word| sentence.contains(word)), "{expression}: {sentence}");
        };
        says("lambda: 0", &["result", "function"]);
        says("{'a': [1, {2}]}", &["['a'][1]", "set"]);
        says("[2**70]", &["[0]", "71 bits"]);
        says("'\\ud800'", &["surrogate"]);
        says("[x := [], x.append(x)] and x", &["itself"]);
        says("ValueError('no')", &["ValueError", "raise"]);
        says("__import__('functools').reduce(lambda a, _: [a], range(600), 0)", &["deep"]);
        assert_eq!(invariant.pool.stats().died, died);
        invariant.check();
    }

    fn m2_an_argument_that_cannot_be_sent_fails_on_the_spot() {
        #[derive(Serialize)]
        struct Odd(Option<Option<u8>>);
        let mut invariant = invariant().with_bystander();
        let task: PythonTask<(Odd,), ()> = python("faulty:described");
        let refused = invariant.pool.apply_async(task, (Odd(Some(None)),));
        invariant.queue();
        assert!(refused.ready());
        assert!(failure(refused).is::<EncodeError>());
        invariant.check();
    }

    fn r8_arguments_that_do_not_fit_are_refused_with_what_would() {
        let invariant = invariant();
        let task = python::<(u8,), ()>("faulty:add");
        let failed = failure(invariant.pool.apply_async(task, (1,)));
        let refused = failed.check::<NotSerialisable>().expect("a refusal");
        assert!(!refused.result && refused.message.contains("(a, b)"), "{failed}");
        let task = python::<(u8, u8), String>("faulty:add");
        let failed = failure(invariant.pool.apply_async(task, (1, 2)));
        assert!(failed.is::<errback::DecodeError>(), "{failed:?}");
        assert!(failed.to_string().contains("String"), "{failed}");
        invariant.check();
    }

    fn r8_a_function_that_is_not_there_is_missed_by_its_job_alone() {
        let invariant = invariant();
        let missed = |name: &'static str| {
            let failed = failure(invariant.pool.apply_async(python::<(i64, i64), i64>(name), (1, 2)));
            assert!(failed.is::<UnknownTask>(), "{failed:?}");
            failed.to_string()
        };
        assert!(missed("faulty:ad").contains("did you mean `faulty:add`?"));
        assert!(missed("other:add").contains("was not given"));
        assert!(missed("faulty:os.getpid").contains("no task"));
        invariant.check();
    }

    fn r8_each_kind_of_pool_says_that_it_is_the_wrong_one() {
        #[errback::task]
        fn in_rust() {}
        let failed = failure(pool(1).apply_async(in_rust, ()));
        assert!(failed.is::<UnknownTask>());
        assert!(failed.to_string().contains("is a Rust function"), "{failed}");
        let failed = failure(crate::support::pool(1).apply_async(add, (1, 2)));
        assert!(failed.is::<UnknownTask>());
        assert!(failed.to_string().contains("is a Python function"), "{failed}");
    }

    fn r8_a_module_that_marks_its_tasks_serves_those() {
        let pool = builder().python("marked").size(1).build().expect("a pool");
        assert_eq!(value(pool.apply_async(python::<(u8,), u8>("marked:served"), (1,))), 1);
        assert_eq!(value(pool.apply_async(python::<(u8,), u8>("marked:another_name"), (1,))), 2);
        assert!(failure(pool.apply_async(python::<(u8,), u8>("marked:helper"), (1,))).is::<UnknownTask>());
        // The other module is served as ever, a static function of a class included.
        assert_eq!(value(pool.apply_async(python::<(u8,), u8>("faulty:Counter.double"), (4,))), 8);
        let named = PythonTask::<(i64, i64), i64>::named("faulty:".to_string() + "add").expect("a name");
        succeeds(pool.apply_async(named, (1, 1)));
    }
}
