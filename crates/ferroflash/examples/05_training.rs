//! A transformer layer trained in plain Rust: attention and its gradients from ferroflash, everything else written out below.
//!
//! The task cannot be solved without attention: say which token stood one place before. So the layer has to learn to look there.
//!
//! `cargo run --release --example 05_training [-- DEVICE]`, with DEVICE `emulator` (the default), `best` or `cuda:0`.

use ferroflash::{Attention, Device, Layout, Shape, Tensor};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const BATCH: usize = 8;
const ROWS: usize = 16;
const HEADS: usize = 2;
const HEAD_DIM: usize = 8;
const WIDTH: usize = HEADS * HEAD_DIM;
const TOKENS: usize = 8;
const STEPS: usize = 60;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "emulator".to_owned());
    let [first, last] = train(&Device::open(&name)?)?;
    // Guessing is worth ln(8) = 2.08.
    if last < 0.1 { Ok(()) } else { Err(format!("the loss went from {first} to {last}").into()) }
}

/// Trains a layer; returns the first and the last loss.
fn train(device: &Device) -> ferroflash::Result<[f32; 2]> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut layer = Layer::new(&mut rng);
    let (mut first, mut last) = (f32::NAN, f32::NAN);
    for step in 1..=STEPS {
        let tokens: Vec<usize> = (0..BATCH * ROWS).map(|_| rng.random_range(0..TOKENS)).collect();
        last = layer.train(device, &tokens, step)?;
        if step == 1 {
            first = last;
        }
        if step == 1 || step % 20 == 0 {
            println!("step {step:3}  loss {last:.4}");
        }
    }
    Ok([first, last])
}

#[test]
fn the_loss_falls() {
    let [first, last] = train(&Device::emulator().unwrap()).unwrap();
    assert!(first > 1.5 && last < 0.1, "{first} to {last}");
}

/// `logits = (x + attention(x wq, x wk, x wv) wo) unembed` with `x = embed[token] + place[row]`.
struct Layer {
    embed: Weights,
    place: Weights,
    wq: Weights,
    wk: Weights,
    wv: Weights,
    wo: Weights,
    unembed: Weights,
}

impl Layer {
    fn new(rng: &mut SmallRng) -> Layer {
        let mut weights = |rows, cols| Weights::new(rows, cols, rng);
        Layer {
            embed: weights(TOKENS, WIDTH),
            place: weights(ROWS, WIDTH),
            wq: weights(WIDTH, WIDTH),
            wk: weights(WIDTH, WIDTH),
            wv: weights(WIDTH, WIDTH),
            wo: weights(WIDTH, WIDTH),
            unembed: weights(WIDTH, TOKENS),
        }
    }

    /// One step on a batch of token rows; returns the mean loss before it.
    fn train(&mut self, device: &Device, tokens: &[usize], step: usize) -> ferroflash::Result<f32> {
        // Forward.
        let mut x = Matrix::zeros(tokens.len(), WIDTH);
        for (i, &token) in tokens.iter().enumerate() {
            for (col, x) in x.row_mut(i).iter_mut().enumerate() {
                *x = self.embed.value.row(token)[col] + self.place.value.row(i % ROWS)[col];
            }
        }
        let shape = Shape::new(BATCH, ROWS, HEADS, HEAD_DIM);
        let tensor = |m: &Matrix| Tensor::from_slice(device, &m.data, shape, Layout::Bshd);
        let read = |t: &Tensor| Ok::<_, ferroflash::Error>(Matrix { cols: WIDTH, data: t.to_vec::<f32>()? });
        let q = tensor(&x.times(&self.wq.value))?;
        let k = tensor(&x.times(&self.wk.value))?;
        let v = tensor(&x.times(&self.wv.value))?;
        // Backward needs the log-sum-exp.
        let attention = Attention::new().causal().with_lse(true);
        let output = attention.forward(&q.view(), &k.view(), &v.view())?;
        let lse = output.lse.expect("asked for");
        let attended = read(&output.out)?;
        let mut hidden = attended.times(&self.wo.value);
        hidden.add(&x);
        let mut dlogits = hidden.times(&self.unembed.value);
        let loss = cross_entropy(&mut dlogits, tokens);

        // Backward, in the opposite order.
        self.unembed.gradient.add(&hidden.transposed().times(&dlogits));
        let dhidden = dlogits.times(&self.unembed.value.transposed());
        self.wo.gradient.add(&attended.transposed().times(&dhidden));
        let dout = tensor(&dhidden.times(&self.wo.value.transposed()))?;
        let gradients =
            attention.backward(&q.view(), &k.view(), &v.view(), &output.out.view(), &lse.view(), dout.view())?;
        let mut dx = dhidden;
        let inputs = [(&mut self.wq, &gradients.dq), (&mut self.wk, &gradients.dk), (&mut self.wv, &gradients.dv)];
        for (weights, gradient) in inputs {
            let gradient = read(gradient)?;
            weights.gradient.add(&x.transposed().times(&gradient));
            dx.add(&gradient.times(&weights.value.transposed()));
        }
        for (i, &token) in tokens.iter().enumerate() {
            for (col, &dx) in dx.row(i).iter().enumerate() {
                self.embed.gradient.row_mut(token)[col] += dx;
                self.place.gradient.row_mut(i % ROWS)[col] += dx;
            }
        }
        let Layer { embed, place, wq, wk, wv, wo, unembed } = self;
        for weights in [embed, place, wq, wk, wv, wo, unembed] {
            weights.update(step);
        }
        Ok(loss)
    }
}

