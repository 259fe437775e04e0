//! What a process has used, from /proc.

use std::fs;

/// CPU seconds (user and system, all threads) of a process so far.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The command name is in parentheses and may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

/// Resident bytes of a process.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    field(pid, "VmRSS:")
}

/// Highest number of resident bytes a process has had.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn resident_peak_bytes(pid: u32) -> u64 {
    field(pid, "VmHWM:")
}

fn field(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
