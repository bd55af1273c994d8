"""A Longformer with the weights of the reference implementation, `transformers.LongformerModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from coldframe.longformer import Longformer, LongformerConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Our names on the left, the reference's (transformers.LongformerModel) on the right.
_EMBEDDING_KEYS = {
    "embeddings.word.weight": "embeddings.word_embeddings.weight",
    "embeddings.position.weight": "embeddings.position_embeddings.weight",
    "embeddings.norm.weight": "embeddings.LayerNorm.weight",
    "embeddings.norm.bias": "embeddings.LayerNorm.bias",
}
_LAYER_MODULES = {
    "global_.query": "attention.self.query_global",
    "global_.value": "attention.self.value_global",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_in": "intermediate.dense",
    "feed_out": "output.dense",
    "feed_norm": "output.LayerNorm",
}


class _Undrawn(TorchFunctionMode):
    """Modules without first weights, which are about to be given. To draw them torch would import its compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def from_reference(config: LongformerConfig, reference: Mapping[str, Tensor]) -> Longformer:
    """A model with the weights of a reference state dict. Raises KeyError for a name that is missing, ValueError for
    a tensor of another shape.
    """
    state = {ours: reference[theirs] for ours, theirs in _EMBEDDING_KEYS.items()}
    # Attention divides its scores by the root of the head size: done here, once, to the queries.
    scale = (config.hidden // config.heads) ** -0.5
    # Documents are all of token type 0; sentence encoders bring a second row that is never read.
    state["embeddings.token_type.weight"] = reference["embeddings.token_type_embeddings.weight"][:1]
    for n in range(config.layers):
        ours, theirs = f"layers.{n}.", f"encoder.layer.{n}."
        for kind in ("weight", "bias"):
            for module, name in _LAYER_MODULES.items():
                state[f"{ours}{module}.{kind}"] = reference[f"{theirs}{name}.{kind}"]
            state[f"{ours}global_.query.{kind}"] = state[f"{ours}global_.query.{kind}"] * scale
            query, key, value = (
                reference[f"{theirs}attention.self.{part}.{kind}"] for part in ("query", "key", "value")
            )
            state[f"{ours}local.qkv.{kind}"] = torch.cat([query * scale, key, value])
        key, value = (reference[f"{theirs}attention.self.{part}_global.weight"] for part in ("key", "value"))
        bias = state[f"{ours}global_.value.bias"]
        state[f"{ours}global_.key.weight"] = key
        state[f"{ours}global_.kv.weight"] = torch.cat([key, value])
        state[f"{ours}global_.kv.bias"] = torch.cat([torch.zeros_like(bias), bias])
    with torch.device("meta"), _Undrawn():
        model = Longformer(config)
    expected = model.state_dict()
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}")
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)
