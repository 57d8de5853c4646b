"""What may be combined with what, and why not the rest.

Problem: a mixing rule that is fine for one protocol silently ruins another: a median of push-sum's numerators is a number
without meaning, and nothing crashes. Idea: one table, looked at when settings are read, and a refusal that gives the reason.

A protocol that lets its operator choose has a setting `mixing`; the table has a row for each protocol, also for those
without the setting, so that the answer to `mixing = "median"` is more than "unknown setting". A protocol from elsewhere
has no row: it is taken at its word, unless it declares that it depends on the mean and offers rules that do not keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from gossip.decentralized.mixing.rules import MIXINGS, ROBUST
from gossip.errors import InvalidSettings


@attrs.frozen(kw_only=True)
class Row:
    """How one protocol combines; a text is the reason why something is refused."""

    conserves_mean: str
    """Whether mixing keeps the mean of all models: "yes", "no", or what is kept instead."""
    corrected: str | None = None
    """Why not variance-corrected; None: it may be."""
    robust: str | None = None
    """Why not median or trimmed mean; None: they may be used."""
    asynchronous: bool
    """Nodes need not wait for each other."""


_MASS: Final = (
    "its estimate is a quotient of sums over all nodes, and every rule but the sum destroys their mass;"
    " clip what a node adds instead"
)
_PAIR_SUMS: Final = (
    "its convergence rests on pairwise exchanges that leave the sum over all nodes at zero change"
)
_TWO: Final = "two models meet at a time, and of two none can be told to be the lie"
_ONE_LINE: Final = "there is one line of models that begins with a common one, so that the correction would always be 1"

TABLE: Final[Mapping[str, Row]] = {
    "dpsgd": Row(conserves_mean="yes", asynchronous=False),
    "dfedsam": Row(conserves_mean="yes", asynchronous=False),
    "epidemic": Row(conserves_mean="with sampling = oracle", asynchronous=False),
    "ad-psgd": Row(conserves_mean="yes", robust=_TWO, asynchronous=True),
    "partitioned": Row(conserves_mean="no", robust=_TWO, asynchronous=True),
    "push-sum": Row(
        conserves_mean="yes, with what is in flight",
        corrected=_MASS,
        robust=_MASS,
        asynchronous=True,
    ),
    "dadao": Row(
        conserves_mean="sums of z", corrected=_PAIR_SUMS, robust=_PAIR_SUMS, asynchronous=True
    ),
    "a2cid2": Row(
        conserves_mean="sums of x and its twin",
        corrected=_PAIR_SUMS,
        robust=_PAIR_SUMS,
        asynchronous=True,
    ),
    "noloco": Row(
        conserves_mean="through the outer step",
        corrected="its outer momentum is a linear recursion, and stays stable only as one",
        robust=_TWO,
        asynchronous=False,
    ),
    "modest": Row(conserves_mean="one line of models", corrected=_ONE_LINE, asynchronous=True),
    "token-walk": Row(
        conserves_mean="one token",
        corrected="one token carries the only model, and nothing is averaged",
        robust="one token carries the only model: each step is trusted, there is nothing to vote on",
        asynchronous=True,
    ),
}


def check(
    protocol: str, raw: Mapping[str, Any], fields: tuple[str, ...], *, depends_on_mean: bool = False
) -> None:
    """Look at a protocol's raw settings before they are converted.

    Args:
        protocol: its name.
        raw: the `[run.protocol_settings]` table.
        fields: names of the settings that it has.
        depends_on_mean: for one without a row: it is wrong with a mixing rule that does not keep the mean.

    Raises:
        InvalidSettings: a combination that is not allowed, with the reason; or an option of a rule that is not chosen.
    """
    mixing = raw.get("mixing", "mean")
    if not isinstance(mixing, str):
        return  # conversion will say what is wrong with it
    row = TABLE.get(protocol)
    reason = None
    if row is not None:
        reason = row.corrected if mixing == "variance-corrected" else None
        reason = row.robust if mixing in ROBUST else reason
    elif depends_on_mean and mixing in MIXINGS and mixing != "mean":
        reason = "it depends on a sum over all nodes that only the mean keeps"
    if reason is not None:
        hint = 'leave "mixing" out'
        if "mixing" in fields:
            hint = f"choose another rule: {', '.join(m for m in MIXINGS if not _refused(row, m))}"
        raise InvalidSettings(
            f"protocol {protocol!r} does not combine with mixing = {mixing!r}: {reason}", hint=hint
        )
    if "mixing" not in fields:
        return
    for option, rule in (("variance_target", "variance-corrected"), ("trim", "trimmed-mean")):
        if option in fields and raw.get(option) is not None and mixing != rule:
            raise InvalidSettings(
                f"protocol {protocol!r}: {option} says nothing with mixing = {mixing!r}",
                hint=f'set mixing = "{rule}", or leave {option} out',
            )


def check_trim(protocol: str, mixing: str, trim: int | None, models: int | None) -> None:
    """Refuse a trimmed mean with nothing left to average.

    Args:
        protocol: its name.
        mixing: the rule that is chosen.
        trim: as set; 1 unless set.
        models: what a node has to mix in a round at most, its own included; None if that depends on how many nodes there are.

    Raises:
        InvalidSettings: every node would keep its own model for ever.
    """
    dropped = 2 * (1 if trim is None else trim)
    if mixing == "trimmed-mean" and models is not None and models <= dropped:
        raise InvalidSettings(
            f"protocol {protocol!r}: of {models} models in a round, trim drops {dropped}: nothing is ever mixed",
            hint="take a graph with more neighbours (degree, fanout), or a smaller trim",
        )


def _refused(row: Row | None, mixing: str) -> bool:
    if row is None:
        return mixing != "mean"
    if mixing in ROBUST:
        return row.robust is not None
    return mixing == "variance-corrected" and row.corrected is not None
