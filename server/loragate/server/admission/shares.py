"""How much one tenant may hold of what all tenants share: running sequences, slots, the queue.

What is running cannot be taken back, so a fair order alone does not help whoever comes when all is
taken: something has to be free already. Where a server has several tenants, none may take the last
of anything, however little the others ask for at the moment; whoever holds nothing may.

Sequences and the queue follow dynamic thresholds (Choudhury and Hahne, IEEE/ACM Transactions on
Networking 6(2), 1998): one more only while what a tenant holds is at most so many times what stays
free. The threshold falls by itself as more tenants come, and some room is always left.
"""

from dataclasses import dataclass

_SEQUENCES_PER_FREE_ONE = 4  # so a tenant alone runs four fifths
_QUEUED_PER_FREE_ONE = 1  # and fills half of the queue


@dataclass(frozen=True, slots=True)
class TenantCaps:
    """What the operator allows each tenant; 0 leaves it to this module."""

    max_sequences: int = 0
    max_loras: int = 0
    max_queued: int = 0


AUTOMATIC = TenantCaps()


@dataclass(frozen=True, slots=True)
class Shares:
    """Whether a tenant that holds `held`, while `free` are left, may have one more."""

    caps: TenantCaps
    is_shared: bool
    """Whether there are other tenants at all."""

    def may_run(self, held: int, free: int) -> bool:
        """A further sequence. It runs until its answer ends."""
        return self._may_have(self.caps.max_sequences, held, free, _SEQUENCES_PER_FREE_ONE)

    def may_wait(self, held: int, free: int) -> bool:
        """A further request in the queue."""
        return self._may_have(self.caps.max_queued, held, free, _QUEUED_PER_FREE_ONE)

    def most_loras(self, slots: int) -> int:
        """How many of the engine's slots for adapters one tenant may hold for its requests.

        Half of them, rounded up, unless the operator says otherwise. A slot is held as long as any
        answer of its version, so those of one tenant must not be all that there are.
        """
        if self.caps.max_loras:
            return min(self.caps.max_loras, slots)
        return (slots + 1) // 2 if self.is_shared else slots

    def may_hold_slot(self, held: int, free: int, slots: int) -> bool:
        """A further slot. The last free one is for a tenant that has none, unless the operator has
        said how many each may hold.
        """
        if free < 1 or held >= self.most_loras(slots):
            return False
        return held == 0 or free > 1 or not self.is_shared or self.caps.max_loras > 0

    def _may_have(self, cap: int, held: int, free: int, times: int) -> bool:
        if free < 1:
            return False
        if cap:
            return held < cap
        return not self.is_shared or held == 0 or held + 1 <= times * (free - 1)
