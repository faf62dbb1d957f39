//! M9: what values of Rust are to Python, and those of Python to Rust; the table of docs/python-workers.md.

use std::collections::BTreeMap;
use std::fmt::Debug;

use errback::{EncodeError, Pool, PythonTask, python};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::suite::rows;
use crate::support::{failure, value};
use crate::tasks::*;

fn described_as<T: Serialize + 'static>(pool: &Pool, value: T) -> String {
    let task: PythonTask<(T,), String> = python("faulty:described");
    crate::support::value(pool.apply_async(task, (value,)))
}

/// A value comes back as it went.
#[track_caller]
fn comes_back<T: Serialize + DeserializeOwned + Clone + PartialEq + Debug + Send + 'static>(
    pool: &Pool,
    given: T,
) {
    let task: PythonTask<(T,), T> = python("faulty:echo");
    assert_eq!(value(pool.apply_async(task, (given.clone(),))), given);
}

fn evaluates_to<T: DeserializeOwned + Debug + Send + 'static>(pool: &Pool, expression: &str) -> T {
    let task: PythonTask<(String,), T> = python("faulty:evaluated");
    value(pool.apply_async(task, (expression.to_string(),)))
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Point {
    x: i32,
    y: Option<i32>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
enum Shape {
    Empty,
    Circle(u8),
    Line(u8, u8),
    Rectangle { w: u8 },
}

/// An array of numpy's, as it travels.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
struct Array {
    dtype: String,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The rows of the table in the document: an expression of Rust, and what Python's `repr` says to it.
fn rows_of_the_document() -> Vec<(String, String)> {
    let document = include_str!("../../docs/python-workers.md");
    let table = document
        .split("<!-- from Rust to Python -->")
        .nth(1)
        .expect("the table");
    let table = table.split("\n\n").next().expect("its end");
    let cell = |cell: &str| cell.trim_matches('`').to_string();
    let rows = table.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let is_value = cells.get(2)?.starts_with('`');
        is_value.then(|| (cell(cells[2]), cell(cells[3])))
    });
    rows.collect()
}

