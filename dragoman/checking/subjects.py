"""From what the user wrote to something that can be checked: a preset, a class of transformers, or a folder."""

import copy
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

import dragoman

from ..configuration.presets import PRESETS
from .batches import LONGEST
from .shrinking import shrink_config, shrink_preset, without_dropout
from .weights import draw_weights

if TYPE_CHECKING:
    from .processes import Results

RECURRENT = dragoman.DragomanRecurrentForConditionalGeneration
CLASSES: Mapping[str, str] = {
    **{name: kind for kind, name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.items()},
    RECURRENT.__name__: dragoman.DragomanRecurrentConfig.model_type,  # a preset names ours that is not recurrent
}
HAVE_A_LIMIT = ("learned", "sinusoidal")
KNOWN = ("transformers.", "dragoman.")  # whose classes any process has
ATTENTIONS = ("encoder_attentions", "decoder_attentions", "cross_attentions")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to check, and what a batch for it needs to know.

    ``build(implementation)`` gives the model anew each time, in eval mode, with the same weights, under the attention
    implementation named (None: the default one).
    """

    name: str
    build: Callable[[str | None], Any]
    source_vocabulary: int
    target_vocabulary: int
    pad: int
    end: int | None
    start: int | None  # None: a row starts with its own last token, as in mBART
    special: frozenset[int]
    overrides: Mapping[str, Any] | None = None  # with the name, what another process builds it from; None: it cannot
    attentions: tuple[str, ...] = ATTENTIONS  # those that it has weights of
    ours: bool = False
    forward_only: bool = False  # no loss, generate() or save_pretrained() of its own
    small: bool = True  # of test size: fastest on one thread
    float64: bool = False
    distributed: "Results | None" = None  # measured already, with others in one launch

    def start_of(self, target: list[int]) -> int:
        return target[-1] if self.start is None else self.start

    def in_float64(self) -> "Subject":
        """The same weights, computed with sixteen digits."""
        return replace(
            self, build=lambda implementation: self.build(implementation).double(), float64=True, distributed=None
        )


def find_subject(model: str, overrides: Mapping[str, Any] | None = None) -> Subject:
    """What ``model`` names, small and with large random weights, or a folder's checkpoint as it is.

    Raises:
        ValueError: for a name that is none of these, a model that is no encoder-decoder over tokens, a field that
            the configuration does not have.
    """
    try:
        return resolve(model, dict(overrides or {}))
    except StrictDataclassError as error:  # a field's value, found wrong by the configuration
        raise ValueError(" ".join(str(error).split())) from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:  # or by nobody in time
        raise ValueError(f"{model} cannot be built: {type(error).__name__}: {error}") from error


def resolve(model: str, overrides: Mapping[str, Any]) -> Subject:
    if model in PRESETS:
        return subject_of(model, shrink_preset(model, overrides), None, overrides)
    if Path(model).is_dir():
        if overrides:
            raise ValueError(f"{model} is a checkpoint, which is checked as it is: --set is for presets and classes.")
        config = AutoConfig.from_pretrained(model)
        if getattr(config, "quantization_config", None):
            raise ValueError(f"{model} is quantized, and has no gradients: check the checkpoint that it was made of.")
        return subject_of(model, config, model, overrides)
    kind = CLASSES.get(model, model)
    if kind not in CLASSES.values():
        names = [*PRESETS, *CLASSES, *CLASSES.values()]
        near = difflib.get_close_matches(model, names, n=3, cutoff=0.5)
        raise ValueError(
            f"{model!r} is neither a preset ({', '.join(PRESETS)}), nor an encoder-decoder class of transformers or "
            "its model_type (BartForConditionalGeneration, bart, ...), nor a folder with a checkpoint."
            + (f" Did you mean {' or '.join(near)}?" if near else "")
        )
    return subject_of(model, shrink_config(type(AutoConfig.for_model(kind)), overrides), None, overrides)


def subject_of(name: str, config: PreTrainedConfig, folder: str | None, overrides: Mapping[str, Any]) -> Subject:
    if not getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is a {config.model_type}, which is no encoder-decoder.")
    without_dropout(config)
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and limit < LONGEST and getattr(config, "position_encoding", "learned") in HAVE_A_LIMIT:
        raise ValueError(f"{name} has max_position_embeddings {limit}; rows here have up to {LONGEST} tokens.")

    def build(implementation: str | None = None) -> Any:
        chosen = copy.deepcopy(config)
        kwargs: dict[str, Any] = {} if implementation is None else {"attn_implementation": implementation}
        if folder is not None:
            kwargs |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
            model, loading = AutoModelForSeq2SeqLM.from_pretrained(folder, config=chosen, **kwargs)
            for weight, found, needed in sorted(loading["mismatched_keys"]):
                raise ValueError(f"{name}: {weight} is {tuple(found)}, and {tuple(needed)} by its config.json.")
            if missing := sorted(loading["missing_keys"]):
                raise ValueError(
                    f"{name} has not all weights of a {type(model).__name__}, for one no {missing[0]}: what it holds "
                    f"({', '.join(config.architectures or ['a model without a name'])}) cannot be checked."
                )
        else:
            torch.manual_seed(0)
            model = AutoModelForSeq2SeqLM.from_config(chosen, **kwargs)
            draw_weights(model)
        ids = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
        kept = {name: getattr(model.generation_config, name) for name in ids}
        model.generation_config = GenerationConfig(**kept)  # no lengths, penalties or forced tokens of its own
        return model.eval()

    model = build()
    if model.main_input_name != "input_ids":
        raise ValueError(f"{name} reads {model.main_input_name}, not tokens: it cannot be checked.")
    pad, end = getattr(config, "pad_token_id", None), first(getattr(config, "eos_token_id", None))
    if pad is None:
        raise ValueError(f"{name} has no pad_token_id: set one (--set pad_token_id=0), batches are padded with it.")
    decoder = getattr(config, "decoder", None)  # T5Gemma has a configuration a side
    start = getattr(config, "decoder_start_token_id", None)
    start = getattr(decoder, "bos_token_id", None) if start is None else start
    special = special_tokens(config, model.generation_config) | ({start} if start is not None else set())
    sizes = embedding_size(model), model.get_output_embeddings().weight.shape[0]
    if not any(token not in special for token in range(min(sizes))):
        raise ValueError(f"{name} has {min(sizes)} tokens, all of them special: none to write rows with.")
    return Subject(
        name=name,
        build=build,
        source_vocabulary=sizes[0],
        target_vocabulary=sizes[1],
        pad=pad,
        end=end,
        start=start,
        special=special,
        overrides=overrides if type(config).__module__.startswith(KNOWN) else None,
        small=folder is None,
        attentions=attentions_of(model),
        ours=isinstance(model, dragoman.DragomanForConditionalGeneration | RECURRENT),
    )


def attentions_of(model: Any) -> tuple[str, ...]:
    """A recurrent model attends to the source at most."""
    if isinstance(model, RECURRENT):
        return () if model.config.attention == "none" else ("cross_attentions",)
    return ATTENTIONS


def embedding_size(model: Any) -> int:
    embeddings: nn.Module = model.get_input_embeddings()
    weight: torch.Tensor = embeddings.weight  # type: ignore[assignment]
    return weight.shape[0]


def first(ids: int | list[int] | None) -> int | None:
    return ids[0] if isinstance(ids, list) else ids


def special_tokens(*configs: Any) -> frozenset[int]:
    """Every id that means something to the model."""
    found: set[int] = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if name.endswith("_token_id") and value is not None:
                found.update(value if isinstance(value, list) else [value])
    return frozenset(found)
