//! What domain code sees of the database: [`Tx`], parameters, rows.
//!
//! Invariants: no type of a database driver appears in a signature here, so the same domain function
//! runs on SQLite and PostgreSQL; values are 64-bit integers, text or NULL; placeholders are `$1…`,
//! bound by their number wherever they stand.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value as SqlValue, ValueRef};
use rusqlite::{CachedStatement, Connection};

use super::condition::Condition;
use super::conformance::{self, Kind};
use super::locks::{HeldLocks, LockOrder};
use super::{Sql, StoreError, codes};
use crate::clock::{Clock, Stopwatch, Timestamp};
use crate::monitor::statements::{Called, SlowCall, Statement, Statements};

/// A value for a placeholder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Param<'a> {
    /// NULL where a bigint may stand: PostgreSQL has to know of what type a parameter is.
    NullInt,
    /// NULL where a text may stand.
    NullText,
    /// A bigint.
    Int(i64),
    /// Text.
    Text(&'a str),
}

/// Characters shown of a parameter.
const SHOWN_MAX: usize = 200;

impl Param<'_> {
    /// The type that it has whatever its value.
    fn kind(&self) -> Kind {
        match self {
            Param::NullInt | Param::Int(_) => Kind::Bigint,
            Param::NullText | Param::Text(_) => Kind::Text,
        }
    }

    /// The value for people, shortened.
    fn shown(&self) -> String {
        match self {
            Param::NullInt | Param::NullText => "NULL".to_owned(),
            Param::Int(value) => value.to_string(),
            Param::Text(text) => {
                let mut shown: String = text.chars().take(SHOWN_MAX).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                format!("'{shown}'")
            }
        }
    }
}

impl rusqlite::ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Param::NullInt | Param::NullText => ToSqlOutput::Owned(SqlValue::Null),
            Param::Int(value) => ToSqlOutput::Owned(SqlValue::Integer(*value)),
            Param::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
        })
    }
}

impl From<i64> for Param<'_> {
    fn from(value: i64) -> Self {
        Param::Int(value)
    }
}

impl From<u32> for Param<'_> {
    fn from(value: u32) -> Self {
        Param::Int(i64::from(value))
    }
}

impl From<Timestamp> for Param<'_> {
    fn from(value: Timestamp) -> Self {
        Param::Int(value.0)
    }
}

impl<'a> From<&'a str> for Param<'a> {
    fn from(value: &'a str) -> Self {
        Param::Text(value)
    }
}

impl<'a> From<&'a String> for Param<'a> {
    fn from(value: &'a String) -> Self {
        Param::Text(value)
    }
}

/// What may be absent from a column, and is then a NULL of that column's type.
pub trait Nullable {
    /// The absent value.
    const NULL: Param<'static>;
}

/// Types that are a bigint in the database.
macro_rules! bigints {
    ($($name:ty),+) => { $(impl Nullable for $name {
        const NULL: Param<'static> = Param::NullInt;
    })+ };
}
bigints!(i64, u32, Timestamp);

impl Nullable for &str {
    const NULL: Param<'static> = Param::NullText;
}

impl Nullable for &String {
    const NULL: Param<'static> = Param::NullText;
}

impl<'a, T: Nullable + Into<Param<'a>>> From<Option<T>> for Param<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(T::NULL, Into::into)
    }
}

/// A column's value as a Rust type; a mismatch is a bug and says which column.
pub trait Column: Sized {
    /// Reads the value, or `None` when it has another type.
    fn read(value: Param<'_>) -> Option<Self>;
}

impl Column for i64 {
    fn read(value: Param<'_>) -> Option<Self> {
        match value {
            Param::Int(value) => Some(value),
            Param::NullInt | Param::NullText | Param::Text(_) => None,
        }
    }
}

impl Column for u32 {
    fn read(value: Param<'_>) -> Option<Self> {
        i64::read(value).and_then(|value| u32::try_from(value).ok())
    }
}

impl Column for bool {
    fn read(value: Param<'_>) -> Option<Self> {
        i64::read(value).map(|value| value != 0)
    }
}

impl Column for Timestamp {
    fn read(value: Param<'_>) -> Option<Self> {
        i64::read(value).map(Timestamp)
    }
}

impl Column for String {
    fn read(value: Param<'_>) -> Option<Self> {
        match value {
            Param::Text(text) => Some(text.to_owned()),
            Param::NullInt | Param::NullText | Param::Int(_) => None,
        }
    }
}

impl<T: Column> Column for Option<T> {
    fn read(value: Param<'_>) -> Option<Self> {
        match value {
            Param::NullInt | Param::NullText => Some(None),
            other => T::read(other).map(Some),
        }
    }
}

/// Declares a 64-bit id type: a key of one table that can't be taken for another's.
#[macro_export]
macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<i64> for $name {
            fn from(id: i64) -> Self {
                $name(id)
            }
        }

