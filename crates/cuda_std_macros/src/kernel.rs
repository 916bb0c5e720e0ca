//! Parses `#[kernel(..)]`, checks the function, writes the entry point and its marker.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream, Parser};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{BinOp, Error, Expr, FnArg, Ident, ItemFn, Lit, Pat, Result, ReturnType, Token, Type, Visibility};

/// Threads of a block on every GPU so far (CUDA Programming Guide, technical specifications per compute capability).
const MAX_THREADS: u64 = 1024;

/// Blocks resident on one multiprocessor on every GPU so far (same table).
const MAX_CTAS: u64 = 32;

/// Largest alignment of a parameter in PTX (PTX ISA, kernel function parameter attributes).
const MAX_PARAM_ALIGN: u64 = 128;

/// A launch-bound argument: `name = value`.
struct Argument {
    name: Ident,
    value: Expr,
}

impl Parse for Argument {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let name = input.parse()?;
        input.parse::<Token![=]>()?;
        Ok(Argument { name, value: input.parse()? })
    }
}

/// One launch bound as PTX spells it, with a constant expression per dimension.
struct Bound {
    directive: &'static str,
    values: Vec<Expr>,
    limit: u64,
    what: &'static str,
    span: Span,
}

pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let bounds = parse_bounds(Punctuated::<Argument, Token![,]>::parse_terminated.parse2(arguments)?)?;
    let function: ItemFn = syn::parse2(item)?;
    check_function(&function)?;

    let ItemFn { attrs, vis, sig, block } = &function;
    let (name, inputs) = (&sig.ident, &sig.inputs);
    let (marker, marker_operands) = marker(name, &bounds);
    let assertions = bounds.iter().map(assertion);
    Ok(quote! {
        #[cfg(target_arch = "nvptx64")]
        ::core::arch::global_asm!(#marker, #(const #marker_operands),*);

        #(#assertions)*

        #[cfg(target_arch = "nvptx64")]
        #(#attrs)*
        #[unsafe(no_mangle)]
        #vis unsafe extern "ptx-kernel" fn #name(#inputs) #block

        #[cfg(not(target_arch = "nvptx64"))]
        #(#attrs)*
        #vis unsafe fn #name(#inputs) #block
    })
}

