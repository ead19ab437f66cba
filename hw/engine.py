"""The engine: an overlay that runs any network whose Image is made for its geometry."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from compiler import arith
from compiler.geometry import Geometry
from hw.divider import SerialDivider
from hw.fetch import WindowFetch
from hw.lanes import Lanes
from hw.layout import memory_read, memory_write
from hw.loader import Loader, loads_nothing
from hw.maximum import Maximum
from hw.memory import ActivationMemory, MemoryArbiter
from hw.pool import Pool
from hw.requantise import Requantiser, TileCounter
from hw.scorer import ANSWER, Scorer
from hw.window import WindowBuffer
from hw.writer import InputWriter


class Engine(wiring.Component):
    """Image stream and pixels in, scores out; equal to `compiler.golden` bit for bit.

    Parameters
    ----------
    geometry : Geometry
    primitive : str
        See `hw.memory.ActivationMemory`.

    Members
    -------
    i_image : In(stream of stream_bits)
        The Image's words (`compiler.image`), from the beginning again for each picture. Another
        Image may follow where one ends.
    i_pixels : In(stream of 8)
        Bytes of a picture, (height, width, channel).
    o_answer : Out(stream of `hw.scorer.ANSWER`)
    image_write : In(memory_write), image_read : In(memory_read)
        The activation memory, for whoever keeps the Image in it. Written only before the first word
        of `i_image`; read at any time, before the words of a window.
    num_pixels : Out(24)
        Bytes a picture has; 0 while there is no Image.
    num_classes : Out(8)
    busy : Out(1), a picture is being taken in or computed
    error : Out(1), the Image is none for this geometry; until reset
    layer_start, layer_done : Out(1), strobes, for whoever counts cycles or looks into the memory
    """

    def __init__(self, geometry: Geometry, primitive: str = "inferred") -> None:
        self._geometry = geometry
        self._primitive = primitive
        super().__init__(
            {
                "i_image": In(stream.Signature(geometry.stream_bits)),
                "i_pixels": In(stream.Signature(8)),
                "o_answer": Out(stream.Signature(ANSWER)),
                "image_write": In(memory_write(geometry)),
                "image_read": In(memory_read(geometry)),
                "num_pixels": Out(24),
                "num_classes": Out(8),
                "busy": Out(1),
                "error": Out(1),
                "layer_start": Out(1),
                "layer_done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        g = self._geometry
        m.submodules.loader = loader = Loader(g)
        m.submodules.fetch = fetch = WindowFetch(g, self._primitive)
        m.submodules.window = window = WindowBuffer(g)
        m.submodules.lanes = lanes = Lanes(g, self._primitive)
        if g.residuals:
            m.submodules.pool = pool = Pool(g)
        m.submodules.requantiser = requantiser = Requantiser(g, self._primitive)
        m.submodules.tiles = tiles = TileCounter(g)
        m.submodules.writer = writer = InputWriter(g)
        m.submodules.divider = divider = SerialDivider(
            requantiser.dividend_bits, g.divisor_bits, arith.SCORE_BITS
        )
        m.submodules.scorer = scorer = Scorer()
        m.submodules.memory = memory = ActivationMemory(g, self._primitive)
        layers = {"activation_write": "write", "input_write": "write"}
        if g.residuals:
            layers = {"residual_read": "read", "residual_write": "write"} | layers
        if g.max_pool:
            layers |= {"maximum_write": "write"}
        m.submodules.arbiter = arbiter = MemoryArbiter(
            g,
            # Last: the Image is read far ahead, and whether it is wanted is known late.
            [layers, {"image_write": "write"}, {"fetch": "read"}, {"image_read": "read"}],
        )
        record = loader.record
        for block in (fetch, window, requantiser, tiles):
            m.d.comb += block.record.eq(record)
        m.d.comb += [
            fetch.strides.eq(loader.strides),
            tiles.restart.eq(self.layer_start),
            requantiser.tile.eq(tiles.o),
        ]

        if g.residuals:
            m.d.comb += requantiser.strides.eq(loader.strides)
            connect(m, requantiser.residual_read, arbiter.residual_read)
            connect(m, requantiser.residual_write, arbiter.residual_write)
        connect(m, requantiser.activation_write, arbiter.activation_write)
        connect(m, writer.memory, arbiter.input_write)
        m.d.comb += arbiter.soon.read.eq(requantiser.soon.read)
        soon = requantiser.soon.write | writer.soon
        connect(m, fetch.memory, arbiter.fetch)
        connect(m, flipped(self.image_write), arbiter.image_write)
        connect(m, flipped(self.image_read), arbiter.image_read)
        arbiter.attach(m, memory)
        self._compute(m, fetch, window, lanes, loader, requantiser)
        tile_step, self._group_done = requantiser.tile_step, requantiser.group_done
        if g.residuals:
            self._pool(m, record, window, tiles, pool, requantiser)
            tile_step = tile_step | pool.tile_step
        if g.max_pool:
            maximum = self._maximum(m, record, loader, window, tiles, arbiter)
            soon = soon | maximum.soon
            tile_step, self._group_done = (
                tile_step | maximum.tile_step,
                requantiser.group_done | maximum.group_done,
            )
            m.d.comb += requantiser.input_done.eq(maximum.group_done)  # its parameters are unused
        m.d.comb += [tiles.step.eq(tile_step), arbiter.soon.write.eq(soon)]
        self._divide(m, record, loader, requantiser, divider, writer, scorer)
        self._control(m, record, loader, fetch, window, requantiser, writer)
        connect(m, flipped(self.i_image), loader.i)
        connect(m, scorer.o, flipped(self.o_answer))
        return m

    def _compute(self, m, fetch, window, lanes, loader, requantiser) -> None:
        """Window words to the lanes, and on to the requantiser."""
        m.d.comb += [
            fetch.room.eq(window.room),
            window.mark.eq(fetch.start),
            window.coming.eq(fetch.coming),
            window.data.eq(fetch.data),
            window.gate.eq(requantiser.gate),
            lanes.valid.eq(window.valid),
            lanes.x.eq(window.x),
            lanes.last.eq(window.last),
            lanes.slice_end.eq(window.slice_end),
            loader.weight_address.eq(window.weight_address),
            lanes.weights.eq(loader.weights),
            requantiser.start.eq(window.valid & window.last),
            lanes.sum_address.eq(requantiser.sum_address),
            requantiser.sum.eq(lanes.sum),
            loader.bias_address.eq(requantiser.bias_address),
            requantiser.bias.eq(loader.bias),
            requantiser.gain.eq(loader.gain),
            loader.stairs_address.eq(requantiser.stairs_address),
            requantiser.stairs.eq(loader.stairs),
        ]

    def _pool(self, m, record, window, tiles, pool, requantiser) -> None:
        """Window words to the pool, and on to the requantiser."""
        maximum = record.maximum if self._geometry.max_pool else Const(0, 1)
        m.d.comb += [
            pool.record.eq(record),
            pool.tile.eq(tiles.o),
            pool.valid.eq(window.pool_valid & ~maximum),
            pool.word.eq(window.pool_word),
            requantiser.pooled.eq(pool.value),
            requantiser.pooled_place.eq(pool.place),
        ]

    def _maximum(self, m, record, loader, window, tiles, arbiter) -> Maximum:
        """Words of a maximum's windows go there instead of to the pool."""
        g = self._geometry
        m.submodules.maximum = maximum = Maximum(g)
        connect(m, maximum.memory, arbiter.maximum_write)
        m.d.comb += [
            maximum.record.eq(record),
            maximum.layer_start.eq(self.layer_start),
            maximum.tile.eq(tiles.o),
            maximum.valid.eq(window.pool_valid & record.maximum),
            maximum.word.eq(window.pool_word),
            maximum.last.eq(window.pool_last),
            # Of the last pass those that say whether a pair is negated, a lane each.
            maximum.falling.eq(loader.weights[1 : 2 * g.word_channels : 2]),
        ]
        return maximum

    def _divide(self, m, record, loader, requantiser, divider, writer, scorer) -> None:
        """The serial divider serves the pixels that come in and the scores that go out."""
        kept = Signal()
        with m.If(requantiser.quotient_start):
            m.d.sync += kept.eq(requantiser.keep)
        divides = record.divide if self._geometry.addend_division else Const(0, 1)
        scores = divider.done & ~requantiser.input_mode & ~divides
        m.d.comb += [
            divider.start.eq(requantiser.quotient_start),
            divider.dividend.eq(requantiser.dividend),
            divider.divisor.eq(requantiser.divisor),
            # A pixel's quotient has fewer bits than a score's: it saturates.
            writer.q.eq(Mux(divider.quotient[arith.INPUT_BITS :].any(), -1, divider.quotient)),
            writer.q_valid.eq(divider.done & requantiser.input_mode),
            scorer.quotient.eq(divider.quotient),
            scorer.classes.eq(loader.header.classes),
            scorer.valid.eq(scores & kept),
            requantiser.quotient.eq(divider.quotient),
            requantiser.quotient_done.eq(
                writer.q_valid | (scores & ~kept) | scorer.taken | (divider.done & divides)
            ),
        ]

    def _control(self, m, record, loader, fetch, window, requantiser, writer) -> None:
        """Pictures, layers, groups."""
        ready_groups = Signal(2)
        started = Signal(len(record.groups_less) + 1)
        finished = Signal(len(record.groups_less) + 1)
        launch, taking = Signal(), Signal()
        more, complete = Signal(), Signal()  # groups; compared a cycle before they are looked at
        done = Signal()  # a group, in the cycle before: nobody hurries
        m.d.comb += [
            writer.header.eq(loader.header),
            requantiser.channels.eq(loader.header.channels),
            requantiser.input_mode.eq(taking),
            requantiser.byte.eq(self.i_pixels.payload),
            requantiser.byte_valid.eq(self.i_pixels.valid & taking & writer.ready),
            self.i_pixels.ready.eq(requantiser.byte_ready),
            self.num_classes.eq(loader.header.classes),
            self.error.eq(loader.error),
            fetch.start.eq(launch),
        ]
        m.d.sync += [
            self.layer_start.eq(loader.record_ready),  # so in state "start"
            more.eq(started <= record.groups_less),
            complete.eq(finished > record.groups_less),
            done.eq(self._group_done),
        ]
        m.d.comb += loader.group_done.eq(done & ~loads_nothing(record))
        with m.If(~loader.known):
            m.d.sync += self.num_pixels.eq(0)
        for block in (fetch, requantiser):
            m.d.comb += block.layer_start.eq(self.layer_start)
        m.d.sync += ready_groups.eq(
            ready_groups + loader.group_loaded - (launch & ~loads_nothing(record))
        )
        with m.If(launch):
            m.d.sync += started.eq(started + 1)
        with m.If(done):
            m.d.sync += finished.eq(finished + 1)

        with m.FSM():
            with m.State("load"):
                with m.If(loader.input_ready):
                    m.d.comb += writer.start.eq(1)
                    m.d.sync += [taking.eq(1), self.num_pixels.eq(loader.header.pixels)]
                    m.next = "take"
            with m.State("take"):
                m.d.comb += self.busy.eq(requantiser.byte_valid)
                with m.If(writer.done):
                    m.d.sync += taking.eq(0)
                    m.d.comb += [loader.input_done.eq(1), requantiser.input_done.eq(1)]
                    m.next = "ask"
            with m.State("ask"):
                m.d.comb += [loader.next_layer.eq(1), self.busy.eq(1)]
                m.next = "record"
            with m.State("record"):
                m.d.comb += self.busy.eq(1)
                m.d.sync += [started.eq(0), finished.eq(0)]
                with m.If(loader.record_ready):
                    m.next = "start"
            with m.State("start"):
                m.d.comb += self.busy.eq(1)
                m.next = "run"
            with m.State("run"):
                m.d.comb += self.busy.eq(1)
                m.d.comb += launch.eq(
                    ~fetch.busy
                    & ~window.marked
                    & more
                    & (loads_nothing(record) | (ready_groups != 0))
                )
                with m.If(complete):
                    m.d.comb += self.layer_done.eq(1)
                    m.next = "ask"
                    with m.If(record.last):
                        m.d.comb += loader.image_done.eq(1)
                        m.next = "load"
