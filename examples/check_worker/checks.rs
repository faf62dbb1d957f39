//! What the protocol says, each with a way to see whether it is so.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Error, Result, bail, ensure};
use errback::wire::{self, ErrorKind, MAX_DEPTH, MAX_FRAME, Outcome, RemoteErrorBody};

use crate::host::{Hello, Host, Program, framed};
use crate::value::Value;

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

pub(crate) struct Check {
    /// A sentence of the protocol.
    pub(crate) says: &'static str,
    run: fn(&Program) -> Result<()>,
}

pub(crate) enum Verdict {
    Holds,
    Fails(Error),
}

impl Check {
    pub(crate) fn verdict(&self, program: &Program) -> Verdict {
        match (self.run)(program) {
            Ok(()) => Verdict::Holds,
            Err(error) => Verdict::Fails(error),
        }
    }
}

macro_rules! checks {
    ($($says:literal => $run:ident,)*) => {
        /// All of them.
        pub(crate) const CHECKS: &[Check] = &[$(Check {
            says: $says,
            run: $run,
        },)*];
    };
}

checks! {
    "a worker says hello, answers, and leaves with 0 at end of file" => greets,
    "end of file before the hello is an end with 0" => leaves_before_the_hello,
    "the lower version is spoken, and members that are not known are ignored" => later_host,
    "what the hello leaves out has its default" => empty_hello,
    "a first frame that is no hello is bad bytes" => no_hello,
    "the mark is taken out of the environment, and no descriptor is passed on" => leaves_no_trace,
    "the memory limit of the hello is in force" => memory_limit,
    "the limits of CPU time and open files are in force" => other_limits,
    "calls are answered in their order, however they come" => order,
    "a chunk has a result for each of its calls" => chunks,
    "a chunk of one argument each is the same without the arrays around them" => each,
    "a chunk that is none, or of no task, is an error" => bad_chunks,
    "the begun counter counts calls, a chunk once" => begun,
    "a call with the id 0 is like any other, and so is one with the highest id" => ids,
    "a task that is not known is an unknown_task" => unknown_task,
    "arguments that do not fit are a decode_args, and the function does not begin" => decode_args,
    "a string that is not UTF-8 fails its job alone" => not_utf8,
    "an error has its type and its message" => errors,
    "the texts of an error are cut" => long_errors,
    "a result that cannot be sent is an encode_result" => encode_result,
    "no frame is longer than max_frame, and results that do not fit are errors" => max_frame,
    "values come back as they were" => values,
    "bytes of any size come back as they were" => sizes,
    "512 levels are good, and 513 are bad bytes" => depth,
    "notifications that are not known are ignored" => notifications,
    "bad bytes end the worker with one line and 76" => bad_bytes,
    "end of file within a frame is bad bytes" => half_a_frame,
    "what a task prints goes to descriptors 1 and 2, and is there before its answer" => prints,
    "a task that ends the process ends the worker with its code" => exits,
    "a request ends the call that it names" => request,
    "a request that comes before its call begins is no harm to the next" => early_request,
    "requests for other calls are passed over" => other_requests,
    "bytes that are referred to are read in shared memory" => buffers,
    "a host that is gone while a job runs is an end with 0" => gone_host,
}

fn greets(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let hello = &host.hello;
    ensure!(hello.protocol == 1, "version {}", hello.protocol);
    ensure!(!hello.language.is_empty(), "it names no language");
    ensure!(!hello.version.is_empty(), "it names no version");
    ensure!(hello.tasks >= 10, "it knows {} tasks", hello.tasks);
    host.is_well()?;
    nil(host.call("check:nothing", &())?)?;
    let ended = host.end()?;
    ensure!(ended.status.code() == Some(0), "{}", ended.status);
    let printed = ended.stdout + &ended.stderr;
    ensure!(printed.is_empty(), "it prints {printed:?}");
    Ok(())
}

fn nil(outcome: Result<Value, RemoteErrorBody>) -> Result<()> {
    ensure!(matches!(outcome, Ok(Value::Nil)), "{outcome:?} for nil");
    Ok(())
}