rows! {
    fn m9_values_of_rust_are_to_python_what_the_document_says() {
        let pool = pool(1);
        let mut seen: Vec<(String, String)> = Vec::new();
        macro_rules! rows {
            ($($value:expr),* $(,)?) => {$(
                let said = described_as(&pool, $value);
                let (_, said) = said.split_once(' ').expect("a type and a value");
                let spelled: String = stringify!($value).split_whitespace().collect::<Vec<_>>().join(" ");
                seen.push((spelled, said.to_string()));
            )*};
        }
        rows![
            (),
            true,
            u64::MAX,
            i64::MIN,
            1u128,
            0.1f32,
            f64::NAN,
            -0.0f64,
            'é',
            "a\0b",
            vec![0u8, 255],
            vec![1u16, 300],
            (1, "a"),
            Point { x: 1, y: None },
            BTreeMap::from([(1u8, true)]),
            None::<u8>,
            Some(5u8),
            Shape::Empty,
            Shape::Circle(1),
            Shape::Line(1, 2),
            Shape::Rectangle { w: 1 },
        ];
        assert_eq!(seen, rows_of_the_document());
        pool.close();
    }

    fn m9_values_come_back_as_they_went() {
        let pool = pool(1);
        comes_back(&pool, ());
        comes_back(&pool, (u64::MAX, i64::MIN, i64::MAX, 0u8));
        comes_back(&pool, (u128::MAX, i128::MIN));
        comes_back(&pool, (f32::MIN_POSITIVE, f64::MAX, f64::INFINITY));
        comes_back(&pool, String::from("e\u{301} \u{e9} a\0b \u{1f980}"));
        comes_back(&pool, (vec![0u8, 255], Vec::<u8>::new(), vec![1u16, 300]));
        comes_back(&pool, BTreeMap::from([(-1i64, "minus"), (300, "more")].map(|(n, s)| (n, s.to_string()))));
        comes_back(&pool, BTreeMap::<String, u8>::new());
        comes_back(&pool, (Some(5u8), None::<u8>, vec![None, Some(1u8)]));
        comes_back(&pool, (Point { x: i32::MIN, y: None }, Point { x: 0, y: Some(1) }));
        comes_back(&pool, vec![Shape::Empty, Shape::Circle(1), Shape::Line(1, 2), Shape::Rectangle { w: 3 }]);
        let zero: PythonTask<(f64,), f64> = python("faulty:echo");
        assert!(value(pool.apply_async(zero, (-0.0,))).is_sign_negative());
        assert!(value(pool.apply_async(zero, (f64::NAN,))).is_nan());
    }

    fn m9_what_would_change_on_its_way_is_refused() {
        let pool = pool(1);
        let task: PythonTask<(Option<Option<u8>>,), ()> = python("faulty:echo");
        assert!(failure(pool.apply_async(task, (Some(None),))).is::<EncodeError>());
        let task: PythonTask<(Option<()>,), ()> = python("faulty:echo");
        assert!(failure(pool.apply_async(task, (Some(()),))).is::<EncodeError>());
        // A key that Python cannot have in a dict.
        let task: PythonTask<(BTreeMap<Vec<u16>, u8>,), ()> = python("faulty:echo");
        let failed = failure(pool.apply_async(task, (BTreeMap::from([(vec![1, 300], 1)]),)));
        assert!(failed.is::<errback::NotSerialisable>(), "{failed:?}");
        value(pool.apply_async(add, (1, 1)));
    }

    fn m9_values_of_python_are_to_rust_what_the_document_says() {
        let pool = pool(1);
        assert_eq!(evaluates_to::<(u8, String)>(&pool, "(1, 'a')"), (1, "a".into()));
        assert_eq!(evaluates_to::<Vec<u8>>(&pool, "bytearray(b'ab')"), b"ab");
        assert_eq!(evaluates_to::<Vec<u8>>(&pool, "memoryview(b'ab')"), b"ab");
        assert_eq!(evaluates_to::<f64>(&pool, "1e300"), 1e300);
        let any: serde_json::Value = evaluates_to(&pool, "{'a': [1, None, {'b': 2.5}]}");
        assert_eq!(any, serde_json::json!({"a": [1, null, {"b": 2.5}]}));
        assert!(evaluates_to::<f64>(&pool, "float('nan')").is_nan());
        let said: String = evaluates_to(&pool, "__import__('datetime').datetime(2009, 3, 1, 12, 30)");
        assert_eq!(said, "2009-03-01T12:30:00");
        let said: String = evaluates_to(&pool, "__import__('decimal').Decimal('0.10')");
        assert_eq!(said, "0.10");
        let said: Vec<u8> = evaluates_to(&pool, "__import__('uuid').UUID(int=1)");
        assert_eq!(said, 1u128.to_be_bytes());
        let said: Point = evaluates_to(
            &pool,
            "__import__('dataclasses').make_dataclass('P', ['x', 'y'])(1, None)",
        );
        assert_eq!(said, Point { x: 1, y: None });
        let said: BTreeMap<u8, Option<bool>> = evaluates_to(&pool, "{1: True, 2: None}");
        assert_eq!(said, BTreeMap::from([(1, Some(true)), (2, None)]));
        // As a map it is no struct: a field is missing.
        let task: PythonTask<(String,), Shape> = python("faulty:evaluated");
        let failed = failure(pool.apply_async(task, ("{'Square': 1}".into(),)));
        assert!(failed.is::<errback::DecodeError>(), "{failed:?}");
    }

    fn m9_arrays_of_numpy_travel_as_their_bytes() {
        let pool = pool(1);
        let there: PythonTask<(String,), bool> = python("faulty:evaluated");
        let numpy = "bool(__import__('importlib.util').util.find_spec('numpy'))";
        if !value(pool.apply_async(there, (numpy.into(),))) {
            return println!("skipped: this Python has no numpy: pip install numpy");
        }
        let range: PythonTask<(u32,), Array> = python("faulty:numpy_range");
        let array = value(pool.apply_async(range, (6,)));
        let data: Vec<u8> = (0..6i32).flat_map(i32::to_le_bytes).collect();
        let expected = Array { dtype: "<i4".into(), shape: vec![2, 3], data };
        assert_eq!(array, expected);
        let sum: PythonTask<(Array,), f64> = python("faulty:numpy_sum");
        assert_eq!(value(pool.apply_async(sum, (array,))), 15.0);
        assert_eq!(value(pool.apply_async(add, (1, 1))), 2);
    }
}
