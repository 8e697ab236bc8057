"""Two sides: target texts, separate vocabularies, language tags, added tokens, and what saving must keep."""

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from datasets.fingerprint import Hasher
from dragoman.tokenization.language_tagging import LOCK
from dragoman.tokenization.tokenization_dragoman import DragomanTokenizer
from tokenizers import processors
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, TextStreamer

import dragoman

SOURCE = ["the dog runs in the snow", "a man reads", "two men and a dog"] * 4
TARGET = ["der Hund rennt im Schnee", "ein Mann liest", "zwei M\u00e4nner und ein Hund"] * 4
PROBES = ["the dog </s>", "a <2de> \u26c4 <new>"]


@pytest.fixture
def joint():
    return DragomanTokenizer.train(SOURCE, TARGET, vocab_size=330)


@pytest.fixture
def separate():
    return DragomanTokenizer.train(
        SOURCE, TARGET, vocab_size=300, target_vocab_size=320, target_algorithm="word", share_vocabulary=False
    )


@pytest.fixture
def multilingual():
    return DragomanTokenizer.train(SOURCE + TARGET, vocab_size=340, languages=("de", "fr"))


def probe(tokenizer):
    """Ids that must not change, of source and target."""
    options = {"target_language": ["de", "fr"]} if tokenizer.languages else {}
    return tokenizer(PROBES, text_target=PROBES, **options).data


def test_source_and_labels_end_with_eos(joint):
    batch = joint("the dog", text_target="der Hund")
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert joint.convert_ids_to_tokens(batch.input_ids) == [" the", " dog", "</s>"]
    assert joint.convert_ids_to_tokens(batch.labels) == [" der", " Hund", "</s>"]
    assert joint.source_vocab_size == joint.target_vocab_size == len(joint)


def test_separate_vocabularies_agree_on_special_tokens_only(separate):
    batch = separate("the dog", text_target="der Hund")
    assert separate("the dog").input_ids == batch.input_ids
    assert separate(text_target="der Hund").input_ids == batch.labels
    assert separate.decode(batch.labels, skip_special_tokens=True) == "der Hund"
    assert separate.decode(batch.input_ids, skip_special_tokens=True, use_source_tokenizer=True) == "the dog"
    assert separate.batch_decode([batch.input_ids], use_source_tokenizer=True) == ["the dog</s>"]
    assert separate.convert_ids_to_tokens(batch.input_ids) == [" the", " dog", "</s>"]
    assert len(separate) == separate.vocab_size == separate.source_vocab_size == len(separate.get_vocab()) <= 300
    assert separate.target_vocab_size <= 320
    assert separate.target_vocab_size != separate.source_vocab_size
    source, target = separate._vocabularies
    for token in ("<pad>", "<s>", "</s>", "<unk>", "<0x00>", "<0xFF>"):
        assert source.token_to_id(token) == target.token_to_id(token)


def test_a_failed_target_leaves_input_mode(separate):
    before = separate("the dog").input_ids
    with pytest.raises(ValueError, match="text input must be"):
        separate("the dog", text_target=[3])
    assert separate.encode("the dog") == before
    assert len(separate) == separate.source_vocab_size


def test_saving_and_decoding_in_target_mode_are_right(separate, tmp_path):
    expected, sizes = probe(separate), (separate.source_vocab_size, separate.target_vocab_size)
    separate._switch_to_target_mode()
    assert (separate.source_vocab_size, separate.target_vocab_size) == sizes
    assert separate.decode(expected["labels"][0], skip_special_tokens=True) == "the dog </s>"
    separate.save_pretrained(tmp_path)
    assert probe(DragomanTokenizer.from_pretrained(tmp_path)) == expected


PROBE_ELSEWHERE = """
import json, sys
import dragoman
from transformers import AutoTokenizer
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"target_language": ["de", "fr"]} if tokenizer.languages else {}
    texts = json.loads(sys.argv[1])
    print(json.dumps(tokenizer(texts, text_target=texts, **options).data))
"""


