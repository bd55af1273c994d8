"""From a BERT or RoBERTa sentence encoder to a Longformer that reads 4,096 tokens, without training.

The recipe of the Longformer paper (section 5): the position table is tiled, and the global projections start as
copies of the local ones. For texts no longer than half the attention window the converted model computes what the
original does, since every token sees every other through the same weights.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path

    import torch

CONVERTIBLE = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})
MAX_TOKENS = 4096
WINDOW = 512
# What is copied beside config.json and the weights: tokenizer and pooling.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "modules.json",
    "1_Pooling/config.json",
)


def to_longformer(
    config: dict[str, Any], weights: dict[str, torch.Tensor], *, window: int = WINDOW, max_tokens: int = MAX_TOKENS
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of the Longformer made of a BERT or RoBERTa encoder.

    Raises InvalidArgument for models whose positions are not absolute, or that are neither.
    """
    kind = config.get("model_type")
    if kind not in CONVERTIBLE or config.get("position_embedding_type", "absolute") != "absolute":
        raise InvalidArgument(
            f"a {kind} model with {config.get('position_embedding_type', 'absolute')} positions cannot be converted; "
            f"allowed are {', '.join(sorted(CONVERTIBLE))} with absolute positions",
            field="model",
        )
    pad = int(config.get("pad_token_id") or 0)
    # BERT counts positions from row 0, the RoBERTa family from the row after the padding id, as Longformer does.
    first = 0 if kind == "bert" else pad + 1
    state = {name: tensor for name, tensor in weights.items() if name.startswith(("embeddings.", "encoder."))}
    state.pop("embeddings.position_ids", None)
    table = state["embeddings.position_embeddings.weight"]
    state["embeddings.position_embeddings.weight"] = _tile(table, first, pad + 1, max_tokens)
    for name in [n for n in state if ".attention.self." in n]:
        layer, _, leaf = name.rpartition(".attention.self.")
        part, _, kind_ = leaf.partition(".")
        state[f"{layer}.attention.self.{part}_global.{kind_}"] = state[name].clone()
    changed = {
        "model_type": "longformer",
        "architectures": ["LongformerModel"],
        "attention_window": [window] * config["num_hidden_layers"],
        "max_position_embeddings": pad + 1 + max_tokens,
        "pad_token_id": pad,
    }
    return {**config, **changed}, state


def _tile(table: torch.Tensor, first: int, offset: int, max_tokens: int) -> torch.Tensor:
    """The position table repeated: token i of the new model at row offset + i; rows before it are never read."""
    positions = table[first:]  # (512, hidden) as a rule
    tiled = table.new_zeros(offset + max_tokens, table.shape[1])
    for start in range(0, max_tokens, len(positions)):
        count = min(len(positions), max_tokens - start)
        tiled[offset + start : offset + start + count] = positions[:count]
    return tiled


def convert_directory(source: Path, out: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    """Writes the Longformer of an encoder into a new directory, whole or not at all."""
    from safetensors.torch import save_file

    if out.exists():
        raise InvalidArgument(f"{out} exists already; name a directory that does not", field="out")
    new_config, state = to_longformer(config, weights)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(new_config, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / "model.safetensors")
    for name in _COMPANIONS:
        if (source / name).is_file():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, partial / name)
    _lengthen_tokenizer(partial / "tokenizer_config.json")
    partial.rename(out)


def _lengthen_tokenizer(path: Path) -> None:
    """Other programs cut texts where the tokenizer's configuration says so, at 512 tokens as a rule."""
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": MAX_TOKENS}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