        impl From<$name> for i64 {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl From<$name> for $crate::store::Param<'_> {
            fn from(id: $name) -> Self {
                $crate::store::Param::Int(id.0)
            }
        }

        impl $crate::store::Nullable for $name {
            const NULL: $crate::store::Param<'static> = $crate::store::Param::NullInt;
        }

        impl $crate::store::Column for $name {
            fn read(value: $crate::store::Param<'_>) -> Option<Self> {
                <i64 as $crate::store::Column>::read(value).map($name)
            }
        }
    };
}

/// Declares an enum that is stored as one of a few words, and its conversions.
#[macro_export]
macro_rules! word_type {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every word, in the order of declaration.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word that stands for it in tables and JSON.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)+ }
            }

            /// The value that a word stands for.
            pub fn from_word(word: &str) -> Option<Self> {
                match word { $($word => Some($name::$variant),)+ _ => None }
            }
        }

        impl From<$name> for $crate::store::Param<'static> {
            fn from(value: $name) -> Self {
                $crate::store::Param::Text(value.word())
            }
        }

        impl $crate::store::Nullable for $name {
            const NULL: $crate::store::Param<'static> = $crate::store::Param::NullText;
        }

        impl $crate::store::Column for $name {
            fn read(value: $crate::store::Param<'_>) -> Option<Self> {
                match value {
                    $crate::store::Param::Text(word) => $name::from_word(word),
                    _ => None,
                }
            }
        }
    };
}

/// One row of a result.
pub struct Row<'a> {
    row: &'a rusqlite::Row<'a>,
    condition: &'a Condition,
}

impl Row<'_> {
    /// The value of the column at `index`, from 0.
    pub fn get<T: Column>(&self, index: usize) -> Result<T, StoreError> {
        let value = match self.row.get_ref(index)? {
            ValueRef::Null => Param::NullInt,
            ValueRef::Integer(value) => Param::Int(value),
            ValueRef::Text(bytes) => Param::Text(std::str::from_utf8(bytes).map_err(|_| {
                // All that was written was text.
                let error = StoreError::Corrupt(format!("column {index} of a row is not UTF-8"));
                self.condition.note(&error);
                error
            })?),
            ValueRef::Real(_) | ValueRef::Blob(_) => {
                return Err(StoreError::Bug(format!(
                    "column {index} is neither integer nor text"
                )));
            }
        };
        T::read(value).ok_or_else(|| {
            StoreError::Bug(format!(
                "column {index} does not fit {}",
                std::any::type_name::<T>()
            ))
        })
    }
}

/// `(CAST($1 AS bigint), CAST($2 AS text)), (CAST($3 AS bigint), …`: rows for a `VALUES` of columns of
/// these types. PostgreSQL would take a bare placeholder there for text.
pub fn value_rows(rows: usize, types: &[&str]) -> String {
    let mut text = String::new();
    let mut number = 0;
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for (at, kind) in types.iter().enumerate() {
            number += 1;
            let comma = if at == 0 { "" } else { ", " };
            text.push_str(&format!("{comma}CAST(${number} AS {kind})"));
        }
        text.push(')');
    }
    text
}

/// A transaction: everything done through it commits together or not at all.
///
/// `Ok` from the closure that was given it commits, `Err` rolls back; nothing else does.
pub struct Tx<'c> {
    conn: &'c Connection,
    statements: &'c Statements,
    condition: &'c Condition,
    caller: Option<Called>,
    touched: Touched,
    locks: HeldLocks,
    /// Why the disk did not do the last thing that was asked of it.
    failure: Option<StoreError>,
}