fn leaves_before_the_hello(program: &Program) -> Result<()> {
    Host::spawn(program)?.end_well()
}

fn later_host(program: &Program) -> Result<()> {
    let mut host = Host::start_with(program, &Hello::from([("protocol", 9), ("later", 1)]))?;
    ensure!(host.hello.protocol == 1, "version {}", host.hello.protocol);
    host.is_well()?;
    host.end_well()
}

fn empty_hello(program: &Program) -> Result<()> {
    let mut host = Host::start_with(program, &Hello::new())?;
    host.is_well()?;
    host.end_well()
}

fn no_hello(program: &Program) -> Result<()> {
    let firsts = [
        wire::encode_notification("ping", &(), MAX_FRAME)?,
        wire::encode_notification("hello", &(1,), MAX_FRAME)?,
        wire::encode_notification("hello", &(BTreeMap::from([("protocol", 0)]),), MAX_FRAME)?,
        wire::encode_call(1, "check:add", &(1, 2), MAX_FRAME)?,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for first in firsts {
        let mut host = Host::spawn(program)?;
        host.send_hello(&first)?;
        ends_for_bad_bytes(&mut host).with_context(|| format!("{first:x?}"))?;
    }
    Ok(())
}

fn ends_for_bad_bytes(host: &mut Host) -> Result<()> {
    if let Some(frame) = host.receive()? {
        bail!("it answers {frame:x?}");
    }
    let ended = host.wait()?;
    ensure!(
        ended.status.code() == Some(76),
        "{}: {}",
        ended.status,
        ended.stderr
    );
    ensure!(
        ended.stderr.lines().count() == 1,
        "it writes {:?}",
        ended.stderr
    );
    Ok(())
}

fn leaves_no_trace(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    nil(host.call("check:variable", &("ERRBACK_WORKER",))?)?;
    let open = host.call("check:inheritable", &())?;
    ensure!(
        matches!(&open, Ok(Value::Array(numbers)) if numbers.is_empty()),
        "inheritable descriptors: {open:?}"
    );
    host.end_well()
}

fn limits(program: &Program, hello: &Hello) -> Result<Vec<Value>> {
    let mut host = Host::start_with(program, hello)?;
    let Ok(Value::Array(limits)) = host.call("check:limits", &())? else {
        bail!("check:limits has no list of limits");
    };
    host.end_well()?;
    Ok(limits)
}

fn memory_limit(program: &Program) -> Result<()> {
    let limits = limits(program, &Hello::from([("memory_limit", 3 << 30)]))?;
    ensure!(
        matches!(limits[0], Value::Unsigned(most) if most <= 3 << 30),
        "{limits:?}"
    );
    Ok(())
}

fn other_limits(program: &Program) -> Result<()> {
    let hello = Hello::from([("cpu_limit", 1000), ("open_files", 100)]);
    let limits = limits(program, &hello)?;
    let expected = [(1, 1000), (2, 1001), (3, 100)];
    for (at, expected) in expected {
        ensure!(
            matches!(limits[at], Value::Unsigned(most) if most <= expected),
            "{limits:?}"
        );
    }
    Ok(())
}

fn order(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let calls = |ids: std::ops::Range<u64>| -> Result<Vec<u8>> {
        let calls = ids.map(|id| wire::encode_call(id, "check:add", &(id, 1), MAX_FRAME));
        Ok(calls.collect::<Result<Vec<_>, _>>()?.concat())
    };
    host.send(&calls(0..50)?)?;
    for byte in calls(50..100)? {
        host.send(&[byte])?;
    }
    for piece in calls(100..150)?.chunks(39) {
        host.send(piece)?;
    }
    for id in 0..150 {
        let sum = host.answer(id)?;
        ensure!(
            matches!(sum, Ok(Value::Unsigned(n)) if n == id + 1),
            "{sum:?}"
        );
    }
    host.end_well()
}

fn pair(a: u64, b: u64) -> Value {
    Value::Array(vec![Value::Unsigned(a), Value::Unsigned(b)])
}

fn results(frame: &[u8], calls: usize) -> Result<Vec<Result<Value, ErrorKind>>> {
    let answer = wire::Answer::parse(frame)?;
    let value = match answer.outcome {
        Outcome::Value(value) => value,
        Outcome::Error(error) => bail!("the chunk is an error: {error:?}"),
    };
    let results = wire::parse_chunk_results(value, calls)?.into_iter();
    results
        .map(|result| match result {
            Outcome::Value(value) => Ok(Ok(wire::decode_value(value)?)),
            Outcome::Error(error) => Ok(Err(error.kind)),
        })
        .collect()
}

fn chunks(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let one = Value::Array(vec![Value::Unsigned(1)]);
    let frame = host.chunk("check:add", &[pair(1, 2), one, Value::Nil, pair(3, 4)])?;
    let all = results(&frame, 4)?;
    ensure!(
        matches!(
            all[..],
            [
                Ok(Value::Unsigned(3)),
                Err(ErrorKind::DecodeArgs),
                Err(ErrorKind::DecodeArgs),
                Ok(Value::Unsigned(7))
            ]
        ),
        "{all:?}"
    );
    let say = |text: &str| Value::Array(vec![Value::Text(text.into())]);
    let all = results(&host.chunk("check:fail", &[say("a"), say("b")])?, 2)?;
    ensure!(
        matches!(all[..], [Err(ErrorKind::Error), Err(ErrorKind::Error)]),
        "{all:?}"
    );
    let empty = Value::Array(vec![]);
    let all = results(&host.chunk("check:unsendable", &[empty.clone(), empty])?, 2)?;
    ensure!(
        matches!(
            all[..],
            [Err(ErrorKind::EncodeResult), Err(ErrorKind::EncodeResult)]
        ),
        "{all:?}"
    );
    let none = results(&host.chunk("check:add", &[])?, 0)?;
    ensure!(none.is_empty(), "{none:?}");
    let many: Vec<_> = (0..70_000).map(|n| pair(n, 1)).collect();
    let all = results(&host.chunk("check:add", &many)?, many.len())?;
    ensure!(all.len() == many.len(), "{} results", all.len());
    for (n, result) in all.iter().enumerate() {
        ensure!(
            matches!(result, Ok(Value::Unsigned(sum)) if *sum == n as u64 + 1),
            "result {n} is {result:?}"
        );
    }
    host.is_well()?;
    host.end_well()
}

fn each(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let lengths = |wanted: &[u64]| {
        wanted
            .iter()
            .map(|n| Value::Unsigned(*n))
            .collect::<Vec<_>>()
    };
    let wanted: Vec<u64> = (0..300).collect();
    let all = results(&host.each("check:bytes", &lengths(&wanted))?, wanted.len())?;
    for (length, result) in wanted.iter().zip(&all) {
        ensure!(
            matches!(result, Ok(Value::Bytes(bytes)) if bytes.len() as u64 == *length),
            "{length} bytes are {result:?}"
        );
    }
    let say = |text: &str| Value::Text(text.into());
    let all = results(&host.each("check:fail", &[say("a"), say("b")])?, 2)?;
    ensure!(
        matches!(all[..], [Err(ErrorKind::Error), Err(ErrorKind::Error)]),
        "{all:?}"
    );
    // Another number of arguments than the task takes.
    let all = results(
        &host.each("check:add", &[pair(1, 2), Value::Unsigned(1)])?,
        2,
    )?;
    ensure!(
        matches!(
            all[..],
            [Err(ErrorKind::DecodeArgs), Err(ErrorKind::DecodeArgs)]
        ),
        "{all:?}"
    );
    let none = results(&host.each("check:fail", &[])?, 0)?;
    ensure!(none.is_empty(), "{none:?}");
    host.begun();
    host.each("check:bytes", &lengths(&[1, 2, 3]))?;
    let begun = host.begun();
    ensure!(begun == 1, "the chunk is counted {begun} times");
    host.is_well()?;
    host.end_well()
}

fn bad_chunks(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let kinds = [
        host.failure(wire::MAP, &())?.kind,
        host.failure(wire::MAP, &(1, 2))?.kind,
        host.failure(wire::MAP, &("check:add", 2))?.kind,
        host.failure(wire::EACH, &("check:fail", 2))?.kind,
        host.failure(wire::MAP, &("check:nobody", [(1, 2)]))?.kind,
        host.failure(wire::EACH, &("check:nobody", (1, 2)))?.kind,
    ];
    use ErrorKind::{DecodeArgs, UnknownTask};
    let (refused, unknown) = kinds.split_at(4);
    ensure!(
        refused == [DecodeArgs; 4] && unknown == [UnknownTask; 2],
        "{kinds:?}"
    );
    host.is_well()?;
    host.end_well()
}

fn begun(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let mut seen = vec![host.begun()];
    host.is_well()?;
    seen.push(host.begun());
    host.failure("check:fail", &("x",))?;
    seen.push(host.begun());
    host.failure("check:unsendable", &())?;
    seen.push(host.begun());
    host.failure("check:add", &(1,))?;
    host.failure("check:nobody", &())?;
    seen.push(host.begun());
    host.chunk("check:add", &[Value::Nil, pair(1, 2), pair(3, 4)])?;
    seen.push(host.begun());
    host.chunk("check:add", &[Value::Nil])?;
    host.chunk("check:add", &[])?;
    seen.push(host.begun());
    ensure!(seen == [0, 1, 1, 1, 2, 1, 2], "{seen:?}");
    host.end_well()
}

fn ids(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for id in [0, 1, 127, 128, u64::from(u32::MAX) + 1, u64::MAX] {
        host.send_call(id, "check:add", &(1, 2))?;
        let sum = host.answer(id)?;
        ensure!(matches!(sum, Ok(Value::Unsigned(3))), "{sum:?}");
    }
    // A host may write it in any form.
    host.send(&framed(b"\x94\x00\x05\xa9check:add\x92\x01\x02"))?;
    host.answer(5)?.ok().context("a short form of the id")?;
    host.send(&framed(b"\x94\x00\xcd\x00\x06\xa9check:add\x92\x01\x02"))?;
    host.answer(6)?.ok().context("a longer form of the id")?;
    host.end_well()
}

fn unknown_task(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for name in [
        "check:nobody",
        "nobody",
        "",
        ":",
        "check:",
        "errback.later",
        "é:\0",
    ] {
        let error = host.failure(name, &(1, 2))?;
        ensure!(error.kind == ErrorKind::UnknownTask, "{name}: {error:?}");
        ensure!(!error.message.is_empty(), "it says nothing about {name:?}");
    }
    host.is_well()?;
    host.end_well()
}

fn decode_args(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for error in [
        host.failure("check:add", &())?,
        host.failure("check:add", &(1,))?,
        host.failure("check:add", &(1, 2, 3))?,
        host.failure("check:nothing", &(1,))?,
    ] {
        ensure!(error.kind == ErrorKind::DecodeArgs, "{error:?}");
        ensure!(!error.message.is_empty(), "it says nothing");
    }
    ensure!(
        host.begun() == 4,
        "calls are counted whatever becomes of them"
    );
    host.is_well()?;
    host.end_well()
}

fn not_utf8(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    host.send(&framed(b"\x94\x00\x01\xaacheck:fail\x91\xa2\xff\xfe"))?;
    let outcome = host.answer(1)?;
    ensure!(
        matches!(&outcome, Err(error) if error.kind == ErrorKind::DecodeArgs),
        "{outcome:?}"
    );
    host.send(&framed(
        b"\x94\x00\x02\xaberrback.map\x92\xaacheck:fail\x93\x91\xa1a\x91\xa2\xff\xfe\x91\xa1b",
    ))?;
    host.send(&framed(
        b"\x94\x00\x03\xacerrback.each\x92\xaacheck:fail\x93\xa1a\xa2\xff\xfe\xa1b",
    ))?;
    for _ in 0..2 {
        let frame = host.receive()?.context("no answer")?;
        let all = results(&frame, 3)?;
        ensure!(
            matches!(
                all[..],
                [
                    Err(ErrorKind::Error),
                    Err(ErrorKind::DecodeArgs),
                    Err(ErrorKind::Error)
                ]
            ),
            "{all:?}"
        );
    }
    host.end_well()
}

fn errors(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for message in ["no such luck", "", "drei\nZeilen – \0 é"] {
        let error = host.failure("check:fail", &(message,))?;
        ensure!(error.kind == ErrorKind::Error, "{error:?}");
        ensure!(error.message == message, "{error:?}");
        ensure!(error.type_name.contains("Refused"), "{error:?}");
    }
    host.is_well()?;
    host.end_well()
}

fn long_errors(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    host.send_call(1, "check:fail", &("é".repeat(200_000),))?;
    let frame = host.receive()?.context("no answer")?;
    ensure!(frame.len() < 400_000, "an error of {} bytes", frame.len());
    host.is_well()?;
    host.end_well()
}

fn encode_result(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    let error = host.failure("check:unsendable", &())?;
    ensure!(error.kind == ErrorKind::EncodeResult, "{error:?}");
    ensure!(!error.message.is_empty(), "it says nothing");
    host.is_well()?;
    host.end_well()
}

fn max_frame(program: &Program) -> Result<()> {
    let mut host = Host::start_with(program, &Hello::from([("max_frame", 1024)]))?;
    // The answer has 12 bytes before its value, and these bytes have 3.
    let fits = host.call("check:bytes", &(1024 - 15,))?;
    ensure!(fits.is_ok(), "what fits is {fits:?}");
    let error = host.failure("check:bytes", &(1024 - 14,))?;
    ensure!(error.kind == ErrorKind::EncodeResult, "{error:?}");
    let error = host.failure("check:bytes", &(1_000_000,))?;
    ensure!(error.kind == ErrorKind::EncodeResult, "{error:?}");
    for (id, length) in [(1, 100), (2, 500), (3, 900), (4, 980)] {
        host.send_call(id, "check:fail", &("x".repeat(length),))?;
        let frame = host.receive()?.context("no answer")?;
        ensure!(frame.len() <= 1024, "an error of {} bytes", frame.len());
    }
    let calls = [400, 400, 400, 5].map(|n| Value::Array(vec![Value::Unsigned(n)]));
    let frame = host.chunk("check:bytes", &calls)?;
    ensure!(frame.len() <= 1024, "a chunk of {} bytes", frame.len());
    let all = results(&frame, 4)?;
    ensure!(
        matches!(all[..], [Ok(_), Ok(_), Err(ErrorKind::EncodeResult), Ok(_)]),
        "{all:?}"
    );
    // Not even the errors fit.
    let calls = vec![Value::Array(vec![Value::Unsigned(2000)]); 200];
    let frame = host.chunk("check:bytes", &calls)?;
    ensure!(frame.len() <= 1024, "a chunk of {} bytes", frame.len());
    match wire::Answer::parse(&frame)?.outcome {
        Outcome::Error(error) if error.kind == ErrorKind::EncodeResult => {}
        other => bail!("{other:?}"),
    }
    host.is_well()?;
    // And the other way.
    host.send(&1025u32.to_be_bytes())?;
    ends_for_bad_bytes(&mut host)
}

/// The bytes of the examples in the table of values, and some more.
fn encoded_values() -> Vec<Vec<u8>> {
    let (_, table) = DOCUMENT.split_once("## Values").expect("the section");
    let rows = table.lines().filter(|line| line.starts_with("| "));
    let cells = rows.filter_map(|row| row.split('|').nth(4));
    let mut values: Vec<_> = cells
        .map(|cell| cell.trim().trim_matches('`'))
        .filter(|cell| !cell.is_empty() && *cell != "bytes" && !cell.starts_with('-'))
        .map(hex)
        .collect();
    assert!(values.len() > 15, "the table of values is not what it was");
    for value in [
        "c2",
        "00",
        "7f",
        "cc 80",
        "cd 01 00",
        "ce 00 01 00 00",
        "cf 00 00 00 01 00 00 00 00",
        "ff",
        "e0",
    ]
    .into_iter()
    .chain([
        "d1 80 00",
        "d2 80 00 00 00",
        "d3 80 00 00 00 00 00 00 00",
        "cb 7f f0 00 00 00 00 00 00",
    ])
    .chain([
        "cb 3f b9 99 99 99 99 99 9a",
        "cb 7f f8 00 00 00 00 00 00",
        "a1 00",
        "a3 65 cc 81",
        "a0",
        "90",
        "80",
    ])
    .chain([
        "81 05 a1 78",
        "82 c0 01 c3 02",
        "91 91 91 90",
        "93 c0 c4 01 ff a0",
    ]) {
        values.push(hex(value));
    }
    values
}

fn hex(digits: &str) -> Vec<u8> {
    let bytes = digits.split_whitespace();
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).expect(digits))
        .collect()
}

