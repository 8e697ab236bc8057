"""What a caller of forward() relies on."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling.attention import eager_attention
from dragoman.modeling.building import build_input_embedding
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AttentionInterface, AutoModel, AutoModelForSeq2SeqLM, AutoModelForTextEncoding
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_outputs import BaseModelOutput

from dragoman import DragomanConfig, DragomanEncoderModel, DragomanForConditionalGeneration, DragomanModel
from support import SCHEMES, batch, build, gradients, relative_error, tiny


def test_auto_classes_know_the_model() -> None:
    config = tiny()
    assert type(AutoModel.from_config(config)) is DragomanModel
    assert type(AutoModelForSeq2SeqLM.from_config(config)) is DragomanForConditionalGeneration
    assert type(AutoModelForTextEncoding.from_config(config)) is DragomanEncoderModel


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_alone_suffice(scheme: str, side: str) -> None:
    """The collator's decoder input and ours agree, and padding on the left is read off either."""
    config = tiny(position_encoding=scheme)
    model, inputs = build(config).double(), batch(config)
    if side == "left":
        rows = [row[row != -100] for row in inputs["labels"]]
        inputs["labels"] = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=-100, padding_side="left"
        )
    ids = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    assert (ids == config.decoder_start_token_id).sum(1).tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(model(**inputs, decoder_input_ids=ids).loss, model(**inputs).loss)


def test_left_padded_labels_where_padding_is_the_start() -> None:
    config = tiny(decoder_start_token_id=0, bos_token_id=None)
    model, inputs = build(config).double(), batch(config)
    rows = [row[row != -100] for row in inputs["labels"]]
    left = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100, padding_side="left")
    torch.testing.assert_close(model(**{**inputs, "labels": left}).loss, model(**inputs).loss)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_relative_schemes_know_distances_only(scheme: str) -> None:
    """Moving every position by 11 changes nothing for them, and much for the absolute ones."""
    config = tiny(position_encoding=scheme)
    model, inputs = build(config).double(), batch(config)
    logits = model(**inputs).logits
    source, target = torch.arange(9).expand(4, -1), torch.arange(7).expand(4, -1)
    moved = model(**inputs, position_ids=source + 11, decoder_position_ids=target + 11).logits
    if scheme in ("sinusoidal", "learned"):
        assert relative_error(moved, logits) > 1e-3
    else:
        torch.testing.assert_close(moved, logits, rtol=1e-4, atol=1e-4)  # inv_freq is kept in fp32
    for stretched in ({"position_ids": source * 2}, {"decoder_position_ids": target * 2}):  # each side looks at its own
        assert (relative_error(model(**inputs, **stretched).logits, logits) > 1e-3) == (scheme != "none")


def test_holes_in_the_mask_do_not_count() -> None:
    """Positions count tokens, not columns: a masked token in the middle is as if it were not there."""
    for scheme in SCHEMES:
        config = tiny(position_encoding=scheme)
        model = build(config).double()
        ids, labels = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[8, 9, 10]])
        holed = torch.tensor([[4, 5, 20, 6, 7]])
        expected = model(input_ids=ids, labels=labels).logits
        found = model(input_ids=holed, attention_mask=torch.tensor([[1, 1, 0, 1, 1]]), labels=labels).logits
        torch.testing.assert_close(found, expected, msg=scheme)


@torch.no_grad()  # flex attention has no backward on the CPU
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize("scheme", ["rotary", "relative", "alibi"])
def test_attentions_are_never_empty(implementation: str, scheme: str) -> None:
    config = tiny(position_encoding=scheme, decoder_num_key_value_heads=2)
    model, inputs = build(config), batch(config)
    model.set_attn_implementation("eager")
    reference = model(**inputs, output_attentions=True)
    model.set_attn_implementation(implementation)
    plain = model(**inputs)
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(outputs.logits, plain.logits, rtol=0, atol=0)  # recording changes nothing
    assert relative_error(outputs.logits, reference.logits) < 1e-5
    assert len(outputs.encoder_attentions) == 3
    assert len(outputs.decoder_attentions) == len(outputs.cross_attentions) == 2
    real = inputs["labels"] != -100
    for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        for found, expected in zip(outputs[name], reference[name], strict=True):
            queries = inputs["attention_mask"].bool() if name == "encoder_attentions" else real
            found, expected = found.transpose(1, 2)[queries], expected.transpose(1, 2)[queries]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.sum(-1), torch.ones_like(found.sum(-1)))
    assert outputs.cross_attentions[0].shape == (4, 4, 7, 9)  # (B, H, T, S)
    assert [len(outputs.encoder_hidden_states), len(outputs.decoder_hidden_states)] == [4, 3]
    torch.testing.assert_close(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)


