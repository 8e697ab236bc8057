"""What a family of encoder-decoders is: one map of names and one of fields, read in both directions."""

import copy
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..configuration.configuration_dragoman import DragomanConfig
from ..modeling.modeling_conditional_generation import DragomanForConditionalGeneration
from ..modeling.position_encodings import sinusoids
from .field_checking import build_configuration, is_other

SOURCE, TARGET, HEAD = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"

TRAINING_ONLY = ("train_pad_embedding",)  # what a family without it computes all the same


class ConversionError(ValueError):
    """Why a model cannot be converted, all reasons together."""

    def __init__(self, family: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(f"Cannot convert ({family}):" + "".join(f"\n- {problem}" for problem in problems))


class Family:
    """A class of transformers, and where it keeps what Dragoman keeps. Subclasses are data, with few exceptions.

    Embeddings and head are special: they may be one tensor, and in-tree classes and files have several names for it.
    The first name that is there counts. They are tied where the tensors are equal and ``tie_word_embeddings`` allows.
    LayerDrop, which acts in training only, is not carried over.
    """

    model_type: ClassVar[str]
    architecture: ClassVar[str]  # the class in transformers
    tokenizer: ClassVar[str]  # the class of its tokenizer, where a folder does not name one
    fields: ClassVar[Mapping[str, str | tuple[str, ...]]]  # of their configuration: of ours, one or several, same value
    constants: ClassVar[Mapping[str, Any]]  # fields of ours that have one value in the whole family
    modules: ClassVar[Mapping[str, str]]  # theirs: ours; {} is the number of a layer. Their parameters are called alike
    parameters: ClassVar[Mapping[str, str]] = {}  # theirs: ours, one by one; their shapes may differ by a 1
    source_embeddings: ClassVar[tuple[str, ...]]
    target_embeddings: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]]
    ties: ClassVar[tuple[tuple[bool, bool], ...]] = ((True, True), (False, False))  # share_embeddings, tie_word_…
    tables: ClassVar[tuple[str, ...]] = ()  # theirs, computed and not trained; a folder may hold them or not

    def our_fields(self, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields of ours that are not simply one of theirs."""
        return {}

    def their_fields(self, config: DragomanConfig) -> dict[str, Any]:
        """The fields of theirs that are not simply one of ours."""
        return {}

    def problems_of(self, config: Any) -> list[str]:
        """Values of their configuration that Dragoman does not have."""
        return []

    def our_problems(self, config: DragomanConfig) -> list[str]:
        """Values of our configuration that the family does not have, beside ``constants``."""
        return []

    def in_tree_class(self) -> type[PreTrainedModel]:
        return getattr(transformers, self.architecture)

    def module_pairs(self, config: DragomanConfig) -> dict[str, str]:
        """Our modules and theirs, in the order of the map."""
        layers = {
            "model.encoder": config.encoder_num_hidden_layers,
            "model.decoder": config.decoder_num_hidden_layers,
        }
        pairs: dict[str, str] = {}
        for theirs, ours in self.modules.items():
            count = layers[ours[: len("model.encoder")]] if "{}" in ours else 1
            pairs |= {ours.format(i): theirs.format(i) for i in range(count)}
        return pairs

    def read(self, config: PreTrainedConfig, tensors: Mapping[str, Tensor]) -> tuple[DragomanConfig, dict[str, Tensor]]:
        """Our configuration and state dict. Raises ConversionError."""
        may_tie = config.tie_word_embeddings is not False
        embeddings = self.embeddings_in(tensors, may_tie)
        fields = {
            name: _single(getattr(config, theirs)) for theirs, ours in self.fields.items() for name in _several(ours)
        }
        fields |= {**self.constants, **self.our_fields(config, tensors)}
        fields["share_embeddings"] = may_tie and _are_equal(tensors, embeddings[SOURCE], embeddings[TARGET])
        fields["tie_word_embeddings"] = may_tie and _are_equal(tensors, embeddings[TARGET], embeddings[HEAD])
        ours, problems = build_configuration(fields)
        problems = [*self.problems_of(config), *problems]
        if ours is None:
            raise ConversionError(self.model_type, problems)

        shapes = _shapes(DragomanForConditionalGeneration, ours)
        names = self.names_in(ours, shapes) | embeddings
        tied = [
            name for name, is_tied in ((TARGET, ours.share_embeddings), (HEAD, ours.tie_word_embeddings)) if is_tied
        ]
        state = {}
        for name, shape in shapes.items():
            if names.get(name) not in tensors:
                problems.append(f"there is no {names.get(name, 'tensor')} for our {name}")
            elif name not in tied:
                state[name] = _fit(tensors[names[name]], shape, names[name], problems)
        aliases = (*self.source_embeddings, *self.target_embeddings, *self.heads, *self.parameters, *self.tables)
        for name in tensors.keys() - set(names.values()) - set(aliases):
            if not self.is_ignored(name):
                problems.append(f"{name} has no counterpart")
        for name in self.tables if ours.position_encoding == "sinusoidal" else ():
            if not holds_sinusoids(tensors.get(name), ours.position_offset, ours.sinusoidal_endpoint):
                problems.append(f"{name} holds no sinusoids")
        if problems:
            raise ConversionError(self.model_type, sorted(problems))
        return ours, state

    def write(self, config: DragomanConfig, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Their configuration and state dict. Raises ConversionError."""
        problems = [
            f"{name}={getattr(config, name)!r}; {self.model_type} has {value!r} only"
            for name, value in self.constants.items()
            if is_other(config, name, value) and name not in TRAINING_ONLY
        ]
        for side in ("encoder", "decoder"):
            heads = getattr(config, f"{side}_num_attention_heads")
            groups = getattr(config, f"{side}_num_key_value_heads")
            if groups != heads:
                problems.append(
                    f"{side}_num_key_value_heads={groups}; {self.model_type} has as many as heads ({heads})"
                )
        for field, ours in self.fields.items():
            values = {name: getattr(config, name) for name in _several(ours)}
            if len(set(values.values())) > 1:
                found = ", ".join(f"{name}={value!r}" for name, value in values.items())
                problems.append(f"{found}; {self.model_type} has one {field} for them")
        problems += self.our_problems(config)
        ties = (config.share_embeddings, config.tie_word_embeddings)
        if ties not in self.ties:
            options = " or ".join(map(str, self.ties))
            problems.append(f"(share_embeddings, tie_word_embeddings)={ties}; {self.model_type} has {options} only")
        if problems:
            raise ConversionError(self.model_type, problems)
        fields = {field: getattr(config, _several(ours)[0]) for field, ours in self.fields.items()}
        fields |= {"tie_word_embeddings": config.tie_word_embeddings, **self.their_fields(config)}
        config_class: Any = self.in_tree_class().config_class
        theirs = config_class(**fields)

        names = {their_name: name for name, their_name in self.names_in(config, tensors).items()}
        places = ((HEAD, self.heads), (SOURCE, self.source_embeddings), (TARGET, self.target_embeddings))
        names |= {name: table for table, (_, *others) in places for name in others}
        names |= {first: table for table, (first, *_) in places}  # the other names share with one that has a place
        state = {}
        for name, shape in _shapes(self.in_tree_class(), theirs).items():
            if names.get(name) in tensors:
                state[name] = _fit(tensors[names[name]], shape, names[name], problems)
            elif name in self.parameters:  # a bias that ours does without
                state[name] = torch.zeros(shape, dtype=tensors[TARGET].dtype)
            elif name not in self.tables:
                problems.append(f"nothing of ours is {name}")
        problems += [f"our {name} has no place" for name in tensors.keys() - {names.get(name) for name in state}]
        if problems:
            raise ConversionError(self.model_type, sorted(problems))
        return theirs, state

    def embeddings_in(self, tensors: Mapping[str, Tensor], may_tie: bool) -> dict[str, str]:
        """Where our embeddings and head lie in theirs; of tied ones a file may hold any."""
        source_is_own = (False, True) in self.ties
        spare = (*self.target_embeddings, *self.heads) if may_tie else ()
        spare += self.source_embeddings if may_tie and not source_is_own else ()
        return {
            SOURCE: _first((*self.source_embeddings, *(() if source_is_own else spare)), tensors),
            TARGET: _first((*self.target_embeddings, *spare), tensors),
            HEAD: _first((*self.heads, *spare), tensors),
        }

    def names_in(self, config: DragomanConfig, tensors: Mapping[str, Any]) -> dict[str, str]:
        """Our parameters among ``tensors`` and theirs, but for embeddings and head."""
        modules = self.module_pairs(config)
        names = {}
        for name in tensors.keys() - {SOURCE, TARGET, HEAD}:
            module, _, parameter = name.rpartition(".")
            if module in modules:
                names[name] = f"{modules[module]}.{parameter}"
        return names | {name: theirs for theirs, name in self.parameters.items() if name in tensors}

    def is_other_class(self, name: str) -> bool:
        """Whether a name is that of a class of transformers which shares the configuration, but has another head."""
        other: Any = getattr(transformers, name, None)
        if not isinstance(other, type) or not issubclass(other, PreTrainedModel) or other is self.in_tree_class():
            return False
        return getattr(other.config_class, "model_type", None) == self.model_type

    def is_ignored(self, name: str) -> bool:
        """Whether their class ignores a tensor, too."""
        patterns = getattr(self.in_tree_class(), "_keys_to_ignore_on_load_unexpected", None) or []
        return any(re.search(pattern, name) for pattern in patterns)


def with_ties(config: DragomanConfig, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file of ours holds a tied tensor once; here it goes by all of its names."""
    owners = {TARGET: SOURCE} if config.share_embeddings else {}
    if config.tie_word_embeddings:
        owners[HEAD] = owners.get(TARGET, TARGET)
    return {**tensors, **{name: tensors[owner] for name, owner in owners.items() if owner in tensors}}


def _first(names: tuple[str, ...], tensors: Mapping[str, Tensor]) -> str:
    """The first of ``names`` that is there; if none is, the first, which will be reported as missing."""
    return next((name for name in names if name in tensors), names[0])


def _are_equal(tensors: Mapping[str, Tensor], a: str, b: str) -> bool:
    if a == b:
        return True
    return a in tensors and b in tensors and torch.equal(tensors[a], tensors[b])


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _single(value: Any) -> Any:
    """transformers allows several end tokens; the generation configuration keeps them all."""
    return value[0] if isinstance(value, list) else value


def _shapes(architecture: Any, config: Any) -> dict[str, torch.Size]:
    """Names and shapes of a model's state, without its memory."""
    with torch.device("meta"):
        return {name: value.shape for name, value in architecture(copy.deepcopy(config)).state_dict().items()}


def _fit(tensor: Tensor, shape: torch.Size, name: str, problems: list[str]) -> Tensor:
    """A tensor in a shape that differs by dimensions of 1 at most."""
    if [n for n in tensor.shape if n > 1] == [n for n in shape if n > 1]:
        return tensor.reshape(shape)
    problems.append(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
    return tensor


def holds_sinusoids(table: Tensor | None, offset: int, endpoint: bool) -> bool:
    """Whether a stored table of positions, if any, holds what is computed here. Rows before position 0 may differ."""
    if table is None:
        return True
    rows, size = table.shape
    tolerance = max(1e-3, torch.finfo(table.dtype).eps)
    return bool((table.float() - sinusoids(rows, size, endpoint=endpoint))[offset:].abs().max() < tolerance)
