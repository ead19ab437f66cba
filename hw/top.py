"""What stands on a board: the engine, its Image out of the flash, and the serial link."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect

from compiler.geometry import Geometry
from hw.engine import Engine
from hw.flash import FlashReader, join_pins
from hw.host import DEFAULT_TIMEOUT, Host
from hw.rom import RomReader
from hw.sdram import SdramReader
from hw.store import ImageStore
from hw.uart import UartReceiver, UartTransmitter, divisor_for


class Top(wiring.Component):
    """Pictures in over the serial line, scores out; see `hw.host` for the frames.

    After reset the Image is read from flash, copied to the activation memory if it has the room,
    and checked, which takes some milliseconds; requests that come before, or when it is damaged,
    end with `Status.ENGINE`. An Image for which there is no room is read again for each picture.
    The design knows nothing of the network: any Image made for its geometry runs.

    The flash may be one that is copied to SDRAM first, or a block RAM that holds one network.

    Parameters
    ----------
    geometry : Geometry
        The engine's.
    clock_hz : float
        Of the ``sync`` domain.
    baud : int
        Bits a second of the serial line.
    flash : FlashReader, SdramReader or RomReader
        Of this clock; from its offset on the flash holds what `compiler.image.flash_bytes` makes.
    primitive : str
        See `hw.memory.ActivationMemory`.

    Members
    -------
    rx : In(1), tx : Out(1), the serial line
    flash_…, sdram_… : the pins of what reads the Image (`pins`)
    ready : Out(1), the Image has been read, and its CRC was right
    busy : Out(1), a request is being served or a picture computed
    error : Out(1), the last request failed, or there is no Image for this engine

    Raises
    ------
    ValueError
        A clock that the bit rate does not divide, or a geometry of which the memory cannot hold an
        Image (`hw.store.ImageStore`).
    """

    def __init__(
        self,
        geometry: Geometry,
        clock_hz: float,
        baud: int,
        flash: FlashReader | SdramReader | RomReader,
        primitive: str = "inferred",
    ) -> None:
        self._divisor = divisor_for(clock_hz, baud)
        self._flash = flash
        self._store = ImageStore(geometry, flash.lines)
        self._engine = Engine(geometry, primitive)
        size_bits = dict(geometry.header_fields)["pixels"]
        self._host = Host(round(DEFAULT_TIMEOUT * clock_hz), size_bits)
        super().__init__(
            flash.pins
            | {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "ready": Out(1),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        m.submodules.host, m.submodules.engine = host, engine = self._host, self._engine
        flash, store = self._flash, self._store
        m.submodules.flash, m.submodules.store = flash.again_at(m, store.again), store
        connect(m, receiver.o, host.i_bytes)
        connect(m, host.o_bytes, transmitter.i)
        self._pass_pixels(m, host.o_pixels, engine.i_pixels)
        connect(m, engine.o_answer, host.i_answer)
        connect(m, store.write, engine.image_write)
        connect(m, store.read, engine.image_read)
        connect(m, store.o, engine.i_image)
        join_pins(m, flash, self, flash.pins)
        m.d.comb += [
            store.stb.eq(flash.stb),
            store.data.eq(flash.data),
            flash.room.eq(store.room),
        ]
        engine_error = Signal()  # from a register: it comes late, and nobody hurries
        m.d.sync += engine_error.eq(engine.error | store.error)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            host.link_error_stb.eq(receiver.framing_stb | receiver.overflow_stb),
            host.num_pixels.eq(engine.num_pixels),
            host.num_classes.eq(engine.num_classes),
            host.engine_error.eq(engine_error),
            self.ready.eq(store.loaded),
            self.busy.eq(host.busy | engine.busy),
            self.error.eq(host.error | engine_error),
        ]
        return m

    def _pass_pixels(self, m: Module, source: stream.Interface, sink: stream.Interface) -> None:
        """Through a register: neither side then waits for what the other makes of a cycle."""
        taken = source.valid & source.ready
        m.d.comb += source.ready.eq(~sink.valid)
        with m.If(taken):
            m.d.sync += sink.payload.eq(source.payload)
        m.d.sync += sink.valid.eq(taken | (sink.valid & ~sink.ready))
