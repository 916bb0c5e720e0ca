//! How far results are from what the device reaches at most.

use super::Picture;
use super::group::Group;
use super::labels::{decimal_label, seq_label};
use crate::bench::record::{Ceiling, Cell};
use crate::plot::figure::{Axis, Figure, Mark, Panel};
use crate::plot::style::Style;

impl Picture<'_> {
    /// Speed over arithmetic intensity, below what the device's units allow.
    pub(super) fn roofline(&self) -> Option<Figure> {
        let ceilings = self.record.ceilings.as_ref()?;
        let copy = ceilings.copy_bytes_per_second.value;
        let matmul = ceilings.matmul_flops.get(self.dtype)?.value;
        // FLOP for each byte that has to move.
        let intensity =
            |cell: &Cell| cell.roofline.as_ref().map(|roofline| cell.flops / (roofline.hbm_ms * 1e-3 * copy));
        let with_roofline =
            || self.results().filter(|(cell, result)| cell.roofline.is_some() && result.tflops.is_some());
        let mut intensities: Vec<f64> = with_roofline().filter_map(|(cell, _)| intensity(cell)).collect();
        if intensities.is_empty() {
            return None;
        }
        // The ridge, where the copy stops to be the limit, is in the picture.
        intensities.extend([matmul / copy, 0.4 * matmul / copy]);
        let x = Axis { grid: false, ..Axis::powers("arithmetic intensity (FLOP per byte)", 2, intensities, seq_label) };
        let tera = |flops: f64| flops / 1e12;
        let speeds = with_roofline().filter_map(|(_, result)| result.tflops);
        // The exponentials allow the same speed at every length: both they and the products grow with its square.
        let exp = |group: &Group<'_>| {
            group.cells.iter().find_map(|cell| cell.roofline.as_ref().map(|r| cell.flops / (r.exp_ms * 1e-3)))
        };
        let ceilings_of_all = self.groups.iter().filter_map(exp).chain([matmul, x.limits.0 * copy]).map(tera);
        let y = Axis::powers("TFLOP/s", 10, speeds.chain(ceilings_of_all), decimal_label);
        let (product, slope, exponentials) =
            (Style::ceiling(None), Style::ceiling(Some((8.0, 3.0))), Style::ceiling(Some((2.0, 3.0))));
        let mut panels = Vec::new();
        for group in &self.groups {
            let right = x.limits.1;
            let rule =
                |style: Style, from, to| Mark::Rule { ink: style.ink, from, to, dash: style.dash, width: style.width };
            let low = x.limits.0.max(y.limits.0 * 1e12 / copy);
            let ridge = matmul / copy;
            let mut marks = vec![
                rule(slope, (low, tera(low * copy)), (ridge, tera(matmul))),
                rule(product, (ridge, tera(matmul)), (right, tera(matmul))),
            ];
            marks.extend(
                exp(group).map(|exp| rule(exponentials, (exp.min(matmul) / copy, tera(exp)), (right, tera(exp)))),
            );
            for &(name, _, style) in &self.implementations {
                let points = group.cells.iter().filter_map(|cell| Some((intensity(cell)?, cell.result(name)?.tflops?)));
                let points: Vec<_> = points.collect();
                if !points.is_empty() {
                    marks.push(Mark::Line { style, points, shift: 0.0 });
                }
            }
            panels.push(Panel { title: group.title.clone(), x: x.clone(), y: y.clone(), marks });
        }
        let mut legend = self.legend(|name| with_roofline().any(|(_, result)| result.name == name));
        legend.push((format!("matrix product {:.0} TFLOP/s", tera(matmul)), product));
        legend.push((format!("copy {:.2} TB/s", tera(copy)), slope));
        legend.push((format!("exp2 {:.2} T/s", tera(ceilings.exp2_per_second.value)), exponentials));
        let how = |ceiling: &Ceiling| if ceiling.measured { "measured" } else { "from properties of the device" };
        let mut notes = vec![
            format!(
                "Ceilings: matrix product {}, copy {}, exp2 {}. A point further right is a longer sequence.",
                how(&ceilings.matmul_flops[self.dtype]),
                how(&ceilings.copy_bytes_per_second),
                how(&ceilings.exp2_per_second),
            ),
            "FLOP per byte that q, k, v, out and the log-sum-exp need at least; naive moves many more.".to_owned(),
        ];
        if with_roofline().any(|(_, result)| result.bound_fraction.is_some_and(|fraction| fraction > 1.0)) {
            notes.push(
                "Above the line: faster than the measured product, which is no limit of the hardware.".to_owned(),
            );
        }
        Some(self.figure("roofline", "Speed below the ceilings of the device", legend, self.columns, panels, notes))
    }
}
