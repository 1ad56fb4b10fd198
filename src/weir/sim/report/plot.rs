//! Charts as inline SVG: numbers in, text out.
//!
//! A chart scales with its page and takes its colours from the page's style, so that it is readable in the light and in the
//! dark. Lines are told apart by colour and by dashes, areas by colour and by their order in the legend.

use std::fmt::Write as _;

/// What is drawn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    pub(crate) title: String,
    /// Label of the horizontal axis, with its unit.
    pub(crate) x_label: &'static str,
    /// Label of the vertical axis, with its unit.
    pub(crate) y_label: &'static str,
    pub(crate) scale: Scale,
    /// Where the horizontal axis ends.
    pub(crate) x_max: f64,
    /// Lines, or areas that are stacked in this order from below.
    pub(crate) series: Vec<Series>,
    pub(crate) stacked: bool,
}

/// The vertical axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    /// From zero to what fits.
    Linear,
    /// From zero to this.
    UpTo(f64),
    /// Powers of ten.
    Log,
}

/// One line or area.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Which of the page's colours: below [`COLOURS`], or [`REFERENCE`].
    pub(crate) colour: usize,
    /// From left to right; what is not finite leaves a gap.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Colours that a page has.
pub(crate) const COLOURS: usize = 6;
/// Dashed and in the colour of the text: what others are measured by.
pub(crate) const REFERENCE: usize = COLOURS;

/// Size of a chart in its own coordinates, and the space around its axes.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
/// Decades that a logarithmic axis shows at most, from the top.
const DECADES_MAX: i32 = 7;

impl Chart {
    /// The chart with its title and legend, as an HTML figure.
    pub(crate) fn figure(&self) -> String {
        let mut out = String::new();
        let _ = write!(out, "<figure><figcaption><b>{}</b>", escape(&self.title));
        // The legend of stacked areas reads as they lie.
        let order: Vec<&Series> = if self.stacked { self.series.iter().rev().collect() } else { self.series.iter().collect() };
        for series in order {
            let mark = if self.stacked { "area" } else { "line" };
            let _ = write!(out, "<span class=\"key {mark} c{}\">{}</span>", series.colour, escape(&series.name));
        }
        let _ = write!(out, "</figcaption>{}</figure>", self.svg());
        out
    }

    fn svg(&self) -> String {
        let stacks = self.stacks();
        let axis = Axis::of(self.scale, stacks.iter().flatten().map(|point| point.1));
        let mut out = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}: {} over {}\">",
            escape(&self.title),
            escape(self.y_label),
            escape(self.x_label)
        );
        self.grid(&axis, &mut out);
        let place = |(x, y): (f64, f64)| (self.x(x), axis.y(y));
        for (index, series) in self.series.iter().enumerate().rev() {
            if self.stacked {
                let below = index.checked_sub(1).map(|below| &stacks[below]);
                area(&stacks[index], below, series.colour, place, &mut out);
            } else {
                line(&stacks[index], series.colour, place, &mut out);
            }
        }
        out.push_str("</svg>");
        out
    }

    /// Points of each series; of stacked ones on top of those below.
    fn stacks(&self) -> Vec<Vec<(f64, f64)>> {
        let mut stacks: Vec<Vec<(f64, f64)>> = Vec::new();
        for series in &self.series {
            let below = stacks.last().filter(|_| self.stacked);
            let base = |index: usize| below.and_then(|below| below.get(index)).map_or(0.0, |point| point.1);
            stacks.push(series.points.iter().enumerate().map(|(index, &(x, y))| (x, y + base(index))).collect());
        }
        stacks
    }

    fn x(&self, x: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * (x / self.x_max.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0)
    }

    fn grid(&self, axis: &Axis, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in axis.ticks() {
            let y = axis.y(tick);
            let _ = write!(out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>");
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                number(tick)
            );
        }
        for tick in ticks(self.x_max, 7) {
            let x = self.x(tick);
            let _ = write!(out, "<path class=\"grid\" d=\"M{x:.1} {bottom}v4\"/>");
            let _ = write!(
                out,
                "<text class=\"tick\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                bottom + 17.0,
                number(tick)
            );
        }
        let _ = write!(out, "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>");
        let middle = (LEFT + right) / 2.0;
        let _ = write!(
            out,
            "<text class=\"label\" x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 6.0,
            escape(self.x_label)
        );
        let middle = (TOP + bottom) / 2.0;
        let _ = write!(
            out,
            "<text class=\"label\" transform=\"translate(13 {middle}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            escape(self.y_label)
        );
    }
}

/// From values to heights.
enum Axis {
    Linear { max: f64 },
    Log { from: i32, to: i32 },
}

