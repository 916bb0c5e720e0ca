//! The `ferroflash` program: what it computes, prints and refuses.

use crate::support::case::{Case, Computed, Inputs, compare, runs};
use crate::support::program::{self, fail, refuses, succeed};
use crate::support::{bf16, device, f16};
use ferroflash::{DType, Element, Kernel, Layout, Mask, Sizes};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A folder with an input file, for one run of `attend`.
struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    fn new() -> Folder {
        Folder { folder: tempfile::tempdir().expect("a folder for the test") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn input(&self) -> PathBuf {
        self.path("in.safetensors")
    }

    fn output(&self) -> PathBuf {
        self.path("out.safetensors")
    }

    /// Writes the input file from `(name, dtype, dims, bytes)`.
    fn write(&self, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, dims, bytes)| {
            (*name, TensorView::new(*dtype, dims.clone(), bytes).expect("a legal tensor"))
        });
        std::fs::write(self.input(), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// q, k and v full of zeros of these dims.
    fn write_zeros(&self, dtype: Dtype, q: [usize; 4], k: [usize; 4], v: [usize; 4]) {
        let zeros = |name, dims: [usize; 4]| zeros(name, dtype, &dims);
        self.write(&[zeros("q", q), zeros("k", k), zeros("v", v)]);
    }

    fn attend(&self, arguments: &[&str]) -> Vec<String> {
        let path = |path: PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
        let fixed = ["attend", "--input", &path(self.input()), "--output", &path(self.output())].map(str::to_owned);
        fixed.into_iter().chain(arguments.iter().map(|&argument| argument.to_owned())).collect()
    }

    /// The error of `attend`, which must leave nothing behind.
    fn error(&self, arguments: &[&str]) -> String {
        let before = self.files();
        let arguments = self.attend(arguments);
        let error = fail(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(self.files(), before, "something was written");
        error
    }

    /// Expects `attend` to refuse with this in its message.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], expected: &str) {
        let error = self.error(arguments);
        assert!(error.contains(expected), "attend {arguments:?} does not say `{expected}`:\n{error}");
    }

    /// Runs `attend` and gives what it says on standard error; on standard output it says nothing.
    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        let arguments = self.attend(arguments);
        let output = program::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let said = program::text(&output.stderr);
        assert!(output.status.success(), "ferroflash {arguments:?}: {}\n{said}", output.status);
        assert_eq!(program::text(&output.stdout), "");
        said
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn zeros(name: &'static str, dtype: Dtype, dims: &[usize]) -> (&'static str, Dtype, Vec<usize>, Vec<u8>) {
    let bytes = dims.iter().product::<usize>() * dtype.bitsize() / 8;
    (name, dtype, dims.to_vec(), vec![0; bytes])
}

fn file_dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
        other => panic!("files of {other} are not tried"),
    }
}

const PROBLEM: Sizes =
    Sizes { batch: 2, q_rows: 19, kv_rows: 33, q_heads: 4, kv_heads: 2, head_dim: 24, dtype: DType::F32 };

/// `[batch, row, head, dim]` to the order of the file.
fn in_layout<T: Element>(data: &[T], [batch, rows, heads, dim]: [usize; 4], layout: Layout) -> (Vec<usize>, Vec<T>) {
    match layout {
        Layout::Bhsd => {
            let mut swapped = Vec::new();
            for b in 0..batch {
                for h in 0..heads {
                    for r in 0..rows {
                        swapped.extend_from_slice(&data[((b * rows + r) * heads + h) * dim..][..dim]);
                    }
                }
            }
            (vec![batch, heads, rows, dim], swapped)
        }
        _ => (vec![batch, rows, heads, dim], data.to_vec()),
    }
}

