"""A random checkpoint with a byte tokenizer and a few word problems: whole runs in seconds, without shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

MASK, EOS, PAD = 258, 257, 256


def make_model(folder: Path, layers: int = 2, seed: int = 0) -> str:
    """A block-diffusion checkpoint of random weights in `folder`, tokenizer included; its name for --model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    from dlmbench.backbone import BackboneConfig, Transformer, save_checkpoint

    config = BackboneConfig(
        family="sdar",
        vocab_size=264,
        hidden_size=32,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=64,
        tie_embeddings=True,
        mask_id=MASK,
        eos_ids=(EOS,),
        pad_id=PAD,
        max_positions=512,
        block_length=4,
    )
    save_checkpoint(Transformer(config).init_weights(seed), folder)
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**letters, "<pad>": PAD, "<eos>": EOS, "<mask>": MASK}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", mask_token="<mask>"
    )
    fast.save_pretrained(folder)
    return str(folder)


def make_data(folder: Path, items: int = 12) -> str:
    """Word problems in gsm8k's format; the folder for --data-dir."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"question": f"What is {i} plus {i + 2}?", "answer": f"{i}+{i + 2}={2 * i + 2}\n#### {2 * i + 2}"}
        for i in range(items)
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)
