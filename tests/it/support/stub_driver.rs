//! A stand-in for `libcuda.so.1`, so that drivers and GPUs which nobody has at hand can be tested on any machine.
//!
//! Each of its functions writes one number to where its first argument points, if it is told to, and returns a code. The file is
//! the smallest ELF shared object that glibc's loader takes: one segment, a dynamic section, a symbol table and its hash.

use std::path::Path;

/// One function of the stand-in.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// Written as a 32-bit integer to the address in the first argument.
    pub(crate) writes: Option<u16>,
    pub(crate) returns: u16,
}

/// A function that returns `CUDA_SUCCESS`, after writing `value`.
pub(crate) const fn writes(name: &'static str, value: u16) -> Function {
    Function { name, writes: Some(value), returns: 0 }
}

/// A function that only returns `code`.
pub(crate) const fn returns(name: &'static str, code: u16) -> Function {
    Function { name, writes: None, returns: code }
}

/// Writes the stand-in into `folder` under the name of the driver library.
pub(crate) fn install(folder: &Path, functions: &[Function]) {
    std::fs::write(folder.join("libcuda.so.1"), shared_object(functions)).expect("the folder can be written");
}

/// Machine code of one function.
fn code(function: &Function) -> Vec<u8> {
    if cfg!(target_arch = "aarch64") {
        let mut words = Vec::new();
        if let Some(value) = function.writes {
            words.push(0x5280_0008 | u32::from(value) << 5); // movz w8, value
            words.push(0xb900_0008); // str w8, [x0]
        }
        words.push(0x5280_0000 | u32::from(function.returns) << 5); // movz w0, code
        words.push(0xd65f_03c0); // ret
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    } else {
        let mut code = Vec::new();
        if let Some(value) = function.writes {
            code.extend([0xc7, 0x07]); // mov dword [rdi], value
            code.extend(u32::from(value).to_le_bytes());
        }
        code.push(0xb8); // mov eax, code
        code.extend(u32::from(function.returns).to_le_bytes());
        code.push(0xc3); // ret
        code
    }
}

// Sizes of the ELF64 structures (System V gABI).
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SYMBOL: usize = 24;

fn shared_object(functions: &[Function]) -> Vec<u8> {
    let mut strings = vec![0u8];
    // The first symbol is the undefined one.
    let mut symbols = vec![0u8; SYMBOL];
    let mut text = Vec::new();
    let headers_end = HEADER + 3 * PROGRAM_HEADER;
    let text_start = headers_end.next_multiple_of(16);
    for function in functions {
        let address = (text_start + text.len()) as u64;
        let code = code(function);
        symbols.extend((strings.len() as u32).to_le_bytes());
        symbols.extend([0x12, 0]); // global function, default visibility
        symbols.extend(1u16.to_le_bytes()); // any defined section
        symbols.extend(address.to_le_bytes());
        symbols.extend((code.len() as u64).to_le_bytes());
        strings.extend(function.name.bytes());
        strings.push(0);
        text.extend(code);
        // Functions start at multiples of 16.
        text.resize(text.len().next_multiple_of(16), 0);
    }
    let count = functions.len() as u32 + 1;
    // One bucket, so that the names need no hashing: a chain through all symbols.
    let chain = (0..count).map(|i| if i == 0 || i + 1 == count { 0 } else { i + 1 });
    let hash: Vec<u8> = [1, count, 1].into_iter().chain(chain).flat_map(u32::to_le_bytes).collect();

    let mut file = vec![0u8; text_start];
    let mut place = |content: &[u8]| {
        file.resize(file.len().next_multiple_of(16), 0);
        let address = file.len() as u64;
        file.extend(content);
        address
    };
    place(&text);
    let (hash, symbols, names) = (place(&hash), place(&symbols), place(&strings));
    // DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL
    let tags = [(4, hash), (5, names), (6, symbols), (10, strings.len() as u64), (11, SYMBOL as u64), (0, 0)];
    let dynamic: Vec<u8> = tags.into_iter().flat_map(|(tag, value)| [tag, value]).flat_map(u64::to_le_bytes).collect();
    let dynamic_at = place(&dynamic);
    let size = file.len() as u64;

    file[..HEADER].copy_from_slice(&header());
    // PT_LOAD, readable, writable (the loader relocates the dynamic section in place) and executable.
    let load = program_header(1, 7, 0, size, 0x10000);
    let dynamic = program_header(2, 6, dynamic_at, dynamic.len() as u64, 8);
    // PT_GNU_STACK: the stack stays as it is, not executable.
    let stack = program_header(0x6474_e551, 6, 0, 0, 16);
    file[HEADER..headers_end].copy_from_slice(&[load, dynamic, stack].concat());
    file
}

fn header() -> Vec<u8> {
    let machine: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend(3u16.to_le_bytes()); // shared object
    header.extend(machine.to_le_bytes());
    header.extend(1u32.to_le_bytes());
    header.extend(0u64.to_le_bytes()); // no entry point
    header.extend((HEADER as u64).to_le_bytes()); // program headers follow
    header.extend(0u64.to_le_bytes()); // no section headers
    header.extend(0u32.to_le_bytes());
    header.extend([HEADER as u16, PROGRAM_HEADER as u16, 3, 64, 0, 0].into_iter().flat_map(u16::to_le_bytes));
    header
}

/// A segment that lies in memory where it lies in the file.
fn program_header(kind: u32, flags: u32, at: u64, size: u64, align: u64) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(flags.to_le_bytes());
    header.extend([at, at, at, size, size, align].into_iter().flat_map(u64::to_le_bytes));
    header
}
