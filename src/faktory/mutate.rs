//! What is done to whole sets of jobs: kill, requeue, discard, clear.
//!
//! Invariants: only queues that are open to workers are touched; a set is walked in pages, read
//! without holding up writes and changed by conditional updates, so a job that moved on meanwhile
//! stays as it is; a pattern takes a bounded time.

use serde::Deserialize;

use super::Refused;
use super::job::{of_task, open_queue};
use crate::task::external;
use crate::task::{
    Changes, Filter, Task, TaskError, TaskId, TaskState, Tasks, cancel, find, list, remove,
    retry_task,
};

/// Longest pattern, and most job ids, of one command.
const PATTERN_CHARS_MAX: usize = 1_000;
const JIDS_MAX: usize = 10_000;

/// A command.
#[derive(Debug, Deserialize)]
pub(super) struct Operation {
    cmd: String,
    target: String,
    #[serde(default)]
    filter: Option<Selection>,
}

/// Which jobs; what is absent or empty selects all.
#[derive(Debug, Default, Deserialize)]
struct Selection {
    #[serde(default)]
    jids: Option<Vec<String>>,
    #[serde(default)]
    regexp: Option<String>,
    #[serde(default)]
    jobtype: Option<String>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Kill,
    Requeue,
    Discard,
}

fn refused<T>(why: &str) -> Result<T, Refused> {
    Err(Refused::Invalid(why.to_owned()))
}

/// Does it to every job of the set that is selected.
pub(super) async fn mutate(tasks: &Tasks, operation: &Operation) -> Result<(), Refused> {
    let all = Selection::default();
    let (act, filter) = match operation.cmd.as_str() {
        "clear" => (Act::Discard, &all),
        "kill" => (Act::Kill, operation.filter.as_ref().unwrap_or(&all)),
        "requeue" => (Act::Requeue, operation.filter.as_ref().unwrap_or(&all)),
        "discard" => (Act::Discard, operation.filter.as_ref().unwrap_or(&all)),
        _ => return refused("unknown mutate operation"),
    };
    let state = match operation.target.as_str() {
        "scheduled" => TaskState::Scheduled,
        "retries" | "retry" => TaskState::Retryable,
        "dead" => TaskState::Discarded,
        _ => return refused("invalid target for mutation command"),
    };
    let pattern = filter.regexp.as_deref().filter(|text| !text.is_empty());
    if pattern.is_some_and(|text| text.chars().count() > PATTERN_CHARS_MAX) {
        return refused("the pattern is too long");
    }
    let jids = filter.jids.as_deref().filter(|jids| !jids.is_empty());
    if let Some(jids) = jids {
        if jids.len() > JIDS_MAX {
            return refused("too many jids");
        }
        return by_jids(tasks, act, state, jids, filter).await;
    }
    let name = filter.jobtype.clone().filter(|name| !name.is_empty());
    walk(tasks, act, state, None, name, pattern).await
}

/// Throws away all that waits in a queue for a worker.
pub(super) async fn remove_queue(tasks: &Tasks, queue: &str) -> Result<(), Refused> {
    let (act, state) = (Act::Discard, TaskState::Available);
    walk(tasks, act, state, Some(queue.to_owned()), None, None).await
}

async fn by_jids(
    tasks: &Tasks,
    act: Act,
    state: TaskState,
    jids: &[String],
    filter: &Selection,
) -> Result<(), Refused> {
    for part in jids.chunks(tasks.rules().bulk_tasks_max.max(1) as usize) {
        let (part, name) = (part.to_vec(), filter.jobtype.clone());
        let name = name.filter(|name| !name.is_empty());
        let pattern = filter.regexp.clone().filter(|text| !text.is_empty());
        let ids = tasks
            .store()
            .read(move |tx| {
                let mut ids = Vec::new();
                for jid in &part {
                    let Some(found) = external::find_external(tx, jid)? else {
                        continue;
                    };
                    let Some(task) = find(tx, found.id)? else {
                        continue;
                    };
                    let fits = task.state == state
                        && open_queue(&task.queue).is_ok()
                        && name.as_ref().is_none_or(|name| *name == task.name)
                        && matches(tx, &task, pattern.as_deref())?;
                    if fits {
                        ids.push(found.id);
                    }
                }
                Ok::<_, Refused>(ids)
            })
            .await?;
        apply(tasks, act, state, ids).await?;
    }
    Ok(())
}

