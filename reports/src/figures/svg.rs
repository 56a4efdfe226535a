//! A small SVG writer.

use std::fmt::Write as _;

use crate::sample::SCHEMA_VERSION;
use crate::table::{escape, shorten};

pub(super) const INK: &str = "#1f2933";
pub(super) const MUTED: &str = "#5f6c7b";
pub(super) const GRID: &str = "#e1e6ec";

/// Estimated width of a character at font size 1: there is no font to measure,
/// so labels get a little more room than most fonts need.
const CHAR_WIDTH: f64 = 0.58;

/// Where a text's position lies on it.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing with its origin at the top left, in px.
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self {
            width,
            height,
            body: String::new(),
        }
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, hint: &str) {
        let _ = write!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{height:.1}\" fill=\"{fill}\"",
            width.max(0.0)
        );
        self.close("rect", hint);
    }

    /// The outline of a square, drawn inside it.
    pub(super) fn frame(&mut self, at: (f64, f64), side: f64, stroke: &str) {
        let _ = writeln!(
            self.body,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.6\"/>",
            at.0 + 0.8,
            at.1 + 0.8,
            side - 1.6,
            side - 1.6
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, width: f64) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A line that stands back behind what it belongs to.
    pub(super) fn faint(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str) {
        let more = " stroke-width=\"1.2\" stroke-opacity=\"0.45\"";
        self.stroke(from, to, stroke, more);
    }

    /// A line of this width, broken as `dashes` says unless that is empty.
    pub(super) fn dashed(
        &mut self,
        from: (f64, f64),
        to: (f64, f64),
        stroke: &str,
        width: f64,
        dashes: &str,
    ) {
        let mut more = format!(" stroke-width=\"{width}\" stroke-linecap=\"round\"");
        if !dashes.is_empty() {
            let _ = write!(more, " stroke-dasharray=\"{dashes}\"");
        }
        self.stroke(from, to, stroke, &more);
    }

    fn stroke(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, more: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\"{more}/>",
            from.0, from.1, to.0, to.1
        );
    }

    /// A small arrowhead at the edge of a drawing, for what lies beyond it.
    pub(super) fn arrow(&mut self, at: (f64, f64), up: bool, fill: &str, hint: &str) {
        let (x, y) = at;
        let tip = if up { -7.0 } else { 7.0 };
        let _ = write!(
            self.body,
            "<polygon points=\"{:.1},{y:.1} {:.1},{y:.1} {x:.1},{:.1}\" fill=\"{fill}\" stroke=\"#fff\" stroke-width=\"0.8\"",
            x - 4.5,
            x + 4.5,
            y + tip
        );
        self.close("polygon", hint);
    }

    pub(super) fn polyline(&mut self, points: &[(f64, f64)], stroke: &str) {
        let points: Vec<_> = points
            .iter()
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
    }

    /// A point whose shape goes with its series, so that colour is not needed to
    /// tell it.
    pub(super) fn marker(&mut self, at: (f64, f64), series: usize, fill: &str, hint: &str) {
        self.shape(at, series, (fill, "#fff", 1.0), hint);
    }

    /// The same shape, empty.
    pub(super) fn hollow(&mut self, at: (f64, f64), series: usize, stroke: &str, hint: &str) {
        self.shape(at, series, ("#fff", stroke, 2.0), hint);
    }

    fn shape(
        &mut self,
        at: (f64, f64),
        series: usize,
        (fill, stroke, width): (&str, &str, f64),
        hint: &str,
    ) {
        let (x, y) = at;
        let r = 5.0;
        let polygon = |points: &[(f64, f64)]| {
            let points: Vec<_> = points
                .iter()
                .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx * r, y + dy * r))
                .collect();
            format!("<polygon points=\"{}\"", points.join(" "))
        };
        let (name, open) = match series % 4 {
            0 => (
                "circle",
                format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r}\""),
            ),
            1 => (
                "polygon",
                polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            ),
            2 => ("polygon", polygon(&[(0.0, -1.2), (1.1, 0.9), (-1.1, 0.9)])),
            _ => (
                "polygon",
                polygon(&[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]),
            ),
        };
        let _ = write!(
            self.body,
            "{open} fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"{width}\""
        );
        self.close(name, hint);
    }

    pub(super) fn text(
        &mut self,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        fill: &str,
        text: &str,
    ) {
        self.styled(at, anchor, size, fill, text, "");
    }

    pub(super) fn bold(&mut self, at: (f64, f64), anchor: Anchor, size: f64, text: &str) {
        self.styled(at, anchor, size, INK, text, " font-weight=\"600\"");
    }

    /// Text that stays legible where lines run under it.
    pub(super) fn over(
        &mut self,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        fill: &str,
        text: &str,
    ) {
        let halo = " stroke=\"#ffffff\" stroke-width=\"3.5\" stroke-linejoin=\"round\" paint-order=\"stroke\"";
        self.styled(at, anchor, size, fill, text, halo);
    }

    /// Text that runs upwards, centred on `at`.
    pub(super) fn upright(&mut self, at: (f64, f64), size: f64, fill: &str, text: &str) {
        let turn = format!(" transform=\"rotate(-90 {:.1} {:.1})\"", at.0, at.1);
        self.styled(at, Anchor::Middle, size, fill, text, &turn);
    }

    fn styled(
        &mut self,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        fill: &str,
        text: &str,
        more: &str,
    ) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let _ = writeln!(
            self.body,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{fill}\"{more}>{}</text>",
            at.0,
            at.1,
            escape(text)
        );
    }

    fn close(&mut self, name: &str, hint: &str) {
        if hint.is_empty() {
            self.body.push_str("/>\n");
        } else {
            let _ = writeln!(self.body, "><title>{}</title></{name}>", escape(hint));
        }
    }

    /// The whole document. `label` is read out instead of the drawing.
    pub(super) fn finish(self, label: &str) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w:.0} {h:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" role=\"img\" aria-label=\"{label}\" data-schema-version=\"{SCHEMA_VERSION}\" font-family=\"system-ui, sans-serif\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body,
            w = self.width,
            h = self.height,
            label = escape(label)
        )
    }
}

/// `text`, shortened where it is likely to need more than `room`.
pub(super) fn fit(text: &str, size: f64, room: f64) -> String {
    shorten(text, (room / (size * CHAR_WIDTH)).max(4.0) as usize)
}

/// Room that a text needs, estimated.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * CHAR_WIDTH
}
