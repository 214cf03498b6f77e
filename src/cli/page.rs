//! Text for people: figures in words, lines of at most 80 columns, colour only where it is wanted.

/// The width every page fits into.
pub(super) const WIDTH: usize = 80;

/// A word in colour, by how bad it is: 0 good, 1 to be looked at, 2 bad.
pub(super) fn painted(word: &str, badness: usize, colour: bool) -> String {
    let code = ["32", "33", "31"][badness.min(2)];
    if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() }
}

/// Seconds, in the largest unit that leaves a figure to read.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.9995 => format!("{:.0} ms", s * 1e3),
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} d", s / 86_400.0),
    }
}

/// Bytes, in the largest unit that leaves a figure to read.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => match bytes as f64 / unit as f64 {
            many if many >= 99.95 => format!("{many:.0} {name}"),
            few => format!("{few:.1} {name}"),
        },
        None => format!("{bytes} B"),
    }
}

/// Text cut to `width`, with a sign that it was.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width - 1).collect();
    format!("{kept}…")
}

/// Text without what a terminal would obey: a table's name may hold anything.
pub(super) fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}

/// Text broken at blanks into lines of at most [`WIDTH`], each behind `indent` blanks. A single word
/// that is longer stands on a line of its own, whole: it may be something to copy.
pub(super) fn wrapped(text: &str, indent: usize) -> Vec<String> {
    let margin = " ".repeat(indent);
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let taken = indent + line.chars().count() + 1 + word.chars().count();
            if !line.is_empty() && taken > WIDTH {
                lines.push(format!("{margin}{line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(format!("{margin}{line}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        for (value, expected) in [
            (0.42, "420 ms"),
            (0.0, "0 ms"),
            (1.04, "1.0 s"),
            (59.0, "59.0 s"),
            (600.0, "10 min"),
            (86_400.0, "24.0 h"),
            (1e6, "11.6 d"),
        ] {
            assert_eq!(seconds(value), expected);
        }
        for (value, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB")] {
            assert_eq!(bytes(value), expected);
        }
        assert_eq!(cut("abcdef", 4), "abc…");
    }

    #[test]
    fn lines_fit() {
        let text = "word ".repeat(60);
        let lines = wrapped(&text, 4);
        assert!(
            lines.len() > 3 && lines.iter().all(|line| line.len() <= WIDTH && line.starts_with("    word"))
        );
        assert_eq!(wrapped(&"x".repeat(100), 2), [format!("  {}", "x".repeat(100))]);
    }
}
