// What is on a board around the device: the very `top` that is synthesised, and the SPI flash on
// its pins. The serial line, the clock's pin and the LEDs are the bench's. Where the device clocks
// its flash through a primitive (ECP5), USRMCLK is defined: the clock is taken from inside. Where the
// flash answers on four lines, QUAD is; else the board's pull-ups hold the further two.
//
// Where USRMCLK is defined the clock is so fast that the ways through pads and wires matter. Simulation
// knows no delays: what the flash sends comes a cycle later there, which with its own 6 ns stands for
// ways of as long a time as `boards.records` allows for.

module board (
    input  clk,
    input  rx,
    output tx,
    output ready,
    output busy,
    output error
);
    wire flash_cs_n, flash_clk, flash_copi, flash_cipo, flash_io2, flash_io3;
    wire [5:0] sends;
    wire sent_cipo, drives, sent_io0, quad_drives, sent_io2, sent_io3;
`ifdef USRMCLK
    reg [5:0] sent = 0;
    always @(posedge clk) sent <= sends;
`else
    wire [5:0] sent = sends;
`endif
    assign {sent_cipo, drives, sent_io0, quad_drives, sent_io2, sent_io3} = sent;
    assign flash_cipo = sent_cipo;
    assign flash_copi = drives ? sent_io0 : 1'bz;
`ifdef QUAD
    assign flash_io2 = quad_drives ? sent_io2 : 1'bz;
    assign flash_io3 = quad_drives ? sent_io3 : 1'bz;
`else
    assign flash_io2 = 1;
    assign flash_io3 = 1;
`endif

    top top (
        .clk(clk),
        .rx(rx),
        .tx(tx),
        .flash_cs_n(flash_cs_n),
`ifndef USRMCLK
        .flash_clk(flash_clk),
`endif
        .flash_copi(flash_copi),
        .flash_cipo(flash_cipo),
`ifdef QUAD
        .flash_io2(flash_io2),
        .flash_io3(flash_io3),
`endif
        .ready(ready),
        .busy(busy),
        .error(error)
    );

`ifdef USRMCLK
    assign flash_clk = top.usrmclk.MCLK;
`endif

    spi_flash flash (
        .cs_n(flash_cs_n),
        .clk(flash_clk),
        .copi(flash_copi),
        .cipo(sends[5]),
        .drives(sends[4]),
        .io0(sends[3]),
        .wp_n(flash_io2),
        .hold_n(flash_io3),
        .quad_drives(sends[2]),
        .io2(sends[1]),
        .io3(sends[0])
    );
endmodule
