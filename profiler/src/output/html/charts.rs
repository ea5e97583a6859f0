//! Charts, as pictures in the page (SVG): no script, nothing to load. Text in them is escaped by the template.

use maud::{Markup, html};

/// Size of a chart, in the units of its own coordinates.
const SIZE: (f64, f64) = (560.0, 240.0);
/// Room around it: left, right, top, bottom.
const ROOM: (f64, f64, f64, f64) = (64.0, 12.0, 12.0, 28.0);
/// Colours of lines and parts, in order.
pub const COLOURS: [&str; 8] =
    ["#2f6feb", "#e0663f", "#2a9d74", "#8b5cf6", "#d4a017", "#c2417f", "#0e8fa8", "#7a8594"];

/// A line over time.
pub struct Line {
    /// What it is.
    pub name: String,
    /// Seconds since the start, and values.
    pub points: Vec<(f64, f64)>,
}

/// What is expected of a line after its end.
pub struct Forecast {
    /// Where it begins: seconds, value.
    pub from: (f64, f64),
    /// Growth in a second: lower bound, estimate, upper bound.
    pub by_s: (f64, f64, f64),
    /// Where it ends, seconds.
    pub to_s: f64,
}

/// A chart of lines.
pub struct Lines<'a> {
    /// The lines.
    pub lines: &'a [Line],
    /// How each goes on, if that is known, by their positions.
    pub forecasts: &'a [Option<Forecast>],
    /// What must not be reached, with its name.
    pub limit: Option<(f64, String)>,
    /// How a value is written.
    pub unit: fn(f64) -> String,
}

