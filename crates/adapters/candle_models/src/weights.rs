//! Weights and tokens that are the same in every run and on every device.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use candle_core::{DType, Device, Result, Tensor};
use candle_transformers::models::llama::Config;

/// The weights that `Llama::load` asks for, by their names in files of Hugging Face, as `dtype` holds them.
///
/// Each product keeps the variance of its input, but for the queries, which are three times as large: scores with a standard deviation of 3
/// prefer few keys, where scores near zero would give every position the same mean of all values.
pub(crate) fn weights(config: &Config, dtype: DType, device: &Device) -> Result<HashMap<String, Tensor>> {
    let (hidden, wide, vocab) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let kv = hidden / config.num_attention_heads * config.num_key_value_heads;
    let mut all = HashMap::new();
    // Linear layers are [out, in]. The rows of the embedding are not summed over.
    let mut uniform = |name: String, rows: usize, cols: usize, deviation: f64| -> Result<()> {
        let tensor = Tensor::from_vec(values(&name, rows * cols, deviation), (rows, cols), device)?.to_dtype(dtype)?;
        all.insert(format!("{name}.weight"), tensor);
        Ok(())
    };
    let keeping = |inputs: usize| 1.0 / (inputs as f64).sqrt();
    uniform("model.embed_tokens".into(), vocab, hidden, 1.0)?;
    uniform("lm_head".into(), vocab, hidden, keeping(hidden))?;
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        uniform(name("self_attn.q_proj"), hidden, hidden, 3.0 * keeping(hidden))?;
        uniform(name("self_attn.k_proj"), kv, hidden, keeping(hidden))?;
        uniform(name("self_attn.v_proj"), kv, hidden, keeping(hidden))?;
        uniform(name("self_attn.o_proj"), hidden, hidden, keeping(hidden))?;
        uniform(name("mlp.gate_proj"), wide, hidden, keeping(hidden))?;
        uniform(name("mlp.up_proj"), wide, hidden, keeping(hidden))?;
        uniform(name("mlp.down_proj"), hidden, wide, keeping(wide))?;
    }
    let norms = (0..config.num_hidden_layers)
        .flat_map(|layer| ["input_layernorm", "post_attention_layernorm"].map(|n| format!("model.layers.{layer}.{n}")))
        .chain(["model.norm".to_owned()]);
    for name in norms {
        all.insert(format!("{name}.weight"), Tensor::ones(hidden, dtype, device)?);
    }
    Ok(all)
}

/// `[batch, length]` tokens below `vocab`; others for another `seed`.
pub(crate) fn tokens(seed: &str, batch: usize, length: usize, vocab: usize, device: &Device) -> Result<Tensor> {
    let mut random = random(seed);
    let tokens = (0..batch * length).map(|_| (random() % vocab as u64) as u32).collect();
    Tensor::from_vec(tokens, (batch, length), device)
}

/// Numbers of mean 0 and this standard deviation, uniform over an interval.
fn values(seed: &str, count: usize, deviation: f64) -> Vec<f32> {
    let mut random = random(seed);
    // An interval of width w has a standard deviation of w / sqrt(12).
    let width = deviation * 12f64.sqrt();
    (0..count).map(|_| ((random() as f64 / u64::MAX as f64 - 0.5) * width) as f32).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
fn random(seed: &str) -> impl FnMut() -> u64 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let mut state = hasher.finish();
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
