//! F9, F10, M6: large buffers to Python and back, in shared memory and without.

#![allow(non_upper_case_globals)] // they stand where the names of functions stand

use errback::{Buffer, NotSerialisable, Pool, PythonTask, python};
use serde::{Deserialize, Serialize};

use crate::suite::rows;
use crate::support::{failure, value};
use crate::tasks::*;

const look: PythonTask<(Buffer,), (String, bool, usize, u64, u8)> = python("faulty:look");
const same: PythonTask<(Buffer,), Buffer> = python("faulty:echo");
const same_as_vector: PythonTask<(Buffer,), Vec<u8>> = python("faulty:echo");
const keep_view: PythonTask<(Buffer,), ()> = python("faulty:keep_view");
const kept_views: PythonTask<(), Vec<Vec<u8>>> = python("faulty:kept_views");
const keep_no_views: PythonTask<(), ()> = python("faulty:keep_no_views");
const same_anywhere: PythonTask<(Buffer,), Three> = python("faulty:same_anywhere");
const as_array: PythonTask<(Buffer,), Array> = python("faulty:as_array");
const as_array_within: PythonTask<(Buffer,), Within> = python("faulty:as_array_within");
const large: PythonTask<(usize, u8), Buffer> = python("faulty:large");

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Three {
    one: Buffer,
    two: (u8, Vec<u8>),
    three: Buffer,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Array {
    dtype: String,
    shape: Vec<usize>,
    data: Buffer,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Within {
    arrays: Vec<Array>,
    note: String,
}

const LARGE: usize = 200_000;

fn numbers(length: usize, first: u8) -> Buffer {
    (0..length).map(|n| (n as u8).wrapping_add(first)).collect()
}

/// A pool in each of the ways in which buffers can travel.
fn pools() -> [Pool; 3] {
    [
        builder().size(1),
        builder().size(1).trust_workers(true),
        builder().size(1).shared_buffers(None),
    ]
    .map(|builder| builder.build().expect("a pool"))
}

rows! {
    fn m9_a_large_buffer_is_a_view_that_cannot_be_written_to() {
        let pool = pool(1);
        let looked = value(pool.apply_async(look, (numbers(LARGE, 0),)));
        let sum = (0..1000).map(|n| u64::from(n as u8)).sum();
        assert_eq!(looked, ("memoryview".to_string(), true, LARGE, sum, (LARGE - 1) as u8));
        assert_eq!(value(pool.apply_async(look, (numbers(1000, 0),))).0, "bytes");
    }

    fn m6_buffers_of_all_sizes_come_back_equal() {
        for pool in pools() {
            for size in [0, 1, 65_535, 65_536, LARGE, 3 << 20] {
                let bytes = numbers(size, 9);
                for _ in 0..3 {
                    assert!(value(pool.apply_async(same, (bytes.clone(),))) == bytes, "{size} bytes");
                }
                assert!(value(pool.apply_async(same_as_vector, (bytes.clone(),))) == bytes[..]);
            }
            let results = (0..20_u8).map(|byte| value(pool.apply_async(large, (LARGE, byte))));
            let results: Vec<Buffer> = results.collect();
            assert!((0..20_u8).zip(results).all(|(byte, it)| it == vec![byte; LARGE]));
            assert_eq!(pool.stats().died, 0);
        }
    }

    fn m6_buffers_of_one_call_and_of_a_map_lie_side_by_side() {
        for pool in pools() {
            let bytes = numbers(LARGE, 1);
            let three = value(pool.apply_async(same_anywhere, (bytes.clone(),)));
            assert!(three.one == bytes && three.two == (1, bytes.to_vec()) && three.three == bytes);
            for (n, result) in (0..).zip(pool.map(same, (0..50).map(|n| numbers(LARGE, n)))) {
                assert!(result.expect("a result") == numbers(LARGE, n));
            }
        }
    }

    fn m6_arrays_of_numpy_travel_as_buffers() {
        let pool = pool(1);
        let bytes = numbers(LARGE, 1);
        let is_good = |array: &Array| {
            array.dtype == "|u1" && array.shape == [2, LARGE / 2] && array.data == bytes
        };
        let job = pool.apply_async(as_array, (bytes.clone(),));
        match job.get() {
            Ok(array) => assert!(is_good(&array)),
            Err(failure) if failure.to_string().contains("numpy") => return,
            Err(failure) => panic!("{failure:?}"),
        }
        for _ in 0..100 {
            let within = value(pool.apply_async(as_array_within, (bytes.clone(),)));
            assert!(within.arrays.iter().all(is_good) && within.note.len() == 1000);
        }
    }

    fn f10_views_that_a_function_keeps_stay_as_they_were() {
        for pool in pools() {
            for n in 0..20 {
                value(pool.apply_async(keep_view, (numbers(LARGE, n),)));
                value(pool.apply_async(look, (numbers(LARGE, 100),)));
            }
            let expected: Vec<Vec<u8>> = (0..20).map(|n| (n + 5..n + 10).collect()).collect();
            assert_eq!(value(pool.apply_async(kept_views, ())), expected);
            value(pool.apply_async(keep_no_views, ()));
            for n in 0..5 {
                assert_eq!(value(pool.apply_async(look, (numbers(LARGE, n),))).2, LARGE);
            }
        }
    }

    fn f9_a_worker_with_little_memory_fails_the_job_that_asks_for_more() {
        let pool = builder().size(1).memory_limit(1 << 30).build().expect("a pool");
        let bytes = Buffer::with_len(1 << 30, |_| ());
        assert!(failure(pool.apply_async(look, (bytes,))).is::<NotSerialisable>());
        assert_eq!(value(pool.apply_async(look, (numbers(LARGE, 1),))).2, LARGE);
        assert_eq!(pool.stats().died, 0);
    }
}