/// One event: when it began, s; how long it took, s; and its colour.
pub type Spike = (f64, f64, &'static str);

struct Scale {
    x: (f64, f64),
    y: f64,
}

impl Scale {
    fn x(&self, at: f64) -> f64 {
        let (from, to) = self.x;
        ROOM.0 + (SIZE.0 - ROOM.0 - ROOM.1) * ((at - from) / (to - from).max(1e-9)).clamp(0.0, 1.0)
    }

    fn y(&self, value: f64) -> f64 {
        SIZE.1 - ROOM.3 - (SIZE.1 - ROOM.2 - ROOM.3) * (value / self.y).clamp(0.0, 1.0)
    }

    fn path(&self, points: &[(f64, f64)]) -> String {
        let each = points.iter().map(|&(x, y)| format!("{:.1},{:.1}", self.x(x), self.y(y)));
        each.collect::<Vec<_>>().join(" ")
    }
}

/// Lines over time, from zero up, with what is expected of them.
pub fn lines(of: &Lines<'_>) -> Markup {
    let points = || of.lines.iter().flat_map(|line| &line.points);
    let forecasts = || of.forecasts.iter().flatten();
    let ends = forecasts().map(|of| of.to_s);
    let right = points().map(|point| point.0).chain(ends).fold(1e-9, f64::max);
    let tops = forecasts().map(|of| of.from.1 + of.by_s.1.max(0.0) * (of.to_s - of.from.0));
    let mut top = points().map(|point| point.1).chain(tops).fold(1e-9, f64::max);
    // A limit far away would press everything flat.
    let limit = of.limit.as_ref().filter(|(limit, _)| *limit < 2.5 * top);
    if let Some((limit, _)) = limit {
        top = top.max(*limit);
    }
    let scale = Scale { x: (0.0, right), y: 1.08 * top };
    svg(html! {
        (grid(&scale, of.unit))
        @if let Some((limit, name)) = limit {
            @let y = scale.y(*limit);
            line x1=(ROOM.0) x2=(SIZE.0 - ROOM.1) y1=(y) y2=(y) stroke="#b42318" stroke-dasharray="6 4" {}
            text x=(SIZE.0 - ROOM.1 - 4.0) y=(y - 5.0) text-anchor="end" fill="#b42318" { (name) }
        }
        @for (i, line) in of.lines.iter().enumerate() {
            @let colour = COLOURS[i % COLOURS.len()];
            @if let Some(Some(forecast)) = of.forecasts.get(i) {
                @let at = |rate: f64| (forecast.to_s, (forecast.from.1 + rate * (forecast.to_s - forecast.from.0)).max(0.0));
                polygon points=(scale.path(&[forecast.from, at(forecast.by_s.2), at(forecast.by_s.0)])) fill=(colour) opacity="0.15" {}
                polyline points=(scale.path(&[forecast.from, at(forecast.by_s.1)])) fill="none" stroke=(colour)
                    stroke-width="2" stroke-dasharray="3 4" {}
            }
            polyline points=(scale.path(&line.points)) fill="none" stroke=(colour) stroke-width="2" stroke-linejoin="round" {
                title { (line.name) }
            }
            @if let [(x, y)] = line.points[..] { circle cx=(scale.x(x)) cy=(scale.y(y)) r="3" fill=(colour) {} }
        }
    })
}

/// Events over time, as long as they took; what is too long begins at `threshold`, s.
pub fn spikes(spikes: &[Spike], duration_s: f64, threshold: f64, unit: fn(f64) -> String) -> Markup {
    let top = spikes.iter().map(|spike| spike.1).fold(threshold, f64::max);
    let scale = Scale { x: (0.0, duration_s), y: 1.08 * top };
    let zero = scale.y(0.0);
    svg(html! {
        (grid(&scale, unit))
        @let y = scale.y(threshold);
        line x1=(ROOM.0) x2=(SIZE.0 - ROOM.1) y1=(y) y2=(y) stroke="#b45309" stroke-dasharray="6 4" {}
        @for &(at, length, colour) in spikes {
            @let x = scale.x(at);
            line x1=(x) x2=(x) y1=(zero) y2=(scale.y(length)) stroke=(colour) stroke-width="2" {}
            circle cx=(x) cy=(scale.y(length)) r="3.5" fill=(colour) {
                title { (unit(length)) " at " (format!("{at:.1} s")) }
            }
        }
    })
}

fn svg(inside: Markup) -> Markup {
    html! {
        svg.chart viewBox=(format!("0 0 {} {}", SIZE.0, SIZE.1)) xmlns="http://www.w3.org/2000/svg" role="img" { (inside) }
    }
}

/// Lines at round values, and what they are.
fn grid(scale: &Scale, unit: fn(f64) -> String) -> Markup {
    let bottom = SIZE.1 - ROOM.3;
    html! {
        @for value in ticks(scale.y, 5.0) {
            @let y = scale.y(value);
            line x1=(ROOM.0) x2=(SIZE.0 - ROOM.1) y1=(y) y2=(y) stroke="#e6eaef" {}
            text x=(ROOM.0 - 8.0) y=(y + 4.0) text-anchor="end" { (unit(value)) }
        }
        @for value in ticks(scale.x.1, 7.0) {
            @let x = scale.x(value);
            line x1=(x) x2=(x) y1=(bottom) y2=(bottom + 4.0) stroke="#a7b0bb" {}
            text x=(x) y=(bottom + 18.0) text-anchor="middle" { (format!("{value} s")) }
        }
        line x1=(ROOM.0) x2=(SIZE.0 - ROOM.1) y1=(bottom) y2=(bottom) stroke="#a7b0bb" {}
    }
}

/// Round values from zero to `most`, at most about so many.
fn ticks(most: f64, number: f64) -> Vec<f64> {
    let least = most / number;
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|of| of * power).find(|step| *step >= least);
    let step = step.unwrap_or(most).max(f64::MIN_POSITIVE);
    let n = (most / step + 1e-9).min(20.0) as u32;
    // Without what adding leaves behind: 0.30000000000000004.
    (0..=n).map(|i| (f64::from(i) * step * 1e9).round() / 1e9).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(1.0, 5.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        assert_eq!(ticks(97.0, 5.0), [0.0, 20.0, 40.0, 60.0, 80.0]);
        assert_eq!(ticks(0.3, 7.0), [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]);
        for most in [1e-9, 1.0, 7.3, 1e12, f64::MAX] {
            assert!(ticks(most, 5.0).len() <= 21);
        }
    }

    #[test]
    fn a_chart_shows_lines_limit_and_forecast_and_escapes_names() {
        let line = Line { name: "<b>".into(), points: vec![(0.0, 1.0), (10.0, 2.0)] };
        let forecast = Forecast { from: (10.0, 2.0), by_s: (0.05, 0.1, 0.2), to_s: 20.0 };
        let forecasts = [Some(forecast)];
        let of = |limit| Lines {
            lines: std::slice::from_ref(&line),
            forecasts: &forecasts,
            limit: Some((limit, "limit".into())),
            unit: |value| format!("{value}"),
        };
        let near = lines(&of(3.5)).into_string();
        assert!(
            near.contains("&lt;b&gt;") && near.contains(">limit<") && near.contains("<polygon"),
            "{near}"
        );
        let far = lines(&of(1e6)).into_string();
        assert!(!far.contains(">limit<"), "it would press everything flat");
    }
}
