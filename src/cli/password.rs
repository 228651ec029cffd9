//! Reads a password: hidden where a person types it, the first line of what a program sends.
//!
//! Invariants: what is typed is never shown; reading ends at the end of the line, without waiting
//! for the end of the input; the terminal is as before afterwards, also after Ctrl-C. Nothing here
//! judges a password.

use std::io::{BufRead, IsTerminal, Read, Stdin, Write};

use nix::sys::termios::{
    LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr,
};

use super::{EXIT_STOPPED, EXIT_USAGE, Failed, say};

/// What is read at most. More than a password may have, so that the check of the account refuses a
/// longer one instead of taking its beginning.
const BYTES_MAX: u64 = 1_024;
/// What Ctrl-C sends.
const INTERRUPT: u8 = 3;

/// The password for a new account, from the terminal or from whatever standard input is.
pub(super) fn read() -> Result<String, Failed> {
    let refused = |reason: &str| Failed::new(EXIT_USAGE, reason);
    let input = std::io::stdin();
    let is_typed = input.is_terminal();
    let line = match is_typed {
        true => typed(&input, "Password (hidden; ends with Enter): ")?,
        false => {
            let mut line = Vec::new();
            input.lock().take(BYTES_MAX).read_until(b'\n', &mut line)?;
            line
        }
    };
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        return Err(refused(
            "no password was given; type one, or send it as the first line of standard input",
        ));
    }
    let password = std::str::from_utf8(line)
        .map_err(|_| refused("the password is no UTF-8; send it in that encoding"))?;
    // Who can't see what is typed does not know of a key that moves a cursor.
    if is_typed && password.contains(char::is_control) {
        return Err(refused(
            "a key such as Tab or an arrow was part of the password; type it again without",
        ));
    }
    Ok(password.to_owned())
}

/// A terminal that does not show what is typed; dropped, it does as before.
struct Hidden<'a> {
    input: &'a Stdin,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn begin(input: &'a Stdin) -> nix::Result<Self> {
        let before = tcgetattr(input)?;
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        hidden
            .local_flags
            .insert(LocalFlags::ECHONL | LocalFlags::ICANON);
        // Ctrl-C ends the line instead of the process, which would leave the terminal hidden.
        hidden.local_flags.remove(LocalFlags::ISIG);
        hidden.control_chars[SpecialCharacterIndices::VEOL as usize] = INTERRUPT;
        // What was typed ahead stays, for programs that do not wait for the question.
        tcsetattr(input, SetArg::TCSANOW, &hidden)?;
        Ok(Self { input, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // It fails only where the terminal is gone.
        let _gone = tcsetattr(self.input, SetArg::TCSANOW, &self.before);
    }
}

/// The line that a person types, with its end.
fn typed(input: &Stdin, question: &str) -> Result<Vec<u8>, Failed> {
    // Hidden first: who sees the question may answer it at once.
    let hidden = Hidden::begin(input)?;
    ask(question)?;
    let mut line = Vec::new();
    for byte in input.lock().take(BYTES_MAX).bytes() {
        line.push(byte?);
        if line.ends_with(b"\n") || line.ends_with(&[INTERRUPT]) {
            break;
        }
    }
    drop(hidden);
    if !line.ends_with(b"\n") {
        say("");
    }
    if line.ends_with(&[INTERRUPT]) {
        let reason = "stopped by Ctrl-C; nothing was changed";
        return Err(Failed::new(EXIT_STOPPED, reason));
    }
    Ok(line)
}

#[expect(
    clippy::print_stderr,
    reason = "the answer is typed behind the question"
)]
fn ask(question: &str) -> std::io::Result<()> {
    eprint!("{question}");
    std::io::stderr().flush()
}
