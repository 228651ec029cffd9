//! What is kept: a value of any type with its times and tags.
//!
//! Invariants: an entry never changes but for marks that make no answer wrong; times are those
//! of the monotonic clock, so that a jump of the wall clock neither keeps nor loses anything.

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::freshness::{Moment, Slot};

/// A value that can be cached. Cloning it must be cheap: each read is a clone.
pub trait Cached: Clone + Send + Sync + 'static {
    /// Memory that it takes, beside its own size.
    fn heap_bytes(&self) -> usize;

    /// The value in a form that [`Cached::from_disk`] of the same schema version reads. `None` keeps
    /// it in memory alone.
    fn to_disk(&self) -> Option<Vec<u8>> {
        None
    }

    /// Reads what [`Cached::to_disk`] wrote; `None` where it makes no sense.
    fn from_disk(_bytes: &[u8]) -> Option<Self> {
        None
    }
}

/// A response that is ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready(Arc<Parts>);

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    content_type: Cow<'static, str>,
    etag: String,
    body: Bytes,
    gzip: Option<Bytes>,
}

impl Ready {
    /// A body with its type and its entity tag (quoted, as in the header).
    pub fn new(
        content_type: impl Into<Cow<'static, str>>,
        etag: String,
        body: impl Into<Bytes>,
    ) -> Self {
        Self(Arc::new(Parts {
            content_type: content_type.into(),
            etag,
            body: body.into(),
            gzip: None,
        }))
    }

    /// The same with its body in gzip beside it.
    pub fn with_gzip(self, gzip: impl Into<Bytes>) -> Self {
        Self(Arc::new(Parts {
            content_type: self.0.content_type.clone(),
            etag: self.0.etag.clone(),
            body: self.0.body.clone(),
            gzip: Some(gzip.into()),
        }))
    }

    /// The header `Content-Type`.
    pub fn content_type(&self) -> &str {
        &self.0.content_type
    }

    /// The header `ETag`.
    pub fn etag(&self) -> &str {
        &self.0.etag
    }

    /// The body as it is.
    pub fn body(&self) -> Bytes {
        self.0.body.clone()
    }

    /// The body in gzip, where that was worth it.
    pub fn gzip(&self) -> Option<Bytes> {
        self.0.gzip.clone()
    }
}

impl Cached for Ready {
    fn heap_bytes(&self) -> usize {
        std::mem::size_of::<Parts>()
            + self.0.etag.len()
            + self.0.body.len()
            + self.0.gzip.as_ref().map_or(0, Bytes::len)
    }

    fn to_disk(&self) -> Option<Vec<u8>> {
        let parts = &*self.0;
        let mut out = Vec::with_capacity(self.heap_bytes());
        put_slice(&mut out, parts.content_type.as_bytes());
        put_slice(&mut out, parts.etag.as_bytes());
        put_slice(&mut out, &parts.body);
        if let Some(gzip) = &parts.gzip {
            put_slice(&mut out, gzip);
        }
        Some(out)
    }

    fn from_disk(mut bytes: &[u8]) -> Option<Self> {
        let rest = &mut bytes;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let ready = Self::new(
            text(take_slice(rest)?)?,
            text(take_slice(rest)?)?,
            Bytes::copy_from_slice(take_slice(rest)?),
        );
        if rest.is_empty() {
            return Some(ready);
        }
        let gzip = Bytes::copy_from_slice(take_slice(rest)?);
        rest.is_empty().then(|| ready.with_gzip(gzip))
    }
}

/// Appends a slice with its length in front.
pub(super) fn put_slice(out: &mut Vec<u8>, slice: &[u8]) {
    out.extend_from_slice(&(slice.len() as u64).to_le_bytes());
    out.extend_from_slice(slice);
}

/// Takes what [`put_slice`] wrote.
pub(super) fn take_slice<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_u64(rest)?).ok()?;
    let (slice, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(slice)
}

/// Takes a number of eight bytes.
pub(super) fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

/// What a loader brings: a value, and the tags by which it can be invalidated besides its key.
#[derive(Clone, Debug)]
pub struct Loaded<V> {
    pub(super) value: V,
    pub(super) tags: Vec<String>,
}

impl<V> Loaded<V> {
    /// A value without tags.
    pub fn new(value: V) -> Self {
        Self {
            value,
            tags: Vec::new(),
        }
    }

    /// The same value, invalidated with `tag` as well. Beyond `cache.tags_max` the value is not kept.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }
}

/// A [`Cached`] value of a type that only its kind knows.
pub(super) trait Stored: Send + Sync {
    fn as_any(&self) -> &dyn Any;
    fn heap_bytes(&self) -> usize;
    fn to_disk(&self) -> Option<Vec<u8>>;
}

/// A value in its box.
pub(super) struct Held<V>(pub(super) V);

impl<V: Cached> Stored for Held<V> {
    fn as_any(&self) -> &dyn Any {
        &self.0
    }

