//! The bytes of a call as they wait in the backlog, and as they are kept while a worker has them.
//!
//! Most calls have few bytes of arguments, and all else in their frames is the same for each call of a task. So those are kept
//! in place, and the frame is made of them when it is sent, and made again when it has to be sent again. What is longer, refers
//! to buffers or has limits is a frame of its own, which those that write it share.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::buffer::travel::Attachment;
use crate::task::Limits;
use crate::wire::{self, EncodeError, WithAttachments};

/// So many bytes of arguments are kept in place.
const FEW: usize = 22;

/// What goes with others has no longer frame.
pub(super) const SMALL: usize = 4096;

/// A thread keeps no more than this for its next frame.
const SCRATCH: usize = 64 << 10;

thread_local! {
    /// What the last frame was written in.
    static LAST: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// See the module.
pub(crate) enum Packed {
    /// The arguments, an array.
    Few { length: u8, args: [u8; FEW] },
    /// All else.
    Whole(Arc<Whole>),
}

/// A call that has a frame of its own.
#[derive(Clone)]
pub(crate) struct Whole {
    pub(super) frame: Vec<u8>,
    /// The buffers that it refers to.
    pub(super) attachments: Vec<Attachment>,
    limits: Limits,
    /// How many calls it is in one, if it is a chunk of them.
    items: Option<usize>,
}

impl Default for Packed {
    fn default() -> Packed {
        Packed::Few {
            length: 0,
            args: [0; FEW],
        }
    }
}

impl Packed {
    /// A call of one task.
    pub(super) fn call<A: Serialize + ?Sized>(
        task: &str,
        args: &A,
        limits: Limits,
        max_frame: usize,
        share_from: Option<usize>,
    ) -> Result<Packed, EncodeError> {
        let into = LAST.take();
        let (frame, attachments) = wire::encode_call_into(into, task, args, max_frame, share_from)?;
        let args = &frame[wire::args_offset(task)..];
        let is_small = args.len() <= FEW && frame.len() <= SMALL;
        if is_small && attachments.is_empty() && limits == Limits::default() {
            let mut few = [0; FEW];
            few[..args.len()].copy_from_slice(args);
            let length = args.len() as u8;
            LAST.set(frame);
            return Ok(Packed::Few { length, args: few });
        }
        let frame = match frame.capacity() <= SCRATCH {
            true => {
                let exact = frame.as_slice().to_vec();
                LAST.set(frame);
                exact
            }
            false => frame,
        };
        Ok(Packed::whole((frame, attachments), limits, None))
    }

    /// One from its frame. `items`: how many calls it is in one, if it is a chunk of them.
    pub(super) fn whole(frame: WithAttachments, limits: Limits, items: Option<usize>) -> Packed {
        let (frame, attachments) = frame;
        Packed::Whole(Arc::new(Whole {
            frame,
            attachments,
            limits,
            items,
        }))
    }

    /// Lets go of the buffers that it refers to: it will not be sent any more.
    pub(super) fn let_go(&mut self) {
        if let Packed::Whole(whole) = self
            && !whole.attachments.is_empty()
        {
            let (limits, items) = (whole.limits, whole.items);
            *self = Packed::whole((Vec::new(), Vec::new()), limits, items);
        }
    }

    /// Of how many items it is a chunk; 1 for a plain call.
    pub(super) fn items(&self) -> usize {
        match self {
            Packed::Few { .. } => 1,
            Packed::Whole(whole) => whole.items.unwrap_or(1),
        }
    }

    /// How long it may run.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.limits().timeout
    }

    /// How long it may wait.
    pub(super) fn expires(&self) -> Option<Duration> {
        self.limits().expires
    }

    fn limits(&self) -> Limits {
        match self {
            Packed::Few { .. } => Limits::default(),
            Packed::Whole(whole) => whole.limits,
        }
    }

    /// Whether it may be with a worker together with others: it is one call, is small and refers to nothing, and nobody counts
    /// its time, which would be that of the others too.
    pub(super) fn goes_with_others(&self) -> bool {
        match self {
            Packed::Few { .. } => true,
            Packed::Whole(whole) => {
                let is_plain = whole.attachments.is_empty() && whole.limits == Limits::default();
                whole.items.is_none() && is_plain && whole.frame.len() <= SMALL
            }
        }
    }

    /// Its frame, to be sent under this number.
    pub(super) fn frame<'a>(
        &'a mut self,
        task: &str,
        wire_id: u64,
        scratch: &'a mut Vec<u8>,
    ) -> Frame<'a> {
        match self {
            Packed::Few { length, args } => {
                scratch.clear();
                wire::put_call_together(scratch, wire_id, task, &args[..usize::from(*length)]);
                Frame::Few(scratch)
            }
            Packed::Whole(whole) => {
                // One that an earlier worker has not read to its end is left as it is.
                wire::patch_call_id(&mut Arc::make_mut(whole).frame, wire_id);
                Frame::Whole(whole)
            }
        }
    }
}

