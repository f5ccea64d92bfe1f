from itertools import product

import pytest

from loragate.adapters.errors import IllegalMove
from loragate.adapters.registry.states import LEGAL_MOVES, AdapterState, move

TABLE = {
    "PUBLISHED": {"LOADING", "RETIRED"},
    "LOADING": {"READY", "FAILED", "PUBLISHED"},
    "READY": {"DRAINING", "LOADING", "PUBLISHED"},
    "DRAINING": {"PUBLISHED", "READY", "RETIRED"},
    "FAILED": {"LOADING", "PUBLISHED", "RETIRED"},
    "RETIRED": set[str](),
}


@pytest.mark.parametrize(("current", "wanted"), list(product(AdapterState, AdapterState)))
def test_a_version_moves_as_the_table_says_and_no_other_way(
    current: AdapterState, wanted: AdapterState
):
    if wanted in TABLE[current]:
        assert move(current, wanted) is wanted
        return
    with pytest.raises(IllegalMove, match=f"{current} cannot become {wanted}"):
        move(current, wanted)


def test_every_state_can_be_reached_and_only_retirement_is_final():
    reached = {AdapterState.PUBLISHED}.union(*LEGAL_MOVES.values())

    assert reached == set(AdapterState) == set(LEGAL_MOVES)
    assert [state for state, legal in LEGAL_MOVES.items() if not legal] == [AdapterState.RETIRED]
