//! Bars as SVG. A library would bring fonts and backends for a hundred lines of rectangles and text.

use std::fmt::Write as _;

use crate::figures::Chart;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 300.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 16.0;
const GAP: f64 = 4.0;
const COLOURS: [&str; 7] = ["#2f6fb5", "#7fb2e5", "#d9822b", "#9a9a9a", "#5b8f4e", "#a05195", "#c0392b"];

/// All charts below each other. Legible on light and dark pages: the ground is white.
pub(super) fn render(charts: &[Chart]) -> String {
    let mut body = String::new();
    let mut y = 10.0;
    for chart in charts {
        y = draw(&mut body, chart, y) + 24.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// One chart, from `y` on; returns where it ends.
fn draw(body: &mut String, chart: &Chart, mut y: f64) -> f64 {
    let bars = || chart.groups.iter().flat_map(|group| &group.bars);
    let most = bars().map(|(_, value)| *value).fold(0.0, f64::max);
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in bars() {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    y += 16.0;
    text(body, 10.0, y, "font-weight=\"bold\" font-size=\"14\"", &format!("{} ({})", chart.title, chart.unit));
    y += 10.0;
    for group in &chart.groups {
        y += 18.0;
        text(body, 10.0, y, "font-weight=\"bold\"", &group.title);
        y += 6.0;
        for (name, value) in &group.bars {
            let colour = names.iter().position(|other| other == name).unwrap_or(0) % COLOURS.len();
            let length = if most > 0.0 { (WIDTH - LEFT - RIGHT) * value.max(0.0) / most } else { 0.0 };
            text(body, LEFT - 8.0, y + BAR - 4.0, "text-anchor=\"end\"", name);
            let _ = writeln!(
                body,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{}\"/>",
                COLOURS[colour]
            );
            text(body, LEFT + length + 6.0, y + BAR - 4.0, "", &number(*value));
            y += BAR + GAP;
        }
    }
    y
}

fn text(body: &mut String, x: f64, y: f64, style: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"#222222\" {style}>{what}</text>");
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Group;

    #[test]
    fn bars_are_in_proportion_and_text_is_escaped() {
        let bars = vec![("a < b".to_owned(), 4.0), ("c".to_owned(), 2.0)];
        let chart =
            Chart { title: "speed".into(), unit: "Mpps".into(), groups: vec![Group { title: "1 flow".into(), bars }] };
        let svg = render(&[chart]);
        assert!(svg.contains("a &lt; b") && !svg.contains("a < b"));
        assert!(svg.contains("width=\"470.0\"") && svg.contains("width=\"235.0\""), "{svg}");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
