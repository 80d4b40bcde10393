"""One text and its patches as a file of its own: a page, or a drawing."""

from pathlib import Path

from selftaught.errors import InputError
from selftaught.report.charts import tag
from selftaught.report.html import asset, fill_template
from selftaught.report.patches import drawing, entropy_chart
from selftaught.store.files import explained
from selftaught.text.patched import PatchedText

SUFFIXES = (".html", ".svg")


def write_patched_text(text: PatchedText, path: Path) -> None:
    """Write `text` to `path`: its entropies and, in a page, its patches by all rules.

    Raises:
        InputError: the name ends in neither .html nor .svg, or the file cannot be written.
    """
    check_suffix(path)
    content = _page(text) if path.suffix == ".html" else _svg(text)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def check_suffix(path: Path) -> None:
    """Raise InputError for a name that tells no kind of file."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path} ends in neither of {', '.join(SUFFIXES)}: name a page or a drawing")


def _page(text: PatchedText) -> str:
    return fill_template("patches_page.html", text=drawing(text), size=len(text.items))


def _svg(text: PatchedText) -> str:
    # A viewer without the page has neither its colours nor its ground.
    under = [tag("style", str(asset("page.css"))), tag("rect", class_="paper", width="100%", height="100%")]
    return entropy_chart(text, under, xmlns="http://www.w3.org/2000/svg")
