//! The PTX text of a crate: reads it into top-level items, applies launch bounds, splits it into one module per entry.
//!
//! A driver compiles a whole module when it loads it. With one module per entry, a program pays for the kernels that it launches.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use crate::{Arch, Error};

/// Opens the comment that `#[kernel]` leaves in the PTX: `// cuda_builder.kernel NAME DIRECTIVE=N[,N,N] ..`.
const MARKER: &str = "// cuda_builder.kernel ";

/// How an entry may be launched: PTX directives from `#[kernel(..)]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaunchBounds {
    /// `.reqntid`: the exact block shape, from `threads`.
    pub threads: Option<[u32; 3]>,
    /// `.maxntid`: the largest block shape, from `max_threads`.
    pub max_threads: Option<[u32; 3]>,
    /// `.minnctapersm`: blocks that must fit on one multiprocessor, from `min_ctas`.
    pub min_ctas: Option<u32>,
    /// `.align` of parameters passed as bytes, where rustc's own is smaller, from `param_align`.
    pub param_align: Option<u32>,
}

impl LaunchBounds {
    /// The directives as PTX lines.
    fn directives(&self) -> String {
        let mut text = String::new();
        for (name, shape) in [(".reqntid", self.threads), (".maxntid", self.max_threads)] {
            if let Some([x, y, z]) = shape {
                let _ = writeln!(text, "{name} {x}, {y}, {z}");
            }
        }
        if let Some(ctas) = self.min_ctas {
            let _ = writeln!(text, ".minnctapersm {ctas}");
        }
        text
    }
}

/// One entry point and the module that holds it alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the entry.
    pub name: String,
    /// How it may be launched.
    pub bounds: LaunchBounds,
    /// A self-contained PTX module: the header, this entry, and the functions and variables that it reaches.
    pub ptx: String,
}

impl Kernel {
    /// Whether the entry, or a function that it calls, uses local memory.
    pub fn uses_local_memory(&self) -> bool {
        // A `.local` declaration, in a function body or at file scope. Instructions have it after a dot (`ld.local`).
        self.ptx.lines().any(|line| line.trim_start().starts_with(".local"))
    }
}

/// A top-level statement of the module.
struct Item<'a> {
    text: &'a str,
    /// What it declares or defines.
    names: Vec<&'a str>,
    /// Every identifier in it.
    references: HashSet<&'a str>,
    is_entry: bool,
}

/// Splits the PTX of a crate into one module per entry, in the order of the text.
///
/// # Errors
/// [`Error::Ptx`] when the text is not PTX as LLVM writes it, [`Error::MissingEntry`] when a marker has no entry.
pub(crate) fn split(arch: Arch, ptx: &str) -> Result<Vec<Kernel>, Error> {
    let mut bounds = markers(arch, ptx)?;
    let (header, items) = items(arch, ptx)?;
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        for name in &item.names {
            by_name.entry(name).or_default().push(index);
        }
    }
    let mut kernels = Vec::new();
    for (index, entry) in items.iter().enumerate().filter(|(_, item)| item.is_entry) {
        let name = entry.names[0];
        let bounds = bounds.remove(name).unwrap_or_default();
        let mut text = header.clone();
        for reached in reachable(index, &items, &by_name) {
            text.push('\n');
            if reached == index {
                text.push_str(&with_bounds(arch, ptx, entry, &bounds)?);
            } else {
                text.push_str(items[reached].text);
            }
            text.push('\n');
        }
        kernels.push(Kernel { name: name.into(), bounds, ptx: text });
    }
    match bounds.into_keys().min() {
        Some(entry) => Err(Error::MissingEntry { arch, entry: entry.into() }),
        None => Ok(kernels),
    }
}

