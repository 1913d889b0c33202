"""docs/inputs.md quotes the words of the refusals: each quotation is in the program."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCES = (*(ROOT / "cesped_stream/particles").glob("*.py"), *(ROOT / "service").glob("*.py"))


def _quotations() -> list[str]:
    page = (ROOT / "docs/inputs.md").read_text().partition("rows that are refused")[2]
    return [quote for row in page.splitlines() if row.startswith("|") for quote in re.findall(r"\| `([^`]+)`", row)]


def _fixed_words(quote: str) -> list[str]:
    pieces = re.split(
        r"\b[A-Z]{2,}\b|\b[NM]\b|'[^']*'|gzip|2, 1, 3|rlnDefocusU|\.\.\.|rln\w+|data_\w+|0, 1, 2, 6, 12|;|dimension 3",
        quote,
    )
    return [piece.strip(" :,.()") for piece in pieces if len(piece.split()) >= 3]


@pytest.fixture(scope="module")
def program() -> str:
    """All texts of the program as one line, literals that continue on the next line joined."""
    text = "\n".join(path.read_text() for path in SOURCES)
    return re.sub(r"\"\s*\n\s*f?\"", "", text)


@pytest.mark.parametrize("quote", _quotations())
def test_each_quotation_of_the_page_is_in_the_program(quote: str, program: str) -> None:
    for words in _fixed_words(quote):
        assert words in program