/// Runs `attend` on a file with this case's inputs and compares what it writes with the reference.
fn attend_agrees<T: Element>(case: &Case, layout: Layout, arguments: &[&str]) {
    let folder = Folder::new();
    let inputs: Inputs<T> = case.inputs();
    let Sizes { batch, q_rows, kv_rows, q_heads, kv_heads, head_dim, .. } = case.problem;
    let dtype = file_dtype(T::DTYPE);
    let (q_dims, kv_dims) = ([batch, q_rows, q_heads, head_dim], [batch, kv_rows, kv_heads, head_dim]);
    let tensor = |name, data: &[T], dims| {
        let (dims, data) = in_layout(data, dims, layout);
        (name, dtype, dims, bytemuck::cast_slice(&data).to_vec())
    };
    folder.write(&[
        tensor("q", &inputs.q, q_dims),
        tensor("k", &inputs.k, kv_dims),
        tensor("v", &inputs.v, kv_dims),
        // What else a file holds does not matter, though it is named.
        zeros("other", Dtype::I64, &[3]),
    ]);
    let said = folder.succeed(arguments);
    assert!(said.contains("the tensor other is not used") && said.contains("out and lse written to"), "{said}");
    assert_eq!(folder.files(), ["in.safetensors", "out.safetensors"]);

    let bytes = std::fs::read(folder.output()).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (out, lse) = (file.tensor("out").unwrap(), file.tensor("lse").unwrap());
    let (dims, _) = in_layout(&inputs.q, q_dims, layout);
    assert_eq!((out.dtype(), out.shape()), (dtype, &dims[..]));
    assert_eq!((lse.dtype(), lse.shape()), (Dtype::F32, &[batch, q_heads, q_rows][..]));
    let elements: Vec<T> = out.data().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect();
    // Swapping the middle axes a second time, seen from the other side.
    let out = match layout {
        Layout::Bhsd => in_layout(&elements, [batch, q_heads, q_rows, head_dim], Layout::Bhsd).1,
        _ => elements,
    };
    let lse = lse.data().chunks_exact(4).map(bytemuck::pod_read_unaligned).collect();
    let reference = case.reference(&inputs);
    compare(&Computed { out, lse }, &reference).unwrap_or_else(|wrong| panic!("{arguments:?}: {wrong}\n{case:#?}"));
}

#[test]
fn attend_agrees_with_the_reference() {
    let device = device::name();
    for (layout, name) in [(Layout::Bshd, "bshd"), (Layout::Bhsd, "bhsd")] {
        for kernel in Kernel::ALL {
            let case = |dtype, mask| Case::new(kernel, Sizes { dtype, ..PROBLEM }, mask);
            let fixed = ["--kernel", kernel.name(), "--layout", name, "--device", &device];
            if runs::<f32>(&device::shared().device, kernel) {
                attend_agrees::<f32>(&case(DType::F32, Mask::Full), layout, &fixed);
            }
            if !runs::<f16>(&device::shared().device, kernel) {
                continue;
            }
            attend_agrees::<f16>(&case(DType::F16, Mask::Causal), layout, &[&fixed[..], &["--causal"]].concat());
            let mut scaled = case(DType::Bf16, Mask::Window { left: Some(7), right: Some(2) });
            scaled.attention.scale = Some(-0.5);
            let window = ["--window-left", "7", "--window-right", "2", "--scale", "-0.5"];
            attend_agrees::<bf16>(&scaled, layout, &[&fixed[..], &window].concat());
        }
    }
}

#[test]
fn attend_chooses_a_kernel_and_has_a_reference() {
    let device = device::name();
    let case = |mask| Case::new(Kernel::V2, PROBLEM, mask);
    attend_agrees::<f32>(&case(Mask::Full), Layout::Bshd, &["--device", &device]);
    attend_agrees::<f32>(&case(Mask::Full), Layout::Bhsd, &["--kernel", "reference", "--layout", "bhsd"]);
    let left = Mask::Window { left: Some(4), right: Some(0) };
    attend_agrees::<f32>(&case(left), Layout::Bshd, &["--kernel", "reference", "--causal", "--window-left", "4"]);
}

#[test]
fn attend_takes_no_keys() {
    let device = device::name();
    let case = Case::new(Kernel::V2, Sizes { kv_rows: 0, ..PROBLEM }, Mask::Full);
    attend_agrees::<f32>(&case, Layout::Bshd, &["--device", &device]);
    attend_agrees::<f32>(&case, Layout::Bhsd, &["--kernel", "reference", "--layout", "bhsd"]);
}