/// The items that an entry needs, itself included, in the order of the text (PTX wants declarations first).
fn reachable(entry: usize, items: &[Item<'_>], by_name: &HashMap<&str, Vec<usize>>) -> Vec<usize> {
    let mut seen = HashSet::from([entry]);
    let mut open = vec![entry];
    while let Some(index) = open.pop() {
        for name in &items[index].references {
            for &next in by_name.get(name).into_iter().flatten() {
                // Another entry of the crate is not called; a local name that equals its name is a coincidence.
                if !items[next].is_entry && seen.insert(next) {
                    open.push(next);
                }
            }
        }
    }
    let mut order: Vec<usize> = seen.into_iter().collect();
    order.sort_unstable();
    order
}

/// The entry with its directives between the parameter list and the body.
fn with_bounds(arch: Arch, ptx: &str, entry: &Item<'_>, bounds: &LaunchBounds) -> Result<String, Error> {
    let directives = bounds.directives();
    if *bounds == LaunchBounds::default() {
        return Ok(entry.text.to_string());
    }
    // An entry has one parameter list and no return value, so the first `)` before the body ends it; one without parameters
    // may have no list at all.
    let body = entry.text.find('{').ok_or_else(|| error(arch, ptx, entry.text, "an entry without a body"))?;
    let at = entry.text[..body].find(')').map_or(body, |close| close + 1);
    let parameters = match bounds.param_align {
        Some(least) => with_param_align(&entry.text[..at], least),
        None => entry.text[..at].to_string(),
    };
    Ok(format!("{}\n{directives}{}", parameters.trim_end(), entry.text[at..].trim_start()))
}

/// A parameter list whose parameters of bytes are aligned to at least `least`.
fn with_param_align(list: &str, least: u32) -> String {
    const ALIGN: &str = ".param .align ";
    let mut pieces = list.split(ALIGN);
    let mut text = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
        let own: u32 = piece[..digits].parse().unwrap_or(1);
        let _ = write!(text, "{ALIGN}{}{}", own.max(least), &piece[digits..]);
    }
    text
}

fn markers(arch: Arch, ptx: &str) -> Result<HashMap<&str, LaunchBounds>, Error> {
    let mut found = HashMap::new();
    for line in ptx.lines() {
        let Some(marker) = line.trim_start().strip_prefix(MARKER) else { continue };
        let mut words = marker.split_whitespace();
        let bounds = words.next().and_then(|name| Some((name, parse_bounds(words)?)));
        match bounds {
            Some((name, bounds)) => {
                if found.insert(name, bounds).is_some() {
                    return Err(error(arch, ptx, line, &format!("two kernels are called `{name}`")));
                }
            }
            None => return Err(error(arch, ptx, line, "a #[kernel] marker that this version does not know")),
        }
    }
    Ok(found)
}

fn parse_bounds<'a>(words: impl Iterator<Item = &'a str>) -> Option<LaunchBounds> {
    let mut bounds = LaunchBounds::default();
    for word in words {
        let (directive, values) = word.split_once('=')?;
        let values: Vec<u32> = values.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
        match (directive, &values[..]) {
            ("reqntid", &[x, y, z]) => bounds.threads = Some([x, y, z]),
            ("maxntid", &[x, y, z]) => bounds.max_threads = Some([x, y, z]),
            ("minnctapersm", &[ctas]) => bounds.min_ctas = Some(ctas),
            ("paramalign", &[bytes]) => bounds.param_align = Some(bytes),
            _ => return None,
        }
    }
    Some(bounds)
}

/// The header (`.version`, `.target`, `.address_size`) and the items after it.
fn items(arch: Arch, ptx: &str) -> Result<(String, Vec<Item<'_>>), Error> {
    let mut header = String::new();
    let mut items = Vec::new();
    let mut rest = skip_blank(ptx);
    while !rest.is_empty() {
        let directive = rest.split_whitespace().next().unwrap_or_default();
        let end = match directive {
            ".version" | ".target" | ".address_size" => {
                let end = rest.find('\n').unwrap_or(rest.len());
                header.push_str(rest[..end].trim_end());
                header.push('\n');
                end
            }
            _ if directive.starts_with('.') => {
                let end = item_end(rest).ok_or_else(|| error(arch, ptx, rest, "a statement without an end"))?;
                items.push(item(&rest[..end]).ok_or_else(|| error(arch, ptx, rest, "a declaration without a name"))?);
                end
            }
            other => return Err(error(arch, ptx, rest, &format!("`{other}` where a directive is expected"))),
        };
        rest = skip_blank(&rest[end..]);
    }
    if !header.contains(".version") || !header.contains(".target") {
        return Err(error(arch, ptx, ptx, "no `.version` or no `.target`"));
    }
    Ok((header, items))
}

