"""Words coloured by their scores: in a terminal, and as a page of HTML that needs nothing but itself."""

from collections.abc import Iterator
from html import escape

from rich.text import Text

from .attribution import Attribution, ScoredWord

FOR, AGAINST = (214, 96, 16), (33, 102, 172)  # orange and blue: told apart by colour-blind people too

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{target}</title>
<style>
body {{ font: 17px/2 system-ui, sans-serif; max-width: 46em; margin: 2em auto; padding: 0 1em; }}
body {{ color: #222; background: #fff; }}
p.text {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
mark {{ color: inherit; padding: .15em 0; border-radius: .2em; }}
table {{ border-collapse: collapse; line-height: 1.4; font-size: 15px; }}
td {{ padding: .1em .8em .1em 0; }} td.score {{ text-align: right; font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>{target}</h1>
<p class="text" dir="auto">{text}</p>
<p>{method}, {value:.3f}. {legend}</p>
<table>
{rows}
</table>
</body>
</html>
"""


def strengths(attribution: Attribution) -> Iterator[tuple[str, ScoredWord | None, float]]:
    """The text in pieces, in order: words with strengths from −1 to 1, and what stands between them with None."""
    largest = max(abs(word.score) for word in attribution.words) or 1.0
    place = 0
    for word in attribution.words:
        if place < word.start:
            yield attribution.text[place : word.start], None, 0.0
        yield word.text, word, word.score / largest
        place = word.end
    if place < len(attribution.text):
        yield attribution.text[place:], None, 0.0


def colour(strength: float) -> tuple[int, int, int]:
    """From white to full colour, red, green, blue."""
    full = FOR if strength > 0 else AGAINST
    red, green, blue = (round(255 + (part - 255) * 0.85 * abs(strength)) for part in full)
    return red, green, blue


def to_terminal(attribution: Attribution) -> Text:
    """For ``rich.print``; brackets in the text stay brackets."""
    text = Text()
    for piece, word, strength in strengths(attribution):
        style = "" if word is None else "black on rgb({},{},{})".format(*colour(strength))
        text.append(piece, style)
    return text


def to_html(attribution: Attribution) -> str:
    """A page of its own: no script, no picture, nothing from a network; all text escaped."""

    def marked(piece: str, word: ScoredWord | None, strength: float) -> str:
        if word is None:
            return escape(piece)
        return f'<mark style="background: rgb{colour(strength)}" title="{word.score:+.4f}">{escape(piece)}</mark>'

    rows = "\n".join(
        f'<tr><td dir="auto">{escape(word.text)}</td><td class="score">{word.score:+.4f}</td></tr>'
        for word in attribution.ranked()
    )
    return PAGE.format(
        target=escape(attribution.target),
        text="".join(marked(*piece) for piece in strengths(attribution)),
        method=escape(attribution.method),
        value=attribution.value,
        legend=legend(attribution),
        rows=rows,
    )


def legend(attribution: Attribution) -> str:
    if any(word.score < 0 for word in attribution.words):
        return "Orange speaks for it, blue against it."
    return "The deeper the colour, the more."
