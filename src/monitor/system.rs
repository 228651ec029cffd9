//! Load of the machine and of this process, read from `/proc` when they are asked for.
//!
//! Invariant: a value that can't be read (another system, a sandbox) is absent, never invented.

use parking_lot::Mutex;

/// Remembers the last reading, because processor use is a difference.
#[derive(Debug, Default)]
pub(super) struct System {
    last_cpu: Mutex<Option<CpuTimes>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CpuTimes {
    total: u64,
    idle: u64,
}

/// What could be read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    pub(super) cpu_percent: Option<f64>,
    pub(super) memory_percent: Option<f64>,
    pub(super) resident_bytes: Option<i64>,
}

impl System {
    pub(super) fn read(&self) -> Reading {
        let file = |path: &str| std::fs::read_to_string(path).ok();
        Reading {
            cpu_percent: file("/proc/stat")
                .as_deref()
                .and_then(parse_cpu)
                .and_then(|now| self.since_last(now)),
            memory_percent: file("/proc/meminfo").as_deref().and_then(parse_memory),
            resident_bytes: Self::resident_bytes(),
        }
    }

    /// Memory of this process alone.
    pub(super) fn resident_bytes() -> Option<i64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        parse_resident(&status)
    }

    fn since_last(&self, now: CpuTimes) -> Option<f64> {
        // The first reading counts from the start of the machine.
        let last = self
            .last_cpu
            .lock()
            .replace(now)
            .unwrap_or(CpuTimes { total: 0, idle: 0 });
        let total = now
            .total
            .checked_sub(last.total)
            .filter(|total| *total > 0)?;
        let idle = now.idle.saturating_sub(last.idle).min(total);
        Some(100.0 * (total - idle) as f64 / total as f64)
    }
}

/// Memory of a process in MB.
pub fn resident_mb(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    Some(parse_resident(&status)? as f64 / 1e6)
}

fn parse_cpu(stat: &str) -> Option<CpuTimes> {
    let fields: Vec<u64> = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is inside user time already.
    let total = fields.iter().take(8).sum();
    let idle = fields.get(3)? + fields.get(4).copied().unwrap_or_default();
    Some(CpuTimes { total, idle })
}

fn parse_memory(meminfo: &str) -> Option<f64> {
    let total = kib(meminfo, "MemTotal:")?;
    let available = kib(meminfo, "MemAvailable:")?;
    (total > 0).then(|| 100.0 * total.saturating_sub(available) as f64 / total as f64)
}

fn parse_resident(status: &str) -> Option<i64> {
    i64::try_from(kib(status, "VmRSS:")? * 1_024).ok()
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_use_is_what_happened_between_two_readings() {
        let system = System::default();
        let at = |stat: &str| system.since_last(parse_cpu(stat).expect("valid"));
        assert_eq!(at("cpu  50 0 25 20 5 0 0 0 0 0\n"), Some(75.0));
        assert_eq!(at("cpu  60 0 25 40 5 0 0 0 0 0\n"), Some(100.0 / 3.0));
        assert_eq!(at("cpu  60 0 25 40 5 0 0 0 0 0\n"), None);
    }

    #[test]
    fn memory_in_use_is_what_is_not_available() {
        assert_eq!(
            parse_memory("MemTotal: 200 kB\nMemFree: 1 kB\nMemAvailable: 150 kB\n"),
            Some(25.0)
        );
        assert_eq!(parse_memory("nonsense"), None);
        assert_eq!(parse_resident("Name: x\nVmRSS:\t  2 kB\n"), Some(2_048));
    }
}