/// Turns logits into their gradients, in place, and returns the mean loss. The first row of a sequence has nothing before it.
fn cross_entropy(logits: &mut Matrix, tokens: &[usize]) -> f32 {
    let count = (BATCH * (ROWS - 1)) as f32;
    let mut loss = 0.0;
    for i in 0..tokens.len() {
        let row = logits.row_mut(i);
        if i % ROWS == 0 {
            row.fill(0.0);
            continue;
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = row.iter().map(|x| (x - max).exp()).sum();
        let target = tokens[i - 1];
        loss += sum.ln() + max - row[target];
        for (token, x) in row.iter_mut().enumerate() {
            let wanted = if token == target { 1.0 } else { 0.0 };
            *x = ((*x - max).exp() / sum - wanted) / count;
        }
    }
    loss / count
}

/// Weights, their gradient, and the moments of Adam (Kingma and Ba, 2015).
struct Weights {
    value: Matrix,
    gradient: Matrix,
    mean: Vec<f32>,
    square: Vec<f32>,
}

impl Weights {
    fn new(rows: usize, cols: usize, rng: &mut SmallRng) -> Weights {
        let range = (3.0 / WIDTH as f32).sqrt();
        let mut value = Matrix::zeros(rows, cols);
        value.data.iter_mut().for_each(|x| *x = rng.random_range(-range..range));
        let elements = rows * cols;
        Weights { value, gradient: Matrix::zeros(rows, cols), mean: vec![0.0; elements], square: vec![0.0; elements] }
    }

    /// Takes a step, the `step`th, and forgets the gradient.
    fn update(&mut self, step: usize) {
        const RATE: f32 = 0.02;
        const DECAY: [f32; 2] = [0.9, 0.99];
        let warm = DECAY.map(|decay| 1.0 - decay.powi(step as i32));
        for (i, gradient) in self.gradient.data.iter_mut().enumerate() {
            self.mean[i] = DECAY[0] * self.mean[i] + (1.0 - DECAY[0]) * *gradient;
            self.square[i] = DECAY[1] * self.square[i] + (1.0 - DECAY[1]) * *gradient * *gradient;
            self.value.data[i] -= RATE * (self.mean[i] / warm[0]) / ((self.square[i] / warm[1]).sqrt() + 1e-8);
            *gradient = 0.0;
        }
    }
}

/// A matrix, row by row.
struct Matrix {
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    fn zeros(rows: usize, cols: usize) -> Matrix {
        Matrix { cols, data: vec![0.0; rows * cols] }
    }

    fn rows(&self) -> usize {
        self.data.len() / self.cols
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.cols..][..self.cols]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.cols..][..self.cols]
    }

    fn add(&mut self, other: &Matrix) {
        self.data.iter_mut().zip(&other.data).for_each(|(x, y)| *x += y);
    }

    fn times(&self, other: &Matrix) -> Matrix {
        let mut product = Matrix::zeros(self.rows(), other.cols);
        for i in 0..self.rows() {
            for (k, &x) in self.row(i).iter().enumerate() {
                product.row_mut(i).iter_mut().zip(other.row(k)).for_each(|(sum, y)| *sum += x * y);
            }
        }
        product
    }

    fn transposed(&self) -> Matrix {
        let mut result = Matrix::zeros(self.cols, self.rows());
        for i in 0..self.rows() {
            for (j, &x) in self.row(i).iter().enumerate() {
                result.row_mut(j)[i] = x;
            }
        }
        result
    }
}
