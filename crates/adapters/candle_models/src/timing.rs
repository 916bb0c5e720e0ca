//! How long a prompt and a token take with flash attention and without.

use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};

use crate::Model;
use crate::weights::tokens;

/// Keys on the cache: from a short question to nearly what the model has positions for.
const LENGTHS: [usize; 4] = [128, 512, 2048, 4000];
/// Calls before the first sample: memory pools are filled, kernels are loaded and clocks have risen.
const WARM_UP: usize = 10;
/// Samples of each, of which the median is printed.
const SAMPLES: usize = 51;

/// Prints a table in Markdown. One sequence, in samples that end when the GPU is done, as they do where a program reads the logits to choose
/// the next token.
pub(crate) fn table(own: &Model, flash: &Model) -> Result<()> {
    println!(
        "\n| {:?} | candle's own attention, ms | flash attention, ms | ratio |\n| --- | --- | --- | --- |",
        flash.dtype
    );
    for length in LENGTHS {
        let all = tokens("timing", 1, length + 1, flash.config.vocab_size, &flash.device)?;
        let (prompt, token) = (all.narrow(1, 0, length)?, all.narrow(1, length, 1)?);
        let mut calls = Vec::new();
        for model in [own, flash] {
            // Caches keep the masks that candle's own attention reads: the first call with a length makes one, on the CPU.
            let mut empty = model.cache()?;
            empty.use_kv_cache = false;
            model.llama.forward(&prompt, 0, &mut empty)?;
            empty.use_kv_cache = true;
            let mut full = empty.clone();
            model.llama.forward(&prompt, 0, &mut full)?;
            calls.push((model, empty, full));
        }
        // Every call has a copy of the cache, which shares its tensors: all samples see as many keys.
        let prompts = medians(
            &flash.device,
            calls.iter().map(|(model, empty, _)| || model.llama.forward(&prompt, 0, &mut empty.clone())),
        )?;
        print_row(&format!("prompt of {length}"), &prompts);
        let steps = medians(
            &flash.device,
            calls.iter().map(|(model, _, full)| || model.llama.forward(&token, length, &mut full.clone())),
        )?;
        print_row(&format!("token after {length}"), &steps);
    }
    println!();
    Ok(())
}

fn print_row(what: &str, medians: &[Duration]) {
    let [own, flash] = [medians[0], medians[1]].map(|time| time.as_secs_f64() * 1e3);
    println!("| {what} | {own:.3} | {flash:.3} | {:.2} |", own / flash);
}

/// Median time of each call, with samples in turns, so that all meet the same clocks.
fn medians(device: &Device, calls: impl Iterator<Item = impl Fn() -> Result<Tensor>>) -> Result<Vec<Duration>> {
    let calls: Vec<_> = calls.collect();
    let mut samples = vec![Vec::new(); calls.len()];
    for round in 0..WARM_UP + SAMPLES {
        for (call, samples) in calls.iter().zip(&mut samples) {
            device.synchronize()?;
            let start = Instant::now();
            let logits = call()?;
            device.synchronize()?;
            if round >= WARM_UP {
                samples.push(start.elapsed());
            }
            drop(logits);
        }
    }
    Ok(samples
        .into_iter()
        .map(|mut samples| {
            samples.sort();
            samples[samples.len() / 2]
        })
        .collect())
}
