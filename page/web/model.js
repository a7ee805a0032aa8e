"use strict";
// The GPT of model.py in a browser: the same names in the same order, to be read beside it.
//
// It only predicts, and reads one token at a time: what a token needs of those before it, their
// keys and values, is in the cache. So there are no axes B and T. A tensor is a Float32Array, row
// after row. Shapes: C = n_embd, H heads of width D = C / H, V tokens in the vocabulary,
// S = tokens in the cache and the new one. Names have underscores, as there.

const EPS = 1e-6;  // keeps rms_norm of zeros finite
const LAYER_NORM_EPS = 1e-5;  // PyTorch's
const ALMOST_ONE = 1 - 2 ** -23;  // so no token of probability 0 is sampled

// What PyTorch has: Embedding, Linear, LayerNorm, gelu, softmax.

class Embedding {
  constructor(weights, name, width) {
    this.weight = weights[`${name}.weight`];  // (rows, width)
    this.width = width;
  }

  forward(row) {
    return this.weight.slice(row * this.width, (row + 1) * this.width);  // (width)
  }
}

class Linear {
  constructor(weights, name) {
    this.weight = weights[`${name}.weight`];  // (outputs, inputs)
    this.bias = weights[`${name}.bias`];  // (outputs), or undefined
  }

  forward(x) {
    const weight = this.weight, inputs = x.length, outputs = weight.length / inputs;
    const y = new Float32Array(outputs);
    for (let o = 0; o < outputs; o++) {
      const row = o * inputs;
      let sum = 0;
      for (let i = 0; i < inputs; i++) sum += weight[row + i] * x[i];
      y[o] = this.bias ? sum + this.bias[o] : sum;
    }
    return y;
  }
}

class LayerNorm {
  constructor(weights, name) {
    this.weight = weights[`${name}.weight`];  // (C)
    this.bias = weights[`${name}.bias`];  // (C), or undefined
  }

  forward(x) {
    let mean = 0, variance = 0;
    for (const value of x) mean += value / x.length;
    for (const value of x) variance += (value - mean) ** 2 / x.length;
    const scale = 1 / Math.sqrt(variance + LAYER_NORM_EPS);
    return x.map((value, i) => (value - mean) * scale * this.weight[i] + (this.bias?.[i] ?? 0));
  }
}

// As F.gelu(x, approximate="tanh")
function gelu(x) {
  const slope = Math.sqrt(2 / Math.PI);
  return x.map(value => 0.5 * value * (1 + Math.tanh(slope * (value + 0.044715 * value ** 3))));
}

function softmax(x) {
  let most = -Infinity, sum = 0;
  for (const value of x) most = Math.max(most, value);
  const y = x.map(value => Math.exp(value - most));
  for (const value of y) sum += value;
  return y.map(value => value / sum);
}

function add(x, y) {
  return x.map((value, i) => value + y[i]);
}

// kernels.py: relu2, rms_norm, attention.

function relu2(x) {
  return x.map(value => Math.max(value, 0) ** 2);
}

// Divide x by sqrt(mean(x^2) + EPS).
function rms_norm(x) {
  let sum = 0;
  for (const value of x) sum += value * value;
  const scale = 1 / Math.sqrt(sum / x.length + EPS);
  return x.map(value => value * scale);
}

// softmax(q k^T / sqrt(D)) v of one head: q (D); k and v (S, C), where the head's features begin at
// `start`. Tokens before the `first` are of another document.
function attention(q, k, v, {S, C, start, first}) {
  const D = q.length, scores = new Float32Array(S - first), y = new Float32Array(D);
  for (let s = first; s < S; s++) {
    const row = s * C + start;
    let sum = 0;
    for (let i = 0; i < D; i++) sum += q[i] * k[row + i];
    scores[s - first] = sum / Math.sqrt(D);
  }
  const shares = softmax(scores);
  for (let s = first; s < S; s++) {
    const row = s * C + start, share = shares[s - first];
    for (let i = 0; i < D; i++) y[i] += share * v[row + i];
  }
  return y;
}

// kv_cache.py

class KVCache {
  constructor(cfg) {
    const make = () => new Float32Array(cfg.block_size * cfg.n_embd);
    this.C = cfg.n_embd;
    this.keys = Array.from({length: cfg.n_layer}, make);  // (block_size, C) of each layer
    this.values = Array.from({length: cfg.n_layer}, make);
    this.tokens = new Int32Array(cfg.block_size);
    this.length = 0;  // tokens read; to forget the last ones, make it smaller
  }

  // Store a layer's key and value of the new token, (C) each; returns all of them, (S, C) each.
  append(layer, k, v) {
    this.keys[layer].set(k, this.length * this.C);
    this.values[layer].set(v, this.length * this.C);
    return [this.keys[layer], this.values[layer]];
  }
}