/// Skips white space, comments and stray semicolons (`global_asm!` texts may end in `;` twice).
fn skip_blank(mut text: &str) -> &str {
    loop {
        text = text.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if text.starts_with("//") {
            text = &text[text.find('\n').unwrap_or(text.len())..];
        } else if let Some(comment) = text.strip_prefix("/*") {
            text = comment.find("*/").map_or("", |end| &comment[end + 2..]);
        } else {
            return text;
        }
    }
}

/// Length of the item that `text` starts with: up to its `;`, or to the `}` that closes a function body.
fn item_end(text: &str) -> Option<usize> {
    let is_function = function_kind(text).is_some();
    let mut depth = 0usize;
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'/' if text[at..].starts_with("//") => while bytes.next_if(|&(_, byte)| byte != b'\n').is_some() {},
            b'"' => while bytes.next().is_some_and(|(_, byte)| byte != b'"') {},
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && is_function {
                    return Some(at + 1);
                }
            }
            b';' if depth == 0 => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// The leading directive that makes the item a function, `.entry` or `.func`; `None` for a variable.
fn function_kind(text: &str) -> Option<&'static str> {
    text.split_whitespace().take_while(|word| word.starts_with('.')).find_map(|word| match word.split('(').next() {
        Some(".entry") => Some(".entry"),
        Some(".func") => Some(".func"),
        _ => None,
    })
}

fn item(text: &str) -> Option<Item<'_>> {
    let kind = function_kind(text);
    let names = if let Some(kind) = kind {
        // `.func (.param .b32 result) name(..)`: the name is the first identifier after the result.
        let after = text[text.find(kind)? + kind.len()..].trim_start();
        let after = match after.strip_prefix('(') {
            Some(result) => &result[result.find(')')? + 1..],
            None => after,
        };
        vec![identifiers(after).next()?]
    } else {
        // `.global .align 4 .b8 name[8] = {..};`, or several names between commas; the initialiser only refers.
        let declaration = &text[..text.find('=').unwrap_or(text.len())];
        identifiers(declaration).collect()
    };
    if names.is_empty() {
        return None;
    }
    Some(Item { text, names, references: identifiers(text).collect(), is_entry: kind == Some(".entry") })
}

/// Identifiers of variables and functions: no directives (`.b32`), registers (`%r1`), numbers or comments.
fn identifiers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| {
        let code = &line[..line.find("//").unwrap_or(line.len())];
        code.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.'))).filter_map(|word| {
            // `name.x` does not occur outside of registers; `ld.global.b32` is an opcode and no name equals its first part.
            let first = word.chars().next()?;
            (first.is_ascii_alphabetic() || first == '_' || first == '$').then_some(word)
        })
    })
}