#[test]
fn attend_replaces_its_output_and_records_how() {
    let folder = Folder::new();
    folder.write_zeros(Dtype::F32, [1, 4, 2, 8], [1, 4, 2, 8], [1, 4, 2, 8]);
    std::fs::write(folder.output(), "old").unwrap();
    folder.succeed(&["--kernel", "reference", "--causal", "--scale", "0.25"]);
    let bytes = std::fs::read(folder.output()).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["kernel"], "reference");
    assert_eq!(metadata["mask"], "Causal");
    assert_eq!(metadata["scale"], "0.25");
}

#[test]
fn attend_refuses_files_that_are_none() {
    let folder = Folder::new();
    folder.refuses(&[], "in.safetensors: it does not exist");
    std::fs::create_dir(folder.input()).unwrap();
    folder.refuses(&[], "is a folder; a file is needed");
    std::fs::remove_dir(folder.input()).unwrap();

    folder.write_zeros(Dtype::F16, [1, 4, 2, 8], [1, 4, 2, 8], [1, 4, 2, 8]);
    let whole = std::fs::read(folder.input()).unwrap();
    // Inside the length, inside the header, right behind it, inside the data, one byte short.
    let header = 8 + usize::from(whole[0]) + 256 * usize::from(whole[1]);
    for length in [0, 5, 8, 30, header, header + 20, whole.len() - 1] {
        std::fs::write(folder.input(), &whole[..length]).unwrap();
        let error = folder.error(&["--kernel", "reference"]);
        assert!(error.contains("in.safetensors: the file is truncated"), "{length}: {error}");
    }
    std::fs::write(folder.input(), [&whole[..], &[0]].concat()).unwrap();
    folder.refuses(&[], "has bytes too many");
    let mut broken = whole.clone();
    broken[8..12].copy_from_slice(b"!!!!");
    std::fs::write(folder.input(), &broken).unwrap();
    folder.refuses(&[], "in.safetensors: not a safetensors file");
    std::fs::write(folder.input(), "just some text that is long enough to be read as a header").unwrap();
    folder.refuses(&[], "in.safetensors: ");
}

#[test]
fn attend_refuses_tensors_that_do_not_fit() {
    let folder = Folder::new();
    let check = |tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)], expected: &str| {
        folder.write(tensors);
        folder.refuses(&["--kernel", "reference"], expected);
    };
    let four = [1, 4, 2, 8];
    let kv = || [zeros("k", Dtype::F16, &four), zeros("v", Dtype::F16, &four)];
    check(&kv(), "there is no tensor named q; q, k and v are needed, the file holds k, v");
    check(&[zeros("q", Dtype::F16, &four), kv()[0].clone()], "there is no tensor named v");
    check(&[], "the file holds no tensor");
    let [k, v] = kv();
    check(&[zeros("q", Dtype::F16, &[4, 2, 8]), k.clone(), v.clone()], "tensor q: attention takes tensors of 4 axes");
    check(&[zeros("q", Dtype::F64, &four), k.clone(), v.clone()], "tensor q holds F64; accepted are F32, F16 and BF16");
    check(&[zeros("q", Dtype::I32, &four), k.clone(), v.clone()], "tensor q holds I32; accepted are F32, F16 and BF16");
    check(&[zeros("q", Dtype::BF16, &four), k, v], "tensor k holds f16, q holds bf16; they must be equal");

    let check = |q, k, v, expected: &str| {
        folder.write_zeros(Dtype::F32, q, k, v);
        folder.refuses(&["--kernel", "reference"], expected);
    };
    check(four, four, [1, 5, 2, 8], "v has shape");
    check(four, [2, 4, 2, 8], [2, 4, 2, 8], "k has batch 2, q has 1; they must be equal");
    check(four, [1, 4, 2, 16], [1, 4, 2, 16], "k has head_dim 16, q has 8; they must be equal");
    check([1, 4, 3, 8], four, four, "3 query heads are no multiple of 2 key-value heads");
    check([1, 4, 2, 12], [1, 4, 2, 12], [1, 4, 2, 12], "head_dim 12 is not supported");
    check([1, 4, 2, 260], [1, 4, 2, 260], [1, 4, 2, 260], "head_dim 260 is not supported");
    check([0, 4, 2, 8], [0, 4, 2, 8], [0, 4, 2, 8], "q has no batch");
    check([1, 0, 2, 8], four, four, "q has no rows");
}