impl Axis {
    fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Axis {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| value.is_finite() && *value > 0.0) {
            (least, most) = (least.min(value), most.max(value));
        }
        match scale {
            Scale::UpTo(max) => Axis::Linear { max },
            Scale::Linear => Axis::Linear { max: if most > 0.0 { 1.04 * most } else { 1.0 } },
            Scale::Log => {
                let to = if most > 0.0 { most.log10().ceil() as i32 } else { 1 };
                let from = if least.is_finite() { least.log10().floor() as i32 } else { to - 1 };
                Axis::Log { from: from.clamp(to - DECADES_MAX, to - 1), to }
            }
        }
    }

    fn y(&self, value: f64) -> f64 {
        let part = match *self {
            Axis::Linear { max } => value / max,
            Axis::Log { from, to } => (value.max(f64::MIN_POSITIVE).log10() - f64::from(from)) / f64::from(to - from),
        };
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * part.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<f64> {
        match *self {
            Axis::Linear { max } => ticks(max, 5),
            Axis::Log { from, to } => (from..=to).map(|power| 10_f64.powi(power)).collect(),
        }
    }
}

/// From zero on in steps of 1, 2 or 5 times a power of ten, not many more than `count`.
fn ticks(max: f64, count: usize) -> Vec<f64> {
    let rough = max / count as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| *step >= rough).unwrap_or(rough);
    (0..=(max / step + 1e-9) as usize).map(|index| index as f64 * step).collect()
}

/// A number as short as it can be told.
pub(crate) fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        above if above >= 100.0 => 0,
        above if above >= 10.0 => 1,
        above if above >= 1.0 => 2,
        above => (1.0 - above.log10().floor()) as usize,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A line through the points, broken where one is not finite.
fn line(points: &[(f64, f64)], colour: usize, place: impl Fn((f64, f64)) -> (f64, f64), out: &mut String) {
    let mut path = String::new();
    let mut is_drawing = false;
    for &(x, y) in points {
        if !y.is_finite() {
            is_drawing = false;
            continue;
        }
        let (x, y) = place((x, y));
        let _ = write!(path, "{}{x:.1} {y:.1}", if is_drawing { 'L' } else { 'M' });
        is_drawing = true;
    }
    let _ = write!(out, "<path class=\"line c{colour}\" d=\"{path}\"/>");
}

/// The area between the points and those below.
fn area(
    points: &[(f64, f64)],
    below: Option<&Vec<(f64, f64)>>,
    colour: usize,
    place: impl Fn((f64, f64)) -> (f64, f64),
    out: &mut String,
) {
    let mut path = String::new();
    let floor =
        |(index, &(x, _)): (usize, &(f64, f64))| (x, below.and_then(|below| below.get(index)).map_or(0.0, |point| point.1));
    let back: Vec<(f64, f64)> = points.iter().enumerate().map(floor).collect();
    for (index, &point) in points.iter().chain(back.iter().rev()).enumerate() {
        let (x, y) = place(point);
        let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
    }
    let _ = write!(out, "<path class=\"area c{colour}\" d=\"{path}Z\"/>");
}

/// Text for HTML.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale, stacked: bool, points: &[&[f64]]) -> Chart {
        let series = points.iter().enumerate().map(|(colour, values)| Series {
            name: format!("s<{colour}>"),
            colour,
            points: values.iter().enumerate().map(|(x, y)| (x as f64, *y)).collect(),
        });
        Chart {
            title: "t".into(),
            x_label: "time, s",
            y_label: "rate, kbit/s",
            scale,
            x_max: 2.0,
            series: series.collect(),
            stacked,
        }
    }

    #[test]
    fn ticks_are_round_and_numbers_short() {
        assert_eq!(ticks(600.0, 7), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]);
        assert_eq!(ticks(1.04, 5), [0.0, 0.5, 1.0]);
        assert_eq!([0.0, 0.25, 1.0, 12.5, 1200.0, 0.001].map(number), ["0", "0.25", "1", "12.5", "1200", "0.001"]);
    }

    #[test]
    fn a_line_spans_the_axes_and_is_broken_where_nothing_is_known() {
        let figure = chart(Scale::UpTo(2.0), false, &[&[0.0, f64::NAN, 2.0]]).figure();
        let (left, right) = (LEFT, WIDTH - RIGHT);
        assert!(figure.contains(&format!("d=\"M{left:.1} {:.1}M{right:.1} {TOP:.1}\"", HEIGHT - BOTTOM)), "{figure}");
        assert!(figure.contains("s&lt;0&gt;") && figure.contains("rate, kbit/s") && figure.contains("time, s"), "{figure}");
    }

    #[test]
    fn areas_lie_on_each_other_and_a_logarithmic_axis_keeps_zero_at_its_foot() {
        let stacked = chart(Scale::UpTo(4.0), true, &[&[1.0, 1.0, 1.0], &[3.0, 3.0, 3.0]]);
        assert_eq!(stacked.stacks()[1], [(0.0, 4.0), (1.0, 4.0), (2.0, 4.0)]);
        let axis = Axis::of(Scale::Log, [0.0, 0.5, 90.0].into_iter());
        assert_eq!(axis.ticks(), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!((axis.y(0.0), axis.y(100.0)), (HEIGHT - BOTTOM, TOP));
    }
}
