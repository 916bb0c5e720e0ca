//! Modules: a loaded PTX text and its entries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ast::Ast;
use crate::error::ParseError;
use crate::ir::Program;

/// A loaded PTX text: every entry parsed, checked and ready to run.
pub struct Module {
    pub(super) id: u64,
    pub(super) source: String,
    pub(super) line_starts: Vec<usize>,
    pub(super) ast: Ast,
    pub(super) entries: BTreeMap<String, Program>,
    /// Entries with something that the emulator does not run.
    pub(super) refused: BTreeMap<String, ParseError>,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("target", &self.ast.target).field("entries", &self.entries.keys()).finish()
    }
}

/// One parameter of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Name in the PTX.
    pub name: String,
    /// Offset in the parameter block, in bytes.
    pub offset: u32,
    /// Size in bytes.
    pub bytes: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// What a launch of an entry needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryInfo {
    /// Name of the entry.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<ParamInfo>,
    /// Block size that `.reqntid` demands.
    pub required_block: Option<[u32; 3]>,
    /// Largest number of threads that `.maxntid` allows, as dimensions.
    pub max_block: Option<[u32; 3]>,
    /// Bytes of static shared memory.
    pub static_shared_bytes: u32,
    /// Bytes of local memory a thread.
    pub local_bytes: u32,
    /// Instructions with calls inlined.
    pub instructions: usize,
}

impl Module {
    /// Parses a PTX text (ISA 6.0 to 9.x, 64-bit addresses) and prepares all its entries.
    ///
    /// An entry with an opcode, type or modifier that the emulator does not run is an error when it is launched, as long as
    /// the module has another one: see [`Module::refused`]. Indirect, recursive and external calls are an error when they
    /// are executed.
    ///
    /// # Errors
    /// [`ParseError`] with line and column, for text that is not PTX and for a module none of whose entries can be run: the
    /// error of the first.
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let ast = crate::parser::parse(ptx)?;
        let (mut entries, mut refused) = (BTreeMap::new(), BTreeMap::new());
        let mut first = None;
        for (i, f) in ast.functions.iter().enumerate().filter(|(_, f)| f.is_entry && f.has_body) {
            match crate::lower::lower_entry(&ast, i as u32) {
                Ok(program) => {
                    entries.insert(f.name.clone(), program);
                }
                Err(error) => {
                    first.get_or_insert_with(|| error.clone());
                    refused.insert(f.name.clone(), error);
                }
            }
        }
        if entries.is_empty()
            && let Some(error) = first
        {
            return Err(error);
        }
        let mut line_starts = vec![0];
        line_starts.extend(ptx.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Module { id, source: ptx.to_owned(), line_starts, ast, entries, refused })
    }

    /// Entries that cannot be launched, by name, with what in them the emulator does not run.
    pub fn refused(&self) -> impl Iterator<Item = (&str, &ParseError)> {
        self.refused.iter().map(|(name, error)| (name.as_str(), error))
    }

    /// Names of the entries that can be launched, in order.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// What the entry takes and needs; `None` when the module has not got it, or when it is [refused](Module::refused).
    pub fn entry(&self, name: &str) -> Option<EntryInfo> {
        let p = self.entries.get(name)?;
        Some(EntryInfo {
            name: p.name.clone(),
            params: p
                .params
                .iter()
                .map(|q| ParamInfo { name: q.name.clone(), offset: q.offset, bytes: q.size, align: q.align })
                .collect(),
            required_block: p.reqntid,
            max_block: p.maxntid,
            static_shared_bytes: p.static_shared,
            local_bytes: p.local_bytes,
            instructions: p.code.len(),
        })
    }

    /// The `.target` of the module, such as `sm_80`.
    pub fn target(&self) -> &str {
        &self.ast.target
    }

    /// The `.version` of the module: major and minor number of the PTX ISA.
    pub fn version(&self) -> (u32, u32) {
        self.ast.version
    }
}