#[test]
fn attend_refuses_bad_options() {
    let folder = Folder::new();
    folder.write_zeros(Dtype::F32, [1, 4, 2, 8], [1, 4, 2, 8], [1, 4, 2, 8]);
    let device = device::name();
    for kernel in ["v2", "reference"] {
        let error = folder.error(&["--kernel", kernel, "--scale", "nan", "--device", &device]);
        assert!(error.contains("scale NaN is not accepted"), "{error}");
    }
    folder.refuses(&["--scale", "wide"], "--scale");
    folder.refuses(&["--kernel", "v9"], "possible values");
    folder.refuses(&["--layout", "sbhd"], "possible values");
    folder.refuses(&["--causal", "--window-right", "3"], "cannot be used with");
    folder.refuses(&["--window-left=-2"], "--window-left");
    folder.refuses(&["--device", "tpu"], "unknown device `tpu`");
    let input = folder.input();
    refuses(
        &["attend", "--input", input.to_str().unwrap(), "--output", "/absent/folder/out.safetensors"],
        "the folder /absent/folder does not exist",
    );
    let error =
        fail(&["attend", "--input", input.to_str().unwrap(), "--output", folder.folder.path().to_str().unwrap()]);
    assert!(error.contains("is a folder; a file is needed"), "{error}");
    refuses(&["attend", "--output", "x"], "--input");
}

