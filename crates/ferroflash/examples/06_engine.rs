//! A small engine that serves many requests at once ("continuous batching"). Their keys and values are in pages of one pool, and every step
//! is one call of attention for all of them: prompts enter in chunks of rows, and who has read its prompt has one row, the last token.
//! Requests come and go between steps; when the pages run out, the youngest gives its own back and starts again later. The model is one
//! layer of attention with random weights; its tokens have to be those of the same model without a cache, request by request.
//!
//! `cargo run --release --example 06_engine [-- DEVICE]`, with DEVICE `best` (the default), `cuda:0` or `emulator`.

use ferroflash::{Attention, Device, Indices, KvCacheMut, Layout, NewRows, PackedRows, PageTable, Rotary, Tensor};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::collections::VecDeque;

const Q_HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const WIDTH: usize = Q_HEADS * HEAD_DIM;
/// Pairs of columns that the rotary embedding turns.
const PAIRS: usize = HEAD_DIM / 2;
const VOCABULARY: usize = 50;

/// Rows of keys and values in a page.
const PAGE_ROWS: usize = 8;
/// Pages of the pool: enough for any one request, fewer than all of them need together.
const PAGES: usize = 10;
/// Tokens of the longest request.
const LONGEST: usize = 64;
/// Rows of a prompt that enter in one step, so that a long prompt keeps nobody waiting.
const CHUNK: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "best".to_owned());
    let device = Device::open(&name)?;
    println!("device {} ({})", device.info().name, device.info().id());
    println!("all tokens are those without a cache; {} requests started again", serve(&device)?);
    Ok(())
}

#[test]
fn tokens_are_those_without_a_cache() {
    assert!(serve(&Device::emulator().unwrap()).unwrap() > 0, "the pages never ran out");
}

/// Serves requests, and compares their tokens. Returns how often one started again.
fn serve(device: &Device) -> ferroflash::Result<usize> {
    let mut rng = SmallRng::seed_from_u64(1);
    let model = Model::new(&mut rng);
    // What is in rows that nobody uses plays no part.
    let nan = [f32::NAN; PAGES * PAGE_ROWS * KV_HEADS * HEAD_DIM];
    let pages = || Tensor::from_slice(device, &nan, [PAGES, PAGE_ROWS, KV_HEADS, HEAD_DIM], Layout::RowMajor);
    let turns = |f: fn(f32) -> f32| {
        let turns: Vec<f32> = model.angles.iter().map(|&angle| f(angle)).collect();
        Tensor::from_slice(device, &turns, [LONGEST, PAIRS], Layout::RowMajor)
    };
    let (pool, turns) = ([pages()?, pages()?], [turns(f32::cos)?, turns(f32::sin)?]);
    let (free, waiting, running) = ((0..PAGES as i32).collect(), VecDeque::new(), Vec::new());
    let mut engine = Engine { device, model: &model, pool, turns, free, waiting, running, steps: 0, restarts: 0 };
    // The step in which it arrives, the length of its prompt, and how many tokens it wants.
    for (arrives, prompt, wanted) in [(0, 5, 12), (0, 40, 6), (1, 17, 10), (3, 3, 16), (3, 26, 8), (9, 33, 5)] {
        let tokens = (0..prompt).map(|_| rng.random_range(0..VOCABULARY)).collect();
        engine.waiting.push_back(Request { arrives, tokens, prompt, wanted, cached: 0, pages: Vec::new() });
    }
    while !(engine.waiting.is_empty() && engine.running.is_empty()) {
        for Request { tokens, prompt, wanted, .. } in engine.step()? {
            let (prompt, answer) = tokens.split_at(prompt);
            println!("{} tokens -> {answer:?}", prompt.len());
            assert_eq!(answer, model.generate(device, prompt, wanted)?, "the tokens without a cache");
        }
    }
    assert_eq!(engine.free.len(), PAGES, "every page has been given back");
    Ok(engine.restarts)
}

struct Request {
    arrives: usize,
    /// The prompt, and what has been generated.
    tokens: Vec<usize>,
    prompt: usize,
    wanted: usize,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    /// Where they are: token `t` in page `pages[t / PAGE_ROWS]`.
    pages: Vec<i32>,
}

