//! `docs/protocol.md` is what the code does: its examples are read from the file and run in both directions, and this
//! test plays the host to a real worker, byte by byte.
//!
//! The worker is this test binary started again, which the hook before `main` catches; that the tests do not run in it
//! is itself a thing that is tested here.

use std::collections::BTreeMap;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use errback::Task;
use errback::wire::{
    self, Answer, EncodeError, ErrorKind, FrameReader, HostHello, MAX_DEPTH, MAX_FRAME, Message,
    Outcome, RemoteErrorBody, WorkerHello, decode_value, encode_call, encode_chunk,
};
use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::{Deserialize, Serialize};

/// Nothing here takes a second. This is when a test gives up.
const DEADLINE: Duration = Duration::from_secs(60);

// ---------------------------------------------------------------------------------------------------------------------
// The examples of the document

const DOCUMENT: &str = include_str!("../docs/protocol.md");

struct Example {
    name: &'static str,
    /// The message in JSON, where it has one.
    json: Option<serde_json::Value>,
    frame: Vec<u8>,
}

/// The fenced blocks whose first word is `kind`.
fn examples(kind: &str) -> Vec<Example> {
    let mut found = Vec::new();
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line
            .strip_prefix("```")
            .and_then(|info| info.strip_prefix(kind)?.strip_prefix(' '))
        else {
            continue;
        };
        let block: Vec<_> = lines
            .by_ref()
            .take_while(|line| !line.starts_with("```"))
            .collect();
        let json = block[0]
            .strip_prefix("# ")
            .map(|json| serde_json::from_str(json).expect(name));
        let frame = block
            .iter()
            .flat_map(|line| hex(line.split('#').next().unwrap()))
            .collect();
        found.push(Example { name, json, frame });
    }
    assert!(!found.is_empty(), "no block of kind {kind}");
    found
}

fn hex(digits: &str) -> Vec<u8> {
    digits
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16).expect(digits))
        .collect()
}

/// Any MessagePack value as the JSON of the document.
fn json(value: &[u8]) -> serde_json::Value {
    struct Json(serde_json::Value);

    impl<'de> Deserialize<'de> for Json {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
            deserializer.deserialize_any(JsonVisitor).map(Json)
        }
    }

    struct JsonVisitor;

    impl<'de> serde::de::Visitor<'de> for JsonVisitor {
        type Value = serde_json::Value;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("anything")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(serde_json::Value::Null)
        }

        fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
            Ok(number.into())
        }

        fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
            Ok(text.into())
        }

        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(serde_json::json!({ "bin": digits }))
        }

        fn visit_i8<E>(self, number: i8) -> Result<Self::Value, E> {
            Ok(number.into())
        }

        fn visit_newtype_struct<D: serde::Deserializer<'de>>(
            self,
            extension: D,
        ) -> Result<Self::Value, D::Error> {
            let mut parts = extension.deserialize_any(JsonVisitor)?;
            parts[1] = parts[1]["bin"].take();
            Ok(serde_json::json!({ "ext": parts }))
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(
            self,
            mut items: A,
        ) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(Json(item)) = items.next_element()? {
                all.push(item);
            }
            Ok(all.into())
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut members: A,
        ) -> Result<Self::Value, A::Error> {
            let mut all = serde_json::Map::new();
            while let Some((name, Json(value))) = members.next_entry::<String, _>()? {
                all.insert(name, value);
            }
            Ok(all.into())
        }
    }

    decode_value::<Json>(value).expect("a value").0
}

#[test]
fn the_documents_examples_are_whole_frames_of_what_they_say() {
    for Example {
        name,
        json: said,
        frame,
    } in examples("hex")
    {
        let mut reader = FrameReader::new(MAX_FRAME);
        reader.extend(&frame);
        let body = reader.next_frame().expect(name).expect(name);
        assert_eq!(Some(json(body)), said, "{name}");
        Message::parse(body).expect(name);
        assert!(reader.is_empty(), "{name}");
    }
}

#[test]
fn the_documents_examples_are_what_is_sent() {
    let sent = BTreeMap::from([
        ("host-hello", HostHello::default().encode()),
        ("worker-hello", example_worker_hello().encode()),
        (
            "call",
            encode_call(7, "demo::add", &(1, 2), MAX_FRAME).unwrap(),
        ),
        (
            "call-without-arguments",
            encode_call(u64::MAX, "tick", &(), MAX_FRAME).unwrap(),
        ),
        (
            "chunk",
            encode_chunk(8, "demo::add", &[(1, 2), (3, 4)], MAX_FRAME).unwrap(),
        ),
        (
            "each",
            encode_chunk(9, "demo::inc", &[(1,), (2,)], MAX_FRAME).unwrap(),
        ),
    ]);
    for Example { name, frame, .. } in examples("hex") {
        if let Some(sent) = sent.get(name) {
            assert_eq!(*sent, frame, "{name}");
        }
    }
}

fn example_worker_hello() -> WorkerHello {
    WorkerHello {
        protocol: 1,
        pid: 4711,
        language: "rust".into(),
        version: "0.1.0".into(),
        build: "0123456789abcdef".into(),
        tasks: 3,
        ..WorkerHello::default()
    }
}

#[test]
fn the_documents_examples_are_understood() {
    for Example { name, frame, .. } in examples("hex") {
        let message = Message::parse(&frame[4..]).expect(name);
        match (name, message) {
            (
                "host-hello",
                Message::Notification {
                    method: "hello",
                    params,
                },
            ) => {
                assert_eq!(HostHello::parse(params).unwrap(), HostHello::default());
            }
            (
                "worker-hello",
                Message::Notification {
                    method: "hello",
                    params,
                },
            ) => {
                assert_eq!(WorkerHello::parse(params).unwrap(), example_worker_hello());
            }
            (
                "call",
                Message::Call {
                    id: 7,
                    task: "demo::add",
                    args,
                },
            ) => assert_eq!(args, [0x92, 1, 2]),
            (
                "call-without-arguments",
                Message::Call {
                    id: u64::MAX,
                    task: "tick",
                    args,
                },
            ) => assert_eq!(args, [0x90]),
            (
                "answer",
                Message::Answer(Answer {
                    id: 7,
                    outcome: Outcome::Value(value),
                }),
            ) => assert_eq!(value, [3]),
            (
                "answer-with-error",
                Message::Answer(Answer {
                    id: 7,
                    outcome: Outcome::Error(error),
                }),
            ) => {
                assert_eq!(error, example_error());
            }
            (
                "answer-with-unknown-task",
                Message::Answer(Answer {
                    id: 8,
                    outcome: Outcome::Error(error),
                }),
            ) => {
                let words = "no task `demo::sub`";
                assert_eq!(
                    error,
                    RemoteErrorBody::new(ErrorKind::UnknownTask, "", words)
                );
            }
            (
                "chunk",
                Message::Call {
                    id: 8,
                    task: wire::MAP,
                    args,
                },
            ) => {
                let call: (String, Vec<(u8, u8)>) = decode_value(args).unwrap();
                assert_eq!(call, ("demo::add".into(), vec![(1, 2), (3, 4)]));
            }
            (
                "chunk-answer",
                Message::Answer(Answer {
                    id: 8,
                    outcome: Outcome::Value(value),
                }),
            ) => {
                let results = wire::parse_chunk_results(value, 2).unwrap();
                let [Outcome::Value([3]), Outcome::Error(error)] = &results[..] else {
                    panic!("{results:?}");
                };
                assert_eq!(*error, RemoteErrorBody::new(ErrorKind::Panic, "", "4?"));
            }
            (
                "each",
                Message::Call {
                    id: 9,
                    task: wire::EACH,
                    args,
                },
            ) => {
                let call: (String, Vec<u8>) = decode_value::<(String, [u8; 2])>(args)
                    .map(|(task, of_each)| (task, of_each.to_vec()))
                    .unwrap();
                assert_eq!(call, ("demo::inc".into(), vec![1, 2]));
            }
            (
                "each-answer",
                Message::Answer(Answer {
                    id: 9,
                    outcome: Outcome::Value(value),
                }),
            ) => {
                let results = wire::parse_chunk_results(value, 2).unwrap();
                let [Outcome::Value([2]), Outcome::Value([3])] = results[..] else {
                    panic!("{results:?}");
                };
            }
            (
                "call-with-buffer",
                Message::Call {
                    id: 7,
                    task: "demo::length",
                    args,
                },
            ) => assert_eq!(args[1..4], [0xc7, 24, 69]),
            (
                "buffers",
                Message::Notification {
                    method: "buffers", ..
                },
            ) => {}
            (name, message) => panic!("{name} is {message:?}"),
        }
    }
}

