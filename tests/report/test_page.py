"""Pages: what comes from files is escaped, numbers stand to the right, pictures fit, wide tables scroll."""

from utils.report.page import Code, Section, Table, Text, as_html


def test_everything_from_files_is_escaped() -> None:
    bad = "<script>alert('x')</script>"
    page = as_html(
        bad, [Text(bad, True)], [Section(bad, [Text(bad), Code(bad), Table([[bad], [bad]])], [Text(bad)], bad)]
    )
    assert "<script" not in page and page.count("&lt;script&gt;") == 10
    assert page.count('class="warning"') == 1


def test_columns_of_numbers_stand_to_the_right() -> None:
    rows = [["run", "mAP", "rule", "mean"], ["1", "0.25", "coco", "0.3 ± 0.01"], ["2", "missing", "-", "1,234"]]
    assert Table(rows).sides[:4] == ["left", "right", "left", "right"]
    page = as_html("t", [], [Section("s", [Table(rows)])])
    assert '<td class="right">0.25</td>' in page and '<td class="right missing">missing</td>' in page
    assert '<td class="left">coco</td>' in page


def test_what_is_wide_stays_in_its_box() -> None:
    page = as_html("t", [], [Section("s", [Table([["a"], ["b"]])])])
    assert (
        '<div class="wide"><table>' in page and ".wide { overflow-x: auto" in page and "img { max-width: 100%" in page
    )


def test_a_curve_needs_two_values() -> None:
    page = as_html("t", [], [Section("s", [Table([["a"], ["b"], ["c"]], [[1.0, 2.0, 1.5], [1.0]])])])
    assert page.count("<polyline") == 1 and "over the epochs" in page