def test_attentions_of_chosen_layers() -> None:
    model, inputs = build(tiny()), batch(tiny())
    everything = model(**inputs, output_attentions=True)
    chosen = model(**inputs, output_attentions=[1])
    assert chosen.encoder_attentions[0] is None
    assert chosen.encoder_attentions[2] is None
    torch.testing.assert_close(chosen.cross_attentions[1], everything.cross_attentions[1])
    assert None not in model(**inputs, output_attentions=[0, 1, 2]).encoder_attentions
    for wrong in (1, [3], [-1]):
        with pytest.raises(ValueError, match="a list of layers from 0 to 2"):
            model(**inputs, output_attentions=wrong)
    model.config.output_attentions = True
    torch.testing.assert_close(model(**inputs).cross_attentions[1], everything.cross_attentions[1])


def test_encoder_outputs_and_embeddings_replace_ids() -> None:
    model, inputs = build(tiny()).double(), batch(tiny())
    expected = model(**inputs).logits
    mask, labels = inputs["attention_mask"], inputs["labels"]
    states = model.get_encoder()(inputs["input_ids"], mask)
    for given in (states, (states.last_hidden_state,), BaseModelOutput(states.last_hidden_state)):
        torch.testing.assert_close(model(encoder_outputs=given, attention_mask=mask, labels=labels).logits, expected)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask, labels=labels).logits, expected)


def test_encoder_model_is_the_encoder(tmp_path: Any) -> None:
    config = tiny(source_vocab_size=29, share_embeddings=False)
    model, inputs = build(config), batch(config)
    model.save_pretrained(tmp_path)
    encoder = AutoModelForTextEncoding.from_pretrained(tmp_path)
    inputs.pop("labels")
    torch.testing.assert_close(encoder(**inputs).last_hidden_state, model.get_encoder()(**inputs).last_hidden_state)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool, recwarn: pytest.WarningsRecorder) -> None:
    model, inputs = build(tiny()).train(), batch(tiny())
    expected = gradients(model, **inputs)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    found = gradients(model, **inputs)
    assert expected.keys() == found.keys()
    for name in expected:
        assert relative_error(found[name], expected[name]) < 1e-5, name
    model.gradient_checkpointing_disable()
    assert not [w for w in recwarn if "cache" in str(w.message)]


def test_tuples_where_the_configuration_asks_for_them() -> None:
    for model_class in (DragomanForConditionalGeneration, DragomanModel, DragomanEncoderModel):
        model, inputs = model_class(tiny()).eval(), batch(tiny())
        if model_class is not DragomanForConditionalGeneration:
            labels = inputs.pop("labels")
        if model_class is DragomanModel:
            inputs["decoder_input_ids"] = labels.clamp(min=0)
        expected = model(**inputs, return_dict=True)
        model.config.return_dict = False
        found = model(**inputs)
        assert type(found) is tuple
        assert len(found) == len(expected)
        torch.testing.assert_close(found[0], expected[0])


@pytest.mark.parametrize("field", [{"logits_bias": True}, {"logits_scale": 0.3}, {"attention_scale": 1.0}])
def test_scales_and_bias_are_honoured(field: dict[str, Any]) -> None:
    model, inputs = build(tiny(**field)).double(), batch(tiny())
    logits = model(**inputs).logits
    changed = copy.deepcopy(model)
    if "logits_bias" in field:
        bias = changed.lm_head.bias.detach().clone()
        torch.nn.init.zeros_(changed.lm_head.bias)
        torch.testing.assert_close(logits, changed(**inputs).logits + bias)
    elif "logits_scale" in field:
        changed.config.logits_scale = 1.0
        torch.testing.assert_close(logits, changed(**inputs).logits * 0.3)
    else:
        for module in changed.modules():  # scaling q by 1 is scaling √D · q by 1/√D
            if hasattr(module, "q_proj"):
                module.scaling = module.head_dim**-0.5
                module.q_proj.weight.data *= module.head_dim**0.5
        torch.testing.assert_close(logits, changed(**inputs).logits)


