"""The parity ladder: a random model of transformers and its conversion, compared rung by rung, both directions."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from divergence import first_divergence
from dragoman.conversion import convert_from, convert_to
from dragoman.conversion.families import HEAD, SOURCE, TARGET
from dragoman.conversion.registry import family_of
from support import relative_error

TOLERANCE = 1e-5
WITHOUT_GRADIENT = "k_proj.bias"  # it moves all scores of a query alike: what is left is rounding
SIDES = {  # of families with fairseq's names, differing in everything that may differ
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
SIZES = ((9, 4), (5, 7), (2, 3), (7, 6))  # of sources and targets


def randomise(model: PreTrainedModel, seed: int = 0, std: float = 0.25) -> PreTrainedModel:
    """Every tensor random, biases, norms and learned positions too; fixed tables stay."""
    family, generator = family_of(model.config.model_type), torch.Generator().manual_seed(seed)
    drawn: set[int] = set()
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in family.tables or id(tensor) in drawn:
                continue
            drawn.add(id(tensor))
            is_norm = tensor.dim() == 1 and name.endswith("weight")
            tensor.copy_(float(is_norm) + std * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def ragged(model: PreTrainedModel, side: str = "right", seed: int = 1) -> dict[str, Tensor]:
    """Rows of unequal lengths in source and target, padded on one side; ids that are nobody's special token."""
    ours, generator = convert_from(model).config, torch.Generator().manual_seed(seed)
    special = {ours.pad_token_id, ours.bos_token_id, ours.eos_token_id, ours.decoder_start_token_id, 0, 1, 2, 3}

    def ids(length: int, size: int) -> Tensor:
        allowed = torch.tensor([i for i in range(size) if i not in special])
        return allowed[torch.randint(len(allowed), (length,), generator=generator)]

    def pad(rows: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)

    sources = [ids(source, ours.source_vocab_size or ours.vocab_size) for source, _ in SIZES]
    labels = [ids(target, ours.vocab_size) for _, target in SIZES]
    start = torch.tensor([ours.decoder_start_token_id])
    targets = [torch.cat([start, row[:-1]]) for row in labels]
    return {
        "input_ids": pad(sources, ours.pad_token_id),
        "attention_mask": pad([torch.ones_like(row) for row in sources], 0),
        "decoder_input_ids": pad(targets, ours.pad_token_id),
        "decoder_attention_mask": pad([torch.ones_like(row) for row in targets], 0),
        "labels": pad(labels, -100),
    }


def climb(theirs: PreTrainedModel, ours: PreTrainedModel, side: str = "right", **options: Any) -> None:
    """Raises AssertionError naming the rung, and the first module that diverges. ``options`` go to both forwards."""
    inputs = ragged(theirs, side)
    family = family_of(theirs.config.model_type)
    try:
        _compare_states(theirs, ours, inputs, options)
        _compare_gradients(family, theirs, ours, inputs, options)
    except AssertionError as error:
        row = {name: inputs[name][1:2, :5] for name in ("input_ids", "decoder_input_ids")}
        if side == "left":
            row = {name: inputs[name][1:2, -5:] for name in row}
        where = first_divergence(ours, theirs, family.module_pairs(ours.config), {**row, **options})
        raise AssertionError(f"{error}; first module: {where}") from error
    _compare_tokens(theirs, ours, inputs)


def _compare_states(theirs: Any, ours: Any, inputs: dict[str, Tensor], options: dict[str, Any]) -> None:
    for model in (theirs, ours):
        model.set_attn_implementation("eager")
    record = {**options, "output_hidden_states": True, "output_attentions": True}
    expected, found = theirs(**inputs, **record), ours(**inputs, **record)
    source, target = inputs["attention_mask"].bool(), inputs["decoder_attention_mask"].bool()
    rungs = [("embeddings of the source", "encoder_hidden_states", 0, source)]
    for i in range(len(found.encoder_attentions)):
        rungs += [(f"encoder attention {i}", "encoder_attentions", i, source)]
        rungs += [(f"encoder layer {i}", "encoder_hidden_states", i + 1, source)]
    rungs += [("embeddings of the target", "decoder_hidden_states", 0, target)]
    for i in range(len(found.decoder_attentions)):
        rungs += [(f"decoder attention {i}", "decoder_attentions", i, target)]
        rungs += [(f"cross-attention {i}", "cross_attentions", i, target)]
        rungs += [(f"decoder layer {i}", "decoder_hidden_states", i + 1, target)]
    for rung, name, i, mask in rungs:
        pair = found[name][i], expected[name][i]
        if "attentions" in name:
            pair = tuple(weights.transpose(1, 2) for weights in pair)  # (B, T, H, S)
        if pair[0].shape == pair[1].shape:  # FSMT's head is its decoder's last state
            _assert_near(rung, *(states[mask] for states in pair))
    _assert_near("logits", found.logits[target], expected.logits[target])
    _assert_near("loss", found.loss, expected.loss)
    for model in (theirs, ours):
        model.set_attn_implementation("sdpa")
    _assert_near("logits by SDPA", ours(**inputs, **options).logits[target], expected.logits[target])