    fn heap_bytes(&self) -> usize {
        std::mem::size_of::<V>() + self.0.heap_bytes()
    }

    fn to_disk(&self) -> Option<Vec<u8>> {
        self.0.to_disk()
    }
}

/// A tag with its place in the table.
#[derive(Clone, Debug)]
pub(super) struct Tag {
    pub(super) slot: Slot,
    pub(super) name: Box<str>,
}

/// Where an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its loader.
    Loader,
    /// The disk level.
    Disk,
}

impl Origin {
    /// The word that stands for it in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Origin::Loader => "loader",
            Origin::Disk => "disk",
        }
    }
}

/// The times of an entry, in milliseconds of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) loaded_ms: u64,
    /// From here on a hot entry is loaded anew, before a request has to wait for it.
    pub(super) refresh_ms: u64,
    pub(super) expires_ms: u64,
    /// Until here it may still be served where the loader fails or is slow.
    pub(super) stale_until_ms: u64,
    /// What the load took.
    pub(super) load_ms: u64,
}

/// An entry of the cache; one without a value says that there is nothing of this key.
pub(super) struct Entry {
    pub(super) value: Option<Box<dyn Stored>>,
    pub(super) tags: Box<[Tag]>,
    /// Memory that it takes, its key included.
    pub(super) bytes: usize,
    /// Noted before its load began.
    pub(super) born: Moment,
    pub(super) times: Times,
    pub(super) origin: Origin,
    /// A load that failed is not tried again before this.
    retry_ms: AtomicU64,
    is_hot: AtomicBool,
    is_refreshing: AtomicBool,
    /// Taken out on purpose: the listener that sees it leave need not keep it.
    is_dropped: AtomicBool,
}

/// What an entry costs beside its value, tags and key: the record, its links and the index.
pub(super) const OVERHEAD_BYTES: usize = 320;

impl Entry {
    pub(super) fn new(
        value: Option<Box<dyn Stored>>,
        tags: Box<[Tag]>,
        key_bytes: usize,
        born: Moment,
        times: Times,
        origin: Origin,
    ) -> Self {
        let tag_bytes: usize = tags
            .iter()
            .map(|tag| std::mem::size_of::<Tag>() + tag.name.len())
            .sum();
        Self {
            bytes: OVERHEAD_BYTES
                + key_bytes
                + tag_bytes
                + value.as_ref().map_or(0, |value| value.heap_bytes()),
            value,
            tags,
            born,
            times,
            origin,
            retry_ms: AtomicU64::new(0),
            is_hot: AtomicBool::new(false),
            is_refreshing: AtomicBool::new(false),
            is_dropped: AtomicBool::new(false),
        }
    }

    /// The value as the type that its kind keeps.
    pub(super) fn value<V: Cached>(&self) -> Option<V> {
        self.value.as_ref()?.as_any().downcast_ref().cloned()
    }

    pub(super) fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms < self.times.expires_ms
    }

    /// Whether it may be served although it has expired.
    pub(super) fn is_usable(&self, now_ms: u64) -> bool {
        now_ms < self.times.stale_until_ms
    }

    /// Whether its last load failed so lately that another would be too soon.
    pub(super) fn rests(&self, now_ms: u64) -> bool {
        now_ms < self.retry_ms.load(Ordering::Relaxed)
    }

    pub(super) fn rest_until(&self, until_ms: u64) {
        self.retry_ms.store(until_ms, Ordering::Relaxed);
    }

    pub(super) fn is_hot(&self) -> bool {
        self.is_hot.load(Ordering::Relaxed)
    }

    pub(super) fn set_hot(&self, is_hot: bool) {
        self.is_hot.store(is_hot, Ordering::Relaxed);
    }

    /// Whether this call is the one that refreshes it.
    pub(super) fn begin_refresh(&self) -> bool {
        !self.is_refreshing.swap(true, Ordering::Relaxed)
    }

    pub(super) fn end_refresh(&self) {
        self.is_refreshing.store(false, Ordering::Relaxed);
    }

    pub(super) fn drop_on_purpose(&self) {
        self.is_dropped.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_dropped(&self) -> bool {
        self.is_dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_reads_back_from_disk_and_damage_does_not() {
        let plain = Ready::new("application/json", "\"1\"".to_owned(), &b"{}"[..]);
        let both = plain.clone().with_gzip(&b"zip"[..]);
        for ready in [plain, both] {
            let bytes = ready.to_disk().expect("kept on disk");
            assert_eq!(Ready::from_disk(&bytes).as_ref(), Some(&ready));
            assert_eq!(Ready::from_disk(&bytes[..bytes.len() - 1]), None);
            let mut more = bytes.clone();
            more.push(0);
            assert_ne!(Ready::from_disk(&more), Some(ready));
        }
        assert_eq!(Ready::from_disk(&[255; 8]), None);
    }
}
