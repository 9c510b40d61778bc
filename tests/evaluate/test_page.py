from __future__ import annotations

from pathlib import Path

from aegis.evaluate.page import Page, Section, markdown_table, plain


def test_marks_are_shown_and_lines_joined() -> None:
    assert plain("a|b\n*c* <i> [d](e) `f`") == "a\\|b \\*c\\* &lt;i&gt; \\[d\\](e) \\`f\\`"


def test_a_table_has_a_row_for_each() -> None:
    table = markdown_table(("a", "b"), [("1", "x|y")])
    assert table == "| a | b |\n| --- | ---: |\n| 1 | x\\|y |"


def test_a_page_is_one_file_with_everything_in_it(tmp_path: Path) -> None:
    picture = tmp_path / "one_picture.png"
    picture.write_bytes(b"png")
    section = Section("<s>", "text", [picture], ("a",), [("<b>",)], ["held"], ["<i>"])
    page = Page("T", ["<lead>"], [section])
    html = page.html()
    assert '<img alt="one picture" src="data:image/png;base64,cG5n">' in html
    assert '<tr class="held"><td>&lt;b&gt;</td></tr>' in html
    assert "<p>&lt;lead&gt;</p>" in html
    assert "width=device-width" in html
    assert page.markdown() == (
        "# T\n\n&lt;lead&gt;\n\n## &lt;s&gt;\n\ntext\n\n![one picture](figures/one_picture.png)\n\n"
        "| a |\n| --- |\n| &lt;b&gt; |\n\n- &lt;i&gt;\n"
    )
