//! The differences between weft and unbound, each with the reason why weft is right, or why the
//! difference does not matter.

use hickory_proto::op::ResponseCode;

use super::{questions::Question, replies::Outcome};

pub(super) struct Difference {
    pub(super) reason: &'static str,
    pub(super) explains: fn(&Question, &Outcome, &Outcome) -> bool,
}

pub(super) const DIFFERENCES: &[Difference] = &[
    Difference {
        reason: "A question of type ANY gets the records of one type (RFC 8482, section 4.1). unbound gives none of its \
                 local data.",
        explains: |question, ours, theirs| question.what.ends_with(" 255") && ours.code() == theirs.code(),
    },
    Difference {
        reason: "weft refuses types that are no types of records (RFC 6895, section 3.1). unbound finds the request \
                 malformed, except for transfers of zones.",
        explains: |question, ours, _| is(question, "meta type: ") && ours.code() == Some(ResponseCode::Refused),
    },
    Difference {
        reason: "weft refuses the class ANY like every other class than IN. unbound fails to resolve it.",
        explains: |question, ours, _| {
            is(question, "class: ") && question.what.ends_with(" 255") && ours.code() == Some(ResponseCode::Refused)
        },
    },
    Difference {
        reason: "weft ignores the flag TC in a request, which has no meaning there. unbound finds the request malformed.",
        explains: |question, _, theirs| question.what.contains(" bit 9,") && is_malformed(theirs),
    },
    Difference {
        reason: "weft does not implement NOTIFY. unbound does, and refuses it.",
        explains: |question, ours, _| {
            (is(question, "opcode: 4") || question.what.contains(" bit 13,"))
                && ours.code() == Some(ResponseCode::NotImp)
        },
    },
    Difference {
        reason: "weft answers also if recursion is not desired: a stub resolver has no use for less. unbound refuses names \
                 that are not in its data.",
        explains: |question, _, theirs| {
            question.what.contains(" bit 8,") && theirs.code() == Some(ResponseCode::Refused)
        },
    },
    Difference {
        reason: "For weft an EDNS option that is longer than its record is malformed. unbound ignores it.",
        explains: |question, ours, _| question.what.contains(" cut off,") && is_malformed(ours),
    },
    Difference {
        reason: "For weft a compression pointer into the header is a name like any other. unbound finds it malformed.",
        explains: |question, _, theirs| question.what.contains("pointer into the header") && is_malformed(theirs),
    },
    Difference {
        reason: "weft ignores records in a request. unbound finds an answer in a request malformed.",
        explains: |question, _, theirs| is(question, "count: an answer in the request") && is_malformed(theirs),
    },
    Difference {
        reason: "For weft, localhost has addresses and nothing else (RFC 6761, section 6.3). unbound also gives it a zone \
                 of its own.",
        explains: |question, _, _| is(question, "type: localhost "),
    },
];

/// Whether the question is of a kind.
fn is(question: &Question, kind: &str) -> bool {
    question.what.starts_with(kind)
}

fn is_malformed(outcome: &Outcome) -> bool {
    outcome.code() == Some(ResponseCode::FormErr)
}
