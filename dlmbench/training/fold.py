"""Fold the q/k norm of a network into its q and k weights, as the start of a network without that norm.

The norm of a head is t / rms(t) * gain. The gain and the mean of 1 / rms over real inputs are factors of the weight's
rows, before the rotary embedding; what is lost is how 1 / rms differs from token to token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlmbench.backbone import Transformer
from dlmbench.training.data import Batch
from dlmbench.training.step import run_layers


@torch.no_grad()
def fold_qk_norm(model: Transformer, batch: Batch) -> dict[str, Tensor]:
    """The state of `model` without q_norm and k_norm; 1 / rms is measured on the columns of `batch`."""
    state = {k: v.clone() for k, v in model.state_dict().items() if not k.endswith((".q_norm", ".k_norm"))}
    seen = (batch.segment >= 0).flatten()

    def measure(index: int):
        def hook(layer, inputs) -> None:
            heads, x = layer.heads + layer.kv_heads, inputs[1][seen]
            qkv = layer.qkv(F.rms_norm(x, x.shape[-1:], layer.attention_norm, layer.eps))
            qk = qkv.view(-1, heads + layer.kv_heads, layer.head_dim)[:, :heads]
            scale = (qk.square().mean(-1) + layer.eps).rsqrt().mean(0)
            gain = torch.cat([layer.q_norm.expand(layer.heads, -1), layer.k_norm.expand(layer.kv_heads, -1)])
            state[f"layers.{index}.qkv.weight"][: heads * layer.head_dim] *= (gain * scale[:, None]).reshape(-1, 1)

        return hook

    hooks = [layer.register_forward_pre_hook(measure(index)) for index, layer in enumerate(model.layers)]
    run_layers(model, model, model.embed(batch.ids.flatten()), batch, compiled=False)
    for hook in hooks:
        hook.remove()
    return state