fn example_error() -> RemoteErrorBody {
    RemoteErrorBody {
        kind: ErrorKind::Error,
        type_name: "demo::Overdrawn".into(),
        message: "overdrawn by 5".into(),
        chain: vec!["no money".into()],
        backtrace: None,
        location: None,
        value: Some(vec![0x81, 0xa2, 0x62, 0x79, 5]),
        ..RemoteErrorBody::default()
    }
}

/// The document's examples of answers have the places of the worker's types; this is the same map from the encoder.
#[test]
fn an_error_is_written_as_in_the_document() {
    let example = examples("hex")
        .into_iter()
        .find(|example| example.name == "answer-with-error");
    let frame = example.unwrap().frame;
    let notification = wire::encode_notification("x", &(example_error(),), MAX_FRAME).unwrap();
    assert_eq!(notification[4 + 5..], frame[4 + 11..frame.len() - 1]);
}

/// The error that a frame's answer has.
fn error_in(frame: &[u8]) -> RemoteErrorBody {
    match Answer::parse(frame).expect("an answer").outcome {
        Outcome::Error(error) => error,
        Outcome::Value(_) => panic!("a value"),
    }
}

/// The body of an answer with an error of so many groups, one in the other. Written from the inside, as the library's own
/// encoder cuts it.
fn nested_groups(groups: usize) -> Vec<u8> {
    let mut frame = vec![0x94, 1, 7];
    for _ in 0..groups {
        frame.extend([0x81, 0xaa]);
        frame.extend(b"exceptions");
        frame.push(0x91);
    }
    frame.extend([0x80, 0xc0]);
    frame
}

fn count(error: &RemoteErrorBody) -> usize {
    error
        .exceptions
        .iter()
        .map(|member| 1 + count(member))
        .sum()
}

#[test]
fn a_group_of_errors_has_fifty_members_at_the_most_on_all_levels_together() {
    assert_eq!(count(&error_in(&nested_groups(3))), 3);
    // As deep as a frame may nest: on the small stack of a thread.
    assert_eq!(count(&error_in(&nested_groups(255))), 50);
    let wide = |members: u8, inner: u8| {
        let mut frame = vec![0x94, 1, 7, 0x81, 0xaa];
        frame.extend(b"exceptions");
        frame.extend([0xdc, 0, members]);
        for _ in 0..members {
            frame.extend([0x81, 0xaa]);
            frame.extend(b"exceptions");
            frame.extend([0xdc, 0, inner]);
            frame.extend(vec![0x80; inner.into()]);
        }
        frame.push(0xc0);
        count(&error_in(&frame))
    };
    assert_eq!(wide(3, 4), 15);
    assert_eq!(wide(200, 0), 50);
    assert_eq!(wide(7, 200), 50);
    // One count for each error, not for all of them.
    assert_eq!(wide(3, 4), 15);
}

