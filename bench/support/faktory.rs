//! The Faktory protocol as a client speaks it, for the load.
//!
//! Written here and not taken from a client's crate: the load shares the cores with what it measures,
//! so a command is bytes made beforehand and an answer is looked at where it was read.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail, ensure};
use onrush::clock::Clock;

use crate::talk::{self, Next, Talked};

/// A connection that was greeted; a worker says who it is.
pub fn connect(address: SocketAddr, wid: Option<&str>) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let hi = line(&mut lines)?;
    ensure!(hi.starts_with("+HI "), "the greeting is {hi}");
    let hello = match wid {
        Some(wid) => {
            serde_json::json!({"v": 2, "wid": wid, "hostname": "bench", "pid": 1, "labels": ["bench"]})
        }
        None => serde_json::json!({"v": 2}),
    };
    write!(stream, "HELLO {hello}\r\n")?;
    let answer = line(&mut lines)?;
    ensure!(answer == "+OK", "the greeting was answered {answer}");
    Ok(stream)
}

/// Reads a line, without its end.
pub fn line(lines: &mut impl BufRead) -> anyhow::Result<String> {
    let mut text = String::new();
    lines.read_line(&mut text)?;
    ensure!(text.ends_with("\r\n"), "the connection ended in {text:?}");
    text.truncate(text.len() - 2);
    Ok(text)
}

/// The command of one job, with what clients in Go and Ruby send. Their ids are random as well.
pub fn push(queue: &str) -> Vec<u8> {
    let job = serde_json::json!({
        "jid": format!("{:024x}", rand::random::<u128>() >> 32),
        "jobtype": "resize", "queue": queue, "args": [7, "thumbnail"],
        "created_at": Clock::system().now(), "retry": 25, "reserve_for": 1_800,
    });
    format!("PUSH {job}\r\n").into_bytes()
}

/// The command of a worker that wants a job.
pub fn fetch(queue: &str) -> Vec<u8> {
    format!("FETCH {queue}\r\n").into_bytes()
}

/// How long the answer at the beginning of these bytes is, if all of it is there.
pub fn whole(bytes: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let Some(count) = bytes.strip_prefix(b"$") else {
        return Ok(Some(end + 2));
    };
    let count: i64 = std::str::from_utf8(&count[..end - 1])?.parse()?;
    let length = match usize::try_from(count) {
        Ok(count) => end + 2 + count + 2,
        Err(_) => end + 2,
    };
    Ok((bytes.len() >= length).then_some(length))
}

/// The id of the job in an answer to FETCH; `None` if it was answered that there is none.
pub fn jid(answer: &[u8]) -> anyhow::Result<Option<&str>> {
    const FIELD: &[u8] = b"\"jid\":\"";
    if answer == b"$-1\r\n" {
        return Ok(None);
    }
    let start = answer
        .windows(FIELD.len())
        .position(|bytes| bytes == FIELD)
        .with_context(|| format!("no job: {}", String::from_utf8_lossy(answer)))?;
    let rest = &answer[start + FIELD.len()..];
    let end = rest.iter().position(|byte| *byte == b'"');
    Ok(Some(std::str::from_utf8(
        &rest[..end.context("half an id")?],
    )?))
}

/// Producers that push `pushes`, beside consumers that fetch and acknowledge until they have had
/// `count` jobs; each consumer has one job at a time. Every job must come once.
pub fn run(
    address: SocketAddr,
    queue: &str,
    producers: usize,
    pushes: &[Vec<u8>],
    consumers: usize,
    count: usize,
) -> anyhow::Result<Talked> {
    let wid = format!("bench-{:08x}", rand::random::<u32>());
    let mut streams = Vec::with_capacity(producers + consumers);
    for _ in 0..producers {
        streams.push(connect(address, None)?);
    }
    for _ in 0..consumers {
        // One worker with so many threads.
        streams.push(connect(address, Some(&wid))?);
    }
    let fetch = fetch(queue);
    let mut pushed = pushes.iter();
    let mut has_job = vec![false; consumers];
    let (mut seen, mut done) = (HashSet::with_capacity(count), 0);
    talk::run(streams, whole, |number, answer, words| {
        let Some(consumer) = number.checked_sub(producers) else {
            ensure!(
                answer.is_empty() || answer == b"+OK\r\n",
                "a push was answered {}",
                String::from_utf8_lossy(answer)
            );
            return Ok(match pushed.next() {
                Some(push) => {
                    words.extend_from_slice(push);
                    Next::Say
                }
                None => Next::Rest,
            });
        };
        if std::mem::take(&mut has_job[consumer]) {
            if answer != b"+OK\r\n" {
                bail!("an ACK was answered {}", String::from_utf8_lossy(answer));
            }
            done += 1;
            if done == count {
                return Ok(Next::Over);
            }
        } else if !answer.is_empty()
            && let Some(jid) = jid(answer)?
        {
            ensure!(seen.insert(jid.to_owned()), "{jid} was handed out twice");
            has_job[consumer] = true;
            write!(words, "ACK {{\"jid\":\"{jid}\"}}\r\n")?;
            return Ok(Next::Say);
        }
        words.extend_from_slice(&fetch);
        Ok(Next::Say)
    })
}
