//! M: what travels, and what a worker that is not ours to trust may send instead.
//!
//! The false workers are shell scripts that speak raw bytes on their standard input, which is the socket.

use errback::wire::{self, HostHello, WorkerHello};
use errback::{Pool, ProtocolError, UnknownTask, WorkerDied};

use crate::suite::rows;
use crate::support::{
    Belongings, Invariant, affordable, builder, close, eventually, failure, failure_of, has, pool,
    status, succeeds, value,
};
use crate::tasks::*;

/// Bytes as `printf` writes them.
fn octal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:03o}")).collect()
}

fn hello() -> Vec<u8> {
    WorkerHello {
        protocol: wire::PROTOCOL,
        pid: 1,
        language: "shell".to_string(),
        version: "1".to_string(),
        build: String::new(),
        tasks: 1,
        ..WorkerHello::default()
    }
    .encode()
}

/// What a host says first, if nothing else was asked for.
fn host_hello() -> Vec<u8> {
    HostHello {
        max_frame: wire::MAX_FRAME as u64,
        buffers: has("buffers").then_some(65_536),
        ..HostHello::default()
    }
    .encode()
}

/// A frame around these bytes.
fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(body.len())
        .expect("short")
        .to_be_bytes()
        .to_vec();
    frame.extend(body);
    frame
}

/// The answer 3 to a job.
fn three(id: u8) -> Vec<u8> {
    frame(&[0x94, 1, id, 0xc0, 3])
}

/// A pool of workers that say hello, read one call of `add(1, 2)`, write these bytes, and then wait for their end.
fn pool_that_answers(bytes: &[u8]) -> Pool {
    let call = wire::encode_call(
        1,
        errback::Task::name(&add),
        &(1_i64, 2_i64),
        wire::MAX_FRAME,
    )
    .expect("a call");
    let host_hello = host_hello();
    let script = format!(
        "printf '{}' >&0; head -c {} <&0 >/dev/null; printf '{}' >&0; exec cat <&0 >/dev/null",
        octal(&hello()),
        host_hello.len() + call.len(),
        octal(bytes)
    );
    crate::support::builder()
        .size(1)
        .command("sh", ["-c", &script])
        .build()
        .expect("a pool")
}

/// A worker that sends this fails its job with a protocol error, is killed, and costs no memory.
#[track_caller]
fn is_refused(bytes: &[u8]) {
    let before = Belongings::now();
    let pool = pool_that_answers(bytes);
    let job = pool.apply_async(add, (1, 2));
    let memory = resident_kib();
    failure_of::<ProtocolError, _>(job);
    assert!(
        resident_kib() < memory + 4096,
        "{memory} KiB became {}",
        resident_kib()
    );
    close(pool, &before);
}

fn resident_kib() -> u64 {
    status(std::process::id(), "VmRSS")
        .parse()
        .expect("a number")
}

