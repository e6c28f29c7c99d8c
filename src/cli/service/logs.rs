//! `weft service logs`: reads the API's log stream, in which standard output and standard error are
//! multiplexed, and prints it line by line.

use std::io;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes, BytesMut};
use clap::Args;
use http_body_util::BodyExt as _;

use super::super::{
    client::{Client, DaemonError, INCOMPLETE_ANSWER, percent_encode},
    names::{self, NamesById},
    output::write,
    values::point_in_time,
};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Name or id of a service, or id of a task
    #[arg(value_name = "SERVICE|TASK")]
    service: String,
    /// Print new lines as the tasks write them, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// How many lines to print from the end of the logs, or all
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    tail: String,
    /// Print only lines that are newer: a time like 2026-01-02T15:04:05Z, Unix seconds, or a
    /// duration such as 42m before now
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    since: Option<String>,
    /// Print only lines that are older; takes the same as --since
    #[arg(long, value_name = "TIME", value_parser = point_in_time)]
    until: Option<String>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Show the ids of nodes instead of their names
    #[arg(long)]
    no_resolve: bool,
    /// Print the lines without the names of tasks and nodes
    #[arg(long)]
    raw: bool,
}

/// What comes before the text in the lines of the stream.
#[derive(Debug, Clone, Copy)]
struct LineFormat {
    timestamps: bool,
    raw: bool,
}

/// The number of the stream for standard error in the header of a frame.
const STDERR: u8 = 2;
/// The length in bytes of the header of a frame: `[stream, 0, 0, 0, length]`, with the length as 32
/// bits in big-endian order (Engine API, "Attach to a container", stream format).
const HEADER_LEN: usize = 8;

pub(super) async fn print_logs(client: &Client, options: &Options) -> Result<()> {
    let mut query = format!(
        "stdout=true&stderr=true&follow={}&tail={}&timestamps={}&details={}",
        options.follow,
        percent_encode(&options.tail),
        options.timestamps,
        !options.raw
    );
    for (name, time) in [("since", &options.since), ("until", &options.until)] {
        if let Some(time) = time {
            query += &format!("&{name}={}", percent_encode(time));
        }
    }
    let name = percent_encode(&options.service);
    let mut body = match client.stream(&format!("/services/{name}/logs?{query}")).await {
        Err(error) if error.downcast_ref::<DaemonError>().is_some_and(|e| e.status == hyper::StatusCode::NOT_FOUND) => {
            // No service has this name, but a task may have it. If there is no such task either,
            // the user gets the error about the service.
            client.stream(&format!("/tasks/{name}/logs?{query}")).await.map_err(|_| error)?
        }
        other => other?,
    };
    let nodes = if options.raw || options.no_resolve { NamesById::new() } else { names::nodes(client).await? };
    let format = LineFormat { timestamps: options.timestamps, raw: options.raw };
    let mut buffer = BytesMut::new();
    while let Some(chunk) = body.frame().await {
        if let Ok(data) = chunk.context(INCOMPLETE_ANSWER)?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some((stream, line)) = take_frame(&mut buffer) {
            let line = format_line(&line, format, &nodes);
            if stream == STDERR { write(&mut io::stderr(), &line)? } else { write(&mut io::stdout(), &line)? }
        }
    }
    Ok(())
}

/// Removes the first frame from the buffer, and returns its stream and its content. `None` if the
/// frame is not complete.
fn take_frame(buffer: &mut BytesMut) -> Option<(u8, Bytes)> {
    let header: [u8; HEADER_LEN] = buffer.get(..HEADER_LEN)?.try_into().ok()?;
    let [stream, _, _, _, length @ ..] = header;
    let length = u32::from_be_bytes(length) as usize;
    if buffer.len() < HEADER_LEN + length {
        return None;
    }
    buffer.advance(HEADER_LEN);
    Some((stream, buffer.split_to(length).freeze()))
}

/// Formats a line for printing.
///
/// Unless `raw` is set, the client asks the daemon for details. A line with details begins with its
/// time, if the user asked for it. The next part has pairs `key=value,…`, which name the task
/// and the node of the line. The client prints the task, the node, a bar, and the text of the line.
fn format_line(line: &[u8], format: LineFormat, nodes: &NamesById) -> Vec<u8> {
    if format.raw {
        return line.to_vec();
    }
    let text = String::from_utf8_lossy(line);
    let (time, text) = if format.timestamps { text.split_once(' ').unwrap_or(("", &text)) } else { ("", &*text) };
    let Some((details, rest)) = text.split_once(' ') else { return line.to_vec() };
    let value = |key: &str| details.split(',').find_map(|pair| pair.strip_prefix(key)).unwrap_or_default();
    let task = value("com.docker.swarm.task.name=");
    let node = value("com.docker.swarm.node.id=");
    let node = nodes.get(node).map_or(node, String::as_str);
    let origin = if task.is_empty() { value("com.docker.swarm.task.id=") } else { task };
    let time = if time.is_empty() { String::new() } else { format!("{time} ") };
    if origin.is_empty() { line.to_vec() } else { format!("{time}{origin}@{node}    | {rest}").into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_when_it_is_complete() {
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 0, 0, 0, 3, b'a', b'b'][..]);
        assert_eq!(take_frame(&mut buffer), None);
        buffer.extend_from_slice(b"\nrest");
        assert_eq!(take_frame(&mut buffer), Some((1, Bytes::from_static(b"ab\n"))));
        assert_eq!(&buffer[..], b"rest");
    }

    #[test]
    fn a_line_names_its_task_and_its_node() {
        let nodes = [("n".to_owned(), "n1".to_owned())].into();
        let check = |line: &str, timestamps, raw, expected: &str| {
            let format = LineFormat { timestamps, raw };
            assert_eq!(format_line(line.as_bytes(), format, &nodes), expected.as_bytes());
        };
        let line = "com.docker.swarm.node.id=n,com.docker.swarm.task.name=web.1.x hello there\n";
        check(line, false, false, "web.1.x@n1    | hello there\n");
        check(
            &format!("2026-01-02T03:04:05Z {line}"),
            true,
            false,
            "2026-01-02T03:04:05Z web.1.x@n1    | hello there\n",
        );
        check("hello\n", false, true, "hello\n");
    }
}
