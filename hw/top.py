"""What stands on a board: the engine, its Image in block RAM, and the serial link to the host."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect

from compiler.image import Image
from hw.engine import Engine
from hw.host import DEFAULT_TIMEOUT, Host
from hw.reader import RomReader
from hw.uart import UartReceiver, UartTransmitter, divisor_for


class Top(wiring.Component):
    """Pictures in over the serial line, scores out; see `hw.host` for the frames.

    Parameters
    ----------
    image : Image
        The network, which goes into block RAM; its geometry is the engine's.
    clock_hz : float
        Of the ``sync`` domain.
    baud : int
        Bits a second of the serial line.
    primitive : str
        See `hw.memory.ActivationMemory`.

    Members
    -------
    rx : In(1), tx : Out(1), the serial line
    alive : Out(1), blinks about once a second
    busy : Out(1), a request is being served or a picture computed
    error : Out(1), the last request failed, or there is no Image for this engine
    """

    def __init__(
        self, image: Image, clock_hz: float, baud: int, primitive: str = "inferred"
    ) -> None:
        self._image, self._clock_hz, self._primitive = image, clock_hz, primitive
        self._divisor = divisor_for(clock_hz, baud)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "alive": Out(1),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        geometry = self._image.geometry
        m.submodules.receiver = receiver = UartReceiver(self._divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(self._divisor)
        size_bits = self._image.header["pixels"].bit_length()
        m.submodules.host = host = Host(round(DEFAULT_TIMEOUT * self._clock_hz), size_bits)
        m.submodules.reader = reader = RomReader(self._image.words(), geometry.stream_bits)
        m.submodules.engine = engine = Engine(geometry, self._primitive)
        connect(m, receiver.o, host.i_bytes)
        connect(m, host.o_bytes, transmitter.i)
        connect(m, host.o_pixels, engine.i_pixels)
        connect(m, engine.o_answer, host.i_answer)
        connect(m, reader.o, engine.i_image)
        blink = Signal((int(self._clock_hz) - 1).bit_length())
        m.d.sync += blink.eq(blink + 1)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            host.link_error_stb.eq(receiver.framing_stb | receiver.overflow_stb),
            host.num_pixels.eq(engine.num_pixels),
            host.num_classes.eq(engine.num_classes),
            host.engine_error.eq(engine.error),
            self.alive.eq(blink[-1]),
            self.busy.eq(host.busy | engine.busy),
            self.error.eq(host.error | engine.error),
        ]
        return m
