//! What a tc program returns to the kernel for a packet.
//!
//! Every hook ends with a [`Verdict`]: [`PASS`], [`drop`], or the return value of a redirect helper
//! (see `packet::send`). A program must drop packets through [`drop`] only, so that every drop is
//! counted.

use weft_ebpf_common::DropReason;

use crate::counters::count_drop;

/// Return value of a tc program (`TC_ACT_*`, linux/pkt_cls.h).
pub type Verdict = i32;
/// weft does not handle the packet: the next program gets it, then the node's own stack.
/// `TC_ACT_UNSPEC`, called `TCX_NEXT` by tcx.
pub const PASS: Verdict = -1;
/// `TC_ACT_SHOT`: the kernel frees the packet.
const DROP: Verdict = 2;

/// Drops the packet and counts it under a reason that users can see.
#[inline(always)]
pub fn drop(reason: DropReason) -> Verdict {
    count_drop(reason);
    DROP
}
