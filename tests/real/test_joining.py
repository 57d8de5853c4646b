"""Joining with real daemons: the newcomer's story, a race over a killed issuer, refusals, and no secret anywhere."""

import base64
import os
import random
import signal
import textwrap

import psutil
import pytest
import trio

from node.errors import NodedError
from node.joining.asking import redeem
from node.joining.code import InviteCode
from node.joining.enter import over_tcp
from node.joining.reasons import JoinRefused, Reason
from node.joining.redeemer import Joined, Redeemer
from tests.real.cluster import Cluster
from tests.real.machines import Machine, everything_written
from transport.address import Address
from transport.identity import Identity

pytestmark = pytest.mark.real
NEWCOMERS = 100


@pytest.fixture
def cluster(tmp_path):
    with Cluster(tmp_path) as cluster:
        yield cluster


def test_the_story_of_a_newcomer(cluster):
    """Two machines, three commands each, and both know who invited whom."""
    attic = Machine(cluster, "attic").found("S").up()
    code = attic.noded("invite", "--local").strip()
    assert "keep it private" in attic.said
    barn = Machine(cluster, "barn").joined(textwrap.wrap(code, 30)).up()  # as mail would break it
    barn.until(lambda status: len(status["peers"]) == 1, "attic as a peer")
    for machine in (attic, barn):
        rows = machine.members()
        assert rows[barn.node_id]["inviter"] == attic.node_id
        assert rows[attic.node_id]["inviter"] == "root"
        assert {row["state"] for row in rows.values()} == {"member"}
    assert "barn" in attic.noded("members")
    assert "joined" in attic.noded("members", "--history")
    (row,) = attic.get("/v1/invites")["invites"]
    assert (row["state"], row["used"][0]["node"]) == ("used-up", barn.node_id)

    late = Machine(cluster, "late")
    error = late.json("join", "-", stdin=code, code=8)
    assert "used up" in error["error"]
    assert error["hint"]
    assert not late.paths.config_file.exists()

    # Out again: the daemon ends, what made it a member is gone, the rest is there.
    runs = barn.paths.runs / "old"
    runs.mkdir(parents=True)
    left = barn.json("leave", "--yes")
    assert barn.wait() == 0
    assert {"certificate", "swarm.key", "node.key"} <= set(left["removed"])
    assert left["announced"] is True
    assert {"noded.toml", "runs", "noded.log"} <= set(left["kept"])
    assert not barn.paths.node_key.exists()
    assert runs.exists()
    barn.noded("leave", "--yes", code=1)
    # And in again, as somebody new, with the configuration that was kept.
    again = attic.invite()
    assert barn.json("join", "-", stdin=again)["config_kept"] is True
    barn.up()
    barn.until(lambda status: len(status["peers"]) == 1, "attic as a peer again")


def test_refusals_of_a_real_issuer(cluster):
    attic = Machine(cluster, "attic").found("S").up()
    other = Machine(cluster, "other")
    assert "listens for this machine alone" in attic.json("invite", code=4)["error"]

    brief = attic.json("invite", "--local", "--expires", "1s")
    taken_back = attic.post("/v1/invites", local=True)
    assert taken_back["code"] != brief["code"]
    attic.noded("invite", "--withdraw", taken_back["id"][:8])
    assert "taken back" in other.json("join", "-", stdin=taken_back["code"], code=8)["error"]
    cluster.wait(
        lambda: (
            {row["state"] for row in attic.json("invite", "--list")["invites"]}
            == {"expired", "withdrawn"}
        ),
        "the end of the invite",
    )
    assert "expired" in other.json("join", "-", stdin=brief["code"], code=8)["error"]

    code = attic.invite(role="observer")
    wrong = code[:60] + ("a" if code[60] != "a" else "b") + code[61:]
    assert "not an invite code" in other.json("join", wrong, code=2)["error"]
    genuine = InviteCode.parse(code)
    made_up = InviteCode(
        swarm_id=genuine.swarm_id,
        issuer=genuine.issuer,
        secret=bytes(16),
        expires_s=genuine.expires_s,
        addresses=genuine.addresses,
    )
    assert "does not know it" in other.json("join", made_up.text, code=8)["error"]
    foreign = Machine(cluster, "foreign").found("T")
    assert "root key of another swarm" in foreign.json("join", "-", stdin=code, code=8)[
        "error"
    ] or ("another swarm" in foreign.json("join", "-", stdin=code, code=8)["error"])
    attic.stop()
    assert "no member of the swarm answers" in other.json("join", "-", stdin=code, code=6)["error"]
    # The invite is as good as before after a restart, the request was the same node's all along.
    attic.up()
    path = cluster.home / "code"
    path.write_text(code)
    assert other.json("join", "--file", str(path))["role"] == "observer"


