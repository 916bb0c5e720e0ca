//! Tests of the pictures.

use super::labels::{decimal_label, wrapped};
use super::lines::{SIDE_STEP, side_by_side};
use super::*;
use crate::bench::record::samples::{sample, sample_cell};
use crate::bench::record::{Ceiling, Ceilings, MaskName, Roofline};
use crate::plot::figure::Scale;
use kernel_spec::Mask;

const TIMES: [(&str, f64); 4] = [("naive", 4.0), ("v2", 1.0), ("v3", 0.5), ("torch cudnn", 0.6)];

/// Two masks, two head dims, three lengths, with everything measured.
fn full() -> Record {
    let mut cells = Vec::new();
    for mask in [Mask::Full, Mask::Causal] {
        for head_dim in [64, 128] {
            for seq in [512, 1024, 2048] {
                let mut cell = sample_cell("bf16", seq, &TIMES);
                cell.problem.mask = MaskName(mask);
                cell.problem.head_dim = head_dim;
                let ms = |share: f64| share * cell.flops / 1e12;
                let (matmul_ms, exp_ms, hbm_ms) = (ms(1.0), ms(0.5), ms(0.1));
                let bound = "tensor".to_owned();
                cell.roofline = Some(Roofline { bound, bound_ms: matmul_ms, matmul_ms, exp_ms, hbm_ms });
                for result in &mut cell.results {
                    result.speedup_over_naive = result.time_ms.map(|time| 4.0 / time.median);
                    result.extra_bytes = Some(if result.name == "naive" { 1 << 30 } else { 1 << 12 });
                }
                cells.push(cell);
            }
        }
    }
    let ceiling = |value| Ceiling { value, measured: true, how: "a test".to_owned() };
    Record {
        ceilings: Some(Ceilings {
            copy_bytes_per_second: ceiling(4e12),
            read_bytes_per_second: None,
            matmul_flops: BTreeMap::from([("bf16".to_owned(), ceiling(8e14))]),
            exp2_per_second: ceiling(4e12),
        }),
        ..sample("GPU", "cuda", cells)
    }
}

fn names(record: &Record) -> Vec<String> {
    figures(record).into_iter().map(|figure| figure.name).collect()
}

fn figure(record: &Record, name: &str) -> Figure {
    figures(record).into_iter().find(|figure| figure.name == name).unwrap()
}

/// Whether everything lies between the limits of the axes.
fn holds_its_marks(panel: &Panel) -> bool {
    let inside = |axis: &Axis, value: f64| {
        (axis.scale == Scale::Linear || value > 0.0) && (-1e-9..=1.0 + 1e-9).contains(&axis.place(value))
    };
    let both = |&(x, y): &(f64, f64)| inside(&panel.x, x) && inside(&panel.y, y);
    panel.marks.iter().all(|mark| match mark {
        Mark::Line { points, .. } | Mark::Cloud { points, .. } => points.iter().all(both),
        Mark::Rule { from, to, .. } => both(from) && both(to),
        Mark::Label { at, .. } => both(at),
    })
}

#[test]
fn a_full_record_has_every_picture_and_every_point() {
    let record = full();
    assert_eq!(names(&record), ["tflops-bf16", "speedup-bf16", "memory-bf16", "errors-bf16", "roofline-bf16"]);
    for figure in figures(&record) {
        assert!(figure.panels.iter().all(holds_its_marks), "{}", figure.name);
        let points = figure.panels.iter().flat_map(|panel| &panel.marks).map(|mark| match mark {
            Mark::Line { points, .. } | Mark::Cloud { points, .. } => points.len(),
            _ => 0,
        });
        // Naive is the unit of the speedup.
        let implementations = if figure.name.starts_with("speedup") { 3 } else { 4 };
        assert_eq!(points.sum::<usize>(), 12 * implementations, "{}", figure.name);
    }
    let panels = figure(&record, "tflops-bf16").panels;
    let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
    assert_eq!(
        titles,
        ["head dim 64, no mask", "head dim 128, no mask", "head dim 64, causal mask", "head dim 128, causal mask"]
    );
    assert_eq!(figure(&record, "tflops-bf16").columns, 2);
}

#[test]
fn what_was_not_measured_is_not_drawn() {
    let record = sample("GPU", "cuda", vec![sample_cell("f16", 512, &TIMES)]);
    // Neither memory nor ceilings nor speedups; one length makes a picture too.
    assert_eq!(names(&record), ["tflops-f16", "errors-f16"]);
    assert!(figures(&record).iter().flat_map(|figure| &figure.panels).all(holds_its_marks));
    let mut cell = sample_cell("bf16", 64, &[("v2", 1.0)]);
    let result = &mut cell.results[0];
    (result.time_ms, result.tflops, result.check) = (None, None, None);
    result.counters =
        [("global_bytes_read", 4096), ("lane_instructions", 1000)].map(|(name, n)| (name.to_owned(), n)).into();
    let record = sample("emulator", "emulator", vec![cell]);
    assert_eq!(names(&record), ["traffic-bf16", "instructions-bf16"]);
    assert!(figures(&record).iter().flat_map(|figure| &figure.panels).all(holds_its_marks));
}

