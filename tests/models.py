"""Small random models on disk, real in every part but their size and their wits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import tokenizers
import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

VOCABULARY = 120
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def random_weights(model: torch.nn.Module, seed: int) -> None:
    """Large enough that every part of the computation shows in the result; biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 1 + 0.2 * noise if name.endswith("LayerNorm.weight") else 0.15 * noise


def longformer_directory(path: Path, *, window: int = 32, layers: int = 5, seed: int = 0) -> Path:
    """A random Longformer with a tokenizer of words of single letters; <s> is 0, pad 1, </s> 2."""
    config = transformers.LongformerConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        attention_window=[window] * layers,
        max_position_embeddings=4098,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        type_vocab_size=1,
    )
    model = transformers.LongformerModel(config, add_pooling_layer=False)
    random_weights(model, seed)
    model.save_pretrained(path)
    write_tokenizer(path)
    return path


def roberta_directory(path: Path, *, seed: int = 0) -> Path:
    """A random RoBERTa that reads 64 tokens, with mean pooling as sentence-transformers writes it."""
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=66,
        pad_token_id=1,
        layer_norm_eps=1e-5,
        type_vocab_size=1,
    )
    model = transformers.RobertaModel(config, add_pooling_layer=False)
    random_weights(model, seed)
    model.save_pretrained(path)
    write_tokenizer(path)
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return path


def bert_directory(path: Path) -> Path:
    """A random BERT that reads 64 tokens, with a vocabulary of letters in the older file that has no class in it."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config, add_pooling_layer=False)
    random_weights(model, seed=0)
    model.save_pretrained(path)
    (path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    return path


def write_tokenizer(path: Path) -> None:
    """Letters by whitespace, between <s> and </s>."""
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} | {letter: 4 + n for n, letter in enumerate(LETTERS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
