"""A packed batch is the padded one without its padding: the same loss, gradients and training."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from dragoman.modeling import attention, packed_attention
from dragoman.modeling.attention import eager_attention
from dragoman.modeling.encoder import Encoder
from dragoman.modeling.packed_attention import attend_packed
from dragoman.modeling.packing import Packing, pack, packed_positions
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from dragoman import (
    DataCollatorForPackedSeq2Seq,
    DragomanConfig,
    DragomanEncoderModel,
    DragomanForConditionalGeneration,
    DragomanTokenizer,
)
from support import OPTIONS, SCHEMES, batch, build, configured, describe, gradients, pairwise, relative_error, tiny

# Single tokens on either side and on both; neighbours of equal lengths, and others that are equal on one side only.
# In the order in which the collator packs them.
SIZES = ((1, 1), (1, 3), (1, 5), (3, 9), (5, 7), (5, 9), (6, 1), (7, 6), (7, 6), (7, 6), (9, 4), (12, 1))
ROWS = pairwise({**OPTIONS, "label_smoothing": (0.0, 0.1), "relative_attention_per_layer": (False, True)})
ROWS = [row for row in ROWS if row["position_encoding"] == "relative" or not row["relative_attention_per_layer"]]

Model = DragomanForConditionalGeneration
Batch = dict[str, Tensor]


def rows_of(padded: Batch) -> list[dict[str, Any]]:
    return [
        {name: padded[name][i].tolist() for name in ("input_ids", "attention_mask", "labels")}
        for i in range(len(padded["labels"]))
    ]


def both(config: DragomanConfig, seed: int = 1, sizes: tuple[tuple[int, int], ...] = SIZES) -> tuple[Batch, Batch]:
    """The same pairs, padded and packed."""
    padded = batch(config, seed, tuple(sorted(sizes)))
    return padded, DataCollatorForPackedSeq2Seq()(rows_of(padded))


def assert_same(model: Model, found: Batch, expected: Batch, limit: float = 1e-5) -> None:
    losses = [model(**inputs).loss for inputs in (found, expected)]
    assert relative_error(*losses) <= limit
    grads, reference = gradients(model, **found), gradients(model, **expected)
    assert grads.keys() == reference.keys()
    for name, gradient in reference.items():
        assert relative_error(grads[name], gradient) <= limit, name


@pytest.mark.parametrize("options", ROWS, ids=describe)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_loss_and_every_gradient(options: dict[str, Any], seed: int) -> None:
    config = configured(options)
    model = build(config, seed).train()
    padded, packed = both(config, seed)
    assert_same(model, packed, padded)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_in_float64(scheme: str, implementation: str) -> None:
    config = tiny(position_encoding=scheme)
    model = build(config, attn_implementation=implementation).double()
    padded, packed = both(config)
    assert_same(model, packed, padded, 1e-11)
    logits = model(**padded).logits[padded["labels"] != -100]
    torch.testing.assert_close(model(**packed).logits[0], logits)


def test_single_sequences_and_single_tokens() -> None:
    model = build(tiny()).double().train()  # gradients of queries all but vanish: in fp32 they are rounding
    for sizes in (((1, 1),), ((4, 3),), ((1, 1),) * 3, ((2, 1), (1, 2))):
        assert_same(model, *both(model.config, sizes=sizes), limit=1e-11)


def test_a_sequence_sees_itself_alone() -> None:
    model = build(tiny(position_encoding="learned")).double()
    _, packed = both(model.config)
    logits, at = model(**packed).logits, packed["decoder_cu_seq_lens"]
    for side in ("input_ids", "labels"):
        start, end = packed["cu_seq_lens" if side == "input_ids" else "decoder_cu_seq_lens"][3:5].tolist()
        other = packed[side].clone()
        other[0, start:end] = 35 - other[0, start:end]
        changed = (model(**{**packed, side: other}).logits - logits).abs().amax((0, 2)) > 1e-6
        outside = torch.ones_like(changed)
        outside[at[3] : at[4]] = False
        assert changed.any()
        assert not changed[outside].any()


def test_the_start_token_is_made_with_and_without_the_collator() -> None:
    model = build(tiny())
    rows = rows_of(batch(model.config, sizes=SIZES))
    with_model = DataCollatorForPackedSeq2Seq(model=model)(rows)
    without = DataCollatorForPackedSeq2Seq()(rows)
    assert with_model.keys() - without.keys() == {"decoder_input_ids"}
    expected: list[int] = []
    for row in rows:
        expected += [model.config.decoder_start_token_id, *(y for y in row["labels"] if y != -100)][:-1]
    assert with_model["decoder_input_ids"].tolist() == [expected]
    torch.testing.assert_close(model(**with_model).loss, model(**without).loss)


def test_positions_restart() -> None:
    assert packed_positions(torch.tensor([0, 3, 4, 6]), 6).tolist() == [[0, 1, 2, 0, 0, 1]]
    config = tiny(position_encoding="learned", max_position_embeddings=13)
    padded, packed = both(config)
    assert packed["input_ids"].shape[1] > 13  # a limit to sequences, not to the row
    assert_same(build(config), packed, padded)
    with pytest.raises(ValueError, match="A source position 13 does not fit max_position_embeddings = 13"):
        build(config)(**both(config, sizes=((14, 2), (1, 2)))[1])


def test_own_positions_and_vectors() -> None:
    model = build(tiny(position_encoding="sinusoidal"))
    _, packed = both(model.config)
    ids, labels = packed["input_ids"], packed["labels"]
    moved = [
        packed_positions(packed[name], x.shape[1]) + 7
        for name, x in (("cu_seq_lens", ids), ("decoder_cu_seq_lens", labels))
    ]
    loss = model(**packed).loss
    assert relative_error(model(**packed, position_ids=moved[0], decoder_position_ids=moved[1]).loss, loss) > 1e-3
    vectors = {**packed, "inputs_embeds": model.get_input_embeddings()(packed["input_ids"])}
    del vectors["input_ids"]
    torch.testing.assert_close(model(**vectors).loss, loss)


def test_the_encoder_alone() -> None:
    config = tiny()
    model = build(config)
    encoder = DragomanEncoderModel(config).eval()
    encoder.encoder.load_state_dict(model.model.encoder.state_dict())
    padded, packed = both(config)
    expected = encoder(padded["input_ids"], padded["attention_mask"]).last_hidden_state
    found = encoder(packed["input_ids"], cu_seq_lens=packed["cu_seq_lens"]).last_hidden_state
    torch.testing.assert_close(found[0], expected[padded["attention_mask"].bool()])
    assert isinstance(encoder.encoder, Encoder)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("scheme", ["rotary", "relative"])
def test_gradient_checkpointing(scheme: str, reentrant: bool) -> None:
    config = tiny(position_encoding=scheme, relative_attention_per_layer=scheme == "relative")
    model = build(config).train()
    _, packed = both(config)
    expected = gradients(model, **packed)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model, **packed)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


class TestAttention:
    """``attend_packed`` alone: three sequences, two of them a run."""

    cu_q, cu_k = torch.tensor([0, 2, 4, 7]), torch.tensor([0, 4, 8, 9])

    def attention(self, causal: bool, implementation: str = "sdpa", dropout: float = 0.0) -> attention.Attention:
        config = tiny(hidden_size=32, encoder_num_key_value_heads=2, attention_dropout=dropout)
        config._attn_implementation = implementation
        return attention.Attention(config, 4, 2, 0, causal)

    def tensors(self, causal: bool) -> tuple[Tensor, Tensor, Tensor, Packing]:
        torch.manual_seed(0)
        keys = self.cu_q if causal else self.cu_k
        query, key, value = (torch.randn(1, h, n, 8) for h, n in ((4, 7), (2, int(keys[-1])), (2, int(keys[-1]))))
        return query, key, value, pack(query[:, 0], self.cu_q, keys)

    def reference(self, causal: bool) -> Tensor:
        """Sequence by sequence, written out."""
        query, key, value, packing = self.tensors(causal)
        outputs = []
        for i in range(3):
            q = query[0, :, packing.cu_seq_lens_q[i] : packing.cu_seq_lens_q[i + 1]]
            k, v = (x[0, :, packing.cu_seq_lens_k[i] : packing.cu_seq_lens_k[i + 1]] for x in (key, value))
            k, v = k.repeat_interleave(2, dim=0), v.repeat_interleave(2, dim=0)
            scores = q @ k.transpose(1, 2) * 0.3
            if causal:
                scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), float("-inf"))
            outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(outputs)[None]

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize(("name", "attend"), [("eager", eager_attention), ("sdpa", sdpa_attention_forward)])
    def test_run_by_run(self, causal: bool, name: str, attend: Any) -> None:
        module = self.attention(causal, name)
        found = attend_packed(attend, module, *self.tensors(causal), None, 0.0, 0.3)
        torch.testing.assert_close(found, self.reference(causal))
        assert self.tensors(causal)[3].runs == ([(2, 2, 2), (1, 3, 3)] if causal else [(2, 2, 4), (1, 3, 1)])

    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_on_the_cpu_all_runs_are_one_step_of_autograd(
        self, causal: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = self.attention(causal)
        *_, packing = self.tensors(causal)
        lengths = (7, int(packing.cu_seq_lens_k[-1]), int(packing.cu_seq_lens_k[-1]))
        leaves = [(3 * torch.randn(1, n, 4, 8)).to(dtype) for n in lengths]
        upstream = torch.randn(1, 4, 7, 8, dtype=dtype).transpose(1, 2)  # not in a row

        def attend(dtype: torch.dtype) -> list[Tensor]:
            copies = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
            q, k, v = (copy.transpose(1, 2) for copy in copies)
            output = attend_packed(sdpa_attention_forward, module, q, k, v, packing, None, 0.0, 0.3)
            node: Any = output.grad_fn
            nodes.append(f"{node} {node.next_functions}")  # in bfloat16, a copy and what was copied
            return [output, *torch.autograd.grad(output, copies, upstream.to(dtype))]

        nodes: list[str] = []
        found = attend(dtype)
        with monkeypatch.context() as patched:
            patched.setattr(packed_attention, "KERNEL", None)
            # few as the keys are, they go as floats
            expected = attend(torch.float32 if dtype == torch.bfloat16 else dtype)
        torch.testing.assert_close(found, [x.to(dtype) for x in expected], rtol=0, atol=0)  # the same kernel
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # who asks for it gets it
            by_another = attend(dtype)
        if dtype.itemsize > 2:  # in half precision the two round too differently to compare
            torch.testing.assert_close(found, by_another)
        assert ["RunByRun" in names for names in nodes] == [True, False, False]

    @pytest.mark.parametrize("causal", [False, True])
    def test_the_kernel_for_varying_lengths_is_asked_right(self, causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in for the CUDA kernel, written from its documentation."""

        def stand_in(
            query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
            *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
        ) -> Tensor:  # fmt: skip
            assert window_size in ((-1, -1), (-1, 0))
            assert enable_gqa
            assert (max_q, max_k) == (int(cu_seq_q.diff().max()), int(cu_seq_k.diff().max()))
            outputs = []
            for i in range(len(cu_seq_q) - 1):
                q = query[cu_seq_q[i] : cu_seq_q[i + 1]].transpose(0, 1)
                k, v = (x[cu_seq_k[i] : cu_seq_k[i + 1]].transpose(0, 1) for x in (key, value))
                causal = window_size == (-1, 0)
                output = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)
                outputs.append(output.transpose(0, 1))
            return torch.cat(outputs)

        monkeypatch.setattr(packed_attention, "has_varlen_kernel", lambda query: True)
        monkeypatch.setattr(packed_attention, "varlen_attn", stand_in)
        module = self.attention(causal)
        found = attend_packed(None, module, *self.tensors(causal), None, 0.0, 0.3)  # type: ignore[arg-type]
        torch.testing.assert_close(found, self.reference(causal))
        with pytest.raises(TypeError):  # what the kernel cannot do goes run by run
            attend_packed(None, module, *self.tensors(causal), None, 0.1, 0.3)  # type: ignore[arg-type]

    def test_flash_attention_is_asked_right(self) -> None:
        """The three pairs of lengths, under the names by which transformers hands them to flash attention."""
        asked: list[dict[str, Any]] = []

        def flash(module: Any, query: Tensor, *_: Any, **options: Any) -> tuple[Tensor, None]:
            asked.append(options)
            return query.transpose(1, 2), None

        model = build(tiny(encoder_num_hidden_layers=1, decoder_num_hidden_layers=1))
        attention.ALL_ATTENTION_FUNCTIONS["flash_stand_in"] = flash
        try:
            model.config._attn_implementation = "flash_stand_in"
            _, packed = both(model.config, sizes=((3, 4), (5, 2)))
            model(**packed)
        finally:
            del attention.ALL_ATTENTION_FUNCTIONS["flash_stand_in"]
        source, target = [0, 3, 8], [0, 4, 6]
        pairs = [(source, source, 5, 5), (target, target, 4, 4), (target, source, 4, 5)]
        for options, (q, k, max_q, max_k) in zip(asked, pairs, strict=True):
            assert (options["cu_seq_lens_q"].tolist(), options["cu_seq_lens_k"].tolist()) == (q, k)
            assert (options["max_length_q"], options["max_length_k"]) == (max_q, max_k)
            assert options["cu_seq_lens_q"].dtype == torch.int32

    @pytest.mark.parametrize(("name", "attend"), [("eager", eager_attention), ("sdpa", sdpa_attention_forward)])
    def test_dropout(self, name: str, attend: Any) -> None:
        """Every weight is dropped by itself with the rate asked for, and what is left is scaled."""
        n, length, rate = 40, 8, 0.3
        query, key = torch.randn(1, 4, n * length, 8), torch.randn(1, 2, n * length, 8)
        value = (
            torch.eye(length).repeat(n, 1).expand(1, 2, -1, -1).clone().requires_grad_()
        )  # weights come out as they are
        ends = torch.arange(n + 1) * length
        packing = pack(query[:, 0], ends, ends)
        module = self.attention(False, name)
        weights = attend_packed(attend, module, query, key, value, packing, None, 0.0, 0.5).detach()
        torch.manual_seed(0)
        dropped = attend_packed(attend, module, query, key, value, packing, None, rate, 0.5)
        kept = dropped != 0
        torch.testing.assert_close(dropped[kept], weights[kept] / (1 - rate))
        assert (~kept).float().mean() == pytest.approx(rate, abs=0.02)
        by_place = (~kept).float().view(n, length, 4, length)
        assert by_place.mean(0).min() > 0.05  # no place is spared, in none of the heads
        for a, b in (
            (by_place[:-1], by_place[1:]),
            (by_place[..., :-1], by_place[..., 1:]),
            (by_place[:, :, :1], by_place[:, :, 1:2]),
        ):
            assert ((a - rate) * (b - rate)).mean().abs() < 0.02  # sequences, keys and heads differ
        upstream = torch.randn_like(dropped)
        dropped.backward(upstream)
        expected = torch.einsum(
            "nthk,nthd->nhkd", dropped.detach().view(n, length, 4, length), upstream.view(n, length, 4, 8)
        )
        expected = expected.view(n, 2, 2, length, 8).sum(2).transpose(0, 1).reshape(2, -1, 8)[None]
        torch.testing.assert_close(value.grad, expected)


