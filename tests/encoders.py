"""Tiny pretrained encoders with random weights, made from configurations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from jobs.corpora.tweets import generate

KINDS = ("bert", "distilbert", "roberta", "xlm-roberta", "deberta-v2", "modernbert")
_BRACKETS, _ANGLES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
_DEBERTA_V3 = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "position_buckets": 16,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
_NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0
)


def tiny_encoder(folder: Path, kind: str, positions: int = 64, dropout: bool = True) -> str:
    """Write an encoder of two layers of 32 values, with a tokenizer of its family; return its folder.

    Args:
        folder: of its files.
        kind: one of KINDS, or another that takes the same fields.
        positions: the most ids that it reads at a time.
        dropout: whether it drops anything in training.
    """
    transformers = pytest.importorskip("transformers", reason="the extra `encoder` is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(kind)
    tokenizer.save(str(folder / "tokenizer.json"))
    pad = _special(kind)[0]
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "pad_token_id": tokenizer.token_to_id(pad),
        # The first position of these is one after the padding's id.
        "max_position_embeddings": positions + (1 + tokenizer.token_to_id(pad) if "roberta" in kind else 0),
        **(_DEBERTA_V3 if kind == "deberta-v2" else {}),
        **({} if dropout else _NO_DROPOUT),
    }
    if kind == "xlnet":
        del fields["max_position_embeddings"]  # it reads any number
        fields["d_head"] = 16
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **fields))
    transformers.logging.disable_progress_bar()
    model.save_pretrained(str(folder))
    return str(folder)


def edit_config(folder: str, **fields: object) -> None:
    """Change fields of an encoder's config.json."""
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _special(kind: str) -> list[str]:
    return _ANGLES if "roberta" in kind else _BRACKETS


def _tokenizer(kind: str) -> Tokenizer:
    """Train WordPiece, byte-level BPE or a SentencePiece-like unigram model on the built-in corpus."""
    special = _special(kind)
    trainer: trainers.Trainer
    if kind in ("bert", "distilbert"):
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    elif kind in ("roberta", "modernbert"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token=special[1], show_progress=False
        )
    texts = [each.text for each in generate(400, seed=3)["train"]]
    tokenizer.train_from_iterator(texts, trainer)
    begin, end = special[2:4]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(each, tokenizer.token_to_id(each)) for each in (begin, end)]
    )
    return tokenizer
