//! Durations and sizes, always with their unit: `10s`, `24h`, `8MiB`.

use std::time::Duration;

/// Reads a duration: a whole number and one of us, ms, s, m, h, d.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("`{text}` is no duration: expected a whole number and us, ms, s, m, h or d, as in 10s");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let micros = match unit {
        "us" => Some(number),
        "ms" => number.checked_mul(1000),
        "s" => number.checked_mul(1_000_000),
        "m" => number.checked_mul(60_000_000),
        "h" => number.checked_mul(3_600_000_000),
        "d" => number.checked_mul(86_400_000_000),
        _ => None,
    };
    micros.map(Duration::from_micros).ok_or_else(wrong)
}

/// Reads a size: a whole number and one of B, KiB, MiB, GiB.
///
/// # Errors
/// What was expected in its place.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size: expected a whole number and B, KiB, MiB or GiB, as in 8MiB");
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let bytes = match unit {
        "B" => Some(number),
        "KiB" => number.checked_mul(1 << 10),
        "MiB" => number.checked_mul(1 << 20),
        "GiB" => number.checked_mul(1 << 30),
        _ => None,
    };
    bytes.ok_or_else(wrong)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start()))
}

/// Writes a duration as it would be read, in the largest unit it is whole in.
pub(super) fn show_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros == 0 {
        return "0ms".to_owned();
    }
    let units =
        [(86_400_000_000, "d"), (3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1000, "ms")];
    let whole = units.into_iter().find(|(unit, _)| micros >= *unit && micros.is_multiple_of(*unit));
    let (unit, name) = whole.unwrap_or((1, "us"));
    format!("{}{name}", micros / unit)
}

/// Writes a size as it would be read, in the largest unit it is whole in.
pub(super) fn show_size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    let (unit, name) = whole.unwrap_or((1, "B"));
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("0ms", 0),
            ("250ms", 250),
            ("10s", 10_000),
            ("10 s", 10_000),
            (" 2m ", 120_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "10", "s", "-1s", "1.5s", "10 sec", "1h30m", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("1B", 1), ("900KiB", 921_600), ("8MiB", 8 << 20), ("1 GiB", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "8", "8MB", "8mib", "1.5MiB", "99999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        for text in ["200us", "250ms", "10s", "90s", "24h", "5m"] {
            let read = duration(text).unwrap();
            assert_eq!(duration(&show_duration(read)), Ok(read));
        }
        assert_eq!(show_duration(Duration::from_secs(86_400)), "1d");
        assert_eq!(show_duration(Duration::from_micros(200)), "200us");
        assert_eq!(show_duration(Duration::ZERO), "0ms");
        assert_eq!(show_size(900 << 10), "900KiB");
        assert_eq!(show_size(1000), "1000B");
    }
}
