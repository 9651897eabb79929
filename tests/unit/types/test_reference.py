"""The reference page of types is what the mappings say."""

from __future__ import annotations

from pathlib import Path

from headrace.source.postgres.types import _BY_OID, mapping
from headrace.source.postgres.types.facts import builtin_facts
from headrace.source.postgres.types.reference import page

ROOT = Path(__file__).parents[3]


def test_the_reference_page_is_current() -> None:
    kept = (ROOT / "docs" / "reference" / "types.md").read_text()
    assert kept == page(), "run: python -m headrace.source.postgres.types.reference > docs/reference/types.md"


def test_every_mapping_is_on_the_page() -> None:
    written = page()
    for oid in _BY_OID:
        facts = builtin_facts(oid)
        assert facts is not None
        assert mapping(facts).exact in written, facts.name
