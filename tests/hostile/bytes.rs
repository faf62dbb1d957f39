//! What must hold for any bytes at all. Shared with `fuzz/`: what runs for seconds here runs for an hour there.
//!
//! None of it panics; nothing is allocated because a length is claimed; and what is read is what was written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use errback::wire::{
    self, Answer, FrameReader, HEADER, HostHello, MAX_FRAME, Message, Outcome, RemoteErrorBody,
    WorkerHello, decode_value, encode_call, encode_chunk,
};
use errback::{RemoteError, Task, worker};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::memory::cost;
use super::values::{Flattened, Source, Tagged, Tree, Untagged};

/// How many bytes a reader is fed: some of its largest buffers.
const MUCH: usize = 1 << 20;

/// What may be allocated whatever comes: texts of errors, and serde's first guess at a size.
const CONSTANT: usize = 256 * 1024;

/// What may be allocated for each byte that came, where the bytes become our own messages.
const FACTOR: usize = 8;

/// The same where they become values of somebody's type. One byte may be a `String`, an `Untagged` or a place in a
/// map, and a vector that grows is there twice.
const TYPED_FACTOR: usize = 256;

#[errback::task]
pub fn echo(tree: Tree) -> Tree {
    tree
}

#[errback::task]
pub fn fails(code: u8, text: String) -> Result<Vec<u8>, TypedError> {
    Err(TypedError { code, text })
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TypedError {
    code: u8,
    text: String,
}

impl fmt::Display for TypedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for TypedError {}

#[track_caller]
fn within<T>(bytes: usize, factor: usize, body: impl FnOnce() -> T) -> T {
    let (result, cost) = cost(body);
    assert!(
        cost.peak <= bytes * factor + CONSTANT,
        "{bytes} bytes cost {cost:?}"
    );
    result
}

/// A frame reader, fed in any pieces and with any limit, against the plainest one that there can be.
pub fn frames(mut source: Source<'_>) {
    let mut model = Model {
        received: Vec::new(),
        start: 0,
        max_frame: source.number() as u32 as usize,
    };
    let mut reader = FrameReader::new(model.max_frame);
    let mut held = 0;
    // More would find nothing more, and take seconds.
    while !source.is_empty() && model.received.len() < MUCH {
        let decision = source.byte();
        let piece = match decision % 8 {
            0 => source.take(usize::from(decision >> 3)).to_vec(),
            1 => vec![decision; usize::from(source.short()) * 8],
            2 => (source.number() as u32).to_be_bytes().to_vec(),
            // A whole frame, with a part of the next.
            3 => {
                let mut piece = u32::from(source.short()).to_be_bytes().to_vec();
                piece.resize(
                    piece.len() + u16::from_be_bytes([piece[2], piece[3]]) as usize,
                    decision,
                );
                piece.extend(source.take(usize::from(decision >> 5)));
                piece
            }
            4 => {
                model.check(&mut reader);
                continue;
            }
            5 => {
                while model.check(&mut reader) {}
                continue;
            }
            6 => {
                model.max_frame = source.number() as u32 as usize;
                reader.set_max_frame(model.max_frame);
                continue;
            }
            _ => source.take(1).to_vec(),
        };
        if piece.is_empty() {
            continue; // no read, so nothing is given back either
        }
        held += feed(&mut reader, &piece, decision >= 0x80);
        model.received.extend(piece);
        let unread = model.received.len() - model.start;
        assert!(
            held <= (4 * unread + CONSTANT) as isize,
            "{held} bytes are held for {unread}"
        );
    }
    while model.check(&mut reader) {}
}

/// Gives a piece to the reader, and says how much more it holds since.
fn feed(reader: &mut FrameReader, mut piece: &[u8], as_a_socket_would: bool) -> isize {
    let ((), cost) = cost(|| {
        if !as_a_socket_would {
            return reader.extend(piece);
        }
        while !piece.is_empty() {
            let room = reader.room();
            let spare = room.capacity() - room.len();
            assert!(spare > 0, "a read into no room would look like the end");
            let (now, later) = piece.split_at(spare.min(piece.len()));
            room.extend_from_slice(now);
            piece = later;
        }
    });
    cost.kept
}

struct Model {
    received: Vec<u8>,
    start: usize,
    max_frame: usize,
}

impl Model {
    /// Both give the same frame, or none, or both refuse. Whether there was a frame.
    fn check(&mut self, reader: &mut FrameReader) -> bool {
        assert_eq!(reader.is_empty(), self.start == self.received.len());
        let rest = &self.received[self.start..];
        let length = rest
            .first_chunk()
            .map(|header| u32::from_be_bytes(*header) as usize);
        let has = reader.has_frame();
        match (length, reader.next_frame()) {
            (Some(length), Err(error)) if length > self.max_frame => assert_eq!(has, Err(error)),
            (Some(length), Ok(Some(frame))) if length <= self.max_frame => {
                assert_eq!(has, Ok(true));
                assert!(frame == &rest[HEADER..HEADER + length], "another frame");
                self.start += HEADER + length;
                return true;
            }
            (length, Ok(None)) => {
                assert_eq!(has, Ok(false));
                assert!(length.is_none_or(|length| rest.len() < HEADER + length));
            }
            (length, other) => panic!("announced {length:?}, limit {}: {other:?}", self.max_frame),
        }
        false
    }
}

/// A body as the host reads it, and everything that it may be made into there.
pub fn host_reads(body: &[u8]) {
    let bytes = body.len();
    within(bytes, FACTOR, || drop(WorkerHello::parse(body)));
    within(bytes, FACTOR, || drop(Answer::parse(body)));
    within(bytes, FACTOR, || drop(wire::parse_chunk_results(body, 3)));
    decode_all(body);
    match within(bytes, FACTOR, || Message::parse(body)) {
        Ok(Message::Answer(answer)) => outcome(bytes, answer.outcome),
        Ok(Message::Notification { params, .. }) => {
            within(bytes, FACTOR, || drop(WorkerHello::parse(params)));
            decode_all(params);
        }
        Ok(Message::Call { args, .. }) => decode_all(args),
        Ok(_) | Err(_) => {}
    }
}

fn outcome(bytes: usize, outcome: Outcome<'_>) {
    match outcome {
        Outcome::Value(value) => {
            decode_all(value);
            for count in [0, 1, 2] {
                if let Ok(results) =
                    within(bytes, FACTOR, || wire::parse_chunk_results(value, count))
                {
                    assert_eq!(results.len(), count);
                    for result in results {
                        match result {
                            Outcome::Value(value) => decode_all(value),
                            Outcome::Error(body) => error(bytes, body),
                        }
                    }
                }
            }
        }
        Outcome::Error(body) => error(bytes, body),
    }
}

fn error(bytes: usize, body: RemoteErrorBody) {
    for text in [&body.message, &body.type_name]
        .into_iter()
        .chain(&body.chain)
    {
        assert!(text.len() <= 65536, "a text of {} bytes", text.len());
    }
    assert!(body.chain.len() <= 50);
    within(bytes, FACTOR, || {
        drop(RemoteError::from(body.clone()));
        type_of(fails).decode_error(body);
    });
}

/// A task's own functions are those of its type.
struct TypeOf<F>(std::marker::PhantomData<F>);

fn type_of<F: Task>(_: F) -> TypeOf<F> {
    TypeOf(std::marker::PhantomData)
}

impl<F: Task> TypeOf<F> {
    fn decode_error(&self, body: RemoteErrorBody) {
        drop(F::decode_error(body));
    }

    fn decode_result(&self, bytes: &[u8]) {
        drop(F::decode_result(bytes));
    }
}

fn decode_all(bytes: &[u8]) {
    macro_rules! decode {
        ($($type:ty,)*) => { $( decode::<$type>(bytes); )* };
    }
    decode! {
        (), bool, u8, i8, u16, i32, u64, i64, u128, i128, f32, f64, char, String, NonZeroU8, Duration, IpAddr, PathBuf,
        SystemTime, Vec<u8>, Vec<u64>, Vec<String>, Vec<()>, Option<Option<u8>>, Box<[Option<String>]>,
        (u8, String, Vec<u8>), [u16; 4], BTreeMap<String, Vec<u8>>, HashMap<u64, String>, HashSet<char>,
        Result<u8, String>, Tree, Vec<Tree>, Untagged, Tagged, Flattened, RemoteErrorBody, serde_json::Value,
    }
    within(bytes.len(), TYPED_FACTOR, || {
        type_of(echo).decode_result(bytes);
        type_of(fails).decode_result(bytes);
    });
}

fn decode<T: DeserializeOwned + 'static>(bytes: &[u8]) {
    let decoded = within(bytes.len(), TYPED_FACTOR, || decode_value::<T>(bytes));
    if let Err(error) = decoded {
        let words = error.to_string();
        assert!(
            words.len() <= 2 * 65536,
            "{} bytes of an error",
            words.len()
        );
        assert!(!words.starts_with("a panic"), "{words}");
    }
}

