//! What a program says about a packet.

use weft_ebpf_common::DropReason;

use crate::counters::count_drop;

/// What the program says about a packet.
pub type Verdict = i32;
/// Not ours: the next program, then the node's stack. `TC_ACT_UNSPEC`, which tcx calls `TCX_NEXT`.
pub const PASS: Verdict = -1;
/// `TC_ACT_SHOT`.
const DROP: Verdict = 2;

/// Drops the packet, for a reason that users can see.
#[inline(always)]
pub fn drop(reason: DropReason) -> Verdict {
    count_drop(reason);
    DROP
}
