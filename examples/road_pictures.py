"""The pictures of the road to attention. Colours are Okabe and Ito's, which colour-blind eyes tell apart; every model
has a marker of its own, too."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

from pronounce import align, draw_alignment
from road_models import NAMES
from road_verdicts import Curves

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

LOOKS: dict[str, dict[str, Any]] = {
    "fixed": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "additive": {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    "dot": {"color": "#009E73", "marker": "^", "linestyle": "-."},
    "transformer": {"color": "#CC79A7", "marker": "D", "linestyle": "-"},
    "one-head": {"color": "#E69F00", "marker": "v", "linestyle": ":"},
}
PARTS = {
    "encoder": ("encoder, self-attention", "#0072B2"),
    "decoder": ("decoder, self-attention", "#E69F00"),
    "cross": ("decoder, cross-attention", "#009E73"),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {"color": "#000000", "linestyle": "-"},
    "no residual": {"color": "#D55E00", "linestyle": "--"},
    "no norm": {"color": "#0072B2", "linestyle": "-."},
    "no depth scaling": {"color": "#009E73", "linestyle": ":"},
    "neither norm nor depth scaling": {"color": "#CC79A7", "linestyle": "-"},
}


def save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def label_lengths(axis: Any, lengths: Sequence[int], unit: str) -> None:
    """A logarithmic axis with exactly these lengths on it."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(lengths))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.set_xlabel(f"length ({unit})")
    axis.grid(alpha=0.3)


