//! Schedules that were not made by the API: built into this program, or declared in the settings.
//!
//! Invariants: at each start the rows are brought in line with what is declared, and nothing is
//! written where nothing differs; what is declared in the settings is what they say, no more and no
//! less; a built-in schedule keeps the times that staff gave it; when a schedule fires next is
//! kept unless its times changed, so what was missed while the process was down is known.

use super::{Basis, Draft, Overlap, ScheduleError, Source, Spec, When, check_name, next_of, sql};
use crate::check::FieldError;
use crate::clock::Timestamp;
use crate::config;
use crate::store::{StoreError, Tx};
use crate::task::Handler;

/// A schedule of this program's own, for a built-in task that takes no arguments; it is called as
/// that task.
#[derive(Clone, Debug)]
pub struct BuiltIn {
    name: &'static str,
    when: When,
    soon_after_start: Option<u32>,
}

impl BuiltIn {
    /// A schedule of this task.
    pub fn of<H: Handler>(when: When) -> Self {
        Self {
            name: H::NAME,
            when,
            soon_after_start: None,
        }
    }

    /// Fires so many seconds after each start of the process, if it would fire later.
    #[must_use]
    pub fn soon_after_start(mut self, seconds: u32) -> Self {
        self.soon_after_start = Some(seconds);
        self
    }
}

/// A schedule that is to be there.
#[derive(Clone, Debug)]
pub struct Declared {
    name: String,
    source: Source,
    spec: Spec,
    soon_after_start: Option<u32>,
}

/// Why what is declared can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schedules.entries.{name}: {}", faults.iter().map(|fault| format!("{} {}", fault.field, fault.reason)).collect::<Vec<_>>().join("; "))]
pub struct NotDeclarable {
    /// Which schedule.
    pub name: String,
    /// What is wrong with it.
    pub faults: Vec<FieldError>,
}

/// Everything that is declared, checked. An entry of the settings that is called as a built-in
/// schedule gives that one other times.
pub fn declarations(
    basis: &Basis,
    now: Timestamp,
    built_ins: &[BuiltIn],
) -> Result<Vec<Declared>, NotDeclarable> {
    let mut all = Vec::new();
    let mut entries = basis.rules.entries.clone();
    for built_in in built_ins {
        let base = Draft {
            task: Some(built_in.name.to_owned()),
            overlap: Some(Overlap::Skip.word().to_owned()),
            cron: match &built_in.when {
                When::Cron(cron) => Some(cron.clone()),
                When::Every(_) => None,
            },
            interval_seconds: match &built_in.when {
                When::Cron(_) => None,
                When::Every(seconds) => Some(*seconds),
            },
            ..Draft::default()
        };
        let entry = entries.remove(built_in.name).unwrap_or_default();
        let spec = built_in_spec(basis, now, base, &entry).map_err(|faults| NotDeclarable {
            name: built_in.name.to_owned(),
            faults,
        })?;
        all.push(Declared {
            name: built_in.name.to_owned(),
            source: Source::BuiltIn,
            spec,
            soon_after_start: built_in.soon_after_start,
        });
    }
    for (name, entry) in &entries {
        let spec = entry_spec(basis, now, name, entry).map_err(|faults| NotDeclarable {
            name: name.clone(),
            faults,
        })?;
        all.push(Declared {
            name: name.clone(),
            source: Source::Settings,
            spec,
            soon_after_start: None,
        });
    }
    Ok(all)
}

fn built_in_spec(
    basis: &Basis,
    now: Timestamp,
    base: Draft,
    entry: &config::ScheduleEntry,
) -> Result<Spec, Vec<FieldError>> {
    let draft = Draft::from(entry);
    let fixed = draft.task_fields();
    if !fixed.is_empty() {
        return Err(fixed
            .into_iter()
            .map(|field| FieldError::new(field, "can't be set: the schedule is built in"))
            .collect());
    }
    let base = base.spec(None, &basis.rules)?;
    let spec = draft.spec(Some(&base), &basis.rules)?;
    spec.check(basis, now)?;
    Ok(spec)
}

