//! Curves: as a table on standard output, and as a plot with two logarithmic axes.

use std::error::Error;
use std::fs;
use std::path::Path;

use errback::Failure;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Done;
use crate::options::Options;

const SIZE: (u32, u32) = (760, 480);
const COLOURS: [RGBColor; 3] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x2c, 0x8a, 0x4b),
];
const GREY: RGBColor = RGBColor(0x88, 0x88, 0x88);

/// How figures on an axis are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unit {
    Count,
    /// Not so many that it makes sense to go up by ten.
    Few,
    Bytes,
    Seconds,
}

impl Unit {
    /// What an axis goes up by: at such steps the figures on it are round.
    fn base(self) -> f64 {
        match self {
            Unit::Count | Unit::Seconds => 10.0,
            Unit::Few => 2.0,
            Unit::Bytes => 16.0,
        }
    }

    /// In the largest unit in which it is one or more.
    fn show(self, figure: f64) -> String {
        let scales: &[(f64, &str)] = match self {
            Unit::Count | Unit::Few => &[(1e6, " million"), (1e3, ",000"), (1.0, "")],
            Unit::Bytes => &[
                (1_073_741_824.0, " GiB"),
                (1_048_576.0, " MiB"),
                (1024.0, " KiB"),
                (1.0, " B"),
            ],
            Unit::Seconds => &[(1.0, " s"), (1e-3, " ms"), (1e-6, " us"), (1e-9, " ns")],
        };
        let fits = scales.iter().find(|(scale, _)| figure >= scale * 0.9999);
        let (scale, name) = fits.unwrap_or(&scales[scales.len() - 1]);
        let figure = figure / scale;
        match figure {
            figure if (figure - figure.round()).abs() < 0.005 => format!("{figure:.0}{name}"),
            figure => format!("{figure:.1}{name}"),
        }
    }
}

/// Costs by amount of work.
#[derive(Default, Debug)]
pub(crate) struct Curve {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

impl Curve {
    pub(crate) fn new(name: &'static str) -> Curve {
        let points = Vec::new();
        Curve { name, points }
    }

    pub(crate) fn push(&mut self, work: usize, cost: f64) {
        self.points.push((work as f64, cost));
    }
}

/// What is shown of a sweep.
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) across: (&'static str, Unit),
    pub(crate) up: (&'static str, Unit),
    pub(crate) curves: Vec<Curve>,
}

impl Plot {
    pub(crate) fn show(&self, options: &Options) -> Done {
        self.print();
        if let Some(folder) = &options.plots {
            fs::create_dir_all(folder)?;
            let path = Path::new(folder).join(format!("growth-{}.svg", self.file));
            self.draw(&path)
                .map_err(|error| Failure::msg(error.to_string()))?;
            println!("{}", path.display());
        }
        Ok(())
    }

    fn print(&self) {
        for curve in &self.curves {
            let (work, cost) = (self.across.0, self.up.0);
            println!(
                "\n{}: {}\n{work:>14} {cost:>10} {:>12}",
                self.title, curve.name, "each"
            );
            for (x, y) in &curve.points {
                let (work, cost) = (self.across.1.show(*x), self.up.1.show(*y));
                println!("{work:>14} {cost:>10} {:>12}", self.up.1.show(y / x));
            }
        }
        println!();
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        self.draw_on(&area).map_err(|error| error.to_string())?;
        Ok(area.present()?)
    }

    fn draw_on<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        area.fill(&WHITE)?; // also where the page is dark
        let ((left, right), (bottom, top)) = self.bounds();
        let mut chart = ChartBuilder::on(area)
            .margin(16)
            .margin_right(44)
            .caption(self.title, ("sans-serif", 22))
            .x_label_area_size(52)
            .y_label_area_size(84)
            .build_cartesian_2d(
                (left..right).log_scale().base(self.across.1.base()),
                (bottom..top).log_scale(),
            )?;
        chart
            .configure_mesh()
            .x_desc(self.across.0)
            .y_desc(self.up.0)
            .x_labels(8)
            .y_labels(8)
            .x_label_formatter(&|x| self.across.1.show(*x))
            .y_label_formatter(&|y| self.up.1.show(*y))
            .label_style(("sans-serif", 15))
            .axis_desc_style(("sans-serif", 17))
            .bold_line_style(RGBColor(0xdd, 0xdd, 0xdd))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let reference = self.proportional(left, right);
        chart
            .draw_series(DashedLineSeries::new(reference, 6, 5, GREY.stroke_width(2)))?
            .label("twice the work, twice the cost")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], GREY.stroke_width(2)));
        for (curve, colour) in self.curves.iter().zip(COLOURS) {
            let line = LineSeries::new(curve.points.iter().copied(), colour.stroke_width(3));
            chart
                .draw_series(line.point_size(4))?
                .label(curve.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(("sans-serif", 16))
            .background_style(WHITE.mix(0.85))
            .border_style(GREY)
            .draw()
    }

    /// A line of slope 1 that ends where the first curve does.
    fn proportional(&self, left: f64, right: f64) -> Vec<(f64, f64)> {
        let last = self.curves.first().and_then(|curve| curve.points.last());
        let (x, y) = last.copied().unwrap_or((1.0, 1.0));
        let (_, (bottom, top)) = self.bounds();
        [left, right]
            .map(|at| (at, y * at / x))
            .map(|(at, cost)| match cost < bottom {
                true => (bottom * x / y, bottom),
                false => (at, cost.min(top)),
            })
            .to_vec()
    }

    /// The least and the greatest of either axis. At the top is room for the legend.
    fn bounds(&self) -> ((f64, f64), (f64, f64)) {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let (across, up) = (bounds(points().map(|p| p.0)), bounds(points().map(|p| p.1)));
        let room = (up.1 / up.0).powf(0.35).max(2.0);
        (across, (up.0 / 1.5, up.1 * room))
    }
}

fn bounds(figures: impl Iterator<Item = f64>) -> (f64, f64) {
    figures.fold((f64::INFINITY, 0.0), |(least, greatest), figure| {
        (least.min(figure), greatest.max(figure))
    })
}