impl Request {
    /// Rows of the next step: of a prompt a chunk, and then one, the last token.
    fn rows(&self) -> usize {
        (self.tokens.len() - self.cached).min(CHUNK)
    }
}

struct Engine<'a> {
    device: &'a Device,
    model: &'a Model,
    /// Keys and values of the pool, `[page, row, head, dim]`.
    pool: [Tensor; 2],
    /// Cosines and sines, `[position, pair]`.
    turns: [Tensor; 2],
    free: Vec<i32>,
    waiting: VecDeque<Request>,
    /// The oldest first.
    running: Vec<Request>,
    steps: usize,
    restarts: usize,
}

impl Engine<'_> {
    /// One call of attention for all that run. Returns those that have ended.
    fn step(&mut self) -> ferroflash::Result<Vec<Request>> {
        self.admit();
        self.find_pages();
        let next = if self.running.is_empty() { Vec::new() } else { self.attend()? };
        let mut end = 0;
        for request in &mut self.running {
            let rows = request.rows();
            (request.cached, end) = (request.cached + rows, end + rows);
            // What follows earlier rows is known.
            if request.cached == request.tokens.len() {
                request.tokens.push(next[end - 1]);
            }
        }
        let ends = |request: &mut Request| request.tokens.len() == request.prompt + request.wanted;
        let mut ended: Vec<_> = self.running.extract_if(.., ends).collect();
        ended.iter_mut().for_each(|request| self.free.append(&mut request.pages));
        self.steps += 1;
        Ok(ended)
    }

    /// Lets in who has arrived, while there are pages for all of its tokens.
    fn admit(&mut self) {
        let (steps, room) = (self.steps, self.free.len() * PAGE_ROWS);
        while self.waiting.front().is_some_and(|r| r.arrives <= steps && r.tokens.len() <= room) {
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Gives everybody the pages that the next step fills. Where there are none left, the youngest starts again later, with all its tokens as
    /// its prompt. The oldest always goes on.
    fn find_pages(&mut self) {
        let mut i = 0;
        while i < self.running.len() {
            let request = &mut self.running[i];
            if request.pages.len() == (request.cached + request.rows()).div_ceil(PAGE_ROWS) {
                i += 1;
            } else if let Some(page) = self.free.pop() {
                request.pages.push(page);
            } else if let Some(mut youngest) = self.running.pop() {
                self.free.append(&mut youngest.pages);
                youngest.cached = 0;
                self.waiting.push_front(youngest);
                self.restarts += 1;
            }
        }
    }

    /// Appends the rows of each request to its own in the cache, and returns the most likely token behind each.
    fn attend(&mut self) -> ferroflash::Result<Vec<usize>> {
        // The rows of all, one request behind the other. Of each: where its rows start, how many it has cached, and in which pages.
        let (mut tokens, mut starts, mut lengths, mut table) = (Vec::new(), vec![0], Vec::new(), Vec::new());
        for request in &self.running {
            tokens.extend(&request.tokens[request.cached..][..request.rows()]);
            starts.push(tokens.len() as i32);
            lengths.push(request.cached as i32);
            table.extend(&request.pages);
            table.resize(lengths.len() * LONGEST / PAGE_ROWS, -1);
        }
        println!("step {:2}: rows start at {starts:?}, {} pages are free", self.steps, self.free.len());
        let numbers = |numbers: &[i32]| Indices::from_slice(self.device, numbers);
        let (starts, lengths, table) = (numbers(&starts)?, numbers(&lengths)?, numbers(&table)?);

        let rows = PackedRows::new(starts.view()).with_longest(self.running.iter().map(Request::rows).max());
        let pages = PageTable::new(table.view(), LONGEST / PAGE_ROWS);
        let ([keys, values], [cos, sin]) = (&mut self.pool, &self.turns);
        let mut cache = KvCacheMut::new(keys.view_mut(), values.view_mut())
            .with(|cache| cache.with_pages(pages).with_lengths(lengths.view()));
        let [q, k, v] = self.model.project(&tokens);
        let tensor =
            |x: &[f32], heads| Tensor::from_slice(self.device, x, [tokens.len(), heads, HEAD_DIM], Layout::RowMajor);
        let (q, k, v) = (tensor(&q, Q_HEADS)?, tensor(&k, KV_HEADS)?, tensor(&v, KV_HEADS)?);
        // Queries and new keys are turned by their position: the row of the cache.
        let rotary = Rotary::new(&cos.view(), &sin.view());
        let new = NewRows::new(&k.view(), &v.view()).with_starts(starts.view()).with_rotary(rotary);
        let output = Attention::new().causal().forward_appending(&q.view(), Some(&rows), &mut cache, &new)?;
        Ok(self.model.next(&output.out.to_vec()?))
    }
}

/// `logits = attention(x wqkv) wo` with `x = embed[token]`, and queries and keys turned by their position.
struct Model {
    embed: Vec<f32>,
    wqkv: [Vec<f32>; 3],
    wo: Vec<f32>,
    /// By which pairs of columns are turned, `[position, pair]`.
    angles: Vec<f32>,
}

impl Model {
    fn new(rng: &mut SmallRng) -> Model {
        let mut weights = |cols| (0..WIDTH * cols).map(|_| rng.random_range(-0.7..0.7)).collect();
        let angle = |i| (i / PAIRS) as f32 * 1e4_f32.powf(-((i % PAIRS) as f32) / PAIRS as f32);
        let wqkv = [Q_HEADS, KV_HEADS, KV_HEADS].map(|heads| weights(heads * HEAD_DIM));
        let (embed, wo) = (weights(VOCABULARY), weights(VOCABULARY));
        Model { embed, wqkv, wo, angles: (0..LONGEST * PAIRS).map(angle).collect() }
    }

    /// Queries, keys and values, before they are turned.
    fn project(&self, tokens: &[usize]) -> [Vec<f32>; 3] {
        let x: Vec<f32> = tokens.iter().flat_map(|&t| &self.embed[t * WIDTH..][..WIDTH]).copied().collect();
        self.wqkv.each_ref().map(|weights| times(&x, weights))
    }

    /// The most likely token behind each row.
    fn next(&self, attended: &[f32]) -> Vec<usize> {
        let best = |row: &[f32]| (0..VOCABULARY).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("words");
        times(attended, &self.wo).chunks(VOCABULARY).map(best).collect()
    }

    /// Tokens one by one, each from all before it.
    fn generate(&self, device: &Device, prompt: &[usize], wanted: usize) -> ferroflash::Result<Vec<usize>> {
        let mut tokens = prompt.to_vec();
        for _ in 0..wanted {
            let [mut q, mut k, v] = self.project(&tokens);
            self.turn(&mut q, Q_HEADS);
            self.turn(&mut k, KV_HEADS);
            let tensor =
                |x: &[f32], heads| Tensor::from_slice(device, x, [1, tokens.len(), heads, HEAD_DIM], Layout::RowMajor);
            let (q, k, v) = (tensor(&q, Q_HEADS)?, tensor(&k, KV_HEADS)?, tensor(&v, KV_HEADS)?);
            let output = Attention::new().causal().forward(&q.view(), &k.view(), &v.view())?;
            tokens.extend(self.next(&output.out.to_vec()?).last());
        }
        Ok(tokens.split_off(prompt.len()))
    }

    /// Turns columns `i` and `PAIRS + i` of each head, by the position of the row.
    fn turn(&self, rows: &mut [f32], heads: usize) {
        for (i, head) in rows.chunks_mut(HEAD_DIM).enumerate() {
            for pair in 0..PAIRS {
                let (sin, cos) = self.angles[i / heads * PAIRS + pair].sin_cos();
                let (x, y) = (head[pair], head[PAIRS + pair]);
                (head[pair], head[PAIRS + pair]) = (x * cos - y * sin, x * sin + y * cos);
            }
        }
    }
}

/// The product of rows of `WIDTH` numbers with a matrix of as many rows.
fn times(x: &[f32], weights: &[f32]) -> Vec<f32> {
    let cols = weights.len() / WIDTH;
    let dot = |row: &[f32], col| row.iter().zip(weights[col..].iter().step_by(cols)).map(|(x, w)| x * w).sum();
    x.chunks(WIDTH).flat_map(|row| (0..cols).map(move |col| dot(row, col))).collect()
}
