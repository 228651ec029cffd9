//! What a connection may cost: descriptors, and what hyper allows it.
//!
//! Invariants: connections leave enough descriptors to the database, logs and files, whatever the
//! settings say; a head, a stream and what was received but not read are bounded for both versions of
//! HTTP, by the settings or by a constant here.

use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::{self, ms};
use crate::http::connections::LEAVING_MAX;

/// Descriptors that connections must leave to the database, logs and files.
const DESCRIPTORS_RESERVED: u64 = 128 + LEAVING_MAX as u64;
/// Streams that a client may reset before we have accepted them ("rapid reset", CVE-2023-44487).
const H2_PENDING_RESETS_MAX: usize = 20;
/// Streams that we may have to reset before the connection is given up.
const H2_LOCAL_RESETS_MAX: usize = 128;
const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// What a client may send of one body, and of all bodies of its connection, before we have read it: it
/// is in memory, and not yet counted as the body's.
const H2_STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// The setting, or less when the system does not give us enough descriptors.
pub(super) fn connections_max(wanted: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return wanted;
    };
    let needed = (wanted as u64).saturating_add(DESCRIPTORS_RESERVED);
    let raised = needed.min(hard);
    let limit = if soft < raised && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        raised
    } else {
        soft
    };
    let possible =
        usize::try_from(limit.saturating_sub(DESCRIPTORS_RESERVED)).unwrap_or(usize::MAX);
    if possible < wanted {
        tracing::warn!(
            wanted,
            possible,
            "the limit of open files allows fewer connections than the settings"
        );
    }
    possible.clamp(1, wanted.max(1))
}

pub(super) fn http1_builder(settings: &config::Server) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(ms(settings.header_timeout_ms))
        .max_headers(settings.headers_max)
        .max_header_size(settings.header_bytes_max)
        // Of its own accord hyper would only stop a head that does not end within this buffer.
        .max_buf_size(settings.header_bytes_max);
    builder
}

pub(super) fn http2_builder(settings: &config::Server) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.h2_streams_max)
        // What is larger than the setting is refused by us, with a body; what is far larger by h2, which
        // can only send a status.
        .max_header_list_size(
            u32::try_from(settings.header_bytes_max.saturating_mul(2)).unwrap_or(u32::MAX),
        )
        .max_pending_accept_reset_streams(H2_PENDING_RESETS_MAX)
        .max_local_error_reset_streams(H2_LOCAL_RESETS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER_BYTES)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(ms(settings.header_timeout_ms))
        .keep_alive_timeout(ms(settings.header_timeout_ms));
    builder
}