rows! {
    /// A shell script is the worker, and answers as one should.
    fn m_a_false_worker_that_answers_well_is_believed() {
        let pool = pool_that_answers(&three(1));
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    }

    /// A worker claims a length of 4 GiB.
    fn m3_a_claimed_length_costs_nothing() {
        is_refused(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        is_refused(&[0x40, 0, 0, 1, 1, 2, 3]); // one more than allowed
    }

    /// A worker sends bytes that are no answer, in ten ways.
    fn m4_what_is_no_answer_kills_the_worker_and_fails_the_job() {
        is_refused(&frame(b"\xc1")); // never used by MessagePack
        is_refused(&frame(b"")); // nothing at all
        is_refused(&frame(&[0x94, 1, 1, 0xc0])); // cut short
        is_refused(&frame(&[0x94, 1, 1, 0xc0, 3, 3])); // trailing byte
        is_refused(&frame(&[0x94, 9, 1, 0xc0, 3])); // unknown kind
        is_refused(&frame(&[0x94, 1, 7, 0xc0, 3])); // another job
        is_refused(&frame(&[0x94, 0, 1, 0xa3, b'a', b'd', b'd', 0x90])); // a call
        is_refused(&frame(&vec![0x91; 1500])); // too deep
        is_refused(&frame(&[0x94, 1, 1, 3, 3])); // an error that is a number
        is_refused(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    }

    /// A worker answers twice.
    fn m4_an_answer_and_more_is_an_answer_and_the_end_of_the_worker() {
        let before = Belongings::now();
        let pool = pool_that_answers(&[three(1), three(1)].concat());
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
        eventually(crate::support::whole(), "it is killed", || pool.stats().died == 1);
        close(pool, &before);
    }

    /// A worker's bytes come one at a time.
    fn m5_an_answer_in_pieces_is_an_answer() {
        let call = wire::encode_call(1, errback::Task::name(&add), &(1_i64, 2_i64), wire::MAX_FRAME).expect("a call");
        let host_hello = host_hello();
        let bytes = [hello(), three(1)].concat();
        // A `printf` for each byte is a write for each byte.
        let pieces = |bytes: &[u8]| bytes.chunks(1).map(|byte| format!("printf '{}' >&0; ", octal(byte))).collect::<String>();
        let (hello, answer) = bytes.split_at(bytes.len() - three(1).len());
        let read = host_hello.len() + call.len();
        let script = format!(
            "{}head -c {read} <&0 >/dev/null; {}exec cat <&0 >/dev/null",
            pieces(hello),
            pieces(answer)
        );
        let pool = crate::support::builder().size(1).command("sh", ["-c", &script]).build().expect("a pool");
        assert_eq!(value(pool.apply_async(add, (1, 2))), 3);
    }

    /// Arguments and results of 0 bytes to 8 MiB.
    fn m6_payloads_of_all_sizes_come_back_equal() {
        for pool in [pool(2), builder().size(2).shared_buffers(None).build().expect("a pool")] {
        for size in [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20, 8 << 20] {
            let bytes: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
            assert!(value(pool.apply_async(echo, (bytes.clone(),))) == bytes, "{size} bytes");
        }
        }
    }

    /// An argument and a result of 256 MiB.
    fn m6_a_quarter_of_a_gib_comes_back_equal() {
        let invariant = Invariant::unshared();
        // Host and worker have it as value and as bytes.
        let bytes: Vec<u8> = (0..affordable(256 << 20, 8)).map(|n| (n / 251) as u8).collect();
        assert!(value(invariant.pool.apply_async(echo, (bytes.clone(),))) == bytes);
        invariant.check();
    }

    /// An argument is larger than a message may be.
    fn m6_what_is_too_large_is_refused_at_submit() {
        let pool = crate::support::builder().size(1).max_message(1 << 20).build().expect("a pool");
        let job = pool.apply_async(echo, (vec![0; 2 << 20],));
        assert!(job.ready(), "it failed on the spot");
        assert!(failure(job).is::<errback::EncodeError>());
        assert_eq!(value(pool.apply_async(echo, (vec![1; 1000],))).len(), 1000);
    }

    /// Large calls are submitted while all workers are busy.
    fn m8_a_large_call_is_queued_without_blocking() {
        let mut invariant = Invariant::unshared();
        let path = invariant.gate.path.clone();
        let busy: Vec<_> = (0..2).map(|_| invariant.pool.apply_async(hold, (path.clone(),))).collect();
        let held: Vec<_> = busy.iter().map(|_| invariant.gate.held()).collect();
        let large: Vec<_> = (0..4).map(|_| invariant.pool.apply_async(echo, (vec![1; 8 << 20],))).collect();
        invariant.queue();
        assert!(large.iter().all(|job| !job.ready()));
        held.into_iter().for_each(crate::support::Held::release);
        busy.into_iter().for_each(succeeds);
        large.into_iter().for_each(|job| assert_eq!(value(job).len(), 8 << 20));
        invariant.check();
    }

    /// Values at the edges of their types travel.
    fn m9_unusual_values_survive() {
        let pool = pool(1);
        let counts = value(pool.apply_async(count_words, ("a b a ä\0".to_string(),)));
        assert_eq!((counts["a"], counts["b"], counts["ä\0"]), (2, 1, 1));
        assert_eq!(value(pool.apply_async(add, (i64::MIN, 0))), i64::MIN);
    }

    /// A worker does not know the task.
    fn r8_an_unknown_task_fails_its_job_only() {
        #[derive(Clone, Copy)]
        struct Unknown;
        impl errback::Task for Unknown {
            type Args = ();
            type Output = ();
            fn name(&self) -> &'static str {
                "nowhere::unknown"
            }
            fn entry(&self) -> Option<&'static errback::task::TaskEntry> {
                None
            }
            fn decode_result(bytes: &[u8]) -> Result<(), errback::DecodeError> {
                wire::decode_value(bytes)
            }
            fn decode_error(body: wire::RemoteErrorBody) -> errback::__private::anyhow::Error {
                errback::RemoteError::from(body).into()
            }
        }
        let invariant = Invariant::new().with_bystander();
        let died = invariant.pool.stats().died;
        let unknown = failure_of::<UnknownTask, _>(invariant.pool.apply_async(Unknown, ()));
        assert!(unknown.to_string().contains("nowhere::unknown"), "{unknown}");
        assert_eq!(invariant.pool.stats().died, died);
        invariant.check();
    }

    /// A job dies after others failed before they began.
    fn x_a_job_that_died_after_one_that_was_unknown_is_known_to_have_begun() {
        // Answers to jobs whose function was not entered must not be counted as begun.
        let pool = pool(1);
        let awkward = Awkward { encode: Manner::Well, decode: Manner::Fails };
        failure(pool.apply_async(take_awkward, (awkward,)));
        failure(pool.apply_async(panic_str, ()));
        assert!(failure_of::<WorkerDied, _>(pool.apply_async(abort, ())).started);
    }
}
