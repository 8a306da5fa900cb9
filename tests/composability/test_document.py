"""The documentation's table is the tests' table."""

from tests.composability.document import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "docs/composability.md is stale: python -m tests.composability.document"
    )