/// A body as a worker reads it.
pub fn worker_reads(body: &[u8]) {
    within(body.len(), FACTOR, || drop(HostHello::parse(body)));
    if let Ok(Message::Notification { params, .. }) = Message::parse(body) {
        within(body.len(), FACTOR, || drop(HostHello::parse(params)));
    }
    for max_frame in [0, 4096, MAX_FRAME] {
        answered(body, max_frame);
    }
    // The same as the arguments of tasks that there are.
    for name in [echo.name(), fails.name(), wire::MAP] {
        let mut call = vec![0x94, 0x00, 0x07, 0xd9, name.len() as u8];
        call.extend(name.as_bytes());
        call.extend(body);
        answered(&call, MAX_FRAME);
    }
}

/// What is answered is an answer, to this call, and no longer than was agreed on.
fn answered(body: &[u8], max_frame: usize) {
    let answer = within(body.len(), TYPED_FACTOR, || {
        worker::answer_to(body, max_frame)
    });
    match (answer, Message::parse(body)) {
        (Ok(Some(frame)), Ok(Message::Call { id, .. })) => {
            assert!(frame.len() <= HEADER + max_frame.max(wire::MIN_FRAME));
            let answer = Answer::parse(whole(&frame)).expect("what a worker sends can be read");
            assert_eq!(answer.id, id);
        }
        (Ok(None), Ok(Message::Notification { .. })) => {}
        (Err(_), Ok(Message::Answer(_)) | Err(_)) => {}
        (answer, message) => panic!("{answer:?} to {message:?}"),
    }
}