fn values(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for value in encoded_values() {
        let mut body = b"\x94\x00\x01\xaacheck:echo\x91".to_vec();
        body.extend(&value);
        host.send(&framed(&body))?;
        let frame = host.receive()?.context("no answer")?;
        match wire::Answer::parse(&frame)?.outcome {
            Outcome::Value(back) => ensure!(back == value, "{value:x?} comes back as {back:x?}"),
            Outcome::Error(error) => bail!("{value:x?}: {error:?}"),
        }
    }
    host.end_well()
}

fn sizes(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for size in [0, 1, 255, 256, 65535, 65536, 65537, 1 << 20, (16 << 20) + 1] {
        let bytes: Vec<u8> = (0..size).map(|n: usize| (n % 251) as u8).collect();
        let back = host.call("check:echo", &(Value::Bytes(bytes.clone()),))?;
        ensure!(
            matches!(back, Ok(Value::Bytes(back)) if back == bytes),
            "{size} bytes do not come back"
        );
    }
    host.end_well()
}

fn depth(program: &Program) -> Result<()> {
    for (levels, good) in [(MAX_DEPTH, true), (MAX_DEPTH + 1, false), (100_000, false)] {
        let mut host = Host::start(program)?;
        let mut body = b"\x94\x00\x01\xaacheck:echo".to_vec();
        body.extend(std::iter::repeat_n(0x91, levels - 1));
        body.push(0x90);
        host.send(&framed(&body))?;
        if good {
            let frame = host.receive()?.context("no answer")?;
            let Outcome::Value(value) = wire::Answer::parse(&frame)?.outcome else {
                bail!("{levels} levels are an error");
            };
            ensure!(value.len() == levels - 1, "{} bytes", value.len());
            host.end_well()?;
        } else {
            ends_for_bad_bytes(&mut host).with_context(|| format!("{levels} levels"))?;
        }
    }
    Ok(())
}

