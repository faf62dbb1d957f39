//! Workers in Python: what they are asked, what they answer, and every fault of theirs, made to happen.
//!
//! The rows of the table of faults bear its names (K: killed, X: exits, E: exceptions, M: messages, F: descriptors, O:
//! orphans, C: cancel, D: shutdown, R: restart, T: the rest); what must hold around a fault is the same as for workers in
//! Rust, and comes from their suite. The modules that are served are in `modules/`.
//!
//! They need Python 3.9 or later with msgpack: `ERRBACK_PYTHON` names it, or it is looked for. Without one they are
//! skipped, and say how to get it.

#[path = "../../examples/gil/interpreter.rs"]
mod interpreter;
#[path = "../faults/support.rs"]
#[allow(dead_code, unused_imports, unused_macros)] // the other suite needs all of it
mod support;

mod suite;
mod tasks;

mod buffers;
mod cancel;
mod deaths;
mod descriptors;
mod exceptions;
mod hosts;
mod limits;
mod shutdown;
mod starts;
mod values;