/// The body of the one frame in these bytes.
pub fn whole(frame: &[u8]) -> &[u8] {
    let (header, body) = frame.split_first_chunk().expect("a header");
    assert_eq!(u32::from_be_bytes(*header) as usize, body.len());
    body
}

/// A value that is encoded, sent through a worker and decoded is the same. Gives the encoded value.
pub fn comes_back(tree: &Tree, id: u64) -> Vec<u8> {
    let frame = encode_call(id, echo.name(), &(tree,), MAX_FRAME).expect("a tree can be encoded");
    let Ok(Message::Call { args, .. }) = Message::parse(whole(&frame)) else {
        panic!("not a call: {frame:02x?}");
    };
    assert_eq!(decode_value::<(Tree,)>(args).as_ref(), Ok(&(tree.clone(),)));
    // A reader that is not ours.
    let read: (Tree,) = rmp_serde::from_slice(args).expect("what is written can be read");
    assert_eq!(&read.0, tree);

    let answer = worker::answer_to(whole(&frame), MAX_FRAME).expect("a call");
    let answer = answer.expect("a call has an answer");
    let answer = Answer::parse(whole(&answer)).expect("an answer");
    assert_eq!(answer.id, id);
    let Outcome::Value(value) = answer.outcome else {
        panic!("{tree:?}: {:?}", answer.outcome);
    };
    // Behind the marker of an array of one.
    assert_eq!(value, &args[1..]);

    let chunk = encode_chunk(id, echo.name(), &[(tree,), (tree,)], MAX_FRAME).expect("a chunk");
    let answer = worker::answer_to(whole(&chunk), MAX_FRAME).expect("a chunk is a call");
    let answer = answer.expect("a call has an answer");
    let Outcome::Value(results) = Answer::parse(whole(&answer)).expect("an answer").outcome else {
        panic!("{tree:?} failed in a chunk");
    };
    let results = wire::parse_chunk_results(results, 2).expect("two results");
    for result in results {
        assert!(matches!(result, Outcome::Value(one) if one == value));
    }
    value.to_vec()
}

