"""From a BERT or RoBERTa sentence encoder to a Longformer that reads 4,096 tokens, without training.

The recipe of the Longformer paper (section 5): the position table is tiled, and the global projections start as
copies of the local ones. For texts no longer than half the attention window the converted model computes what the
original does, since every token sees every other through the same weights.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from coldframe.errors import InvalidArgument, ModelUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    import tokenizers
    import torch

# What can be converted, and the class of its tokenizer: a Longformer's own would be taken otherwise.
CONVERTIBLE = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
MAX_TOKENS = 4096
WINDOW = 512
# What is copied beside what is written: the tokenizer's other files, and pooling.
_COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "modules.json",
    "1_Pooling/config.json",
)
_POSITIONS = "embeddings.position_embeddings.weight"
# What a Longformer needs of config.json, beside what is worked out here.
_NEEDED = ("num_hidden_layers", "vocab_size", "intermediate_size")


def whole_number(config: dict[str, Any], key: str, name: str, least: int = 1) -> int:
    """A whole number of a model's config.json. Raises InvalidArgument where it is missing, too small or none."""
    found = config.get(key)
    if not isinstance(found, int) or found < least:
        raise InvalidArgument(
            f"{name}'s config.json: {key} must be a whole number from {least} on, is {found}", field="model"
        )
    return found


def hidden_and_heads(config: dict[str, Any], name: str) -> tuple[int, int]:
    """How wide the model is, and in how many heads. Raises InvalidArgument where these cannot share it equally."""
    hidden, heads = whole_number(config, "hidden_size", name), whole_number(config, "num_attention_heads", name)
    if hidden % heads:
        raise InvalidArgument(
            f"{name}'s config.json: num_attention_heads must divide hidden_size; {heads} does not divide {hidden}",
            field="model",
        )
    return hidden, heads


def to_longformer(
    config: dict[str, Any], weights: dict[str, torch.Tensor], *, name: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of the Longformer made of a BERT or RoBERTa encoder, which errors call by `name`.

    Raises InvalidArgument for models whose positions are not absolute, that are neither, or that lack what is needed.
    """
    kind = config.get("model_type")
    if kind not in CONVERTIBLE or config.get("position_embedding_type", "absolute") != "absolute":
        raise InvalidArgument(
            f"a {kind} model with {config.get('position_embedding_type', 'absolute')} positions cannot be converted; "
            f"allowed are {', '.join(sorted(CONVERTIBLE))} with absolute positions",
            field="model",
        )
    layers, *_ = (whole_number(config, key, name) for key in _NEEDED)
    hidden_and_heads(config, name)
    pad = _pad(config, name)
    # BERT counts positions from row 0, the RoBERTa family from the row after the padding id, as Longformer does.
    first = 0 if kind == "bert" else pad + 1
    state = {key: tensor for key, tensor in weights.items() if key.startswith(("embeddings.", "encoder."))}
    state.pop("embeddings.position_ids", None)
    table = state.get(_POSITIONS)
    if table is None or len(table) <= first:
        said = "no tensor of that name" if table is None else f"{len(table)} rows, of which the first is row {first}"
        raise InvalidArgument(f"{name} has no table of positions: {_POSITIONS} has {said}", field="model")
    state[_POSITIONS] = _tile(table, first, pad + 1)
    for key in [n for n in state if ".attention.self." in n]:
        layer, _, leaf = key.rpartition(".attention.self.")
        part, _, kind_ = leaf.partition(".")
        state[f"{layer}.attention.self.{part}_global.{kind_}"] = state[key].clone()
    changed = {
        "model_type": "longformer",
        "architectures": ["LongformerModel"],
        "attention_window": [WINDOW] * layers,
        "max_position_embeddings": pad + 1 + MAX_TOKENS,
        "pad_token_id": pad,
    }
    return {**config, **changed}, state


def _pad(config: dict[str, Any], name: str) -> int:
    """The id of the padding, from which positions are counted; what transformers takes where config.json has none."""
    if config.get("pad_token_id") is None:
        return 0 if config["model_type"] == "bert" else 1
    return whole_number(config, "pad_token_id", name, least=0)


def _tile(table: torch.Tensor, first: int, offset: int) -> torch.Tensor:
    """The position table repeated: token i of the new model at row offset + i; rows before it are never read."""
    positions = table[first:]  # (512, hidden) as a rule
    tiled = table.new_zeros(offset + MAX_TOKENS, table.shape[1])
    for start in range(0, MAX_TOKENS, len(positions)):
        count = min(len(positions), MAX_TOKENS - start)
        tiled[offset + start : offset + start + count] = positions[:count]
    return tiled


def convert_directory(
    source: Path,
    out: Path,
    config: dict[str, Any],
    weights: dict[str, torch.Tensor],
    tokenizer: tokenizers.Tokenizer | None,
) -> None:
    """Writes the Longformer of an encoder into a new directory, whole or not at all.

    Raises as `to_longformer` does, and ModelUnavailable where a file of the source cannot be read.

    `tokenizer` is what `models.read_tokenizer` finds at the source: older files than tokenizer.json do not say of what
    class they are, and nothing in the new directory does.
    """
    from safetensors.torch import save_file

    if out.exists():
        raise InvalidArgument(f"{out} exists already; name a directory that does not", field="out")
    new_config, state = to_longformer(config, weights, name=str(source))
    described = _described_tokenizer(source / "tokenizer_config.json", CONVERTIBLE[config["model_type"]])
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "config.json").write_text(json.dumps(new_config, indent=2) + "\n", encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / "model.safetensors")
    # The library leaves it to its owner alone, and a server is another user as a rule.
    shutil.copymode(partial / "config.json", partial / "model.safetensors")
    for name in _COMPANIONS:
        if (source / name).is_file():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, partial / name)
    if tokenizer is not None:
        tokenizer.save(str(partial / "tokenizer.json"))
        text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        (partial / "tokenizer_config.json").write_text(text, encoding="utf-8")
    partial.rename(out)


def _described_tokenizer(path: Path, usual_class: str) -> dict[str, Any]:
    """What tokenizer_config.json is to say: other programs cut texts where it does, at 512 tokens as a rule, and ask it
    for the class.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} cannot be read as JSON; fetch the model again") from error
    if not isinstance(found, dict):
        raise ModelUnavailable(f"{path} holds no object of JSON; fetch the model again")
    return {"tokenizer_class": usual_class} | found | {"model_max_length": MAX_TOKENS}
