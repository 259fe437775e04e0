//! When a node wrote a line of its log, by its own clock. What a test polls for
//! it sees late; the stamp says when it happened.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long after `began` the line was written. Lines of less than a day.
///
/// # Panics
/// When the line does not begin with an RFC 3339 time in UTC.
#[must_use]
pub fn since(began: SystemTime, line: &str) -> Duration {
    let at = time_of_day(line).unwrap_or_else(|| panic!("no time in {line:?}"));
    let of_day = Duration::from_secs(began.duration_since(UNIX_EPOCH).unwrap().as_secs() % DAY.as_secs())
        + Duration::from_nanos(began.duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into());
    // A stamp has microseconds only, and midnight may lie between.
    let from = of_day - Duration::from_nanos((of_day.subsec_nanos() % 1000).into());
    if at >= from { at - from } else { at + DAY - from }
}

/// Of `2026-11-22T11:50:07.123456Z  INFO …`, the time since midnight.
fn time_of_day(line: &str) -> Option<Duration> {
    let (stamp, _) = line.split_once('Z')?;
    let (_, time) = stamp.split_once('T')?;
    let mut parts = time.split(':');
    let mut whole = || parts.next()?.parse::<u64>().ok();
    let (hours, minutes) = (whole()?, whole()?);
    let (seconds, micros) = parts.next()?.split_once('.')?;
    if micros.len() != 6 {
        return None;
    }
    let seconds = hours * 3600 + minutes * 60 + seconds.parse::<u64>().ok()?;
    Some(Duration::from_secs(seconds) + Duration::from_micros(micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_placed_after_a_moment() {
        // 1970-01-02 00:00:01.5 and some nanoseconds.
        let began = UNIX_EPOCH + DAY + Duration::from_nanos(1_500_000_900);
        assert_eq!(since(began, "1970-01-02T00:00:01.500000Z  INFO x"), Duration::ZERO);
        assert_eq!(since(began, "1970-01-02T01:02:03.000004Z  INFO x"), Duration::from_micros(3_721_500_004));
        let late = UNIX_EPOCH + DAY - Duration::from_secs(1);
        assert_eq!(since(late, "1970-01-02T00:00:01.000000Z  INFO x"), Duration::from_secs(2));
        assert_eq!(time_of_day("INFO no time Z"), None);
    }
}
