"""Vocabularies and reversibility: any text comes back exactly, no size is exceeded, training twice gives one answer."""

import subprocess
import sys
from collections import Counter

import pytest
from dragoman.tokenization import piece_learning
from dragoman.tokenization.piece_learning import learn_bpe, learn_unigram
from dragoman.tokenization.tokenization_dragoman import DragomanTokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st

ALGORITHMS = ("bpe", "unigram", "char", "word")
CORPUS = [
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    "Ein Mann in einem blauen Hemd steht auf einer Leiter und putzt ein Fenster.",
    "Two dogs are running; 2 dogs, 34 cats </s> <0x41> <s> <pad> <2de>",
    "snow  snow\tsnowman \u2581snow \u26c4\n",
] * 3
TOKENIZERS = {name: DragomanTokenizer.train(CORPUS, vocab_size=400, algorithm=name) for name in ALGORITHMS}
AWKWARD = [
    *("", " ", "  a", "a  ", "\n", "\t a", "a\r\nb", "\x00", "\u2581", " \u2581a", "\u2581\u2581"),
    *("</s>", "<s>", "<pad>", "<unk>", "<2de>", " </s>", "<0x41>", "\n<0x41>", "a<0x41>b", "<0x0A>", "<0x20>man"),
    *("e\u0301", "\u0301", "\u00e9\u0301\u0302", "1\ufe0f\u20e3", "\U0001f469\u200d\U0001f52c", "\u0928\u092e\u0938"),
    *("man.", "snowman", "2024", "\u202eabc", "\ufeffman", "\u3000man", "\ufffd", "\U0010ffff"),
]


def round_trip(tokenizer, text):
    return tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_awkward_texts_come_back(algorithm):
    tokenizer = TOKENIZERS[algorithm]
    assert [round_trip(tokenizer, text) for text in AWKWARD] == AWKWARD
    assert tokenizer.batch_decode(tokenizer(AWKWARD).input_ids, skip_special_tokens=True) == AWKWARD
    assert tokenizer.decode(tokenizer(AWKWARD[2:5], padding=True).input_ids, skip_special_tokens=True) == AWKWARD[2:5]


PIECES_OF_TEXT = st.one_of(
    st.text(max_size=8), st.sampled_from([*AWKWARD, *(word for text in CORPUS for word in text)])
)


@given(st.lists(PIECES_OF_TEXT, max_size=8).map("".join))
@example("<0x41>")
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(text):
    for tokenizer in TOKENIZERS.values():
        assert round_trip(tokenizer, text) == text


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_text_that_spells_special_tokens_is_text(algorithm):
    tokenizer = DragomanTokenizer.train(CORPUS, vocab_size=400, algorithm=algorithm, languages=("de",))
    reserved = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in b"A\n"])}
    ids = tokenizer("<s><pad> </s> <unk>\n<2de><0x41><0x0A>", target_language="de").input_ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("<2de>")
    assert ids[-1] == 2
    # One byte is earned: the newline itself, where the vocabulary has no piece for it.
    assert sum(index in reserved for index in ids[1:-1]) <= 1
    assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)