async fn walk(
    tasks: &Tasks,
    act: Act,
    state: TaskState,
    queue: Option<String>,
    name: Option<String>,
    pattern: Option<&str>,
) -> Result<(), Refused> {
    let mut before = None;
    loop {
        let filter = Filter {
            state: Some(state),
            queue: queue.clone(),
            name: name.clone(),
            before,
            limit: tasks.rules().bulk_tasks_max.max(1),
        };
        let pattern = pattern.map(str::to_owned);
        let (ids, next) = tasks
            .store()
            .read(move |tx| {
                let (page, next) = list(tx, &filter)?;
                let mut ids = Vec::new();
                for task in &page {
                    if open_queue(&task.queue).is_ok() && matches(tx, task, pattern.as_deref())? {
                        ids.push(task.id);
                    }
                }
                Ok::<_, Refused>((ids, next))
            })
            .await?;
        apply(tasks, act, state, ids).await?;
        match next {
            Some(id) => before = Some(id),
            None => return Ok(()),
        }
    }
}

fn matches(
    tx: &mut crate::store::Tx<'_>,
    task: &Task,
    pattern: Option<&str>,
) -> Result<bool, Refused> {
    let Some(pattern) = pattern.filter(|pattern| *pattern != "*") else {
        return Ok(true);
    };
    let external_id = external::external_id(tx, task.id)?;
    let text = of_task(task, external_id.as_deref())?;
    Ok(glob(pattern.as_bytes(), text.as_bytes()))
}

async fn apply(tasks: &Tasks, act: Act, state: TaskState, ids: Vec<TaskId>) -> Result<(), Refused> {
    if ids.is_empty() {
        return Ok(());
    }
    let now = tasks.clock().now();
    tasks
        .change(move |tx| {
            let mut changes = Changes::default();
            for &id in &ids {
                // It may have moved on since it was read.
                if external::state(tx, id)?.map(|(now, _)| now) != Some(state) {
                    continue;
                }
                let done = match (act, state) {
                    (Act::Kill, TaskState::Discarded) => continue,
                    (Act::Kill, _) => external::kill(tx, now, id, "killed by hand"),
                    (Act::Requeue, _) => retry_task(tx, now, id),
                    (Act::Discard, TaskState::Discarded) => {
                        remove(tx, id).map(|()| Changes::default())
                    }
                    (Act::Discard, _) => cancel(tx, now, id),
                };
                match done {
                    Ok(more) => changes.add(more),
                    Err(TaskError::State(_) | TaskError::NotFound(_) | TaskError::KeyHeld(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(((), changes))
        })
        .await?;
    Ok(())
}

/// Whether a pattern of Redis's kind fits a whole text: `*`, `?`, `[a-z]`, `[^a]`, `\x`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // The last `*`, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        match one(&pattern[p..], text[t]) {
            Some(used) => {
                p += used;
                t += 1;
            }
            None => match star {
                Some((after, taken)) => {
                    star = Some((after, taken + 1));
                    p = after;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Whether the pattern's first element fits a byte; answers how long that element is.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', inside @ ..] => {
            let is_not = inside.first() == Some(&b'^');
            let mut at = usize::from(is_not);
            let mut fits = false;
            while let Some(&from) = inside.get(at) {
                if from == b']' {
                    return (fits != is_not).then_some(at + 2);
                }
                let from = match (from, inside.get(at + 1)) {
                    (b'\\', Some(&escaped)) => {
                        at += 1;
                        escaped
                    }
                    (plain, _) => plain,
                };
                match (inside.get(at + 1), inside.get(at + 2)) {
                    (Some(b'-'), Some(&to)) if to != b']' => {
                        fits |= (from.min(to)..=from.max(to)).contains(&byte);
                        at += 3;
                    }
                    _ => {
                        fits |= from == byte;
                        at += 1;
                    }
                }
            }
            None // it never ends
        }
        [plain, ..] => (*plain == byte).then_some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_redis() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*uid:12*", r#"{"args":["uid:123"]}"#, true),
            ("*uid:13*", r#"{"args":["uid:123"]}"#, false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a[bx-z]c", "ayc", true),
            ("a[bx-z]c", "aac", false),
            ("a[^b]c", "abc", false),
            ("a[^b]c", "acc", true),
            (r"a\*c", "abc", false),
            (r"a\*c", "a*c", true),
            (r"*\[1\]*", "x[1]y", true),
            ("a[b", "ab", false),
            ("a**", "a", true),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("*a*b*d", "xxaxxbxxbc", false),
        ] {
            let found = glob(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, fits, "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_a_bounded_time() {
        let pattern = "a*".repeat(PATTERN_CHARS_MAX / 2) + "b";
        let text = "a".repeat(65_536);
        assert!(!glob(pattern.as_bytes(), text.as_bytes()));
    }
}
