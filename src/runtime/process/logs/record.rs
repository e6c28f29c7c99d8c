//! The text format of one log record. Pure. The shim encodes records, and the daemon's reader
//! decodes them.

use bytes::Bytes;
use weft_model::LogRecord;

/// One of a task's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::runtime::process) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// The letter in a record.
    fn letter(self) -> u8 {
        match self {
            Self::Stdout => b'o',
            Self::Stderr => b'e',
        }
    }
}

/// Appends a record to `out`.
pub(in crate::runtime::process) fn encode(out: &mut Vec<u8>, time_ns: u128, stream: Stream, line: &[u8]) {
    out.extend_from_slice(time_ns.to_string().as_bytes());
    out.extend_from_slice(&[b' ', stream.letter(), b' ']);
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// Decodes the record in a line. `None` if the line is incomplete, as after a crash of the shim.
pub(super) fn decode(line: &[u8]) -> Option<LogRecord> {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let time_ns = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let letter = parts.next()?;
    let stream = [Stream::Stdout, Stream::Stderr].into_iter().find(|stream| letter == [stream.letter()])?;
    let line = Bytes::copy_from_slice(parts.next()?);
    Some(LogRecord { time_ns, stderr: stream == Stream::Stderr, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_was_encoded() {
        for (stream, line) in
            [(Stream::Stdout, &b"hello world"[..]), (Stream::Stderr, b""), (Stream::Stdout, b"\xff \x00")]
        {
            let (mut text, stderr) = (Vec::new(), stream == Stream::Stderr);
            encode(&mut text, 1_700_000_000_000_000_000, stream, line);
            let record =
                decode(text.strip_suffix(b"\n").expect("a record ends with a newline")).expect("a complete record");
            assert_eq!((record.time_ns, record.stderr, &record.line[..]), (1_700_000_000_000_000_000, stderr, line));
        }
        assert_eq!(decode(b"17000"), None);
        assert_eq!(decode(b"x o y"), None);
        assert_eq!(decode(b"1 x y"), None);
    }
}