/// A subject that a transaction may touch, for those who wait for it: one of 32, whose meaning its
/// owner alone knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topic(u8);

impl Topic {
    /// The topic of this number, below 32.
    pub const fn new(number: u8) -> Self {
        assert!(number < 32, "there are 32 topics");
        Self(number)
    }
}

/// Rows of a topic remembered of one batch; beyond it, it counts as all of them.
const ROWS_MAX: usize = 4_096;

/// Which rows of a topic a commit changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows<'a> {
    /// Any of them.
    Any,
    /// These, by their keys; one may be named more than once.
    These(&'a [i64]),
}

/// What some work touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Topics of which anything may have changed, a bit each.
    topics: u32,
    rows: Vec<(Topic, i64)>,
}

impl Touched {
    fn topic(&mut self, topic: Topic) {
        self.topics |= 1 << topic.0;
    }

    fn row(&mut self, topic: Topic, row: i64) {
        if self.rows.len() < ROWS_MAX {
            self.rows.push((topic, row));
        } else {
            self.topic(topic);
        }
    }

    pub(super) fn add(&mut self, more: Touched) {
        self.topics |= more.topics;
        for (topic, row) in more.rows {
            self.row(topic, row);
        }
    }

    pub(super) fn clear(&mut self) {
        self.topics = 0;
        self.rows.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.topics == 0 && self.rows.is_empty()
    }

    /// Calls `tell` if anything of the topic was touched.
    pub(super) fn tell(&self, topic: Topic, tell: impl FnOnce(Rows<'_>)) {
        if self.topics & (1 << topic.0) != 0 {
            return tell(Rows::Any);
        }
        let of = |(of, row): &(Topic, i64)| (*of == topic).then_some(*row);
        let mut rows: Vec<i64> = self.rows.iter().filter_map(of).collect();
        if !rows.is_empty() {
            rows.sort_unstable();
            rows.dedup();
            tell(Rows::These(&rows));
        }
    }
}

impl<'c> Tx<'c> {
    pub(super) fn new(
        conn: &'c Connection,
        statements: &'c Statements,
        condition: &'c Condition,
        caller: Option<Called>,
    ) -> Self {
        Self {
            conn,
            statements,
            condition,
            caller,
            touched: Touched::default(),
            locks: HeldLocks::default(),
            failure: None,
        }
    }

    /// Why SQLite undid the whole transaction by itself, as it does when the disk is full or fails, or there
    /// is no memory.
    pub(super) fn failure(&self) -> StoreError {
        self.failure.clone().unwrap_or(StoreError::StorageFull)
    }

    fn met(&mut self, error: rusqlite::Error) -> StoreError {
        let error = self.condition.met(self.conn, error);
        if matches!(
            error,
            StoreError::StorageFull
                | StoreError::ReadOnly
                | StoreError::Io(_)
                | StoreError::Corrupt(_)
        ) {
            self.failure = Some(error.clone());
        }
        error
    }

    /// In whose name it runs.
    pub fn caller(&self) -> Option<Called> {
        self.caller.clone()
    }