def test_ids_survive_saving_pickling_copying_and_a_new_process(joint, separate, multilingual, tmp_path):
    joint.add_tokens(["<new>"])
    multilingual.add_tokens(["<new>"])
    tokenizers = {"joint": joint, "separate": separate, "multilingual": multilingual}
    expected = [probe(tokenizer) for tokenizer in tokenizers.values()]
    for (name, tokenizer), ids in zip(tokenizers.items(), expected, strict=True):
        language = "de" if tokenizer.languages else None
        tokenizer(["a", "dog"], truncation=True, max_length=4, padding=True, target_language=language)
        tokenizer.save_pretrained(tmp_path / name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        for other in (loaded, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
            assert type(other) is dragoman.DragomanTokenizer is DragomanTokenizer
            assert probe(other) == ids
            assert (len(other), other.target_vocab_size) == (len(tokenizer), tokenizer.target_vocab_size)
    command = [sys.executable, "-c", PROBE_ELSEWHERE, json.dumps(PROBES), *(tmp_path / name for name in tokenizers)]
    elsewhere = subprocess.run(command, capture_output=True, check=True).stdout
    assert [json.loads(line) for line in elsewhere.splitlines()] == expected


def test_saved_files_do_not_depend_on_the_past(joint, separate, tmp_path):
    separate.save_pretrained(tmp_path)
    assert (tmp_path / "target_tokenizer.json").exists()
    joint.save_pretrained(tmp_path)
    clean = (tmp_path / "tokenizer.json").read_bytes()
    joint(SOURCE, truncation=True, max_length=4, padding=True)
    joint.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == clean
    assert probe(DragomanTokenizer.from_pretrained(tmp_path)) == probe(joint)  # not with the vocabulary left behind


@pytest.mark.parametrize("side", ["right", "left"])
def test_each_row_asks_for_its_language(multilingual, side):
    de, fr = multilingual.convert_tokens_to_ids(["<2de>", "<2fr>"])
    texts = ["the dog runs in the snow", "a", "two men"]
    options = {"padding": True, "truncation": True, "max_length": 6, "padding_side": side, "return_tensors": "pt"}
    plain = DragomanTokenizer.train(SOURCE + TARGET, vocab_size=340, languages=("de", "fr"))
    mixed = multilingual(texts, text_target=texts, target_language=["de", "fr", "de"], **options)
    for row, (tag, text) in enumerate(zip((de, fr, de), texts, strict=True)):
        ids = mixed.input_ids[row][mixed.attention_mask[row].bool()].tolist()
        assert ids == [tag, *plain.encode(text, add_special_tokens=False)[:4], 2]
        assert mixed.labels[row].tolist().count(tag) == 0
    uniform = multilingual(texts, target_language="de", **options)
    assert mixed.input_ids.shape == uniform.input_ids.shape == (3, 6)
    assert torch.equal(mixed.attention_mask, uniform.attention_mask)
    assert torch.equal(mixed.input_ids[::2], uniform.input_ids[::2])
    assert (mixed.input_ids != uniform.input_ids).sum() == 1
    assert mixed.tokens(1)[mixed.input_ids[1].tolist().index(fr)] == "<2fr>"


def test_mixed_rows_keep_every_column(multilingual):
    texts = ["the dog runs in the snow the dog runs", "a man", "two men"]
    options = {
        **{"padding": "max_length", "truncation": True, "max_length": 8, "stride": 1, "pad_to_multiple_of": 4},
        **{"return_overflowing_tokens": True, "return_offsets_mapping": True, "return_special_tokens_mask": True},
        "return_length": True,
    }
    mixed = multilingual(texts, target_language=["de", "fr", "de"], **options)
    uniform = multilingual(texts, target_language=["de"] * 3, **options)
    assert set(mixed) == set(uniform)
    de, fr = multilingual.convert_tokens_to_ids(["<2de>", "<2fr>"])
    row = mixed["overflow_to_sample_mapping"].index(1)
    assert [de if index == fr else index for index in mixed["input_ids"][row]] == uniform["input_ids"][row]
    assert {k: v for k, v in mixed.items() if k != "input_ids"} == {
        k: v for k, v in uniform.items() if k != "input_ids"
    }


def test_the_default_language_is_kept(multilingual, tmp_path):
    multilingual.target_language = "fr"
    expected = multilingual("the dog", target_language="fr").input_ids
    assert multilingual("the dog").input_ids == expected == multilingual.encode("the dog")
    multilingual.save_pretrained(tmp_path)
    assert DragomanTokenizer.from_pretrained(tmp_path)("the dog").input_ids == expected
    other = DragomanTokenizer.from_pretrained(tmp_path, target_language="de")
    assert other("the dog").input_ids == other("the dog", target_language="de").input_ids != expected
    with pytest.raises(ValueError, match="unknown language 'xx'; known: de, fr"):
        DragomanTokenizer.from_pretrained(tmp_path, target_language="xx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "target_language=.*known: de, fr"),
        ({"target_language": "xx"}, "unknown language 'xx'; known: de, fr"),
        ({"target_language": ["de"]}, "names 1 languages for 2 texts"),
        ({"target_language": ["de", "xx"]}, "unknown language 'xx'"),
    ],
)
def test_a_missing_or_wrong_language_is_an_error(multilingual, options, message):
    with pytest.raises(ValueError, match=message):
        multilingual(["a", "the dog"], **options)
    with pytest.raises(ValueError, match="for a single text"):
        multilingual("a", target_language=["de", "fr"])


def test_a_text_without_words_is_a_text(multilingual):
    de, eos = multilingual.convert_tokens_to_ids(["<2de>", "</s>"])
    for words, ids in (([], [de, eos]), ([[], []], [[de, eos]] * 2)):
        assert multilingual(words, is_split_into_words=True, target_language="de").input_ids == ids


def test_what_needs_no_language(multilingual, joint):
    assert multilingual(text_target="der Hund").input_ids[-1] == 2
    assert multilingual.tokenize("the dog") == [" the", " dog"]
    assert multilingual.num_special_tokens_to_add() == 2
    with pytest.raises(ValueError, match="unknown language 'de'; known: none"):
        joint("the dog", target_language="de")


def test_threads_do_not_mix_languages_or_sides(separate, multilingual):
    """Template and side are the tokenizer's, not a call's."""
    tags = {language: multilingual.convert_tokens_to_ids(f"<2{language}>") for language in ("de", "fr")}
    source, labels = separate("the dog").input_ids, separate(text_target="der Hund").input_ids
    assert source != labels

    def is_right(number):
        language = ("de", "fr")[number // 4 % 2]
        return (
            lambda: multilingual("the dog", target_language=language).input_ids[0] == tags[language],
            lambda: separate.encode("the dog") == separate("the dog").input_ids == source,
            lambda: separate(text_target="der Hund").input_ids == labels,
            lambda: separate.decode(labels, skip_special_tokens=True) == "der Hund",
        )[number % 4]()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(is_right, range(4000)))
    finally:
        sys.setswitchinterval(interval)
    assert multilingual(text_target="der Hund").input_ids[0] not in tags.values()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_child_does_not_wait_for_a_thread_that_it_has_not(joint):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with LOCK:
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    threading.Timer(0.2, leave.set).start()
    process = multiprocessing.get_context("fork").Process(target=joint, args=("the dog",))
    process.start()
    process.join(20)
    alive = process.is_alive()
    process.kill()
    thread.join()
    assert not alive
    assert process.exitcode == 0


def test_use_does_not_change_what_datasets_knows_a_tokenizer_by(separate, multilingual, tmp_path):
    """Else the same map would be computed again."""
    for tokenizer, more in ((separate, {}), (multilingual, {"target_language": "de"})):
        tokenizer.save_pretrained(tmp_path / str(len(more)))
        loaded = AutoTokenizer.from_pretrained(tmp_path / str(len(more)))
        before = Hasher.hash(loaded)
        loaded("the dog", text_target="der Hund", **more)
        assert Hasher.hash(loaded) == before


def test_added_tokens_keep_text_exact(joint, separate):
    assert joint.add_tokens(["<new>", "dogs"]) == 2
    for text in ("<new>", "a<new>b  <new> dogs", " dogs the</s>", "snow<new>"):
        ids = joint(text).input_ids
        assert joint.decode(ids, skip_special_tokens=True) == text
    assert joint.convert_tokens_to_ids("<new>") in ids
    sizes = separate.source_vocab_size, separate.target_vocab_size
    assert separate.add_tokens(["<new>"]) == 1
    assert (separate.source_vocab_size, separate.target_vocab_size) == (sizes[0] + 1, sizes[1] + 1)
    with pytest.raises(ValueError, match=r"'\[X\]' would have ids .* in the two vocabularies"):
        separate.add_special_tokens({"extra_special_tokens": ["[X]"]})
    ends = separate.eos_token, separate.eos_token_id
    with pytest.raises(ValueError, match="'<end>' would have ids"):
        separate.add_special_tokens({"eos_token": "<end>"})
    assert (separate.eos_token, separate.eos_token_id) == ends


def end_by_assignment(tokenizer, folder):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = "<end>"
    with pytest.raises(ValueError, match="eos_token='<end>' is not in the vocabulary"):
        tokenizer("a", target_language=None if not tokenizer.languages else "de")
    tokenizer.add_tokens(["<end>"], special_tokens=True)
    return tokenizer


def end_by_adding(tokenizer, folder):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    return tokenizer


def end_by_loading(tokenizer, folder):
    tokenizer.save_pretrained(folder / "before")
    return AutoTokenizer.from_pretrained(folder / "before", eos_token="<end>")


@pytest.mark.parametrize("change", [end_by_assignment, end_by_adding, end_by_loading])
def test_another_end_token_ends_every_row(change, joint, multilingual, tmp_path):
    for tokenizer, more in ((joint, {}), (multilingual, {"target_language": "de"})):
        tokenizer = change(tokenizer, tmp_path)
        tokenizer.save_pretrained(tmp_path)
        for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
            encoded = each("a dog", text_target="ein Hund", **more)
            assert encoded["input_ids"][-1] == encoded["labels"][-1] == each.eos_token_id
            assert each.convert_ids_to_tokens(each.eos_token_id) == "<end>"


def test_colons_and_dollars_may_be_in_tags_and_ends(tmp_path):
    """In a template of the library they have a meaning."""
    tokenizer = DragomanTokenizer.train(SOURCE, vocab_size=300, languages=("de:AT", "fr:1", "$A"))
    for end in ("</s>", "<end:1>", "$B"):
        tokenizer.add_special_tokens({"eos_token": end})
        tokenizer.save_pretrained(tmp_path)
        for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
            for language in ("de:AT", "fr:1", "$A"):
                tokens = each("dog", target_language=language).tokens()
                assert (tokens[0], tokens[-1]) == (f"<2{language}>", end)
            assert each(["a", "b"], target_language=["$A", "fr:1"]).tokens(1)[0] == "<2fr:1>"


def test_templates_of_others_and_refused_ones(joint, tmp_path):
    """CTranslate2's sources need not end with the end token."""
    tokenizer = copy.deepcopy(joint)
    own = processors.TemplateProcessing(single="$A <pad>", pair="$A $B <pad>", special_tokens=[("<pad>", 0)])
    tokenizer.backend_tokenizer.post_processor = own
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    assert tokenizer("a").input_ids[-1] == 0
    tokenizer = copy.deepcopy(joint)
    for name, wrong in (("add_bos_token", True), ("add_eos_token", False)):
        with pytest.raises(ValueError, match=f"{name}={wrong} is not for this tokenizer"):
            setattr(tokenizer, name, wrong)
        assert getattr(tokenizer, name) is not wrong
        setattr(tokenizer, name, not wrong)
        assert tokenizer("a").input_ids == joint("a").input_ids
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="add_special_tokens=False"):
        AutoTokenizer.from_pretrained(tmp_path, add_eos_token=False)


