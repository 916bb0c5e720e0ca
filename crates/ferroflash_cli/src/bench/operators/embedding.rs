//! Rows of an embedding table, and its gradient.

use super::cell::Cell;
use super::compared::{Elements, Expected, numbers};
use super::problem::{self, Data, Input, Output, written};
use crate::names::with_element;
use crate::values::Values;
use anyhow::Result;
use ferroflash::operators::{Embedding, Operation};
use ferroflash::reference::ReferenceEmbedding;
use ferroflash::{Device, Element, Indices, Layout, Stream, Tensor};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// Rows of the table: GPT-2's.
const VOCABULARY: usize = 50_257;

/// Those of a problem: a table for few long rows has no more than four for each token, or it would be all that is measured.
fn vocabulary(cell: &Cell) -> usize {
    VOCABULARY.min(4 * cell.rows)
}

/// Bytes of out, ids and the rows of the table, of which as many count as there are tokens at most; or of dout, ids and the gradient of the table.
pub(super) fn bytes(cell: &Cell) -> u64 {
    let table = if cell.is_backward() { vocabulary(cell) } else { vocabulary(cell).min(cell.rows) };
    ((cell.rows + table) * cell.columns * cell.dtype.bytes() + cell.rows * size_of::<i32>()) as u64
}

/// The tensors of one launch.
struct Set {
    /// The table, or its gradient.
    table: Tensor,
    /// Out, or its gradient.
    rows: Tensor,
}

/// Tokens that name any rows of the table, each as often as others.
pub(super) struct Subject {
    cell: Cell,
    vocabulary: usize,
    numbers: Vec<i32>,
    wide_numbers: Vec<i64>,
    ids: Indices,
    /// A table for the gradients, whose numbers nobody reads.
    table: Tensor,
    sets: Vec<Set>,
}

impl Subject {
    pub(super) fn new(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        with_element!(cell.dtype, T => Subject::with::<T>(device, cell, values, seed))
    }

    fn with<T: Element>(device: &Device, cell: Cell, values: Values, seed: u64) -> Result<Subject> {
        let vocabulary = vocabulary(&cell);
        let mut rng = SmallRng::seed_from_u64(seed);
        let numbers: Vec<i32> = (0..cell.rows).map(|_| rng.random_range(0..vocabulary as i32)).collect();
        let draw = |what: u64, rows: usize| values.draw::<T>(rows * cell.columns, seed.wrapping_mul(8) + what);
        let upload = |data: &[T], rows: usize| Tensor::from_slice(device, data, [rows, cell.columns], Layout::RowMajor);
        let (table, rows) = (draw(0, vocabulary), draw(1, cell.rows));
        let mut sets = Vec::new();
        for _ in 0..problem::sets(device, bytes(&cell)) {
            sets.push(Set { table: upload(&table, vocabulary)?, rows: upload(&rows, cell.rows)? });
        }
        let wide_numbers = numbers.iter().map(|&id| id.into()).collect();
        let ids = Indices::from_slice(device, &numbers)?;
        Ok(Subject { cell, vocabulary, numbers, wide_numbers, ids, table: upload(&table, vocabulary)?, sets })
    }
}

impl problem::Subject for Subject {
    fn sets(&self) -> usize {
        self.sets.len()
    }

    fn plan(&self) -> Result<Box<dyn Operation>> {
        let view = self.table.view();
        let embedding = Embedding::new(&view);
        Ok(Box::new(match self.cell.is_backward() {
            true => embedding.plan_backward(&self.ids.view(), &self.sets[0].rows.view())?,
            false => embedding.plan(&self.ids.view())?,
        }))
    }

    fn call(&self, device: &Device, set: usize, stream: &Stream) -> ferroflash::Result<()> {
        let Set { table, rows } = &self.sets[set];
        if self.cell.is_backward() {
            let embedding = Embedding::new(&self.table.view());
            return embedding.backward_into(stream, &self.ids.view(), &rows.view(), &mut written(device, table)?);
        }
        Embedding::new(&table.view()).forward_into(stream, &self.ids.view(), &mut written(device, rows)?)
    }

    fn inputs(&self) -> Vec<Input<'_>> {
        let given =
            |name, tensor, differentiated| Input { name, data: Data::Elements(tensor), own: true, differentiated };
        let ids = Input { name: "ids", data: Data::Whole(&self.wide_numbers), own: false, differentiated: false };
        let mut inputs = vec![given("table", &self.table, true), ids];
        if self.cell.is_backward() {
            inputs.push(given("dout", &self.sets[0].rows, false));
        }
        inputs
    }

    fn outputs(&self) -> Vec<Output<'_>> {
        let Set { table, rows } = &self.sets[0];
        vec![match self.cell.is_backward() {
            true => Output { name: "dtable", tensor: table },
            false => Output { name: "out", tensor: rows },
        }]
    }

    fn poison(&mut self) -> ferroflash::Result<()> {
        let Set { table, rows } = &mut self.sets[0];
        if self.cell.is_backward() { table.fill_bytes(0xff) } else { rows.fill_bytes(0xff) }
    }

    fn numbers(&self) -> BTreeMap<&'static str, f64> {
        BTreeMap::new()
    }

    fn expected(&self) -> Result<Vec<Expected>> {
        let Cell { columns, dtype, .. } = self.cell;
        let reference = ReferenceEmbedding { vocabulary: self.vocabulary, columns, scale: 1.0, padding: None };
        let ids = &self.numbers;
        let (exact, rounded) = if self.cell.is_backward() {
            let dout = numbers(&self.sets[0].rows)?;
            (reference.backward(ids, &dout, None)?, reference.backward_rounded(ids, &dout, None, dtype)?)
        } else {
            let table = numbers(&self.table)?;
            (reference.forward(&table, ids)?, reference.forward_rounded(&table, ids, dtype)?)
        };
        Ok(vec![Expected::new(Elements::all(exact.len()), exact, rounded)])
    }
}