fn error(arch: Arch, ptx: &str, at: &str, reason: &str) -> Error {
    // `at` is a part of `ptx`, so its address tells the line.
    let offset = (at.as_ptr() as usize).saturating_sub(ptx.as_ptr() as usize).min(ptx.len());
    let line = ptx.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count() + 1;
    Error::Ptx { arch, line, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the form that LLVM writes, comments included.
    const MODULE: &str = "\
//
// Generated by LLVM NVPTX Back-End
//

.version 7.0
.target sm_80
.address_size 64


.extern .shared .align 1024 .b8 dynamic_shared[];
.shared .align 16 .b8 scratch[256];
// cuda_builder.kernel one reqntid=128,1,1 minnctapersm=2
// cuda_builder.kernel two maxntid=8,8,1

.func  (.param .b32 func_retval0) helper
(
\t.param .b32 helper_param_0
)
;
.func panic
(
\t.param .b64 panic_param_0
)
.noreturn;
.global .align 4 .b8 table[4] = {0, 0, 128, 63};
.global .align 8 .u64 pointers[1] = {table};

\t// .globl\tone
.visible .entry one(
\t.param .u64 .ptr .align 1 one_param_0,
\t.param .u32 one_param_1
)
{
\t.reg .b32 \t%r<4>;
\t{ // callseq 0, 0 }
\tcall.uni (retval0), helper, (param0);
\t} // callseq 0
\tret;

}
\t// .globl\ttwo
.visible .entry two()
{
\t.local .align 4 .b8 \t__local_depot4[256];
\tmov.u32 %r1, dynamic_shared;
\tret;
}
.visible .entry plain()
{
\tmov.u64 %rd1, pointers; // scratch
\tret;
}
.func  (.param .b32 func_retval0) helper(
\t.param .b32 helper_param_0
)
{
\tcall.uni panic, (param0);
\tret;
}
.func panic(
\t.param .b64 panic_param_0
)
.noreturn
{
\ttrap;
}
";

    fn kernels() -> Vec<Kernel> {
        split(Arch::Sm80, MODULE).unwrap()
    }

    #[test]
    fn every_entry_gets_what_it_reaches_and_no_more() {
        let holds = |index: usize, text: &str| kernels()[index].ptx.contains(text);
        assert_eq!(kernels().iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>(), ["one", "two", "plain"]);
        for (text, expected) in [
            (".version 7.0\n.target sm_80\n.address_size 64\n", [true, true, true]),
            (".extern .shared .align 1024 .b8 dynamic_shared[];", [false, true, false]),
            (".shared .align 16 .b8 scratch[256];", [false, false, false]),
            ("helper_param_0", [true, false, false]),
            ("\ttrap;", [true, false, false]),
            (".b8 table[4]", [false, false, true]),
            (".u64 pointers[1]", [false, false, true]),
            (".entry one", [true, false, false]),
            (".entry two", [false, true, false]),
            ("cuda_builder.kernel", [false, false, false]),
        ] {
            assert_eq!([0, 1, 2].map(|index| holds(index, text)), expected, "{text}");
        }
        // Declaration and definition both.
        assert_eq!(kernels()[0].ptx.matches("helper_param_0").count(), 2);
    }

    #[test]
    fn launch_bounds_follow_the_parameter_list() {
        let [one, two, plain] = &kernels()[..] else { panic!() };
        assert!(one.ptx.contains("one_param_1\n)\n.reqntid 128, 1, 1\n.minnctapersm 2\n{\n"), "{}", one.ptx);
        assert!(two.ptx.contains(".entry two()\n.maxntid 8, 8, 1\n{\n"), "{}", two.ptx);
        assert!(plain.ptx.contains(".entry plain()\n{\n"), "{}", plain.ptx);
        assert_eq!(one.bounds, LaunchBounds { threads: Some([128, 1, 1]), min_ctas: Some(2), ..Default::default() });
        assert_eq!(plain.bounds, LaunchBounds::default());
    }

    #[test]
    fn parameters_are_aligned_on_request() {
        let list = ".entry e(\n\t.param .align 8 .b8 e_param_0[712],\n\t.param .u32 e_param_1,\n\t.param .align 128 .b8 e_param_2[8]\n)";
        let expected = list.replace(".align 8 ", ".align 64 ");
        assert_eq!(with_param_align(list, 64), expected);
        let words = "reqntid=384,1,1 paramalign=64".split(' ');
        assert_eq!(parse_bounds(words).unwrap().param_align, Some(64));
    }

    #[test]
    fn local_memory_is_seen() {
        assert_eq!(kernels().iter().map(Kernel::uses_local_memory).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn text_that_is_not_understood_is_an_error_with_its_line() {
        let fails = |text: &str| split(Arch::Sm80, text).unwrap_err().to_string();
        let header = ".version 7.0\n.target sm_80\n";
        assert!(fails("garbage").contains("line 1: `garbage`"));
        assert!(
            fails(&format!("{header}.visible .entry one() {{ ret;")).contains("line 3: a statement without an end")
        );
        assert!(fails(".global .b32 x;").contains("no `.version`"));
        let missing = fails(&format!("{header}// cuda_builder.kernel gone reqntid=1,1,1\n"));
        assert!(missing.contains("declares `gone`"), "{missing}");
        let unknown = fails(&format!("{header}// cuda_builder.kernel one cluster=2\n"));
        assert!(unknown.contains("line 3: a #[kernel] marker"), "{unknown}");
        let twice = fails(&format!("{header}// cuda_builder.kernel a\n// cuda_builder.kernel a\n"));
        assert!(twice.contains("line 4: two kernels are called `a`"), "{twice}");
    }
}