@pytest.mark.parametrize(
    "field",
    [{"embedding_norm": True}, {"attention_bias": True}, {"feed_forward_bias": False}, {"norm_bias": False},
     {"scale_embedding": False}, {"head_dim": 6}, {"hidden_act": "gelu"}, {"relative_attention_per_layer": True,
     "position_encoding": "relative"}, {"final_norm": False}, {"norm_placement": "post", "final_norm": True},
     {"position_offset": 2, "position_encoding": "learned"}, {"encoder_num_attention_heads": 2}],
    ids=str,
)  # fmt: skip
def test_other_options_change_the_model_and_train(field: dict[str, Any]) -> None:
    config = tiny(**field)
    model, inputs = build(config), batch(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    base = {k: v for k, v in field.items() if k == "position_encoding"}
    plain = build(tiny(**base))
    same_shapes = shapes == {name: parameter.shape for name, parameter in plain.named_parameters()}
    assert not same_shapes or relative_error(model(**inputs).logits, plain(**inputs).logits) > 1e-3
    for name, gradient in gradients(model.train(), **inputs).items():
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_building_leaves_the_configuration_as_it_was(scheme: str) -> None:
    config = tiny(position_encoding=scheme, encoder_num_attention_heads=2)
    before = config.to_dict()
    model = DragomanForConditionalGeneration(config)
    assert config.to_dict() == model.config.to_dict() == before
    attentions = model.model.encoder.layers[0].self_attn, model.model.decoder.layers[0].self_attn
    assert [attention.head_dim for attention in attentions] == [16, 8]


def test_key_value_heads_are_those_of_the_side() -> None:
    model = build(tiny(encoder_num_key_value_heads=2, decoder_num_key_value_heads=1)).model
    decoder = model.decoder.layers[0]
    for attention, heads in ((model.encoder.layers[0].self_attn, 2), (decoder.self_attn, 1), (decoder.cross_attn, 1)):
        assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (8 * heads, 32)


def test_dropouts_act_in_training_only() -> None:
    for field in ("dropout", "attention_dropout", "activation_dropout"):
        model, inputs = build(tiny(**{field: 0.5})), batch(tiny())
        plain = build(tiny())(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, plain, rtol=0, atol=0)
        torch.manual_seed(0)
        assert relative_error(model.train()(**inputs, return_logits=True).logits, plain) > 1e-2, field
    model, inputs = build(tiny(dropout=0.5)).train(), batch(tiny())
    embedded = model.model.encoder.embedding(torch.ones(1, 400, 32), torch.arange(400)[None], 400, "source")
    assert 0.4 < (embedded == 0).float().mean() < 0.6


class TestClearErrors:
    @pytest.mark.parametrize("scheme", ["sinusoidal", "learned"])
    def test_longer_than_the_table(self, scheme: str) -> None:
        config = tiny(position_encoding=scheme, max_position_embeddings=8)
        model = build(config)
        long, short = torch.full((1, 9), 5), torch.full((1, 3), 5)
        with pytest.raises(ValueError, match="source position 8 does not fit max_position_embeddings = 8"):
            model(input_ids=long, labels=short)
        with pytest.raises(ValueError, match="target position 8"):
            model(input_ids=short, labels=long)
        with pytest.raises(ValueError, match="target position 8"):
            model.generate(short, min_new_tokens=12, max_new_tokens=12)
        with pytest.raises(ValueError, match="target position 8"):
            model.generate(short, max_new_tokens=12, cache_implementation="static")

    def test_positions_outside_the_table(self) -> None:
        model = build(tiny(position_encoding="learned", position_offset=2, max_position_embeddings=8))
        ids = torch.full((1, 3), 5)
        for wrong in (8, -1):
            with pytest.raises(ValueError, match=f"source position {wrong} does not fit"):
                model(input_ids=ids, labels=ids, position_ids=torch.tensor([[0, 1, wrong]]))
        padded = torch.tensor([[0] * 9 + [5, 6, 7]])  # twelve columns, three positions
        assert model(input_ids=padded, labels=ids).loss.isfinite()
        with pytest.raises(ValueError, match="pass position_ids"):
            model(input_ids=ids, labels=ids, attention_mask=torch.ones(1, 1, 3, 3, dtype=torch.bool))

    @pytest.mark.parametrize("target", [4, 6])
    def test_a_mask_of_source_to_source_is_none_of_target_to_source(self, target: int) -> None:
        model = build(tiny(position_encoding="rotary")).double()
        ids, row = torch.randint(3, 37, (2, 6)), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
        whole = torch.ones(6, 6).tril().bool() & row[:, None, None]  # (B, 1, S, S)
        added = torch.zeros(whole.shape, dtype=torch.float64).masked_fill(~whole, -torch.inf)
        positions = torch.arange(6)[None].expand(2, -1)
        decoder = {"decoder_input_ids": torch.randint(3, 37, (2, target))}
        states = model.get_encoder()(ids, attention_mask=whole, position_ids=positions)
        expected = model(encoder_outputs=states, attention_mask=row.long(), **decoder).logits
        for mask in (whole, added):
            found = model(input_ids=ids, attention_mask=mask, position_ids=positions, **decoder).logits
            torch.testing.assert_close(found, expected)

    def test_off_the_cpu_the_columns_are_counted(self) -> None:
        """A look at positions would wait for the device; they are one less than the columns at most."""
        config = tiny(position_encoding="sinusoidal", max_position_embeddings=8)
        embedding = build_input_embedding(config, "decoder").to("meta")
        x, positions = torch.empty(1, 1, 32, device="meta"), torch.empty(1, 1, dtype=torch.long, device="meta")
        assert embedding(x, positions, 8, "target").shape == (1, 1, 32)
        with pytest.raises(ValueError, match="target position 8 does not fit max_position_embeddings = 8"):
            embedding(x, positions, 9, "target")

    def test_own_positions_cannot_continue_a_biased_cache(self) -> None:
        for scheme in SCHEMES:
            model, inputs = build(tiny(position_encoding=scheme)).double(), batch(tiny())
            ids, positions = inputs.pop("labels").clamp(min=3), torch.arange(7).expand(4, -1) * 3
            expected = model(**inputs, decoder_input_ids=ids, decoder_position_ids=positions, use_cache=False).logits
            first = model(**inputs, decoder_input_ids=ids[:, :4], decoder_position_ids=positions[:, :4])
            torch.testing.assert_close(first.logits, expected[:, :4])
            rest = {"decoder_input_ids": ids[:, 4:], "decoder_position_ids": positions[:, 4:]}
            if scheme in ("alibi", "relative"):
                with pytest.raises(ValueError, match="cannot continue a cache"):
                    model(**inputs, **rest, past_key_values=first.past_key_values)
            else:
                found = model(**inputs, **rest, past_key_values=first.past_key_values).logits
                torch.testing.assert_close(found, expected[:, 4:])

    def test_an_attention_that_would_drop_the_bias(self) -> None:
        AttentionInterface.register("careless", eager_attention)
        AttentionMaskInterface.register("careless", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        model, inputs = build(tiny(position_encoding="alibi")), batch(tiny())
        model.set_attn_implementation("careless")
        with pytest.raises(NotImplementedError, match="'careless' would drop the bias of position_encoding='alibi'"):
            model(**inputs)

    def test_flash_attention_with_a_bias(self) -> None:
        for scheme in ("alibi", "relative"):
            with pytest.raises(ValueError, match="adds a bias to the scores, which flash_attention_2 cannot"):
                DragomanForConditionalGeneration._from_config(
                    tiny(position_encoding=scheme), attn_implementation="flash_attention_2"
                )
        assert DragomanForConditionalGeneration(tiny())._supports_flash_attn

    def test_configuration_changed_afterwards(self) -> None:
        config: DragomanConfig = tiny()
        config.encoder_num_attention_heads = 5
        with pytest.raises(StrictDataclassClassValidationError, match="encoder_num_attention_heads 5"):
            DragomanForConditionalGeneration(config)


class TestFixedRows:
    """What published models do not train."""

    def test_the_pad_token_as_input(self) -> None:
        for trained in (True, False):
            config = tiny(train_pad_embedding=trained, decoder_start_token_id=0, tie_word_embeddings=False)
            gradient = gradients(build(config), **batch(config))["model.encoder.embed_tokens.weight"]
            assert bool(gradient[0].any()) is trained
            assert gradient[3:].any()

    def test_the_bias_of_the_head_through_saving_and_resizing(self, tmp_path: Path) -> None:
        model = build(tiny(logits_bias=True))
        model.save_pretrained(tmp_path)
        loaded = DragomanForConditionalGeneration.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded.lm_head.bias, model.lm_head.bias)
        loaded.resize_token_embeddings(40)
        torch.testing.assert_close(loaded.lm_head.bias[:37], model.lm_head.bias)
        for each in (model, loaded):
            assert "lm_head.bias" not in dict(each.named_parameters())
            assert "lm_head.bias" in each.state_dict()
