//! The questions: every name with every type, and every part of a message with unusual values.

use std::collections::BTreeMap;

/// A request, as octets.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// Names the question in messages, and in the list of differences. It begins with the kind.
    pub(super) what: String,
    pub(super) octets: Vec<u8>,
    pub(super) tcp: bool,
}

/// A name as labels.
type Labels = Vec<Vec<u8>>;

/// The parts of a request (RFC 1035, section 4.1).
#[derive(Debug, Clone)]
struct Request {
    flags: u16,
    counts: [u16; 4],
    name: Vec<u8>,
    record_type: u16,
    class: u16,
    /// What follows the question.
    rest: Vec<u8>,
}

const A: u16 = 1;
const AAAA: u16 = 28;
const IN: u16 = 1;
/// Recursion desired.
const RD: u16 = 0x0100;
/// The id of every request.
pub(super) const ID: u16 = 0x4d2;

impl Request {
    fn new(name: &str, record_type: u16) -> Self {
        let name = encode(&labels(name));
        Self { flags: RD, counts: [1, 0, 0, 0], name, record_type, class: IN, rest: Vec::new() }
    }

    fn octets(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        for word in [ID, self.flags].into_iter().chain(self.counts) {
            octets.extend(word.to_be_bytes());
        }
        octets.extend(&self.name);
        octets.extend(self.record_type.to_be_bytes());
        octets.extend(self.class.to_be_bytes());
        octets.extend(&self.rest);
        octets
    }

    /// Adds an OPT record (RFC 6891, section 6.1.2).
    fn with_edns(mut self, payload: u16, version: u8, flags: u16, options: &[u8]) -> Self {
        self.counts[3] += 1;
        self.rest.extend([0, 0, 41]);
        self.rest.extend(payload.to_be_bytes());
        self.rest.extend([0, version]);
        self.rest.extend(flags.to_be_bytes());
        self.rest.extend(u16::try_from(options.len()).unwrap_or(u16::MAX).to_be_bytes());
        self.rest.extend(options);
        self
    }
}

fn labels(name: &str) -> Labels {
    name.split('.').filter(|label| !label.is_empty()).map(|label| label.as_bytes().to_vec()).collect()
}

fn encode(labels: &Labels) -> Vec<u8> {
    let mut octets = Vec::new();
    for label in labels {
        octets.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        octets.extend(label);
    }
    octets.push(0);
    octets
}

/// Collects questions under their names.
#[derive(Debug, Default)]
struct List(BTreeMap<String, Question>);

impl List {
    fn add(&mut self, what: String, octets: Vec<u8>) {
        self.add_both(what, octets, false);
    }

    /// By UDP and by TCP.
    fn add_twice(&mut self, what: &str, octets: &[u8]) {
        self.add_both(format!("{what}, udp"), octets.to_vec(), false);
        self.add_both(format!("{what}, tcp"), octets.to_vec(), true);
    }

    fn add_both(&mut self, what: String, octets: Vec<u8>, tcp: bool) {
        self.0.insert(what.clone(), Question { what, octets, tcp });
    }
}

/// All questions. `reverse` is the name of an address with a name.
pub(super) fn all(reverse: &str) -> Vec<Question> {
    let mut list = List::default();
    types(&mut list, reverse);
    classes(&mut list);
    flags(&mut list);
    edns(&mut list);
    names(&mut list);
    counts(&mut list);
    octets(&mut list);
    list.0.into_values().collect()
}

fn types(list: &mut List, reverse: &str) {
    let names = [
        "whoami",
        "WhoAmI",
        "dual",
        "tasks.dual",
        "tasks.whoami",
        "example.test",
        "Example.TEST",
        "missing.test",
        "missing",
        "tasks.missing",
        reverse,
        "250.255.0.10.in-addr.arpa",
        "localhost",
    ];
    // A, NS, CNAME, SOA, PTR, HINFO, MX, TXT, AAAA, SRV, NAPTR, DS, HTTPS, ANY, and an unknown one.
    let types = [1, 2, 5, 6, 12, 13, 15, 16, 28, 33, 35, 43, 65, 255, 65_280];
    for name in names {
        let shown = if name == reverse { "reverse of whoami" } else { name };
        for record_type in types {
            let what = format!("type: {shown} {record_type}");
            list.add(what, Request::new(name, record_type).octets());
        }
    }
    // OPT, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA: none of these is a type of records.
    for record_type in [0, 41, 249, 250, 251, 252, 253, 254] {
        for name in ["whoami", "missing"] {
            list.add(format!("meta type: {name} {record_type}"), Request::new(name, record_type).octets());
        }
    }
}

fn classes(list: &mut List) {
    for class in [0, 2, 3, 4, 254, 255, 65_280] {
        for name in ["whoami", "example.test", "missing", "version.bind"] {
            let request = Request { class, ..Request::new(name, A) };
            list.add(format!("class: {name} {class}"), request.octets());
        }
    }
}

fn flags(list: &mut List) {
    for bit in 0..16 {
        // The bit for a reply has its own questions below.
        for name in ["whoami", "example.test"].iter().filter(|_| bit != 15) {
            let request = Request { flags: RD ^ (1 << bit), ..Request::new(name, A) };
            list.add_twice(&format!("flag: {name} bit {bit}"), &request.octets());
        }
    }
    for opcode in 0..16 {
        let request = Request { flags: RD | opcode << 11, ..Request::new("whoami", A) };
        list.add(format!("opcode: {opcode}"), request.octets());
    }
    for flags in [0x8000, 0x8180, 0x8583, 0xffff] {
        let request = Request { flags, ..Request::new("whoami", A) };
        list.add(format!("reply: {flags:#x}"), request.octets());
    }
}