def draw_accuracy(curves: Curves, told: dict[str, dict[str, Any]], file: Path) -> Figure:
    """One panel a task, one line a model: mean over seeds, and a band from the worst to the best of them.

    ``told`` has each task's unit, metric and chance.
    """
    columns = min(3, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4.4 * columns, 3.6 * rows + 0.6), squeeze=False)
    figure.set_layout_engine("constrained")
    for panel, (task, models) in zip(panels.flat, curves.items(), strict=False):
        for number, (model, curve) in enumerate(models.items()):
            lengths = sorted(curve)
            look = LOOKS[model]
            means = [statistics.mean(curve[length]) for length in lengths]
            panel.plot(lengths, means, label=NAMES[model], markersize=9 - 1.5 * number, **look)  # equal ones all show
            lows, highs = ([side(curve[length]) for length in lengths] for side in (min, max))
            panel.fill_between(lengths, lows, highs, color=look["color"], alpha=0.2, linewidth=0)
        if told[task]["chance"] is not None:
            panel.axhline(told[task]["chance"], color="grey", linestyle=":", label="chance")
        label_lengths(panel, lengths, told[task]["unit"])
        panel.set(title=task, ylabel=told[task]["metric"], ylim=(-3, 103))
    for panel in panels.flat[len(curves) :]:
        panel.set_axis_off()
    entries = {label: line for p in panels.flat for line, label in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    save(figure, file)
    return figure


def draw_speed(records: Sequence[dict[str, Any]], file: Path) -> Figure:
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for record in records:
        lengths = [speed["length"] for speed in record["speeds"]]
        speeds = [speed["tokens_per_second"] for speed in record["speeds"]]
        axis.plot(lengths, speeds, label=NAMES[record["model"]], **LOOKS[record["model"]])
    label_lengths(axis, lengths, "symbols in the source, as many in the target")
    axis.set(yscale="log", ylabel="training speed (tokens/s)", title="Training speed, batches of equal size in tokens")
    axis.legend()
    save(figure, file)
    return figure


def draw_alignments(words: Sequence[str], models: dict[str, Any], tokenizer: Any, file: Path) -> Figure:
    """What each phoneme looked at: one row a word, one column a model."""
    shape = len(words), len(models)
    figure, panels = plt.subplots(*shape, figsize=(5.2 * shape[1], 3.4 * shape[0]), squeeze=False)
    figure.set_layout_engine("constrained")
    for row, word in zip(panels, words, strict=True):
        for panel, (name, model) in zip(row, models.items(), strict=True):
            image = draw_alignment(panel, word, *align(word, model, tokenizer))
            panel.set_title(f"{NAMES[name]}: {word}")
    figure.colorbar(image, ax=panels, label="attention weight")
    save(figure, file)
    return figure


@torch.inference_mode()
def draw_heads(word: str, model: Any, tokenizer: Any, removal: dict[str, Any], file: Path) -> Figure:
    """The heads of the last layer of each stack over ``word``; below, what every head of the model is worth."""
    inputs = tokenizer(word, return_tensors="pt")
    ids = model.generate(**inputs)
    phonemes = tokenizer.decode(ids[0], skip_special_tokens=True).split()
    outputs = model(**inputs, decoder_input_ids=ids, output_attentions=True)
    letters, written = list(word), slice(0, len(phonemes))
    encoder = outputs.encoder_attentions[-1][0][:, : len(word), : len(word)]  # (H, S, S)
    cross = outputs.cross_attentions[-1][0][:, written, : len(word)]  # (H, T, S)
    last = len(outputs.encoder_attentions) - 1
    lost = {(head["part"], head["layer"], head["head"]): head["lost"] for head in removal["heads"]}
    figure = plt.figure(figsize=(3.4 * len(cross), 10), layout="constrained")
    grid = figure.add_gridspec(3, len(cross))
    maps = []
    for row, (part, heads, down, what) in enumerate(
        (("encoder", encoder, letters, "letter asking"), ("cross", cross, phonemes, "phoneme written"))
    ):
        for head, weights in enumerate(heads):
            panel = figure.add_subplot(grid[row, head])
            image = panel.imshow(weights.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto")
            panel.set(xticks=range(len(letters)), xticklabels=letters, yticks=range(len(down)), yticklabels=down)
            panel.set(xlabel="letter looked at", ylabel=what)
            points = round(lost[part, last, head], 1) + 0.0  # no -0.0
            panel.set_title(f"{part} layer {last + 1}, head {head + 1}\ncosts {points:.1f} points", fontsize=10)
            maps.append(panel)
    figure.colorbar(image, ax=maps, label="attention weight")
    draw_losses_of_heads(figure.add_subplot(grid[2, :]), removal)
    save(figure, file)
    return figure


def draw_losses_of_heads(axis: Any, removal: dict[str, Any]) -> None:
    heads = sorted(removal["heads"], key=lambda head: list(PARTS).index(head["part"]))  # else as they were measured
    for part, (label, colour) in PARTS.items():
        at = [n for n, head in enumerate(heads) if head["part"] == part]
        axis.bar(at, [heads[n]["lost"] for n in at], color=colour, label=label)
    axis.set_xticks(range(len(heads)), [f"{head['layer'] + 1}.{head['head'] + 1}" for head in heads], rotation=90)
    for tick, head in zip(axis.get_xticklabels(), heads, strict=True):
        tick.set_color(PARTS[head["part"]][1])
    axis.set(xlabel="layer.head taken away", ylabel="words right lost (points)")
    axis.set_title(f"With all heads {removal['percent']:.1f} % of the words are right")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(loc="upper right")


def draw_depth(losses: dict[str, dict[str, list[float]]], every: int, file: Path) -> Figure:
    """Losses of deep stacks with something taken away; what diverges leaves the picture above."""
    figure, panels = plt.subplots(1, len(losses), figsize=(5.5 * len(losses), 5), sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    for panel, (stack, variants) in zip(panels[0], losses.items(), strict=True):
        for variant, values in variants.items():
            steps = range(0, every * len(values), every)
            label = variant if math.isfinite(values[-1]) else f"{variant}: diverged"
            panel.plot(steps, values, label=label, linewidth=1.4, **VARIANTS[variant])
        panel.set(yscale="log", ylim=(3e-4, 10), xlabel="step", title=f"{stack} layers")
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("loss (nats a token)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save(figure, file)
    return figure
