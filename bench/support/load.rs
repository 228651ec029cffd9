//! The load: one thread, many kept-alive connections, one request at a time on each.
//!
//! It shares the machine's cores with what it measures, so it must cost little: requests are bytes
//! made beforehand, answers are looked at where they were read, and no task or lock stands between.
//! Invariants: a connection sends its next request only when the answer before was whole (a closed
//! loop); each answer is checked; what the load itself cost is told.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use onrush::clock::Stopwatch;

/// Longer than any limit of the server: an answer that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(40);
/// Room for the longest answer that is measured.
const ANSWER_BYTES_MAX: usize = 256 * 1_024;

/// How long a run lasts.
#[derive(Clone, Copy)]
pub enum Length {
    /// So many requests.
    Requests(usize),
    /// So many seconds.
    Seconds(f64),
}

/// An answer and the number of the request that it answers.
pub struct Answer<'a> {
    pub request: usize,
    pub status: u16,
    pub body: &'a [u8],
}

/// What a run saw.
pub struct Seen {
    /// Answers.
    pub answered: usize,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Answers that the check refused.
    pub wrong: usize,
    /// The first of them.
    pub first_wrong: Option<String>,
    /// Connections that ended before their answer came.
    pub broken: usize,
    /// Processor seconds of the load itself.
    pub cpu_seconds: f64,
    latencies: Histogram<u64>,
}

impl Seen {
    /// Answers a second.
    pub fn rate(&self) -> f64 {
        self.answered as f64 / self.seconds
    }

    /// The latency in ms that this share of the answers came within.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        self.latencies.value_at_quantile(share) as f64 / 1e6
    }
}

struct Connection {
    stream: TcpStream,
    request: usize,
    waits: bool,
    sent: Stopwatch,
    buffer: Vec<u8>,
    filled: usize,
}

/// Processor seconds of this thread so far.
pub fn own_cpu_seconds() -> anyhow::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, token: &str, body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n");
    if !token.is_empty() {
        text.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    if !body.is_empty() {
        text.push_str(&format!(
            "Content-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        ));
    }
    format!("{text}\r\n{body}").into_bytes()
}

/// `(status, start of the body, its length)` of a whole answer; `None` while some of it is missing.
pub fn whole(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize, usize)>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let digits = bytes.get(9..12).context("no status line")?;
    let status: u16 = std::str::from_utf8(digits)?.parse()?;
    const NAME: &[u8] = b"content-length:";
    let length = bytes[..head].split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    });
    let length: usize = match length {
        Some(length) => std::str::from_utf8(length)?.trim().parse()?,
        // It has no body, and so no length.
        None if status == 204 => 0,
        None => bail!("an answer without Content-Length"),
    };
    Ok((bytes.len() >= head + 4 + length).then_some((status, head + 4, length)))
}

/// Runs a closed loop. `requests` are sent in turn and again from the first; `check` says whether an
/// answer is right. A connection that breaks ends the run for that connection.
pub fn run(
    address: SocketAddr,
    connections: usize,
    length: Length,
    requests: &[Vec<u8>],
    mut check: impl FnMut(&Answer<'_>) -> bool,
) -> anyhow::Result<Seen> {
    ensure!(!requests.is_empty(), "nothing to send");
    let mut poll = Poll::new()?;
    let mut all = Vec::with_capacity(connections);
    for number in 0..connections {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry()
            .register(&mut stream, Token(number), Interest::READABLE)?;
        all.push(Connection {
            stream,
            request: 0,
            waits: false,
            sent: Stopwatch::start(),
            buffer: vec![0; 4_096],
            filled: 0,
        });
    }
    let cpu_before = own_cpu_seconds()?;
    let watch = Stopwatch::start();
    let mut next = 0;
    let mut send = |connection: &mut Connection| -> anyhow::Result<bool> {
        let go_on = match length {
            Length::Requests(count) => next < count,
            Length::Seconds(seconds) => watch.elapsed_seconds() < seconds,
        };
        connection.waits = go_on;
        if go_on {
            let bytes = &requests[next % requests.len()];
            connection.request = next;
            connection.filled = 0;
            connection.sent = Stopwatch::start();
            next += 1;
            match connection.stream.write(bytes) {
                Ok(written) if written == bytes.len() => {}
                Ok(_) => bail!("a request did not fit the socket's buffer"),
                // Its end is seen when the answer is read.
                Err(error) if is_broken(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(go_on)
    };
    let mut under_way = 0;
    for connection in &mut all {
        under_way += usize::from(send(connection)?);
    }
    let mut seen = Seen {
        answered: 0,
        seconds: 0.0,
        wrong: 0,
        first_wrong: None,
        broken: 0,
        cpu_seconds: 0.0,
        latencies: Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?,
    };
    let mut events = Events::with_capacity(connections);
    while under_way > 0 {
        poll.poll(&mut events, Some(PATIENCE))?;
        ensure!(
            !events.is_empty(),
            "{under_way} requests got no answer within {PATIENCE:?}"
        );
        for event in &events {
            let connection = &mut all[event.token().0];
            while connection.waits {
                if connection.filled == connection.buffer.len() {
                    let size = connection.buffer.len() * 2;
                    ensure!(size <= ANSWER_BYTES_MAX, "an answer is too long");
                    connection.buffer.resize(size, 0);
                }
                match connection
                    .stream
                    .read(&mut connection.buffer[connection.filled..])
                {
                    Ok(0) => connection.waits = false,
                    Ok(count) => connection.filled += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if is_broken(&error) => connection.waits = false,
                    Err(error) => return Err(error.into()),
                }
                if !connection.waits {
                    seen.broken += 1;
                    under_way -= 1;
                    break;
                }
                let bytes = &connection.buffer[..connection.filled];
                let Some((status, start, length)) = whole(bytes)? else {
                    continue;
                };
                let nanos = u64::try_from(connection.sent.elapsed().as_nanos())?;
                seen.latencies.saturating_record(nanos);
                seen.answered += 1;
                let answer = Answer {
                    request: connection.request,
                    status,
                    body: &bytes[start..start + length],
                };
                if !check(&answer) {
                    seen.wrong += 1;
                    seen.first_wrong.get_or_insert_with(|| {
                        let body = String::from_utf8_lossy(answer.body);
                        format!("{status} {body} to request {}", answer.request)
                    });
                }
                if !send(connection)? {
                    under_way -= 1;
                }
                // The next answer is a new event: nothing is left to read before it.
                break;
            }
        }
    }
    seen.seconds = watch.elapsed_seconds();
    seen.cpu_seconds = own_cpu_seconds()? - cpu_before;
    Ok(seen)
}

fn is_broken(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted
    )
}