fn notifications(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    host.send(&wire::encode_notification("later", &(1, "x"), MAX_FRAME)?)?;
    host.is_well()?;
    host.end_well()
}

fn bad_bytes(program: &Program) -> Result<()> {
    let mut examples = 0;
    let mut lines = DOCUMENT.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("```hex-bad ") {
            let digits = lines.next().context("a block without bytes")?;
            let mut host = Host::start(program)?;
            host.is_well()?;
            host.send(&hex(digits))?;
            ends_for_bad_bytes(&mut host).context(name)?;
            examples += 1;
        }
    }
    ensure!(examples > 10, "the document has {examples} examples");
    Ok(())
}

fn half_a_frame(program: &Program) -> Result<()> {
    let call = wire::encode_call(1, "check:add", &(1, 2), MAX_FRAME)?;
    for length in [1, 3, 4, 5, call.len() - 1] {
        let mut host = Host::start(program)?;
        host.send(&call[..length])?;
        let ended = host.end()?;
        ensure!(
            ended.status.code() == Some(76),
            "{} after {length} bytes",
            ended.status
        );
    }
    Ok(())
}

fn prints(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    nil(host.call("check:print", &("a line",))?)?;
    host.is_well()?;
    let ended = host.end()?;
    ensure!(ended.status.code() == Some(0), "{}", ended.status);
    ensure!(ended.stdout == "a line\n", "stdout: {:?}", ended.stdout);
    ensure!(ended.stderr == "a line\n", "stderr: {:?}", ended.stderr);
    Ok(())
}