#[test]
fn what_groups_carry_goes_there_and_back() {
    let error = RemoteErrorBody {
        bases: vec!["builtins.Exception".into(); 60],
        notes: vec!["n".repeat(70_000)],
        exceptions: vec![example_error()],
        ..example_error()
    };
    let bytes = wire::encode_notification("x", &(&error,), MAX_FRAME).unwrap();
    let mut frame = vec![0x94, 1, 7];
    frame.extend(&bytes[4 + 5..]);
    frame.push(0xc0);
    let read = error_in(&frame);
    assert_eq!(read.exceptions, [example_error()]);
    assert_eq!(read.bases.len(), 50);
    assert!(read.notes[0].len() == 65_536 && read.notes[0].ends_with("cut here]"));
    let none = b"\x94\x01\x07\x83\xa5bases\x90\xaaexceptions\xc0\xa5notes\x90\xc0";
    assert_eq!(error_in(none), RemoteErrorBody::default());
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Point {
    x: i32,
    y: i32,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Metres(u32);

#[derive(Serialize, Deserialize, PartialEq, Debug)]
enum Shape {
    Empty,
    Circle(u8),
    Line(u8, u8),
    Box { w: u8 },
}

/// Encodes a value as an argument, checks that it comes back, and gives its bytes.
fn there_and_back<
    T: Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug + 'static,
>(
    value: T,
) -> Vec<u8> {
    let frame = encode_call(0, "x", &(&value,), MAX_FRAME).unwrap();
    let Message::Call { args, .. } = Message::parse(&frame[4..]).unwrap() else {
        panic!("a call");
    };
    assert_eq!(decode_value::<(T,)>(args).unwrap().0, value);
    args[1..].to_vec()
}

#[test]
fn the_documents_table_of_values_is_what_is_written_and_read() {
    let written = BTreeMap::from([
        ("()", there_and_back(())),
        ("true", there_and_back(true)),
        ("200u8", there_and_back(200u8)),
        ("-33i64", there_and_back(-33i64)),
        ("u64::MAX", there_and_back(u64::MAX)),
        ("1u128", there_and_back(1u128)),
        ("-0.0f64", there_and_back(-0.0f64)),
        ("'é'", there_and_back('é')),
        ("vec![0u8, 255]", there_and_back(vec![0u8, 255])),
        ("Vec::<u8>::new()", there_and_back(Vec::<u8>::new())),
        ("vec![1u16, 300]", there_and_back(vec![1u16, 300])),
        ("(1u8, \"a\")", there_and_back((1u8, "a".to_owned()))),
        ("[1u8, 2]", there_and_back([1u8, 2])),
        ("Point { x: 1, y: 2 }", there_and_back(Point { x: 1, y: 2 })),
        ("Metres(5)", there_and_back(Metres(5))),
        (
            "BTreeMap::from([(1u8, true)])",
            there_and_back(BTreeMap::from([(1u8, true)])),
        ),
        ("None::<u8>", there_and_back(None::<u8>)),
        ("Some(5u8)", there_and_back(Some(5u8))),
        ("Shape::Empty", there_and_back(Shape::Empty)),
        ("Shape::Circle(1)", there_and_back(Shape::Circle(1))),
        ("Shape::Line(1, 2)", there_and_back(Shape::Line(1, 2))),
        ("Shape::Box { w: 1 }", there_and_back(Shape::Box { w: 1 })),
    ]);
    let table = DOCUMENT
        .lines()
        .skip_while(|line| !line.starts_with("| Rust | MessagePack"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let mut documented = BTreeMap::new();
    for row in table {
        let cells: Vec<_> = row
            .split('|')
            .map(|cell| cell.trim().trim_matches('`'))
            .collect();
        documented.insert(cells[3], hex(cells[4]));
    }
    assert_eq!(documented, written);
}

#[test]
fn integers_take_their_shortest_form_and_come_back() {
    let edges = [
        0,
        1,
        127,
        128,
        255,
        256,
        65535,
        65536,
        u32::MAX.into(),
        u64::from(u32::MAX) + 1,
        u64::MAX,
    ];
    for edge in edges {
        there_and_back(edge);
        there_and_back(edge as i64);
        there_and_back((edge as i64).wrapping_neg());
    }
    for edge in [-1i64, -32, -33, -128, -129, -32768, -32769, i64::MIN] {
        let ours = there_and_back(edge);
        assert_eq!(ours, rmp_serde::to_vec(&edge).unwrap());
    }
    there_and_back(i128::MIN);
    there_and_back(u128::MAX);
}

#[test]
fn not_a_number_stays_the_one_it_was() {
    let odd = f64::from_bits(0x7ff8_dead_beef_0001);
    let frame = encode_call(0, "x", &(odd,), MAX_FRAME).unwrap();
    let back: f64 = decode_value(&frame[frame.len() - 9..]).unwrap();
    assert_eq!(back.to_bits(), odd.to_bits());
}

#[test]
fn what_messagepack_would_change_is_refused() {
    for refused in [
        encode_call(0, "x", &(Some(()),), MAX_FRAME),
        encode_call(0, "x", &(Some(None::<u8>),), MAX_FRAME),
    ] {
        let Err(EncodeError::Refused(why)) = refused else {
            panic!("it was sent");
        };
        assert!(why.contains("None"), "{why}");
    }
}

/// A list that recursion goes down.
#[derive(Serialize)]
struct Link(Option<Box<Link>>, u8);

#[test]
fn what_nests_too_deep_is_an_error_and_no_stack_overflow() {
    let chain =
        |links: usize| (0..links).fold(Link(None, 0), |link, _| Link(Some(Box::new(link)), 0));
    // The array of arguments is one level, and so is the innermost link.
    assert!(encode_call(0, "x", &(chain(MAX_DEPTH - 2),), MAX_FRAME).is_ok());
    let too_deep = chain(MAX_DEPTH - 1);
    assert_eq!(
        encode_call(0, "x", &(&too_deep,), MAX_FRAME),
        Err(EncodeError::TooDeep)
    );
}

#[test]
fn a_value_longer_than_a_frame_is_refused_before_it_is_copied() {
    let refused = encode_call(0, "x", &(vec![0u8; 5000],), 4096);
    let Err(EncodeError::TooLarge { at_least, limit }) = refused else {
        panic!("{refused:?}");
    };
    assert!(at_least > 5000 && limit < 5000, "{at_least} {limit}");
    let words = vec!["word"; 5000];
    assert!(matches!(
        encode_call(0, "x", &(words,), 4096),
        Err(EncodeError::TooLarge { .. })
    ));
}

#[test]
fn the_last_byte_of_a_frame_is_used_and_none_behind_it() {
    // The call around the value has 14 bytes, and the byte string's header 3.
    let call = |count| encode_call(0, "x", &(vec![0u8; count],), 4096);
    let longest = call(4096 - 17).unwrap();
    assert_eq!(longest.len(), wire::HEADER + 4096);
    for more in 1..5 {
        assert!(matches!(
            call(4096 - 17 + more),
            Err(EncodeError::TooLarge { .. })
        ));
    }
}

/// Announces three elements and writes as many as it holds.
struct Miscounted(usize);

impl Serialize for Miscounted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut seq = serializer.serialize_seq(Some(3))?;
        for n in 0..self.0 {
            seq.serialize_element(&n)?;
        }
        seq.end()
    }
}

#[test]
fn a_serialize_that_miscounts_makes_no_broken_frame() {
    assert!(encode_call(0, "x", &(Miscounted(3),), MAX_FRAME).is_ok());
    for count in [0, 2, 4] {
        assert!(matches!(
            encode_call(0, "x", &(Miscounted(count),), MAX_FRAME),
            Err(EncodeError::Refused(_))
        ));
    }
}

/// Its length is not known before its end.
#[derive(Debug, PartialEq)]
struct Uncounted(Vec<u16>);

impl Serialize for Uncounted {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().filter(|_| true))
    }
}

#[test]
fn a_sequence_of_unknown_length_is_counted() {
    let frame = encode_call(0, "x", &(Uncounted(vec![1, 2, 3]), "after"), MAX_FRAME).unwrap();
    let Message::Call { args, .. } = Message::parse(&frame[4..]).unwrap() else {
        panic!("a call");
    };
    assert_eq!(
        decode_value::<(Vec<u16>, String)>(args).unwrap(),
        (vec![1, 2, 3], "after".to_owned())
    );
}

#[derive(Serialize, Deserialize, Debug, PartialEq)]
#[serde(tag = "type")]
enum Tagged {
    Plain { data: Vec<u8> },
}

