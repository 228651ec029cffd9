//! Rows that are read again and again, kept in the cache under their keys.
//!
//! Invariants: what a commit changed is gone from here before its caller hears of it; a read that finds no row
//! tells in the same transaction what the highest key is, so that a key beyond it costs no read from then on. What
//! is absent: what a row means, and what is made of it.

use crate::cache::{Cache, CacheError, Cached, HighestWanted, Id, Kind, KindRules, Loaded};
use crate::store::{Rows, Store, StoreError, Topic, Tx};

/// A table whose rows are kept: how they are found, and what is kept of each.
pub trait KeptTable: Copy + Send + Sync + 'static {
    /// The key of a row.
    type Key: From<i64> + Into<i64> + Send + 'static;
    /// A row.
    type Row: Send + 'static;
    /// What is kept of it.
    type Value: Cached;

    /// Touched, by row, by whatever changes one, a new one too.
    const CHANGED: Topic;

    /// The row of a key.
    fn one(tx: &mut Tx<'_>, key: Self::Key) -> Result<Option<Self::Row>, StoreError>;

    /// The rows of some keys, in any order, without those that are not there.
    fn many(tx: &mut Tx<'_>, keys: &[Self::Key]) -> Result<Vec<Self::Row>, StoreError>;

    /// The highest key there is; `None` while the table is empty.
    fn highest_id(tx: &mut Tx<'_>) -> Result<Option<i64>, StoreError>;

    /// The key of this row.
    fn key(row: &Self::Row) -> Self::Key;

    /// Makes of a row what is kept.
    fn keep(self, row: Self::Row) -> Result<Loaded<Self::Value>, StoreError>;
}

/// The rows of a table, kept; clones share them.
#[derive(Clone)]
pub struct Kept<T: KeptTable> {
    store: Store,
    kind: Kind<T::Value>,
    table: T,
}

impl<T: KeptTable> Kept<T> {
    /// To be made once for each cache.
    pub fn new(store: Store, cache: &Cache, rules: KindRules, table: T) -> Self {
        let kind: Kind<T::Value> = cache.kind(rules);
        let changed = kind.clone();
        store.on_commit_of(T::CHANGED, move |rows| match rows {
            Rows::Any => changed.invalidate_all(),
            Rows::These(ids) => ids.iter().for_each(|id| changed.invalidate(*id)),
        });
        let of = store.clone();
        kind.on_warm(move |kind, ids| {
            let store = of.clone();
            Box::pin(async move {
                let found =
                    kind.get_many_or_load(&ids, |ids| load_many(store.clone(), table, ids, None));
                Ok(found.await?.into_iter().flatten().count())
            })
        });
        Self { store, kind, table }
    }

    /// What is kept of the row of this key; `None` when there is no such row.
    pub async fn one(&self, id: i64) -> Result<Option<T::Value>, CacheError> {
        let load = || {
            let wanted = self.kind.asks_for_highest();
            load_one(self.store.clone(), self.table, id, wanted)
        };
        let hit = self.kind.get_or_load(id, load).await?;
        Ok(hit.map(|hit| hit.value))
    }

    /// [`Kept::one`] of each of these keys, in their order.
    pub async fn many(&self, ids: &[Id]) -> Result<Vec<Option<T::Value>>, CacheError> {
        let load = |ids| {
            let wanted = self.kind.asks_for_highest();
            load_many(self.store.clone(), self.table, ids, wanted)
        };
        let hits = self.kind.get_many_or_load(ids, load).await?;
        Ok(hits
            .into_iter()
            .map(|hit| hit.map(|hit| hit.value))
            .collect())
    }
}

async fn load_one<T: KeptTable>(
    store: Store,
    table: T,
    id: i64,
    wanted: Option<HighestWanted>,
) -> Result<Option<Loaded<T::Value>>, StoreError> {
    let read = store.point(move |tx| {
        let found = T::one(tx, T::Key::from(id))?;
        if let (None, Some(wanted)) = (&found, wanted) {
            wanted.tell(T::highest_id(tx)?);
        }
        Ok::<_, StoreError>(found)
    });
    let found = read.await?;
    found.map(|row| table.keep(row)).transpose()
}

async fn load_many<T: KeptTable>(
    store: Store,
    table: T,
    ids: Vec<Id>,
    wanted: Option<HighestWanted>,
) -> Result<Vec<(Id, Loaded<T::Value>)>, StoreError> {
    let keys: Vec<T::Key> = ids.iter().filter_map(key_of).collect();
    let read = store.point(move |tx| {
        let found = T::many(tx, &keys)?;
        if let Some(wanted) = wanted
            && found.len() < keys.len()
        {
            wanted.tell(T::highest_id(tx)?);
        }
        Ok::<_, StoreError>(found)
    });
    let found = read.await?;
    found
        .into_iter()
        .map(|row| Ok((Id::from(T::key(&row).into()), table.keep(row)?)))
        .collect()
}

/// The key that an id of the cache stands for, if it can be one.
fn key_of<K: From<i64>>(id: &Id) -> Option<K> {
    match id {
        Id::Int(id) => Some(K::from(*id)),
        Id::Bytes(_) => None,
    }
}
