//! Durations, amounts and counts in words, and text from anywhere in one safe line.

use std::time::Duration;

/// Returns `duration` as a person says it: `0.4 s`, `22 s`, `6 min 31 s`, `1 h 2 min`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 10 {
        return format!("{:.1} s", duration.as_secs_f64());
    }
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Returns `bytes` in the binary unit that fits, with three digits or so: `12 B`, `1.4 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 999.5 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(amount < 99.95);
    format!("{amount:.digits$} {}", UNITS[unit])
}

/// Returns `1 step`, `2 steps`.
pub fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// Returns how much of `total` is done, from 0 to 100.
pub fn percent(done: u64, total: u64) -> u64 {
    if total == 0 {
        return 100;
    }
    let percent = u128::from(done.min(total)) * 100 / u128::from(total);
    u64::try_from(percent).expect("at most 100")
}

/// Returns `text` in one line, with nothing in it that could drive a terminal.
pub fn one_line(text: &str) -> String {
    crate::event::printable(text).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_a_person_says_them() {
        for (millis, said) in [
            (0, "0.0 s"),
            (420, "0.4 s"),
            (9_900, "9.9 s"),
            (22_900, "22 s"),
            (391_000, "6 min 31 s"),
            (3_725_000, "1 h 2 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), said);
        }
    }

    #[test]
    fn amounts_are_short_at_every_size() {
        for (amount, said) in [
            (12, "12 B"),
            (1024, "1.0 KiB"),
            (1_023_000, "999 KiB"),
            (1_023_999, "1.0 MiB"),
            (1_503_238_553, "1.4 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(bytes(amount), said);
        }
    }

    #[test]
    fn a_part_never_exceeds_the_whole() {
        assert_eq!(percent(0, 0), 100);
        assert_eq!(percent(u64::MAX, 3), 100);
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX - 1, u64::MAX), 99);
    }

    #[test]
    fn text_of_a_guest_is_one_line_and_drives_no_terminal() {
        let line = one_line("a\x1b[2Jb\nc\td\x07\u{9b}31m");
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}