fn entry_spec(
    basis: &Basis,
    now: Timestamp,
    name: &str,
    entry: &config::ScheduleEntry,
) -> Result<Spec, Vec<FieldError>> {
    check_name(name)?;
    let spec = Draft::from(entry).spec(None, &basis.rules)?;
    spec.check(basis, now)?;
    Ok(spec)
}

/// What has to be written for a schedule to be as it is declared.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Insert(Declared),
    Update(Declared),
    /// To fire sooner than it stands: from when, to when.
    Hasten(String, Timestamp, Timestamp),
    Remove(String),
}

/// What differs between the rows and what is declared.
pub(super) fn differences(
    tx: &mut Tx<'_>,
    now: Timestamp,
    declared: &[Declared],
) -> Result<Vec<Step>, ScheduleError> {
    let mut steps = Vec::new();
    let mut after = String::new();
    loop {
        let page = sql::page(tx, &after, super::fire::PAGE)?;
        let Some(last) = page.last() else {
            break;
        };
        last.name.clone_into(&mut after);
        for row in page {
            let is_declared = declared.iter().any(|declared| declared.name == row.name);
            match row.source {
                Source::Api => {}
                Source::Settings | Source::BuiltIn if is_declared => {}
                Source::Settings | Source::BuiltIn => steps.push(Step::Remove(row.name)),
            }
        }
    }
    for declared in declared {
        let Some(row) = sql::get(tx, &declared.name)? else {
            steps.push(Step::Insert(declared.clone()));
            continue;
        };
        let mut wanted = declared.clone();
        if row.is_edited && row.source == declared.source {
            wanted.spec = Spec {
                task: wanted.spec.task,
                args: wanted.spec.args,
                queue: wanted.spec.queue,
                priority: wanted.spec.priority,
                max_attempts: wanted.spec.max_attempts,
                timeout_ms: wanted.spec.timeout_ms,
                ..row.spec.clone()
            };
        }
        if row.spec != wanted.spec || row.source != wanted.source {
            steps.push(Step::Update(wanted));
        } else if let (Some(seconds), Some(next)) = (declared.soon_after_start, row.next_run_at) {
            let soon = soon_of(now, seconds);
            if soon < next {
                steps.push(Step::Hasten(row.name, next, soon));
            }
        }
    }
    Ok(steps)
}

fn soon_of(now: Timestamp, seconds: u32) -> Timestamp {
    let soon = now.plus_seconds(i64::from(seconds));
    Timestamp(soon.0.div_euclid(1_000_000) * 1_000_000)
}

/// Brings the rows in line with what is declared.
pub(super) fn apply(
    tx: &mut Tx<'_>,
    now: Timestamp,
    basis: &Basis,
    declared: &[Declared],
) -> Result<(), ScheduleError> {
    for step in differences(tx, now, declared)? {
        match step {
            Step::Insert(Declared {
                name,
                source,
                spec,
                soon_after_start,
            }) => {
                let rule = spec.check(basis, now).map_err(ScheduleError::Invalid)?;
                let mut next = rule.next_after(now, now);
                if let Some(seconds) = soon_after_start {
                    next = next.map(|next| next.min(soon_of(now, seconds)));
                }
                super::insert(tx, now, basis, &name, source, &spec, None, next)?;
            }
            Step::Update(Declared {
                name, source, spec, ..
            }) => {
                let rule = spec.check(basis, now).map_err(ScheduleError::Invalid)?;
                let Some(row) = sql::get(tx, &name)? else {
                    return Err(StoreError::Bug(format!("schedule {name} went away")).into());
                };
                if row.source == Source::Api {
                    tracing::warn!(name, "a schedule of the API is declared now, and replaced");
                }
                let is_edited = row.is_edited && row.source == source;
                let next = next_of(now, &row, &spec, &rule);
                sql::update(tx, now, &name, source, &spec, is_edited, next)?;
            }
            Step::Hasten(name, from, to) => {
                sql::advance(tx, &name, from, Some(to))?;
            }
            Step::Remove(name) => sql::remove(tx, &name)?,
        }
    }
    Ok(())
}
