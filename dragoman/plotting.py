"""Pictures of attention and attribution by matplotlib: ``figure.savefig("picture.svg")``, or ``.png``."""

import unicodedata
from collections.abc import Sequence
from typing import Any
from warnings import warn

from torch import Tensor

from .alignment import Alignment
from .attribution import Attribution
from .highlighting import colour, strengths

try:
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ImportError as error:
    raise ImportError('Pictures are drawn by matplotlib: python -m pip install "dragoman[explain]"') from error

MARGIN, LINE = 0.2, 0.34  # inches


def fonts_for(text: str) -> list[str]:
    """Families that draw all of ``text`` together, matplotlib's default first; a warning where no font does."""
    default = font_manager.FontProperties()
    families = [default.get_name()]
    missing = {ord(character) for character in text if not character.isspace()}
    missing -= _glyphs(font_manager.findfont(default))
    # A box for any character, which comes with matplotlib, is the last choice.
    is_boxes = [("LastResort" in entry.name.replace(" ", ""), entry) for entry in font_manager.fontManager.ttflist]
    for boxes, entry in sorted(is_boxes, key=lambda item: item[0]):
        if boxes and missing:
            some = "".join(map(chr, sorted(missing)[:8]))
            warn(
                f"No installed font draws {some}, and boxes stand in their places: install one that does, such as Noto "
                "Sans CJK for Chinese, Japanese and Korean (Debian: apt install fonts-noto-cjk), or pass its file to "
                "matplotlib.font_manager.fontManager.addfont. Pages of HTML leave fonts to the browser.",
                stacklevel=3,
            )
        if missing and entry.name not in families and missing & (glyphs := _glyphs(entry.fname)):
            families.append(entry.name)
            missing -= glyphs
    return families


def _glyphs(file: str) -> set[int]:
    return set(font_manager.get_font(file).get_charmap())


def draw_attention(alignment: Alignment, vmax: float = 1.0) -> Figure:
    """Weights (T, S) as a picture, target down, source across; links are ringed."""
    figure = _figure(len(alignment.source), len(alignment.target))
    axes = figure.subplots()
    image = _heatmap(axes, alignment.weights, alignment.source, alignment.target, vmax)
    if alignment.links:  # else matplotlib would ring (0, 0)
        axes.plot(*zip(*sorted(alignment.links), strict=True), "o", mfc="none", mec="tab:orange")
    figure.colorbar(image, ax=axes, label="attention weight")
    return figure


def draw_heads(weights: Tensor, source: Sequence[str], target: Sequence[str], vmax: float = 1.0) -> Figure:
    """Every head of every layer, weights (L, H, T, S), layers down, heads across.

    Raises ValueError for weights of another shape.
    """
    if weights.dim() != 4 or weights.shape[2:] != (len(target), len(source)):
        raise ValueError(
            f"weights must be (layers, heads, {len(target)}, {len(source)}) for {len(target)} target and {len(source)} "
            f"source units, got {tuple(weights.shape)}: torch.stack(outputs.cross_attentions)[:, row]."
        )
    layers, heads = weights.shape[:2]
    figure = _figure(len(source) * heads, len(target) * layers)
    grid = figure.subplots(layers, heads, squeeze=False, sharex=True, sharey=True)
    for layer in range(layers):
        for head in range(heads):
            _heatmap(grid[layer, head], weights[layer, head], source, target, vmax)
            grid[layer, head].set_title(f"layer {layer}, head {head}", fontsize=8)
    return figure


def draw_highlighted(attribution: Attribution, width: float = 8.0) -> Figure:
    """The text on the colours of its words' scores, in lines of ``width`` inches."""
    fonts = fonts_for(attribution.text + attribution.target)
    figure = Figure(figsize=(width, 1.0))
    renderer = FigureCanvasAgg(figure).get_renderer()
    inches: dict[str, Any] = {"transform": figure.dpi_scale_trans, "fontfamily": fonts, "parse_math": False}
    placed, left, line = [], MARGIN, 1
    for piece, word, strength in strengths(attribution):
        label = figure.text(0, 0, " " if word is None and piece.isspace() else piece, fontsize=13, **inches)
        size = label.get_window_extent(renderer).width / figure.dpi
        if left + size > width - MARGIN and left > MARGIN:
            left, line = MARGIN, line + 1
        placed.append((label, colour(strength), left, size, line))
        left += size
    height = LINE * (line + 1) + MARGIN
    figure.set_size_inches(width, height)
    target, method = attribution.target, f"   ({attribution.method})"
    title = figure.text(MARGIN, height - LINE * 0.75, target + method, fontsize=10, color="#555555", **inches)
    while target and title.get_window_extent(renderer).width / figure.dpi > width - 2 * MARGIN:
        target = target[: int(0.95 * len(target))]
        title.set_text(f"{target}…{method}")
    from_the_right = is_right_to_left(attribution.text)
    for label, background, left, size, row in placed:
        x, y = width - left - size if from_the_right else left, height - LINE * (row + 0.75)
        label.set_position((x, y))
        paint = [part / 255 for part in background]
        place: dict[str, Any] = {"transform": figure.dpi_scale_trans, "zorder": 0}
        figure.add_artist(Rectangle((x, y - LINE * 0.2), size, LINE * 0.8, facecolor=paint, **place))
    return figure


def is_right_to_left(text: str) -> bool:
    """As the first letter that has a direction, such as Hebrew's or Arabic's."""
    return next((kind != "L" for kind in map(unicodedata.bidirectional, text) if kind in ("L", "R", "AL")), False)


def _figure(columns: int, rows: int) -> Figure:
    return Figure(figsize=(2.5 + 0.35 * min(columns, 100), 1.8 + 0.3 * min(rows, 100)), layout="constrained")


def _heatmap(axes: Any, weights: Tensor, source: Sequence[str], target: Sequence[str], vmax: float) -> Any:
    fonts = fonts_for("".join([*source, *target]))
    image = axes.imshow(weights.detach().float().cpu().numpy(), cmap="viridis", vmin=0, vmax=vmax, aspect="auto")
    axes.set_xticks(range(len(source)), source, rotation=90, fontfamily=fonts, parse_math=False)
    axes.set_yticks(range(len(target)), target, fontfamily=fonts, parse_math=False)
    return image
