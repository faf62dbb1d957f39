//! What can go wrong with worker processes, made to go wrong with real ones.
//!
//! Each test is a row of the table of faults (K: killed, X: exits, S: stopped, P: panics, M: messages, F: descriptors,
//! G: signals, O: orphans, C: cancel, D: shutdown, R: restart, T: the rest), and runs in a process of its own, so that
//! children, threads and descriptors can be counted, under a watchdog. See `support`.

mod support;

mod cancel;
mod causes;
mod deaths;
mod descriptors;
mod hosts;
mod messages;
mod panics;
mod restarts;
mod shutdown;
mod tasks;