// model.py

class RMSNorm {
  forward(x) {
    return rms_norm(x);
  }
}

function make_norm(cfg, weights, name) {
  return cfg.is_gpt2 ? new LayerNorm(weights, name) : new RMSNorm();
}

// Turn the pairs of features (i, i + D / 2) of a head (D) by the angles of its position, (D / 2).
function rotate(x, cos, sin) {
  const half = x.length / 2, y = new Float32Array(x.length);
  for (let i = 0; i < half; i++) {
    const a = x[i], b = x[half + i];
    y[i] = a * cos[i] + b * sin[i];
    y[half + i] = b * cos[i] - a * sin[i];
  }
  return y;
}

class CausalSelfAttention {
  constructor(cfg, weights, name, layer) {
    this.cfg = cfg;
    this.layer = layer;
    this.qkv = new Linear(weights, `${name}.qkv`);
    this.proj = new Linear(weights, `${name}.proj`);
  }

  forward(x, rotation, cache, first) {
    const C = x.length, H = this.cfg.n_head, D = C / H, S = cache.length + 1;
    const qkv = this.qkv.forward(x);  // (3 C): H heads of queries, H of keys, H of values
    for (let h = 0; h < 2 * H; h++) {
      const head = qkv.subarray(h * D, (h + 1) * D);  // a view: what is set here is set in qkv
      if (rotation) head.set(rotate(head, ...rotation));
      if (this.cfg.qk_norm) head.set(rms_norm(head));
    }
    const [k, v] = cache.append(this.layer, qkv.subarray(C, 2 * C), qkv.subarray(2 * C));

    const y = new Float32Array(C);  // the heads side by side
    for (let start = 0; start < C; start += D) {
      const q = qkv.subarray(start, start + D);
      y.set(attention(q, k, v, {S, C, start, first}), start);
    }
    return this.proj.forward(y);
  }
}

class MLP {
  constructor(cfg, weights, name) {
    this.cfg = cfg;
    this.fc = new Linear(weights, `${name}.fc`);
    this.proj = new Linear(weights, `${name}.proj`);
  }

  forward(x) {
    x = this.fc.forward(x);  // (4 C)
    x = this.cfg.is_gpt2 ? gelu(x) : relu2(x);
    return this.proj.forward(x);
  }
}

class Block {
  constructor(cfg, weights, layer) {
    const name = `blocks.${layer}`;
    this.norm1 = make_norm(cfg, weights, `${name}.norm1`);
    this.norm2 = make_norm(cfg, weights, `${name}.norm2`);
    this.attn = new CausalSelfAttention(cfg, weights, `${name}.attn`, layer);
    this.mlp = new MLP(cfg, weights, `${name}.mlp`);
  }

  forward(x, rotation, cache, first) {
    x = add(x, this.attn.forward(this.norm1.forward(x), rotation, cache, first));
    return add(x, this.mlp.forward(this.norm2.forward(x)));
  }
}

class GPT {
  // `weights` has the checkpoint's tensors by name.
  constructor(cfg, vocab_size, weights) {
    this.cfg = cfg;
    this.vocab_size = vocab_size;
    this.wte = new Embedding(weights, "wte", cfg.n_embd);
    this.wpe = cfg.is_gpt2 ? new Embedding(weights, "wpe", cfg.n_embd) : null;
    this.smear = weights.smear;  // (C), or undefined
    this.blocks = [];
    for (let layer = 0; layer < cfg.n_layer; layer++)
      this.blocks.push(new Block(cfg, weights, layer));
    this.norm = make_norm(cfg, weights, "norm");
    this.lm_head = new Linear(weights, cfg.tied ? "wte" : "lm_head");
    // From one position to the next, the first pair of a head turns by 1 radian, the following
    // pairs by less and less.
    const D = cfg.n_embd / cfg.n_head;
    this.turns = Float32Array.from({length: D / 2}, (_, i) => 10000 ** (-2 * i / D));
  }

  // The logits of tokens (T) that follow those of the cache: T arrays (V).
  forward(tokens, cache = new KVCache(this.cfg)) {
    return Array.from(tokens, token => this.logits(this.hidden_state(token, cache)));
  }

  // The last layer's output for a token that follows those of the cache, normalised, (C).
  hidden_state(token, cache) {
    const position = cache.length;
    cache.tokens[position] = token;
    const first = this.cfg.document_attention ? this.document_start(cache.tokens, position) : 0;
    let x = this.embed(token, position);
    if (this.smear && position > first) {
      const before = this.embed(cache.tokens[position - 1], position - 1);
      x = x.map((value, i) => value + this.smear[i] * before[i]);
    }

    let rotation = null;
    if (!this.cfg.is_gpt2) {
      const angles = this.turns.map(turn => position * turn);
      rotation = [angles.map(Math.cos), angles.map(Math.sin)];
    }
    for (const block of this.blocks) x = block.forward(x, rotation, cache, first);
    cache.length += 1;  // only now: all layers append after the old length
    return this.norm.forward(x);
  }