#[test]
fn bytes_in_an_internally_tagged_type_fail_with_the_way_out() {
    let frame = encode_call(0, "x", &(Tagged::Plain { data: vec![1] },), MAX_FRAME).unwrap();
    let Message::Call { args, .. } = Message::parse(&frame[4..]).unwrap() else {
        panic!("a call");
    };
    let error = decode_value::<(Tagged,)>(args).unwrap_err();
    assert!(error.to_string().contains("serde_bytes"), "{error}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Any bytes at all

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::parse(&bytes);
        let _ = Answer::parse(&bytes);
        let _ = HostHello::parse(&bytes);
        let _ = decode_value::<Shape>(&bytes);
        let _ = decode_value::<Vec<(String, Option<Point>)>>(&bytes);
        let _ = decode_value::<serde_json::Value>(&bytes);
        let mut reader = FrameReader::new(64);
        reader.extend(&bytes);
        while let Ok(Some(frame)) = reader.next_frame() {
            prop_assert!(frame.len() <= 64);
        }
    }

    #[test]
    fn a_changed_message_is_read_without_a_panic(at in 0..200usize, byte in any::<u8>(), example in 0..7usize) {
        let mut body = examples("hex").swap_remove(example).frame.split_off(4);
        let at = at % body.len();
        body[at] = byte;
        let _ = Message::parse(&body);
    }

    #[test]
    fn frames_come_out_as_they_went_in_wherever_they_are_split(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..600), 1..8),
        splits in proptest::collection::vec(1..400usize, 1..20),
    ) {
        let stream: Vec<u8> = bodies
            .iter()
            .flat_map(|body| [&(body.len() as u32).to_be_bytes()[..], body].concat())
            .collect();
        let mut reader = FrameReader::new(600);
        let mut got = Vec::new();
        let mut rest = &stream[..];
        for at in splits.iter().cycle() {
            let (now, later) = rest.split_at((*at).min(rest.len()));
            // Both ways in, in turn.
            if at % 2 == 0 {
                reader.extend(now);
            } else {
                reader.room().extend_from_slice(now);
            }
            while let Some(frame) = reader.next_frame().unwrap() {
                got.push(frame.to_vec());
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert!(reader.is_empty());
        prop_assert_eq!(got, bodies);
    }
}

#[test]
fn nothing_is_allocated_for_a_length_that_is_only_claimed() {
    let mut reader = FrameReader::new(MAX_FRAME);
    reader.extend(&(MAX_FRAME as u32).to_be_bytes());
    reader.extend(&[0xc0; 1000]);
    assert!(reader.room().capacity() < 1024 * 1024);
    // Nor inside of a frame: four thousand million elements in five bytes.
    assert!(Message::parse(&[0x94, 1, 0, 0xc0, 0xdd, 0xff, 0xff, 0xff, 0xff]).is_err());
    assert!(decode_value::<Vec<u64>>(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
}

#[test]
fn the_buffer_of_a_big_frame_is_given_back() {
    let mut reader = FrameReader::new(MAX_FRAME);
    reader.extend(&(10_000_000_u32).to_be_bytes());
    reader.extend(&vec![0; 10_000_000]);
    assert!(reader.next_frame().unwrap().is_some());
    assert!(reader.room().capacity() < 1024 * 1024);
}

#[test]
fn the_documents_bad_bytes_are_refused() {
    for Example { name, frame, .. } in examples("hex-bad") {
        let mut reader = FrameReader::new(MAX_FRAME);
        reader.extend(&frame);
        match reader.next_frame() {
            Err(_) => {}
            Ok(frame) => match Message::parse(frame.expect(name)) {
                Ok(Message::Answer(_)) => assert_eq!(name, "answer to a worker"),
                Ok(message) => panic!("{name}: {message:?}"),
                Err(_) => {}
            },
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// A host made by hand

/// A worker, and this test as its host.
struct Worker {
    child: Child,
    socket: UnixStream,
    reader: FrameReader,
    begun: OwnedFd,
}

/// How a worker ended, and what it wrote.
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Worker {
    /// Starts a worker and exchanges greetings.
    #[track_caller]
    fn start() -> Worker {
        Worker::start_with(HostHello::default(), |_| {})
    }

    #[track_caller]
    fn start_with(hello: HostHello, prepare: impl FnOnce(&mut Command)) -> Worker {
        let mut worker = Worker::spawn(prepare);
        worker.send_hello(&hello.encode());
        let greeting = worker.receive().expect("a hello");
        match Message::parse(&greeting).unwrap() {
            Message::Notification {
                method: "hello",
                params,
            } => {
                let hello = WorkerHello::parse(params).unwrap();
                assert_eq!((hello.protocol, hello.pid), (1, worker.child.id()));
                assert_eq!(hello.language, "rust");
                assert_eq!(hello.build.len(), 16);
                assert!(hello.tasks > 5);
            }
            message => panic!("{message:?}"),
        }
        worker
    }

    /// Only the process.
    fn spawn(prepare: impl FnOnce(&mut Command)) -> Worker {
        let mark = format!("--errback-worker=1:1:{}", std::process::id());
        Worker::spawn_with(Some(mark), prepare)
    }

    fn spawn_with(argument: Option<String>, prepare: impl FnOnce(&mut Command)) -> Worker {
        let (socket, end) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(argument)
            .stdin(OwnedFd::from(end))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env_remove("RUST_BACKTRACE")
            .process_group(0);
        prepare(&mut command);
        let child = command.spawn().unwrap();
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Worker {
            child,
            socket,
            reader: FrameReader::new(MAX_FRAME),
            begun: rustix::event::eventfd(0, flags).unwrap(),
        }
    }

    fn send_hello(&mut self, frame: &[u8]) {
        let descriptors = [self.begun.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let sent = rustix::net::sendmsg(
            &self.socket,
            &[IoSlice::new(frame)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        );
        assert_eq!(sent, Ok(frame.len()));
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next frame, or nothing at the end of file.
    #[track_caller]
    fn receive(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = self.reader.next_frame().unwrap() {
                return Some(frame.to_vec());
            }
            let mut bytes = [0; 65536];
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.reader.extend(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("nothing came: {error}"),
            }
        }
    }

    /// Calls a task and waits for its result.
    #[track_caller]
    fn call<F: Task>(&mut self, task: F, args: F::Args) -> Result<F::Output, Box<RemoteErrorBody>> {
        self.send(&encode_call(1, task.name(), &args, MAX_FRAME).unwrap());
        let frame = self.receive().expect("an answer");
        let answer = Answer::parse(&frame).unwrap();
        assert_eq!(answer.id, 1);
        match answer.outcome {
            Outcome::Value(value) => Ok(F::decode_result(value).unwrap()),
            Outcome::Error(error) => Err(Box::new(error)),
        }
    }

    /// Calls whatever name with whatever arguments, and expects an error.
    #[track_caller]
    fn refused(&mut self, task: &str, args: &impl Serialize) -> RemoteErrorBody {
        self.send(&encode_call(1, task, args, MAX_FRAME).unwrap());
        let frame = self.receive().expect("an answer");
        match Answer::parse(&frame).unwrap().outcome {
            Outcome::Error(error) => error,
            Outcome::Value(value) => panic!("{value:?}"),
        }
    }

    /// How many jobs have begun since this was asked last.
    fn begun(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.begun, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Closes the connection and waits for the end.
    #[track_caller]
    fn end(self) -> Ended {
        let _ = self.socket.shutdown(Shutdown::Write);
        self.wait()
    }

    #[track_caller]
    fn wait(mut self) -> Ended {
        let process = rustix::process::Pid::from_child(&self.child);
        let process =
            rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()).unwrap();
        let stdout = self.child.stdout.take().unwrap();
        let stdout = std::thread::spawn(move || read_to_end(stdout));
        let stderr = self.child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || read_to_end(stderr));
        let mut ended = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        let deadline = DEADLINE.try_into().unwrap();
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&deadline)));
        if ready == Ok(0) {
            self.child.kill().unwrap();
            panic!("the worker does not end");
        }
        Ended {
            status: self.child.wait().unwrap(),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        }
    }
}

fn read_to_end(mut stream: impl Read) -> String {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

impl Ended {
    #[track_caller]
    fn with_code(self, code: i32) -> Ended {
        assert_eq!(
            self.status.code(),
            Some(code),
            "{:?} {} {}",
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

#[errback::task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[errback::task]
fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[errback::task]
fn panics(message: String) {
    panic!("{message}");
}

#[test]
fn a_worker_greets_answers_and_leaves() {
    let mut worker = Worker::start();
    assert_eq!(worker.call(add, (1, 2)), Ok(3));
    assert_eq!(worker.call(echo, (vec![0, 255],)), Ok(vec![0, 255]));
    let ended = worker.end().with_code(0);
    assert_eq!((ended.stdout, ended.stderr), (String::new(), String::new()));
}

#[test]
fn the_begun_counter_counts_calls_whatever_becomes_of_them() {
    let mut worker = Worker::start();
    assert_eq!(worker.begun(), 0);
    worker.call(add, (1, 2)).unwrap();
    worker.call(panics, ("x".into(),)).unwrap_err();
    assert_eq!(worker.begun(), 2);
    worker.refused(add.name(), &(1,));
    worker.refused("nobody", &());
    assert_eq!(worker.begun(), 2);
    worker.end().with_code(0);
}

#[test]
fn a_worker_without_a_counter_works_too() {
    let mut worker = Worker::spawn(|_| {});
    worker.send(&HostHello::default().encode());
    worker.receive().unwrap();
    assert_eq!(worker.call(add, (1, 2)), Ok(3));
    worker.end().with_code(0);
}

#[test]
fn calls_are_answered_in_their_order_however_they_are_cut() {
    let mut worker = Worker::start();
    let mut calls: Vec<u8> = Vec::new();
    for id in 0..100 {
        calls.extend(encode_call(id, add.name(), &(id, 1), MAX_FRAME).unwrap());
    }
    worker.send(&calls);
    for byte in &calls {
        worker.send(&[*byte]);
    }
    for id in (0..100).chain(0..100) {
        let frame = worker.receive().unwrap();
        let answer = Answer::parse(&frame).unwrap();
        assert_eq!(answer.id, id);
        let Outcome::Value(value) = answer.outcome else {
            panic!("an error");
        };
        assert_eq!(decode_value::<u64>(value).unwrap(), id + 1);
    }
    worker.end().with_code(0);
}

#[test]
fn bytes_of_every_size_come_back_as_they_were() {
    let mut worker = Worker::start();
    for size in [0, 1, 255, 256, 65535, 65536, 65537, 1 << 20, (64 << 20) + 1] {
        let bytes: Vec<u8> = (0..size).map(|n: usize| (n % 251) as u8).collect();
        let back = {
            let writer = worker.socket.try_clone().unwrap();
            let frame = encode_call(1, echo.name(), &(&bytes,), MAX_FRAME).unwrap();
            let writing = std::thread::spawn(move || (&writer).write_all(&frame).unwrap());
            let frame = worker.receive().unwrap();
            writing.join().unwrap();
            match Answer::parse(&frame).unwrap().outcome {
                Outcome::Value(value) => decode_value::<Vec<u8>>(value).unwrap(),
                Outcome::Error(error) => panic!("{error:?}"),
            }
        };
        assert!(back == bytes, "{size}");
    }
    worker.end().with_code(0);
}

#[test]
fn a_panic_is_an_answer_and_prints_nothing() {
    let mut worker = Worker::start();
    let error = worker.call(panics, ("no such luck".into(),)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Panic);
    assert_eq!(error.message, "no such luck");
    assert!(error.location.unwrap().contains("tests/protocol.rs:"));
    assert_eq!(error.backtrace, None);
    assert_eq!(worker.call(add, (1, 2)), Ok(3));
    assert_eq!(worker.end().with_code(0).stderr, "");
}

#[test]
fn a_panic_has_a_backtrace_where_it_is_asked_for() {
    let mut worker = Worker::start_with(HostHello::default(), |command| {
        command.env("RUST_BACKTRACE", "1");
    });
    let error = worker.call(panics, ("x".into(),)).unwrap_err();
    assert!(error.backtrace.unwrap().contains("panics"));
    worker.end().with_code(0);
}

struct DropsWithAPanic;

impl Drop for DropsWithAPanic {
    fn drop(&mut self) {
        panic!("the second panic");
    }
}

#[errback::task]
fn panics_with(what: u8) {
    match what {
        0 => std::panic::panic_any(5u64),
        1 => std::panic::panic_any(DropsWithAPanic),
        2 => std::panic::resume_unwind(Box::new("without a hook")),
        3 => {
            let _guard = DropsWithAPanic;
            panic!("the first panic");
        }
        4 => drop(std::panic::catch_unwind(|| panic!("caught"))),
        5 => std::thread::spawn(|| panic!("in a thread"))
            .join()
            .unwrap_or_default(),
        _ => unreachable!(),
    }
}

#[test]
fn odd_panics_are_answers_too() {
    let mut worker = Worker::start();
    for what in [0, 1] {
        let error = worker.call(panics_with, (what,)).unwrap_err();
        assert!(error.message.contains("not a string"), "{error:?}");
        assert!(error.location.is_some());
    }
    let error = worker.call(panics_with, (2,)).unwrap_err();
    assert_eq!(
        (error.message.as_str(), error.location),
        ("without a hook", None)
    );
    worker.call(panics_with, (4,)).unwrap();
    worker.call(panics_with, (5,)).unwrap();
    let stderr = worker.end().with_code(0).stderr;
    for printed in ["the second panic", "caught", "in a thread"] {
        assert!(stderr.contains(printed), "{stderr}");
    }
}

#[test]
fn a_panic_while_unwinding_aborts_and_both_are_printed() {
    let mut worker = Worker::start();
    worker.send(&encode_call(1, panics_with.name(), &(3,), MAX_FRAME).unwrap());
    assert_eq!(worker.receive(), None);
    assert_eq!(worker.begun(), 1);
    let ended = worker.wait();
    assert_eq!(ended.status.signal(), Some(6));
    assert!(
        ended.stderr.contains("the first panic") && ended.stderr.contains("the second panic"),
        "{}",
        ended.stderr
    );
}

/// A value that misbehaves on its way.
#[derive(Debug, PartialEq)]
struct Misbehaves(u8);

impl Serialize for Misbehaves {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            1 => Err(serde::ser::Error::custom("it does not want to go")),
            2 => panic!("a panic in Serialize"),
            n => serializer.serialize_u8(n),
        }
    }
}

impl<'de> Deserialize<'de> for Misbehaves {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            3 => panic!("a panic in Deserialize"),
            n => Ok(Misbehaves(n)),
        }
    }
}

#[errback::task]
fn takes_misbehaving(value: Misbehaves, other: String) -> u8 {
    value.0 + other.len() as u8
}

#[errback::task]
fn gives_misbehaving(n: u8) -> Vec<(String, Misbehaves)> {
    vec![
        ("a good beginning".into(), Misbehaves(0)),
        (String::new(), Misbehaves(n)),
    ]
}

#[errback::task]
fn gives_bytes(count: usize) -> Vec<u8> {
    vec![7; count]
}

#[test]
fn arguments_that_do_not_fit_are_refused_with_a_sentence() {
    let mut worker = Worker::start();
    let task = takes_misbehaving.name();
    for (error, words) in [
        (
            worker.refused(task, &(1,)),
            "takes_misbehaving(value: Misbehaves, other: String)` takes 2 arguments, and 1 came",
        ),
        (worker.refused(task, &(1, "x", 3)), "and 3 came"),
        (worker.refused(task, &(1, 2)), "argument other of"),
        (worker.refused(task, &("one", "x")), "argument value of"),
        (worker.refused(task, &(3, "x")), "a panic in Deserialize"),
        (
            worker.refused(add.name(), &(-1, 1)),
            "argument a of `add(a: u64, b: u64)`: invalid",
        ),
    ] {
        assert_eq!(error.kind, ErrorKind::DecodeArgs);
        assert!(error.message.contains(words), "{}", error.message);
    }
    assert_eq!(worker.begun(), 6);
    assert_eq!(
        worker.call(takes_misbehaving, (Misbehaves(4), "x".into())),
        Ok(5)
    );
    assert_eq!(worker.end().with_code(0).stderr, "");
}

#[test]
fn a_result_that_cannot_be_encoded_is_an_answer_and_never_half_a_frame() {
    let hello = HostHello {
        max_frame: 4096,
        ..HostHello::default()
    };
    let mut worker = Worker::start_with(hello, |_| {});
    for (n, words) in [(1, "does not want to go"), (2, "a panic in Serialize")] {
        let error = worker.call(gives_misbehaving, (n,)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::EncodeResult);
        assert!(error.message.contains(words), "{}", error.message);
    }
    let error = worker.call(gives_bytes, (5000,)).unwrap_err();
    assert_eq!(error.kind, ErrorKind::EncodeResult);
    assert!(
        error.message.contains("5016 bytes") && error.message.contains("4100"),
        "{}",
        error.message
    );
    // Even an error that says much fits in.
    let error = worker.call(panics, ("much ".repeat(800),)).unwrap_err();
    assert!(error.message.contains("cut here"), "{}", error.message);
    assert_eq!(worker.call(gives_bytes, (3,)), Ok(vec![7; 3]));
    worker.end().with_code(0);
}

#[test]
fn a_chunk_has_a_result_for_each_of_its_calls() {
    let mut worker = Worker::start();
    let calls: Vec<_> = [0, 1, 4, 2, 5].map(|n| (n,)).into();
    worker.send(&encode_chunk(1, gives_or_panics.name(), &calls, MAX_FRAME).unwrap());
    let frame = worker.receive().unwrap();
    let Outcome::Value(value) = Answer::parse(&frame).unwrap().outcome else {
        panic!("an error");
    };
    let results = wire::parse_chunk_results(value, calls.len()).unwrap();
    let results: Vec<_> = results
        .into_iter()
        .map(|result| match result {
            Outcome::Value(value) => Ok(decode_value::<Vec<Misbehaves>>(value).unwrap()),
            Outcome::Error(error) => Err(error.kind),
        })
        .collect();
    let fine = |n| Ok(vec![Misbehaves(0), Misbehaves(n)]);
    let unencodable = || Err(ErrorKind::EncodeResult);
    let panicked = || Err(ErrorKind::Panic);
    assert_eq!(
        results,
        [fine(0), unencodable(), panicked(), unencodable(), fine(5)]
    );
    // The chunk is one job to its host.
    assert_eq!(worker.begun(), 1);
    worker.end().with_code(0);
}

#[errback::task]
fn gives_or_panics(n: u8) -> Vec<Misbehaves> {
    assert_ne!(n, 4);
    vec![Misbehaves(0), Misbehaves(n)]
}

#[test]
fn a_panic_that_a_call_of_a_chunk_has_caught_is_none_of_the_next_one() {
    let mut worker = Worker::start();
    let calls: Vec<_> = (0..6).map(|n| (n,)).collect();
    worker.send(&encode_chunk(1, catches_or_panics.name(), &calls, MAX_FRAME).unwrap());
    let frame = worker.receive().unwrap();
    let Outcome::Value(value) = Answer::parse(&frame).unwrap().outcome else {
        panic!("an error");
    };
    let results = wire::parse_chunk_results(value, calls.len()).unwrap();
    let said: Vec<_> = results
        .into_iter()
        .map(|result| match result {
            Outcome::Value(value) => decode_value::<String>(value).unwrap(),
            Outcome::Error(error) => error.message,
        })
        .collect();
    assert_eq!(said[..4], ["fine", "caught 1", "thrown 2", "fine"]);
    assert_eq!(said[4..], ["caught 4", "thrown 5"]);
    let stderr = worker.end().with_code(0).stderr;
    // The others have become answers.
    assert_eq!(stderr.matches("caught ").count(), 2, "{stderr}");
    assert!(!stderr.contains("thrown"), "{stderr}");
}

#[errback::task]
fn catches_or_panics(n: u32) -> String {
    match n % 3 {
        0 => "fine".to_owned(),
        1 => {
            let caught = std::panic::catch_unwind(|| panic!("caught {n}")).unwrap_err();
            *caught.downcast::<String>().unwrap()
        }
        _ => panic!("thrown {n}"),
    }
}

#[test]
fn results_of_a_chunk_are_bare_until_one_fails() {
    let mut worker = Worker::start();
    let mut answer = |arguments: &[u8]| {
        let calls: Vec<_> = arguments.iter().map(|n| (*n,)).collect();
        worker.send(&encode_chunk(1, gives_bytes_or_panics.name(), &calls, MAX_FRAME).unwrap());
        let frame = worker.receive().unwrap();
        match Answer::parse(&frame).unwrap().outcome {
            Outcome::Value(value) => value.to_vec(),
            Outcome::Error(error) => panic!("{error:?}"),
        }
    };
    assert_eq!(answer(&[1, 0]), b"\x81\xa3all\x92\xc4\x01\x07\xc4\x00");
    let pairs = answer(&[1, 0, 9, 2]);
    assert!(pairs.starts_with(b"\x94\x92\xc0\xc4\x01\x07\x92\xc0\xc4\x00\x92"));
    assert!(pairs.ends_with(b"\xc0\x92\xc0\xc4\x02\x07\x07"));
    worker.end().with_code(0);
}

#[errback::task]
fn gives_bytes_or_panics(n: u8) -> Vec<u8> {
    assert_ne!(n, 9);
    vec![7; n.into()]
}

#[test]
fn a_chunk_for_one_argument_is_the_same_in_either_form() {
    let mut worker = Worker::start();
    let mut answers = Vec::new();
    // The first is what a host sends; the second has an array for each call, as of any number of arguments.
    let each = encode_chunk(1, gives_bytes.name(), &[(3,), (0,)], MAX_FRAME).unwrap();
    assert!(each.ends_with(&[0x92, 3, 0]), "{each:02x?}");
    let map = encode_call(1, wire::MAP, &(gives_bytes.name(), [(3,), (0,)]), MAX_FRAME).unwrap();
    for frame in [each, map] {
        worker.send(&frame);
        answers.push(worker.receive().unwrap());
    }
    assert_eq!(answers[0], answers[1]);
    let Outcome::Value(value) = Answer::parse(&answers[0]).unwrap().outcome else {
        panic!("an error");
    };
    let results = wire::parse_chunk_results(value, 2).unwrap();
    assert!(
        matches!(
            results[..],
            [
                Outcome::Value([0xc4, 3, 7, 7, 7]),
                Outcome::Value([0xc4, 0])
            ]
        ),
        "{results:?}"
    );
    // Where an argument is not what the task takes, that call fails, and so does each if it takes another number of them.
    let wrong = encode_call(2, wire::EACH, &(gives_bytes.name(), (1, "x")), MAX_FRAME).unwrap();
    let too_few = encode_chunk(3, add.name(), &[(1,), (2,)], MAX_FRAME).unwrap();
    for (frame, failed) in [(wrong, [false, true]), (too_few, [true, true])] {
        worker.send(&frame);
        let frame = worker.receive().unwrap();
        let Outcome::Value(value) = Answer::parse(&frame).unwrap().outcome else {
            panic!("an error");
        };
        let results = wire::parse_chunk_results(value, 2).unwrap();
        let kinds = results.iter().map(|result| match result {
            Outcome::Value(_) => false,
            Outcome::Error(error) => {
                assert_eq!(error.kind, ErrorKind::DecodeArgs, "{error:?}");
                true
            }
        });
        assert!(kinds.eq(failed), "{results:?}");
    }
    worker.end().with_code(0);
}

#[test]
fn a_chunk_of_big_arguments_is_what_it_is_of_small_ones() {
    let calls = [(vec![5u8; 3],), (vec![],), (vec![6; 300_000],)];
    let frame = encode_chunk(1, "f", &calls, MAX_FRAME).unwrap();
    let Message::Call { task, args, .. } = Message::parse(&frame[4..]).unwrap() else {
        panic!("{frame:02x?}");
    };
    assert_eq!(task, wire::EACH);
    let all = (Vec::from([5u8; 3]), Vec::<u8>::new(), vec![6u8; 300_000]);
    let (name, arrived) = decode_value::<(String, (Vec<u8>, Vec<u8>, Vec<u8>))>(args).unwrap();
    assert_eq!((name.as_str(), arrived), ("f", all));
    // Those that are not of one mind travel as arrays.
    let mixed = [vec![1u32], vec![1, 2]];
    let frame = encode_chunk(1, "f", &mixed, MAX_FRAME).unwrap();
    assert!(
        frame.ends_with(&[0x92, 0x91, 1, 0x92, 1, 2]),
        "{frame:02x?}"
    );
}

#[test]
fn the_short_form_of_results_is_read_as_strictly() {
    for (bytes, calls) in [
        (&b"\x81\xa3all\x91\x01"[..], 2),
        (b"\x81\xa3all\x92\x01\x02", 1),
        (b"\x81\xa3all\x92\x01", 2),
        (b"\x81\xa3all\x91\x01\x01", 1),
        (b"\x81\xa3all\x01", 1),
        (b"\x81\xa3any\x91\x01", 1),
        (b"\x80", 0),
        (b"\x82\xa3all\x91\x01\xa1x\x01", 1),
        (b"\x81\xa3all", 0),
    ] {
        let parsed = wire::parse_chunk_results(bytes, calls);
        assert!(parsed.is_err(), "{bytes:02x?}: {parsed:?}");
    }
    let wide = b"\xdf\0\0\0\x01\xd9\x03all\xdd\0\0\0\x01\xc0";
    let results = wire::parse_chunk_results(wide, 1).unwrap();
    assert!(
        matches!(results[..], [Outcome::Value([0xc0])]),
        "{results:?}"
    );
    assert!(
        wire::parse_chunk_results(b"\x81\xa3all\x90", 0)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_chunk_that_is_none_is_refused() {
    let hello = HostHello {
        max_frame: 4096,
        ..HostHello::default()
    };
    let mut worker = Worker::start_with(hello, |_| {});
    for (error, kind) in [
        (worker.refused(wire::MAP, &(1, 2)), ErrorKind::DecodeArgs),
        (worker.refused(wire::MAP, &("x",)), ErrorKind::DecodeArgs),
        (worker.refused(wire::EACH, &("x", 1)), ErrorKind::DecodeArgs),
        (
            worker.refused(wire::EACH, &("nobody", (1, 2))),
            ErrorKind::UnknownTask,
        ),
        (
            worker.refused(wire::MAP, &("nobody", [(1,)])),
            ErrorKind::UnknownTask,
        ),
        (
            worker.refused(wire::MAP, &(gives_bytes.name(), vec![(3000,); 40])),
            ErrorKind::EncodeResult,
        ),
    ] {
        assert_eq!(error.kind, kind, "{error:?}");
    }
    worker.send(&encode_chunk::<()>(1, add.name(), &[], MAX_FRAME).unwrap());
    let frame = worker.receive().unwrap();
    assert!(matches!(
        Answer::parse(&frame).unwrap().outcome,
        Outcome::Value([0x90])
    ));
    worker.end().with_code(0);
}

#[test]
fn an_unknown_task_is_answered_with_what_there_is() {
    let mut worker = Worker::start();
    let error = worker.refused("elsewhere::add", &(1, 2));
    assert_eq!(error.kind, ErrorKind::UnknownTask);
    assert!(
        error.message.contains("no task `elsewhere::add` among the"),
        "{}",
        error.message
    );
    assert!(
        error.message.contains("did you mean `protocol::add`?"),
        "{}",
        error.message
    );
    assert_eq!(worker.call(add, (1, 2)), Ok(3));
    worker.end().with_code(0);
}

#[test]
fn bad_bytes_end_the_worker_with_a_line_and_code_76() {
    for Example { name, frame, .. } in examples("hex-bad") {
        let mut worker = Worker::start();
        worker.call(add, (1, 2)).unwrap();
        worker.send(&frame);
        assert_eq!(worker.receive(), None, "{name}");
        let ended = worker.wait().with_code(76);
        assert_eq!(ended.stderr.lines().count(), 1, "{name}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("does not speak the protocol"),
            "{name}: {}",
            ended.stderr
        );
    }
}

#[test]
fn deep_nesting_is_bad_bytes() {
    for (depth, answered) in [
        (MAX_DEPTH, true),
        (MAX_DEPTH + 1, false),
        (1_000_000, false),
    ] {
        let mut worker = Worker::start();
        let mut body = vec![0x94, 0, 1, 0xa1, b'x'];
        body.extend(std::iter::repeat_n(0x91, depth - 1));
        body.push(0x90);
        worker.send(&[&(body.len() as u32).to_be_bytes()[..], &body].concat());
        // An unknown task, then, but a proper call.
        assert_eq!(worker.receive().is_some(), answered);
        worker.end().with_code(if answered { 0 } else { 76 });
    }
}

#[test]
fn a_first_frame_that_is_no_hello_is_bad_bytes() {
    let ping = wire::encode_notification("ping", &(), MAX_FRAME).unwrap();
    let version_0 = HostHello {
        protocol: 0,
        ..HostHello::default()
    };
    let call = encode_call(1, add.name(), &(1, 2), MAX_FRAME).unwrap();
    let no_map = wire::encode_notification("hello", &(1,), MAX_FRAME).unwrap();
    for first in [
        ping,
        call,
        version_0.encode(),
        no_map,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut worker = Worker::spawn(|_| {});
        worker.send(&first);
        assert_eq!(worker.receive(), None);
        worker.wait().with_code(76);
    }
}

#[test]
fn a_later_host_is_answered_in_this_version_and_its_additions_are_ignored() {
    let mut worker = Worker::spawn(|_| {});
    let hello = BTreeMap::from([("protocol", 7), ("grace", 5)]);
    let hello = wire::encode_notification("hello", &(hello,), MAX_FRAME).unwrap();
    worker.send(&hello);
    let greeting = worker.receive().unwrap();
    let Message::Notification { params, .. } = Message::parse(&greeting).unwrap() else {
        panic!("no hello");
    };
    assert_eq!(WorkerHello::parse(params).unwrap().protocol, 1);
    worker.send(&wire::encode_notification("ping", &(1, 2), MAX_FRAME).unwrap());
    assert_eq!(worker.call(add, (1, 2)), Ok(3));
    worker.end().with_code(0);
}

#[test]
fn an_end_within_a_frame_is_bad_bytes_and_one_before_the_hello_is_an_end() {
    let mut worker = Worker::start();
    worker.send(&[0, 0]);
    worker.end().with_code(76);
    Worker::spawn(|_| {}).end().with_code(0);
}

#[test]
fn a_worker_whose_host_is_gone_at_its_start_leaves() {
    // Process 1 is nobody's host.
    let mut worker = Worker::spawn_with(Some("--errback-worker=1:1:1".into()), |_| {});
    assert_eq!(worker.receive(), None);
    let ended = worker.wait().with_code(0);
    assert_eq!((ended.stdout, ended.stderr), (String::new(), String::new()));
}

#[test]
fn a_worker_without_a_connection_says_so() {
    let mut worker = Worker::spawn(|command| {
        command.stdin(Stdio::null());
    });
    assert_eq!(worker.receive(), None);
    let ended = worker.wait().with_code(78);
    assert!(
        ended.stderr.contains("standard input is no connection"),
        "{}",
        ended.stderr
    );
    assert_eq!(ended.stdout, "");
}

#[errback::task]
fn prints(text: String) -> u32 {
    print!("{text}");
    eprint!("{text}");
    std::process::id()
}

#[test]
fn what_a_job_prints_is_there_before_its_answer_even_half_a_line() {
    let mut worker = Worker::start();
    let mut stdout = worker.child.stdout.take().unwrap();
    worker.call(prints, ("half a line".into(),)).unwrap();
    let mut printed = [0; 11];
    stdout.read_exact(&mut printed).unwrap();
    assert_eq!(&printed, b"half a line");
    worker.child.stdout = Some(stdout);
    worker.call(prints, (" and the rest\n".into(),)).unwrap();
    let ended = worker.end().with_code(0);
    assert_eq!(ended.stdout, " and the rest\n");
    assert_eq!(ended.stderr, "half a line and the rest\n");
}

/// Closes whatever it can find, and opens a file in its place.
#[errback::task]
#[allow(unsafe_code)]
fn closes_everything(path: String) {
    for descriptor in 0..64 {
        // SAFETY: none. This is the job that breaks its own process, and the worker has to bear it.
        unsafe {
            if rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(descriptor)).is_ok() {
                rustix::io::close(descriptor);
            }
        }
    }
    for _ in 0..64 {
        std::mem::forget(std::fs::File::options().append(true).open(&path).unwrap());
    }
}

#[test]
fn a_job_that_takes_the_workers_descriptors_ends_it_and_never_gets_its_bytes() {
    let path = std::env::temp_dir().join(format!("errback-protocol-{}", std::process::id()));
    std::fs::write(&path, "").unwrap();
    let mut worker = Worker::start();
    let args = (path.to_str().unwrap(),);
    worker.send(&encode_call(1, closes_everything.name(), &args, MAX_FRAME).unwrap());
    assert_eq!(worker.receive(), None);
    worker.wait().with_code(71);
    // Its standard error is the task's own, and the file is that by now.
    let written = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(written.lines().count(), 1, "{written}");
    assert!(written.contains("send"), "{written}");
}

/// Puts a file into the places of the standard descriptors.
#[errback::task]
fn replaces_standard_descriptors(path: String) {
    let file = std::fs::File::options().append(true).open(path).unwrap();
    rustix::stdio::dup2_stdin(&file).unwrap();
    rustix::stdio::dup2_stdout(&file).unwrap();
    rustix::stdio::dup2_stderr(&file).unwrap();
    println!("printed");
}

#[test]
fn a_job_may_do_what_it_likes_with_the_standard_descriptors() {
    let path = std::env::temp_dir().join(format!("errback-standard-{}", std::process::id()));
    std::fs::write(&path, "").unwrap();
    let mut worker = Worker::start();
    worker
        .call(
            replaces_standard_descriptors,
            (path.to_str().unwrap().into(),),
        )
        .unwrap();
    assert_eq!(worker.call(add, (1, 2)), Ok(3));
    worker.end().with_code(0);
    let written = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(written, "printed\n");
}

#[errback::task]
fn open_descriptors() -> Vec<String> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        let target = std::fs::read_link(&path).unwrap_or_default();
        open.push(target.display().to_string());
    }
    open.sort();
    open
}

#[errback::task]
fn status(field: String) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with(&field))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

#[test]
fn a_worker_has_no_descriptor_but_its_own() {
    // One that is inherited by mistake.
    let leaked = std::fs::File::open("/dev/zero").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let mut worker = Worker::start();
    let open = worker.call(open_descriptors, ()).unwrap();
    let kind = |name: &str| open.iter().filter(|target| target.contains(name)).count();
    assert_eq!(
        (
            kind("socket:"),
            kind("eventfd"),
            kind("pipe:"),
            kind("/dev/null"),
            kind("/proc/")
        ),
        (1, 1, 2, 1, 1)
    );
    assert_eq!(open.len(), 6, "{open:?}");
    worker.end().with_code(0);
}

#[test]
fn a_worker_blocks_no_signal_and_ignores_only_the_broken_pipe() {
    let mut worker = Worker::start();
    assert_eq!(
        worker.call(status, ("SigBlk".into(),)).unwrap(),
        "0000000000000000"
    );
    let ignored =
        u64::from_str_radix(&worker.call(status, ("SigIgn".into(),)).unwrap(), 16).unwrap();
    let bit = |signal: u64| ignored >> (signal - 1) & 1;
    assert_eq!((bit(13), bit(17)), (1, 0));
    worker.end().with_code(0);
}

#[errback::task]
fn allocates(bytes: usize) -> usize {
    std::hint::black_box(vec![1u8; bytes]).len()
}

#[test]
fn the_memory_limit_ends_a_job_that_asks_for_more_and_the_words_are_heard() {
    let hello = HostHello {
        memory_limit: Some(512 << 20),
        ..HostHello::default()
    };
    let mut worker = Worker::start_with(hello, |_| {});
    assert_eq!(worker.call(allocates, (1 << 20,)), Ok(1 << 20));
    worker.send(&encode_call(1, allocates.name(), &(1 << 30,), MAX_FRAME).unwrap());
    assert_eq!(worker.receive(), None);
    let ended = worker.wait();
    assert_eq!(ended.status.signal(), Some(6));
    assert!(
        ended
            .stderr
            .contains("memory allocation of 1073741824 bytes failed"),
        "{}",
        ended.stderr
    );
}

#[errback::task]
fn leaves(code: i32) {
    print!("on the way out");
    std::process::exit(code);
}

#[test]
fn a_job_that_exits_ends_the_worker_with_its_code_and_no_answer() {
    for code in [0, 3] {
        let mut worker = Worker::start();
        worker.send(&encode_call(1, leaves.name(), &(code,), MAX_FRAME).unwrap());
        assert_eq!(worker.receive(), None);
        assert_eq!(worker.begun(), 1);
        assert_eq!(worker.wait().with_code(code).stdout, "on the way out");
    }
}

#[errback::task]
fn environment() -> (bool, u32, bool) {
    (
        errback::worker::is_worker(),
        errback::worker::depth(),
        std::env::var_os("ERRBACK_WORKER").is_some(),
    )
}

#[test]
fn the_mark_may_come_by_the_environment_and_is_not_handed_on() {
    let mut worker = Worker::spawn_with(None, |command| {
        // A shell may stand between: its process id is not what the worker looks for.
        command.env("ERRBACK_WORKER", "1:2:1");
    });
    worker.send_hello(&HostHello::default().encode());
    worker.receive().unwrap();
    assert_eq!(worker.call(environment, ()), Ok((true, 2, false)));
    worker.end().with_code(0);
}

#[test]
fn a_host_is_no_worker() {
    assert_eq!(environment(), (false, 0, false));
}

#[test]
fn a_mark_among_other_arguments_is_the_programs_own() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--errback-worker=1:1:1", "--list"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // The test harness saw it, and does not know it.
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("errback-worker"));
}
