"""Board records: the pins of independent board files, and look-up by name."""

from __future__ import annotations

import pytest
from amaranth_boards.ice40_hx8k_b_evn import ICE40HX8KBEVNPlatform
from amaranth_boards.icebreaker import ICEBreakerPlatform
from amaranth_boards.icesugar import ICESugarPlatform
from amaranth_boards.ulx3s import ULX3S_25F_Platform

from boards.records import BOARDS, HX8K, ICEBREAKER, ICESUGAR, ULX3S_25F, find
from boards.toolchain import FAMILIES, Cells
from compiler.errors import UsageError
from hw.sdram import sdram_pins

PLATFORMS = [
    (ICEBREAKER, ICEBreakerPlatform),
    (ICESUGAR, ICESugarPlatform),
    (HX8K, ICE40HX8KBEVNPlatform),
    (ULX3S_25F, ULX3S_25F_Platform),
]

ROW = {"ready": ("led", 0), "busy": ("led", 1), "error": ("led", 2)}
LEDS = {
    "icebreaker": {"error": ("led_r", 0), "busy": ("led_g", 0)},
    "icesugar": {"error": ("led_r", 0), "busy": ("led_g", 0), "ready": ("led_b", 0)},
    "hx8k": ROW,
    "ulx3s-25f": ROW,
}
FLASH = {"ulx3s-25f": "spi_flash"}
DEVICES = {"25k": "lfe5u-25f", "CABGA381": "bg381"}
"""nextpnr's names, and the vendor's."""

LED_DRIVER_PINS = {"39": 0, "40": 1, "41": 2}
"""Pads of the constant-current driver in the SG48 package, and their channels."""


def resources_of(platform):
    """Pin numbers, and inversion, by dotted names of resources; of an LED, by name and number."""
    found = {}
    for resource in platform.resources:
        for part in resource.ios:
            if hasattr(part, "names"):
                found.setdefault(resource.name, (part.names, part.invert))
                found[resource.name, resource.number] = part.names, part.invert
            elif hasattr(part, "ios") and hasattr(part.ios[0], "names"):
                pins = part.ios[0]
                found.setdefault(f"{resource.name}.{part.name}", (pins.names, pins.invert))
    return found


@pytest.mark.parametrize(
    ("board", "platform"), PLATFORMS, ids=lambda item: getattr(item, "name", "")
)
def test_pins(board, platform):
    resources = resources_of(platform)
    assert resources[platform.default_clk][0] == [board.clock_pin.location]
    assert platform.default_clk == f"clk{board.clock_mhz:g}"
    flash = FLASH.get(board.name, "spi_flash_1x")
    for name in ("rx", "tx"):
        assert resources[f"uart.{name}"][0] == [board.pins[name].location]
    for name in ("clk", "copi", "cipo"):
        if not board.pins[f"flash_{name}"].config_clock:
            assert resources[f"{flash}.{name}"][0] == [board.pins[f"flash_{name}"].location]
    assert resources[f"{flash}.cs"][0] == [board.pins["flash_cs_n"].location]
    further = {name: f"flash_{name}" in board.pins for name in ("io2", "io3")}
    assert set(further.values()) == {board.flash.lines == 4}
    if board.flash.lines == 4:
        lines = [board.pins[f"flash_{name}"].location for name in ("copi", "cipo", "io2", "io3")]
        apart = [f"{flash}.{name}" for name in ("copi", "cipo", "wp", "hold")]
        known = ["spi_flash_4x.dq"] if "spi_flash_4x.dq" in resources else apart
        assert [pin for name in known for pin in resources[name][0]] == lines
    if board is ULX3S_25F:
        assert resources["esp32.gpio0"][0] == [board.held_high["wifi_gpio0"].location]
    for name, led in LEDS[board.name].items():
        pin = board.pins[name]
        assert resources[led][0] == [pin.location]
        assert resources[led][1] == (pin.inverted or pin.led_driver is not None)
    assert (platform.device.lower(), platform.package.lower()) == (
        DEVICES.get(board.device, f"ice40{board.device}"),
        DEVICES.get(board.package, board.package),
    )


def test_sdram_pins():
    """Those of the independent board file, all with steep edges."""
    (resource,) = (r for r in ULX3S_25F_Platform.resources if r.name == "sdram")
    theirs = {part.name: part.ios[0] for part in resource.ios if hasattr(part, "ios")}
    ours = {name: pin for name, pin in ULX3S_25F.pins.items() if name.startswith("sdram_")}
    assert set(ours) == set(sdram_pins())
    assert all(pin.fast for pin in ours.values())
    alone = {"clk": "clk", "cke": "clk_en", "cs_n": "cs", "ras_n": "ras", "cas_n": "cas"}
    for name, known in (alone | {"we_n": "we"}).items():
        assert theirs[known].names == [ours[f"sdram_{name}"].location]
        assert theirs[known].invert == name.endswith("_n")
    for name in ("ba", "a", "dq", "dqm"):
        places = theirs[name].names
        assert places == [ours[f"sdram_{name}{i}"].location for i in range(len(places))]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_record(board):
    """What must hold of any board."""
    pins = [board.clock_pin, *board.pins.values(), *board.held_high.values()]
    locations = [pin.location for pin in pins]
    assert len(set(locations)) == len(locations)
    assert {"rx", "tx", "ready", "busy", "error"} <= set(board.pins)
    for pin in board.pins.values():
        assert pin.led_driver == (LED_DRIVER_PINS.get(pin.location) if board.budget.spram else None)
        assert not pin.config_clock or board.family == "ecp5"
    assert board.flash.image_offset % (1 << 16) == 0
    assert board.flash.image_offset >= 104_090
    assert board.family in FAMILIES
    assert board.geometry.activation_bits == 4
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
