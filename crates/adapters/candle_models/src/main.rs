//! A LLaMA of candle-transformers, whose source nobody changed, with its switch for flash attention on and off.
//!
//! Compares the logits of prompts, of chunks after prompts and of single tokens on the cache with those of the same weights in f32 and candle's own
//! attention: flash attention in 16 bits may be off by twice what candle's own attention in 16 bits is. Then takes the time of prompts and
//! of tokens. The exit status is 1 when a difference is too large.
//!
//! `candle_models` runs on the first GPU; `candle_models cpu`, built with the feature `emulator` and with `CANDLE_FERROFLASH_CPU=emulator` in its
//! environment, compares a much smaller model on the CPU.

mod timing;
mod weights;

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use ferroflash::reference::{Comparison, max_abs_difference};

use crate::weights::{tokens, weights};

/// What is compared, and in what types.
struct Setup {
    config: Config,
    dtypes: &'static [DType],
    /// Lengths of prompts.
    prompts: &'static [usize],
    /// Sequences that are computed together.
    batch: usize,
}

/// Tokens of the chunk that follows a prompt: several rows on a cache, whose mask ends at the last key and not at the diagonal.
const CHUNK: usize = 7;
/// Single tokens after that.
const STEPS: usize = 8;

impl Setup {
    /// Layers of the size of LLaMA 3 8B's, fewer of them, and a small vocabulary.
    fn of_a_gpu() -> Setup {
        let config = Config { num_hidden_layers: 8, vocab_size: 4096, ..config(32, 8, 128, 14336, 4096) };
        // Around the tiles of kernels, and far beyond them.
        Setup { config, dtypes: &[DType::BF16, DType::F16], prompts: &[1, 63, 128, 129, 1000, 2048], batch: 2 }
    }

    /// What an emulator computes in seconds. candle multiplies no matrices of bf16 on the CPU.
    fn of_a_cpu() -> Setup {
        let config = Config { num_hidden_layers: 2, vocab_size: 256, ..config(4, 2, 32, 256, 256) };
        Setup { config, dtypes: &[DType::F16], prompts: &[1, 33, 100], batch: 2 }
    }
}

fn config(heads: usize, kv_heads: usize, head_dim: usize, wide: usize, longest: usize) -> Config {
    Config {
        hidden_size: heads * head_dim,
        intermediate_size: wide,
        vocab_size: 0,
        num_hidden_layers: 0,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: longest,
        tie_word_embeddings: false,
    }
}

/// A model, with what a cache for it is made of.
pub(crate) struct Model {
    llama: Llama,
    config: Config,
    dtype: DType,
    device: Device,
}

impl Model {
    /// The model that computes in `dtype` with these weights, which it shares where they are of that type.
    fn new(
        config: &Config,
        flash: bool,
        weights: &HashMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Model> {
        let config = Config { use_flash_attn: flash, ..config.clone() };
        let builder = VarBuilder::from_tensors(weights.clone(), dtype, device);
        Ok(Model { llama: Llama::load(builder, &config)?, config, dtype, device: device.clone() })
    }

    /// A cache without keys.
    fn cache(&self) -> Result<Cache> {
        Cache::new(true, self.dtype, &self.config, &self.device)
    }

    /// Logits after a prompt of `length`, after the chunk and after every single token that follow.
    fn logits(&self, tokens: &Tensor, length: usize) -> Result<Vec<f64>> {
        let mut cache = self.cache()?;
        let mut all = Vec::new();
        let mut done = 0;
        for rows in [length, CHUNK].into_iter().chain([1; STEPS]) {
            let logits = self.llama.forward(&tokens.narrow(1, done, rows)?, done, &mut cache)?;
            all.extend(logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?);
            done += rows;
        }
        Ok(all)
    }
}

/// Whether flash attention's logits are as near to those of f32 as candle's own.
fn compare(setup: &Setup, [exact, own, flash]: [&Model; 3]) -> Result<bool> {
    let mut fine = true;
    for &length in setup.prompts {
        let tokens = |seed: &str, length| tokens(seed, setup.batch, length, setup.config.vocab_size, &flash.device);
        let prompt = tokens("prompt", length + CHUNK + STEPS)?;
        let logits = flash.logits(&prompt, length)?;
        let comparison = Comparison::new(&logits, &exact.logits(&prompt, length)?, &own.logits(&prompt, length)?);
        // A model that did not look back would pass: other tokens in the first half change what follows, and through attention alone.
        let half = prompt.dim(1)? / 2;
        let other = Tensor::cat(&[tokens("another prompt", half)?, prompt.narrow(1, half, prompt.dim(1)? - half)?], 1)?;
        let single = logits.len() - STEPS * setup.batch * setup.config.vocab_size;
        let moved = max_abs_difference(&flash.logits(&other, length)?[single..], &logits[single..]);
        let attends = moved > comparison.bound;
        println!(
            "{:?}, prompt of {length}: {comparison} (candle's own attention is off by {:.3e}; another first half moves logits by {moved:.3e})",
            flash.dtype, comparison.rounded_error
        );
        fine &= comparison.within && attends;
    }
    Ok(fine)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (setup, device) = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => (Setup::of_a_gpu(), Device::new_cuda(0)?),
        ["cpu"] => (Setup::of_a_cpu(), Device::Cpu),
        _ => {
            eprintln!("usage: candle_models [cpu]");
            std::process::exit(2);
        }
    };
    let mut fine = true;
    for &dtype in setup.dtypes {
        let weights = weights(&setup.config, dtype, &device)?;
        let model = |flash, dtype| Model::new(&setup.config, flash, &weights, dtype, &device);
        let (own, flash) = (model(false, dtype)?, model(true, dtype)?);
        fine &= compare(&setup, [&model(false, DType::F32)?, &own, &flash])?;
        if device.is_cuda() {
            timing::table(&own, &flash)?;
        }
    }
    println!("{}", if fine { "all within" } else { "OUTSIDE" });
    std::process::exit(i32::from(!fine))
}
