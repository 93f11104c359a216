"""Multi-query associative recall: exact sizes, answers that stand in the text, and one chance."""

import pytest
from hypothesis import assume, given, settings, strategies as st

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import mqar
from qwenlab.tasks.alphabet import alphabet
from tests.tasks.solving import distances, few_letters


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def parsed(task, toy, pairs):
    return distances(task, 1 if pairs <= 52 else 2, alphabet(toy))


@settings(max_examples=40)
@given(
    pairs=st.integers(1, 70),
    questions=st.none() | st.integers(1, 70),
    spare=st.none() | st.integers(0, 90),
    seed=st.integers(0, 99),
)
def test_every_answer_is_the_value_of_its_key(toy, pairs, questions, spare, seed):
    assume(questions is None or questions <= pairs)
    asked = pairs if questions is None else questions
    shortest = (3 if pairs <= 52 else 4) * (pairs + asked) + 1
    length = None if spare is None else shortest + spare
    task = mqar(toy, pairs=pairs, questions=questions, length=length, seed=seed, count=2)
    assert {len(tokens) for tokens in task.tokens} == {length or shortest}
    assert [len(found) for found in parsed(task, toy, pairs)] == [asked, asked]
    assert (task.chance, task.answers) == (0.1, alphabet(toy).values)


@settings(max_examples=40)
@given(pairs=st.integers(1, 60), distance=st.integers(5, 300), spare=st.none() | st.integers(0, 50))
def test_every_distance_is_the_one_asked_for(toy, pairs, distance, spare):
    task = mqar(toy, pairs=pairs, distance=distance, count=2)
    asked = min(pairs, (distance - 1) // (3 if pairs <= 52 else 4))
    assert parsed(task, toy, pairs) == [[distance] * asked] * 2
    if spare is not None:
        length = len(task.tokens[0]) + spare
        longer = mqar(toy, pairs=pairs, distance=distance, length=length, count=2)
        assert {len(tokens) for tokens in longer.tokens} == {length}
        assert parsed(longer, toy, pairs) == [[distance] * asked] * 2


def test_prose_stands_where_it_makes_up_the_length(toy):
    parts = alphabet(toy)
    between = mqar(toy, pairs=3, length=30, count=1).tokens[0]
    assert set(between[9:20]) <= set(parts.haystack)
    assert (between[7], between[20]) == (parts.colon, parts.newline)
    before = mqar(toy, pairs=3, distance=12, length=30, count=1).tokens[0]
    assert set(before[:9]) <= set(parts.haystack)
    assert set(before[18:20]) <= set(parts.haystack)
    assert (before[16], before[20]) == (parts.colon, parts.newline)


def test_pairs_are_told_all_the_same_where_few_are_asked_for(toy):
    task = mqar(toy, pairs=20, distance=4, count=1)
    assert sum(token == alphabet(toy).colon for token in task.tokens[0]) == 20
    assert len(task.asked[0]) == 1


def test_it_is_the_text_that_the_toys_know(toy):
    task = mqar(toy, pairs=4, count=1)
    text = toy.tokenizer.decode(task.tokens[0])
    assert toy.tokenizer(text).input_ids == list(task.tokens[0])
    assert sorted(text.split("\n")[0].split()) == sorted(text.split("\n")[1].replace("?", ":").split())


def test_it_depends_on_the_seed_only(toy):
    assert mqar(toy, pairs=4, seed=1) == mqar(toy, pairs=4, seed=1)
    assert mqar(toy, pairs=4, seed=1).tokens != mqar(toy, pairs=4, seed=2).tokens
    assert mqar(toy, pairs=4, name="mine").tokens == mqar(toy, pairs=4).tokens
    assert mqar(toy, pairs=4, count=3).tokens == mqar(toy, pairs=4, count=9).tokens[:3]


def test_another_tokenizer_has_another_chance(toy):
    few = few_letters(toy, " a b c :? 0 1\n")
    task = mqar(few, pairs=5, count=3)
    assert task.name == "mqar(pairs=5)"
    assert distances(task, 2, alphabet(few))
    assert task.chance == 1 / len(alphabet(few).values)


@pytest.mark.parametrize(
    ("sizes", "why"),
    [
        (dict(pairs=0), r"mqar\(pairs=0\): give an integer"),
        (dict(pairs=2, questions=0), r"mqar\(questions=0\): give an integer"),
        (dict(pairs=2, length=4.5), r"mqar\(length=4.5\): give an integer"),
        (dict(pairs=2, count=0), r"mqar\(count=0\): give an integer"),
        (dict(pairs=2, questions=3), r"questions=3\): there are 2 pairs to ask for"),
        (dict(pairs=3000), r"takes 3,000 different keys"),
        (dict(pairs=8, length=48), r"length=48\): the shortest such sequence has 49 tokens"),
        (dict(pairs=8, distance=3), r"distance=3\): from a value to its question are 1 pairs of 3(.|\n)*distance of 4"),
        (dict(pairs=8, questions=2, distance=6), "Give a distance of 7 or more"),
        (dict(pairs=8, distance=40, length=50), "the shortest such sequence has 64 tokens"),
    ],
)
def test_sizes_that_cannot_be_made_are_refused(toy, sizes, why):
    with pytest.raises(BadArgument, match=why):
        mqar(toy, **sizes)