fn edns(list: &mut List) {
    for payload in [0, 100, 511, 512, 513, 1232, 4096, 4097, 65_535] {
        for name in ["tasks.dual", "example.test"] {
            let request = Request::new(name, AAAA).with_edns(payload, 0, 0, &[]);
            list.add_twice(&format!("edns payload: {name} {payload}"), &request.octets());
        }
    }
    for version in [1, 2, 255] {
        for name in ["whoami", "missing"] {
            let request = Request::new(name, A).with_edns(1232, version, 0, &[]);
            list.add_twice(&format!("edns version: {name} {version}"), &request.octets());
        }
    }
    for flags in [0x8000, 0x4000, 0x0001, 0xffff] {
        for name in ["whoami", "example.test", "missing"] {
            let request = Request::new(name, A).with_edns(1232, 0, flags, &[]);
            list.add(format!("edns flags: {name} {flags:#x}"), request.octets());
        }
    }
    let options: [(&str, &[u8]); 8] = [
        ("nsid", &[0, 3, 0, 0]),
        ("client subnet", &[0, 8, 0, 8, 0, 1, 32, 0, 192, 0, 2, 1]),
        ("cookie", &[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("short cookie", &[0, 10, 0, 1, 1]),
        ("keepalive", &[0, 11, 0, 0]),
        ("padding", &[0, 12, 0, 4, 0, 0, 0, 0]),
        ("unknown", &[0xfd, 0xe9, 0, 2, 1, 2]),
        ("cut off", &[0, 3, 0, 9, 1]),
    ];
    for (option, octets) in options {
        for name in ["whoami", "example.test"] {
            let request = Request::new(name, A).with_edns(1232, 0, 0, octets);
            list.add_twice(&format!("edns option: {name} {option}"), &request.octets());
        }
    }
    let twice = Request::new("whoami", A).with_edns(1232, 0, 0, &[]).with_edns(1232, 0, 0, &[]);
    list.add_twice("edns: two records", &twice.octets());
}

fn names(list: &mut List) {
    let long = || "x".repeat(63);
    let dotted: [(&str, String); 10] = [
        ("root", String::new()),
        ("upper case", "WHOAMI".to_owned()),
        ("network", "whoami.app".to_owned()),
        ("other network", "whoami.six".to_owned()),
        ("underscore", "_80._tcp.whoami".to_owned()),
        ("below a service", "www.whoami".to_owned()),
        ("longest label", long()),
        ("longest name", format!("{0}.{0}.{0}.{1}", long(), "x".repeat(61))),
        ("many labels", "a.".repeat(127)),
        ("arpa", "in-addr.arpa".to_owned()),
    ];
    for (what, name) in dotted {
        for record_type in [A, AAAA, 16] {
            list.add(format!("name: {what} {record_type}"), Request::new(&name, record_type).octets());
        }
    }
    let raw: [(&str, Labels); 6] = [
        ("dot in a label", vec![b"who.ami".to_vec()]),
        ("zero in a label", vec![b"who\0ami".to_vec()]),
        ("space in a label", vec![b"who ami".to_vec()]),
        ("utf-8", vec!["whoämi".as_bytes().to_vec()]),
        ("high octets", vec![vec![0xff; 8]]),
        ("asterisk", vec![b"*".to_vec(), b"whoami".to_vec()]),
    ];
    for (what, labels) in raw {
        let request = Request { name: encode(&labels), ..Request::new("", A) };
        list.add_twice(&format!("octets: {what}"), &request.octets());
    }
    let whoami = encode(&labels("whoami"));
    let compressed: [(&str, Vec<u8>); 8] = [
        ("pointer to itself", vec![0xc0, 12]),
        ("pointer forward", vec![0xc0, 40]),
        ("pointer out of the message", vec![0xff, 0xff]),
        ("pointer into the header", vec![0xc0, 4]),
        ("label and pointer to itself", vec![1, b'a', 0xc0, 12]),
        ("label type 01", [&[0x41, 0][..], &whoami].concat()),
        ("label type 10", [&[0x81, 0][..], &whoami].concat()),
        ("label of 64 octets", [&[64][..], &[b'x'; 64], &[0]].concat()),
    ];
    for (what, name) in compressed {
        list.add_twice(&format!("compression: {what}"), &Request { name, ..Request::new("", A) }.octets());
    }
    let too_long = vec![b"x".repeat(63); 4];
    list.add_twice("compression: name too long", &Request { name: encode(&too_long), ..Request::new("", A) }.octets());
}

fn counts(list: &mut List) {
    for (section, name) in ["questions", "answers", "authorities", "additionals"].into_iter().enumerate() {
        for count in [0, 1, 2, 65_535] {
            let mut request = Request::new("whoami", A);
            request.counts[section] = count;
            list.add_twice(&format!("count: {count} {name}"), &request.octets());
        }
    }
    // A second question, and an answer in the request.
    let mut two = Request::new("whoami", A);
    two.counts[0] = 2;
    two.rest = Request::new("dual", A).octets()[12..].to_vec();
    list.add_twice("count: a second question", &two.octets());
    let mut answered = Request::new("whoami", A);
    answered.counts[1] = 1;
    answered.rest = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4][..], &[192, 0, 2, 9]].concat();
    list.add_twice("count: an answer in the request", &answered.octets());
}

fn octets(list: &mut List) {
    let whole = Request::new("whoami", A).with_edns(1232, 0, 0, &[]).octets();
    for length in 0..whole.len() {
        list.add(format!("cut: {length:02} octets"), whole[..length].to_vec());
    }
    for extra in [1, 7, 400] {
        let octets = [whole.as_slice(), &vec![0xaa; extra]].concat();
        list.add_twice(&format!("extra: {extra} octets"), &octets);
    }
}