/// The comment that `cuda_builder` looks for, as a template of `global_asm!` and the operands of its placeholders.
fn marker(name: &Ident, bounds: &[Bound]) -> (String, Vec<TokenStream>) {
    let mut text = format!("// cuda_builder.kernel {name}");
    let mut operands = Vec::new();
    for bound in bounds {
        let places = vec!["{}"; bound.values.len()].join(",");
        text.push_str(&format!(" {}={places}", bound.directive));
        operands.extend(bound.values.iter().map(|value| quote! { { let value: u32 = #value; value } }));
    }
    (text, operands)
}

/// Checks at compile time what the macro cannot see: values that are named constants.
fn assertion(bound: &Bound) -> TokenStream {
    let Bound { values, limit, what, .. } = bound;
    let message = format!("{what} must lie in 1..={limit}");
    quote_spanned! { bound.span =>
        const _: () = {
            let product = 1u64 #( * { let value: u32 = #values; value as u64 } )*;
            ::core::assert!(product >= 1 && product <= #limit, #message);
        };
    }
}

fn parse_bounds(arguments: Punctuated<Argument, Token![,]>) -> Result<Vec<Bound>> {
    let mut bounds: Vec<Bound> = Vec::new();
    for Argument { name, value } in arguments {
        let span = value.span();
        let bound = match name.to_string().as_str() {
            "threads" => {
                Bound { directive: "reqntid", values: dimensions(value)?, limit: MAX_THREADS, what: "threads", span }
            }
            "max_threads" => Bound {
                directive: "maxntid",
                values: dimensions(value)?,
                limit: MAX_THREADS,
                what: "max_threads",
                span,
            },
            "min_ctas" => {
                Bound { directive: "minnctapersm", values: vec![value], limit: MAX_CTAS, what: "min_ctas", span }
            }
            "param_align" => Bound {
                directive: "paramalign",
                values: vec![value],
                limit: MAX_PARAM_ALIGN,
                what: "param_align",
                span,
            },
            other => {
                let message = format!(
                    "unknown argument `{other}`; accepted are `threads`, `max_threads`, `min_ctas` and `param_align`"
                );
                return Err(Error::new(name.span(), message));
            }
        };
        if bounds.iter().any(|b| b.directive == bound.directive) {
            return Err(Error::new(name.span(), format!("`{name}` is given twice")));
        }
        check_literal(&bound)?;
        bounds.push(bound);
    }
    let has = |directive| bounds.iter().find(|b| b.directive == directive);
    if let (Some(_), Some(max)) = (has("reqntid"), has("maxntid")) {
        return Err(Error::new(max.span, "`threads` fixes the block; `max_threads` beside it is an error in PTX"));
    }
    if let (Some(ctas), None, None) = (has("minnctapersm"), has("reqntid"), has("maxntid")) {
        return Err(Error::new(ctas.span, "`min_ctas` needs `threads` or `max_threads` beside it"));
    }
    Ok(bounds)
}

/// The three extents of a block from `n` or `(x, y, z)`.
fn dimensions(value: Expr) -> Result<Vec<Expr>> {
    match ungroup(&value) {
        Expr::Tuple(tuple) if (1..=3).contains(&tuple.elems.len()) => {
            let mut values: Vec<Expr> = tuple.elems.iter().cloned().collect();
            values.resize_with(3, || syn::parse_quote!(1));
            Ok(values)
        }
        Expr::Tuple(tuple) => {
            Err(Error::new(tuple.span(), format!("a block has up to 3 dimensions, {} given", tuple.elems.len())))
        }
        _ => Ok(vec![value, syn::parse_quote!(1), syn::parse_quote!(1)]),
    }
}

/// Reports a literal out of range at its own place, where the constant assertion would point into the expansion.
fn check_literal(bound: &Bound) -> Result<()> {
    let mut product = 1u64;
    for value in &bound.values {
        match integer(value)? {
            Some(n) => product = product.saturating_mul(n),
            None => return Ok(()),
        }
    }
    if product == 0 || product > bound.limit {
        let message = format!("{} must lie in 1..={}, {product} given", bound.what, bound.limit);
        return Err(Error::new(bound.span, message));
    }
    Ok(())
}

/// The value of an integer literal or of arithmetic on literals; `None` for an expression that only rustc can evaluate.
fn integer(value: &Expr) -> Result<Option<u64>> {
    match ungroup(value) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(n) if matches!(n.suffix(), "" | "u32") => n.base10_parse().map(Some),
            other => Err(Error::new(other.span(), "expected an unsigned integer (`u32`)")),
        },
        Expr::Binary(binary) => {
            let (Some(a), Some(b)) = (integer(&binary.left)?, integer(&binary.right)?) else { return Ok(None) };
            let result = match binary.op {
                BinOp::Add(_) => a.checked_add(b),
                BinOp::Sub(_) => a.checked_sub(b),
                BinOp::Mul(_) => a.checked_mul(b),
                BinOp::Div(_) => a.checked_div(b),
                _ => return Ok(None),
            };
            match result {
                Some(n) => Ok(Some(n)),
                None => Err(Error::new(binary.span(), "this arithmetic overflows or divides by zero")),
            }
        }
        Expr::Unary(unary) => Err(Error::new(unary.span(), "expected an unsigned integer (`u32`)")),
        _ => Ok(None),
    }
}

/// Strips parentheses and the invisible groups that `macro_rules!` puts around captured fragments.
fn ungroup(mut value: &Expr) -> &Expr {
    loop {
        value = match value {
            Expr::Group(group) => &group.expr,
            Expr::Paren(paren) => &paren.expr,
            other => return other,
        };
    }
}

fn check_function(function: &ItemFn) -> Result<()> {
    let signature = &function.sig;
    let fail = |span: Span, message: &str| Err(Error::new(span, message));
    if !matches!(function.vis, Visibility::Public(_)) {
        return fail(signature.fn_token.span, "a kernel must be `pub`: the linker sees only public symbols");
    }
    if signature.unsafety.is_none() {
        return fail(signature.fn_token.span, "a kernel must be `unsafe fn`: nothing checks the arguments of a launch");
    }
    if let Some(abi) = &signature.abi {
        return fail(abi.span(), "#[kernel] sets the ABI itself");
    }
    if let Some(constness) = &signature.constness {
        return fail(constness.span, "a kernel cannot be `const`");
    }
    if let Some(asyncness) = &signature.asyncness {
        return fail(asyncness.span, "a kernel cannot be `async`");
    }
    if let Some(variadic) = &signature.variadic {
        return fail(variadic.span(), "a kernel cannot be variadic");
    }
    if !signature.generics.params.is_empty() || signature.generics.where_clause.is_some() {
        return fail(signature.generics.span(), "a kernel cannot be generic: it is one symbol in the PTX");
    }
    match &signature.output {
        ReturnType::Default => {}
        ReturnType::Type(_, ty) if matches!(&**ty, Type::Tuple(tuple) if tuple.elems.is_empty()) => {}
        ReturnType::Type(_, ty) => return fail(ty.span(), "a kernel returns nothing: results go to device memory"),
    }
    for input in &signature.inputs {
        let FnArg::Typed(parameter) = input else {
            return fail(input.span(), "a kernel is a free function: it has no `self`");
        };
        if !matches!(&*parameter.pat, Pat::Ident(pat) if pat.by_ref.is_none() && pat.subpat.is_none()) {
            return fail(parameter.pat.span(), "a kernel parameter must be a plain name");
        }
        check_parameter_type(&parameter.ty)?;
    }
    Ok(())
}

fn check_parameter_type(ty: &Type) -> Result<()> {
    let message = match ty {
        Type::Group(group) => return check_parameter_type(&group.elem),
        Type::Paren(paren) => return check_parameter_type(&paren.elem),
        Type::Reference(_) => "a reference to host memory means nothing on the device: take a raw pointer",
        Type::Slice(_) | Type::TraitObject(_) => "a kernel parameter needs a size: take a raw pointer and a length",
        Type::ImplTrait(_) => "a kernel cannot be generic: it is one symbol in the PTX",
        Type::Tuple(_) => "the layout of a tuple is not fixed: take a `#[repr(C)]` struct",
        _ => return Ok(()),
    };
    Err(Error::new(ty.span(), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(arguments: &str, function: &str) -> String {
        expand(arguments.parse().unwrap(), function.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn marker_holds_name_and_directives() {
        let text = expand(
            quote!(threads = (32, 4), min_ctas = 2),
            quote!(
                pub unsafe fn k(x: *mut f32) {}
            ),
        )
        .unwrap()
        .to_string();
        assert!(text.contains(r#""// cuda_builder.kernel k reqntid={},{},{} minnctapersm={}""#), "{text}");
        assert!(text.contains(r#"extern "ptx-kernel" fn k"#), "{text}");
    }

    #[test]
    fn arithmetic_on_literals_is_evaluated() {
        for (text, value) in [
            ("128", Some(128)),
            ("32 * 4", Some(128)),
            ("(32 + 32) * 2 - 1", Some(127)),
            ("96 / 3u32", Some(32)),
            ("32 * WARPS", None),
        ] {
            assert_eq!(integer(&syn::parse_str(text).unwrap()).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn bad_arguments_name_the_cause() {
        let function = "pub unsafe fn k() {}";
        for (arguments, cause) in [
            ("threads = 1025", "threads must lie in 1..=1024, 1025 given"),
            ("threads = 0", "threads must lie in 1..=1024, 0 given"),
            ("threads = (64, 64)", "threads must lie in 1..=1024, 4096 given"),
            ("threads = (1, 1, 1, 1)", "up to 3 dimensions, 4 given"),
            ("threads = -1", "expected an unsigned integer"),
            ("threads = \"128\"", "expected an unsigned integer"),
            ("threads = 1.5", "expected an unsigned integer"),
            ("threads = 1 - 2", "overflows or divides by zero"),
            ("threads = 1 / 0", "overflows or divides by zero"),
            ("threads = 64, threads = 64", "`threads` is given twice"),
            ("threads = 64, max_threads = 64", "`threads` fixes the block"),
            ("min_ctas = 2", "`min_ctas` needs `threads` or `max_threads`"),
            ("threads = 64, min_ctas = 33", "min_ctas must lie in 1..=32, 33 given"),
            ("warps = 2", "unknown argument `warps`"),
        ] {
            let message = error(arguments, function);
            assert!(message.contains(cause), "{arguments}: {message}");
        }
    }

    #[test]
    fn bad_functions_name_the_cause() {
        for (function, cause) in [
            ("unsafe fn k() {}", "must be `pub`"),
            ("pub fn k() {}", "must be `unsafe fn`"),
            ("pub unsafe extern \"C\" fn k() {}", "sets the ABI itself"),
            ("pub const unsafe fn k() {}", "cannot be `const`"),
            ("pub async unsafe fn k() {}", "cannot be `async`"),
            ("pub unsafe fn k<T>() {}", "cannot be generic"),
            ("pub unsafe fn k<const N: u32>() {}", "cannot be generic"),
            ("pub unsafe fn k(x: impl Copy) {}", "cannot be generic"),
            ("pub unsafe fn k() -> u32 { 0 }", "returns nothing"),
            ("pub unsafe fn k(x: &f32) {}", "take a raw pointer"),
            ("pub unsafe fn k(x: [f32]) {}", "needs a size"),
            ("pub unsafe fn k(x: (u32, u64)) {}", "layout of a tuple"),
            ("pub unsafe fn k(&self) {}", "has no `self`"),
            ("pub unsafe fn k((a, b): P) {}", "must be a plain name"),
        ] {
            let message = error("threads = 64", function);
            assert!(message.contains(cause), "{function}: {message}");
        }
    }
}
