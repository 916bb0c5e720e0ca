//! `wmma` of every shape, layout and type that runs, against plain sums, and what is reported around it.

use ptx_emu::*;

/// A small integer as the bits of a half; sums of few of their products are exact in any type.
fn half(v: i32, bf16: bool) -> u16 {
    let bits = (v as f32).to_bits();
    if v == 0 || bf16 {
        return (bits >> 16) as u16;
    }
    ((bits >> 16 & 0x8000) + (((bits >> 23 & 0xff) - 112) << 10) + (bits >> 13 & 0x3ff)) as u16
}

fn value(bits: u32, bytes: usize) -> f32 {
    if bytes == 4 {
        return f32::from_bits(bits);
    }
    let (e, m) = (bits >> 10 & 31, bits & 0x3ff);
    let x =
        if e == 0 { m as f32 / 1024.0 * 2f32.powi(-14) } else { (1.0 + m as f32 / 1024.0) * 2f32.powi(e as i32 - 15) };
    if bits >> 15 & 1 == 1 { -x } else { x }
}

fn small(i: usize, j: usize, salt: usize) -> i32 {
    ((i * 7 + j * 13 + salt * 5 + i * j) % 9) as i32 - 4
}

/// A matrix in memory, with the elements from one line to the next.
struct Stored {
    by_columns: bool,
    stride: usize,
}

impl Stored {
    fn at(&self, row: usize, col: usize) -> usize {
        if self.by_columns { col * self.stride + row } else { row * self.stride + col }
    }

    fn name(&self) -> &'static str {
        if self.by_columns { "col" } else { "row" }
    }
}

fn registers(prefix: &str, n: usize) -> String {
    format!("{{{}}}", (0..n).map(|i| format!("%{prefix}{i}")).collect::<Vec<_>>().join(", "))
}

/// Bytes of global memory for each matrix.
const AREA: u64 = 8192;

struct Subject {
    shape: [usize; 3],
    bf16: bool,
    /// f32 in place of f16 for the sums that go in and come out.
    wide: [bool; 2],
    a: Stored,
    b: Stored,
    c: Stored,
    d: Stored,
    /// The first factor goes through shared memory.
    shared: bool,
}

impl Subject {
    fn text(&self, barrier: &str) -> String {
        let [m, n, k] = self.shape;
        let shape = format!("m{m}n{n}k{k}");
        let ty = if self.bf16 { "bf16" } else { "f16" };
        let [cty, dty] = self.wide.map(|w| if w { "f32" } else { "f16" });
        let count = |elements: usize| if self.bf16 { elements / 64 } else { 8 };
        let (ra, rb) = (registers("a", count(m * k)), registers("b", count(k * n)));
        let of_sum = |prefix: &str, wide: bool| {
            registers(&format!("{}{prefix}", if wide { "f" } else { "h" }), if wide { 8 } else { 4 })
        };
        let (rc, rd) = (of_sum("c", self.wide[0]), of_sum("d", self.wide[1]));
        let types = if self.bf16 { format!("{dty}.bf16.bf16.{cty}") } else { format!("{dty}.{cty}") };
        let (a, b, c, d) = (&self.a, &self.b, &self.c, &self.d);
        // Each lane copies its share of the area of the first factor.
        let (space, address) = if self.shared { ("shared", "%s0") } else { ("global", "%rd1") };
        let copy: String = (0..if self.shared { AREA / 4 / 32 } else { 0 })
            .map(|i| format!("ld.global.u32 %r3, [%rd7+{o}];\nst.shared.u32 [%r2+{o}], %r3;\n", o = 128 * i))
            .collect();
        format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n.shared .align 32 .b8 tile[{AREA}];\n\
             .reg .b32 %a<8>, %b<8>, %hc<4>, %hd<4>, %r<4>, %s0;\n.reg .f32 %fc<8>, %fd<8>;\n.reg .b64 %rd<8>;\n\
             ld.param.u64 %rd1, [p];\nadd.s64 %rd2, %rd1, {AREA};\nadd.s64 %rd3, %rd2, {AREA};\nadd.s64 %rd4, %rd3, {AREA};\n\
             mov.u32 %r0, %tid.x;\nmul.wide.u32 %rd7, %r0, 4;\nadd.s64 %rd7, %rd7, %rd1;\nmov.u32 %s0, tile;\nmad.lo.u32 %r2, %r0, 4, %s0;\n\
             {copy}{barrier}\n\
             wmma.load.a.sync.aligned.{}.{shape}.{space}.{ty} {ra}, [{address}], {};\n\
             wmma.load.b.sync.aligned.{}.{shape}.global.{ty} {rb}, [%rd2], {};\n\
             wmma.load.c.sync.aligned.{}.{shape}.{cty} {rc}, [%rd3], {};\n\
             wmma.mma.sync.aligned.{}.{}.{shape}.{types} {rd}, {ra}, {rb}, {rc};\n\
             wmma.store.d.sync.aligned.{}.{shape}.global.{dty} [%rd4], {rd}, {};\nG: ret;\n}}\n",
            a.name(),
            a.stride,
            b.name(),
            b.stride,
            c.name(),
            c.stride,
            a.name(),
            b.name(),
            d.name(),
            d.stride
        )
    }

    fn run(&self, barrier: &str, seed: u64) -> Result<Vec<f32>, EmuError> {
        let [m, n, k] = self.shape;
        let text = self.text(barrier);
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let e = Emulator::default();
        let memory = e.alloc(4 * AREA).unwrap();
        e.fill(memory, 0, 3 * AREA).unwrap();
        let halves = |area: u64, rows: usize, cols: usize, s: &Stored, salt: usize| {
            for (i, j) in (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j))) {
                let bits = half(small(i, j, salt), self.bf16 && salt < 3);
                e.write(memory + area * AREA + 2 * s.at(i, j) as u64, &bits.to_le_bytes()).unwrap();
            }
        };
        halves(0, m, k, &self.a, 1);
        halves(1, k, n, &self.b, 2);
        if self.wide[0] {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let bits = (small(i, j, 3) as f32).to_bits();
                e.write(memory + 2 * AREA + 4 * self.c.at(i, j) as u64, &bits.to_le_bytes()).unwrap();
            }
        } else {
            halves(2, m, n, &self.c, 3);
        }
        e.launch(&module, "k", &Launch::new([1, 1, 1], [32, 1, 1]).with_ptr(memory).with_seed(seed))?;
        let bytes = if self.wide[1] { 4 } else { 2 };
        let element = |(i, j): (usize, usize)| {
            let mut word = [0; 4];
            e.read(memory + 3 * AREA + (bytes * self.d.at(i, j)) as u64, &mut word[..bytes]).unwrap();
            value(u32::from_le_bytes(word), bytes)
        };
        Ok((0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(element).collect())
    }

    fn expected(&self) -> Vec<f32> {
        let [m, n, k] = self.shape;
        let sum = |i, j| (0..k).map(|x| small(i, x, 1) * small(x, j, 2)).sum::<i32>() + small(i, j, 3);
        (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| sum(i, j) as f32).collect()
    }
}