#[test]
fn bench_checks_and_records() {
    let folder = Folder::new();
    let json = folder.path("results.json");
    let printed = succeed(&[
        "bench",
        "--device",
        &device::name(),
        "--dtype",
        "f16,f32",
        "--head-dim",
        "32",
        "--seq",
        "40,64",
        "--batch",
        "1",
        "--heads",
        "2",
        "--kv-heads",
        "1",
        "--repeats",
        "3",
        "--warmup",
        "5",
        "--json",
        json.to_str().unwrap(),
    ]);
    // Two masks and two lengths of two types, of which v3 takes f16.
    let has_v3 = runs::<f16>(&device::shared().device, Kernel::V3);
    let count = if has_v3 { 4 * (4 + 3) } else { 4 * (3 + 3) };
    let all = format!("{count} results compared with the f64 reference, all within the tolerance rule");
    assert!(printed.contains(&all), "{printed}");
    assert_eq!(printed.contains("not run: v3 at seq 40: kernel v3 cannot run this: the tensors hold f32"), has_v3);
    assert!(printed.contains("f16, causal, head_dim 32, heads 2/1"), "{printed}");
    assert_eq!(printed.contains("COUNTS"), !device::is_gpu(), "{printed}");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(record["kind"], "ferroflash-bench");
    assert_eq!(record["schema_version"], 2);
    for field in ["device", "backend", "date", "rustc", "ferroflash"] {
        assert!(record["environment"][field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
    let cells = record["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 8);
    for cell in cells {
        let seq = cell["problem"]["seq"].as_u64().unwrap();
        let results = cell["results"].as_array().unwrap();
        assert_eq!(results.len(), if has_v3 { 4 } else { 3 });
        for result in results {
            if !result["skipped"].is_null() {
                assert_eq!((&result["name"], &cell["problem"]["dtype"]), (&json!("v3"), &json!("f32")));
                continue;
            }
            assert_eq!(result["check"]["within"], true);
            assert_eq!(result["check"]["rows"], 2 * seq);
            assert_eq!(result["time_ms"].is_null(), !device::is_gpu());
            let naive = result["name"] == "naive";
            assert_eq!(result["symbols"].as_array().unwrap().len(), if naive { 3 } else { 1 });
            let dtype_bytes = if cell["problem"]["dtype"] == "f32" { 4 } else { 2 };
            let workspace = if naive { 2 * seq * seq * (4 + dtype_bytes) } else { 0 };
            // The log-sum-exp of two heads besides.
            assert_eq!(result["extra_bytes"], workspace + 2 * seq * 4);
            assert_eq!(result["saved_percent"].is_null(), naive);
            if !device::is_gpu() {
                // Those that the tables show; bank conflicts may be 0.
                for counter in ["lane_instructions", "special_functions", "global_bytes_read", "global_bytes_written"] {
                    assert!(result["counters"][counter].as_u64().is_some_and(|count| count > 0), "{counter}");
                }
                let f16 = cell["problem"]["dtype"] == "f16";
                assert_eq!(result["counters"]["tensor_flops"].as_u64().unwrap() > 0, f16);
                assert!(result["counters"]["shared_bank_conflicts"].is_u64());
            }
        }
    }
}

#[test]
fn bench_refuses_bad_options() {
    refuses(&["bench", "--kernel", "v9"], "possible values");
    refuses(&["bench", "--dtype", "f64"], "possible values");
    refuses(&["bench", "--device", "tpu"], "unknown device `tpu`");
    refuses(&["bench", "--repeats", "2"], "--repeats 2 is not accepted");
    refuses(&["bench", "--json", "/absent/folder/x.json"], "the folder /absent/folder does not exist");
    refuses(&["bench", "--batch", "2", "--tokens", "64"], "cannot be used with");
    let device = device::name();
    refuses(&["bench", "--device", &device, "--head-dim", "12"], "--head-dim 12 is not accepted");
    refuses(&["bench", "--device", &device, "--kv-heads", "3", "--heads", "4"], "--kv-heads");
    refuses(&["bench", "--device", &device, "--seq", "48", "--tokens", "64"], "64 tokens");
    // Before the first cell, not when its turn comes.
    let large = ["--batch", "1", "--heads", "1", "--dtype", "f16"];
    let rows = ["bench", "--device", &device, "--seq", "64,99999999999"];
    refuses(&[&rows[..], &large].concat(), "has 99999999999 rows; fewer than");
    let tensors = ["bench", "--device", &device, "--seq", "64,500000000", "--head-dim", "256"];
    refuses(&[&tensors[..], &large].concat(), "q, k, v and out take 954 GiB, the device has");
}

#[test]
fn doctor_finds_what_there_is() {
    let printed = succeed(&["doctor", "--device", &device::name()]);
    let entries = ferroflash::entries().count();
    assert!(printed.contains(&format!("PTX of {entries} of {entries} entry points")), "{printed}");
    for kernel in Kernel::ALL {
        let line = printed.lines().find(|line| line.starts_with(&format!("{kernel}, start")));
        let runs = runs::<f16>(&device::shared().device, kernel);
        let finding = if runs { "from process start to first result" } else { "not on this device: the device has" };
        assert!(line.is_some_and(|line| line.contains(finding)), "{printed}");
    }
    refuses(&["doctor", "--device", "cuda:4096"], "the device does not work");
}

#[test]
fn help_shows_examples() {
    let all = succeed(&["--help"]);
    for verb in ["bench", "attend", "doctor"] {
        assert!(all.contains(verb), "{all}");
        let help = succeed(&[verb, "--help"]);
        assert!(help.contains("Examples:") && help.contains(&format!("ferroflash {verb}")), "{help}");
    }
    assert!(succeed(&["--version"]).starts_with("ferroflash "));
    refuses(&["measure"], "unrecognized subcommand");
    refuses(&[], "Usage");
}

#[test]
fn tables_are_written_and_checked() {
    let folder = Folder::new();
    let root = folder.folder.path().to_str().unwrap();
    let readme = folder.path("README.md");
    refuses(&["tables", "--check", "--root", root], "README.md");
    let marked = |name: &str| format!("<!-- generated: {name} -->\n<!-- end: {name} -->\n");
    std::fs::write(&readme, format!("# x\n{}end\n", marked("hero"))).unwrap();
    refuses(&["tables", "--check", "--root", root], "differ from their sources");
    succeed(&["tables", "--write", "--root", root]);
    succeed(&["tables", "--check", "--root", root]);
    let text = std::fs::read_to_string(&readme).unwrap();
    assert!(text.contains("No results are committed") && text.ends_with("end\n"), "{text}");
    let page = folder.path("docs/benchmarks/README.md");
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("| v2 | bf16 | "), "{text}");
    std::fs::write(&page, text.replace("| v2 | bf16 |", "| v2 | f64 |")).unwrap();
    refuses(&["tables", "--check", "--root", root], "differ from their sources");
    refuses(&["tables"], "--write");
}

#[test]
fn bench_fails_on_a_device_that_is_absent() {
    let output = program::run(&["bench", "--device", "cuda:4096"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(program::text(&output.stderr).starts_with("error: "));
}