def test_dropout_is_for_training() -> None:
    model = build(tiny(dropout=0.2, attention_dropout=0.2))
    padded, packed = both(model.config)
    torch.testing.assert_close(model(**packed).loss, model(**padded).loss)
    model.train()
    torch.manual_seed(0)
    losses = {
        name: torch.stack([model(**x).loss.detach() for _ in range(150)]) for name, x in (("a", padded), ("b", packed))
    }
    assert losses["b"].std() > 0.01
    error = (losses["a"].var() / 150 + losses["b"].var() / 150).sqrt()
    assert (losses["a"].mean() - losses["b"].mean()).abs() < 4 * error
    assert 0.6 < losses["a"].std() / losses["b"].std() < 1.6


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["sinusoidal", "rotary", "relative"])
def test_compiled(scheme: str) -> None:
    """By inductor; lengths that nobody told the graph are looked at in front of it."""
    model = build(tiny(position_encoding=scheme)).train()
    compiled: Any = torch.compile(model, dynamic=True)
    for seed in (1, 2):
        padded, packed = both(model.config, seed)
        if seed == 2:
            del packed["max_seq_len"], packed["decoder_max_seq_len"]
        expected = gradients(model, **padded)
        model.zero_grad(set_to_none=True)
        loss = compiled(**packed).loss
        torch.testing.assert_close(loss, model(**padded).loss)
        loss.backward()
        for name, parameter in model.named_parameters():
            assert relative_error(parameter.grad, expected[name]) <= 1e-5, name
    torch.compiler.reset()


