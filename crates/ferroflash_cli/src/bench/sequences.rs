//! The cells of the presets whose keys are in a cache, or whose sequences are packed.

use crate::workload::{Case, Lengths, Rows};
use ferroflash::Sizes;
use kernel_spec::{DType, Mask};
use std::fmt;
use std::num::NonZero;
use std::str::FromStr;

/// Where the keys of decode are, on the command line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pages {
    /// In a contiguous cache.
    None,
    /// In pages of so many rows.
    Of(NonZero<u16>),
}

/// What decode measures when nothing else is asked for.
pub(crate) const DEFAULT_PAGES: [Pages; 2] = [Pages::None, Pages::Of(NonZero::new(64).unwrap())];

impl FromStr for Pages {
    type Err = String;

    fn from_str(text: &str) -> Result<Pages, String> {
        if text == "none" {
            return Ok(Pages::None);
        }
        let rows = text.parse().map(Pages::Of);
        rows.map_err(|_| format!("rows of a page from 1 to {}, or none for a contiguous cache, are expected", u16::MAX))
    }
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pages::None => f.write_str("none"),
            Pages::Of(rows) => write!(f, "{rows}"),
        }
    }
}

/// Batch, query heads, key-value heads, head dim, rows of q, rows of the cache: models of 8 and 70 billion parameters with 8 key-value heads,
/// from one sequence to many; without groups; one key-value head; several rows, as of speculative decoding; other head dims.
const DECODE: [[usize; 6]; 14] = [
    [1, 32, 8, 128, 1, 1024],
    [1, 32, 8, 128, 1, 8192],
    [1, 32, 8, 128, 1, 65536],
    [1, 64, 8, 128, 1, 131072],
    [8, 32, 8, 128, 1, 4096],
    [32, 32, 8, 128, 1, 4096],
    [128, 32, 8, 128, 1, 2048],
    [128, 64, 8, 128, 1, 8192],
    [32, 32, 32, 128, 1, 4096],
    [16, 8, 1, 128, 1, 16384],
    [32, 32, 8, 128, 4, 4096],
    [32, 32, 8, 128, 16, 4096],
    [8, 64, 8, 64, 1, 16384],
    [8, 16, 8, 256, 1, 16384],
];

/// The same of chunked prefill: a chunk of a long prompt alone, where its tiles do not fill a GPU, and as large as they do; chunks of several
/// sequences, as continuous batching has them; 64 dims.
const PREFILL: [[usize; 6]; 5] = [
    [1, 8, 1, 128, 256, 32768],
    [1, 32, 8, 128, 512, 8192],
    [1, 32, 8, 128, 2048, 32768],
    [8, 32, 8, 128, 256, 8192],
    [4, 64, 8, 64, 512, 16384],
];

/// Head dim of packed sequences.
const VARLEN_HEAD_DIM: usize = 128;

/// Lengths as a server meets them: 96 of a log-normal distribution, from 16 to 16384, most of some hundred rows. In Python
/// `random.seed(0); [max(16, min(16384, int(random.lognormvariate(6.5, 1.2)))) for _ in range(96)]`.
const TRACE: [usize; 96] = [
    533, 691, 1538, 592, 3627, 105, 920, 156, 624, 469, 468, 53, 736, 1411, 4990, 1809, 41, 152, 2060, 186, 848, 110,
    1702, 2719, 920, 918, 828, 303, 1307, 630, 763, 1192, 4829, 6020, 492, 1284, 1045, 3749, 92, 241, 1650, 1370, 59,
    73, 4072, 974, 1347, 859, 249, 120, 219, 130, 456, 670, 253, 12695, 1961, 186, 575, 602, 888, 363, 1682, 754, 1406,
    181, 433, 1375, 1373, 401, 424, 1048, 3982, 495, 1358, 944, 571, 149, 626, 654, 465, 896, 354, 411, 2720, 7570,
    527, 284, 137, 1069, 1921, 1546, 3704, 2022, 6659, 376,
];

/// One long sequence beside many short ones.
const LONG_AND_SHORT: [usize; 64] = one_long(32768, 512);

const fn one_long<const N: usize>(long: usize, short: usize) -> [usize; N] {
    let mut rows = [short; N];
    rows[0] = long;
    rows
}

/// The beginning of the trace, small enough for the emulator.
const SHORT_TRACE: [usize; 16] = {
    let mut rows = [0; 16];
    let mut i = 0;
    while i < rows.len() {
        rows[i] = TRACE[i].div_ceil(64);
        i += 1;
    }
    rows
};

const LENGTHS: [Lengths; 3] = [
    Lengths { name: "1x32k+63x512", rows: &LONG_AND_SHORT },
    Lengths { name: "64x1024", rows: &[1024; 64] },
    Lengths { name: "trace", rows: &TRACE },
];

const SHORT_LENGTHS: [Lengths; 3] = [
    Lengths { name: "1x256+7x16", rows: &one_long::<8>(256, 16) },
    Lengths { name: "16x32", rows: &[32; 16] },
    Lengths { name: "short trace", rows: &SHORT_TRACE },
];

/// Decoding, with the keys in each of these places.
pub(crate) fn decode(dtype: DType, pages: &[Pages], emulator: bool) -> Vec<Case> {
    cached(&DECODE, dtype, pages, emulator)
}

/// Chunks of prompts, likewise.
pub(crate) fn prefill(dtype: DType, pages: &[Pages], emulator: bool) -> Vec<Case> {
    let rows_over = |[batch, q_heads, kv_heads, head_dim, q_rows, kv_rows]: [usize; 6]| {
        [batch, q_heads, kv_heads, head_dim, q_rows.div_ceil(16), kv_rows]
    };
    cached(&if emulator { PREFILL.map(rows_over) } else { PREFILL }, dtype, pages, emulator)
}

