from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.server.errors import InvalidRequest
from loragate.server.experiments.assignment import Split, Unit, bucket, is_in, unit_of

SHARES = st.floats(0.001, 0.999)
UNITS = [Unit("user", f"user-{number}") for number in range(4000)]


def test_unit_is_the_user_else_the_conversation_else_the_key():
    assert unit_of("ada", "c-1", "lg-1") == Unit("user", "ada")
    assert unit_of("", "c-1", "lg-1") == Unit("conversation", "c-1")
    assert unit_of(None, None, "lg-1") == Unit("key", "lg-1")


def test_users_and_conversations_of_one_name_are_different_units():
    user, conversation = Unit("user", "7"), Unit("conversation", "7")

    assert bucket("s", user) != bucket("s", conversation)


@given(st.text(), st.text(min_size=1))
def test_unit_always_has_the_same_bucket(salt: str, name: str):
    place = bucket(salt, Unit("user", name))

    assert 0 <= place < 1
    assert place == bucket(salt, Unit("user", name))


def test_buckets_are_even_and_unrelated_between_salts():
    first = [bucket("first", unit) for unit in UNITS]
    second = [bucket("second", unit) for unit in UNITS]

    in_first = [place < 0.1 for place in first]
    in_both = [a and b < 0.1 for a, b in zip(in_first, second, strict=True)]
    assert sum(in_first) / len(UNITS) == pytest.approx(0.1, abs=0.02)
    assert sum(in_both) / len(UNITS) == pytest.approx(0.01, abs=0.007)


@given(st.lists(SHARES, min_size=2, max_size=6).map(sorted))
def test_raising_a_rollouts_share_moves_nobody_who_was_in(shares: list[float]):
    places = [bucket("rollout", unit) for unit in UNITS[:200]]

    for lower, higher in pairwise(shares):
        assert all(is_in(place, higher) for place in places if is_in(place, lower))


@given(st.floats(0.1, 0.5), st.floats(0.1, 0.4), st.floats(0.01, 0.09))
def test_arm_that_grows_at_the_cost_of_those_after_it_loses_nobody(
    first: float, second: float, more: float
):
    rest = 1 - first - second
    before = Split.of([("a", first), ("b", second), ("c", rest)])
    after = Split.of(
        [("a", first), ("b", second + min(more, rest / 2)), ("c", rest - min(more, rest / 2))]
    )

    for unit in UNITS[:300]:
        arm = before.arm(bucket("s", unit))
        assert arm == "c" or after.arm(bucket("s", unit)) == arm


def test_arms_get_their_shares():
    split = Split.of([("a", 0.2), ("b", 0.5), ("c", 0.3)])
    arms = [split.arm(bucket("s", unit)) for unit in UNITS]

    assert [arms.count(name) / len(UNITS) for name in "abc"] == pytest.approx(
        [0.2, 0.5, 0.3], abs=0.03
    )


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        ([("a", 0.5), ("b", 0.4)], "add up to 0.9"),
        ([("a", 0.5), ("a", 0.5)], "not all different"),
        ([("a", 1.5), ("b", -0.5)], "share 1.5"),
        ([("a", 1.0), ("b", 0.0)], "share 0"),
        ([("a", float("nan")), ("b", 1.0)], "share nan"),
    ],
)
def test_shares_that_make_no_split_are_refused(shares: list[tuple[str, float]], words: str):
    with pytest.raises(InvalidRequest, match=words):
        Split.of(shares)


def test_what_is_kept_of_a_unit_is_not_its_name():
    digest = Unit("user", "ada@example.org").digest("salt")

    assert len(digest) == 16
    assert digest != Unit("user", "ada@example.org").digest("other")
