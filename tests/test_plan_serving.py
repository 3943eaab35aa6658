"""What a run on servers would cost, by hand; `test_report_free.py` measures one."""

import pytest
import torch

from shoal.exchange.layout import lay_out
from shoal.plan.serving import commits_a_step, contributions_a_step, plan_serving
from shoal.strategy.options import LocalConfig, build_strategy
from shoal.strategy.servers import ServersConfig
from shoal.train.config import BatchConfig

BATCH = BatchConfig(global_batch=16, micro_batch=2)  # 8 leaves


def plan(name: str, *, workers=2, servers=1, local=None, **options):
    strategy = build_strategy(name, local or LocalConfig(warm_up=None),
                              servers=ServersConfig(count=servers, **options))  # fmt: skip
    named = [("w", torch.nn.Parameter(torch.empty(1024, 64, device="meta")))]
    layout = lay_out(named, servers)
    return plan_serving(strategy, layout, BATCH, workers, moments=2), 4 * layout.elements


@pytest.mark.parametrize(("workers", "expected"), [(1, 1), (2, 2), (3, 4), (4, 4), (8, 8)])
def test_a_step_is_lent_in_nodes_of_its_tree(workers, expected):
    # 3 workers want 2.67 leaves each, and no node has 3.
    assert (
        contributions_a_step(build_strategy("sync_ps", LocalConfig()), BATCH, workers) == expected
    )


def test_every_contribution_crosses_once_and_every_lease_pulls_everything():
    found, whole = plan("sync_ps")
    assert (found.worker_sends, found.worker_receives) == (whole, whole)
    assert (found.server_receives, found.server_sends) == (2 * whole, 2 * whole)
    found, whole = plan("sync_ps", workers=3)
    assert found.worker_sends == round(whole * 4 / 3)


def test_servers_share_the_bytes_and_the_memory():
    one, whole = plan("async_ps")
    two, _ = plan("async_ps", servers=2)
    assert two.server_receives == one.server_receives / 2 and two.worker_sends == whole
    assert two.server_memory["optimizer"] == one.server_memory["optimizer"] / 2 == whole


def test_local_steps_divide_the_bytes():
    gradient, _ = plan("async_ps")
    delta, whole = plan("async_diloco", local=LocalConfig(inner_steps=4, warm_up=0))
    assert delta.worker_sends == gradient.worker_sends / 4
    assert delta.server_memory["outer optimizer"] == 2 * whole


def test_a_codec_shortens_both_ways():
    _, whole = plan("async_ps")
    coded, _ = plan("async_ps+int8")
    assert coded.worker_sends == pytest.approx(whole * 17 / 64, rel=0.05)  # a scale for each 64
    assert coded.worker_receives == pytest.approx(coded.worker_sends, rel=0.01)
    # Where every contribution is a commit, a worker hears of all of them.
    each, _ = plan("async_ps+int8", buffer=1)
    assert each.worker_receives == pytest.approx(2 * coded.worker_receives, rel=0.01)


def test_commits_follow_the_buffer():
    def commits(**options):
        strategy = build_strategy("async_ps", LocalConfig(), servers=ServersConfig(**options))
        return commits_a_step(strategy, BATCH, 4.0)

    assert (commits(), commits(buffer=1), commits(buffer=8)) == (1, 4, 2)


def test_a_receive_buffer_for_every_contribution_that_may_wait():
    _, part = plan("sync_ps")
    assert plan("sync_ps")[0].server_memory["receive buffers"] == 2 * part
    assert plan("ssp", bound=2)[0].server_memory["receive buffers"] == 6 * part
    kept = plan("async_ps", compensation=0.04)[0].server_memory
    assert kept["what workers compute from"] == 2 * part
