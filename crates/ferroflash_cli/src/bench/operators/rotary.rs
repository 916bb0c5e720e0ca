//! Rotary embedding of heads, in halves, with tables in f32.

use super::cell::Cell;
use super::compared::{Elements, Expected, compared, numbers};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{Operation, Rotary};
use ferroflash::reference::ReferenceRotary;
use ferroflash::{Device, Element, Layout, Stream, Tensor};
use std::collections::BTreeMap;

/// Heads of a token, where rows are so many; else one.
const HEADS: usize = 32;

fn heads(cell: &Cell) -> usize {
    if cell.rows.is_multiple_of(HEADS) { HEADS } else { 1 }
}

/// Bytes of x, out and both tables, each counted once.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let rows = 2 * cell.rows * cell.columns * cell.dtype.bytes();
    (rows + 2 * (cell.rows / heads(cell)) * (cell.columns / 2) * size_of::<f32>()) as u64
}

/// The tensors of one launch.
struct Set {
    x: Tensor,
    out: Tensor,
}

/// Tokens at positions from 0 on.
pub(super) struct Subject {
    cell: Cell,
    cos: Tensor,
    sin: Tensor,
    sets: Vec<Set>,
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        anyhow::ensure!(cell.columns.is_multiple_of(2), "rotary embedding takes even numbers of columns");
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let (heads, half) = (heads(&cell), cell.columns / 2);
        let tokens = cell.rows / heads;
        let angle = |i: usize| {
            let frequency = 10_000f64.powf(-((i % half) as f64) / half as f64);
            (i / half) as f64 * frequency
        };
        let table = |of: fn(f64) -> f64| {
            let numbers: Vec<f32> = (0..tokens * half).map(|i| of(angle(i)) as f32).collect();
            Tensor::from_slice(device, &numbers, [tokens, half], Layout::RowMajor)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let data = values.draw::<T>(cell.rows * cell.columns, seed.wrapping_mul(8));
        let shape = [tokens, heads, cell.columns];
        let mut sets = Vec::new();
        for _ in 0..problem::sets(device, bytes(&cell)) {
            let x = Tensor::from_slice(device, &data, shape, Layout::RowMajor)?;
            sets.push(Set { x, out: Tensor::uninit(device, cell.dtype, shape, Layout::RowMajor)? });
        }
        Ok(Subject { cell, cos, sin, sets })
    }

    fn rotary(&self) -> Rotary<'_> {
        Rotary::new(&self.cos.view(), &self.sin.view())
    }
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let rotary = self.rotary();
        let rotary = if self.cell.is_backward() { rotary.conjugate() } else { rotary };
        Ok(Box::new(rotary.plan(&self.sets[0].x.view())?))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let Set { x, out } = &self.sets[set];
        let mut out = written(device, out)?;
        if self.cell.is_backward() {
            return self.rotary().backward_into(stream, &x.view(), &mut out);
        }
        self.rotary().forward_into(stream, &x.view(), &mut out)
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let backward = self.cell.is_backward();
        let given =
            |name, tensor, own, differentiated| Input { name, data: Data::Elements(tensor), own, differentiated };
        let mut inputs = vec![
            given("x", &self.sets[0].x, true, true),
            given("cos", &self.cos, false, false),
            given("sin", &self.sin, false, false),
        ];
        // What comes in has the numbers of x: the turn is linear, and its gradient knows nothing of x.
        if backward {
            inputs.push(given("dout", &self.sets[0].x, true, false));
        }
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let name = if self.cell.is_backward() { "dx" } else { "out" };
        vec![Output { name, tensor: &self.sets[0].out }]
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        self.sets[0].out.fill_bytes(0xff)
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn expected(&self) -> Result<Vec<Expected>> {
        let (heads, columns) = (heads(&self.cell), self.cell.columns);
        let tokens = self.cell.rows / heads;
        let elements = Elements::rows(compared(tokens), heads * columns);
        let (x, cos, sin) = (elements.of_tensor(&self.sets[0].x)?, numbers(&self.cos)?, numbers(&self.sin)?);
        let reference = ReferenceRotary {
            heads,
            columns,
            pairs: columns / 2,
            interleaved: false,
            conjugate: self.cell.is_backward(),
            cos: &cos,
            sin: &sin,
        };
        let positions: Vec<usize> = compared(tokens).collect();
        let exact = reference.forward(&x, &positions)?;
        let rounded = reference.forward_rounded(&x, &positions, self.cell.dtype)?;
        Ok(vec![Expected::new(elements, exact, rounded)])
    }
}
