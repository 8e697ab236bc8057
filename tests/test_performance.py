"""The page on performance says what the result files hold."""

import performance
from support import ROOT


def test_the_page_is_that_of_the_results() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8")
    assert page == performance.render()
    assert "{" not in page
    assert page.count("| Dragoman, packed |") >= 2


def test_a_row_holds_median_and_range() -> None:
    row = {
        "marian": {"ratio": 1.0, "lowest": 1.0, "highest": 1.0},
        "ours": {"ratio": 2.0, "lowest": 1.5, "highest": 3.25},
    }
    text = performance.writing([{"machine": {"date": "then", "cpu": "some"}, "rounds": 3, "results": {"a case": row}}])
    assert text.splitlines() == [
        "date then, cpu some, rounds 3:",
        "",
        "| times as fast as Marian | ours |",
        "|:--|--:|",
        "| a case | 2.00 (1.50-3.25) |",
    ]