fn subjects() -> Vec<Subject> {
    let mut out = Vec::new();
    for shape @ [m, n, k] in [[16, 16, 16], [32, 8, 16], [8, 32, 16]] {
        for (bf16, wide) in
            [(false, [true; 2]), (false, [false; 2]), (false, [false, true]), (false, [true, false]), (true, [true; 2])]
        {
            for layouts in 0..16usize {
                let stored = |bit: usize, rows: usize, cols: usize, more: usize| {
                    let by_columns = layouts >> bit & 1 == 1;
                    Stored { by_columns, stride: if by_columns { rows } else { cols } + more }
                };
                out.push(Subject {
                    shape,
                    bf16,
                    wide,
                    a: stored(0, m, k, 8),
                    b: stored(1, k, n, 0),
                    c: stored(2, m, n, 4),
                    d: stored(3, m, n, 12),
                    shared: layouts % 3 == 1,
                });
            }
        }
    }
    out
}

#[test]
fn products_are_those_of_plain_sums() {
    for s in subjects() {
        assert_eq!(
            s.run("bar.warp.sync -1;", 0).unwrap_or_else(|e| panic!("{e}\n{}", s.text(""))),
            s.expected(),
            "{}",
            s.text("")
        );
    }
}

#[test]
fn a_matrix_is_read_by_all_lanes_and_must_be_there() {
    let all = subjects();
    let through_shared = all.iter().find(|s| s.shared).unwrap();
    for seed in 0..20 {
        assert_eq!(through_shared.run("bar.sync 0;", seed).unwrap(), through_shared.expected());
        // Which lane reads what is not specified: without a barrier it may be what another lane wrote.
        let e = through_shared.run("", seed).unwrap_err();
        assert_eq!(e.fault().unwrap().kind, FaultKind::SharedRace, "seed {seed}: {e}");
    }
    let first = &all[0];
    let kind = |body: &str| first.run(body, 0).unwrap_err().fault().unwrap().kind;
    assert_eq!(kind("add.s64 %rd2, %rd4, 0;"), FaultKind::UninitializedGlobal);
    assert_eq!(kind("add.s64 %rd4, %rd4, 8000;"), FaultKind::GlobalOutOfBounds);
    assert_eq!(kind("add.s64 %rd2, %rd2, 1;"), FaultKind::Misaligned);
    assert_eq!(kind("mov.u64 %rd2, %rd7;"), FaultKind::InvalidOperand);
    assert_eq!(
        kind(".reg .pred %p;\nsetp.eq.u32 %p, %r0, 3;\n@%p bra E;\nbra F;\nE: nanosleep.u32 1;\nbra G;\nF:"),
        FaultKind::DivergentCollective
    );
}
