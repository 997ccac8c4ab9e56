"""Transformers: GPT-2, Llama, and a mixture of experts like Mixtral."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tensorstow.ir.graph import Graph, StorageKind

from .builder import Builder


def gpt2(
    *,
    batch: int = 1,
    sequence: int = 1024,
    layers: int = 12,
    width: int = 768,
    heads: int = 12,
    vocabulary: int = 50257,
    positions: int = 1024,
    dtype: str = "float32",
    logits: str = "last",
    head_parts: int = 1,
) -> Graph:
    """GPT-2 (Radford et al. 2019), by default the small one; its attention is unfused, as an export gives it.

    `logits`: of the 'last' position (what generation needs) or of 'all' (what training needs). `head_parts`: the tied
    table is stored in so many parts, each with its product: then the rows of the tokens are an input (they are looked
    up where the table is at home), so that no operator needs the whole table.
    """
    b = Builder("gpt2", dtype)
    table: str | None = None
    if head_parts == 1:
        table = b.weight("wte", vocabulary, width)
        x = b.gather(table, b.input("tokens", batch, sequence, dtype="int64"))
    else:
        x = b.input("rows", batch, sequence, width)
    place = b.slice(b.weight("wpe", positions, width), sequence, width)
    x = b.same("Add", (x, place))
    mask = b.weight("mask", sequence, sequence, kind=StorageKind.CONSTANT)
    for i in range(layers):
        x = b.same("Add", (x, _gpt2_attention(b, f"h{i}.attn", x, heads, mask)))
        inner = b.linear(b.layer_norm(x, f"h{i}.ln2"), 4 * width, f"h{i}.mlp.up")
        inner = b.linear(b.same("Gelu", (inner,), "transcendental", 10), width, f"h{i}.mlp.down")
        x = b.same("Add", (x, inner))
    x = b.layer_norm(x, "ln_f")
    return b.build(*_head(b, x, vocabulary, table, head_parts, logits))


def _gpt2_attention(b: Builder, name: str, x: str, heads: int, mask: str) -> str:
    batch, sequence, width = b.shape(x)
    joined = b.linear(b.layer_norm(x, f"{name}.ln1"), 3 * width, f"{name}.qkv")
    q, k, v = (
        b.transpose(b.view(part, batch, sequence, heads, width // heads), 0, 2, 1, 3) for part in b.split(joined, 3)
    )
    scores = b.same("Add", (b.matmul(q, k, transposed=True), mask))  # the scale is a factor of the product
    mixed = b.transpose(b.matmul(b.softmax(scores), v), 0, 2, 1, 3)
    return b.linear(b.view(mixed, batch, sequence, width), width, f"{name}.out")


def _head(b: Builder, x: str, vocabulary: int, table: str | None, parts: int, logits: str) -> list[str]:
    """Logits, in `parts` that divide the vocabulary."""
    batch, _, width = b.shape(x)
    if logits == "last":
        x = b.slice(x, batch, 1, width)
    if parts == 1:
        return [b.linear(x, vocabulary, "head", bias=False, weight=table)]
    sizes = [(i + 1) * vocabulary // parts - i * vocabulary // parts for i in range(parts)]
    return [b.linear(x, n, f"head{i}", bias=False) for i, n in enumerate(sizes)]


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a Llama: `kv_heads` groups of query heads share keys and values; `tied`: table and head are one."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    tied: bool = False
    experts: int = 0
    top_k: int = 0
    head_size: int = 128


LLAMA_TINY = LlamaConfig(4, 256, 8, 4, 704, 2048, head_size=32)
LLAMA_1B = LlamaConfig(16, 2048, 32, 8, 8192, 128256, tied=True, head_size=64)
"""Llama 3.2 1B: 1,235,814,400 parameters."""
LLAMA_8B = LlamaConfig(32, 4096, 32, 8, 14336, 128256)
"""Llama 3 8B: 8,030,261,248 parameters."""
MIXTRAL = LlamaConfig(32, 4096, 32, 8, 14336, 32000, experts=8, top_k=2)
"""Mixtral 8x7B (Jiang et al. 2024): 46,702,792,704 parameters."""
MOE_SMALL = LlamaConfig(8, 1024, 16, 4, 3584, 32000, experts=8, top_k=2, head_size=64)
"""Mixtral's form in a size that fits smaller memories: 0.79 G parameters."""


