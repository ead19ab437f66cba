"""Board records: the pins of independent board files, and look-up by name."""

from __future__ import annotations

import pytest
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.icesugar import ICESugarPlatform

from boards.records import BOARDS, ICEBREAKER, ICESUGAR, find
from boards.toolchain import Cells
from compiler.errors import UsageError

PLATFORMS = [(ICEBREAKER, ICEBreakerPlatform), (ICESUGAR, ICESugarPlatform)]

LEDS = {"icebreaker": {"error": "led_r", "busy": "led_g"}} | {
    "icesugar": {"error": "led_r", "busy": "led_g", "alive": "led_b"}
}

LED_DRIVER_PINS = {"39": 0, "40": 1, "41": 2}
"""Pads of the constant-current driver in the SG48 package, and their channels."""


def resources_of(platform):
    """Pin numbers, and inversion, by dotted names of resources."""
    found = {}
    for resource in platform.resources:
        for part in resource.ios:
            if hasattr(part, "names"):
                found.setdefault(resource.name, (part.names, part.invert))
            elif hasattr(part, "ios"):
                pins = part.ios[0]
                found.setdefault(f"{resource.name}.{part.name}", (pins.names, pins.invert))
    return found


@pytest.mark.parametrize(
    ("board", "platform"), PLATFORMS, ids=lambda item: getattr(item, "name", "")
)
def test_pins(board, platform):
    resources = resources_of(platform)
    assert resources["clk12"][0] == [board.clock_pin.location]
    for name in ("rx", "tx"):
        assert resources[f"uart.{name}"][0] == [board.pins[name].location]
    for name in ("clk", "copi", "cipo"):
        assert resources[f"spi_flash_1x.{name}"][0] == [board.pins[f"flash_{name}"].location]
    assert resources["spi_flash_1x.cs"][0] == [board.pins["flash_cs_n"].location]
    for name, led in LEDS[board.name].items():
        pin = board.pins[name]
        assert resources[led][0] == [pin.location]
        assert resources[led][1] == (pin.inverted or pin.led_driver is not None)
    assert (platform.device.lower(), platform.package.lower()) == (
        f"ice40{board.device}",
        board.package,
    )


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_record(board):
    """What must hold of any board."""
    locations = [board.clock_pin.location, *(pin.location for pin in board.pins.values())]
    assert len(set(locations)) == len(locations)
    assert {"rx", "tx", "alive", "busy", "error"} <= set(board.pins)
    for pin in board.pins.values():
        assert pin.led_driver == LED_DRIVER_PINS.get(pin.location)
    assert board.flash.image_offset % (1 << 16) == 0
    assert board.flash.image_offset >= 104_090
    assert board.programmers
    assert set(Cells.__slots__) >= set(type(board.budget).__slots__)


def test_names_are_unique():
    names = [name for board in BOARDS for name in (board.name, *board.aliases)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["icebreaker", "ice40"])
def test_find(name):
    assert find(name) is ICEBREAKER


def test_find_unknown():
    with pytest.raises(
        UsageError, match=r"^board must be one that is known, not 'icebraker'$"
    ) as e:
        find("icebraker")
    assert e.value.hint.startswith("did you mean 'icebreaker'? known boards: icebreaker, ice40")


def test_find_unlike_any():
    with pytest.raises(UsageError) as error:
        find("xyz")
    assert error.value.hint.startswith("known boards: ")
