"""`shoal strategies`: the presets, their options and what does not go together, from the code."""

import json
from dataclasses import fields

import pytest

from shoal.cli import main
from shoal.errors import ShoalError
from shoal.strategy.options import HogwildConfig, LocalConfig, build_strategy
from shoal.strategy.presets import PRESETS
from shoal.strategy.servers import ServersConfig
from shoal.strategy.takes import taken_by

TABLES = {"local": LocalConfig, "servers": ServersConfig, "hogwild": HogwildConfig}
VALUES = {"inner_steps": 12, "fragments": 1, "delay": 0, "warm_up": 0.1, "count": 2, "bound": 1,
          "buffer": 4, "plain": True, "journal": False, "moments": "own",
          "warm_up_with": "ddp"}  # fmt: skip


@pytest.fixture
def told(capsys):
    assert main.run(["strategies", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_option_is_there_with_what_it_is(told):
    known = {f"{table}.{f.name}" for table, kind in TABLES.items() for f in fields(kind)}
    assert {option["option"] for option in told["options"]} == known
    assert all(option["about"] and option["taken_by"] for option in told["options"])


@pytest.mark.parametrize("name", PRESETS)
def test_a_strategy_takes_what_it_is_said_to_take_and_refuses_the_rest(name):
    strategy = PRESETS[name]()
    for table, kind in TABLES.items():
        for field in fields(kind):
            key = field.name
            options = {table: kind(**{key: VALUES.get(key, 0.5)})}
            if key == "warm_up_with":
                options["local"] = LocalConfig(warm_up=0.1, warm_up_with="ddp")
            tables = {"local": LocalConfig()} | options
            if f"{table}.{key}" in taken_by(strategy):
                build_strategy(name, **tables)
            elif table != "local":  # local steps on servers have options that never apply
                with pytest.raises(ShoalError):
                    build_strategy(name, **tables)


def test_servers_and_hogwild_are_told_with_their_parts(told):
    rows = {row["name"]: row for row in told["strategies"]}
    assert rows["ssp"]["timing"] == "BoundedStaleness(bound=2)"
    assert rows["async_diloco"]["owner"] == "Servers" and rows["hogwild"]["owner"] == "SharedMemory"
    assert all(row["runs"] for row in rows.values())
    by_option = {option["option"]: option["taken_by"] for option in told["options"]}
    assert by_option["servers.bound"] == ["ssp"] and by_option["hogwild.moments"] == ["hogwild"]
    assert by_option["servers.count"] == ["sync_ps", "ssp", "async_ps", "async_diloco"]


def test_the_tables_are_printed_whole(capsys):
    assert main.run(["strategies"]) == 0
    said = capsys.readouterr().out
    for words in ("BoundedStaleness(bound=2)", "servers.compensation", "hogwild.moments",
                  "owner SharedMemory and a codec", "all but hogwild take a codec"):  # fmt: skip
        assert words in said
