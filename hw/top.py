"""What stands on a board: the engine, its Image out of the flash, and the serial link."""

from __future__ import annotations

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from compiler.geometry import Geometry
from hw.engine import Engine
from hw.flash import FlashReader
from hw.host import DEFAULT_TIMEOUT, Host
from hw.replay import ImageReplay
from hw.store import ImageStore
from hw.uart import UartReceiver, UartTransmitter, divisor_for


class Top(wiring.Component):
    """Pictures in over the serial line, scores out; see `hw.host` for the frames.

    After reset the Image is copied from flash to the activation memory, which takes some
    milliseconds; requests that come before it is there, or when it is damaged, end with
    `Status.ENGINE`. Where the memory does not hold it, it is checked instead, and read from flash
    again for each picture. The design knows nothing of the network: any Image made for its geometry
    runs.

    Parameters
    ----------
    geometry : Geometry
        The engine's.
    clock_hz : float
        Of the ``sync`` domain.
    baud : int
        Bits a second of the serial line.
    primitive : str
        See `hw.memory.ActivationMemory`.
    image_offset : int
        Where the Image lies in flash (`compiler.image.flash_bytes`), in bytes.
    image : "memory" or "flash"
        Where it is read from for a picture: `hw.store` or `hw.replay`.

    Members
    -------
    rx : In(1), tx : Out(1), the serial line
    flash_cs_n, flash_clk, flash_copi : Out(1), flash_cipo : In(1), the flash
    alive : Out(1), blinks about once a second
    busy : Out(1), a request is being served or a picture computed
    error : Out(1), the last request failed, or there is no Image for this engine

    Raises
    ------
    ValueError
        A clock that the bit rate does not divide, an offset out of range, or a geometry of which
        the memory cannot hold an Image (`hw.store.ImageStore`).
    """

    def __init__(
        self,
        geometry: Geometry,
        clock_hz: float,
        baud: int,
        primitive: str = "inferred",
        image_offset: int = 0,
        image: str = "memory",
    ) -> None:
        if image not in ("memory", "flash"):
            raise ValueError(f"image must be 'memory' or 'flash', not {image!r}")
        self._clock_hz = clock_hz
        self._divisor = divisor_for(clock_hz, baud)
        self._flash = FlashReader(clock_hz, image_offset)
        self._store = ImageStore(geometry) if image == "memory" else ImageReplay(geometry)
        self._engine = Engine(geometry, primitive)
        size_bits = dict(geometry.header_fields)["pixels"]
        self._host = Host(round(DEFAULT_TIMEOUT * clock_hz), size_bits)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "flash_cs_n": Out(1, init=1),
                "flash_clk": Out(1),
                "flash_copi": Out(1),
                "flash_cipo": In(1),
                "alive": Out(1),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        m.submodules.host, m.submodules.engine = host, engine = self._host, self._engine
        m.submodules.store = store = self._store
        flash = self._flash
        connect(m, receiver.o, host.i_bytes)
        connect(m, host.o_bytes, transmitter.i)
        connect(m, host.o_pixels, engine.i_pixels)
        connect(m, engine.o_answer, host.i_answer)
        connect(m, flash.o, store.i)
        if isinstance(store, ImageStore):
            m.submodules.flash = flash
            connect(m, store.write, engine.image_write)
            connect(m, store.read, engine.image_read)
        else:
            m.submodules.flash = ResetInserter(store.rewind)(flash)
        connect(m, store.o, engine.i_image)
        for name in ("flash_cs_n", "flash_clk", "flash_copi"):
            m.d.comb += getattr(self, name).eq(getattr(flash, name))
        blink = Signal((int(self._clock_hz) - 1).bit_length())
        m.d.sync += blink.eq(blink + 1)
        engine_error = engine.error | store.error
        m.d.comb += [
            flash.flash_cipo.eq(self.flash_cipo),
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            host.link_error_stb.eq(receiver.framing_stb | receiver.overflow_stb),
            host.num_pixels.eq(engine.num_pixels),
            host.num_classes.eq(engine.num_classes),
            host.engine_error.eq(engine_error),
            self.alive.eq(blink[-1]),
            self.busy.eq(host.busy | engine.busy),
            self.error.eq(host.error | engine_error),
        ]
        return m