class TestCollator:
    def test_padding_is_dropped(self) -> None:
        rows = [
            {"input_ids": [0, 5, 6], "attention_mask": [0, 1, 1], "labels": [-100, 7, -100, 8, -100]},
            {"input_ids": torch.tensor([3]), "labels": torch.tensor([4])},
        ]
        packed = DataCollatorForPackedSeq2Seq()(rows)
        assert packed["input_ids"].tolist() == [[3, 5, 6]]
        assert packed["labels"].tolist() == [[4, 7, -100, 8]]  # one inside is a token that is not learned
        assert packed["cu_seq_lens"].tolist() == [0, 1, 3]
        assert packed["decoder_cu_seq_lens"].tolist() == [0, 1, 4]
        assert packed["cu_seq_lens"].dtype == torch.int32
        assert (packed["max_seq_len"], packed["decoder_max_seq_len"]) == (8, 8)  # at least 2 and 3

    def test_equal_lengths_stand_together(self) -> None:
        rows = [{"input_ids": [7] * s, "labels": [8] * t} for s, t in ((3, 2), (1, 4), (3, 1), (1, 4), (3, 2))]
        packed = DataCollatorForPackedSeq2Seq()(rows)
        assert packed["cu_seq_lens"].diff().tolist() == [1, 1, 3, 3, 3]
        assert packed["decoder_cu_seq_lens"].diff().tolist() == [4, 4, 1, 2, 2]
        assert rows[0] == {"input_ids": [7] * 3, "labels": [8] * 2}

    def test_labels_inside_that_are_not_learned(self) -> None:
        model = build(tiny())
        padded = batch(model.config, sizes=SIZES)
        padded["labels"][0, 1] = -100
        assert_same(model, DataCollatorForPackedSeq2Seq(model=model)(rows_of(padded)), padded)

    @pytest.mark.parametrize(("row", "message"), [(([], [1]), "no source tokens"), (([1], [-100]), "no labels")])
    def test_empty_rows(self, row: tuple[list[int], list[int]], message: str) -> None:
        rows = [{"input_ids": [1], "labels": [1]}, dict(zip(("input_ids", "labels"), row, strict=True))]
        with pytest.raises(ValueError, match=f"Row 1 of the batch has {message}"):
            DataCollatorForPackedSeq2Seq()(rows)

    @pytest.mark.parametrize("row", [{"input_ids": [1]}, {"input_ids": [1], "labels": 1}])
    def test_rows_of_something_else(self, row: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="Row 1 of the batch must have lists of tokens as input_ids and labels"):
            DataCollatorForPackedSeq2Seq()([{"input_ids": [1], "labels": [1]}, row])

    def test_models_without_a_packed_path(self) -> None:
        with pytest.raises(TypeError, match="BartForConditionalGeneration takes no packed batches"):
            DataCollatorForPackedSeq2Seq(model=BartForConditionalGeneration(BartConfig(
                vocab_size=9, d_model=4, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
                decoder_attention_heads=1, encoder_ffn_dim=4, decoder_ffn_dim=4, max_position_embeddings=8,
            )))  # fmt: skip

    def test_with_an_adapter_and_in_another_process(self) -> None:
        peft = pytest.importorskip("peft")
        model = build(tiny())
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
        rows = rows_of(batch(model.config))
        expected = DataCollatorForPackedSeq2Seq(model=model)(rows)
        found = pickle.loads(pickle.dumps(DataCollatorForPackedSeq2Seq(model=adapted)))(rows)
        torch.testing.assert_close(found, expected)
        assert adapted(**found).loss > 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("attention_mask", torch.ones(1, 57)),
            ("decoder_attention_mask", torch.ones(1, 58)),
            ("output_attentions", True),
            ("output_attentions", [0]),
            ("use_cache", True),
        ],
    )
    def test_what_needs_padding(self, name: str, value: Any) -> None:
        model = build(tiny())
        with pytest.raises(ValueError, match=f"takes no {name}: leave it out, or pad the batch"):
            model(**both(model.config)[1], **{name: value})

    def test_lengths_that_do_not_fit(self) -> None:
        model = build(tiny())
        _, packed = both(model.config, sizes=((3, 2), (4, 5)))
        ends = packed["cu_seq_lens"]
        for wrong in (ends[:-1], ends[1:], ends + 1, torch.tensor([0, 7]), torch.tensor([0, 3, 3, 7])):
            with pytest.raises(ValueError, match="cu_seq_lens and decoder_cu_seq_lens"):
                model(**{**packed, "cu_seq_lens": wrong.int()})
        for name in ("max_seq_len", "decoder_max_seq_len"):
            with pytest.raises(ValueError, match=r"has [45] tokens, more than the 3 of max_seq_len or"):
                model(**{**packed, name: 3})
        with pytest.raises(ValueError, match="pass cu_seq_lens and decoder_cu_seq_lens"):
            model(**{**packed, "decoder_cu_seq_lens": None})
        with pytest.raises(ValueError, match=r"do not fit a batch of shape \(2, 7\)"):
            model(**{**packed, "input_ids": packed["input_ids"].expand(2, -1)})

    def test_generation(self) -> None:
        model = build(tiny())
        _, packed = both(model.config)
        with pytest.raises(ValueError, match="takes a padded batch, not a packed one"):
            model.generate(packed["input_ids"], cu_seq_lens=packed["cu_seq_lens"])

    def test_flex_attention(self) -> None:
        model = build(tiny(), attn_implementation="flex_attention")
        with pytest.raises(NotImplementedError, match=r"not 'flex_attention': model.set_attn_implementation\('sdpa'\)"):
            model(**both(model.config)[1])


WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train(WORDS, algorithm="char", byte_fallback=False, vocab_size=40)


class TestTrainer:
    def rows(self, tokenizer: DragomanTokenizer, count: int) -> list[dict[str, Any]]:
        texts = [" ".join(WORDS[: 1 + i * 7 % 5]) for i in range(count)]
        encoded = tokenizer(texts, text_target=[text[::-1][: 3 + i % 6] for i, text in enumerate(texts)])
        return [{name: encoded[name][i] for name in encoded} | {"note": i} for i in range(count)]

    def run(
        self, tokenizer: DragomanTokenizer, folder: Path, packed: bool, smoothing: float = 0.0, **arguments: Any
    ) -> Seq2SeqTrainer:
        torch.manual_seed(0)
        model = build(DragomanConfig.from_tokenizer(tokenizer, preset=tiny(label_smoothing=smoothing)))
        collator = DataCollatorForPackedSeq2Seq if packed else DataCollatorForSeq2Seq
        defaults = {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 5,
            "logging_steps": 1,
        }
        defaults |= {
            "learning_rate": 0.1,
            "optim": "sgd",
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        run = Seq2SeqTrainer(
            model=model,
            args=Seq2SeqTrainingArguments(
                output_dir=str(folder), dataloader_pin_memory=False, **{**defaults, **arguments}
            ),
            data_collator=collator(tokenizer, model=model),
            train_dataset=self.rows(tokenizer, 16),
            eval_dataset=self.rows(tokenizer, 10),
            processing_class=tokenizer,
        )
        run.train()
        return run

    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"gradient_accumulation_steps": 2},
            {"label_smoothing_factor": 0.1},
            {"smoothing": 0.1, "gradient_accumulation_steps": 2},
            {"dataloader_num_workers": 1},
        ],
        ids=str,
    )
    def test_two_steps(self, arguments: dict[str, Any], tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
        expected, found = (self.run(tokenizer, tmp_path, packed, **arguments) for packed in (False, True))
        steps = [[entry for entry in run.state.log_history if "grad_norm" in entry] for run in (expected, found)]
        for a, b in zip(*steps, strict=True):
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
        for (name, a), b in zip(expected.model.named_parameters(), found.model.parameters(), strict=True):
            assert relative_error(b, a) <= 1e-5, name
        losses = [run.evaluate()["eval_loss"] for run in (expected, found)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    def test_generation_is_refused(self, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
        run = self.run(tokenizer, tmp_path, packed=True, predict_with_generate=True)
        with pytest.raises(ValueError, match="takes a padded batch, not a packed one"):
            run.predict(run.eval_dataset)