/// A frame that is ready to be sent.
pub(super) enum Frame<'a> {
    Few(&'a [u8]),
    Whole(&'a Arc<Whole>),
}

impl Frame<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Frame::Few(bytes) => bytes,
            Frame::Whole(whole) => &whole.frame,
        }
    }

    /// The buffers that it refers to.
    pub(super) fn attachments(&self) -> &[Attachment] {
        match self {
            Frame::Few(_) => &[],
            Frame::Whole(whole) => &whole.attachments,
        }
    }

    /// What others may keep of it.
    pub(super) fn to_shared(&self) -> Arc<Whole> {
        match self {
            Frame::Few(bytes) => Arc::new(Whole::of(bytes.to_vec())),
            Frame::Whole(whole) => Arc::clone(whole),
        }
    }
}

impl Whole {
    /// A frame and no more.
    pub(super) fn of(frame: Vec<u8>) -> Whole {
        Whole {
            frame,
            attachments: Vec::new(),
            limits: Limits::default(),
            items: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frame of a call of `task` with one text of so many bytes.
    fn frame_of(task: &str, length: usize) -> (Packed, Vec<u8>) {
        let args = ("x".repeat(length),);
        let limits = Limits::default();
        let packed = Packed::call(task, &args, limits, wire::MAX_FRAME, None).expect("a call");
        let frame = wire::encode_call(4711, task, &args, wire::MAX_FRAME).expect("a call");
        (packed, frame)
    }

    #[test]
    fn the_frame_is_the_same_whether_it_was_kept_or_is_put_together() {
        for name in [1, 31, 32, 255, 256, 70_000] {
            let task = "t".repeat(name);
            for length in [0, 1, FEW - 2, FEW - 1, 31, 32, 100_000] {
                let (mut packed, expected) = frame_of(&task, length);
                let few = matches!(packed, Packed::Few { .. });
                assert_eq!(few, length + 2 <= FEW && name < SMALL, "{length}");
                assert_eq!(packed.goes_with_others(), expected.len() <= SMALL);
                let frame = packed.frame(&task, 4711, &mut Vec::new()).to_shared();
                assert_eq!(frame.frame, expected);
            }
        }
    }

    #[test]
    fn a_frame_that_somebody_still_writes_is_not_changed() {
        let (mut packed, expected) = frame_of("t", 100);
        let before = packed.frame("t", 4711, &mut Vec::new()).to_shared();
        let after = packed.frame("t", 4712, &mut Vec::new()).to_shared();
        assert_eq!(before.frame, expected);
        assert_ne!(after.frame, expected);
    }

    #[test]
    fn what_has_limits_is_large_or_many_goes_alone() {
        let goes = |packed: Packed| packed.goes_with_others();
        assert!(goes(frame_of("t", 1).0) && goes(frame_of("t", 100).0));
        assert!(!goes(frame_of("t", SMALL).0));
        let limits = Limits {
            timeout: Some(Duration::from_secs(1)),
            expires: None,
        };
        let limited = Packed::call("t", &(1,), limits, wire::MAX_FRAME, None).expect("a call");
        assert_eq!(limited.timeout(), limits.timeout);
        assert!(!goes(limited));
        let frame = (frame_of("t", 100).1, Vec::new());
        assert!(!goes(Packed::whole(frame, Limits::default(), Some(1))));
    }
}
