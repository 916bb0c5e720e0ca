//! A program of the unpacked packages, and of nothing of this workspace.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::tree::Package;
use crate::workspace;

/// Attention of one head in the emulator beside its definition in f64: by `v3` in bf16 and by `v2` in f32, which are compiled for the two
/// architectures. Values are multiples of an eighth, so that every type holds them.
const PROGRAM: &str = r#"
use ferroflash::{Attention, Device, Kernel, Layout, Shape, Tensor, bf16};

const ROWS: usize = 70;
const DIM: usize = 64;

fn value(seed: usize) -> impl Fn(usize) -> f64 {
    move |i| ((i * 37 + seed * 11) % 17) as f64 / 8.0 - 1.0
}

fn expected(row: usize) -> Vec<f64> {
    let (q, k, v) = (value(1), value(2), value(3));
    let score = |key: usize| (0..DIM).map(|d| q(row * DIM + d) * k(key * DIM + d)).sum::<f64>() / (DIM as f64).sqrt();
    let weights: Vec<f64> = (0..=row).map(|key| score(key).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..DIM).map(|d| (0..=row).map(|key| weights[key] * v(key * DIM + d)).sum::<f64>() / total).collect()
}

fn check(kernel: Kernel, tolerance: f64, is_half: bool) -> Result<(), ferroflash::Error> {
    let device = Device::emulator()?;
    let shape = Shape::new(1, ROWS, 1, DIM);
    let tensor = |seed| {
        let values = (0..ROWS * DIM).map(value(seed));
        if is_half {
            let values: Vec<bf16> = values.map(bf16::from_f64).collect();
            Tensor::from_slice(&device, &values, shape, Layout::Bshd)
        } else {
            let values: Vec<f32> = values.map(|x| x as f32).collect();
            Tensor::from_slice(&device, &values, shape, Layout::Bshd)
        }
    };
    let (q, k, v) = (tensor(1)?, tensor(2)?, tensor(3)?);
    let output = Attention::new().causal().with_kernel(kernel).forward(&q.view(), &k.view(), &v.view())?;
    let out: Vec<f64> = if is_half {
        output.out.to_vec::<bf16>()?.into_iter().map(f64::from).collect()
    } else {
        output.out.to_vec::<f32>()?.into_iter().map(f64::from).collect()
    };
    for row in 0..ROWS {
        for (d, expected) in expected(row).into_iter().enumerate() {
            let found = out[row * DIM + d];
            assert!((found - expected).abs() <= tolerance, "row {row}, dim {d}: {found}, expected {expected}\n{}", output.plan);
        }
    }
    Ok(())
}

fn main() -> Result<(), ferroflash::Error> {
    // Half a unit in the last place of results and probabilities up to 1 in bf16, twice over; f32 sums of 70 terms.
    check(Kernel::V3, 1.0 / 128.0, true)?;
    check(Kernel::V2, 1e-5, false)?;
    println!("{}", ferroflash::embedded_entries().count());
    Ok(())
}
"#;

/// Has cargo check every package and run the program, in a workspace of the packages whose dependencies are this workspace's, compiled
/// already.
pub(super) fn run(packages: &[Package]) -> Result<()> {
    workspace::step("a program of the packages alone");
    let ferroflash = packages.iter().find(|package| package.name == "ferroflash").context("a package of ferroflash")?;
    let folder = ferroflash.folder.parent().context("packages lie in a folder")?;
    let root = fs::read_to_string(workspace::root().join("Cargo.toml"))?;
    // The same profiles: what others wrote is compiled as it is here.
    let profiles = root.find("[profile.").map(|at| &root[at..]).context("the workspace has profiles")?;
    fs::write(folder.join("Cargo.toml"), manifest(packages, profiles))?;
    fs::copy(workspace::root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::copy(workspace::root().join("rust-toolchain.toml"), folder.join("rust-toolchain.toml"))?;
    let program = folder.join("program");
    fs::create_dir_all(program.join("src"))?;
    fs::write(program.join("src/main.rs"), PROGRAM)?;
    fs::write(
        program.join("Cargo.toml"),
        format!(
            "[package]\nname = \"ferroflash_of_packages\"\nedition = \"2024\"\n\n[dependencies]\nferroflash = \"{}\"\n",
            env!("CARGO_PKG_VERSION")
        ),
    )?;

    let cargo = |verb: &str| -> Result<Command> {
        let mut cargo = workspace::cargo();
        // Packages that were looked for elsewhere would be somebody else's.
        cargo.arg(verb).args(["--quiet", "--offline", "--target-dir"]).arg(workspace::target_dir()?);
        // A package that looked beside itself would find no kernels here, and must not be told of others.
        cargo.current_dir(folder).env_remove("FERROFLASH_PTX_DIR");
        Ok(cargo)
    };
    workspace::run(cargo("check")?.arg("--workspace"))?;
    let entries = workspace::output(cargo("run")?.args(["--profile", "test", "--package", "ferroflash_of_packages"]))?;
    let listed = kernel_spec::entries().count().to_string();
    if entries.trim() != listed {
        bail!("the packages hold {} entries, and the list {listed}", entries.trim());
    }
    Ok(())
}

/// A workspace of the packages and of the program, in which the packages are what a registry would give.
fn manifest(packages: &[Package], profiles: &str) -> String {
    let folders = || packages.iter().filter_map(|package| Some((&package.name, package.folder.file_name()?.to_str()?)));
    let members: Vec<String> = folders().map(|(_, folder)| format!("{folder:?}")).collect();
    let patches: String = folders().map(|(name, folder)| format!("{name} = {{ path = {folder:?} }}\n")).collect();
    format!(
        "[workspace]\nresolver = \"3\"\nmembers = [\"program\", {}]\n\n[patch.crates-io]\n{patches}\n{profiles}",
        members.join(", ")
    )
}