def llama(
    config: LlamaConfig,
    *,
    name: str = "llama",
    batch: int = 1,
    sequence: int = 512,
    dtype: str = "bfloat16",
    logits: str = "last",
    head_parts: int = 1,
    routing: str = "all",
    seed: int = 0,
) -> Graph:
    """A Llama: RMS norm, rotary positions, grouped queries, fused attention, gated MLP; with `config.experts` a
    mixture of experts like Mixtral. `logits` and `head_parts` as of `gpt2`.

    `routing`, with experts: 'all', every expert gets its equal share of the tokens, rounded up; 'fixed', the whole
    batch goes to the `top_k` experts that `seed` draws for each layer (one token of decoding; those not drawn are not
    touched).
    """
    b = Builder(name, dtype)
    table: str | None = None
    if head_parts == 1:
        table = b.weight("table", config.vocabulary, config.width)
        x = b.gather(table, b.input("tokens", batch, sequence, dtype="int64"))
    else:
        x = b.input("rows", batch, sequence, config.width)
    angles = [b.weight(n, sequence, config.head_size, kind=StorageKind.CONSTANT) for n in ("cos", "sin")]
    random = Random(seed)
    for i in range(config.layers):
        x = b.same("Add", (x, _llama_attention(b, f"h{i}.attn", x, config, angles)))
        normed = b.rms_norm(x, f"h{i}.norm2")
        if config.experts:
            out = _experts(b, f"h{i}.moe", normed, config, _chosen(config, routing, random))
        else:
            out = _gated(b, f"h{i}.mlp", normed, config.hidden, _parameter(b))
        x = b.same("Add", (x, out))
    x = b.rms_norm(x, "norm")
    return b.build(*_head(b, x, config.vocabulary, table if config.tied else None, head_parts, logits))


def _chosen(config: LlamaConfig, routing: str, random: Random) -> list[int]:
    if routing == "all":
        return list(range(config.experts))
    if routing == "fixed":
        return sorted(random.sample(range(config.experts), config.top_k))
    raise ValueError(f"routing '{routing}' is neither 'all' nor 'fixed'")


def _llama_attention(b: Builder, name: str, x: str, config: LlamaConfig, angles: list[str]) -> str:
    batch, sequence, _ = b.shape(x)
    size = config.head_size
    x = b.rms_norm(x, f"{name}.norm")

    def heads(part: str, count: int) -> str:
        y = b.linear(x, count * size, f"{name}.{part}", bias=False)
        return b.transpose(b.view(y, batch, sequence, count, size), 0, 2, 1, 3)

    q = b.same("RotaryEmbedding", (heads("q", config.heads), *angles), "elementwise", 2)
    k = b.same("RotaryEmbedding", (heads("k", config.kv_heads), *angles), "elementwise", 2)
    mixed = b.transpose(b.attention(q, k, heads("v", config.kv_heads)), 0, 2, 1, 3)
    return b.linear(b.view(mixed, batch, sequence, config.heads * size), config.width, f"{name}.out", bias=False)


Parameter = Callable[[str, int, int], str]


def _parameter(b: Builder, kind: StorageKind = StorageKind.WEIGHT) -> Parameter:
    """Parameters [columns, k] of products, as tensors of this kind."""
    return lambda name, inner, columns: b.weight(f"{name}.weight", columns, inner, kind=kind)


def _gated(b: Builder, name: str, x: str, hidden: int, parameter: Parameter) -> str:
    width = b.shape(x)[-1]

    def product(part: str, y: str, columns: int) -> str:
        matrix = parameter(f"{name}.{part}", b.shape(y)[-1], columns)
        return b.linear(y, columns, f"{name}.{part}", bias=False, weight=matrix)

    gate = b.same("Silu", (product("gate", x, hidden),), "transcendental", 10)
    return product("down", b.same("Mul", (gate, product("up", x, hidden))), width)


def _experts(b: Builder, name: str, x: str, config: LlamaConfig, chosen: list[int]) -> str:
    """Router, the tokens of each chosen expert gathered, its gated MLP, and the weighted sum of what comes back."""
    shape = b.shape(x)
    tokens = shape[0] * shape[1]
    flat = b.view(x, tokens, shape[-1])
    logits = b.linear(flat, config.experts, f"{name}.router", bias=False)
    picked = (tokens, config.top_k)
    flops = b.elements(logits)
    gates, ids = b.apply("TopK", (logits,), picked, picked, cost_class="reduce", flops=flops, dtypes=(b.dtype, "int64"))
    share = -(-tokens * config.top_k // len(chosen))
    kind = StorageKind.EXPERT
    results: list[str] = []
    for e in range(config.experts):
        at = f"{name}.e{e}"
        if e not in chosen:
            for part, form in (("gate", 1), ("up", 1), ("down", 0)):
                sizes = (config.hidden, config.width) if form else (config.width, config.hidden)
                b.weight(f"{at}.{part}.weight", *sizes, kind=kind)
            continue
        rows = (share, shape[-1])
        moved = 2 * share * shape[-1] * b.tensors[x].nbytes // b.elements(x)
        (mine,) = b.apply("Dispatch", (flat, ids), rows, cost_class="gather", moved_nbytes=moved)
        results.append(_gated(b, at, mine, config.hidden, _parameter(b, kind)))
    flops = 2 * tokens * config.top_k * shape[-1]
    (out,) = b.apply("Combine", (gates, ids, *results), (tokens, shape[-1]), cost_class="scatter", flops=flops)
    return b.view(out, *shape)
