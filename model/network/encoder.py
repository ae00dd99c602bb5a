"""A pretrained encoder as the bottom of a tagger, through the `transformers` library, which is imported only here.

Shapes: B texts, T words, R windows of S sub-words, D hidden size of the encoder.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from model.config import TaggerConfig
from model.data.subword_batches import SubwordBatch
from model.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

EncoderConfig = Mapping[str, Any]  # the content of an encoder's config.json
_MAX_SUBWORDS = 2**14  # read at a time where no gradient is needed


class Encoder(nn.Module):
    """An encoder that gives words their states.

    Attributes:
        model: the encoder of `transformers`.
        outputs: size of a word's state.
    """

    def __init__(self, config: TaggerConfig, model: "PreTrainedModel") -> None:
        """
        Args:
            config: with pooling, layers, and whether the encoder is frozen.
            model: the encoder, without a pooler.

        Raises:
            UserError: the encoder does not have the layer for the keyword head.
        """
        super().__init__()
        self.config, self.model = config, model
        self.outputs = encoder_outputs(config, model.config)
        if config.encoder_frozen:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Encoder":
        """Set training mode, in which a frozen encoder still drops nothing."""
        return super().train(mode and not self.config.encoder_frozen)

    def freeze_unused(self) -> None:
        """Do not train what no state depends on: DistributedDataParallel waits for the gradient of all that is trained.

        Longformer has such parameters, of its global attention, and XLNet.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if not trained:
            return
        was_training, ids = self.training, torch.zeros(1, 3, dtype=torch.long, device=trained[0].device)
        with torch.enable_grad():
            states = self.eval()._read(ids, torch.ones_like(ids))
        self.train(was_training)
        gradients = torch.autograd.grad(states.sum(), trained, allow_unused=True)
        for parameter, gradient in zip(trained, gradients, strict=True):
            if gradient is None:
                parameter.requires_grad_(False)

    def checkpoint_activations(self) -> None:
        """Compute the states again in the backward pass. Raises UserError where the architecture cannot."""
        if not self.model.supports_gradient_checkpointing:
            raise UserError(
                f"training.gradient_checkpointing: an encoder of type {self.model.config.model_type} cannot compute its states "
                f"again; leave it out, and raise training.accumulate to save memory"
            )
        self.model.activation_checkpointing_enable()

    def forward(self, inputs: SubwordBatch) -> torch.Tensor:
        """Return the states (B, T, outputs) of words, float32: of `keyword_layer` if there is one, then of the last layer."""
        if torch.is_grad_enabled() and not self.config.encoder_frozen:
            states = self._read(inputs.ids, inputs.mask)
        else:
            windows = max(1, _MAX_SUBWORDS // inputs.ids.shape[1])
            parts = zip(inputs.ids.split(windows), inputs.mask.split(windows), strict=True)
            states = torch.cat([self._read(ids, mask) for ids, mask in parts])
        if self.config.encoder_frozen:
            states = states.half()  # as the states that its training has read from the disk
        return self._pool(states.flatten(0, 1).float(), inputs)

    def _read(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the states (R, S, outputs) of sub-words."""
        layer = self.config.keyword_layer
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.encoder_frozen):
            found = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=layer is not None)
        if layer is None:
            return found.last_hidden_state
        return torch.cat([found.hidden_states[layer], found.last_hidden_state], dim=-1)

    def _pool(self, states: torch.Tensor, inputs: SubwordBatch) -> torch.Tensor:
        """Return the states (B, T, outputs) of words, given those (R * S, outputs) of sub-words."""
        shape = inputs.word_keys.shape
        if self.config.pooling == "mean":
            return F.embedding_bag(inputs.places, states, inputs.offsets, mode="mean").view(*shape, -1)
        # A word of the padding has no sub-word; it gets some other word's state, which nothing reads.
        first = inputs.places[inputs.offsets.clamp(max=len(inputs.places) - 1)]
        return states.index_select(0, first).view(*shape, -1)

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, the embeddings first; what belongs to no layer is with the last one.

        Layers that share their parameters, as all of ALBERT's do, are one.
        """
        named = dict(self.model.named_parameters())
        # GPT-2's is named `wte`.
        tables = {id(each.weight) for each in self.model.modules() if isinstance(each, nn.Embedding)}
        numbers = sorted({number for name in named if (number := _layer_number(name)) is not None})
        found: list[list[nn.Parameter]] = [[] for _ in range(len(numbers) + 1)]
        for name, parameter in named.items():
            number = _layer_number(name)
            bottom = number is None and ("embed" in name or id(parameter) in tables)
            found[0 if bottom else -1 if number is None else numbers.index(number) + 1].append(parameter)
        return found


def encoder_outputs(config: TaggerConfig, encoder: "PreTrainedConfig") -> int:
    """Return the size of a word's state. Raises UserError if the encoder does not have the layer for the keyword head."""
    if config.keyword_layer is None:
        return int(encoder.hidden_size)
    if config.keyword_layer > encoder.num_hidden_layers:
        raise UserError(
            f"tagger.keyword_layer is {config.keyword_layer}, and the encoder has {encoder.num_hidden_layers} layers; choose "
            f"one of them, 1 being the lowest"
        )
    return 2 * int(encoder.hidden_size)


def _layer_number(name: str) -> int | None:
    """Return the number of the layer of a parameter by its name, such as `encoder.layer.3.output.dense.weight`: 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def build_config(config: EncoderConfig) -> "PreTrainedConfig":
    """Return the configuration in a config.json, with the defaults of its architecture.

    Raises:
        UserError: `transformers` is not installed, or does not know the architecture.
    """
    transformers = import_transformers()
    try:
        return transformers.AutoConfig.for_model(**config)
    except Exception as error:  # of transformers, or of a package that the configuration asks for
        raise UserError(
            f"the encoder of type {config.get('model_type')} is unknown here: {first_line(error)}"
        ) from None


def build_model(config: EncoderConfig) -> "PreTrainedModel":
    """Return the encoder that a config.json describes, with random weights and without a pooler. Raises UserError.

    It is in float32, also where the config.json names the shorter numbers that the encoder was published in.
    """
    kind = build_config(config)
    try:
        return without_pooler(import_transformers().AutoModel.from_config(kind, dtype=torch.float32))
    except Exception as error:  # of transformers, or of a package that the configuration asks for
        raise UserError(f"the encoder of type {kind.model_type} cannot be built: {first_line(error)}") from None


def without_pooler(model: "PreTrainedModel") -> "PreTrainedModel":
    """Remove the layer that makes a vector of a whole text, which a tagger does not use."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    return model


def import_transformers() -> Any:
    """Return the module `transformers`, quiet. Raises UserError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"tagger.encoder needs the package transformers ({error}); install it with "
            "`pip install 'tandem-keyphrases[encoder]'`, or in a clone with `pip install '.[encoder]'`"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
