"""How workers find each other, agree on small things, and learn who is gone."""

import os
import sys
import time

import pytest
from processes import attempt, run

from shoal.errors import ShoalError
from shoal.world.fork import fork_workers
from shoal.world.join import join_world
from shoal.world.launch import PEER_LOST, launch
from shoal.world.seat import Seat, find_seat, seat_size
from shoal.world.world import PeerLost, World

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "45123",
    "SLURM_JOB_NODELIST": "node[07-09,12],login1",
}


def test_torchruns_variables_are_a_seat():
    assert find_seat(TORCHRUN) == Seat(rank=3, size=8, local_rank=1, address="node7:29400")


def test_slurms_variables_are_a_seat_with_a_port_that_all_tasks_compute_alike():
    assert find_seat(SLURM) == Seat(rank=3, size=8, local_rank=1, address="node07:25123")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("localhost", "localhost"), ("a1,a2", "a1"), ("n[3-5]", "n3"), ("rack[01,04]", "rack01")],
)
def test_the_first_host_of_a_slurm_list_is_the_meeting_point(nodes, first):
    assert find_seat(SLURM | {"SLURM_JOB_NODELIST": nodes}).address == f"{first}:25123"


def test_master_variables_win_over_slurms():
    chosen = {"MASTER_ADDR": "here", "MASTER_PORT": "1234"}
    assert find_seat(SLURM | chosen).address == "here:1234"


def test_a_plain_process_is_alone():
    assert find_seat({}) == Seat() and seat_size({}) is None
    assert seat_size(TORCHRUN) == seat_size(SLURM) == 8


def test_a_slurm_job_of_one_task_is_alone():
    assert find_seat(SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) == Seat()
    batch_script = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert find_seat(batch_script) == Seat() and seat_size(batch_script) is None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"RANK": "8"}, "RANK is 8, but WORLD_SIZE is 8"),
        ({"RANK": "x"}, "RANK is 'x', not a number"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '', not a number"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR and MASTER_PORT must be set"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(change, told):
    with pytest.raises(ShoalError, match=told):
        find_seat(TORCHRUN | change)


def test_a_slurm_variable_that_is_no_number_is_named():
    with pytest.raises(ShoalError, match="SLURM_NTASKS is 'many', not a number"):
        find_seat(SLURM | {"SLURM_NTASKS": "many"})


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK"])
def test_a_missing_variable_is_named(name):
    with pytest.raises(ShoalError, match=f"WORLD_SIZE is set but {name} is not"):
        find_seat({key: value for key, value in TORCHRUN.items() if key != name})


# --- in company ---


def exchanging():
    world = join_world()
    said = [world.exchange("a", world.rank), world.exchange("b", {"square": world.rank**2})]
    return said, world.one_host, world.leads_host


def test_everybody_hears_everybody_in_order():
    for rank, (said, one_host, leads) in enumerate(run(3, exchanging)):
        assert said == [[0, 1, 2], [{"square": 0}, {"square": 1}, {"square": 4}]]
        assert one_host and leads == (rank == 0)


def leaving(how):
    world = join_world()
    if world.rank == 1:
        if how == "says why":
            world.fail("the disk is on fire")
        os._exit(3)
    began = time.monotonic()
    try:
        world.exchange("anything", None)
    except PeerLost as lost:
        world.fail(str(lost))  # as a worker does, so that the last one learns who was the first
        assert time.monotonic() - began < 10
        raise


@pytest.mark.parametrize(
    ("how", "told"), [("says why", "worker 1: the disk is on fire"), ("silently", "worker 1 ")]
)
def test_a_worker_that_leaves_is_named_to_the_others_at_once(how, told):
    outcomes = attempt(3, leaving, how)
    for rank in (0, 2):
        kind, message, _ = outcomes[rank][1]
        assert kind == "PeerLost" and told in message


def dying_while_joining():
    rank, opening = int(os.environ["RANK"]), os.pidfd_open

    def late(process):
        if rank == 1:
            os._exit(3)
        while rank == 0 and process == others[1] and os.path.exists(f"/proc/{process}"):
            time.sleep(0.01)
        return opening(process)

    os.pidfd_open = late
    others = {}
    exchange = World.exchange

    def noted(self, label, value, **more):
        said = exchange(self, label, value, **more)
        others.update(enumerate(one["process"] for one in said))
        return said

    World.exchange = noted
    world = join_world()
    World.exchange = exchange
    world.exchange("anything", None)


def test_a_worker_that_ends_while_joining_is_named_by_those_who_saw_another_end_after_it():
    outcomes = attempt(3, dying_while_joining)
    for rank in (0, 2):
        kind, message, _ = outcomes[rank][1]
        assert kind == "PeerLost" and "worker 1 " in message


def dawdling():
    world = join_world()
    if world.rank == 1:
        time.sleep(2)
    else:
        world.exchange("supper", None, patience=0.3)


def test_a_worker_that_is_late_is_named_with_what_it_is_late_for():
    kind, message, _ = attempt(2, dawdling)[0][1]
    assert kind == "PeerLost"
    assert message.startswith("worker 1 did not arrive within 0 s at 'supper'")


def test_a_worker_alone_needs_nobody():
    world = join_world({})
    assert (world.rank, world.size, world.exchange("x", 5)) == (0, 1, [5])


# --- forks, for proofs ---


def numbers():
    return fork_workers(3, lambda: os.environ["RANK"] + "/" + os.environ["WORLD_SIZE"])


def test_forked_workers_answer_by_rank():
    assert run(1, numbers) == [["0/3", "1/3", "2/3"]]


def faults(kind):
    def act():
        if os.environ["RANK"] == "1":
            if kind == "killed":
                os.kill(os.getpid(), 9)
            raise ShoalError("no more bread")

    try:
        fork_workers(2, act)
    except ShoalError as error:
        return str(error)


@pytest.mark.parametrize(
    ("kind", "told"),
    [("killed", "worker 1 was killed by SIGKILL"), ("fault", "worker 1: no more bread")],
)
def test_a_forked_workers_end_is_told_with_its_name(kind, told):
    assert run(1, faults, kind) == [told]


@pytest.mark.parametrize("failed", [0, 1])
def test_a_launch_ends_as_the_worker_that_failed_first_and_not_as_those_that_missed_it(
    failed, monkeypatch
):
    monkeypatch.setattr("shoal.world.launch.time.sleep", lambda _, nap=time.sleep: nap(1.0))
    program = f"import os, sys; sys.exit(1 if os.environ['RANK'] == '{failed}' else {PEER_LOST})"
    assert launch([sys.executable, "-c", program], 2, threads=1) == 1  # both end in one nap
