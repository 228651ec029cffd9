//! Lines in, RESP out, over one connection.
//!
//! Invariants: every wait for the client has a limit, and so has what is kept of its bytes; an
//! answer is one line or one counted string, whatever text is put into it.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Room that is made for each read.
const READ_BYTES: usize = 4_096;

/// What the server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done.
    Ok,
    /// A line that is neither.
    Line(String),
    /// A text of any length.
    Bulk(String),
    /// There is nothing.
    Null,
    /// Refused: a code in capitals, and why.
    Error(&'static str, String),
}

impl Answer {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Answer::Ok => b"+OK\r\n".to_vec(),
            Answer::Line(text) => format!("+{}\r\n", one_line(text)).into_bytes(),
            Answer::Bulk(text) => format!("${}\r\n{text}\r\n", text.len()).into_bytes(),
            Answer::Null => b"$-1\r\n".to_vec(),
            Answer::Error(code, text) => format!("-{code} {}\r\n", one_line(text)).into_bytes(),
        }
    }
}

/// A text as the one line that it must be.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// What came of waiting for a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A line, without its end.
    Line(String),
    /// The client has gone.
    Gone,
    /// It said nothing.
    Idle,
    /// It began a line and did not end it in time.
    Slow,
    /// The line is longer than it may be.
    TooLong,
    /// The line is no UTF-8.
    NoText,
}

/// How long a line may be, and take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) bytes_max: usize,
    /// Until its first byte.
    pub(super) idle: Duration,
    /// From there to its end.
    pub(super) whole: Duration,
}

/// One connection.
pub(super) struct Wire<S> {
    stream: S,
    /// Read, and not used yet.
    buffer: BytesMut,
    write_wait: Duration,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S, write_wait: Duration) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            write_wait,
        }
    }

    /// Waits for a line. May be dropped at any moment: nothing that was read is lost.
    pub(super) async fn line(&mut self, patience: Patience) -> Heard {
        if self.buffer.is_empty() {
            // A large command must not leave its room behind.
            self.buffer = BytesMut::new();
            match timeout(patience.idle, self.more()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false) | Err(_)) => return Heard::Gone,
                Err(_) => return Heard::Idle,
            }
        }
        timeout(patience.whole, self.rest(patience.bytes_max))
            .await
            .unwrap_or(Heard::Slow)
    }

    async fn rest(&mut self, bytes_max: usize) -> Heard {
        let mut searched = 0;
        loop {
            let found = self.buffer[searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(at) = found {
                let line = self.buffer.split_to(searched + at + 1);
                if line.len() > bytes_max {
                    return Heard::TooLong;
                }
                // Some clients end a line with CR LF, some with LF alone.
                let line = &line[..line.len() - 1];
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                return std::str::from_utf8(line)
                    .map_or(Heard::NoText, |text| Heard::Line(text.to_owned()));
            }
            searched = self.buffer.len();
            if searched > bytes_max {
                return Heard::TooLong;
            }
            match self.more().await {
                Ok(true) => {}
                Ok(false) | Err(_) => return Heard::Gone,
            }
        }
    }

    /// Reads a piece; `false` at the end of the stream.
    async fn more(&mut self) -> io::Result<bool> {
        self.buffer.reserve(READ_BYTES);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// Ends when the client has gone. What it says meanwhile is kept for later, within the limit.
    pub(super) async fn gone(&mut self, bytes_max: usize) {
        while self.buffer.len() <= bytes_max {
            if !matches!(self.more().await, Ok(true)) {
                return;
            }
        }
        std::future::pending().await
    }

    /// Says something.
    pub(super) async fn say(&mut self, answer: &Answer) -> io::Result<()> {
        let bytes = answer.bytes();
        let sent = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match timeout(self.write_wait, sent).await {
            Ok(sent) => sent,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Tells the client that nothing more will come.
    pub(super) async fn close(mut self) {
        // If it has gone already, that is what was wanted.
        let _gone = timeout(self.write_wait, self.stream.shutdown()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        bytes_max: 10,
        idle: Duration::from_millis(30),
        whole: Duration::from_millis(30),
    };

    #[tokio::test]
    async fn lines_come_whole_or_are_given_up() {
        let (mut client, server) = tokio::io::duplex(64);
        let mut wire = Wire::new(server, Duration::from_secs(1));
        client.write_all(b"ab\r\ncd\ne").await.expect("sent");
        assert_eq!(wire.line(PATIENCE).await, Heard::Line("ab".to_owned()));
        assert_eq!(wire.line(PATIENCE).await, Heard::Line("cd".to_owned()));
        assert_eq!(wire.line(PATIENCE).await, Heard::Slow, "half a line");
        client.write_all(b"f\n\xff\n").await.expect("sent");
        assert_eq!(wire.line(PATIENCE).await, Heard::Line("ef".to_owned()));
        assert_eq!(wire.line(PATIENCE).await, Heard::NoText);
        assert_eq!(wire.line(PATIENCE).await, Heard::Idle);
        client.write_all(b"0123456789\n").await.expect("sent");
        assert_eq!(wire.line(PATIENCE).await, Heard::TooLong);
        client.write_all(b"0123456789a").await.expect("sent");
        assert_eq!(wire.line(PATIENCE).await, Heard::TooLong);
        drop(client);
        let mut wire = Wire::new(wire.stream, Duration::from_secs(1));
        assert_eq!(wire.line(PATIENCE).await, Heard::Gone);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_given_up() {
        let (_client, server) = tokio::io::duplex(16);
        let mut wire = Wire::new(server, Duration::from_millis(30));
        let long = Answer::Bulk("x".repeat(100));
        let error = wire.say(&long).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn no_text_breaks_the_framing() {
        let cases = [
            (Answer::Ok, "+OK\r\n"),
            (Answer::Null, "$-1\r\n"),
            (Answer::Bulk("é\r\n".to_owned()), "$4\r\né\r\n\r\n"),
            (
                Answer::Error("ERR", "a\r\n+OK".to_owned()),
                "-ERR a  +OK\r\n",
            ),
            (Answer::Line("HI {}".to_owned()), "+HI {}\r\n"),
        ];
        for (answer, bytes) in cases {
            assert_eq!(String::from_utf8(answer.bytes()).expect("text"), bytes);
        }
    }
}
