"""The phonetic benchmark's own arithmetic: sentences in names, courses of states, edits."""

from hypothesis import given
from hypothesis import strategies as st

from a2m.phonetics.inventory import PHONES
from benchmarks.phonetics import GRID_CLIPS, lip_classes, n_edits, spoken, words_of

WORDS = st.lists(st.integers(0, 3), max_size=8)


def test_a_grid_clip_s_name_spells_its_sentence() -> None:
    assert words_of("lipnet_bbaf2n_00") == "bin blue at F two now"
    assert words_of("lipnet_id2_vcd_swwp2s_00") == "set white with P two soon"
    assert all(words_of(name).count(" ") == 5 for names in GRID_CLIPS.values() for name in names)


def test_a_course_of_states_is_its_phones() -> None:
    course = [PHONES.index(name) for name in ("sil", "sil", "m", "m", "a", "a", "b", "a", "a", "sil", "sil", "m", "m")]
    assert "".join(PHONES[k] for k in spoken(course)) == "mam"  # a single state is a slip
    assert "".join(PHONES[k] for k in spoken(course, least=1)) == "mabam"


@given(WORDS, WORDS, WORDS)
def test_edits_are_a_distance(a: list[int], b: list[int], c: list[int]) -> None:
    assert n_edits(a, a) == 0 and n_edits(a, b) == n_edits(b, a)
    assert abs(len(a) - len(b)) <= n_edits(a, b) <= max(len(a), len(b))
    assert n_edits(a, c) <= n_edits(a, b) + n_edits(b, c)


def test_edits_of_kitten_and_sitting() -> None:
    assert n_edits("kitten", "sitting") == 3


def test_bilabials_look_alike_and_not_like_vowels() -> None:
    p, b, m, a, k = lip_classes([PHONES.index(name) for name in ("p", "b", "m", "a", "k")])
    assert p == b == m != a and k not in (p, a)
