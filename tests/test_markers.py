"""`pytest -m cuda` finds every test that is skipped without a GPU."""

from tests.helpers.paths import ROOT


def test_only_the_marker_skips_tests_for_want_of_a_gpu() -> None:
    by_hand = "not torch.cuda.is_available()"
    files = {file for file in (ROOT / "tests").rglob("*.py") if by_hand in file.read_text()}
    assert files == {ROOT / "tests/helpers/devices.py", ROOT / "tests/test_markers.py"}