fn cached(cells: &[[usize; 6]], dtype: DType, pages: &[Pages], emulator: bool) -> Vec<Case> {
    let sizes = cells.iter().map(|&[batch, q_heads, kv_heads, head_dim, q_rows, kv_rows]| {
        let problem = Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype };
        if !emulator {
            return problem;
        }
        let (batch, fewer, kv_rows) = (batch.div_ceil(8), kv_heads.div_ceil(4), kv_rows.div_ceil(64));
        Sizes { batch, kv_rows, q_heads: q_heads / kv_heads * fewer, kv_heads: fewer, ..problem }
    });
    let sizes: Vec<Sizes> = sizes.collect();
    let places = pages.iter().map(|pages| match pages {
        Pages::None => Rows::Cache,
        Pages::Of(rows) => Rows::Pages(rows.get().into()),
    });
    let of = |rows| sizes.iter().map(move |&problem| Case { rows, ..Case::new(problem, Mask::Causal) });
    places.flat_map(of).collect()
}

/// Packed sequences, and a batch of as many equal ones as one of them is.
pub(crate) fn varlen(dtype: DType, emulator: bool) -> Vec<Case> {
    let (lengths, heads) = if emulator { (SHORT_LENGTHS, [[2, 2], [4, 1]]) } else { (LENGTHS, [[16, 16], [32, 8]]) };
    let case = |batch, rows, [q_heads, kv_heads]: [usize; 2]| {
        let head_dim = VARLEN_HEAD_DIM;
        Case::new(Sizes { batch, q_rows: rows, kv_rows: rows, q_heads, kv_heads, head_dim, dtype }, Mask::Causal)
    };
    let packed = lengths.into_iter().flat_map(|lengths| {
        heads.map(|heads| Case { rows: Rows::Packed(lengths), ..case(1, lengths.tokens(), heads) })
    });
    let equal = lengths[1];
    packed.chain(heads.map(|heads| case(equal.rows.len(), equal.longest(), heads))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_reads_the_bytes_of_its_caches() {
        let cells = decode(DType::Bf16, &DEFAULT_PAGES, false);
        assert_eq!(cells.len(), 2 * 14);
        let gigabytes = |case: &Case| case.kv_bytes().unwrap() as f64 / 1e9;
        // 2 * 128 * 8192 * 8 * 128 * 2 bytes are the most.
        assert!((gigabytes(&cells[7]) - 4.29497).abs() < 1e-5);
        assert!(cells.iter().all(|case| gigabytes(case) <= gigabytes(&cells[7])));
        // One query row: 4 * 64 heads * 131072 keys * 128.
        assert_eq!(cells[3].flops(), 4.0 * 64.0 * 131072.0 * 128.0);
        for (contiguous, paged) in cells[..14].iter().zip(&cells[14..]) {
            assert_eq!((contiguous.rows, paged.rows), (Rows::Cache, Rows::Pages(64)));
            assert_eq!((contiguous.problem, contiguous.flops()), (paged.problem, paged.flops()));
        }
    }

    /// A row sees the keys before the chunk, and those of the chunk up to its own.
    #[test]
    fn chunks_are_the_last_rows_of_their_prompts() {
        let cells = prefill(DType::Bf16, &DEFAULT_PAGES, false);
        assert_eq!(cells.len(), 2 * 5);
        assert_eq!(cells[0].flops(), 4.0 * 128.0 * 8.0 * (256.0 * 32512.0 + f64::from(256 * 257 / 2)));
        assert_eq!((cells[0].rows, cells[5].rows), (Rows::Cache, Rows::Pages(64)));
    }

    #[test]
    fn varlen_is_the_lengths_of_the_trace() {
        assert_eq!(LENGTHS.map(|lengths| lengths.tokens()), [65024, 65536, 129_441]);
        assert_eq!(LENGTHS.map(|lengths| lengths.longest()), [32768, 1024, 12695]);
        let cells = varlen(DType::Bf16, false);
        assert_eq!(cells.len(), 3 * 2 + 2);
        // Each row sees those before it and itself.
        assert_eq!(cells[2].flops(), 4.0 * 128.0 * 16.0 * 64.0 * f64::from(1024 * 1025 / 2));
        let equal = cells[6];
        assert_eq!((equal.rows, equal.sequences(), equal.problem.q_rows), (Rows::Equal, 64, 1024));
        assert!((equal.flops() / cells[2].flops() - 1.0).abs() < 1e-3);
        assert_eq!([cells[7].problem.q_heads, cells[7].problem.kv_heads], [32, 8]);
    }

    #[test]
    fn what_runs_on_the_emulator_is_small() {
        let work = |cells: Vec<Case>| cells.iter().map(Case::flops).sum::<f64>();
        assert!(work(decode(DType::Bf16, &DEFAULT_PAGES, true)) < 2e8);
        assert!(work(prefill(DType::Bf16, &DEFAULT_PAGES, true)) < 2e9);
        assert!(work(varlen(DType::Bf16, true)) < 2e8);
        let heads = decode(DType::Bf16, &DEFAULT_PAGES[..1], true);
        for (case, [_, q_heads, kv_heads, ..]) in heads.iter().zip(DECODE) {
            assert_eq!(case.problem.q_heads / case.problem.kv_heads, q_heads / kv_heads);
        }
    }

    #[test]
    fn pages_are_numbers_or_none() {
        assert_eq!("none".parse(), Ok(Pages::None));
        assert_eq!("64".parse(), Ok(DEFAULT_PAGES[1]));
        for wrong in ["", "0", "-1", "64k", "65536"] {
            assert!(wrong.parse::<Pages>().unwrap_err().contains("none for a contiguous cache"), "{wrong}");
        }
    }
}
