"""Baseline for accuracy: the token classification of the `transformers` library, trained by its Trainer.

It does what the library's own example run_ner.py does by default, on the words and keyphrases of the other baselines: BIO
tags on the first sub-word of each word, and the model after the last epoch.
"""

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer

from jobs.benchmark.baselines import Log, Stopwatch, TagTexts, Words, bio_tags, spans_of_bio, words_of
from model.config import Precision
from model.data.batching import length_sorted_batches
from model.data.characters import Span
from model.data.examples import Example
from model.errors import UserError, first_line
from model.network.encoder import EncoderConfig, import_transformers
from model.network.encoder_files import read_encoder_config, subword_tokenizer
from model.network.encoder_location import TOKENIZER, local_folder

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

LABELS = ("O", "B", "I")
_IGNORED = -100  # the label that the loss leaves out
_BATCH_SIZE = 32  # texts that the network reads at a time in use

# Of the example, written down so that a later version of the library trains the same baseline; AdamW is its optimizer.
_SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "num_train_epochs": 3,
    "per_device_train_batch_size": 8,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
# Of this benchmark: nothing goes to the disk, the terminal or a tracker.
_SURROUNDINGS: dict[str, Any] = {
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def fit_token_classifier(
    encoder: str,
    device: str,
    precision: Precision,
    train: list[Example],
    valid: list[Example],
    seed: int,
    stopwatch: Stopwatch,
    log: Log,
) -> tuple[TagTexts, float]:
    """Fine-tune a pretrained encoder. The model after the last epoch is used, so `valid` has no effect.

    Returns:
        The trained model, and the seconds until it was trained.

    Raises:
        UserError: the encoder cannot be read, or `transformers` has no token classification for it.
    """
    transformers = import_transformers()
    transformers.set_seed(seed)  # for the weights of the new head
    tokenizer, model = _load(encoder)
    with tempfile.TemporaryDirectory(prefix="tandem-trainer-") as folder:
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                folder,
                seed=seed,
                use_cpu=device == "cpu",
                bf16=precision == "bfloat16",
                **_SETTINGS,
                **_SURROUNDINGS,
            ),
            data_collator=transformers.DataCollatorForTokenClassification(tokenizer),
            train_dataset=labeled_subwords(tokenizer, train),
            callbacks=[_epoch_log(stopwatch, log)],
        )
        trainer.remove_callback(transformers.PrinterCallback)  # it prints to stdout, which is for the result
        trainer.train()
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # otherwise it stays in bfloat16
    return partial(tag_words, tokenizer, model.eval()), stopwatch.seconds


def _load(location: str) -> "tuple[PreTrainedTokenizerFast, PreTrainedModel]":
    """Return the tokenizer of an encoder, and the encoder with a new head. Raises UserError."""
    transformers = import_transformers()
    with local_folder(location) as folder:
        tokenizer = new_tokenizer((folder / TOKENIZER).read_bytes(), read_encoder_config(str(folder)))
        try:
            model = transformers.AutoModelForTokenClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # of the head, where the encoder was fine-tuned for other labels
                id2label=dict(enumerate(LABELS)),
                label2id={label: i for i, label in enumerate(LABELS)},
            )
        except ValueError as error:
            reason = first_line(error)
            raise UserError(f"--systems transformers: cannot train {location}: {reason}; leave it out") from None
    return tokenizer, model


def new_tokenizer(content: bytes, config: EncoderConfig) -> "PreTrainedTokenizerFast":
    """Return a tokenizer of words that cuts a text off at the encoder's window.

    Args:
        content: of the encoder's tokenizer.json.
        config: the content of its config.json.
    """
    layout = subword_tokenizer(content, config).layout
    tree = json.loads(content)
    step = tree["pre_tokenizer"] or {}
    for each in (step, *step.get("pretokenizers", ())):
        if each.get("type") == "ByteLevel":  # each word is alone, and this is how it looks inside a text
            each["add_prefix_space"] = True
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=tokenizer.id_to_token(layout.pad),
        model_max_length=len(layout.prefix) + layout.size + len(layout.suffix),
        model_input_names=["input_ids", "attention_mask"],
    )


def _epoch_log(stopwatch: Stopwatch, log: Log) -> "TrainerCallback":
    class EpochLog(import_transformers().TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, args: Any, state: Any, *_: object, **__: object) -> None:
            log(f"transformers: epoch {state.epoch:.0f} of {state.num_train_epochs}, {stopwatch.seconds:.0f} s")

    return EpochLog()


def labeled_subwords(tokenizer: "PreTrainedTokenizerFast", examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """Return what the Trainer reads of each text: its sub-words, with labels on the first one of each word."""
    rows = []
    for example, encoding in zip(examples, _encode(tokenizer, [words_of(each) for each in examples]), strict=True):
        tags = bio_tags(example.spans, len(example.ids))
        labels = [_IGNORED] * len(encoding.ids)
        for word, at in _first_subwords(encoding).items():
            labels[at] = LABELS.index(tags[word])
        rows.append({"input_ids": encoding.ids, "attention_mask": encoding.attention_mask, "labels": labels})
    return rows


def tag_words(
    tokenizer: "PreTrainedTokenizerFast", model: "PreTrainedModel", texts: Sequence[Words]
) -> list[list[Span]]:
    """Return the spans of the most probable tags; a word without a sub-word, or beyond the window, has the tag O."""
    encodings = _encode(tokenizer, texts)
    tags = [["O"] * len(words) for words in texts]
    for rows in length_sorted_batches(np.array([len(each.ids) for each in encodings]), _BATCH_SIZE):
        batch = [encodings[row] for row in rows]
        inputs = tokenizer.pad({"input_ids": [each.ids for each in batch]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            labels = model(**inputs).logits.argmax(-1).tolist()
        for row, encoding, found in zip(rows, batch, labels, strict=True):
            for word, at in _first_subwords(encoding).items():
                tags[row][word] = LABELS[found[at]]
    return [spans_of_bio(each) for each in tags]


def _encode(tokenizer: "PreTrainedTokenizerFast", texts: Sequence[Words]) -> "list[Encoding]":
    return tokenizer(list(texts), is_split_into_words=True, truncation=True).encodings or []


def _first_subwords(encoding: "Encoding") -> dict[int, int]:
    """Return for each word that has a sub-word where its first one is."""
    places = reversed(list(enumerate(encoding.word_ids)))
    return {word: place for place, word in places if word is not None}