fn exits(program: &Program) -> Result<()> {
    for code in [0, 3] {
        let mut host = Host::start(program)?;
        host.send_call(1, "check:exit", &(code,))?;
        ensure!(host.receive()?.is_none(), "it answers");
        ensure!(host.begun() == 1, "the call was not counted");
        let ended = host.wait()?;
        ensure!(ended.status.code() == Some(code), "{}", ended.status);
    }
    Ok(())
}

/// A job that was asked to stop says so, or ends with an error.
fn was_asked(outcome: Result<Value, RemoteErrorBody>) -> Result<()> {
    match outcome {
        Err(_) => Ok(()),
        Ok(value) => match value.text() {
            Some("asked") => Ok(()),
            _ => bail!("the job gave {value:?}"),
        },
    }
}

fn request(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for id in 1..20 {
        host.send_call(id, "check:spin", &(600,))?;
        while host.begun() == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        host.request(id)?;
        was_asked(host.answer(id)?)?;
        host.is_well()?;
        host.begun();
    }
    host.end_well()
}

fn early_request(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    for id in 100..200 {
        // The request may come before, while or after the call is run. Only that one may feel it.
        host.send_call(id, "check:add", &(1, 2))?;
        host.request(id)?;
        let _ = host.answer(id)?;
        host.is_well()?;
    }
    host.end_well()
}

