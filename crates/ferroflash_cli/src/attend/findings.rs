//! What looks like a mistake in a file or in a result, though nothing fails.

use ferroflash::{Element, Layout, Sizes};

/// Tensors of a file that are not read; `None` when all are.
pub(super) fn unused(names: &[&str]) -> Option<String> {
    let mut unused: Vec<&str> = names.iter().copied().filter(|name| !["q", "k", "v"].contains(name)).collect();
    if unused.is_empty() {
        return None;
    }
    unused.sort_unstable();
    let mask = unused.iter().any(|name| ["mask", "bias"].iter().any(|word| name.to_lowercase().contains(word)));
    let hint = if mask { "; masks are given as --causal, --window-left and --window-right" } else { "" };
    let (noun, verb) = if unused.len() == 1 { ("tensor", "is") } else { ("tensors", "are") };
    Some(format!("the {noun} {} {verb} not used: attend reads q, k and v{hint}", unused.join(", ")))
}

/// Whether rows and heads of a file seem to have changed places; `None` when they do not.
///
/// More heads than rows, in q and in k, is rare on purpose and what a file in the other layout looks like. The other layout must
/// be possible too.
pub(super) fn swapped(problem: &Sizes, layout: Layout) -> Option<String> {
    let Sizes { q_rows, kv_rows, q_heads, kv_heads, .. } = *problem;
    let looks_swapped = q_rows < q_heads && kv_rows < kv_heads && kv_rows > 0 && q_rows.is_multiple_of(kv_rows);
    looks_swapped.then(|| {
        format!(
            "{q_rows} rows of q and {kv_rows} of k and v are fewer than their {q_heads} and {kv_heads} heads, under --layout {}; \
             if rows and heads are the other way round in the file, give --layout {}",
            name(layout),
            name(other(layout))
        )
    })
}

/// What to add to the error of a file that the other layout would make sense of.
pub(super) fn try_other(layout: Layout) -> String {
    format!("with the axes of --layout {}; --layout {} would fit", name(layout), name(other(layout)))
}

/// The same tensors with rows and heads the other way round.
pub(super) fn in_other_layout(problem: &Sizes) -> Sizes {
    let Sizes { q_rows, kv_rows, q_heads, kv_heads, .. } = *problem;
    Sizes { q_rows: q_heads, kv_rows: kv_heads, q_heads: q_rows, kv_heads: kv_rows, ..*problem }
}

// Of the two orders that `--layout` takes.
fn other(layout: Layout) -> Layout {
    if layout == Layout::Bshd { Layout::Bhsd } else { Layout::Bshd }
}

fn name(layout: Layout) -> &'static str {
    if layout == Layout::Bshd { "bshd" } else { "bhsd" }
}

/// How many elements are of which kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Census {
    elements: usize,
    nan: usize,
    infinite: usize,
    zero: usize,
}

impl Census {
    pub(super) fn of<T: Element>(data: &[T]) -> Census {
        let mut census = Census { elements: data.len(), ..Census::default() };
        for x in data.iter().map(|x| x.to_f64()) {
            census.nan += usize::from(x.is_nan());
            census.infinite += usize::from(x.is_infinite());
            census.zero += usize::from(x == 0.0);
        }
        census
    }

    fn is_finite(self) -> bool {
        self.nan == 0 && self.infinite == 0
    }

    fn is_zero(self) -> bool {
        self.zero == self.elements
    }
}

