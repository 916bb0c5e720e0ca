//! Tensors that go to other programs and come back, as files.

use super::sequences::Numbers;
use super::{GradientSet, Set, Workload, gradients};
use crate::bench::record::Check;
use crate::names::with_element;
use anyhow::{Context, Result, ensure};
use ferroflash::{Element, Shape};
use std::path::{Path, PathBuf};

impl Workload {
    /// Writes q, k and v as files of that name, element after element in the order `[batch, row, head, dim]` or `[page, row, head, dim]`; for
    /// a backward pass also `dout`, and `checked_dout`, which takes its place when results are compared. Which rows are whose goes to
    /// `starts`, of packed sequences, or `lengths` and `pages`, of a cache: numbers of 32 bits. What a program reads goes to `program`.
    pub(crate) fn write_inputs(&self, folder: &Path) -> Result<()> {
        let Set { q, k, v, gradients, .. } = &self.sets[0];
        let mut inputs = vec![("q", q), ("k", k), ("v", v)];
        if let Some(GradientSet { dout, .. }) = gradients {
            inputs.extend([("dout", dout), ("checked_dout", self.checked_dout.as_ref().unwrap_or(dout))]);
        }
        for (name, tensor) in inputs {
            let path = folder.join(name);
            let write = |bytes: &[u8]| std::fs::write(&path, bytes);
            with_element!(self.case.problem.dtype, T => write(bytemuck::cast_slice(&tensor.to_vec::<T>()?)))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(bytes) = self.scores.bytes()? {
            let path = folder.join("program");
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        for (name, numbers) in self.numbers.iter().flat_map(Numbers::files) {
            let path = folder.join(name);
            std::fs::write(&path, bytemuck::cast_slice(&numbers.to_vec()?))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Where another program writes what a pass gives, when it was told this file: the output there, gradients beside it, with their names
    /// behind its own.
    pub(crate) fn result_files(&self, file: &Path) -> Vec<PathBuf> {
        let out = self.pass.has_forward().then(|| file.to_owned());
        let gradients = if self.pass.has_backward() { &gradients::NAMES[..] } else { &[] };
        out.into_iter().chain(gradients.iter().map(|name| file.with_extension(name))).collect()
    }

    /// Compares what another program wrote to [those files](Self::result_files), in the order `[batch, row, head, dim]`, with the reference.
    pub(crate) fn check_files(&self, file: &Path) -> Result<Check> {
        with_element!(self.case.problem.dtype, T => self.check_files_of::<T>(file))
    }

    fn check_files_of<T: Element>(&self, file: &Path) -> Result<Check> {
        let read = |path: &Path, shape: Shape| {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let expected = shape.elements().unwrap_or(usize::MAX).saturating_mul(size_of::<T>());
            ensure!(bytes.len() == expected, "the output has {} bytes instead of {expected}", bytes.len());
            anyhow::Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect::<Vec<T>>())
        };
        let (q, kv) = (self.case.q_shape(), self.case.kv_shape());
        let out = if self.pass.has_forward() { Some(read(file, q)?) } else { None };
        let gradients = match self.pass.has_backward() {
            true => {
                let [dq, dk, dv] = gradients::NAMES.map(|name| file.with_extension(name));
                Some([read(&dq, q)?, read(&dk, kv)?, read(&dv, kv)?])
            }
            false => None,
        };
        Ok(self.compare(out.as_ref().map(|out| (&out[..], None)), gradients.as_ref()))
    }
}