def test_words_share_their_piece_wherever_they_stand():
    tokenizer = TOKENIZERS["word"]
    assert tokenizer.tokenize("man man") == [" man", " man"]
    assert TOKENIZERS["char"].tokenize("man") == ["m", "a", "n"]


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "texts", [["a"], ["ab ab"], ["\n"], ["a" * 3000], CORPUS, ["".join(map(chr, range(200, 900)))]]
)
def test_vocab_size_is_never_exceeded(texts, algorithm, byte_fallback):
    smallest = 260 if byte_fallback else 5
    for size in (smallest, smallest + 1, smallest + 3, smallest + 60):
        tokenizer = DragomanTokenizer.train(texts, vocab_size=size, algorithm=algorithm, byte_fallback=byte_fallback)
        assert len(tokenizer) == tokenizer.source_vocab_size == tokenizer.target_vocab_size <= size
        assert len(set(tokenizer.get_vocab().values())) == len(tokenizer)
        assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>"]) == [0, 1, 2, 3]
        if byte_fallback:
            assert round_trip(tokenizer, "zebra \u26c4") == "zebra \u26c4"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_vocab_size_is_used(algorithm):
    corpus = [f"{a}{b} {c}{a}{a} {b}{c}" for a in "abcdefgh" for b in "ijklmnop" for c in "qrstuvwx"]
    wanted = 284 if algorithm == "char" else 300
    assert len(DragomanTokenizer.train(corpus, vocab_size=300, algorithm=algorithm)) in (wanted, wanted + 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_without_bytes_the_unknown_is_unk(algorithm):
    tokenizer = DragomanTokenizer.train(["sun sun moon"], vocab_size=50, algorithm=algorithm, byte_fallback=False)
    assert tokenizer.unk_token_id not in tokenizer("sun moon").input_ids
    assert tokenizer.unk_token_id in tokenizer("sun \u26c4").input_ids
    assert not any(token.startswith("<0x") for token in tokenizer.get_vocab())


def test_words_without_bytes_are_symbols_between_spaces():
    tokenizer = DragomanTokenizer.train(["HH AH0 L OW1 B"], vocab_size=9, algorithm="word", byte_fallback=False)
    ids = tokenizer("HH  AH0\tL ZZ </s> B").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "HH AH0 L B"
    assert tokenizer.decode(ids) == "HH AH0 L <unk> <unk> <unk> B </s>"  # a symbol that looks special is read in two


def test_unigram_prefers_whole_words_to_letters():
    counts = Counter({" dog": 50, " dogs": 20, " cat": 50, " cats": 20, " god": 1})
    learned = learn_unigram(counts, 12, byte_fallback=False)
    scores = [score for _, score in learned]
    assert {" dog", " cat", "s"} <= {piece for piece, _ in learned}
    assert scores == sorted(scores, reverse=True)


def test_bpe_is_fed_a_few_words_at_a_time(monkeypatch):
    """Not the commonest as one list, which takes memory by how often it occurs."""
    counts = Counter({" dog": 50, " dogs": 20, " cat": 49, " cats": 2})
    expected = learn_bpe(counts, 30, byte_fallback=False)
    assert expected[1]
    parts, repeated = [], piece_learning._repeated
    monkeypatch.setattr(piece_learning, "AT_ONCE", 7)
    monkeypatch.setattr(
        piece_learning, "_repeated", lambda words: (parts.append(len(part)) or part for part in repeated(words))
    )
    assert learn_bpe(counts, 30, byte_fallback=False) == expected
    assert max(parts) == 7
    assert sum(parts) == counts.total()


TRAIN = """
from dragoman.tokenization.tokenization_dragoman import DragomanTokenizer
corpus = [" ".join(f"{i * 7919 % 97:x}{j * 31 % 53:x}" for j in range(9)) for i in range(200)]
recipes = [(name, size) for name in ("bpe", "unigram", "char", "word") for size in (270, 330)]
learned = [DragomanTokenizer.train(corpus, vocab_size=size, algorithm=name) for name, size in recipes]
result = "".join(tokenizer.backend_tokenizer.to_str() for tokenizer in learned)
"""


def test_training_is_deterministic_here_and_in_another_process():
    once, twice = {}, {}
    exec(TRAIN, once)
    exec(TRAIN, twice)
    command = [sys.executable, "-c", TRAIN + "print(result, end='')"]
    elsewhere = subprocess.run(command, capture_output=True, check=True, encoding="utf-8").stdout
    assert len(elsewhere) > 10_000
    assert once["result"] == twice["result"] == elsewhere


def test_texts_may_be_a_generator_read_once():
    seen = []
    tokenizer = DragomanTokenizer.train((seen.append(text) or text for text in CORPUS), vocab_size=400)
    assert seen == CORPUS
    assert tokenizer.get_vocab() == TOKENIZERS["bpe"].get_vocab()


def test_files_are_read_a_text_a_line(tmp_path):
    for name, lines in (("a", CORPUS[:2]), ("b", CORPUS[1:3])):
        (tmp_path / name).write_bytes("\r\n".join(lines).encode())
    files = [tmp_path / "a", tmp_path / "b"]
    expected = DragomanTokenizer.train([*CORPUS[:2], *CORPUS[1:3]], vocab_size=400).get_vocab()
    assert DragomanTokenizer.train_from_files(files, vocab_size=400).get_vocab() == expected
    assert DragomanTokenizer.train_from_files(str(files[0]), files[1], vocab_size=400).get_vocab() == expected


def test_bad_files_are_named(tmp_path):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes(b"good\nna\xefve\n")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        DragomanTokenizer.train_from_files(tmp_path / "empty.txt", vocab_size=300)
    with pytest.raises(ValueError, match=r"latin\.txt, line 2: not UTF-8"):
        DragomanTokenizer.train_from_files([tmp_path / "latin.txt"], vocab_size=300)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"vocab_size": 259}, ValueError, "vocab_size=259 is too small.*256 bytes need at least 260"),
        ({"vocab_size": 261, "languages": ("de", "fr")}, ValueError, "6 special tokens .* at least 262"),
        ({"vocab_size": 4, "byte_fallback": False}, ValueError, "vocab_size=4 .* at least 5"),
        ({"algorithm": "wordpiece"}, ValueError, "unknown algorithm 'wordpiece'; choose from bpe, unigram, char, word"),
        ({"texts": []}, ValueError, "no text to learn from: texts"),
        ({"texts": ["", ""]}, ValueError, "no text to learn from: texts"),
        ({"target_texts": iter(())}, ValueError, "no text to learn from: target_texts"),
        ({"texts": ["a", 3]}, TypeError, r"texts\[1\] is int, not a string"),
        ({"target_texts": [None]}, TypeError, r"target_texts\[0\] is NoneType"),
        ({"texts": "abc"}, TypeError, "texts is a single str"),
        ({"languages": "de"}, TypeError, "pass a sequence of names"),
        ({"languages": ("de", "de")}, ValueError, "twice"),
        ({"languages": ("d e",)}, ValueError, "must be a name without spaces"),
        ({"share_vocabulary": False}, ValueError, "needs target_texts"),
        ({"target_texts": ["a"], "target_vocab_size": 300}, ValueError, "need share_vocabulary=False"),
        ({"target_texts": ["a"], "target_algorithm": "char"}, ValueError, "need share_vocabulary=False"),
    ],
)
def test_what_cannot_work_says_why(arguments, error, message):
    arguments = {"texts": ["a b"], "vocab_size": 300} | arguments
    with pytest.raises(error, match=message):
        DragomanTokenizer.train(arguments.pop("texts"), **arguments)