def _compare_gradients(family: Any, theirs: Any, ours: Any, inputs: dict[str, Tensor], options: dict[str, Any]) -> None:
    for model in (theirs, ours):
        model.zero_grad(set_to_none=True)
        model(**inputs, **options).loss.backward()
    parameters = theirs.state_dict(keep_vars=True)
    names = family.names_in(ours.config, ours.state_dict())
    names |= family.embeddings_in(parameters, theirs.config.tie_word_embeddings is not False)
    trained = dict(ours.named_parameters())
    assert {SOURCE, TARGET, HEAD} & trained.keys()
    for name, parameter in trained.items():
        if name.endswith(WITHOUT_GRADIENT):
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
        _assert_near(f"gradient of {name}", parameter.grad, parameters[names[name]].grad.reshape(parameter.shape))


def pad_after_end(ids: Tensor, end: int | list[int], pad: int) -> Tensor:
    """transformers fills up its beams with the end token where padding is 0."""
    rows = ids.tolist()
    for row in rows:
        ends = end if isinstance(end, list) else [end]
        after = next((at + 1 for at in range(1, len(row)) if row[at] in ends), len(row))
        row[after:] = [pad] * (len(row) - after)
    return torch.tensor(rows)


def _compare_tokens(theirs: Any, ours: Any, inputs: dict[str, Tensor]) -> None:
    """Large weights and no repetition, so that the tokens differ from step to step and between sources."""
    source = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    lengths = {"max_new_tokens": 32, "min_new_tokens": 16, "no_repeat_ngram_size": 1}
    no_padding = {"suppress_tokens": [ours.config.pad_token_id]}  # which would have no position in some families
    for beams in (1, 4):
        settings = {**lengths, **no_padding, "num_beams": beams}
        expected, found = (model.generate(**source, **settings, do_sample=False) for model in (theirs, ours))
        expected = pad_after_end(expected, ours.config.eos_token_id, ours.config.pad_token_id)
        torch.testing.assert_close(found, expected, msg=f"tokens of {beams} beams differ")
        assert len({tuple(row) for row in found.tolist()}) == len(found), "all sources are written alike"
        assert min(len(set(row)) for row in found.tolist()) >= 16, "a row repeats itself"


def _assert_near(what: str, found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape, what
    assert relative_error(found, expected) < TOLERANCE, f"{what} is off by {relative_error(found, expected):.1e}"


def assert_same_weights(a: PreTrainedModel, b: PreTrainedModel) -> None:
    """Names, ties and bits."""
    first, second = a.state_dict(keep_vars=True), b.state_dict(keep_vars=True)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, msg=name)
    assert ties(first) == ties(second)


def ties(state: dict[str, Tensor]) -> set[frozenset[str]]:
    groups: dict[int, set[str]] = {}
    for name, tensor in state.items():
        groups.setdefault(id(tensor), set()).add(name)
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def go_around(theirs: PreTrainedModel) -> PreTrainedModel:
    """Theirs to ours, back, and to ours again: nothing changes. Returns ours."""
    ours = convert_from(theirs)
    back = convert_to(ours, theirs.config.model_type)
    assert type(back) is type(theirs)
    again = convert_from(back)
    assert_same_weights(again, ours)
    assert again.config.to_dict() == ours.config.to_dict()
    assert again.generation_config.to_dict() == ours.generation_config.to_dict()
    return ours