def test_training_anew(joint, separate, multilingual):
    new = multilingual.train_new_from_iterator((SOURCE[i : i + 2] for i in range(0, 4, 2)), vocab_size=290)
    assert len(new) <= 290
    assert new.languages == ["de", "fr"]
    asked = copy.deepcopy(multilingual)
    asked.padding_side, asked.model_max_length, asked.target_language = "left", 70, "fr"
    again = asked.train_new_from_iterator(SOURCE, vocab_size=290)
    assert (again.padding_side, again.model_max_length, again.target_language) == ("left", 70, "fr")
    asked.add_special_tokens({"eos_token": "<end>", "extra_special_tokens": ["<sep>"]})
    asked.split_special_tokens = False
    again = asked.train_new_from_iterator(SOURCE, vocab_size=292)
    assert len(again) <= 292
    assert (again.eos_token, again.split_special_tokens) == ("<end>", False)
    assert again.tokenize("a<sep>b").count("<sep>") == 1
    assert again("a").input_ids[-1] == again.eos_token_id == again.convert_tokens_to_ids("<end>")
    assert {"<sep>", "<end>"} <= set(again.all_special_tokens)
    assert new.decode(new(text_target="\u26c4 </s>").input_ids, skip_special_tokens=True) == "\u26c4 </s>"
    with pytest.raises(NotImplementedError, match="use train"):
        separate.train_new_from_iterator(SOURCE, vocab_size=290)
    with pytest.raises(ValueError, match="fixed here"):
        joint.train_new_from_iterator(SOURCE, vocab_size=290, new_special_tokens=["<x>"])


