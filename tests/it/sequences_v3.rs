//! v3 over sequences: packed, in caches and in pages, whole and split. What it computes has the same bits wherever the keys are, which plans take
//! it, and what it refuses.

use crate::mutants::planner;
use crate::support::device;
use crate::support::packed::{Place, Sequences};
use ferroflash::{
    Attention, DType, Device, Error, Indices, Kernel, KernelChoice, KvCache, Layout, Mask, PageTable, Problem,
    QueryRows, Sequences as Kind, Splits, Tensor, TensorView, Unsupported, bf16, f16,
};
use kernel_spec::families::sequences::VARIANTS;
use kernel_spec::{Arch, Pass, Variant};

const DTYPE: DType = DType::F16;

/// Around the edges of tiles; some have no rows, some no keys.
const LENGTHS: [[usize; 2]; 6] = [[3, 300], [0, 20], [130, 131], [5, 0], [70, 128], [2, 1]];

/// The rows of a pass; none on GPUs other than Hopper.
fn rows(device: &Device, pass: Pass, dtype: DType) -> Vec<&'static Variant> {
    let rows = VARIANTS.iter().filter(|row| row.pass == pass && row.dtype == dtype);
    let rows: Vec<_> = rows.filter(|row| device.info().runs(row.entry.arch)).collect();
    assert_eq!(rows.is_empty(), !device.info().runs(Arch::Sm90a));
    rows
}

/// Split or not, in one piece a block of keys or several, of pages that are longer than a block and shorter. f16 has the same statements, and
/// rows with features differ in those alone.
#[test]
fn places_do_not_matter() {
    let shared = device::shared();
    let rows = rows(&shared.device, Pass::SplitV3, DType::Bf16);
    for row in rows.into_iter().filter(|row| row.entry.accepts.is_empty()) {
        let all = Sequences::<bf16>::draw(&LENGTHS, [2, 1], row.dim_qk as usize, 2);
        for (mask, splits) in [
            (Mask::Causal, Splits::Count(1)),
            (Mask::Full, Splits::Keys(128)),
            (Mask::Window { left: Some(140), right: Some(3) }, Splits::Count(3)),
        ] {
            let attention = Attention::new().with_mask(mask).with_kernel(row).with_splits(splits);
            let what = format!("{}, {mask:?}, {splits:?}", row.entry.symbol);
            let packed = all.run(&shared.device, Place::Packed, attention);
            all.expected(&attention).check(&packed, &what);
            for place in [Place::Cache, Place::UnpaddedPages(16), Place::UnpaddedPages(96), Place::UnpaddedPages(256)] {
                let found = all.run(&shared.device, place, attention);
                assert!(packed.iter().zip(&found).all(|(a, b)| a.bits() == b.bits()), "{what}, {place:?}");
            }
        }
    }
}

/// Tiles that are whole have the bits that they have in a cache, too.
#[test]
fn a_cache_is_as_good_as_packed_rows() {
    let shared = device::shared();
    for row in rows(&shared.device, Pass::PackedV3, DTYPE) {
        let all = Sequences::<f16>::draw(&LENGTHS, [2, 1], row.dim_qk as usize, 3);
        let attention = Attention::new().causal().with_kernel(row);
        let [packed, cached] = [Place::Packed, Place::Cache].map(|place| all.run(&shared.device, place, attention));
        assert!(packed.iter().zip(&cached).all(|(a, b)| a.bits() == b.bits()), "{}", row.entry.symbol);
    }
}

/// An H200, as far as plans look at it.
fn hopper() -> Device {
    planner(132)
}

/// A chunk of a prompt over a long cache is split until the GPU is full; many chunks are not.
#[test]
fn chunks_of_prompts() {
    let device = hopper();
    let plan = |batch, q_rows, capacity| {
        let sequences = Kind::Cached { batch, q_rows: QueryRows::Each(q_rows), capacity };
        Attention::new().causal().plan(&device, Problem::new(sequences, 8, 1, 128, DTYPE)).unwrap()
    };
    let chunk = plan(1, 256, 32768);
    assert_eq!((chunk.kernel, chunk.splits), (Kernel::V3, 8), "{chunk}");
    let symbols: Vec<_> = chunk.steps.iter().map(|step| step.kernel.entry.symbol).collect();
    assert_eq!(symbols, ["packed_tiles", "v3_split_f16_d128", "merge_f16"]);
    assert_eq!(chunk.steps[1].ctas, 128);
    let many = plan(16, 256, 32768);
    assert_eq!((many.kernel, many.splits, many.steps.len()), (Kernel::V3, 1, 2), "{many}");
    // A step of generation is another kernel's.
    assert_eq!(plan(1, 1, 32768).kernel, Kernel::V2);
    // Pages are for the row that splits, whatever the splits.
    let sequences = Kind::Paged { batch: 16, q_rows: QueryRows::Each(256), pages: 4096, page_rows: 64, width: 512 };
    let paged = Attention::new().causal().plan(&device, Problem::new(sequences, 8, 1, 128, DTYPE)).unwrap();
    assert_eq!((paged.splits, paged.steps[1].kernel.entry.symbol), (1, "v3_split_f16_d128"), "{paged}");
    assert!(paged.reason.contains("pages in pieces of 64 rows"), "{}", paged.reason);
    // Sums of 1 GiB and more are left to those who ask for them.
    let sequences =
        Kind::Paged { batch: 16, q_rows: QueryRows::Each(1 << 15), pages: 1 << 14, page_rows: 64, width: 512 };
    let long = Problem::new(sequences, 8, 1, 128, DTYPE);
    assert_eq!(Attention::new().causal().plan(&device, long).unwrap().kernel, Kernel::V2);
}

