//! Throughput against p99, drawn as SVG: one panel for each scenario at fixed rates, one line
//! for each server. Across: answers per second; upwards: p99 in microseconds, by decades.
//! Thin uprights show what the rounds lay between.

use std::fmt::Write;

use super::results::{Open, Report};
use super::scenarios::Scenario;

const WIDTH: f64 = 860.0;
const PANEL_HEIGHT: f64 = 420.0;

/// The plotted area of a panel.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 680.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 360.0;

/// Told apart by those who do not see all colours (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#56b4e9", "#000000", "#999999", "#d55e00", "#009e73", "#e69f00", "#cc79a7",
];

impl Report {
    /// The picture; `None` when nothing was measured at a fixed rate.
    pub fn svg(&self) -> Option<String> {
        let open = self.scenarios.iter().filter(|scenario| {
            let mut rows = self.open.iter();
            rows.any(|row| row.scenario == scenario.name)
        });
        let panels: Vec<&&Scenario> = open.collect();
        if panels.is_empty() {
            return None;
        }
        let height = PANEL_HEIGHT * panels.len() as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        for (index, scenario) in panels.iter().enumerate() {
            let rows = self.open.iter();
            let rows = rows.filter(|row| row.scenario == scenario.name).collect();
            let panel = Panel::new(rows);
            let offset = PANEL_HEIGHT * index as f64;
            let title = escape(&format!("{}: {}", scenario.name, scenario.describe()));
            // Writing to a string cannot fail.
            let _ = writeln!(out, "<g transform=\"translate(0 {offset})\">");
            let _ = panel.write(&title, &mut out);
            let _ = writeln!(out, "</g>");
        }
        out.push_str("</svg>\n");
        Some(out)
    }
}

struct Panel<'a> {
    rows: Vec<&'a Open>,
    across_max: f64,
    /// The decades shown, as powers of ten.
    decades: (i32, i32),
}

impl<'a> Panel<'a> {
    fn new(rows: Vec<&'a Open>) -> Self {
        let most = rows.iter().map(|row| row.answered_per_s.median);
        let across_max = most.fold(1.0, f64::max);
        let least = rows.iter().map(|row| row.p99_us.min.max(1.0));
        let lowest = least.fold(f64::INFINITY, f64::min).log10().floor() as i32;
        let most = rows.iter().map(|row| row.p99_us.max.max(1.0));
        let highest = most.fold(1.0, f64::max).log10().ceil() as i32;
        Self {
            rows,
            across_max,
            decades: (lowest, highest.max(lowest + 1)),
        }
    }

    fn x(&self, per_s: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * per_s / self.across_max
    }

    fn y(&self, us: f64) -> f64 {
        let (lowest, highest) = self.decades;
        let share = (us.max(1.0).log10() - f64::from(lowest)) / f64::from(highest - lowest);
        BOTTOM - (BOTTOM - TOP) * share
    }

    fn write(&self, title: &str, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"25\" font-size=\"14\">{title}</text>"
        )?;
        self.write_axes(out)?;
        let mut servers: Vec<&str> = self.rows.iter().map(|row| row.server).collect();
        let mut seen = std::collections::BTreeSet::new();
        servers.retain(|server| seen.insert(*server));
        for (index, server) in servers.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            self.write_line(server, colour, out)?;
            let (y, x) = (TOP + 20.0 * index as f64, RIGHT + 20.0);
            writeln!(
                out,
                "<rect x=\"{x}\" y=\"{}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"{}\">{}</text>",
                y - 2.0,
                x + 20.0,
                y + 4.0,
                escape(server)
            )?;
        }
        Ok(())
    }

    fn write_axes(&self, out: &mut String) -> std::fmt::Result {
        for decade in self.decades.0..=self.decades.1 {
            let us = 10_f64.powi(decade);
            let y = self.y(us);
            writeln!(
                out,
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#dddddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{us}</text>",
                LEFT - 8.0,
                y + 4.0
            )?;
        }
        let step = tick(self.across_max);
        let count = (self.across_max / step) as u32;
        for per_s in (0..=count).map(|index| f64::from(index) * step) {
            let x = self.x(per_s);
            writeln!(
                out,
                "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"#eeeeee\"/>\
                 <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{per_s}</text>",
                BOTTOM + 18.0
            )?;
        }
        let (middle, half) = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
        writeln!(
            out,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">answers/s</text>\
             <text x=\"18\" y=\"{half}\" text-anchor=\"middle\" \
             transform=\"rotate(-90 18 {half})\">p99, us from when a request was due</text>",
            BOTTOM + 38.0
        )
    }

    fn write_line(&self, server: &str, colour: &str, out: &mut String) -> std::fmt::Result {
        let rows = self.rows.iter().filter(|row| row.server == server);
        let mut line = String::new();
        for row in rows {
            let (x, y) = (self.x(row.answered_per_s.median), self.y(row.p99_us.median));
            write!(line, "{x:.1},{y:.1} ")?;
            writeln!(
                out,
                "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"{colour}\" stroke-opacity=\"0.5\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>",
                self.y(row.p99_us.min),
                self.y(row.p99_us.max)
            )?;
        }
        writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.trim_end()
        )
    }
}

/// A step of 1, 2 or 5 times a power of ten that fits 4 to 10 times.
fn tick(most: f64) -> f64 {
    let power = 10_f64.powf(most.log10().floor());
    match most / power {
        times if times >= 5.0 => power,
        times if times >= 2.0 => power / 2.0,
        _ => power / 5.0,
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::Summary;
    use super::*;

    fn row(server: &'static str, per_s: f64, p99_us: f64) -> Open {
        let flat = |value| Summary {
            median: value,
            min: value * 0.9,
            max: value * 1.1,
        };
        Open {
            scenario: "rate-get",
            server,
            offered_per_s: per_s as u32,
            answered_per_s: flat(per_s),
            server_cpu_us: flat(1.0),
            server_waited_percent: flat(0.0),
            p50_us: flat(1.0),
            p99_us: flat(p99_us),
            p999_us: flat(p99_us),
            max_us: flat(p99_us),
            late_p99_us: flat(1.0),
            unanswered: flat(0.0),
        }
    }

    #[test]
    fn all_points_lie_in_the_panel_and_slower_is_higher() {
        let rows = [row("a", 20_000.0, 40.0), row("a", 140_000.0, 90_000.0)];
        let panel = Panel::new(rows.iter().collect());
        for row in &rows {
            let (x, y) = (panel.x(row.answered_per_s.median), panel.y(row.p99_us.max));
            assert!((LEFT..=RIGHT).contains(&x) && (TOP..=BOTTOM).contains(&y));
        }
        assert!(panel.y(90_000.0) < panel.y(40.0));
        assert_eq!(panel.decades, (1, 5));
    }

    #[test]
    fn each_server_has_a_line() {
        let rows = [row("a", 1.0, 1.0), row("b", 2.0, 5.0), row("a", 3.0, 7.0)];
        let mut out = String::new();
        Panel::new(rows.iter().collect())
            .write("t", &mut out)
            .unwrap();
        assert_eq!(out.matches("<polyline").count(), 2);
        assert_eq!(out.matches("<circle").count(), 3);
    }

    #[test]
    fn ticks_are_round_numbers() {
        for (most, step) in [(140_000.0, 20_000.0), (812_000.0, 100_000.0), (3.0, 0.5)] {
            assert!((tick(most) - step).abs() < step * 1e-9, "{most}");
        }
    }
}