fn other_requests(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    host.request(77)?;
    host.send_call(2, "check:spin", &(1,))?;
    for id in [1, 3, 0, u64::MAX] {
        host.request(id)?;
    }
    let outcome = host.answer(2)?;
    ensure!(
        matches!(&outcome, Ok(value) if value.text() == Some("ran")),
        "{outcome:?}"
    );
    host.request(2)?;
    host.is_well()?;
    host.end_well()
}

/// Of workers that say that they can.
fn buffers(program: &Program) -> Result<()> {
    // So many bytes no result has: each comes in its frame.
    let never = 1 << 40;
    let hello = Hello::from([("protocol", 1), ("buffers", never)]);
    let mut host = Host::start_with(program, &hello)?;
    if !host.hello.buffers {
        return host.end_well();
    }
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| (n ^ n >> 8) as u8).collect();
    host.announce(5, &bytes)?;
    for (arena, kind) in [(5, 69), (5, 70), (6, 69), (5, 69)] {
        let id = 1000 + arena * 100 + u64::from(kind);
        let mut body = vec![0x94, 0, 0xcf];
        body.extend(id.to_be_bytes());
        body.extend(b"\xaacheck:echo\x91\xc7\x18");
        body.push(kind);
        for number in [arena, 4096, 100_000] {
            body.extend(u64::to_be_bytes(number));
        }
        host.send(&framed(&body))?;
        match host.answer(id)? {
            Ok(Value::Bytes(echoed)) if arena == 5 => {
                ensure!(echoed == bytes[4096..][..100_000], "other bytes came back");
            }
            Err(error) if arena == 6 => {
                ensure!(error.kind == ErrorKind::DecodeArgs, "{error:?}");
            }
            other => bail!("{other:?}"),
        }
    }
    host.end_well()
}

fn gone_host(program: &Program) -> Result<()> {
    let mut host = Host::start(program)?;
    host.send_call(1, "check:spin", &(1,))?;
    while host.begun() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    host.end_well()
}