/// What v3 refuses is an error where it is asked for; left to choose, the library takes a portable kernel.
#[test]
fn what_it_refuses() {
    let device = hopper();
    let v3 = Attention::new().with_kernel(Kernel::V3);
    let refused = |attention: Attention<'static>, sequences, dtype, head_dim, words: &str| {
        let problem = Problem::new(sequences, 4, 2, head_dim, dtype);
        let error = attention.plan(&device, problem).unwrap_err();
        assert!(matches!(error, Error::KernelUnsupported { kernel: Kernel::V3, .. }), "{error:?}");
        assert_eq!(error.to_string(), format!("kernel v3 cannot run this: {words}"));
        let auto = attention.with_kernel(KernelChoice::Auto);
        assert_eq!(auto.plan(&device, problem).unwrap().kernel, Kernel::V2, "{words}");
    };
    let paged = |page_rows| Kind::Paged { batch: 2, q_rows: QueryRows::Each(70), pages: 6, page_rows, width: 3 };
    let cached = |rows| Kind::Cached { batch: 2, q_rows: QueryRows::Each(rows), capacity: 200 };
    let packed = Kind::Packed { batch: 2, q_rows: 500, kv_rows: 500 };
    refused(v3, paged(24), DTYPE, 64, "pages have 24 rows; multiples of 16 are accepted");
    refused(v3, paged(1), DTYPE, 64, "pages have 1 rows; multiples of 16 are accepted");
    refused(v3, cached(70), DType::F32, 64, "the tensors hold f32; f16 and bf16 are accepted");
    for sequences in [cached(70), packed] {
        let words = "the keys are to be split as Keys(64); at most 128 splits, of whole blocks of 128 keys, and `Splits::Auto` are accepted";
        refused(v3.with_splits(Splits::Keys(64)), sequences, DTYPE, 64, words);
    }
    let words = "batch entries of out are 256 elements apart, and its rows 256; entries of several rows, a whole number of rows apart, are \
                 accepted";
    refused(v3, cached(1), DTYPE, 64, words);
    let whole = rows(&device, Pass::PackedV3, DTYPE)[0];
    let capped = Attention::new().with_kernel(whole).with_softcap(Some(20.0));
    let error = capped.plan(&device, Problem::new(packed, 4, 2, 64, DTYPE)).unwrap_err();
    let words = "kernel v3 cannot run this: no compiled entry accepts softcap for f16 and head dim 64";
    assert_eq!(error.to_string(), words);
    let error = Attention::new().with_kernel(whole).with_splits(Splits::Count(2));
    let error = error.plan(&device, Problem::new(packed, 4, 2, 64, DTYPE)).unwrap_err();
    let words =
        "kernel v3 cannot run this: the keys are to be split as Count(2); one split and `Splits::Auto` are accepted";
    assert_eq!(error.to_string(), words);
    let error = Attention::new().with_kernel(whole).plan(&device, Problem::new(paged(16), 4, 2, 64, DTYPE));
    let words = "kernel v3 cannot run this: the sequences are paged; packed and cached ones are accepted";
    assert_eq!(error.unwrap_err().to_string(), words);
}

/// What depends on the tensors of a call.
#[test]
fn tensors_that_it_refuses() {
    let device = hopper();
    let v3 = Attention::new().with_kernel(Kernel::V3);
    let tensor = |shape: [usize; 4]| Tensor::zeros(&device, DTYPE, shape, Layout::RowMajor).unwrap();
    let (q, k, v) = (tensor([2, 70, 4, 64]), tensor([4, 32, 2, 64]), tensor([4, 48, 2, 64]));
    let words = |cache: &KvCache<'_>| match v3.plan_cached(&q.view(), None, cache, None).unwrap_err() {
        Error::KernelUnsupported { kernel: Kernel::V3, reason } => (reason.to_string(), reason),
        other => panic!("{other:?}"),
    };
    let table = Indices::from_slice(&device, &[0, 1, 2, 3]).unwrap();
    let first = Indices::from_slice(&device, &[0, 3]).unwrap();
    let pages = PageTable::new(table.view(), 2);
    let padded = KvCache::new(&k.view(), &k.view()).with_pages(pages).with_first(first.view());
    assert!(matches!(words(&padded).1, Unsupported::LeftPadding));
    // The same rows of v, further apart.
    let apart = v.strided(0, [4, 32, 2, 64], v.strides()).unwrap();
    let (found, reason) = words(&KvCache::new(&k.view(), &apart).with_pages(pages));
    assert!(matches!(reason, Unsupported::EntryRows { found: 48, accepted: 32, .. }), "{reason:?}");
    assert_eq!(found, "batch entries of v are 48 rows apart, those of k 32; equal numbers are accepted");
    // Entries that are no whole number of rows apart.
    let uneven = v.strided(0, [4, 32, 2, 64], [33 * 128 + 64, 128, 64, 1]).unwrap();
    let (found, _) = words(&KvCache::new(&uneven, &uneven).with_pages(pages));
    let expected = "batch entries of v are 4288 elements apart, and its rows 128; entries of several rows, a whole number of rows apart, are \
                    accepted";
    assert_eq!(found, expected);
    // Rows that the copy engine cannot step over twice.
    let row = 1 << 33;
    // SAFETY: no call reads it: it is refused.
    let far = unsafe {
        TensorView::from_raw(&device, k.address(), 4 * row, [2, 2, 2, 64], [2 * row, row, 64, 1], DTYPE).unwrap()
    };
    let (found, reason) = words(&KvCache::new(&far, &far));
    assert!(matches!(reason, Unsupported::RowBytes { .. }), "{reason:?}");
    assert_eq!(found, "the rows of k are 17179869184 bytes apart; fewer than 17179869168 are accepted over sequences");
}
