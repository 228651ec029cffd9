//! The load of several sides that talk to one server: producers beside consumers, say.
//!
//! As the load of requests it is one thread with many kept-alive connections, each of which says its
//! next words only once the answer to those before was whole; what is said is up to whoever runs it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::ensure;
use mio::{Events, Interest, Poll, Token};
use onrush::clock::Stopwatch;

use crate::load::own_cpu_seconds;

/// Longer than any wait of the server: an answer that has not come by then never will.
const PATIENCE: Duration = Duration::from_secs(40);

/// What comes of an answer.
pub enum Next {
    /// Something more is said.
    Say,
    /// This connection has said all.
    Rest,
    /// All of them have.
    Over,
}

/// What a conversation took.
pub struct Talked {
    /// From the first word until it was over.
    pub seconds: f64,
    /// Processor seconds of the load itself.
    pub cpu_seconds: f64,
}

struct Side {
    stream: mio::net::TcpStream,
    buffer: Vec<u8>,
    filled: usize,
}

/// Talks until it is over. `whole` tells how long the answer is that the bytes begin with, once all of
/// it is there; `next` gets the number of the connection and its answer, empty at the start, and puts
/// what is to be said into the buffer.
pub fn run(
    streams: Vec<TcpStream>,
    whole: impl Fn(&[u8]) -> anyhow::Result<Option<usize>>,
    mut next: impl FnMut(usize, &[u8], &mut Vec<u8>) -> anyhow::Result<Next>,
) -> anyhow::Result<Talked> {
    let mut poll = Poll::new()?;
    let mut sides = Vec::with_capacity(streams.len());
    for (number, stream) in streams.into_iter().enumerate() {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        poll.registry()
            .register(&mut stream, Token(number), Interest::READABLE)?;
        sides.push(Side {
            stream,
            buffer: vec![0; 4_096],
            filled: 0,
        });
    }
    let (cpu_before, watch) = (own_cpu_seconds()?, Stopwatch::start());
    let mut words = Vec::with_capacity(1_024);
    // Answers whether all of it is over.
    let mut step = |number: usize, side: &mut Side| -> anyhow::Result<bool> {
        words.clear();
        match next(number, &side.buffer[..side.filled], &mut words)? {
            Next::Say => {
                side.filled = 0;
                let written = side.stream.write(&words)?;
                ensure!(
                    written == words.len(),
                    "words did not fit the socket's buffer"
                );
                Ok(false)
            }
            Next::Rest => Ok(false),
            Next::Over => Ok(true),
        }
    };
    let mut is_over = false;
    for (number, side) in sides.iter_mut().enumerate() {
        is_over |= step(number, side)?;
    }
    let mut events = Events::with_capacity(sides.len());
    while !is_over {
        poll.poll(&mut events, Some(PATIENCE))?;
        ensure!(!events.is_empty(), "no answer came within {PATIENCE:?}");
        for event in &events {
            let number = event.token().0;
            let side = &mut sides[number];
            loop {
                if side.filled == side.buffer.len() {
                    let size = side.buffer.len() * 2;
                    side.buffer.resize(size, 0);
                }
                match side.stream.read(&mut side.buffer[side.filled..]) {
                    Ok(0) => anyhow::bail!("the server closed a connection"),
                    Ok(count) => side.filled += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
                let Some(length) = whole(&side.buffer[..side.filled])? else {
                    continue;
                };
                ensure!(length == side.filled, "more was answered than was asked");
                is_over |= step(number, side)?;
                // The next answer is a new event: nothing is left to read before it.
                break;
            }
        }
    }
    Ok(Talked {
        seconds: watch.elapsed_seconds(),
        cpu_seconds: own_cpu_seconds()? - cpu_before,
    })
}
