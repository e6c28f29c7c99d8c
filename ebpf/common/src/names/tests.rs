//! Tests of the messages: which questions are plain, and what replies contain.

use super::*;

/// A message without its header, and its number of octets.
fn octets(name: &[u8], rest: &[u8]) -> ([u8; QUESTION_OCTETS], usize) {
    // Octets after the message have any values.
    let mut octets = [0xa5; QUESTION_OCTETS];
    let len = name.len() + rest.len();
    octets[..name.len()].copy_from_slice(name);
    octets[name.len()..len].copy_from_slice(rest);
    (octets, len)
}

fn header(flags: u16, counts: [u16; 4]) -> [u32; 3] {
    let [questions, answers, authorities, additionals] = counts;
    let words = [(0xbeef, flags), (questions, answers), (authorities, additionals)];
    words.map(|(high, low)| (u32::from(high) << 16 | u32::from(low)).to_be())
}

fn parse_question(header: &[u32; 3], name: &[u8], rest: &[u8]) -> Option<(Question, NameKey)> {
    let (octets, len) = octets(name, rest);
    let mut key = NameKey::default();
    let question = parse(header, &octets, len, &mut key)?;
    Some((question, key))
}

const WEB: &[u8] = b"\x03wEb\x00";
const PLAIN: [u16; 4] = [1, 0, 0, 0];
const WITH_OPT: [u16; 4] = [1, 0, 0, 1];
const A: &[u8] = &[0, 1, 0, 1];
const AAAA: &[u8] = &[0, 28, 0, 1];
const OPT: &[u8] = &[0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 0];

#[test]
fn reads_plain_questions() {
    let web = key(0, "web");
    for (flags, counts, rest, family, edns) in [
        (0x0100, PLAIN, A.to_vec(), Family::V4, None),
        (0x0130, PLAIN, AAAA.to_vec(), Family::V6, None),
        (0x0000, WITH_OPT, [A, OPT].concat(), Family::V4, Some(true)),
        (0x0100, WITH_OPT, [AAAA, &OPT[..7], &[0, 0, 0, 0]].concat(), Family::V6, Some(false)),
        (
            0x0120,
            WITH_OPT,
            [A, &OPT[..9], &[0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]].concat(),
            Family::V4,
            Some(true),
        ),
    ] {
        let (question, key) = parse_question(&header(flags, counts), WEB, &rest).expect("a plain question");
        assert_eq!(question, Question { family, octets: 9, edns });
        assert_eq!(Some(key), web);
    }
}

