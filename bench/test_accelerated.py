"""The table of docs/accelerate.md: rows of one machine stand together, and a newer one replaces."""

from bench.accelerated import BEGIN, END, updated

HEADINGS = ["network", "replaced"]


def test_rows_move_to_the_table_of_their_machine():
    text = f"before\n{BEGIN}\n{END}\nafter\n"
    text = updated(text, "*one.*", HEADINGS, [["HAT", "36"], ["SRFormer, M", "36"]])
    text = updated(text, "*two.*", HEADINGS, [["HAT", "42"], ["DAT, light", "9"]])
    block = text.split(BEGIN)[1].split(END)[0].split("*two.*")
    assert "| SRFormer, M | 36 |" in block[0] and "HAT" not in block[0]
    assert block[1].index("| HAT | 42 |") < block[1].index("| DAT, light | 9 |")
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    same = updated(text, "*two.*", HEADINGS, [["HAT", "42"]])
    assert same == text
    moved = updated(text, "*two.*", HEADINGS, [["SRFormer, M", "35"]])
    assert "*one.*" not in moved and "| SRFormer, M | 35 |" in moved