/// A message that is right, but for a few bytes, is read by both sides.
pub fn mutated(mut source: Source<'_>) {
    let mut frame = message(&mut source);
    for _ in 0..source.byte() % 8 {
        mutate(&mut frame, &mut source);
    }
    let mut reader = FrameReader::new(1 << 20);
    feed(&mut reader, &frame, true);
    while let Ok(Some(body)) = reader.next_frame() {
        host_reads(body);
        worker_reads(body);
    }
    // And as a body, if the header is what was hit.
    let body = frame.get(HEADER..).unwrap_or_default();
    host_reads(body);
    worker_reads(body);
}

/// A whole frame of a message of some kind.
pub fn message(source: &mut Source<'_>) -> Vec<u8> {
    let id = source.number();
    let call = |tree: Tree| encode_call(id, echo.name(), &(tree,), MAX_FRAME).expect("a call");
    let answer = |call: Vec<u8>| {
        worker::answer_to(whole(&call), MAX_FRAME)
            .expect("a call")
            .expect("an answer")
    };
    match source.byte() % 8 {
        0 => call(Tree::new(source)),
        1 => answer(call(Tree::new(source))),
        2 => answer(
            encode_call(id, fails.name(), &(source.byte(), source.text()), MAX_FRAME)
                .expect("a call"),
        ),
        3 => answer(encode_call(id, &source.text(), &(), MAX_FRAME).expect("a call")),
        kind @ (4 | 5) => {
            let trees: Vec<_> = (0..source.byte() % 4)
                .map(|_| (Tree::new(source),))
                .collect();
            let chunk = encode_chunk(id, echo.name(), &trees, MAX_FRAME).expect("a chunk");
            match kind {
                4 => chunk,
                _ if source.flag() => answer(chunk),
                // As a worker in another language may say it.
                _ => {
                    let all = std::collections::BTreeMap::from([("all", trees)]);
                    answer(encode_call(id, echo.name(), &(all,), MAX_FRAME).expect("a call"))
                }
            }
        }
        6 => HostHello {
            protocol: source.number() as u32,
            max_frame: source.number(),
            memory_limit: source.flag().then(|| source.number()),
            cpu_limit: source.flag().then(|| source.number()),
            open_files: source.flag().then(|| source.number()),
            buffers: None,
            lane: source.flag(),
            spin: source.number(),
        }
        .encode(),
        _ => WorkerHello {
            protocol: source.number() as u32,
            language: source.text(),
            version: source.text(),
            build: source.text(),
            pipeline: source.number(),
            ..WorkerHello::default()
        }
        .encode(),
    }
}

/// Markers of MessagePack that claim something.
const MARKERS: [u8; 16] = [
    0xc0, 0xc1, 0xc4, 0xc6, 0xc9, 0xcf, 0xd8, 0xd9, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0x8f, 0x9f, 0xff,
];

fn mutate(bytes: &mut Vec<u8>, source: &mut Source<'_>) {
    let decision = source.byte();
    if bytes.is_empty() {
        return bytes.push(decision);
    }
    let at = usize::from(source.short()) % bytes.len();
    match decision % 8 {
        0 => bytes[at] ^= 1 << (decision >> 5),
        1 => bytes[at] = source.byte(),
        2 => bytes[at] = MARKERS[usize::from(decision >> 4)],
        3 => bytes.insert(at, MARKERS[usize::from(decision >> 4)]),
        4 => drop(bytes.remove(at)),
        5 => bytes.truncate(at),
        6 => {
            let end = (at + usize::from(source.byte())).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        _ => {
            let length = (source.number() as u32).to_be_bytes();
            let end = (at + 4).min(bytes.len());
            bytes[at..end].copy_from_slice(&length[..end - at]);
        }
    }
}