def test_stock_tools_work(separate, capsys):
    features = [separate(s, text_target=t) for s, t in zip(SOURCE[:3], TARGET[:3], strict=True)]
    batch = DataCollatorForSeq2Seq(separate, model=None)(features)
    assert batch["labels"].shape[0] == batch["input_ids"].shape[0] == 3
    assert (batch["labels"] == -100).any()
    assert separate.batch_decode(separate.pad({"input_ids": features[0].labels})["input_ids"])
    streamer = TextStreamer(separate, skip_special_tokens=True)
    for index in separate(text_target="zwei M\u00e4nner \u26c4 und").input_ids:
        streamer.put(torch.tensor([index]))
    streamer.end()
    assert capsys.readouterr().out == "zwei M\u00e4nner \u26c4 und\n"


def test_offsets_refer_to_the_original_text(joint):
    text = "the dog \u26c4 runs"
    encoding = joint(text, return_offsets_mapping=True)
    cut = [text[start:end].strip() for start, end in encoding.offset_mapping if end - start > 1]
    assert cut == ["the", "dog", "runs"]
    assert joint(["the", "dog"], is_split_into_words=True).input_ids == joint("the dog").input_ids
    assert joint([["the", "dog"]], is_split_into_words=True).word_ids(0) == [0, 1, None]


def test_special_tokens_that_texts_will_not_be_searched_for(joint, tmp_path, caplog):
    tokenizer, warned = copy.deepcopy(joint), "special tokens are not looked for in texts"
    tokenizer.add_special_tokens({"eos_token": "<end>"})  # nobody writes it
    tokenizer.add_tokens(["word"])
    assert not caplog.text
    for add in (
        lambda: tokenizer.add_special_tokens({"extra_special_tokens": ["<hl>"]}),
        lambda: tokenizer.add_special_tokens({"mask_token": "<mask>"}),
        lambda: tokenizer.add_tokens(["<sep>"], special_tokens=True),
    ):
        caplog.clear()
        add()
        assert warned in caplog.text
    caplog.clear()
    tokenizer.add_tokens(["<sep>"], special_tokens=True)  # it is there
    tokenizer.split_special_tokens = False
    tokenizer.add_tokens(["<hl2>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tmp_path)
    assert not caplog.text
