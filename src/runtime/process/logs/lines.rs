//! Splits the output of a task into lines. Pure. The shim calls it.

/// Maximum length of the line in a record. A longer line is split into several records.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Splits a task's output into lines.
#[derive(Debug, Default)]
pub(in crate::runtime::process) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Passes each complete line in `bytes` to `line`, without its newline, and keeps the rest.
    pub(in crate::runtime::process) fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let within = &bytes[..bytes.len().min(room)];
            match within.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&within[..end]);
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(within);
                    bytes = &bytes[within.len()..];
                    if self.partial.len() < MAX_LINE_BYTES {
                        return;
                    }
                }
            }
            line(&self.partial);
            self.partial.clear();
        }
    }

    /// Passes the last line to `line` if it has no newline.
    pub(in crate::runtime::process) fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&std::mem::take(&mut self.partial));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (LineSplitter::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, |line| out.push(line.to_vec()));
        }
        lines.finish(|line| out.push(line.to_vec()));
        out
    }

    #[test]
    fn splits_lines_independently_of_chunks() {
        assert_eq!(lines(&[b"a\nb", b"c\n", b"\nd"]), [&b"a"[..], b"bc", b"", b"d"]);
        assert!(lines(&[b""]).is_empty());
    }

    #[test]
    fn splits_a_long_line_into_several() {
        let long = vec![b'x'; 2 * MAX_LINE_BYTES + 1];
        let lengths: Vec<_> = lines(&[&long, b"\n"]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]);
    }
}
