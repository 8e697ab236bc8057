"""``pipeline("dragoman-text2text")``: text in, text out, with any encoder-decoder of transformers."""

from collections.abc import Iterator, Sequence, Sized
from functools import partial
from itertools import islice
from typing import Any

from torch.utils.data import Dataset
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging

from .modeling.encoder_decoder_generation import given_columns
from .sorted_batches import Records, Results, for_inputs, iter_rows, sorted_batches
from .surrogates import check_characters
from .target_languages import encode_for
from .written_rows import most_tokens, sequence_scores, written_lengths

TASK = "dragoman-text2text"
WINDOW = 16  # batches of a stream that are read ahead and sorted together
MANY = 100  # inputs of a list from which on there is a progress bar
NO_LIMIT = 10**9
UNBOUNDED = ("rotary", "alibi", "relative", "none")  # a Dragoman's positions without a limit

Row = str | dict[str, str]
Encoded = dict[str, Any]


class Text2TextPipeline(Pipeline):
    """``pipeline("dragoman-text2text", model=...)``, for every model of ``AutoModelForSeq2SeqLM``.

    Called with a text it returns a list of ``{"generated_text": ...}``, ``num_return_sequences`` of them, the best
    first; with a list of texts, one such record a text in the order of the texts, or a list of them where there are
    several; with an iterator or a data set, an iterator over lists of records, which reads no more than 16 batches
    ahead. Instead of a text there may be ``{"text": ..., "tgt_lang": ..., "src_lang": ...}``.

    Texts of like length are batched, the longest first, so that ``batch_size`` changes time and memory, and no token.

    Args:
        tgt_lang, src_lang: for all inputs that do not name theirs; see `encode_for` for what models take them.
        prefix: put before every text (T5: ``"summarize: "``). Else ``config.prefix``, if there is one.
        truncation: cut sources that are longer than the model reads, instead of raising.
        return_scores: a record also has ``score``, ``Σ log p(token) / tokens^length_penalty``, by which beam search
            ranks; p is what remains after generate()'s processors.
        return_tensors: records have ``generated_token_ids`` instead of the text.
        clean_up_tokenization_spaces: for ``tokenizer.decode``.
        progress_bar: by default there is one for lists of 100 inputs and more.

    Everything else is generate()'s: ``num_beams``, ``num_return_sequences``, ``max_new_tokens`` (256, where the model
    does not say), ``generation_config``, ... ``num_workers`` is without effect.

    Raises:
        TypeError: for an input that is no text.
        ValueError: for an empty or too long text, an unknown language, a model that is no encoder-decoder.
    """

    # What transformers tells pipelines apart by: who generates, and what to load beside the model.
    _pipeline_calls_generate = True
    _load_processor = _load_image_processor = _load_feature_extractor = False  # type: ignore[assignment]
    _load_tokenizer = True  # type: ignore[assignment]
    tokenizer: Any
    model: Any

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any) -> None:
        if not (model.config.is_encoder_decoder and model.can_generate()):
            raise ValueError(f"{type(model).__name__} is not an encoder-decoder that generates text.")
        if tokenizer is None:
            raise ValueError("The pipeline needs a tokenizer: save one beside the model, or pass tokenizer=...")
        if tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no pad_token to make batches with: set tokenizer.pad_token.")
        positions = getattr(model.config, "max_position_embeddings", None) or NO_LIMIT
        self._default_generation_config = GenerationConfig(max_new_tokens=most_tokens(model))
        self._positions = NO_LIMIT if getattr(model.config, "position_encoding", None) in UNBOUNDED else positions
        super().__init__(model, tokenizer=tokenizer, **kwargs)

    def _sanitize_parameters(
        self,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | None = None,
        truncation: Any = None,
        return_scores: bool | None = None,
        return_tensors: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        progress_bar: bool | None = None,
        **generate_kwargs: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        for name, value in {"src_lang": src_lang, "tgt_lang": tgt_lang}.items():
            if not isinstance(value, str | None):
                raise TypeError(
                    f"{name}={value!r} must be one language; for one a row, pass rows: {{'text': ..., {name!r}: ...}}."
                )
        reading = {"src_lang": src_lang, "tgt_lang": tgt_lang, "prefix": prefix, "truncation": truncation}
        return (
            said(progress_bar=progress_bar, **reading),
            said(return_scores=return_scores, **self._assistant()) | generate_kwargs,
            said(return_tensors=return_tensors, clean_up_tokenization_spaces=clean_up_tokenization_spaces),
        )

    def _assistant(self) -> dict[str, Any]:
        """What transformers set aside when the pipeline was made."""
        others = getattr(self, "assistant_tokenizer", None)
        tokenizers = {} if others is None else {"tokenizer": self.tokenizer, "assistant_tokenizer": others}
        return {"assistant_model": getattr(self, "assistant_model", None), **tokenizers}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        if isinstance(inputs, str | dict):
            return super().__call__([inputs], **kwargs)[0]
        if isinstance(inputs, Sequence) and not isinstance(inputs, bytes):
            records = super().__call__(list(inputs), **kwargs) if len(inputs) else []
            return [row[0] for row in records] if all(len(row) == 1 for row in records) else records
        if isinstance(inputs, Iterator):
            return super().__call__((row for row in inputs), **kwargs)  # transformers streams generators alone
        if isinstance(inputs, Dataset):
            return super().__call__(inputs, **kwargs)
        raise TypeError(
            f"The input is {inputs!r:.60}, of type {type(inputs).__name__}: expected a text, a list of texts, an "
            "iterator over texts, or a data set of texts such as KeyDataset(dataset, 'text')."
        )

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> "Results":
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number above 0.")
        preprocess_params = dict(preprocess_params)
        size = len(inputs) if isinstance(inputs, Sized) else None
        whole = isinstance(inputs, list)
        wanted = preprocess_params.pop("progress_bar", whole and len(inputs) >= MANY)
        window = max(1, len(inputs)) if whole else batch_size * (WINDOW if batch_size > 1 else 1)

        def run() -> Iterator[Records]:
            rows, first = iter_rows(inputs), 0
            option = partial(self._option, self._prepare_generate_kwargs(forward_params))  # of the pipeline's, too
            with logging.tqdm(total=size, disable=not wanted, unit="text") as bar:
                while read := list(islice(rows, window)):
                    encoded = [self._encode(row, first + i, preprocess_params) for i, row in enumerate(read)]
                    records: list[Records] = [[]] * len(read)
                    for batch in sorted_batches(encoded, batch_size):
                        options = for_inputs(forward_params, option, [first + i for i in batch])
                        outputs = self.forward(self._collate([encoded[i] for i in batch]), **options)
                        for i, output in zip(batch, outputs, strict=True):
                            records[i] = self.postprocess(output, **postprocess_params)
                        bar.update(len(batch))
                    first += len(read)
                    yield from records

        return Results(run(), size)

    def _encode(self, row: Any, number: int, options: dict[str, Any]) -> Encoded:
        try:
            return self.preprocess(row, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Input {number}: {error}") from error

    def preprocess(  # type: ignore[override]
        self,
        row: Row,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        prefix: str | None = None,
        truncation: Any = False,
    ) -> Encoded:
        fields = {"text": row} if isinstance(row, str) else row
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            raise TypeError(f"{row!r:.60} is no text, and no dict with a 'text'.")
        if surplus := fields.keys() - {"text", "src_lang", "tgt_lang"}:
            raise ValueError(f"unknown {', '.join(map(repr, sorted(surplus)))}; known: 'text', 'src_lang', 'tgt_lang'.")
        if not fields["text"].strip():
            raise ValueError(f"the text {fields['text']!r} is empty: leave such rows out.")
        text = (getattr(self, "prefix", None) or "" if prefix is None else prefix) + check_characters(fields["text"])
        languages = fields.get("src_lang", src_lang), fields.get("tgt_lang", tgt_lang)
        limits = {"config.max_position_embeddings": self._positions}
        limits["tokenizer.model_max_length"] = self.tokenizer.model_max_length
        limiting, longest = min(limits.items(), key=lambda limit: limit[1])
        cut = truncation and longest < NO_LIMIT
        options = {"truncation": truncation, "max_length": longest} if cut else {"verbose": False}
        encoded = encode_for(self.tokenizer, self.model.config, text, *languages, **options)
        length = len(encoded["input_ids"])
        if length > longest:
            raise ValueError(
                f"the text has {length} tokens and the model reads at most {longest} ({limiting}): split it, or pass "
                "truncation=True to have it cut."
            )
        encoded.pop("token_type_ids", None)  # no encoder-decoder takes them
        return encoded

    def _collate(self, rows: list[Encoded]) -> Encoded:
        forced = {row.get("forced_bos_token_id") for row in rows}  # one
        ids = [{name: row[name] for name in row if name != "forced_bos_token_id"} for row in rows]
        # On the left it would move the positions that many models count from there.
        padded = self.tokenizer.pad(ids, padding_side="right", return_tensors="pt")
        return {**padded, "forced_bos_token_id": forced.pop()}

    def _forward(self, model_inputs: Encoded, return_scores: bool = False, **generate_kwargs: Any) -> list[Encoded]:  # type: ignore[override]
        inputs = dict(model_inputs)
        overrides = said(forced_bos_token_id=inputs.pop("forced_bos_token_id"), output_scores=return_scores)
        options = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=return_scores, **overrides)
        if strings := self._option(options, "stop_strings", None):
            options.setdefault("tokenizer", self.tokenizer)
        output = self.model.generate(**inputs, **options)
        ids = output.sequences if return_scores else output
        ids = ids.where(ids >= 0, self.tokenizer.pad_token_id)  # beams that no token ends are filled up with -1
        begins = given_columns(ids, options.get("decoder_input_ids"))
        ends = self._option(options, "eos_token_id", None)
        pad = self._option(options, "pad_token_id", None) if options.get("stopping_criteria") else None
        lengths = written_lengths(ids, begins, ends, strings, options.get("tokenizer"), pad)
        results = {"ids": ids, "length": begins + lengths}
        if return_scores:
            penalty = self._option(options, "length_penalty", 1.0)
            results["score"] = sequence_scores(self.model, output, lengths, penalty)
        rows = len(inputs["input_ids"])
        return [{name: value.unflatten(0, (rows, -1))[i] for name, value in results.items()} for i in range(rows)]

    def _option(self, options: dict[str, Any], name: str, default: Any) -> Any:
        """Of the call, its ``generation_config``, or the model's. None is a word of the call alone."""
        places = (options.get("generation_config"), self.model.generation_config)
        values = [options[name]] if name in options else [getattr(place, name, None) for place in places]
        return next((value for value in values if value is not None), default)

    def postprocess(  # type: ignore[override]
        self, output: Encoded, return_tensors: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Records:
        records: Records = []
        for i, (ids, length) in enumerate(zip(output["ids"], output["length"].tolist(), strict=True)):
            if return_tensors:
                record: dict[str, Any] = {"generated_token_ids": ids[:length]}
            else:
                cleaned = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
                record = {"generated_text": self.tokenizer.decode(ids[:length], skip_special_tokens=True, **cleaned)}
            records.append(record | ({"score": output["score"][i].item()} if "score" in output else {}))
        return records


def said(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def register_pipelines() -> None:
    if TASK in PIPELINE_REGISTRY.get_supported_tasks():
        return
    PIPELINE_REGISTRY.register_pipeline(TASK, Text2TextPipeline, pt_model=AutoModelForSeq2SeqLM, type="text")
    # Else pipe.save_pretrained() would put this code beside the checkpoint, and loading it ask for trust_remote_code.
    del Text2TextPipeline._registered_impl  # type: ignore[attr-defined]