/// What is odd about a result, one line each. `inputs` are q, k and v.
pub(super) fn of_result(inputs: [Census; 3], out: Census, lse: &[f32]) -> Vec<String> {
    let mut found = Vec::new();
    let strange: Vec<&str> = ["q", "k", "v"]
        .into_iter()
        .zip(inputs)
        .filter(|(_, census)| !census.is_finite())
        .map(|(name, _)| name)
        .collect();
    let cause = if strange.is_empty() {
        "though q, k and v hold neither".to_owned()
    } else {
        format!("as {} already does", strange.join(", ").replace("q, k, v", "each of q, k and v"))
    };
    let counted = |nan: usize, infinite: usize| match (nan, infinite) {
        (nan, 0) => format!("{nan} NaN"),
        (0, infinite) => format!("{infinite} infinities"),
        (nan, infinite) => format!("{nan} NaN and {infinite} infinities"),
    };
    if !out.is_finite() {
        found.push(format!(
            "out holds {} among its {} elements, {cause}",
            counted(out.nan, out.infinite),
            out.elements
        ));
    }
    // -inf is right for a row that sees no key.
    let nan = lse.iter().filter(|lse| lse.is_nan()).count();
    let infinite = lse.iter().filter(|&&lse| lse == f32::INFINITY).count();
    if nan + infinite > 0 {
        found.push(format!("lse holds {} among its {} elements, {cause}", counted(nan, infinite), lse.len()));
    }
    let unseeing = lse.iter().filter(|&&lse| lse == f32::NEG_INFINITY).count();
    if out.is_zero() && out.elements > 0 {
        let why = if unseeing == lse.len() {
            "no row sees a key"
        } else if inputs[2].is_zero() {
            "v is all zeros"
        } else {
            "though v is not"
        };
        found.push(format!("out is all zeros: {why}"));
    } else if unseeing > 0 {
        found.push(format!("{unseeing} of {} rows see no key: their out is 0, their lse -infinity", lse.len()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferroflash::DType;

    fn problem(q_rows: usize, q_heads: usize, kv_rows: usize, kv_heads: usize) -> Sizes {
        Sizes { batch: 1, q_rows, kv_rows, q_heads, kv_heads, head_dim: 64, dtype: DType::F16 }
    }

    #[test]
    fn swapped_axes_are_noticed_and_others_are_not() {
        // q [1, 8, 128, 64] and k [1, 2, 128, 64] of 8 and 2 heads, read as 8 and 2 rows of 128 heads; and without groups of heads.
        for swapped_problem in [problem(8, 128, 2, 128), problem(8, 128, 8, 128)] {
            let text = swapped(&swapped_problem, Layout::Bshd).unwrap();
            assert!(
                text.contains("if rows and heads are the other way round in the file, give --layout bhsd"),
                "{text}"
            );
            assert!(swapped(&swapped_problem, Layout::Bhsd).unwrap().ends_with("give --layout bshd"));
            assert_eq!(swapped(&in_other_layout(&swapped_problem), Layout::Bhsd), None);
        }
        // A step of decoding, a prompt, no keys, rows that could be no heads.
        for usual in [problem(1, 32, 4096, 8), problem(512, 32, 512, 8), problem(4, 32, 0, 8), problem(7, 32, 5, 32)] {
            assert_eq!(swapped(&usual, Layout::Bshd), None, "{usual}");
        }
    }

    #[test]
    fn tensors_that_are_not_read_are_named() {
        assert_eq!(unused(&["v", "q", "k"]), None);
        assert_eq!(unused(&["q", "k", "v", "x"]).unwrap(), "the tensor x is not used: attend reads q, k and v");
        let mask = unused(&["q", "k", "v", "x", "attn_mask"]).unwrap();
        assert!(mask.starts_with("the tensors attn_mask, x are not used") && mask.contains("--causal"), "{mask}");
    }

    #[test]
    fn odd_results_are_counted_and_good_ones_are_not() {
        let of =
            |inputs: [&[f32]; 3], out: &[f32], lse: &[f32]| of_result(inputs.map(Census::of), Census::of(out), lse);
        let ones: &[f32] = &[1.0, 1.0];
        let finite = [ones; 3];
        assert!(of(finite, &[0.5, 0.0], &[0.0]).is_empty());
        let nan = of(finite, &[f32::NAN, f32::INFINITY], &[f32::INFINITY]);
        assert_eq!(nan[0], "out holds 1 NaN and 1 infinities among its 2 elements, though q, k and v hold neither");
        assert_eq!(nan[1], "lse holds 1 infinities among its 1 elements, though q, k and v hold neither");
        let given = of([ones, &[f32::NAN, 0.0], ones], &[f32::NAN, f32::NAN], &[f32::NAN]);
        assert_eq!(given[0], "out holds 2 NaN among its 2 elements, as k already does");
        assert_eq!(of(finite, &[0.0, -0.0], &[1.0]), ["out is all zeros: though v is not"]);
        assert_eq!(of([ones, ones, &[0.0, 0.0]], &[0.0, 0.0], &[1.0]), ["out is all zeros: v is all zeros"]);
        assert_eq!(of(finite, &[0.0, 0.0], &[f32::NEG_INFINITY]), ["out is all zeros: no row sees a key"]);
        let some = of(finite, &[0.0, 1.0], &[f32::NEG_INFINITY, 0.0]);
        assert_eq!(some, ["1 of 2 rows see no key: their out is 0, their lse -infinity"]);
    }
}
