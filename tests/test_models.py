"""Where weights come from, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers

from coldframe import Encoder, InvalidArgument, ModelUnavailable, models
from coldframe.convert import convert_directory, to_longformer
from tests.models import bert_directory, longformer_directory, roberta_directory
from tests.oracle import relative_error

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return longformer_directory(tmp_path_factory.mktemp("original"), layers=4)


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(original, tmp_path / "model")


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return models.read_weights(directory, "model")


def edit_config(directory: Path, **changes: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def convert(source: Path, out: Path) -> None:
    config, weights = models.read_config(source, "r"), models.read_weights(source, "r")
    convert_directory(source, out, config, weights, models.read_tokenizer(source, "r"))


def test_the_same_weights_in_any_file_are_the_same_encoder(directory: Path) -> None:
    wanted = Encoder.load(str(directory)).fingerprint
    state = tensors(directory)
    (directory / "model.safetensors").unlink()
    torch.save({f"longformer.{name}": tensor for name, tensor in state.items()}, directory / "pytorch_model.bin")
    assert Encoder.load(str(directory)).fingerprint == wanted
    (directory / "pytorch_model.bin").unlink()
    _save_in_shards(directory, state)
    assert Encoder.load(str(directory)).fingerprint == wanted


def _save_in_shards(directory: Path, state: dict[str, torch.Tensor]) -> None:
    names = sorted(state)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        models_save({name: state[name] for name in part}, directory / file)
    where = {name: file for file, part in shards.items() for name in part}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def models_save(state: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def test_a_bin_file_that_would_run_code_is_refused(directory: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("boom",))

    (directory / "model.safetensors").unlink()
    torch.save({"x": Bomb()}, directory / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match=r"pytorch_model\.bin"):
        models.load(str(directory))


def test_broken_directories_say_what_is_missing(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json cannot be read"):
        models.load(str(directory))
    (directory / "model.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors cannot be read"):
        models.load(str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"neither model\.safetensors nor"):
        models.load(str(directory))
    (directory / "config.json").write_text("{")
    with pytest.raises(ModelUnavailable, match=r"config\.json cannot be read"):
        models.load(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"config\.json is missing"):
        models.load(str(directory))


def test_weights_alone_embed_ids_and_no_texts(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink(missing_ok=True)
    encoder = Encoder.load(str(directory), "seed")
    assert encoder.embed_ids([[0, 5, 2]]).shape == (1, encoder.dim)
    with pytest.raises(ModelUnavailable, match=r"put its tokenizer\.json"):
        encoder.embed(["a"])


def test_weights_that_do_not_fit_are_refused(directory: Path) -> None:
    edit_config(directory, intermediate_size=97)
    with pytest.raises(InvalidArgument, match="do not fit"):
        Encoder.load(str(directory))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "is a gpt2 model"),
        ({"hidden_act": "relu"}, "'relu'"),
        ({"attention_window": [31] * 4}, "even"),
        ({"attention_window": [32] * 3}, "4 even numbers"),
        ({"attention_window": None}, "4 even numbers"),
        ({"num_hidden_layers": None}, r"config\.json: num_hidden_layers must be a whole number from 1 on, is None"),
        ({"pad_token_id": None}, "pad_token_id must be a whole number from 0 on"),
        ({"hidden_size": "48"}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide hidden_size; 5 does not divide 48"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps must be a number from 0 on, is 1e-5"),
    ],
)
def test_models_that_cannot_be_run_say_why(directory: Path, change: dict[str, object], message: str) -> None:
    edit_config(directory, **change)
    with pytest.raises(InvalidArgument, match=message):
        Encoder.load(str(directory))


@pytest.mark.parametrize("key", ["num_hidden_layers", "attention_window", "vocab_size", "max_position_embeddings"])
def test_a_configuration_that_lacks_a_number_is_refused(directory: Path, key: str) -> None:
    config = json.loads((directory / "config.json").read_text())
    del config[key]
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidArgument, match=key):
        Encoder.load(str(directory))


def test_a_configuration_that_is_none_is_refused(directory: Path) -> None:
    (directory / "config.json").write_text("[]")
    with pytest.raises(ModelUnavailable, match="holds no model's configuration"):
        models.load(str(directory))


@pytest.mark.parametrize(
    "name", ["./nowhere", "nowhere", "/no/such/model", "a/b/c", "~nobody-at-all/model", "a" * 300, "/" + "a" * 300]
)
def test_a_directory_that_is_not_there_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(ModelUnavailable, match="no model directory"):
        models.load(name)
    assert models.display_name(name) == models.resolve(name) == name


def test_without_a_network_a_hub_id_gives_one_clear_sentence(tmp_path: Path) -> None:
    code = "from coldframe import Encoder; Encoder.load('allenai/longformer-base-4096')"
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    last = out.stderr.strip().splitlines()[-1]
    assert "hub cannot be reached; connect once to fetch it, or copy its files into a directory" in last


def test_the_embedded_model_is_refused_when_its_file_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ModelUnavailable, match="not the official file"):
        models.load("minilm")


def test_a_models_own_recipe_is_that_of_its_modules(original: Path, tmp_path: Path) -> None:
    assert models.load("minilm").recipe.name == "lead-words"
    assert models.load(str(original)).recipe.name == "seed"
    directory = roberta_directory(tmp_path / "cls")
    pooling = directory / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert models.own_recipe(directory, "r").name == "first"
    for modes in (["max_tokens"], ["cls_token", "mean_tokens"]):
        pooling.write_text(json.dumps({f"pooling_mode_{mode}": True for mode in modes}))
        with pytest.raises(InvalidArgument, match=re.escape(f"({' + '.join(modes)})")):
            models.own_recipe(directory, "r")


def test_a_chosen_recipe_stands_in_for_one_that_is_not_known(directory: Path) -> None:
    wanted = Encoder.load(str(directory), "mean").fingerprint
    (directory / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Transformer"}]))
    with pytest.raises(InvalidArgument, match=r"own pooling \(none\) is not one .*; choose a recipe: seed"):
        models.load(str(directory))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InvalidArgument, match=r"own pooling \(max_tokens\)"):
        Encoder.load(str(directory))
    assert Encoder.load(str(directory), "mean").fingerprint == wanted


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("model.safetensors.index.json", "{}", "does not say which file holds a tensor"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 1}}', "does not say which file holds a tensor"),
        ("modules.json", '{"a": 1}', r"modules\.json holds no list of modules"),
        ("modules.json", '[{"name": "0"}]', r"modules\.json holds no list of modules"),
        ("1_Pooling/config.json", "[]", r"1_Pooling/config\.json holds no object .* or choose a recipe: seed"),
    ],
)
def test_files_that_hold_something_else_are_said_so(directory: Path, file: str, content: str, said: str) -> None:
    (directory / "modules.json").write_text("[]")
    (directory / "1_Pooling").mkdir()
    (directory / file).write_text(content)
    with pytest.raises(ModelUnavailable, match=said):
        Encoder.load(str(directory))


def test_a_short_reader_must_be_converted_first(tmp_path: Path) -> None:
    directory = roberta_directory(tmp_path / "roberta")
    with pytest.raises(InvalidArgument, match="indexer convert"):
        models.load(str(directory))


def test_a_converted_roberta_equals_the_original_where_that_can_read(tmp_path: Path) -> None:
    source, out = roberta_directory(tmp_path / "roberta"), tmp_path / "long"
    convert(source, out)
    encoder = Encoder.load(str(out), precision="fp32", device="cpu")
    assert (encoder.max_tokens, encoder.recipe.name) == (4096, "mean")
    original = transformers.RobertaModel.from_pretrained(source, add_pooling_layer=False)
    documents = [[0, *range(4, 4 + n), 2] for n in (0, 1, 7, 62)]
    with torch.no_grad():
        states = [original(torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in documents]
    wanted = torch.nn.functional.normalize(torch.stack(states), dim=-1).numpy()
    assert relative_error(encoder.embed_ids(documents), wanted) <= 1e-5
    assert np.isfinite(encoder.embed_ids([[0, *[5] * 4094, 2]])).all()


def test_a_roberta_without_a_padding_id_is_converted_as_transformers_reads_it(tmp_path: Path) -> None:
    source = roberta_directory(tmp_path / "roberta")
    convert(source, tmp_path / "long")
    config = json.loads((source / "config.json").read_text())
    del config["pad_token_id"]
    (source / "config.json").write_text(json.dumps(config))
    convert(source, tmp_path / "same")
    wanted = Encoder.load(str(tmp_path / "long"), precision="fp32")
    found = Encoder.load(str(tmp_path / "same"), precision="fp32")
    assert np.array_equal(found.embed(["a b c"]), wanted.embed(["a b c"]))


def test_a_converted_directory_is_a_longformer_to_transformers_too(tmp_path: Path) -> None:
    source, out = roberta_directory(tmp_path / "roberta"), tmp_path / "long"
    convert(source, out)
    assert {file.stat().st_mode for file in out.rglob("*") if file.is_file()} == {
        (out / "config.json").stat().st_mode
    }, "all may be read"
    model = transformers.AutoModel.from_pretrained(out)
    assert type(model).__name__ == "LongformerModel"
    with pytest.raises(InvalidArgument, match="exists already"):
        convert(source, out)


def test_a_converted_model_reads_texts_as_the_original_does(tmp_path: Path) -> None:
    source, out = bert_directory(tmp_path / "bert"), tmp_path / "long"
    convert(source, out)
    texts = ["a b c", "ab", ""]
    wanted = transformers.AutoTokenizer.from_pretrained(source)(texts)["input_ids"]
    assert wanted[0] == [2, 5, 6, 7, 3]
    assert [tokens.ids for tokens in Encoder.load(str(out), "mean").tokenize(texts)] == wanted
    assert transformers.AutoTokenizer.from_pretrained(out)(texts)["input_ids"] == wanted


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, {"tokenizer_class": "RobertaTokenizer", "model_max_length": 4096}),
        (
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "unk_token": "<unk>"},
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, "unk_token": "<unk>"},
        ),
    ],
)
def test_a_converted_tokenizer_says_its_class_and_cuts_where_the_new_model_does(
    tmp_path: Path, before: dict[str, object] | None, after: dict[str, object]
) -> None:
    source, out = roberta_directory(tmp_path / "roberta"), tmp_path / "long"
    if before is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(before))
    convert(source, out)
    assert json.loads((out / "tokenizer_config.json").read_text()) == after


def test_what_a_conversion_left_that_was_killed_is_in_no_later_one(tmp_path: Path) -> None:
    source, out = roberta_directory(tmp_path / "roberta"), tmp_path / "long"
    (tmp_path / ".long.partial").mkdir()
    (tmp_path / ".long.partial" / "vocab.txt").write_text("half of it")
    convert(source, out)
    assert not (out / "vocab.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long", "roberta"]


def test_a_conversion_takes_along_what_a_longformer_reads_and_nothing_else(tmp_path: Path) -> None:
    source = roberta_directory(tmp_path / "roberta")
    config, weights = models.read_config(source, "r"), models.read_weights(source, "r")
    others = {"embeddings.position_ids": torch.arange(66)[None], "pooler.dense.weight": torch.eye(48)}
    _, state = to_longformer(config, weights | others, name="r")
    assert not others.keys() & state.keys()
    assert weights.keys() <= state.keys()


def test_a_model_of_relative_positions_cannot_be_converted(tmp_path: Path) -> None:
    source = roberta_directory(tmp_path / "roberta")
    edit_config(source, position_embedding_type="relative_key")
    with pytest.raises(InvalidArgument, match="a roberta model with relative_key positions cannot be converted"):
        convert(source, tmp_path / "long")


def test_a_tokenizer_that_knows_no_words_is_refused(directory: Path, tmp_path: Path) -> None:
    (directory / "tokenizer.json").unlink()
    shutil.copyfile(bert_directory(tmp_path / "bert") / "vocab.txt", directory / "vocab.txt")
    with pytest.raises(ModelUnavailable, match=r"knows no words: vocab\.txt is not read by the class"):
        models.load(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    assert Encoder.load(str(directory)).tokenize(["a b"])[0].ids == [2, 5, 6, 3]
    (directory / "vocab.txt").write_bytes(b"\xff")
    with pytest.raises(ModelUnavailable, match=r"tokenizer cannot be read; save it again as tokenizer\.json"):
        models.load(str(directory))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers must be a whole number from 1 on, is None"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers must be a whole number from 1 on, is 3"),
        ({"num_attention_heads": 5}, "num_attention_heads must divide hidden_size; 5 does not divide 48"),
        ({"hidden_size": 48.5}, "hidden_size must be a whole number from 1 on, is 48.5"),
        ({"pad_token_id": "<pad>"}, "pad_token_id must be a whole number from 0 on, is <pad>"),
    ],
)
def test_what_cannot_be_converted_says_which_field_of_which_file_is_wrong(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    source = roberta_directory(tmp_path / "roberta")
    edit_config(source, **change)
    with pytest.raises(InvalidArgument, match=re.escape(f"{source}'s config.json: {said}")):
        convert(source, tmp_path / "long")
    assert [path.name for path in tmp_path.iterdir()] == ["roberta"]


@pytest.mark.parametrize("content", [b'{"model_max_length": 512', b"[512]", b"\xff"])
def test_a_tokenizer_config_that_cannot_be_read_is_named_before_anything_is_written(
    tmp_path: Path, content: bytes
) -> None:
    source = roberta_directory(tmp_path / "roberta")
    (source / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ModelUnavailable, match=re.escape(f"{source / 'tokenizer_config.json'} ")):
        convert(source, tmp_path / "long")
    assert [path.name for path in tmp_path.iterdir()] == ["roberta"]


def test_a_model_without_a_table_of_positions_cannot_be_converted(tmp_path: Path) -> None:
    source, out = roberta_directory(tmp_path / "roberta"), tmp_path / "long"
    config, weights = models.read_config(source, "r"), models.read_weights(source, "r")
    with pytest.raises(InvalidArgument, match="66 rows, of which the first is row 100"):
        convert_directory(source, out, config | {"pad_token_id": 99}, weights, None)
    del weights["embeddings.position_embeddings.weight"]
    with pytest.raises(InvalidArgument, match="has no tensor of that name"):
        convert_directory(source, out, config, weights, None)
