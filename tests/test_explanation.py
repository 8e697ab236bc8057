"""What a person sees: the command, the page, the pictures, and the document that shows them."""

import json
import re
import shlex
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import explanation
import letter_alignment
from bart_models import tiny as tiny_bart
from dragoman import DragomanConfig, DragomanTokenizer, align, attribute
from dragoman.__main__ import app
from dragoman.highlighting import colour, to_html, to_terminal
from support import ROOT, build, tiny

TEXT = 'I hate <script>alert("1")</script> [red]this[/red] & 電影 $x_1$'
TARGET = "a <b>dog</b> runs"


@pytest.fixture(scope="module")
def tokenizer() -> DragomanTokenizer:
    return DragomanTokenizer.train([TEXT, TARGET], vocab_size=310)


@pytest.fixture(scope="module")
def model(tokenizer: DragomanTokenizer) -> Any:
    return build(tiny(vocab_size=len(tokenizer)))


class Page(HTMLParser):
    """The tags of a page, its attributes, and what is read of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.read: dict[str, str] = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(str(value))

    def handle_data(self, data: str) -> None:
        last = self.tags[-1] if self.tags else ""
        place = {"mark": "p", "td": "table"}.get(last, last)
        self.read[place] = self.read.get(place, "") + data


def test_the_page_shows_the_text_and_runs_none_of_it(model: Any, tokenizer: DragomanTokenizer) -> None:
    source = to_html(attribute(model, tokenizer, TEXT, TARGET))
    page = Page(source)
    assert not set(page.tags) & {"script", "b", "img", "link", "iframe", "object"}
    assert page.read["h1"].strip() == TARGET
    assert TEXT in page.read["p"]  # marks and what stands between them, in order
    assert not set(page.attributes) & {"src", "href", "srcset", "onload", "onerror"}
    assert not [sign for sign in ("url(", "@import", "://") if sign in source]
    assert page.attributes["charset"] == ["utf-8"]
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.attributes["content"]
    assert page.tags.count("mark") == page.tags.count("tr") == len(attribute(model, tokenizer, TEXT, TARGET).words)


def test_the_terminal_shows_brackets_as_brackets(model: Any, tokenizer: DragomanTokenizer) -> None:
    found = attribute(model, tokenizer, TEXT, TARGET)
    console = Console(record=True, width=200, force_terminal=True, color_system="truecolor", file=None, quiet=False)
    with console.capture() as capture:
        console.print(to_terminal(found))
    assert to_terminal(found).plain == TEXT
    top = found.ranked()[0].score
    largest = max(abs(word.score) for word in found.words)
    assert ";".join(map(str, colour(top / largest))) in capture.get()


def test_colours_tell_for_from_against() -> None:
    assert colour(0.0) == (255, 255, 255)
    assert colour(1.0)[0] > colour(1.0)[2]
    assert colour(-1.0)[0] < colour(-1.0)[2]
    assert colour(0.5) != colour(1.0)


def test_the_command(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "writer")
    torch.manual_seed(0)
    config = DragomanConfig.from_tokenizer(tokenizer, preset="tiny", id2label={0: "bad", 1: "good"})
    for saved in (AutoModelForSequenceClassification.from_config(config), tokenizer):
        saved.save_pretrained(tmp_path / "judge")
    page = tmp_path / "page.html"
    commands: dict[tuple[str, ...], str] = {
        ("writer", TEXT, "--target", TARGET, "--html", str(page)): TARGET,
        ("writer", TEXT, "--target", ":key:"): ":key:",
        ("judge", TEXT, "--target", "good", "--method", "attention"): "good (attention",
        ("judge", TEXT, "--units", "tokens"): TEXT,
    }
    for (folder, *arguments), shown in commands.items():
        ran = CliRunner().invoke(app, ["explain", str(tmp_path / folder), *arguments])
        assert ran.exit_code == 0, ran.output
        assert shown in ran.output
        assert TEXT in ran.output
    assert Page(page.read_text("utf-8")).read["h1"].strip() == TARGET
    for arguments, message in (
        (["judge", TEXT, "--target", "so so"], "only 'bad', 'good'"),
        (["judge", " "], "no words"),
        (["judge", TEXT, "--html", str(tmp_path / "nowhere" / "page.html")], "No such file or directory"),
        (["judge", TEXT, "--method", "atention"], "did you mean 'attention'?"),
    ):
        ran = CliRunner().invoke(app, ["explain", str(tmp_path / arguments[0]), *arguments[1:]])
        assert (ran.exit_code, type(ran.exception)) == (1, SystemExit)
        assert message in ran.output
    broken = json.loads((tmp_path / "judge" / "config.json").read_text("utf-8")) | {"norm_placement": "middle"}
    (tmp_path / "judge").rename(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / "config.json").write_text(json.dumps(broken), "utf-8")
    for arguments in (
        ["explain", str(tmp_path / "checkpoint-1"), TEXT],
        ["average", str(tmp_path), str(tmp_path / "mean"), "--last", "1"],
    ):
        ran = CliRunner().invoke(app, arguments)
        assert (ran.exit_code, type(ran.exception)) == (1, SystemExit)
        assert "norm_placement" in ran.output


def test_the_command_for_models_of_others_and_languages(tmp_path: Path) -> None:
    tokenizer = DragomanTokenizer.train([TEXT], vocab_size=310, languages=["de", "fr"])
    theirs = tiny_bart("Bart", vocab_size=len(tokenizer))
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    command = ["explain", str(tmp_path), "I hate", "--target", "a", "--method", "attention"]
    ran = CliRunner().invoke(app, command)
    assert ran.exit_code == 1
    assert "which language?" in ran.output
    assert CliRunner().invoke(app, [*command, "--tgt-lang", "de"]).exit_code == 0
    assert "unknown language 'it'" in CliRunner().invoke(app, [*command, "--tgt-lang", "it"]).output


def test_pictures(model: Any, tokenizer: DragomanTokenizer, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from dragoman.plotting import draw_attention, draw_heads, draw_highlighted

    text = "I hate $x_1$"
    alignment = align(model, tokenizer, text, "a dog runs")
    batch = tokenizer([text], text_target=["a dog"], return_tensors="pt")
    weights = torch.stack(model(**batch, output_attentions=True).cross_attentions)[:, 0]
    labels = [tokenizer.convert_ids_to_tokens(batch[name][0]) for name in ("input_ids", "labels")]
    highlighted = draw_highlighted(attribute(model, tokenizer, f"{text} " * 6, "a dog"), width=3)
    figures = {"pair": draw_attention(alignment), "heads": draw_heads(weights, *labels), "text": highlighted}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.svg")
        ElementTree.parse(tmp_path / f"{name}.svg")
    figures["text"].savefig(tmp_path / "text.png")
    assert (tmp_path / "text.png").read_bytes().startswith(b"\x89PNG")
    image = figures["pair"].axes[0].images[0]
    torch.testing.assert_close(torch.from_numpy(image.get_array().data), alignment.weights)
    assert [label.get_text() for label in figures["pair"].axes[0].get_xticklabels()] == list(alignment.source)
    assert len(figures["heads"].axes) == weights.shape[0] * weights.shape[1]
    height, width = figures["text"].get_size_inches()[::-1]
    places = [label.get_position() for label in figures["text"].texts]
    assert all(0 <= x < width and 0 < y < height for x, y in places)
    assert len({y for _, y in places}) > 3  # it takes several lines
    assert len(figures["pair"].axes[0].lines) == 1
    assert not draw_attention(replace(alignment, links=frozenset())).axes[0].lines
    with pytest.raises(ValueError, match=r"weights must be \(layers, heads, 1, 2\)"):
        draw_heads(weights, ["a", "b"], ["c"])


def test_pictures_of_right_to_left_text_begin_at_the_right(model: Any, tokenizer: DragomanTokenizer) -> None:
    pytest.importorskip("matplotlib")
    from dragoman.plotting import draw_highlighted

    for text, step in (("one two three four", 1), ("אחד שתיים שלוש ארבע", -1), ("«12» واحد اثنان", -1)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fonts
            figure = draw_highlighted(attribute(model, tokenizer, text, "a dog"), width=9)
        *pieces, _ = figure.texts
        assert "".join(piece.get_text() for piece in pieces) == text
        places = [piece.get_position()[0] for piece in pieces]
        assert places == sorted(places)[::step]
        ends = [patch.get_x() + patch.get_width() for patch in figure.artists]
        assert 0 < min(places) < max(ends) < 9


def test_a_long_title_is_cut_and_keeps_the_method(model: Any, tokenizer: DragomanTokenizer) -> None:
    pytest.importorskip("matplotlib")
    from dragoman.plotting import draw_highlighted

    found = replace(attribute(model, tokenizer, TEXT, "a dog"), target="much " * 80)
    for width in (8.0, 3.0):
        figure = draw_highlighted(found, width)
        title = figure.texts[-1]
        assert re.fullmatch(rf"(much )+m?u?c?h?…   \({found.method}\)", title.get_text())
        assert title.get_window_extent().width / figure.dpi < width


def test_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib import font_manager

    from dragoman import plotting

    assert plotting.fonts_for("été $x$") == ["DejaVu Sans"]
    fonts = font_manager.fontManager.ttflist
    glyphs = plotting._glyphs
    boxes = [font for font in fonts if "LastResort" in font.name.replace(" ", "")]
    chinese = [font for font in fonts if font.name == "STIXGeneral"][:1]
    monkeypatch.setattr(plotting, "_glyphs", lambda file: glyphs(file) | {0x96FB} if "STIX" in file else glyphs(file))
    monkeypatch.setattr(font_manager.fontManager, "ttflist", chinese)
    assert plotting.fonts_for("a 電") == ["DejaVu Sans", "STIXGeneral"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*chinese, *boxes])
    with pytest.warns(UserWarning, match=r"No installed font draws 影, and.*fonts-noto-cjk"):
        plotting.fonts_for("a 電影")


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "dragoman.plotting", raising=False)
    with pytest.raises(ImportError, match=r"dragoman\[explain\]"):
        import dragoman.plotting  # noqa: F401


def test_the_document(
    model: Any, tokenizer: DragomanTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "explanation.md").read_text("utf-8")
    assert page == explanation.render()
    assert not re.search(r"\{\w+\}", page)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("my-model"), tokenizer.save_pretrained("my-model")
    names: dict[str, Any] = {}
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        exec(compile(snippet, "explanation.md", "exec"), names)
    assert Path("words.png").is_file()
    (command,) = re.findall(r"```bash\npython -m dragoman (.*?)\n```", page)
    assert CliRunner().invoke(app, shlex.split(command)).exit_code == 0
    assert Page(Path("page.html").read_text("utf-8")).read["h1"].strip() == "ein Hund rennt"
    results = json.loads((ROOT / "benchmarks" / "results" / "attribution-planted.json").read_text("utf-8"))
    assert min(row["leave_one_out"] for row in results["rows"]) >= 0.99  # the shipped default


def test_letters_are_aligned_by_hand() -> None:
    words = {"ship": "SH IH P", "hip": "HH IH P", "pit": "P IH T", "tap": "T AE P", "at": "AE T", "six": "S IH K S"}
    words |= {"pat": "P AE T", "sap": "S AE P", "has": "HH AE S", "tip": "T IH P", "hit": "HH IH T", "sit": "S IH T"}
    words |= {"ax": "AE K S", "its": "IH T S"}
    pairs = [(word, phonemes.split()) for word, phonemes in words.items()]
    weights = letter_alignment.learn(pairs)
    assert letter_alignment.align("ship", ["SH", "IH", "P"], weights) == [{0, 1}, {2}, {3}]
    assert letter_alignment.align("six", ["S", "IH", "K", "S"], weights) == [{0}, {1}, {2}, {2}]
    assert letter_alignment.align("a", ["S", "IH", "K"], weights) == [set()] * 3  # no steps connect the two


def test_bertviz(model: Any, tokenizer: DragomanTokenizer) -> None:
    bertviz = pytest.importorskip("bertviz")
    even = build(tiny(vocab_size=len(tokenizer), encoder_num_hidden_layers=2))
    batch = tokenizer(["I hate"], text_target=["a dog"], return_tensors="pt")
    outputs = even(**batch, output_attentions=True)
    tokens = [tokenizer.convert_ids_to_tokens(batch[name][0]) for name in ("input_ids", "labels")]
    kinds = ("encoder_attentions", "decoder_attentions", "cross_attentions")
    weights = {kind.removesuffix("s"): outputs[kind] for kind in kinds}
    sides = dict(zip(("encoder_tokens", "decoder_tokens"), tokens, strict=True))
    for view in (bertviz.head_view, bertviz.model_view):
        assert "Cross" in view(**weights, **sides, html_action="return").data


def test_inseq(model: Any, tokenizer: DragomanTokenizer) -> None:
    inseq = pytest.importorskip("inseq")
    subject = inseq.load_model(model, "input_x_gradient", tokenizer=tokenizer)
    found = subject.attribute("I hate", "a dog", show_progress=False).sequence_attributions[0].source_attributions
    assert found.shape[:2] == (
        len(tokenizer("I hate").input_ids),
        len(tokenizer(text_target="a dog").input_ids),
    )