    /// Runs a part in the name of another.
    pub fn called_by<T>(&mut self, caller: Called, work: impl FnOnce(&mut Tx<'_>) -> T) -> T {
        let before = self.caller.replace(caller);
        let done = work(self);
        self.caller = before;
        done
    }

    /// Notes that `topic` was touched: whoever listens to it (`Store::on_commit`) is called once this
    /// work is committed, and never if it is undone.
    pub fn touch(&mut self, topic: Topic) {
        self.touched.topic(topic);
    }

    /// [`Tx::touch`] for one row of the topic, by its key.
    pub fn touch_row(&mut self, topic: Topic, row: impl Into<i64>) {
        self.touched.row(topic, row.into());
    }

    /// Locks rows by ascending key until this transaction ends.
    pub fn lock<I: Into<i64>>(
        &mut self,
        of: LockOrder,
        rows: impl IntoIterator<Item = I>,
    ) -> Result<(), StoreError> {
        if cfg!(debug_assertions) {
            let mut rows: Vec<i64> = rows.into_iter().map(Into::into).collect();
            rows.sort_unstable();
            rows.into_iter().for_each(|row| self.locks.note(of, row));
        }
        Ok(())
    }

    /// Notes that the statement that follows locks a row, because it changes it.
    pub fn locks(&mut self, of: LockOrder, row: impl Into<i64>) {
        self.locks.note(of, row.into());
    }

    /// Notes a row that this transaction has inserted: it is locked, and no other transaction waits for it.
    pub fn made(&mut self, of: LockOrder, row: impl Into<i64>) {
        self.locks.made(of, row.into());
    }

    /// For a rule that holds only while this transaction has the row locked: it is an error to come here
    /// without, which debug builds find.
    pub fn require_lock(&self, of: LockOrder, row: impl Into<i64>) {
        self.locks.require(of, row.into());
    }

    pub(super) fn touched(self) -> Touched {
        self.touched
    }

    /// Runs a part that can be undone alone: its `Err` or its panic undoes what it wrote, and what
    /// was written before stays. The outer error means that the whole transaction is lost.
    pub fn part<T, E: From<StoreError>>(
        &mut self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<Result<T, E>, StoreError> {
        let (conn, condition) = (self.conn, self.condition);
        let run = |sql| -> Result<(), StoreError> {
            conn.prepare_cached(sql)
                .and_then(|mut statement| statement.raw_execute())
                .map_err(|error| condition.met(conn, error))?;
            Ok(())
        };
        run("SAVEPOINT part")?;
        let (topics, rows) = (self.touched.topics, self.touched.rows.len());
        let result = unless_it_panics(|| work(self));
        if conn.is_autocommit() {
            return Err(self.failure());
        }
        if result.is_err() {
            self.touched.topics = topics;
            self.touched.rows.truncate(rows);
            run("ROLLBACK TO part")?;
        }
        run("RELEASE part")?;
        Ok(result)
    }

    /// Runs a statement; answers how many rows it changed.
    pub fn execute(&mut self, sql: Sql<'_>, params: &[Param<'_>]) -> Result<u64, StoreError> {
        self.run(sql, params, |statement, rows| {
            *rows = statement.raw_execute()? as u64;
            Ok(*rows)
        })
    }

    /// Runs a statement for each of `rows`; answers how many rows it changed in all. SQLite steps one prepared
    /// statement, which costs less than a text with many rows (measured); a database on the other side of a
    /// socket is sent all of them at once.
    pub fn execute_each<'p, const N: usize>(
        &mut self,
        sql: Sql<'_>,
        rows: impl IntoIterator<Item = [Param<'p>; N]>,
    ) -> Result<u64, StoreError> {
        let mut changed = 0;
        self.run_each(sql, rows, |statement, count| {
            *count += statement.raw_execute()? as u64;
            changed = *count;
            Ok(Ok(()))
        })?;
        Ok(changed)
    }

    /// [`Tx::insert`] of each of `rows`; answers their keys in the same order.
    pub fn insert_each<'p, T: From<i64>, const N: usize>(
        &mut self,
        sql: Sql<'_>,
        rows: impl IntoIterator<Item = [Param<'p>; N]>,
    ) -> Result<Vec<T>, StoreError> {
        let conn = self.conn;
        conformance::ends_with(sql, conformance::HANDS_BACK_KEY);
        let rows = rows.into_iter();
        let mut keys = Vec::with_capacity(rows.size_hint().0);
        self.run_each(sql, rows, |statement, count| {
            let made = statement.raw_execute()?;
            if made != 1 {
                return Ok(Err(StoreError::Bug(format!("an insert made {made} rows"))));
            }
            *count += 1;
            keys.push(T::from(conn.last_insert_rowid()));
            Ok(Ok(()))
        })?;
        Ok(keys)
    }

    /// [`Tx::row`] for each of `asked`, in the same order.
    pub fn row_of_each<'p, T, const N: usize>(
        &mut self,
        sql: Sql<'_>,
        asked: impl IntoIterator<Item = [Param<'p>; N]>,
        mut map: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<Option<T>>, StoreError> {
        let condition = self.condition;
        let asked = asked.into_iter();
        let mut found = Vec::with_capacity(asked.size_hint().0);
        self.run_each(sql, asked, |statement, count| {
            let mut rows = statement.raw_query();
            let one = rows.next()?.map(|row| map(&Row { row, condition }));
            *count += u64::from(one.is_some());
            match one.transpose() {
                Ok(one) => found.push(one),
                Err(error) => return Ok(Err(error)),
            }
            Ok(Ok(()))
        })?;
        Ok(found)
    }

    /// Inserts one row; answers the key that its `id` was given. Cheaper than `RETURNING`, for which
    /// SQLite fills a table of its own.
    pub fn insert<T: From<i64>>(
        &mut self,
        sql: Sql<'_>,
        params: &[Param<'_>],
    ) -> Result<T, StoreError> {
        conformance::ends_with(sql, conformance::HANDS_BACK_KEY);
        match self.execute(sql, params)? {
            1 => Ok(T::from(self.conn.last_insert_rowid())),
            rows => Err(StoreError::Bug(format!("an insert made {rows} rows"))),
        }
    }

    /// The first row, if there is one.
    pub fn row<T>(
        &mut self,
        sql: Sql<'_>,
        params: &[Param<'_>],
        map: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let condition = self.condition;
        self.run(sql, params, |statement, count| {
            let mut rows = statement.raw_query();
            Ok(rows.next()?.map(|row| {
                *count = 1;
                map(&Row { row, condition })
            }))
        })?
        .transpose()
    }

    /// [`Tx::row`] of one table by its key, which no other transaction changes before this one ends.
    pub fn lock_row<T>(
        &mut self,
        of: LockOrder,
        row: impl Into<i64>,
        sql: Sql<'_>,
        params: &[Param<'_>],
        map: impl FnOnce(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        conformance::ends_with(sql, conformance::LOCKS);
        self.locks(of, row);
        self.row(sql, params, map)
    }

    /// All rows. The statement itself must bound how many there can be.
    pub fn rows<T>(
        &mut self,
        sql: Sql<'_>,
        params: &[Param<'_>],
        mut map: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        self.each(sql, params, |row| {
            all.push(map(row)?);
            Ok(())
        })?;
        Ok(all)
    }

    /// Shows each row to `visit` without keeping any.
    pub fn each(
        &mut self,
        sql: Sql<'_>,
        params: &[Param<'_>],
        mut visit: impl FnMut(&Row<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let condition = self.condition;
        self.run(sql, params, |statement, count| {
            let mut rows = statement.raw_query();
            while let Some(row) = rows.next()? {
                *count += 1;
                let visited = visit(&Row { row, condition });
                if visited.is_err() {
                    return Ok(visited);
                }
            }
            Ok(Ok(()))
        })?
    }

    /// Runs a statement by `work`, which counts its rows, and notes what it cost, also if it failed.
    fn run<T>(
        &mut self,
        sql: Sql<'_>,
        params: &[Param<'_>],
        work: impl FnOnce(&mut CachedStatement<'_>, &mut u64) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let conn = self.conn;
        let mut statement = conn
            .prepare_cached(sql.text)
            .map_err(|error| self.met(error))?;
        let numbering = numbering(&statement, self.statements, sql)?;
        numbering.bind(&mut statement, params)?;
        conformance::met(sql, params.iter().map(Param::kind));
        let (watch, mut rows) = (Stopwatch::start(), 0);
        let result = work(&mut statement, &mut rows);
        let took = watch.elapsed();
        drop(statement);
        if self.statements.count(numbering.counters(), took, rows) {
            self.keep_slow(numbering.counters(), sql, params, took, rows);
        }
        result.map_err(|error| self.met(error))
    }

    /// [`Tx::run`] for each of many rows of parameters. It counts as one call, whose parameters are not
    /// remembered.
    fn run_each<'p, const N: usize>(
        &mut self,
        sql: Sql<'_>,
        rows: impl IntoIterator<Item = [Param<'p>; N]>,
        mut work: impl FnMut(
            &mut CachedStatement<'_>,
            &mut u64,
        ) -> rusqlite::Result<Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let conn = self.conn;
        let mut statement = conn
            .prepare_cached(sql.text)
            .map_err(|error| self.met(error))?;
        let numbering = numbering(&statement, self.statements, sql)?;
        let (watch, mut count) = (Stopwatch::start(), 0);
        let mut done = Ok(Ok(()));
        for params in rows {
            numbering.bind(&mut statement, &params)?;
            conformance::met(sql, params.iter().map(Param::kind));
            done = work(&mut statement, &mut count);
            if !matches!(done, Ok(Ok(()))) {
                break;
            }
        }
        let took = watch.elapsed();
        drop(statement);
        if self.statements.count(numbering.counters(), took, count) {
            self.keep_slow(numbering.counters(), sql, &[], took, count);
        }
        done.map_err(|error| self.met(error))?
    }

    fn keep_slow(
        &self,
        counters: &Statement,
        sql: Sql<'_>,
        params: &[Param<'_>],
        took: Duration,
        rows: u64,
    ) {
        let call = SlowCall {
            at: Clock::system().now(),
            statement: sql.name().into(),
            took,
            rows,
            caller: self.caller.as_ref().map(|caller| caller.what()),
            caller_id: self.caller.as_ref().map(|caller| caller.id()),
            params: self
                .statements
                .shows_params()
                .then(|| params.iter().map(Param::shown).collect()),
        };
        self.statements
            .keep_slow(counters, call, || codes::plan(self.conn, sql.text));
    }
}

/// Runs `work`; a panic is an error of its own.
pub(super) fn unless_it_panics<T, E: From<StoreError>>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic".to_owned());
        Err(E::from(StoreError::Panicked(text)))
    })
}

/// Statements whose numbering a thread remembers; beyond it, it begins anew.
const NUMBERINGS_MAX: usize = 1_024;

/// Which of the parameters each place of a statement takes, from 0. SQLite takes `$1` for a name and numbers
/// names by first appearance, so the number must be read from the name; which for a statement with many is
/// a good part of its cost, and is therefore done once.
struct Numbering {
    sql: Box<str>,
    places: Box<[usize]>,
    /// Counters of the statement in the database of this number.
    counters: (usize, Arc<Statement>),
}

impl Numbering {
    /// Binds `$n` to `params[n - 1]`.
    fn bind(
        &self,
        statement: &mut CachedStatement<'_>,
        params: &[Param<'_>],
    ) -> Result<(), StoreError> {
        for (index, place) in (1..).zip(&self.places) {
            let param = params.get(*place).ok_or_else(|| {
                StoreError::Bug(format!("no value for placeholder ${}", place + 1))
            })?;
            statement.raw_bind_parameter(index, param)?;
        }
        Ok(())
    }

    fn counters(&self) -> &Statement {
        &self.counters.1
    }
}

thread_local! {
    /// By where a statement's text stands in memory: most stand there for ever. The text itself is
    /// compared as well, for one that was put together may give its place to another.
    static NUMBERINGS: RefCell<HashMap<(usize, usize), Rc<Numbering>>> = RefCell::new(HashMap::new());
}

/// The numbering of a statement, and its counters.
fn numbering(
    statement: &CachedStatement<'_>,
    statements: &Statements,
    sql: Sql<'_>,
) -> Result<Rc<Numbering>, StoreError> {
    NUMBERINGS.with_borrow_mut(|known| {
        let key = (sql.text.as_ptr().addr(), sql.text.len());
        let is_known =
            |one: &Rc<Numbering>| one.counters.0 == statements.number() && *one.sql == *sql.text;
        if let Some(known) = known.get(&key).filter(|one| is_known(one)) {
            return Ok(Rc::clone(known));
        }
        let numbering = Rc::new(Numbering {
            sql: sql.text.into(),
            places: places(statement)?,
            counters: (statements.number(), statements.get(&sql.name(), sql.text)),
        });
        if known.len() >= NUMBERINGS_MAX {
            known.clear();
        }
        known.insert(key, Rc::clone(&numbering));
        Ok(numbering)
    })
}

fn places(statement: &CachedStatement<'_>) -> Result<Box<[usize]>, StoreError> {
    (1..=statement.parameter_count())
        .map(|index| {
            statement
                .parameter_name(index)
                .and_then(|name| name.strip_prefix('$'))
                .and_then(|digits| digits.parse::<usize>().ok())
                .and_then(|number| number.checked_sub(1))
                .ok_or_else(|| StoreError::Bug("a placeholder is not of the form $1".to_owned()))
        })
        .collect()
}
