"""A checkpoint folder converted on disk: weights, generation settings, tokenizer files, and proof in the model card."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..card_facts import weight_facts
from ..configuration.configuration_dragoman import DragomanConfig
from ..configuration.configuration_dragoman_recurrent import DragomanRecurrentConfig
from ..model_cards import refresh
from ..modeling.position_encodings import sinusoids
from ..tokenization.tokenization_dragoman import DragomanTokenizer
from . import convert_from, convert_to
from .ctranslate2_files import is_ctranslate2_folder
from .ctranslate2_reader import read_ctranslate2
from .families import ConversionError
from .probes import Answers, Comparison, ask, compare, room
from .registry import FAMILIES
from .tensors import FolderTensors, existing_folder

OURS, ENGINE = DragomanConfig.model_type, "ctranslate2"
# Not a tokenizer's: what is converted, what describes it, and what could run.
LEFT_BEHIND = (
    "config.json generation_config.json README.md *.safetensors *.index.json *.bin *.pt *.pth *.h5 *.msgpack *.ot "
    "*.ckpt* *.onnx *.gguf *.py training_args* .git*"
).split()


@dataclass(frozen=True)
class Conversion:
    source: str  # model_type
    target: str
    parameters: int
    comparison: Comparison | None  # None: the engine of CTranslate2 is compared in the tests


def convert_folder(source: Path, target: Path, family: str = OURS) -> Conversion:
    """Convert ``source`` into the new folder ``target``, and compare the two. One copy of the weights at a time.

    Raises:
        ConversionError: as ``convert_from`` and ``convert_to``, and where the two models do not compute the same.
        NotADirectoryError: for a ``source`` that is not there.
        FileExistsError: for a ``target`` that is there already and not empty. On any error nothing is left in it.
    """
    existing_folder(source)
    if target.exists() and (target.is_file() or any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: name a new folder.")
    target = target.resolve()  # of "." and of a link, too
    if is_ctranslate2_folder(source):
        return _convert_engine(source, target, family)
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    if config.model_type == DragomanRecurrentConfig.model_type:
        raise ConversionError(config.model_type, [f"{source} is recurrent, and no family has such a model"])
    if family == ENGINE:
        return _convert_engine(source, target, family)
    if (config.model_type == OURS) == (family == OURS):
        what = "a Dragoman model; say to which family it shall go" if family == OURS else "not a Dragoman model"
        raise ConversionError(config.model_type, [f"{source} is {what}"])
    with staged(target) as stage:
        model = convert_from(source) if family == OURS else convert_to(source, family)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        model.save_pretrained(stage)
        asked = (*vocabulary_sizes(model.config), min(room(model.config), room(config)))
        ours = model.config if family == OURS else config
        del model
        copy_tokenizer(source, stage, config)
        comparison = compare(answers_of(stage, ours, *asked), answers_of(source, ours, *asked))
        if not comparison.holds:
            raise ConversionError(config.model_type, [f"the two models do not compute the same: {comparison}"])
        conversion = Conversion(config.model_type, family, parameters, comparison)
        if family == OURS:
            facts = facts_of(config.model_type, comparison) | {"weights": weight_facts(stage).get("digest")}
            refresh(stage, target.name, {"conversion": facts})
    return conversion


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder yet to be made, which becomes ``target`` if all goes well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        stage = Path(name) / target.name
        yield stage
        if not target.exists():
            stage.replace(target)
            return
        for path in stage.iterdir():  # an empty folder stays the one that it is: somebody may be in it
            path.replace(target / path.name)


def _convert_engine(source: Path, target: Path, family: str) -> Conversion:
    """From CTranslate2's format, or to it."""
    if family == ENGINE and is_ctranslate2_folder(source):
        raise ConversionError(ENGINE, [f"{source} is of CTranslate2 already"])
    if family == ENGINE:
        config = AutoConfig.from_pretrained(source, local_files_only=True)
        if config.model_type != OURS:
            raise ConversionError(config.model_type, [f"{source} goes to Dragoman first, and from there to {ENGINE}"])
        if find_spec("ctranslate2") is None:
            raise ConversionError(OURS, ["it takes the engine: pip install ctranslate2"])
        from .ctranslate2_writer import write_ctranslate2  # it imports the engine

        parameters = sum(math.prod(tensor.shape) for tensor in FolderTensors(source).values())
        with staged(target) as stage:
            try:
                write_ctranslate2(source, stage)
            except ConversionError:
                raise
            except ValueError as error:
                raise ConversionError(OURS, [str(error)]) from error
        return Conversion(OURS, ENGINE, parameters, None)
    if family != OURS:
        raise ConversionError(ENGINE, [f"{source} goes to Dragoman first, and from there to {family}"])
    try:
        model, tokenizer = read_ctranslate2(source)
    except ValueError as error:
        raise ConversionError(ENGINE, [str(error)]) from error
    with staged(target) as stage:
        model.save_pretrained(stage)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
    return Conversion(ENGINE, OURS, sum(parameter.numel() for parameter in model.parameters()), None)


def answers_of(folder: Path, ours: Any, source_size: int, target_size: int, length: int) -> Answers:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    if ours.position_encoding == "sinusoidal" and model.config.model_type in FAMILIES:
        restore_positions(model, FolderTensors(folder), ours)
    return ask(model, source_size, target_size, length)


def restore_positions(theirs: Any, stored: Mapping[str, Tensor], ours: DragomanConfig) -> None:
    """The sinusoids that a file of half precision has rounded, computed anew: ours always are."""
    tables = theirs.state_dict()
    for name in FAMILIES[theirs.config.model_type].tables:
        if name in tables and name in stored and stored[name].dtype != torch.float32:
            rows, size = tables[name].shape
            exact = sinusoids(rows, size, endpoint=ours.sinusoidal_endpoint)
            tables[name][ours.position_offset :] = exact[ours.position_offset :]


def vocabulary_sizes(config: Any) -> tuple[int, int]:
    """Of source and target, by whatever name a family has for them."""
    target = getattr(config, "decoder_vocab_size", None) or config.vocab_size
    source = getattr(config, "source_vocab_size", None) or getattr(config, "src_vocab_size", None)
    return source or config.vocab_size, target


def copy_tokenizer(source: Path, stage: Path, config: Any) -> None:
    """Every file that may be a tokenizer's, unchanged, but for a class that only config.json told so far."""
    description = source / TOKENIZER_CONFIG_FILE  # older folders have none
    fields = json.loads(description.read_text("utf-8")) if description.is_file() else {}
    if fields.get("tokenizer_class") == DragomanTokenizer.__name__:  # it brings its code along
        DragomanTokenizer.from_pretrained(source).save_pretrained(stage)
        return
    files = [f for f in source.iterdir() if f.is_file() and not any(f.match(pattern) for pattern in LEFT_BEHIND)]
    for file in files:
        shutil.copyfile(file, stage / file.name)
    if not files or config.model_type not in FAMILIES:
        return
    told, family = fields.get("tokenizer_class"), FAMILIES[config.model_type].tokenizer
    named = told or getattr(config, "tokenizer_class", None) or family
    if family == "TokenizersBackend":  # of these transformers takes it, whatever the folder names
        named = family
    if named != told:
        fields["tokenizer_class"] = named
        (stage / description.name).write_text(json.dumps(fields, indent=2), "utf-8")


def facts_of(source: str, comparison: Comparison) -> dict[str, Any]:
    """For the model card."""
    versions = {"transformers": transformers.__version__, "torch": str(torch.__version__)}
    return {"source": source, **asdict(comparison), "difference": f"{comparison.difference:.1e}", "versions": versions}
