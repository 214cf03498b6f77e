//! Bars, drawn as SVG by hand: one file, no script, readable on light and dark.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const ROW: f64 = 22.0;
const LABELS: f64 = 260.0;
const HEAD: f64 = 46.0;

/// A bar a line, in the order given; ours stand out.
pub fn bars(title: &str, unit: &str, bars: &[(String, f64)]) -> String {
    let largest = bars.iter().map(|bar| bar.1).fold(f64::MIN_POSITIVE, f64::max);
    let height = HEAD + ROW * bars.len() as f64 + 12.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">
<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>
<text x=\"12\" y=\"20\" font-size=\"15\" fill=\"#1b1f24\">{}</text>
<text x=\"12\" y=\"37\" fill=\"#57606a\">{}</text>
",
        escaped(title),
        escaped(unit)
    );
    for (at, (label, value)) in bars.iter().enumerate() {
        let y = HEAD + ROW * at as f64;
        let length = (WIDTH - LABELS - 90.0) * value / largest;
        let colour = if label.contains("landfall") { "#0a7d5a" } else { "#9aa4af" };
        let shown = if *value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
        let (middle, end) = (y + 15.0, LABELS + length + 6.0);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" fill=\"#1b1f24\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{end:.1}\" y=\"{middle}\" fill=\"#1b1f24\">{shown}</text>",
            LABELS - 8.0,
            escaped(label),
            y + 3.0,
            ROW - 6.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