#[test]
fn leaves_other_messages_to_the_resolver() {
    let cookie =
        |len: u8, code: u8, inner: u8| [A, &OPT[..9], &[0, len, 0, code, 0, inner, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
    for (flags, counts, name, rest) in [
        // A reply, another operation, flags of replies.
        (0x8100, PLAIN, WEB, A.to_vec()),
        (0x0900, PLAIN, WEB, A.to_vec()),
        (0x0300, PLAIN, WEB, A.to_vec()),
        (0x0180, PLAIN, WEB, A.to_vec()),
        (0x0140, PLAIN, WEB, A.to_vec()),
        (0x0103, PLAIN, WEB, A.to_vec()),
        // Other numbers of records.
        (0x0100, [0, 0, 0, 0], WEB, A.to_vec()),
        (0x0100, [2, 0, 0, 0], WEB, A.to_vec()),
        (0x0100, [1, 1, 0, 0], WEB, A.to_vec()),
        (0x0100, [1, 0, 1, 0], WEB, A.to_vec()),
        (0x0100, [1, 0, 0, 2], WEB, [A, OPT, OPT].concat()),
        (0x0100, WITH_OPT, WEB, A.to_vec()),
        (0x0100, PLAIN, WEB, [A, OPT].concat()),
        // Other types and classes.
        (0x0100, PLAIN, WEB, [0, 15, 0, 1].to_vec()),
        (0x0100, PLAIN, WEB, [0, 255, 0, 1].to_vec()),
        (0x0100, PLAIN, WEB, [0, 1, 0, 3].to_vec()),
        // Cut off, or with more octets.
        (0x0100, PLAIN, WEB, A[..3].to_vec()),
        (0x0100, PLAIN, &WEB[..3], vec![]),
        (0x0100, PLAIN, WEB, [A, &[0]].concat()),
        (0x0100, WITH_OPT, WEB, [A, &OPT[..10]].concat()),
        (0x0100, WITH_OPT, WEB, [A, OPT, &[0]].concat()),
        // A pointer, and a label that is too long.
        (0x0100, PLAIN, b"\xc0\x0c", A.to_vec()),
        (0x0100, PLAIN, b"\x40web\x00", A.to_vec()),
        // No OPT record, another version, an extended response code.
        (0x0100, WITH_OPT, WEB, [A, &[0, 0, 1], &OPT[3..]].concat()),
        (0x0100, WITH_OPT, WEB, [A, &[1, 0, 41], &OPT[3..]].concat()),
        (0x0100, WITH_OPT, WEB, [A, &OPT[..6], &[1], &OPT[7..]].concat()),
        (0x0100, WITH_OPT, WEB, [A, &OPT[..5], &[1], &OPT[6..]].concat()),
        // Other options.
        (0x0100, WITH_OPT, WEB, cookie(12, 12, 8)),
        (0x0100, WITH_OPT, WEB, cookie(12, 10, 7)),
        (0x0100, WITH_OPT, WEB, cookie(11, 10, 8)),
    ] {
        assert_eq!(parse_question(&header(flags, counts), name, &rest), None, "{flags:x} {counts:?} {name:?} {rest:?}");
    }
}

#[test]
fn a_name_has_the_same_key_in_text_and_in_messages() {
    let longest = "abcdefghi.".repeat(9) + "abcd";
    assert_eq!(longest.len() + 2, NAME_OCTETS);
    let labels = "a.".repeat(MAX_LABELS - 2) + "b";
    for name in ["a", "web", "tasks.web", "_x-1.web.stack.net", &longest, &labels] {
        for text in [name.to_owned(), name.to_uppercase()] {
            let mut wire = Vec::new();
            for label in text.split('.') {
                wire.push(label.len() as u8);
                wire.extend(label.bytes());
            }
            wire.push(0);
            let (_, parsed) = parse_question(&header(0, PLAIN), &wire, A).expect("a plain question");
            assert_eq!(Some(parsed), key(0, name), "{text}");
        }
    }
    for name in [format!("{longest}e"), format!("{labels}.c"), String::new(), "a.".to_owned(), "a".repeat(64)] {
        assert_eq!(key(0, &name), None, "{name}");
    }
}

#[test]
fn only_letters_change_their_case() {
    for octet in 0..=u8::MAX {
        let word = u64::from_le_bytes([octet, b'A', octet, 0, 0xff, octet, b'z', octet]);
        let expected = word.to_le_bytes().map(|octet| octet.to_ascii_lowercase());
        assert_eq!(lower_case(word).to_le_bytes(), expected, "{octet}");
    }
}

fn scope(vnis: &[u32]) -> NameScope {
    let mut scope = NameScope { scope: 1, ..NameScope::default() };
    scope.vnis[..vnis.len()].copy_from_slice(vnis);
    scope
}

fn check_find(vnis: &[u32], entries: &[(u32, u16)], expected: Option<u32>) {
    let names: Vec<(u32, Name)> =
        entries.iter().map(|&(net, flags)| (net, Name { check: net, flags, ..Name::default() })).collect();
    let mut key = NameKey::default();
    let found = find(&scope(vnis), &mut key, |key| names.iter().find(|(net, _)| *net == key.net).map(|(_, name)| name));
    assert_eq!(found.map(|name| name.check), expected, "{vnis:?} {entries:?}");
    assert!(found.is_none_or(|name| name.check == key.net), "the key has another network");
}

#[test]
fn finds_a_name_on_the_first_network_that_has_it() {
    use name_flags::{RESOLVER, UNQUALIFIED};
    check_find(&[5, 6], &[(6, UNQUALIFIED), (5, UNQUALIFIED)], Some(5));
    check_find(&[5, 6], &[(6, UNQUALIFIED), (7, UNQUALIFIED)], Some(6));
    check_find(&[5, 6], &[(7, UNQUALIFIED)], None);
    check_find(&[], &[(0, UNQUALIFIED)], None);
    // Names without the name of a network come first.
    check_find(&[5, 6], &[(5, 0), (6, UNQUALIFIED)], Some(6));
    check_find(&[5, 6, 7], &[(6, 0), (7, 0)], Some(6));
    // The resolver knows more than another network.
    check_find(&[5, 6], &[(5, UNQUALIFIED | RESOLVER), (6, UNQUALIFIED)], None);
    check_find(&[5, 6], &[(5, RESOLVER), (6, UNQUALIFIED)], Some(6));
    check_find(&[1, 2, 3, 4, 5, 6, 7, 8], &[(8, 0)], Some(8));
}

fn octets_of(records: &Records, len: u32) -> Vec<u8> {
    records.iter().flat_map(|word| word.to_ne_bytes()).take(len as usize).collect()
}

#[test]
fn writes_addresses_in_rotation_and_the_opt_record() {
    let mut name = Name { v4_count: 2, v6_count: 0, ..Name::default() };
    name.v4_be[..2].copy_from_slice(&[[10, 0, 0, 2], [10, 0, 0, 3]].map(u32::from_ne_bytes));
    let question = Question { family: Family::V4, octets: 9, edns: Some(true) };
    let (mut records, mut reply_header) = ([0; RECORD_WORDS], header(0x0130, WITH_OPT));
    let len = write_reply(&question, &name, 3, &mut reply_header, &mut records);
    assert_eq!(reply_header, header(0x8190, [1, 2, 0, 1]));
    let record = |host| [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 0, 0], &[host][..]].concat();
    assert_eq!(octets_of(&records, len), [&record(3), &record(2), OPT].concat());

    // The name has no IPv6 address.
    let question = Question { family: Family::V6, edns: None, ..question };
    let mut reply_header = header(0, PLAIN);
    assert_eq!(write_reply(&question, &name, 3, &mut reply_header, &mut records), 0);
    assert_eq!(reply_header, header(0x8080, PLAIN));
}

#[test]
fn the_longest_reply_fits() {
    let mut name = Name { v6_count: NAME_ADDRS as u8, ..Name::default() };
    for (index, address) in name.v6_be.iter_mut().enumerate() {
        address[3] = index as u32;
    }
    let question = Question { family: Family::V6, octets: 9, edns: Some(false) };
    let (mut records, mut reply_header) = ([u32::MAX; RECORD_WORDS], header(0, WITH_OPT));
    let len = write_reply(&question, &name, 5, &mut reply_header, &mut records);
    assert_eq!(len as usize, NAME_ADDRS * AAAA_OCTETS as usize + OPT_OCTETS);
    let last: Vec<u32> = records.chunks(7).take(NAME_ADDRS).map(|record| record[6]).collect();
    assert_eq!(last, [5, 6, 7, 0, 1, 2, 3, 4]);
}