def test_no_secret_is_seen_anywhere(cluster):
    attic = Machine(cluster, "attic").found("S").up()
    code = attic.invite(uses=2)
    secret = InviteCode.parse(code).secret
    barn = Machine(cluster, "barn").joined("-", stdin=code).up()
    barn.until(lambda status: len(status["peers"]) == 1, "attic as a peer")
    shown = [
        repr(machine.get(f"/v1/{document}")).encode()
        for machine in (attic, barn)
        for document in ("status", "peers", "members", "invites", "netcheck", "id")
    ]
    shown.append(everything_written(cluster))
    for process in psutil.process_iter():
        try:
            shown.append(" ".join(process.cmdline()).encode())
            if str(cluster.home).encode() in shown[-1]:
                shown.append(repr(process.environ()).encode())
        except psutil.Error:
            continue
    swarm_key = attic.paths.swarm_key.read_text().strip()
    forms = [secret, secret.hex().encode(), base64.b64encode(secret), code.encode()]
    forms += [code.replace("-", "")[90:116].encode(), swarm_key.encode()]
    for form in forms:
        assert not any(form in text for text in shown), form


async def crowd(code: InviteCode, doors: list[Address], kill, newcomers: int) -> list:
    """Everybody asks at two of the doors in an order of their own, until there is an answer."""
    rng, outcomes = random.Random(1), []

    async def newcomer(number: int) -> None:
        identity = Identity.generate(os.urandom)
        for _ in range(100):
            asking = Redeemer(code, identity, os.urandom)
            ways = rng.sample(doors, 2)
            try:
                joined = await redeem(asking, ways, over_tcp(code.swarm_id, identity))
            except JoinRefused as error:
                if error.reason not in {Reason.ISSUER_UNREACHABLE, Reason.BUSY}:
                    outcomes.append(error.reason)
                    return
            except NodedError:
                pass  # nobody answered: again
            else:
                outcomes.append(joined)
                return
            await trio.sleep(rng.uniform(0.5, 2))
        raise AssertionError(f"newcomer {number} never got an answer")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        for number in range(newcomers):
            nursery.start_soon(newcomer, number)
    return outcomes


def test_one_of_hundred_wins_through_three_nodes_while_the_issuer_is_killed(cluster):
    attic = Machine(cluster, "attic").found("S").up()
    helpers_code = attic.invite(uses=2)
    helpers = [Machine(cluster, name).joined(helpers_code).up() for name in ("barn", "cellar")]
    for helper in helpers:
        helper.until(lambda status: len(status["peers"]) >= 1, "a peer")
    code = InviteCode.parse(attic.invite())
    doors = [Address.parse(machine.address()) for machine in (attic, *helpers)]

    async def kill() -> None:
        for _ in range(2):
            await trio.sleep(0.7)
            attic.send(signal.SIGKILL)
            await trio.to_thread.run_sync(attic.wait)
            attic.start()  # in the main thread: the daemon ends with the thread that starts it

    outcomes = trio.run(crowd, code, doors, kill, NEWCOMERS)
    winners = [each for each in outcomes if isinstance(each, Joined)]
    assert len(outcomes) == NEWCOMERS
    assert len(winners) == 1
    assert {each for each in outcomes if not isinstance(each, Joined)} == {Reason.USED_UP}
    attic.ready()
    row = next(each for each in attic.get("/v1/invites")["invites"] if each["id"] == code.id.hex())
    assert [use["node"] for use in row["used"]] == [str(winners[0].chain.node_id)]


def test_a_revoked_node_is_out_and_stays_out(cluster):
    attic = Machine(cluster, "attic").found("S").up()
    code = attic.invite(uses=2)
    barn, cellar = (
        Machine(cluster, name).joined("-", stdin=code).up() for name in ("barn", "cellar")
    )

    def connected(machine: Machine) -> set[str]:
        rows = machine.get("/v1/peers")["peers"]
        return {row["name"] for row in rows if row["state"] not in {"lost", "left"}}

    everybody = {"attic", "barn", "cellar"}
    for machine in (attic, barn, cellar):
        cluster.wait(lambda m=machine: connected(m) == everybody - {m.name}, "the other two")
    assert "may not revoke" in cellar.json("revoke", "barn", code=8)["error"]
    out = attic.json("revoke", "barn", "--reason", "stolen")
    assert out["node"] == barn.node_id
    for machine in (attic, cellar):
        cluster.wait(lambda m=machine: "barn" not in connected(m), "barn to be out")
        row = cluster.wait(
            lambda m=machine: (
                m.members()[barn.node_id]["state"] == "revoked" and m.members()[barn.node_id]
            ),
            "the word of it",
        )
        assert "stolen" in row["why"]
    (event,) = [row for row in cellar.get("/v1/members")["history"] if row["event"] == "revoked"]
    assert (event["node"], event["by"], event["detail"]) == (barn.node_id, attic.node_id, "stolen")
    # Neither with the certificate that it has, nor with another one for the same key.
    barn.stop()
    barn.up()
    cellar.stop()
    cellar.up()
    cluster.wait(lambda: connected(cellar) == {"attic"}, "attic after a restart")
    assert connected(barn) == set()
    again = attic.invite()
    assert "revoked" in barn.json("join", "-", stdin=again, code=8)["error"]