#[test]
fn lines_on_each_other_are_moved_apart() {
    let memory = figure(&full(), "memory-bf16");
    let shifts: Vec<f64> = memory.panels[0]
        .marks
        .iter()
        .filter_map(|mark| if let Mark::Line { shift, .. } = mark { Some(*shift) } else { None })
        .collect();
    assert_eq!(shifts, [0.0, -SIDE_STEP, 0.0, SIDE_STEP]);
}

#[test]
fn lines_that_find_no_place_side_by_side_are_named() {
    let axis = Axis::from_zero("t", [1.0]);
    let style = Style::of("v2", false, 0);
    let line = |name: &str, value| (name.to_owned(), style, vec![(512.0, value), (1024.0, value)]);
    let lines = [line("a", 0.5), line("b", 0.5), line("c", 0.5), line("d", 0.9)];
    let names = |spacing| side_by_side(&lines, &axis, spacing).1.into_iter().flatten().collect::<Vec<_>>();
    assert_eq!(names(100.0), [""; 0]);
    assert_eq!(names(30.0), ["a", "b", "c"]);
    let long = wrapped("word ".repeat(60).trim(), 1);
    assert!(long.len() == 4 && long.iter().all(|line| line.len() <= 85), "{long:?}");
}

#[test]
fn memory_of_zero_bytes_is_told_and_not_drawn() {
    let mut record = full();
    for result in record.cells.iter_mut().flat_map(|cell| &mut cell.results).filter(|result| result.peer) {
        result.extra_bytes = Some(0);
    }
    let memory = figure(&record, "memory-bf16");
    assert!(memory.notes.last().unwrap().ends_with("no extra memory at all: torch cudnn."), "{:?}", memory.notes);
    assert!(memory.legend.iter().all(|(name, _)| name != "torch cudnn"));
}

#[test]
fn the_same_length_twice_makes_two_panels() {
    let mut cells = vec![sample_cell("bf16", 512, &TIMES), sample_cell("bf16", 512, &TIMES)];
    cells[1].problem.batch = 8;
    let tflops = figure(&sample("GPU", "cuda", cells.clone()), "tflops-bf16");
    let titles: Vec<&str> = tflops.panels.iter().map(|panel| panel.title.as_str()).collect();
    assert_eq!(titles, ["head dim 64, no mask, batch 2", "head dim 64, no mask, batch 8"]);
    cells[1].problem.batch = 2;
    cells[1].problem.kv_seq = 4096;
    let tflops = figure(&sample("GPU", "cuda", cells), "tflops-bf16");
    assert_eq!(tflops.panels[1].title, "head dim 64, no mask, batch 2, 4096 keys");
}

#[test]
fn many_panels_are_several_pictures() {
    let cells = (1..=13).map(|i| {
        let mut cell = sample_cell("bf16", 512, &TIMES);
        cell.problem.head_dim = 8 * i;
        cell
    });
    let record = sample("GPU", "cuda", cells.collect());
    assert_eq!(names(&record)[..2], ["tflops-bf16-1", "tflops-bf16-2"]);
}

#[test]
fn the_finding_says_how_the_newest_compares() {
    let mut record = full();
    for (i, cell) in record.cells.iter_mut().enumerate() {
        cell.results[2].ratio_to_best_peer = Some(1.0 + 0.01 * i as f64);
    }
    let description = figure(&record, "tflops-bf16").description;
    assert!(description.contains("ferroflash v3 reaches up to"), "{description}");
    assert!(description.ends_with("1.00 to 1.11 times the speed of the best peer."), "{description}");
    let speedup = figure(&record, "speedup-bf16").description;
    assert!(speedup.contains("v3 is 8.00 to 8.00 times as fast as naive"), "{speedup}");
}

#[test]
fn labels_are_short() {
    assert_eq!([512.0, 1024.0, 1000.0, 16384.0].map(seq_label), ["512", "1k", "1000", "16k"]);
    assert_eq!([2.0, 4096.0, 2f64.powi(31)].map(bytes_label), ["2 B", "4 KiB", "2 GiB"]);
    assert_eq!([100.0, 1e4, 1e6, 1e12].map(count_label), ["100", "10 k", "1 M", "1 T"]);
    assert_eq!([1e-6, 0.01, 1000.0, 1e6].map(decimal_label), ["1e-6", "0.01", "1000", "1e6"]);
    assert_eq!([5e-3, 3.0 * 0.1, 200.0, 5e5].map(decimal_label), ["5e-3", "0.3", "200", "5e5"]);
}