  // The embedding of a token at a position, (C).
  embed(token, position) {
    let x = this.wte.forward(token);
    if (this.wpe) x = add(x, this.wpe.forward(position));
    return this.cfg.embedding_norm ? rms_norm(x) : x;
  }

  // Logits (V) of a hidden state (C).
  logits(hidden) {
    const logits = this.lm_head.forward(hidden), cap = this.cfg.softcap;
    return cap > 0 ? logits.map(z => cap * Math.tanh(z / cap)) : logits;
  }

  // Where the document of a position begins: at its eos token, the last of the vocabulary.
  document_start(tokens, position) {
    while (position > 0 && tokens[position] !== this.vocab_size - 1) position -= 1;
    return position;
  }
}

// engine/generate.py: which tokens are read to predict the next one, and how it is chosen.

// Window there; a browser has another Window. When block_size tokens are read, it moves on by half,
// and the cache is computed anew.
class ContextWindow {
  constructor(model) {
    this.model = model;
    this.cache = new KVCache(model.cfg);
    this.start = 0;  // the place in the text of the cache's first token
  }

  // The place of the first token that is read with the one at `place`. A full window keeps its last
  // tokens, with the new one, and leaves room for others.
  start_of(place) {
    const block_size = this.model.cfg.block_size;
    if (place < block_size) return 0;
    const kept = Math.max(1, Math.floor(block_size / 2)), step = block_size - kept + 1;
    return step * (1 + Math.floor((place - block_size) / step));
  }

  // The logits (V) after the token at `place` of a text. Places before it must have been read, and
  // have the tokens that they had then: so one more token costs one position.
  read(tokens, place) {
    const start = this.start_of(place), {model, cache} = this;
    if (start !== this.start) cache.length = 0;
    this.start = start;
    cache.length = Math.min(cache.length, place - start);
    let hidden = null;
    while (start + cache.length <= place)
      hidden = model.hidden_state(tokens[start + cache.length], cache);
    return model.logits(hidden);
  }
}

// The probabilities (V) of logits; temperature 0 is greedy.
function probabilities(logits, temperature) {
  const most = Math.max(...logits);
  if (temperature > 0) return softmax(logits.map(z => (z - most) / temperature));
  const greedy = new Float32Array(logits.length);
  greedy[logits.indexOf(most)] = 1;
  return greedy;
}

// Choose a token by a random number u in [0, 1): it inverts the cumulative distribution.
function sample_token(logits, u, temperature) {
  const q = probabilities(logits, temperature);
  let total = 0, cumulative = 0;
  for (const share of q) total += share;
  const place = Math.min(u, ALMOST_ONE) * total;
  for (let token = 0; token < q.length; token++) {
    cumulative += q[token];
    if (cumulative > place) return token;
  }
}

// Random numbers in [0, 1) from a seed: mulberry32, by Tommy Ettinger. NumPy's are others.
function make_random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// Continue a prompt of at least one token.
function* generate(model, prompt, max_new_tokens, {temperature = 0.8, seed = 1337, end} = {}) {
  const tokens = [...prompt], window = new ContextWindow(model), random = make_random(seed);
  for (let place = 0; place < tokens.length - 1; place++) window.read(tokens, place);
  for (let number = 0; number < max_new_tokens; number++) {
    const logits = window.read(tokens, tokens.length - 1);
    const token = sample_token(logits, random(), temperature);
    tokens.push(token);
    yield token;
    if (token === end) return;
  }
}

// The model of a page, whose weights are text: page/weights.py.

function read_model({cfg, vocabulary, weights}) {
  const arrays = {};
  for (const [name, {shape, dtype, base64}] of Object.entries(weights)) {
    arrays[name] = read_array(dtype, base64);
    const size = shape.reduce((product, length) => product * length, 1);
    if (arrays[name].length !== size) throw new Error(`${name} is not ${shape}`);
  }
  return new GPT(cfg, vocabulary.length, arrays);
}

function read_array(dtype, base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  if (dtype === "float32") return new Float32Array(bytes.buffer);
  const halves = new Uint16Array(bytes.buffer), values = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) values[i] = from_float16(halves[i]);
  return values;
}

// A sign, 5 bits of exponent and 10 of fraction; exponent 0 has the numbers near 0.
function from_float16(half) {
  const sign = half & 0x8000 ? -1 : 1, exponent = (half >> 10) & 31, fraction = half & 1023;
  return exponent ? sign * (1024 + fraction) * 2 ** (exponent - 25) : sign * fraction * 2 ** -24;
}
